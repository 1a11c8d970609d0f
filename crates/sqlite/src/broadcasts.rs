//! Broadcasts and their allocations.
//!
//! Counters are read, computed in Rust and written back: there is one writer,
//! so nothing comes between.

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_proto::fleetspeak::{Label, Message};
use fleethold_proto::{Any, Timestamp};
use fleethold_store::clock::{epoch_micros, epoch_nanos, timestamp};
use fleethold_store::limits::check_allocation;
use fleethold_store::record::{BroadcastRecord, MessageRecord};
use fleethold_store::{
    ALLOCATION_GRACE, AllocationId, AllocationInfo, BROADCAST_DISABLED, BROADCAST_UNLIMITED,
    BroadcastId, BroadcastInfo, BroadcastProgress, BroadcastStore, ClientId, Error, ErrorKind,
    Result, compute_broadcast_allocation, compute_broadcast_allocation_cleanup,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::Worked;
use crate::rows::unreadable;
use crate::writer::Tx;
use crate::{SqliteStore, clients, messages};

#[async_trait]
impl BroadcastStore for SqliteStore {
    async fn create_broadcast(&self, broadcast: &Broadcast, limit: u64) -> Result<()> {
        const OPERATION: &str = "create_broadcast";
        let record = BroadcastRecord::parse(OPERATION, broadcast, limit)?;
        self.shared
            .write(OPERATION, move |tx| {
                insert(tx, OPERATION, &record)?;
                if record.group_name.is_empty() {
                    return Ok(());
                }
                for (other, _) in list_active(tx, timestamp(tx.clock().now()))? {
                    if other.id != record.id && record.replaces(&other) {
                        disable(tx, other.id)?;
                    }
                }
                Ok(())
            })
            .await
    }

    async fn set_broadcast_limit(&self, id: BroadcastId, limit: u64) -> Result<()> {
        const OPERATION: &str = "set_broadcast_limit";
        self.shared
            .write(OPERATION, move |tx| {
                let mut counters = Counters::read(tx, OPERATION, id)?;
                if limit == BROADCAST_DISABLED {
                    return disable(tx, id);
                }
                counters.limit = limit.min(BROADCAST_UNLIMITED);
                counters.write(tx, id)
            })
            .await
    }

    async fn disable_broadcasts(&self, ids: &[BroadcastId]) -> Result<()> {
        const OPERATION: &str = "disable_broadcasts";
        if ids.is_empty() {
            return self.shared.check_open(OPERATION);
        }
        let ids = ids.to_vec();
        self.shared
            .write(OPERATION, move |tx| {
                ids.iter().try_for_each(|id| disable(tx, *id))
            })
            .await
    }

    async fn save_broadcast_message(
        &self,
        message: &Message,
        broadcast: BroadcastId,
        client: ClientId,
        allocation: Option<AllocationId>,
    ) -> Result<()> {
        const OPERATION: &str = "save_broadcast_message";
        let record = MessageRecord::parse(OPERATION, message)?;
        self.shared
            .write(OPERATION, move |tx| {
                check_sendable(tx, OPERATION, broadcast, allocation)?;
                clients::check_exists(tx, OPERATION, client)?;
                let has_it = tx
                    .prepare_cached(HAS_BROADCAST)?
                    .exists(params![client.as_bytes(), broadcast.as_bytes()])?;
                if has_it {
                    let detail = format!("client {client} has broadcast {broadcast} already");
                    return Err(Error::new(ErrorKind::AlreadyExists, OPERATION, detail).into());
                }
                if let Some(allocation) = allocation {
                    tx.prepare_cached(COUNT_IN_ALLOCATION)?
                        .execute(params![broadcast.as_bytes(), allocation.as_bytes()])?;
                }
                let due_micros = epoch_micros(tx.clock().client_retry_time());
                let message = messages::insert(tx, &record, due_micros)?;
                tx.prepare_cached(INSERT_SENT)?.execute(params![
                    client.as_bytes(),
                    broadcast.as_bytes(),
                    message
                ])?;
                Ok(())
            })
            .await
    }

    async fn list_active_broadcasts(&self) -> Result<Vec<BroadcastInfo>> {
        let now = timestamp(self.shared.context.clock.now());
        self.shared
            .read("list_active_broadcasts", move |connection| {
                let active = list_active(connection, now)?.into_iter();
                Ok(active
                    .map(|(record, sent)| BroadcastInfo {
                        sent,
                        limit: record.limit,
                        broadcast: record.into_broadcast(),
                    })
                    .collect())
            })
            .await
    }

    async fn list_sent_broadcasts(&self, client: ClientId) -> Result<Vec<BroadcastId>> {
        self.shared
            .read("list_sent_broadcasts", move |connection| {
                let ids = connection
                    .prepare_cached(LIST_SENT)?
                    .query_map([client.as_bytes()], |row| broadcast_id(row, 0))?
                    .collect::<Result<_, _>>()?;
                Ok(ids)
            })
            .await
    }

    async fn broadcast_progress(&self, id: BroadcastId) -> Result<BroadcastProgress> {
        const OPERATION: &str = "broadcast_progress";
        self.shared
            .read(OPERATION, move |connection| {
                let exists = connection
                    .prepare_cached(BROADCAST_EXISTS)?
                    .exists([id.as_bytes()])?;
                if !exists {
                    let detail = format!("broadcast {id} does not exist");
                    return Err(Error::not_found(OPERATION, detail).into());
                }
                let count = |row: &Row<'_>, at| row.get(at).map(i64::cast_unsigned);
                let progress = connection.prepare_cached(COUNT_RESULTS)?.query_row(
                    [id.as_bytes()],
                    |row| {
                        Ok(BroadcastProgress {
                            sent: count(row, 0)?,
                            acknowledged: count(row, 1)?,
                            failed: count(row, 2)?,
                            pending: count(row, 3)?,
                        })
                    },
                )?;
                Ok(progress)
            })
            .await
    }

    async fn create_allocation(
        &self,
        broadcast: BroadcastId,
        fraction: f32,
        expiry: SystemTime,
    ) -> Result<Option<AllocationInfo>> {
        const OPERATION: &str = "create_allocation";
        check_allocation(OPERATION, fraction, expiry)?;
        self.shared
            .write(OPERATION, move |tx| {
                let now = tx.clock().now();
                let mut counters = Counters::read(tx, OPERATION, broadcast)?;
                let grace = i64::try_from(ALLOCATION_GRACE.as_nanos()).expect("a few minutes");
                let abandoned_nanos = epoch_nanos(now).saturating_sub(grace);
                counters.end_allocations(tx, broadcast, Some(abandoned_nanos))?;
                let is_off =
                    counters.limit == BROADCAST_DISABLED || counters.is_expired(timestamp(now));
                let (limit, allocated) = if is_off {
                    (0, counters.allocated)
                } else {
                    compute_broadcast_allocation(
                        counters.limit,
                        counters.allocated,
                        counters.sent,
                        fraction,
                    )
                };
                counters.allocated = allocated;
                counters.write(tx, broadcast)?;
                if limit == 0 {
                    return Ok(None);
                }
                let id = AllocationId::random(tx.random());
                tx.prepare_cached(INSERT_ALLOCATION)?.execute(params![
                    broadcast.as_bytes(),
                    id.as_bytes(),
                    limit.cast_signed(),
                    epoch_nanos(expiry),
                ])?;
                Ok(Some(AllocationInfo { id, limit, expiry }))
            })
            .await
    }

    async fn cleanup_allocation(
        &self,
        broadcast: BroadcastId,
        allocation: Option<AllocationId>,
        final_sent: u64,
    ) -> Result<()> {
        const OPERATION: &str = "cleanup_allocation";
        self.shared
            .write(OPERATION, move |tx| {
                let mut counters = Counters::read(tx, OPERATION, broadcast)?;
                if let Some(allocation) = allocation {
                    let limit: Option<i64> = tx
                        .prepare_cached(DELETE_ALLOCATION)?
                        .query_row(
                            params![broadcast.as_bytes(), allocation.as_bytes()],
                            |row| row.get(0),
                        )
                        .optional()?;
                    let Some(limit) = limit else { return Ok(()) };
                    counters.return_limit(broadcast, limit.cast_unsigned());
                }
                counters.count(final_sent);
                counters.write(tx, broadcast)
            })
            .await
    }
}

const INSERT_SENT: &str = "\
-- save_broadcast_message (sent)
INSERT INTO broadcasts_sent (client_id, broadcast_id, message) VALUES (?1, ?2, ?3)";

const HAS_BROADCAST: &str = "\
-- save_broadcast_message (check)
SELECT 1 FROM broadcasts_sent WHERE client_id = ?1 AND broadcast_id = ?2";

const BROADCAST_EXISTS: &str = "\
-- broadcast_progress (check)
SELECT 1 FROM broadcasts WHERE broadcast_id = ?1";

const COUNT_RESULTS: &str = "\
-- broadcast_progress
SELECT
    count(*),
    count(*) FILTER (WHERE processed_seconds IS NOT NULL AND failure IS NULL),
    count(*) FILTER (WHERE failure IS NOT NULL),
    count(*) FILTER (WHERE message_id IS NOT NULL AND processed_seconds IS NULL)
FROM broadcasts_sent AS sent INDEXED BY messages_of_broadcast
LEFT JOIN messages USING (message)
WHERE broadcast_id = ?1";

const COUNT_IN_ALLOCATION: &str = "\
-- save_broadcast_message (count)
UPDATE allocations SET sent = sent + 1 WHERE broadcast_id = ?1 AND allocation_id = ?2";

const LIST_SENT: &str = "\
-- list_sent_broadcasts
SELECT broadcast_id FROM broadcasts_sent WHERE client_id = ?1 ORDER BY broadcast_id";

const INSERT_ALLOCATION: &str = "\
-- create_allocation
INSERT INTO allocations (broadcast_id, allocation_id, sent, message_limit, expiry_nanos)
VALUES (?1, ?2, 0, ?3, ?4)";

const DELETE_ALLOCATION: &str = "\
-- cleanup_allocation
DELETE FROM allocations WHERE broadcast_id = ?1 AND allocation_id = ?2
RETURNING message_limit";

pub(crate) fn insert(tx: &Tx<'_>, operation: &'static str, record: &BroadcastRecord) -> Worked<()> {
    let id = record.id.as_bytes();
    let inserted = tx.prepare_cached(INSERT_BROADCAST)?.execute(params![
        id,
        record.source_service,
        record.destination_service,
        record.message_type,
        record.expiration_time.map(|time| time.seconds),
        record.expiration_time.map(|time| time.nanos),
        record.group_name,
        record.limit.cast_signed(),
        record.data.as_ref().map(|data| &data.type_url),
        record.data.as_ref().map(|data| &data.value[..]),
    ])?;
    if inserted == 0 {
        let detail = format!("broadcast {} exists", record.id);
        return Err(Error::new(ErrorKind::AlreadyExists, operation, detail).into());
    }
    let mut statement = tx.prepare_cached(INSERT_LABEL)?;
    for label in &record.required_labels {
        statement.execute(params![id, label.service_name, label.label])?;
    }
    Ok(())
}

const INSERT_BROADCAST: &str = "\
-- create_broadcast
INSERT INTO broadcasts (
    broadcast_id, source_service, destination_service, message_type,
    expiration_seconds, expiration_nanos, group_name, sent, allocated, message_limit,
    type_url, value
)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, 0, ?8, ?9, ?10)
ON CONFLICT DO NOTHING";

