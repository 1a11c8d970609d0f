//! Broadcasts and their allocations.

use std::collections::BTreeMap;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_proto::fleetspeak::{Label, Message};
use fleethold_proto::{Any, Timestamp};
use fleethold_store::clock::timestamp;
use fleethold_store::limits::check_allocation;
use fleethold_store::record::{BroadcastRecord, MessageRecord};
use fleethold_store::{
    AllocationId, AllocationInfo, BROADCAST_DISABLED, BROADCAST_UNLIMITED, BroadcastId,
    BroadcastInfo, BroadcastProgress, BroadcastStore, ClientId, Error, ErrorKind, Result,
};
use futures::FutureExt;
use mysql_async::Row;

use crate::MysqlStore;
use crate::allocations::{Allocate, clean_up};
use crate::clients::sort;
use crate::counters::{LOCK_COUNTERS, SET_LIMITS, disable, unknown};
use crate::error::{Worked, code};
use crate::messages::check_fits;
use crate::rows::{take, take_id};
use crate::saves::Save;
use crate::sql::{Batch, List, Value};
use crate::transaction::{Replay, Tx};

#[async_trait]
impl BroadcastStore for MysqlStore {
    async fn create_broadcast(&self, broadcast: &Broadcast, limit: u64) -> Result<()> {
        const OPERATION: &str = "create_broadcast";
        let record = BroadcastRecord::parse(OPERATION, broadcast, limit)?;
        let bytes = record.data.as_ref().map_or(0, |data| data.value.len());
        check_fits(OPERATION, bytes, &self.shared.context)?;
        self.shared
            .write(OPERATION, Replay::Safe, record, |record, tx| {
                async move { create(tx, OPERATION, record).await }.boxed()
            })
            .await
    }

    async fn set_broadcast_limit(&self, id: BroadcastId, limit: u64) -> Result<()> {
        const OPERATION: &str = "set_broadcast_limit";
        let limit = limit.min(BROADCAST_UNLIMITED);
        self.shared
            .write(OPERATION, Replay::Safe, (id, limit), |(id, limit), tx| {
                async move {
                    let key = [Value::Bytes(id.as_bytes())];
                    let mut replies = tx.run(Batch::of(LOCK_COUNTERS, &key)).await?;
                    let rows = replies.pop().map_or(Vec::new(), |reply| reply.rows);
                    if rows.is_empty() {
                        return Err(unknown(OPERATION, *id).into());
                    }
                    let batch = if *limit == BROADCAST_DISABLED {
                        disable(tx, &[*id]).await?
                    } else {
                        let ids = List::ids([id]);
                        Batch::of(SET_LIMITS, &[Value::Unsigned(*limit), Value::List(&ids)])
                    };
                    tx.commit(batch).await?;
                    Ok(())
                }
                .boxed()
            })
            .await
    }

