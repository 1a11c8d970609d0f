//! Broadcasts; what servers may send of them is in `allocations`.
//!
//! Counters change by statements that add; the row of a broadcast is locked
//! before its allocations end, so that counts and allocations stay together.

use std::time::SystemTime;

use async_trait::async_trait;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_proto::fleetspeak::{Label, Message};
use fleethold_proto::{Any, Timestamp};
use fleethold_store::clock::timestamp;
use fleethold_store::record::{BroadcastRecord, MessageRecord};
use fleethold_store::{
    AllocationId, AllocationInfo, BROADCAST_DISABLED, BROADCAST_UNLIMITED, BroadcastId,
    BroadcastInfo, BroadcastProgress, BroadcastStore, ClientId, Error, ErrorKind, Result,
};
use tokio_postgres::Row;

use crate::PostgresStore;
use crate::clients::{columns, label};
use crate::error::Worked;
use crate::incoming::CHUNK_BYTES;
use crate::query::{BYTES, BYTES_LIST, INT, INT_LIST, LONG, Query, Values};
use crate::rows::{self, unreadable};
use crate::transactions::Tx;

#[async_trait]
impl BroadcastStore for PostgresStore {
    async fn create_broadcast(&self, broadcast: &Broadcast, limit: u64) -> Result<()> {
        const OPERATION: &str = "create_broadcast";
        let record = BroadcastRecord::parse(OPERATION, broadcast, limit)?;
        let token = self.shared.token();
        let now = timestamp(self.shared.clock.now());
        self.shared
            .write(OPERATION, |tx| {
                let record = &record;
                async move { create(&tx, OPERATION, record, token, now).await }
            })
            .await
    }

    async fn set_broadcast_limit(&self, id: BroadcastId, limit: u64) -> Result<()> {
        const OPERATION: &str = "set_broadcast_limit";
        if limit == BROADCAST_DISABLED {
            return self
                .shared
                .write(OPERATION, |tx| async move {
                    let disabled = disable(&tx, &[id.as_ref()]).await?;
                    if disabled == 0 {
                        return Err(unknown(OPERATION, id).into());
                    }
                    Ok(())
                })
                .await;
        }
        let limit = limit.min(BROADCAST_UNLIMITED).cast_signed();
        self.shared
            .write(OPERATION, |tx| async move {
                if tx
                    .last(&SET_LIMIT, &[&id.as_ref(), &limit])
                    .await?
                    .is_empty()
                {
                    return Err(unknown(OPERATION, id).into());
                }
                Ok(())
            })
            .await
    }