const INSERT_LABEL: &str = "\
-- create_broadcast (labels)
INSERT INTO broadcast_labels (broadcast_id, service, label) VALUES (?1, ?2, ?3)";

/// Returns the active broadcasts and how many messages each has sent, by id.
fn list_active(connection: &Connection, now: Timestamp) -> Worked<Vec<(BroadcastRecord, u64)>> {
    let mut active = connection
        .prepare_cached(LIST_ACTIVE)?
        .query_map(params![now.seconds, now.nanos], |row| broadcast(row, 0))?
        .collect::<Result<Vec<_>, _>>()?;
    for (record, _) in &mut active {
        record.required_labels = labels(connection, record.id)?;
    }
    Ok(active)
}

/// Returns the labels of a broadcast, sorted.
pub(crate) fn labels(connection: &Connection, id: BroadcastId) -> rusqlite::Result<Vec<Label>> {
    connection
        .prepare_cached(LIST_LABELS)?
        .query_map([id.as_bytes()], |row| {
            Ok(Label {
                service_name: row.get(0)?,
                label: row.get(1)?,
            })
        })?
        .collect()
}

const LIST_ACTIVE: &str = "\
-- list_active_broadcasts
SELECT
    broadcast_id, source_service, destination_service, message_type,
    expiration_seconds, expiration_nanos, group_name, sent, message_limit, type_url, value
