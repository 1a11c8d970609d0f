//! Removing what is old.
//!
//! Rows are looked at in the order they came, which is about the order of their
//! times: there is no index by time, which every write would pay for. A step
//! that removes nothing and has met a row that is too young ends the round. What
//! is pending has an index, which is walked as a whole.

use std::time::Duration;

use bytes::Bytes;
use fleethold_store::clock::{epoch_micros, epoch_nanos, timestamp};
use fleethold_store::maintenance::{Cursor, EXPIRED, Lease, Old, Removed};
use fleethold_store::{Error, MessageId};
use rusqlite::vtab::array::Array;
use rusqlite::{OptionalExtension, params};

use crate::error::Worked;
use crate::ids::hash;
use crate::rows::{array, unreadable};
use crate::writer::Tx;

/// What one step does.
pub(crate) struct Step {
    pub(crate) what: Old,
    pub(crate) before: std::time::SystemTime,
    pub(crate) after: Option<Cursor>,
    pub(crate) limit: usize,
}

/// Takes or keeps a lease.
pub(crate) fn hold_lease(
    tx: &Tx<'_>,
    name: &str,
    holder: u64,
    duration: Duration,
) -> Worked<Option<Lease>> {
    let now = tx.clock().now();
    let fence: Option<i64> = tx
        .prepare_cached(HOLD_LEASE)?
        .query_row(
            params![
                name,
                holder.cast_signed(),
                epoch_micros(now),
                epoch_micros(now + duration)
            ],
            |row| row.get(0),
        )
        .optional()?;
    Ok(fence.map(|fence| Lease {
        name: name.to_owned(),
        holder,
        fence: fence.cast_unsigned(),
    }))
}

const HOLD_LEASE: &str = "\
-- hold_lease
INSERT INTO leases (name, holder, fence, until_micros) VALUES (?1, ?2, 1, ?4)
ON CONFLICT (name) DO UPDATE
SET fence = fence + (holder <> excluded.holder), holder = excluded.holder,
    until_micros = excluded.until_micros
WHERE holder = excluded.holder OR until_micros <= ?3
RETURNING fence";

/// Removes old rows.
pub(crate) fn remove(
    tx: &Tx<'_>,
    operation: &'static str,
    step: &Step,
    lease: &Lease,
) -> Worked<Removed> {
    let is_held = tx.prepare_cached(CHECK_LEASE)?.exists(params![
        lease.name,
        lease.holder.cast_signed(),
        lease.fence.cast_signed()
    ])?;
    if !is_held {
        return Err(lease.lost(operation).into());
    }
    let after = match &step.after {
        // It has places of its own.
        _ if step.what == Old::Pending => i64::MIN,
        None => i64::MIN,
        Some(place) => place[..]
            .try_into()
            .map(i64::from_be_bytes)
            .map_err(|_| foreign(operation))?,
    };
    let nanos = epoch_nanos(step.before);
    let end = timestamp(step.before);
    match step.what {
        Old::Contacts => {
            let seen = look(
                tx,
                step,
                LOOK_AT_CONTACTS,
                params![after, limit(step), nanos],
            )?;
            tx.prepare_cached(REMOVE_LINKS)?
                .execute([array(seen.old.iter().copied())])?;
            tx.prepare_cached(REMOVE_CONTACTS)?
                .execute([array(seen.old.iter().copied())])?;
            Ok(seen.removed())
        }
        Old::Usage => {
            let seen = look(tx, step, LOOK_AT_USAGE, params![after, limit(step), nanos])?;
            tx.prepare_cached(REMOVE_USAGE)?
                .execute([array(seen.old.iter().copied())])?;
            Ok(seen.removed())
        }
        Old::Messages => {
            let parameters = params![after, limit(step), end.seconds, end.nanos];
            let seen = look(tx, step, LOOK_AT_MESSAGES, parameters)?;
            remove_messages(tx, &seen.old)?;
            Ok(seen.removed())
        }
        Old::Pending => expire(tx, operation, step),
    }
}

fn foreign(operation: &'static str) -> Error {
    Error::invalid(operation, "the place is none of this store")
}

const CHECK_LEASE: &str = "\
-- remove_old (lease)
SELECT 1 FROM leases WHERE name = ?1 AND holder = ?2 AND fence = ?3";

/// What a step has looked at.
struct Seen {
    old: Vec<i64>,
    /// Rows that are too young, though they could be removed some time.
    young: usize,
    last: Option<i64>,
    is_full: bool,
}

impl Seen {
    fn removed(self) -> Removed {
        let goes_on = self.is_full && (!self.old.is_empty() || self.young == 0);
        let place = |last: i64| Bytes::copy_from_slice(&last.to_be_bytes());
        Removed {
            rows: self.old.len() as u64,
            next: self.last.filter(|_| goes_on).map(place),
        }
    }
}

fn limit(step: &Step) -> i64 {
    i64::try_from(step.limit).unwrap_or(i64::MAX)
}

/// Reads keys, each with whether the row is old (1), young (0), or neither.
fn look(tx: &Tx<'_>, step: &Step, sql: &str, parameters: &[&dyn rusqlite::ToSql]) -> Worked<Seen> {
    let mut statement = tx.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    let mut seen = Seen {
        old: Vec::new(),
        young: 0,
        last: None,
        is_full: false,
    };
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let key = row.get(0)?;
        match row.get(1)? {
            Some(1) => seen.old.push(key),
            Some(_) => seen.young += 1,
            None => {}
        }
        seen.last = Some(key);
        count += 1;
    }
    seen.is_full = count == step.limit;
    Ok(seen)
}

