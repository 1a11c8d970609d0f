//! Messages on their way into the database: statements that store many at once.

use std::collections::BTreeMap;

use fleethold_store::MessageId;
use fleethold_store::clock::epoch_micros;
use fleethold_store::record::MessageRecord;

use crate::rows::{self, SERVER_QUEUE};
use crate::sql::{Batch, List, MOST_ROWS, Value, slices};
use crate::transaction::Context;

/// Messages to store, each id once and in order: two calls that store the same
/// messages lock them in the same order.
#[derive(Debug)]
pub(crate) struct New {
    records: Vec<MessageRecord>,
    due_micros: Vec<i64>,
    /// Known messages stay as they are, whatever result comes.
    only_new: bool,
}

impl New {
    /// Merges what is stored about one message into one record: the fields of
    /// the first, and the result that is left if all are stored in turn.
    pub(crate) fn of(records: Vec<MessageRecord>, context: &Context) -> Self {
        let mut merged: BTreeMap<MessageId, (MessageRecord, i64)> = BTreeMap::new();
        for record in records {
            let due = epoch_micros(match record.destination_client {
                Some(_) => context.clock.now(),
                None => context.clock.server_retry_time(0),
            });
            match merged.get_mut(&record.id) {
                None => {
                    merged.insert(record.id, (record, due));
                }
                Some((known, _)) => {
                    if let Some(result) = record.result
                        && result.replaces(known.result.as_ref())
                    {
                        known.result = Some(result);
                        known.data = None;
                    }
                }
            }
        }
        let (records, due_micros) = merged.into_values().unzip();
        Self {
            records,
            due_micros,
            only_new: false,
        }
    }

    /// Makes the message of a broadcast, due when its caller is expected to have sent it.
    pub(crate) fn due_at(record: MessageRecord, due_micros: i64) -> Self {
        Self {
            records: vec![record],
            due_micros: vec![due_micros],
            only_new: true,
        }
    }

    pub(crate) fn ids(&self) -> Vec<MessageId> {
        self.records.iter().map(|record| record.id).collect()
    }

    /// Adds the statements that store new messages or new results.
    pub(crate) fn store(&self, batch: &mut Batch) {
        let messages = self.records.iter().zip(self.due_micros.iter().copied());
        store(batch, &messages.collect::<Vec<_>>(), self.only_new);
    }

    /// Does the same for what several calls store, none of which has a message
    /// of another.
    pub(crate) fn store_all<'a>(all: impl Iterator<Item = &'a Self>, batch: &mut Batch) {
        let messages = all.flat_map(|new| new.records.iter().zip(new.due_micros.iter().copied()));
        let mut messages: Vec<_> = messages.collect();
        messages.sort_unstable_by_key(|(record, _)| record.id);
        store(batch, &messages, false);
    }

    /// Returns about how many bytes the statements have.
    pub(crate) fn statement_bytes(&self) -> usize {
        let bytes = |record: &MessageRecord| {
            let data = record.data.as_ref();
            let data = data.map_or(0, |data| data.type_url.len() + data.value.len());
            1_000 + 2 * (row_bytes(record) + data)
        };
        self.records.iter().map(bytes).sum()
    }
}

/// Returns about how many bytes a message has in its table.
fn row_bytes(record: &MessageRecord) -> usize {
    let part = |part: &Option<bytes::Bytes>| part.as_ref().map_or(0, bytes::Bytes::len);
    let reason = record
        .result
        .as_ref()
        .and_then(|result| result.failure.as_ref());
    500 + part(&record.validation_info) + part(&record.annotations) + reason.map_or(0, String::len)
}

/// A message and when it is due.
type Incoming<'a> = (&'a MessageRecord, i64);