FROM broadcasts INDEXED BY broadcasts_with_room
WHERE sent < message_limit
AND (expiration_seconds IS NULL OR (expiration_seconds, expiration_nanos) > (?1, ?2))
ORDER BY broadcast_id";

const LIST_LABELS: &str = "\
-- list_active_broadcasts (labels)
SELECT service, label FROM broadcast_labels WHERE broadcast_id = ?1 ORDER BY service, label";

/// Reads a broadcast without its labels, and its sent messages, from column `at` on.
pub(crate) fn broadcast(row: &Row<'_>, at: usize) -> rusqlite::Result<(BroadcastRecord, u64)> {
    let record = BroadcastRecord {
        id: broadcast_id(row, at)?,
        source_service: row.get(at + 1)?,
        destination_service: row.get(at + 2)?,
        message_type: row.get(at + 3)?,
        expiration_time: expiration(row, at + 4)?,
        data: match row.get(at + 9)? {
            Some(type_url) => Some(Any {
                type_url,
                value: Bytes::copy_from_slice(row.get_ref(at + 10)?.as_blob()?),
            }),
            None => None,
        },
        required_labels: Vec::new(),
        group_name: row.get(at + 6)?,
        limit: row.get::<_, i64>(at + 8)?.cast_unsigned(),
    };
    Ok((record, row.get::<_, i64>(at + 7)?.cast_unsigned()))
}