    async fn disable_broadcasts(&self, ids: &[BroadcastId]) -> Result<()> {
        const OPERATION: &str = "disable_broadcasts";
        if ids.is_empty() {
            return self.shared.check_open(OPERATION);
        }
        let mut ids: Vec<&[u8]> = ids.iter().map(AsRef::as_ref).collect();
        ids.sort_unstable();
        ids.dedup();
        self.shared
            .write(OPERATION, |tx| {
                let ids = &ids;
                async move { disable(&tx, ids).await.map(drop) }
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
            .save_broadcast_message(OPERATION, record, broadcast, client, allocation)
            .await
    }

    async fn list_active_broadcasts(&self) -> Result<Vec<BroadcastInfo>> {
        const OPERATION: &str = "list_active_broadcasts";
        let now = timestamp(self.shared.clock.now());
        let values: Values<'_> = &[&now.seconds, &now.nanos];
        let rows = self.shared.read(OPERATION, &LIST_ACTIVE, values).await?;
        let active = active(OPERATION, &rows)?.into_iter();
        Ok(active
            .map(|(record, sent)| BroadcastInfo {
                sent,
                limit: record.limit,
                broadcast: record.into_broadcast(),
            })
            .collect())
    }

    async fn list_sent_broadcasts(&self, client: ClientId) -> Result<Vec<BroadcastId>> {
        const OPERATION: &str = "list_sent_broadcasts";
        let rows = self
            .shared
            .read(OPERATION, &LIST_SENT, &[&client.as_ref()])
            .await?;
        rows.iter()
            .map(|row| broadcast_id(OPERATION, row))
            .collect()
    }

    async fn broadcast_progress(&self, id: BroadcastId) -> Result<BroadcastProgress> {
        const OPERATION: &str = "broadcast_progress";
        let rows = self
            .shared
            .read_many(OPERATION, &COUNT_RESULTS, &[&id.as_ref()])
            .await?;
        let row = rows.first().ok_or_else(|| unknown(OPERATION, id))?;
        let count = |at| row.get::<_, i64>(at).cast_unsigned();
        Ok(BroadcastProgress {
            sent: count(0),
            acknowledged: count(1),
            failed: count(2),
            pending: count(3),
        })
    }

    async fn create_allocation(
        &self,
        broadcast: BroadcastId,
        fraction: f32,
        expiry: SystemTime,
    ) -> Result<Option<AllocationInfo>> {
        self.shared
            .create_allocation(broadcast, fraction, expiry)
            .await
    }

    async fn cleanup_allocation(
        &self,
        broadcast: BroadcastId,
        allocation: Option<AllocationId>,
        final_sent: u64,
    ) -> Result<()> {
        self.shared
            .cleanup_allocation(broadcast, allocation, final_sent)
            .await
    }
}

pub(crate) fn unknown(operation: &'static str, id: BroadcastId) -> Error {
    Error::not_found(operation, format!("broadcast {id} does not exist"))
}

pub(crate) fn broadcast_id(operation: &'static str, row: &Row) -> Result<BroadcastId> {
    BroadcastId::try_from(row.get::<_, &[u8]>(0))
        .map_err(Box::from)
        .map_err(unreadable(operation))
}

async fn create(
    tx: &Tx,
    operation: &'static str,
    record: &BroadcastRecord,
    token: i64,
    now: Timestamp,
) -> Worked<()> {
    let group = record.group_name.as_bytes();
    if !group.is_empty() {
        // Who creates in a group comes after who did before, and sees that.
        tx.rows(&LOCK_GROUP, &[&group]).await?;
    }
    if !insert(tx, record, token).await? {
        let made: Vec<Row> = tx.rows(&READ_TOKEN, &[&record.id.as_ref()]).await?;
        // The token is that of an earlier run of this call whose commit was lost.
        if tx.replays() && made.iter().any(|row| row.get::<_, i64>(0) == token) {
            return Ok(());
        }
        let detail = format!("broadcast {} exists", record.id);
        return Err(Error::new(ErrorKind::AlreadyExists, operation, detail).into());
    }
    if group.is_empty() {
        return Ok(());
    }
    let rows = tx.rows(&LIST_ACTIVE, &[&now.seconds, &now.nanos]).await?;
    let replaced: Vec<_> = active(operation, &rows)?
        .into_iter()
        .filter(|(other, _)| other.id != record.id && record.replaces(other))
        .map(|(other, _)| other.id)
        .collect();
    let replaced: Vec<&[u8]> = replaced.iter().map(AsRef::as_ref).collect();
    if !replaced.is_empty() {
        disable(tx, &replaced).await?;
    }
    Ok(())
}

/// Inserts a broadcast; returns whether its id was free.
pub(crate) async fn insert(tx: &Tx, record: &BroadcastRecord, token: i64) -> Worked<bool> {
    let expiration = record.expiration_time;
    let value = record.data.as_ref().map_or(&[][..], |data| &data.value);
    let chunks: Vec<&[u8]> = value.chunks(CHUNK_BYTES).collect();
    let numbers: Vec<i32> = (0..).take(chunks.len()).collect();
    let (services, labels) = columns(&record.required_labels);
    let values: Values<'_> = &[
        &record.id.as_ref(),
        &record.source_service.as_bytes(),
        &record.destination_service.as_ref().map(String::as_bytes),
        &record.message_type.as_bytes(),
        &expiration.map(|time| time.seconds),
        &expiration.map(|time| time.nanos),
        &record.group_name.as_bytes(),
        &record.limit.cast_signed(),
        &token,
        &record.data.as_ref().map(|data| data.type_url.as_bytes()),
        &i32::try_from(chunks.len()).expect("a few"),
        &services,
        &labels,
        &numbers,
        &chunks,
    ];
    Ok(!tx.rows(&INSERT, values).await?.is_empty())
}

/// Ends all allocations of these broadcasts and lets nobody send them any more;
/// returns how many there are.
async fn disable(tx: &Tx, ids: &[&[u8]]) -> Worked<usize> {
    let known = tx.rows(&LOCK_BROADCASTS, &[&ids]).await?;
    if !known.is_empty() {
        tx.rows(&DISABLE, &[&ids]).await?;
    }
    Ok(known.len())
}

/// Reads active broadcasts and what is sent of them, each over as many rows as
/// it has labels.
fn active(operation: &'static str, rows: &[Row]) -> Result<Vec<(BroadcastRecord, u64)>> {
    let mut list: Vec<(BroadcastRecord, u64)> = Vec::new();
    for row in rows {
        let id = broadcast_id(operation, row)?;
        if list.last().is_none_or(|(last, _)| last.id != id) {
            list.push((
                record(operation, id, row)?,
                row.get::<_, i64>(7).cast_unsigned(),
            ));
        }
        if let Some((record, _)) = list.last_mut() {
            let label: Option<Label> = label(operation, row, 11)?;
            record.required_labels.extend(label);
        }
    }
    Ok(list)
}

pub(crate) fn record(
    operation: &'static str,
    id: BroadcastId,
    row: &Row,
) -> Result<BroadcastRecord> {
    let read = || {
        Ok(BroadcastRecord {
            id,
            source_service: rows::text(row, 1)?,
            destination_service: rows::optional_text(row, 2)?,
            message_type: rows::text(row, 3)?,
            expiration_time: match (row.try_get(4)?, row.try_get(5)?) {
                (Some(seconds), Some(nanos)) => Some(Timestamp { seconds, nanos }),
                _ => None,
            },
            group_name: rows::text(row, 6)?,
            limit: row.try_get::<_, i64>(8)?.cast_unsigned(),
            data: match rows::optional_text(row, 9)? {
                Some(type_url) => Some(Any {
                    type_url,
                    value: rows::bytes(row, 10)?.unwrap_or_default(),
                }),
                None => None,
            },
            required_labels: Vec::new(),
        })
    };
    read().map_err(unreadable(operation))
}

const LOCK_GROUP: Query = Query {
    sql: "\
-- create_broadcast (group)
INSERT INTO broadcast_groups AS known (group_name, changes) VALUES ($1, 1)
ON CONFLICT (group_name) DO UPDATE SET changes = known.changes + 1",
    types: &[BYTES],
};

const INSERT: Query = Query {
    sql: "\
-- create_broadcast
WITH made AS (
    INSERT INTO broadcasts (
        broadcast_id, source_service, destination_service, message_type, expiration_seconds,
        expiration_nanos, group_name, sent, allocated, message_limit, creation_token, type_url,
        chunks
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0, $8, $9, $10, $11)
    ON CONFLICT DO NOTHING
    RETURNING broadcast_id
), labels AS (
    INSERT INTO broadcast_labels (broadcast_id, service, label)
    SELECT made.broadcast_id, given.service, given.label
    FROM made CROSS JOIN unnest($12::bytea[], $13::bytea[]) AS given (service, label)
), data AS (
    INSERT INTO broadcast_chunks (broadcast_id, chunk, value)
    SELECT made.broadcast_id, given.chunk, given.value
    FROM made CROSS JOIN unnest($14::integer[], $15::bytea[]) AS given (chunk, value)
)
SELECT 1 FROM made",
    types: &[
        BYTES, BYTES, BYTES, BYTES, LONG, INT, BYTES, LONG, LONG, BYTES, INT, BYTES_LIST,
        BYTES_LIST, INT_LIST, BYTES_LIST,
    ],
};

const READ_TOKEN: Query = Query {
    sql: "\
-- create_broadcast (again)
SELECT creation_token FROM broadcasts WHERE broadcast_id = $1",
    types: &[BYTES],
};

const SET_LIMIT: Query = Query {
    sql: "\
-- set_broadcast_limit
UPDATE broadcasts SET message_limit = $2 WHERE broadcast_id = $1 RETURNING 1",
    types: &[BYTES, LONG],
};

const LOCK_BROADCASTS: Query = Query {
    sql: "\
-- disable_broadcasts (lock)
SELECT broadcast_id FROM broadcasts WHERE broadcast_id = ANY($1)
ORDER BY broadcast_id FOR UPDATE",
    types: &[BYTES_LIST],
};

// The allocation without limit is not part of the allocated sum.
const DISABLE: Query = Query {
    sql: "\
-- disable_broadcasts
WITH ended AS (
    DELETE FROM allocations WHERE broadcast_id = ANY($1)
    RETURNING broadcast_id, sent, message_limit
), counted AS (
    SELECT
        broadcast_id, sum(sent::numeric) AS sent,
        coalesce(sum(message_limit::numeric) FILTER (
            WHERE message_limit < 9223372036854775807
        ), 0) AS returned
    FROM ended GROUP BY broadcast_id
)
UPDATE broadcasts SET
    message_limit = 0,
    sent = least(sent + coalesce((
        SELECT counted.sent FROM counted WHERE counted.broadcast_id = broadcasts.broadcast_id
    ), 0), 9223372036854775807)::bigint,
    allocated = greatest(allocated - coalesce((
        SELECT counted.returned FROM counted WHERE counted.broadcast_id = broadcasts.broadcast_id
    ), 0), 0)::bigint
WHERE broadcast_id = ANY($1)",
    types: &[BYTES_LIST],
};

const LIST_ACTIVE: Query = Query {
    sql: "\
-- list_active_broadcasts
SELECT
    broadcasts.broadcast_id, source_service, destination_service, message_type,
    expiration_seconds, expiration_nanos, group_name, sent, message_limit, type_url,
    CASE WHEN chunks > 0 THEN (
        SELECT string_agg(chunk.value, ''::bytea ORDER BY chunk.chunk)
        FROM broadcast_chunks AS chunk WHERE chunk.broadcast_id = broadcasts.broadcast_id
    ) END,
    labels.service, labels.label
FROM broadcasts LEFT JOIN broadcast_labels AS labels USING (broadcast_id)
WHERE sent < message_limit
AND (expiration_seconds IS NULL OR (expiration_seconds, expiration_nanos) > ($1, $2))
ORDER BY broadcasts.broadcast_id, labels.service, labels.label",
    types: &[LONG, INT],
};

const LIST_SENT: Query = Query {
    sql: "\
-- list_sent_broadcasts
SELECT broadcast_id FROM broadcasts_sent WHERE client_id = $1 ORDER BY broadcast_id",
    types: &[BYTES],
};

const COUNT_RESULTS: Query = Query {
    sql: "\
-- broadcast_progress
SELECT
    count(sent.client_id),
    count(*) FILTER (WHERE processed_seconds IS NOT NULL AND failure IS NULL),
    count(*) FILTER (WHERE failure IS NOT NULL),
    count(*) FILTER (WHERE messages.message_id IS NOT NULL AND processed_seconds IS NULL)
FROM broadcasts
LEFT JOIN broadcasts_sent AS sent ON sent.broadcast_id = broadcasts.broadcast_id
LEFT JOIN messages ON messages.message_id = sent.message_id
WHERE broadcasts.broadcast_id = $1
GROUP BY broadcasts.broadcast_id",
    types: &[BYTES],
};