// The newest row stays: its number would be used again.
const LOOK_AT_CONTACTS: &str = "\
-- remove_old (contacts)
SELECT contact, time_nanos < ?3 AND contact < (SELECT max(contact) FROM contacts)
FROM contacts WHERE contact > ?1 ORDER BY contact LIMIT ?2";

const REMOVE_LINKS: &str = "\
-- remove_old (links)
DELETE FROM contact_messages WHERE contact IN rarray(?1)";

const REMOVE_CONTACTS: &str = "\
-- remove_old (remove contacts)
DELETE FROM contacts WHERE contact IN rarray(?1)";

const LOOK_AT_USAGE: &str = "\
-- remove_old (usage)
SELECT record, server_nanos < ?3 FROM usage_records WHERE record > ?1 ORDER BY record LIMIT ?2";

const REMOVE_USAGE: &str = "\
-- remove_old (remove usage)
DELETE FROM usage_records WHERE record IN rarray(?1)";

// The newest row stays; see ids.rs.
const LOOK_AT_MESSAGES: &str = "\
-- remove_old (messages)
SELECT message,
    (processed_seconds, processed_nanos) < (?3, ?4)
    AND message < (SELECT max(message) FROM messages)
FROM messages WHERE message > ?1 ORDER BY message LIMIT ?2";

fn remove_messages(tx: &Tx<'_>, old: &[i64]) -> Worked<()> {
    let mut read = tx.prepare_cached(READ_ID)?;
    let mut remove = tx.prepare_cached(REMOVE_ID)?;
    for message in old {
        let id = read.query_row([message], |row| {
            MessageId::try_from(row.get_ref(0)?.as_blob()?).map_err(unreadable)
        })?;
        remove.execute(params![hash(id), message])?;
    }
    tx.prepare_cached(REMOVE_MESSAGES)?
        .execute([array(old.iter().copied())])?;
    Ok(())
}

const READ_ID: &str = "\
-- remove_old (read id)
SELECT message_id FROM messages WHERE message = ?1";

const REMOVE_ID: &str = "\
-- remove_old (remove id)
DELETE FROM message_ids WHERE hash = ?1 AND message = ?2";

// Links of removed messages lead nowhere, which readers expect; they go with
// their contacts.
const REMOVE_MESSAGES: &str = "\
-- remove_old (remove messages)
DELETE FROM messages WHERE message IN rarray(?1)";

/// Fails messages that have waited too long for their clients.
fn expire(tx: &Tx<'_>, operation: &'static str, step: &Step) -> Worked<Removed> {
    let end = timestamp(step.before);
    let after = match &step.after {
        None => Place::default(),
        Some(place) => Place::decode(place).ok_or_else(|| foreign(operation))?,
    };
    let mut statement = tx.prepare_cached(LOOK_AT_PENDING)?;
    let mut rows = statement.query(params![
        after.client,
        after.service,
        after.due_micros,
        after.id,
        limit(step)
    ])?;
    let (mut old, mut count, mut last) = (Vec::new(), 0, None);
    while let Some(row) = rows.next()? {
        let created: (i64, i32) = (row.get(5)?, row.get(6)?);
        if created < (end.seconds, end.nanos) {
            old.push(row.get(0)?);
        }
        last = Some(Place {
            client: row.get(1)?,
            service: row.get(2)?,
            due_micros: row.get(3)?,
            id: row.get(4)?,
        });
        count += 1;
    }
    let now = timestamp(tx.clock().now());
    let rows = old.len() as u64;
    let old: Array = array::<i64>(old);
    tx.prepare_cached(EXPIRE)?
        .execute(params![old, now.seconds, now.nanos, EXPIRED])?;
    tx.prepare_cached(REMOVE_PAYLOADS)?.execute([old])?;
    Ok(Removed {
        rows,
        next: last
            .filter(|_| count == step.limit)
            .map(|place| place.encode()),
    })
}

/// A place in the index of what is pending for clients.
#[derive(Default)]
struct Place {
    client: Vec<u8>,
    due_micros: i64,
    id: Vec<u8>,
    service: String,
}

impl Place {
    fn encode(&self) -> Cursor {
        [
            &self.client[..],
            &self.due_micros.to_be_bytes(),
            &self.id,
            self.service.as_bytes(),
        ]
        .concat()
        .into()
    }

    fn decode(place: &[u8]) -> Option<Self> {
        let (client, rest) = place.split_at_checked(8)?;
        let (due, rest) = rest.split_at_checked(8)?;
        let (id, service) = rest.split_at_checked(32)?;
        Some(Self {
            client: client.to_vec(),
            due_micros: i64::from_be_bytes(due.try_into().ok()?),
            id: id.to_vec(),
            service: String::from_utf8(service.to_vec()).ok()?,
        })
    }
}

// An empty client is before all others.
const LOOK_AT_PENDING: &str = "\
-- remove_old (pending)
SELECT message, destination_client, destination_service, due_micros, message_id,
    creation_seconds, creation_nanos
FROM messages INDEXED BY pending_for_client
WHERE due_micros IS NOT NULL AND destination_client IS NOT NULL
AND (destination_client, destination_service, due_micros, message_id) > (?1, ?2, ?3, ?4)
ORDER BY destination_client, destination_service, due_micros, message_id LIMIT ?5";

const EXPIRE: &str = "\
-- remove_old (expire)
UPDATE messages
SET processed_seconds = ?2, processed_nanos = ?3, failure = ?4, due_micros = NULL
WHERE message IN rarray(?1)";

const REMOVE_PAYLOADS: &str = "\
-- remove_old (payloads)
DELETE FROM payloads WHERE message IN rarray(?1)";