fn store(batch: &mut Batch, messages: &[Incoming<'_>], only_new: bool) {
    for slice in slices(messages, |(record, _)| row_bytes(record)) {
        let rows = slice.iter().map(|(record, _)| message_row(record));
        let rows = List::rows(MESSAGE_ROW, ", ", rows);
        let insert = if only_new {
            INSERT_NEW_MESSAGES
        } else {
            INSERT_MESSAGES
        };
        batch.add(insert, &[Value::List(&rows)]);
    }
    let long: Vec<_> = messages
        .iter()
        .map(|(record, _)| *record)
        .filter(|record| record.source_message_id.len() > SOURCE_ID_BYTES)
        .collect();
    for slice in slices(&long, |record| record.source_message_id.len()) {
        let values = slice.iter().map(|record| {
            [
                Value::Bytes(record.id.as_bytes()),
                Value::Bytes(&record.source_message_id),
            ]
        });
        let rows = List::rows("(?, ?)", ", ", values);
        batch.add(INSERT_SOURCE_IDS, &[Value::List(&rows)]);
    }
    store_pending(batch, messages, only_new);
}

fn store_pending(batch: &mut Batch, messages: &[Incoming<'_>], only_new: bool) {
    let pending: Vec<_> = messages
        .iter()
        .filter(|(record, _)| record.result.is_none())
        .map(|(record, due_micros)| (*record, *due_micros, queue_of(record)))
        .collect();
    let bytes = |pending: &(&MessageRecord, i64, Vec<u8>)| {
        let data = pending.0.data.as_ref();
        200 + data.map_or(0, |data| data.type_url.len() + data.value.len())
    };
    for slice in slices(&pending, bytes) {
        match slice {
            // Alone, a large payload is bound instead of written.
            [one] => batch.add(INSERT_PENDING_ONE, &pending_row(one)),
            slice => {
                let rows = List::rows(PENDING_ROW, ", ", slice.iter().map(pending_row));
                batch.add(INSERT_PENDING, &[Value::List(&rows)]);
            }
        }
    }
    let ids = |has_result: bool| -> Vec<MessageId> {
        messages
            .iter()
            .map(|(record, _)| record)
            .filter(|record| record.result.is_some() == has_result)
            .filter(|record| !(only_new && record.result.is_some()))
            .map(|record| record.id)
            .collect()
    };
    for slice in ids(true).chunks(MOST_ROWS) {
        let ids = List::ids(slice);
        batch.add(DELETE_PENDING, &[Value::List(&ids)]);
    }
    for slice in ids(false).chunks(MOST_ROWS) {
        let ids = List::ids(slice);
        batch.add(DELETE_KNOWN, &[Value::List(&ids)]);
    }
}

/// Upstream's column for source message ids has so many bytes.
pub(crate) const SOURCE_ID_BYTES: usize = 16;

pub(crate) const MESSAGE_ROW: &str = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

pub(crate) fn message_row(record: &MessageRecord) -> [Value<'_>; 15] {
    let source_id = &record.source_message_id[..];
    let result = record.result.as_ref();
    let processed = result.map(|result| result.processed_time);
    let failure = result.and_then(|result| result.failure.as_deref());
    [
        Value::Bytes(record.id.as_bytes()),
        record
            .source_client
            .as_ref()
            .map(|id| &id.as_bytes()[..])
            .into(),
        Value::Text(&record.source_service),
        // As a stock server stores that there is none.
        (!source_id.is_empty())
            .then(|| &source_id[..source_id.len().min(SOURCE_ID_BYTES)])
            .into(),
        record
            .destination_client
            .as_ref()
            .map(|id| &id.as_bytes()[..])
            .into(),
        Value::Text(&record.destination_service),
        Value::Text(&record.message_type),
        Value::Int(record.creation_time.seconds),
        Value::Int(record.creation_time.nanos.into()),
        processed.map(|time| time.seconds).into(),
        processed.map(|time| i64::from(time.nanos)).into(),
        record.validation_info.as_deref().into(),
        failure.map(|_| 1).into(),
        failure.into(),
        record.annotations.as_deref().into(),
    ]
}

// A known message keeps its fields. A success replaces any result, a failure
// only a missing one; the column that this depends on is set last, because
// assignments see those before them.
const INSERT_MESSAGES: &str = "\
-- store_messages
INSERT INTO messages (
    message_id, source_client_id, source_service_name, source_message_id,
    destination_client_id, destination_service_name, message_type,
    creation_time_seconds, creation_time_nanos, processed_time_seconds, processed_time_nanos,
    validation_info, failed, failed_reason, annotations
)
VALUES ?
ON DUPLICATE KEY UPDATE
    failed_reason = IF(
        VALUES(processed_time_seconds) IS NOT NULL
        AND (VALUES(failed) IS NULL OR processed_time_seconds IS NULL),
        VALUES(failed_reason), failed_reason
    ),
    failed = IF(
        VALUES(processed_time_seconds) IS NOT NULL
        AND (VALUES(failed) IS NULL OR processed_time_seconds IS NULL),
        VALUES(failed), failed
    ),
    processed_time_nanos = IF(
        VALUES(processed_time_seconds) IS NOT NULL
        AND (VALUES(failed) IS NULL OR processed_time_seconds IS NULL),
        VALUES(processed_time_nanos), processed_time_nanos
    ),
    processed_time_seconds = IF(
        VALUES(processed_time_seconds) IS NOT NULL
        AND (VALUES(failed) IS NULL OR processed_time_seconds IS NULL),
        VALUES(processed_time_seconds), processed_time_seconds
    )";

const INSERT_NEW_MESSAGES: &str = "\
-- save_broadcast_message (message)
INSERT INTO messages (
    message_id, source_client_id, source_service_name, source_message_id,
    destination_client_id, destination_service_name, message_type,
    creation_time_seconds, creation_time_nanos, processed_time_seconds, processed_time_nanos,
    validation_info, failed, failed_reason, annotations
)
VALUES ?
ON DUPLICATE KEY UPDATE message_id = messages.message_id";

const INSERT_SOURCE_IDS: &str = "\
-- store_messages (source ids)
INSERT INTO fleethold_messages (message_id, source_message_id) VALUES ?
ON DUPLICATE KEY UPDATE message_id = fleethold_messages.message_id";

const PENDING_ROW: &str = "(?, ?, 0, ?, ?, ?, ?)";

pub(crate) fn queue_of(record: &MessageRecord) -> Vec<u8> {
    match record.destination_client {
        Some(client) => rows::queue(client, &record.destination_service).to_vec(),
        None => SERVER_QUEUE.to_vec(),
    }
}

fn pending_row<'a>(
    (record, due_micros, queue): &'a (&'a MessageRecord, i64, Vec<u8>),
) -> [Value<'a>; 6] {
    let data = record.data.as_ref();
    [
        Value::Int(record.destination_client.is_none().into()),
        Value::Bytes(record.id.as_bytes()),
        Value::Int(*due_micros),
        data.map(|data| data.type_url.as_str()).into(),
        data.map(|data| &data.value[..]).into(),
        Value::Bytes(queue),
    ]
}

