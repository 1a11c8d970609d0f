//! Reading resource usage records page by page.
//!
//! Upstream's table has no key, and no index but that of the client. Records are
//! read in the order of all their columns, so that it does not matter which of
//! two equal ones comes first, and many at a time: to go on within a client
//! means to read all its records again.

use std::collections::VecDeque;

use bytes::Bytes;
use fleethold_store::maintenance::{Cursor, Page, Row as StoreRow};
use fleethold_store::{ClientId, Result};
use futures::FutureExt;

use super::export::{OPERATION, foreign};
use crate::MysqlStore;
use crate::error::Worked;
use crate::rows::take_id;
use crate::sql::{Batch, Value};
use crate::transaction::Tx;
use crate::usage;

/// So many records are read at once, and kept for the next pages.
const AHEAD: usize = 20_000;

/// Records that were read already, from a place on.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    after: Place,
    rows: VecDeque<(StoreRow, Place)>,
    /// Whether nothing comes after these.
    is_end: bool,
}

/// How many records of a client have been read, after all of those before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    /// Empty at the beginning.
    client: Bytes,
    read: u64,
}

impl Place {
    fn encode(&self) -> Cursor {
        [&self.client[..], &self.read.to_be_bytes()].concat().into()
    }

    fn decode(place: &Cursor) -> Option<Self> {
        let (client, read) = place.split_at_checked(8)?;
        Some(Self {
            client: Bytes::copy_from_slice(client),
            read: u64::from_be_bytes(read.try_into().ok()?),
        })
    }
}

/// Returns at most `limit` records after a place.
pub(super) async fn page(store: &MysqlStore, after: Option<&Cursor>, limit: usize) -> Result<Page> {
    store.shared.check_open(OPERATION)?;
    let after = match after {
        None => Place::default(),
        Some(place) => Place::decode(place).ok_or_else(foreign)?,
    };
    let mut ahead = store.take_ahead();
    if ahead.after != after || (ahead.rows.is_empty() && !ahead.is_end) {
        let most = limit.max(AHEAD);
        ahead = store
            .shared
            .read(OPERATION, (after, most), |(after, most), tx| {
                async move { read(tx, after, *most).await }.boxed()
            })
            .await?;
    }
    let count = limit.min(ahead.rows.len());
    let mut rows = Vec::with_capacity(count);
    for (row, place) in ahead.rows.drain(..count) {
        rows.push(row);
        ahead.after = place;
    }
    let is_end = ahead.is_end && ahead.rows.is_empty();
    let next = (!is_end).then(|| ahead.after.encode());
    // The end is read anew by whoever begins anew.
    if !is_end {
        store.keep_ahead(ahead);
    }
    Ok(Page { rows, next })
}

async fn read(tx: &mut Tx, after: &Place, most: usize) -> Worked<Ahead> {
    tx.take_time();
    let most = u64::try_from(most).unwrap_or(u64::MAX);
    let values = [
        Value::Bytes(&after.client),
        Value::Unsigned(after.read.saturating_add(most) - 1),
    ];
    let replies = tx.run(Batch::of(LAST_CLIENT, &values)).await?;
    let mut rows = replies.into_iter().flat_map(|reply| reply.rows);
    // Without it, all are read: there are not so many.
    let last: Option<ClientId> = rows
        .next()
        .map(|mut row| take_id(&mut row, 0))
        .transpose()?;
    let last = last.map_or([0xff; 8], |last| *last.as_bytes());
    let values = [
        Value::Bytes(&after.client),
        Value::Bytes(&last),
        Value::Unsigned(most),
        Value::Unsigned(after.read),
    ];
    let replies = tx.commit(Batch::of(RECORDS, &values)).await?;
    let mut ahead = Ahead {
        after: after.clone(),
        ..Ahead::default()
    };
    let mut place = after.clone();
    for mut row in replies.into_iter().flat_map(|reply| reply.rows) {
        let client: ClientId = take_id(&mut row, 14)?;
        if place.client[..] == client.as_bytes()[..] {
            place.read += 1;
        } else {
            place = Place {
                client: client.to_bytes(),
                read: 1,
            };
        }
        let record = usage::record(&mut row)?;
        ahead
            .rows
            .push_back((StoreRow::Usage(client, record), place.clone()));
    }
    ahead.is_end = u64::try_from(ahead.rows.len()).unwrap_or(u64::MAX) < most;
    Ok(ahead)
}

const LAST_CLIENT: &str = "\
-- export_rows (last client with usage)
SELECT client_id FROM client_resource_usage_records WHERE client_id >= ?
ORDER BY client_id LIMIT 1 OFFSET ?";

// The first columns are those of `usage::record`.
const RECORDS: &str = "\
-- export_rows (usage)
SELECT
    scope, pid, process_start_time, client_timestamp, server_timestamp, process_terminated,
    mean_user_cpu_rate, max_user_cpu_rate, mean_system_cpu_rate, max_system_cpu_rate,
    mean_resident_memory_mib, max_resident_memory_mib, mean_num_fds, max_num_fds, client_id
FROM client_resource_usage_records WHERE client_id >= ? AND client_id <= ?
ORDER BY
    client_id, server_timestamp, client_timestamp, process_start_time, pid, CAST(scope AS BINARY),
    process_terminated, mean_user_cpu_rate, max_user_cpu_rate, mean_system_cpu_rate,
    max_system_cpu_rate, mean_resident_memory_mib, max_resident_memory_mib, mean_num_fds,
    max_num_fds
LIMIT ? OFFSET ?";