    async fn disable_broadcasts(&self, ids: &[BroadcastId]) -> Result<()> {
        const OPERATION: &str = "disable_broadcasts";
        if ids.is_empty() {
            return self.shared.check_open(OPERATION);
        }
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        self.shared
            .write(OPERATION, Replay::Safe, ids, |ids, tx| {
                async move {
                    let batch = disable(tx, ids).await?;
                    tx.commit(batch).await?;
                    Ok(())
                }
                .boxed()
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
        let bytes = record.data.as_ref().map_or(0, |data| data.value.len());
        check_fits(OPERATION, bytes, &self.shared.context)?;
        let save = Save {
            message: record,
            broadcast,
            client,
            allocation,
        };
        self.shared
            .write(OPERATION, Replay::Safe, save, |save, tx| {
                async move { save.run(tx, OPERATION).await }.boxed()
            })
            .await
    }

    async fn list_active_broadcasts(&self) -> Result<Vec<BroadcastInfo>> {
        let now = timestamp(self.shared.context.clock.now());
        let active = self
            .shared
            .read("list_active_broadcasts", now, |now, tx| {
                async move {
                    let replies = tx
                        .commit(active_of(LIST_ACTIVE, LIST_LABELS, *now, &[]))
                        .await?;
                    active(replies)
                }
                .boxed()
            })
            .await?;
        let active = active.into_iter().map(|(record, sent)| BroadcastInfo {
            sent,
            limit: record.limit,
            broadcast: record.into_broadcast(),
        });
        Ok(active.collect())
    }

    async fn list_sent_broadcasts(&self, client: ClientId) -> Result<Vec<BroadcastId>> {
        self.shared
            .read("list_sent_broadcasts", client, |client, tx| {
                async move {
                    let client = [Value::Bytes(client.as_bytes())];
                    let replies = tx.only(Batch::of(LIST_SENT, &client)).await?;
                    let rows = replies.into_iter().flat_map(|reply| reply.rows);
                    rows.map(|mut row| take_id(&mut row, 0)).collect()
                }
                .boxed()
            })
            .await
    }

    async fn broadcast_progress(&self, id: BroadcastId) -> Result<BroadcastProgress> {
        const OPERATION: &str = "broadcast_progress";
        let found = self
            .shared
            .read(OPERATION, id, |id, tx| {
                async move {
                    let id = Value::Bytes(id.as_bytes());
                    let mut batch = Batch::of(BROADCAST_EXISTS, &[id]);
                    batch.add(COUNT_SENT, &[id]);
                    batch.add(COUNT_RESULTS, &[id]);
                    let replies = tx.commit(batch).await?;
                    let mut rows: Vec<_> = replies.into_iter().map(|reply| reply.rows).collect();
                    let (Some(mut results), Some(mut sent)) = (rows.pop(), rows.pop()) else {
                        return Ok(None);
                    };
                    let exists = rows.pop().is_some_and(|rows| !rows.is_empty());
                    let (Some(results), Some(sent), true) =
                        (results.first_mut(), sent.first_mut(), exists)
                    else {
                        return Ok(None);
                    };
                    Ok(Some(BroadcastProgress {
                        sent: take(sent, 0)?,
                        acknowledged: take(results, 0)?,
                        failed: take(results, 1)?,
                        pending: take(results, 2)?,
                    }))
                }
                .boxed()
            })
            .await?;
        found.ok_or_else(|| unknown(OPERATION, id))
    }

    async fn create_allocation(
        &self,
        broadcast: BroadcastId,
        fraction: f32,
        expiry: SystemTime,
    ) -> Result<Option<AllocationInfo>> {
        const OPERATION: &str = "create_allocation";
        check_allocation(OPERATION, fraction, expiry)?;
        let allocate = Allocate {
            // Drawn once, so that a repeated call finds what it has made.
            id: AllocationId::random(&self.shared.context.random),
            broadcast,
            fraction,
            expiry,
        };
        self.shared
            .write(OPERATION, Replay::Safe, allocate, |allocate, tx| {
                async move { allocate.run(tx, OPERATION).await }.boxed()
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
        // Nothing tells whether messages without allocation have been counted.
        let replay = match allocation {
            Some(_) => Replay::Safe,
            None => Replay::Unsafe,
        };
        let arguments = (broadcast, allocation, final_sent);
        self.shared
            .write(
                OPERATION,
                replay,
                arguments,
                |(broadcast, allocation, final_sent), tx| {
                    async move {
                    clean_up(tx, OPERATION, *broadcast, *allocation, *final_sent).await
                }
                .boxed()
                },
            )
            .await
    }
}

async fn create(tx: &mut Tx, operation: &'static str, record: &BroadcastRecord) -> Worked<()> {
    let id = Value::Bytes(record.id.as_bytes());
    let mut replaced = Batch::default();
    if !record.group_name.is_empty() {
        // Creations of groups follow each other; in a cluster, too, because
        // each changes the same row.
        let now = timestamp(tx.context.clock.now());
        let group = [Value::Bytes(record.group_name.as_bytes())];
        tx.run(Batch::of(LOCK_GROUPS, &[])).await?;
        let replies = tx
            .run(active_of(LIST_GROUP, LIST_LABELS_OF_GROUP, now, &group))
            .await?;
        let others: Vec<_> = active(replies)?
            .into_iter()
            .map(|(other, _)| other)
            .filter(|other| other.id != record.id && record.replaces(other))
            .map(|other| other.id)
            .collect();
        replaced = disable(tx, &others).await?;
    }
    let mut batch = Batch::default();
    let data = record.data.as_ref();
    batch.add(
        INSERT_BROADCAST,
        &[
            id,
            Value::Text(&record.source_service),
            record.destination_service.as_deref().into(),
            Value::Text(&record.message_type),
            record.expiration_time.map(|time| time.seconds).into(),
            record
                .expiration_time
                .map(|time| i64::from(time.nanos))
                .into(),
            data.map(|data| data.type_url.as_str()).into(),
            data.map(|data| &data.value[..]).into(),
            Value::Unsigned(record.limit),
        ],
    );
    if !record.required_labels.is_empty() {
        let labels = record.required_labels.iter().map(|label| {
            [
                id,
                Value::Text(&label.service_name),
                Value::Text(&label.label),
            ]
        });
        let labels = List::rows("(?, ?, ?)", ", ", labels);
        batch.add(INSERT_LABELS, &[Value::List(&labels)]);
    }
    if !record.group_name.is_empty() {
        let group = Value::Bytes(record.group_name.as_bytes());
        batch.add(INSERT_GROUP, &[id, group]);
    }
    batch.append(replaced);
    match tx.commit(batch).await {
        Ok(_) => Ok(()),
        Err(failure) if failure.is_server(code::DUPLICATE_KEY) => {
            if tx.replayed() {
                tx.roll_back_and_go_on().await?;
                let same = [
                    id,
                    Value::Text(&record.source_service),
                    Value::Text(&record.message_type),
                    Value::Unsigned(record.limit),
                ];
                let replies = tx.run(Batch::of(SAME_BROADCAST, &same)).await?;
                if replies.iter().any(|reply| !reply.rows.is_empty()) {
                    return Ok(());
                }
            }
            let detail = format!("broadcast {} exists", record.id);
            Err(Error::new(ErrorKind::AlreadyExists, operation, detail).into())
        }
        Err(failure) => Err(failure),
    }
}

/// Makes the batch that lists active broadcasts and then their labels.
fn active_of(list: &'static str, labels: &'static str, now: Timestamp, key: &[Value<'_>]) -> Batch {
    let now = [
        Value::Int(now.seconds),
        Value::Int(now.seconds),
        Value::Int(now.nanos.into()),
    ];
    let values = [&now[..], key].concat();
    let mut batch = Batch::of(list, &values);
    batch.add(labels, &values);
    batch
}

/// Reads the replies to [`active_of`]: each broadcast and how many messages it has sent, by id.
fn active(replies: Vec<crate::transaction::Reply>) -> Worked<Vec<(BroadcastRecord, u64)>> {
    let mut replies = replies.into_iter().map(|reply| reply.rows);
    let mut found: BTreeMap<BroadcastId, (BroadcastRecord, u64)> = BTreeMap::new();
    for mut row in replies.next().unwrap_or_default() {
        let record = broadcast(&mut row)?;
        found.insert(record.id, (record, take(&mut row, 7)?));
    }
    for mut row in replies.next().unwrap_or_default() {
        let id: BroadcastId = take_id(&mut row, 0)?;
        if let Some((record, _)) = found.get_mut(&id) {
            record.required_labels.push(Label {
                service_name: take(&mut row, 1)?,
                label: take(&mut row, 2)?,
            });
        }
    }
    for (record, _) in found.values_mut() {
        sort(&mut record.required_labels);
    }
    Ok(found.into_values().collect())
}

/// Takes the columns of [`LIST_ACTIVE`].
pub(crate) fn broadcast(row: &mut Row) -> Worked<BroadcastRecord> {
    let seconds: Option<i64> = take(row, 4)?;
    let nanos: Option<i32> = take(row, 5)?;
    let group: Option<Vec<u8>> = take(row, 6)?;
    let type_url: Option<String> = take(row, 9)?;
    let value: Option<Vec<u8>> = take(row, 10)?;
    Ok(BroadcastRecord {
        id: take_id(row, 0)?,
        source_service: take(row, 1)?,
        destination_service: take(row, 2)?,
        message_type: take(row, 3)?,
        expiration_time: seconds.map(|seconds| Timestamp {
            seconds,
            nanos: nanos.unwrap_or_default(),
        }),
        group_name: group
            .map(|group| String::from_utf8_lossy(&group).into_owned())
            .unwrap_or_default(),
        limit: take(row, 8)?,
        data: type_url.map(|type_url| Any {
            type_url,
            value: Bytes::from(value.unwrap_or_default()),
        }),
        required_labels: Vec::new(),
    })
}

const LOCK_GROUPS: &str = "\
-- create_broadcast (lock groups)
INSERT INTO fleethold_locks (name, taken) VALUES ('broadcast groups', 1)
ON DUPLICATE KEY UPDATE taken = taken + 1";

const INSERT_BROADCAST: &str = "\
-- create_broadcast
INSERT INTO broadcasts (
    broadcast_id, source_service_name, destination_service_name, message_type,
    expiration_time_seconds, expiration_time_nanos, data_type_url, data_value,
    sent, allocated, message_limit
)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?)";

const INSERT_LABELS: &str = "\
-- create_broadcast (labels)
INSERT INTO broadcast_labels (broadcast_id, service_name, label) VALUES ?
ON DUPLICATE KEY UPDATE label = broadcast_labels.label";

const INSERT_GROUP: &str = "\
-- create_broadcast (group)
INSERT INTO fleethold_broadcast_groups (broadcast_id, group_name) VALUES (?, ?)";

const SAME_BROADCAST: &str = "\
-- create_broadcast (replayed)
SELECT 1 FROM broadcasts
WHERE broadcast_id = ? AND CAST(source_service_name AS BINARY) = CAST(? AS BINARY)
AND CAST(message_type AS BINARY) = CAST(? AS BINARY) AND message_limit = ?
AND sent = 0 AND allocated = 0";

const LIST_ACTIVE: &str = "\
-- list_active_broadcasts
SELECT
    broadcasts.broadcast_id, source_service_name, destination_service_name, message_type,
    expiration_time_seconds, expiration_time_nanos, group_name, sent, message_limit,
    data_type_url, data_value
FROM broadcasts
LEFT JOIN fleethold_broadcast_groups
    ON fleethold_broadcast_groups.broadcast_id = broadcasts.broadcast_id
WHERE sent < message_limit
AND (
    expiration_time_seconds IS NULL OR expiration_time_seconds > ?
    OR (expiration_time_seconds = ? AND expiration_time_nanos > ?)
)";

const LIST_LABELS: &str = "\
-- list_active_broadcasts (labels)
SELECT broadcast_labels.broadcast_id, service_name, label FROM broadcasts
JOIN broadcast_labels ON broadcast_labels.broadcast_id = broadcasts.broadcast_id
WHERE sent < message_limit
AND (
    expiration_time_seconds IS NULL OR expiration_time_seconds > ?
    OR (expiration_time_seconds = ? AND expiration_time_nanos > ?)
)";

const LIST_GROUP: &str = "\
-- create_broadcast (group)
SELECT
    broadcasts.broadcast_id, source_service_name, destination_service_name, message_type,
    expiration_time_seconds, expiration_time_nanos, group_name, sent, message_limit, NULL, NULL
FROM fleethold_broadcast_groups
JOIN broadcasts ON broadcasts.broadcast_id = fleethold_broadcast_groups.broadcast_id
WHERE sent < message_limit
AND (
    expiration_time_seconds IS NULL OR expiration_time_seconds > ?
    OR (expiration_time_seconds = ? AND expiration_time_nanos > ?)
)
AND group_name = ?";

const LIST_LABELS_OF_GROUP: &str = "\
-- create_broadcast (labels of group)
SELECT broadcast_labels.broadcast_id, service_name, label FROM fleethold_broadcast_groups
JOIN broadcasts ON broadcasts.broadcast_id = fleethold_broadcast_groups.broadcast_id
JOIN broadcast_labels ON broadcast_labels.broadcast_id = broadcasts.broadcast_id
WHERE sent < message_limit
AND (
    expiration_time_seconds IS NULL OR expiration_time_seconds > ?
    OR (expiration_time_seconds = ? AND expiration_time_nanos > ?)
)
AND group_name = ?";

const LIST_SENT: &str = "\
-- list_sent_broadcasts
SELECT broadcast_id FROM broadcast_sent WHERE client_id = ? ORDER BY broadcast_id";

const BROADCAST_EXISTS: &str = "\
-- broadcast_progress (check)
SELECT 1 FROM broadcasts WHERE broadcast_id = ?";

const COUNT_SENT: &str = "\
-- broadcast_progress (sent)
SELECT COUNT(*) FROM broadcast_sent WHERE broadcast_id = ?";

const COUNT_RESULTS: &str = "\
-- broadcast_progress
SELECT
    COALESCE(SUM(processed_time_seconds IS NOT NULL AND COALESCE(failed, 0) = 0), 0),
    COALESCE(SUM(processed_time_seconds IS NOT NULL AND COALESCE(failed, 0) <> 0), 0),
    COALESCE(SUM(processed_time_seconds IS NULL), 0)
FROM fleethold_broadcast_messages
JOIN messages ON messages.message_id = fleethold_broadcast_messages.message_id
WHERE broadcast_id = ?";