const INSERT_PENDING: &str = "\
-- store_messages (pending)
INSERT INTO pending_messages (
    for_server, message_id, retry_count, scheduled_time, data_type_url, data_value, fleethold_queue
)
VALUES ?
ON DUPLICATE KEY UPDATE retry_count = pending_messages.retry_count";

const INSERT_PENDING_ONE: &str = "\
-- store_messages (one pending)
INSERT INTO pending_messages (
    for_server, message_id, retry_count, scheduled_time, data_type_url, data_value, fleethold_queue
)
VALUES (?, ?, 0, ?, ?, ?, ?)
ON DUPLICATE KEY UPDATE retry_count = pending_messages.retry_count";

pub(crate) const DELETE_PENDING: &str = "\
-- store_messages (done)
DELETE FROM pending_messages WHERE for_server IN (0, 1) AND message_id IN (?)";

// What was known before has a pending row already, or a result: the row that
// was just added is one too many. Cheaper than to ask first.
const DELETE_KNOWN: &str = "\
-- store_messages (known)
DELETE pending_messages FROM messages
STRAIGHT_JOIN pending_messages ON pending_messages.message_id = messages.message_id
WHERE messages.message_id IN (?)
AND (
    messages.processed_time_seconds IS NOT NULL
    OR pending_messages.for_server <> (messages.destination_client_id IS NULL)
)";