fn broadcast_id(row: &Row<'_>, at: usize) -> rusqlite::Result<BroadcastId> {
    BroadcastId::try_from(row.get_ref(at)?.as_blob()?).map_err(unreadable)
}

fn expiration(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(match (row.get(at)?, row.get(at + 1)?) {
        (Some(seconds), Some(nanos)) => Some(Timestamp { seconds, nanos }),
        _ => None,
    })
}

/// Refuses a message of a broadcast or an allocation that sends no more.
fn check_sendable(
    tx: &Tx<'_>,
    operation: &'static str,
    broadcast: BroadcastId,
    allocation: Option<AllocationId>,
) -> Worked<()> {
    let disabled = || {
        let detail = format!("broadcast {broadcast} or the allocation is gone or disabled");
        Error::new(ErrorKind::BroadcastDisabled, operation, detail)
    };
    let now = tx.clock().now();
    let counters = Counters::find(tx, broadcast)?.ok_or_else(disabled)?;
    if counters.is_expired(timestamp(now)) {
        return Err(disabled().into());
    }
    let Some(id) = allocation else {
        if counters.limit == BROADCAST_DISABLED {
            return Err(disabled().into());
        }
        return Ok(());
    };
    let (sent, limit, expiry_nanos): (i64, i64, i64) = tx
        .prepare_cached(READ_ALLOCATION)?
        .query_row(params![broadcast.as_bytes(), id.as_bytes()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?
        .ok_or_else(disabled)?;
    if sent >= limit {
        let detail = format!("allocation {id} has sent its {limit} messages");
        return Err(Error::new(ErrorKind::AllocationFull, operation, detail).into());
    }
    if epoch_nanos(now) > expiry_nanos {
        let detail = format!("allocation {id} has expired");
        return Err(Error::new(ErrorKind::AllocationExpired, operation, detail).into());
    }
    Ok(())
}

const READ_ALLOCATION: &str = "\
-- save_broadcast_message (allocation)
SELECT sent, message_limit, expiry_nanos FROM allocations
WHERE broadcast_id = ?1 AND allocation_id = ?2";

/// Ends all allocations of a broadcast and lets nobody send it any more.
fn disable(tx: &Tx<'_>, id: BroadcastId) -> Worked<()> {
    let Some(mut counters) = Counters::find(tx, id)? else {
        return Ok(());
    };
    counters.end_allocations(tx, id, None)?;
    counters.limit = BROADCAST_DISABLED;
    counters.write(tx, id)
}

/// How far a broadcast has come.
struct Counters {
    sent: u64,
    allocated: u64,
    limit: u64,
    expiration: Option<Timestamp>,
}

impl Counters {
    fn read(tx: &Tx<'_>, operation: &'static str, id: BroadcastId) -> Worked<Self> {
        Self::find(tx, id)?.ok_or_else(|| {
            Error::not_found(operation, format!("broadcast {id} does not exist")).into()
        })
    }

    fn find(tx: &Tx<'_>, id: BroadcastId) -> Worked<Option<Self>> {
        Ok(tx
            .prepare_cached(READ_COUNTERS)?
            .query_row([id.as_bytes()], |row| {
                Ok(Self {
                    sent: row.get::<_, i64>(0)?.cast_unsigned(),
                    allocated: row.get::<_, i64>(1)?.cast_unsigned(),
                    limit: row.get::<_, i64>(2)?.cast_unsigned(),
                    expiration: expiration(row, 3)?,
                })
            })
            .optional()?)
    }

    fn write(&self, tx: &Tx<'_>, id: BroadcastId) -> Worked<()> {
        tx.prepare_cached(WRITE_COUNTERS)?.execute(params![
            id.as_bytes(),
            self.sent.cast_signed(),
            self.allocated.cast_signed(),
            self.limit.cast_signed(),
        ])?;
        Ok(())
    }

    fn is_expired(&self, now: Timestamp) -> bool {
        self.expiration
            .is_some_and(|end| (end.seconds, end.nanos) <= (now.seconds, now.nanos))
    }

    /// Ends the allocations that expire before a time, or all.
    fn end_allocations(
        &mut self,
        tx: &Tx<'_>,
        id: BroadcastId,
        before_nanos: Option<i64>,
    ) -> Worked<()> {
        let mut statement = tx.prepare_cached(END_ALLOCATIONS)?;
        let mut rows = statement.query(params![id.as_bytes(), before_nanos])?;
        while let Some(row) = rows.next()? {
            let (sent, limit): (i64, i64) = (row.get(0)?, row.get(1)?);
            self.return_limit(id, limit.cast_unsigned());
            self.count(sent.cast_unsigned());
        }
        Ok(())
    }

    fn return_limit(&mut self, id: BroadcastId, limit: u64) {
        if limit != BROADCAST_UNLIMITED && limit > self.allocated {
            tracing::error!(broadcast = %id, "an allocation is larger than all together");
        }
        self.allocated = compute_broadcast_allocation_cleanup(limit, self.allocated);
    }

    fn count(&mut self, sent: u64) {
        self.sent = self.sent.saturating_add(sent).min(BROADCAST_UNLIMITED);
    }
}

const READ_COUNTERS: &str = "\
-- read_counters
SELECT sent, allocated, message_limit, expiration_seconds, expiration_nanos
FROM broadcasts WHERE broadcast_id = ?1";

const WRITE_COUNTERS: &str = "\
-- write_counters
UPDATE broadcasts SET sent = ?2, allocated = ?3, message_limit = ?4 WHERE broadcast_id = ?1";

const END_ALLOCATIONS: &str = "\
-- end_allocations
DELETE FROM allocations WHERE broadcast_id = ?1 AND (?2 IS NULL OR expiry_nanos < ?2)
RETURNING sent, message_limit";
