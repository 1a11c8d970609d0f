//! Writing rows of another store: a few statements for each page.

use bytes::Bytes;
use fleethold_store::maintenance::{
    BroadcastRow, ClientRow, ContactRow, FileRow, LinkRow, MessageRow, Progress, Row, SentRow,
    Table,
};
use fleethold_store::record::UsageRecord;
use fleethold_store::{ClientId, Error, ErrorKind, Outcome, Result};
use futures::FutureExt;

use crate::MysqlStore;
use crate::error::{Failure, Worked, code};
use crate::incoming::{MESSAGE_ROW, SOURCE_ID_BYTES, message_row, queue_of};
use crate::messages::check_fits;
use crate::rows::take;
use crate::sql::{Batch, List, Value, slices};
use crate::tables::{ADD_COPY_INDEX, DROP_COPY_INDEX};
use crate::transaction::{Context, Replay, Tx};
use crate::usage;

pub(super) const OPERATION: &str = "import_rows";

/// What a row takes in a statement besides its texts and payloads.
const ROW_BYTES: usize = 500;

/// Refuses what this database has no room for, before anything is sent.
pub(super) fn check(context: &Context, rows: &[Row]) -> Result<()> {
    rows.iter().try_for_each(|row| {
        check_fits(OPERATION, row.payload_bytes(), context)
            .map_err(|error| Error::new(error.kind(), OPERATION, format!("{row}: {error}")))
    })
}

/// Whether the page after `before` is the first one of links.
pub(super) fn begins_links(before: Option<&Progress>) -> bool {
    before.is_some_and(|before| before.table == Some(Table::Links) && before.cursor.is_none())
}

/// Whether the index of [`add_index`] is of no use after this page; at the end
/// of the copy once more, in case that a copy was interrupted in between.
pub(super) fn ends_links(before: Option<&Progress>, after: &Progress) -> bool {
    let was_at_links = before.is_some_and(|before| before.table == Some(Table::Links));
    (was_at_links && after.table != Some(Table::Links)) || after.table.is_none()
}

/// Adds the index that leads from the key of a contact to its number. Without
/// it, each link would cost as much as its client has contacts.
pub(super) async fn add_index(store: &MysqlStore) -> Result<()> {
    alter(store, ADD_COPY_INDEX).await
}

pub(super) async fn drop_index(store: &MysqlStore) -> Result<()> {
    alter(store, DROP_COPY_INDEX).await
}

async fn alter(store: &MysqlStore, sql: &'static str) -> Result<()> {
    store
        .shared
        .write(OPERATION, Replay::Safe, sql, |sql, tx| {
            async move {
                tx.take_time();
                match tx.only(Batch::of(sql, &[])).await {
                    // It is there, or gone, or may not be made: links are slower then.
                    Err(failure) if ALTERED.iter().any(|code| failure.is_server(*code)) => Ok(()),
                    done => done.map(drop),
                }
            }
            .boxed()
        })
        .await
}

/// Duplicate index, no such index, no right to alter tables.
const ALTERED: [u16; 3] = [1061, 1091, 1142];

/// Adds rows as they are, and notes how far the copy has come.
pub(super) async fn page(
    tx: &mut Tx,
    rows: &[Row],
    before: Option<&Progress>,
    after: &Progress,
) -> Worked<()> {
    tx.take_time();
    let replies = tx.run(Batch::of(LOCK_PROGRESS, &[])).await?;
    let mut found = replies.into_iter().flat_map(|reply| reply.rows);
    let stored = found.next().map(progress).transpose()?;
    // An earlier run of this call, whose commit was lost.
    if tx.replayed() && stored.as_ref() == Some(after) {
        return Ok(());
    }
    Progress::check(OPERATION, stored.as_ref(), before)?;
    let noted = tx.run(remember(before, after)).await;
    noted.map_err(|failure| match failure {
        failure if failure.is_server(code::DUPLICATE_KEY) => {
            let detail = "somebody else copies into this store at the same time";
            let error = Error::new(ErrorKind::Transient, OPERATION, detail);
            error.with_outcome(Outcome::NotApplied).into()
        }
        failure => failure,
    })?;
    tx.commit(insert(rows)).await.map(drop).map_err(|failure| {
        let table = rows.first().map_or("no table", |row| row.table().name());
        taken(failure, table)
    })
}

/// Says it in the store's words if a row could not be added.
fn taken(failure: Failure, table: &str) -> Failure {
    if [code::DUPLICATE_KEY, code::NO_PARENT_ROW]
        .iter()
        .any(|code| failure.is_server(*code))
    {
        let detail = format!(
            "a row of {table} exists by this database's collation, or refers to one that does not"
        );
        return Error::new(ErrorKind::AlreadyExists, OPERATION, detail).into();
    }
    failure
}

fn insert(rows: &[Row]) -> Batch {
    let mut batch = Batch::default();
    macro_rules! of {
        ($kind:ident) => {
            rows.iter()
                .filter_map(|row| match row {
                    Row::$kind(row) => Some(row),
                    _ => None,
                })
                .collect::<Vec<_>>()
        };
    }
    clients(&mut batch, &of!(Client));
    messages(&mut batch, &of!(Message));
    contacts(&mut batch, &of!(Contact));
    links(&mut batch, &of!(Link));
    let usage: Vec<_> = rows
        .iter()
        .filter_map(|row| match row {
            Row::Usage(client, record) => Some((client, record)),
            _ => None,
        })
        .collect();
    records(&mut batch, &usage);
    broadcasts(&mut batch, &of!(Broadcast));
    sent(&mut batch, &of!(Sent));
    files(&mut batch, &of!(File));
    batch
}

fn clients(batch: &mut Batch, rows: &[&ClientRow]) {
    for slice in slices(rows, |row| ROW_BYTES + row.public_key.len()) {
        let values = slice.iter().map(|row| {
            [
                Value::Bytes(row.id.as_bytes()),
                Value::Bytes(&row.public_key),
                Value::Int(row.blacklisted.into()),
                Value::Int(row.last_contact_nanos),
                Value::Text(&row.last_contact_address),
                row.last_contact_streaming_to.as_deref().into(),
                row.last_clock.map(|clock| clock.seconds).into(),
                row.last_clock.map(|clock| i64::from(clock.nanos)).into(),
            ]
        });
        let values = List::rows("(?, ?, ?, ?, ?, ?, ?, ?)", ", ", values);
        batch.add(INSERT_CLIENTS, &[Value::List(&values)]);
    }
    let labels: Vec<_> = rows
        .iter()
        .flat_map(|row| row.labels.iter().map(|label| (&row.id, label)))
        .collect();
    for slice in slices(&labels, |_| ROW_BYTES) {
        let values = slice.iter().map(|(id, label)| {
            [
                Value::Bytes(id.as_bytes()),
                Value::Text(&label.service_name),
                Value::Text(&label.label),
            ]
        });
        let values = List::rows("(?, ?, ?)", ", ", values);
        batch.add(INSERT_CLIENT_LABELS, &[Value::List(&values)]);
    }
}

const INSERT_CLIENTS: &str = "\
-- import_rows (clients)
INSERT INTO clients (
    client_id, client_key, blacklisted, last_contact_time, last_contact_address,
    last_contact_streaming_to, last_clock_seconds, last_clock_nanos
)
VALUES ?";

const INSERT_CLIENT_LABELS: &str = "\
-- import_rows (client labels)
INSERT INTO client_labels (client_id, service_name, label) VALUES ?";

fn messages(batch: &mut Batch, rows: &[&MessageRow]) {
    let length = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
    let bytes = |row: &&MessageRow| {
        let record = &row.record;
        let reason = record.result.as_ref();
        let reason = reason.and_then(|result| result.failure.as_ref());
        ROW_BYTES
            + length(&record.validation_info)
            + length(&record.annotations)
            + reason.map_or(0, String::len)
    };
    for slice in slices(rows, bytes) {
        let values = slice.iter().map(|row| message_row(&row.record));
        let values = List::rows(MESSAGE_ROW, ", ", values);
        batch.add(INSERT_MESSAGES, &[Value::List(&values)]);
    }
    let long: Vec<_> = rows
        .iter()
        .map(|row| &row.record)
        .filter(|record| record.source_message_id.len() > SOURCE_ID_BYTES)
        .collect();
    for slice in slices(&long, |record| ROW_BYTES + record.source_message_id.len()) {
        match slice {
            // Alone, a large value is bound instead of written.
            [one] => {
                let id = Value::Bytes(one.id.as_bytes());
                batch.add(
                    INSERT_SOURCE_ID,
                    &[id, Value::Bytes(&one.source_message_id)],
                );
            }
            slice => {
                let values = slice.iter().map(|record| {
                    [
                        Value::Bytes(record.id.as_bytes()),
                        Value::Bytes(&record.source_message_id),
                    ]
                });
                let values = List::rows("(?, ?)", ", ", values);
                batch.add(INSERT_SOURCE_IDS, &[Value::List(&values)]);
            }
        }
    }
    let waiting: Vec<_> = rows
        .iter()
        .filter_map(|row| Some((*row, row.due_micros?, queue_of(&row.record))))
        .collect();
    let bytes = |(row, ..): &(&MessageRow, i64, Vec<u8>)| {
        let data = row.record.data.as_ref();
        ROW_BYTES + data.map_or(0, |data| data.type_url.len() + data.value.len())
    };
    for slice in slices(&waiting, bytes) {
        match slice {
            [one] => batch.add(INSERT_PENDING_ONE, &pending_row(one)),
            slice => {
                let values = slice.iter().map(pending_row);
                let values = List::rows("(?, ?, ?, ?, ?, ?, ?)", ", ", values);
                batch.add(INSERT_PENDING, &[Value::List(&values)]);
            }
        }
    }
}

fn pending_row<'a>((row, due_micros, queue): &'a (&'a MessageRow, i64, Vec<u8>)) -> [Value<'a>; 7] {
    let data = row.record.data.as_ref();
    [
        Value::Int(row.record.destination_client.is_none().into()),
        Value::Bytes(row.record.id.as_bytes()),
        // Upstream's column is signed.
        Value::Int(i32::try_from(row.claims).unwrap_or(i32::MAX).into()),
        Value::Int(*due_micros),
        data.map(|data| data.type_url.as_str()).into(),
        data.map(|data| &data.value[..]).into(),
        Value::Bytes(queue),
    ]
}

const INSERT_MESSAGES: &str = "\
-- import_rows (messages)
INSERT INTO messages (
    message_id, source_client_id, source_service_name, source_message_id,
    destination_client_id, destination_service_name, message_type,
    creation_time_seconds, creation_time_nanos, processed_time_seconds, processed_time_nanos,
    validation_info, failed, failed_reason, annotations
)
VALUES ?";

const INSERT_SOURCE_IDS: &str = "\
-- import_rows (source ids)
INSERT INTO fleethold_messages (message_id, source_message_id) VALUES ?";

const INSERT_SOURCE_ID: &str = "\
-- import_rows (source id)
INSERT INTO fleethold_messages (message_id, source_message_id) VALUES (?, ?)";

const INSERT_PENDING: &str = "\
-- import_rows (pending)
INSERT INTO pending_messages (
    for_server, message_id, retry_count, scheduled_time, data_type_url, data_value, fleethold_queue
)
VALUES ?";

const INSERT_PENDING_ONE: &str = "\
-- import_rows (one pending)
INSERT INTO pending_messages (
    for_server, message_id, retry_count, scheduled_time, data_type_url, data_value, fleethold_queue
)
VALUES (?, ?, ?, ?, ?, ?, ?)";

fn contacts(batch: &mut Batch, rows: &[&ContactRow]) {
    let nonces: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row.key.nonce_sent.to_le_bytes(),
                row.key.nonce_received.to_le_bytes(),
            )
        })
        .collect();
    let rows: Vec<_> = rows.iter().zip(&nonces).collect();
    for slice in slices(&rows, |_| ROW_BYTES) {
        let values = slice.iter().map(|(row, (sent, received))| {
            [
                Value::Bytes(row.key.client_id.as_bytes()),
                Value::Int(row.key.time_nanos),
                Value::Bytes(sent),
                Value::Bytes(received),
                Value::Text(&row.address),
            ]
        });
        let values = List::rows("(?, ?, ?, ?, ?)", ", ", values);
        batch.add(INSERT_CONTACTS, &[Value::List(&values)]);
    }
}

const INSERT_CONTACTS: &str = "\
-- import_rows (contacts)
INSERT INTO client_contacts (client_id, time, sent_nonce, received_nonce, address) VALUES ?";

/// Links of unknown messages or contacts are left out.
fn links(batch: &mut Batch, rows: &[&LinkRow]) {
    let nonces: Vec<_> = rows
        .iter()
        .map(|row| {
            let key = &row.contact;
            (
                key.nonce_sent.to_le_bytes(),
                key.nonce_received.to_le_bytes(),
            )
        })
        .collect();
    let rows: Vec<_> = rows.iter().zip(&nonces).collect();
    for slice in slices(&rows, |_| ROW_BYTES) {
        let values = slice.iter().map(|(row, (sent, received))| {
            [
                Value::Bytes(row.contact.client_id.as_bytes()),
                Value::Int(row.contact.time_nanos),
                Value::Bytes(sent),
                Value::Bytes(received),
                Value::Bytes(row.message.as_bytes()),
            ]
        });
        let table = List::table(
            "SELECT ? AS client, ? AS nanos, ? AS sent, ? AS received, ? AS message",
            "SELECT ?, ?, ?, ?, ?",
            values,
        );
        batch.add(INSERT_LINKS, &[Value::List(&table)]);
    }
}

// Contacts that are the same in all but their numbers are one: the first.
const INSERT_LINKS: &str = "\
-- import_rows (links)
INSERT INTO client_contact_messages (client_contact_id, message_id)
SELECT MIN(client_contacts.client_contact_id), given.message
FROM (?) AS given
STRAIGHT_JOIN client_contacts
    ON client_contacts.time = given.nanos AND client_contacts.client_id = given.client
    AND client_contacts.sent_nonce = given.sent AND client_contacts.received_nonce = given.received
STRAIGHT_JOIN messages ON messages.message_id = given.message
GROUP BY given.client, given.nanos, given.sent, given.received, given.message
ON DUPLICATE KEY UPDATE message_id = client_contact_messages.message_id";

fn records(batch: &mut Batch, rows: &[(&ClientId, &UsageRecord)]) {
    for slice in slices(rows, |_| ROW_BYTES) {
        let values = slice
            .iter()
            .map(|(client, record)| usage::row(client, record));
        let values = List::rows(usage::ROW, ", ", values);
        batch.add(INSERT_RECORDS, &[Value::List(&values)]);
    }
}

const INSERT_RECORDS: &str = "\
-- import_rows (usage)
INSERT INTO client_resource_usage_records (
    client_id, scope, pid, process_start_time, client_timestamp, server_timestamp,
    process_terminated, mean_user_cpu_rate, max_user_cpu_rate,
    mean_system_cpu_rate, max_system_cpu_rate,
    mean_resident_memory_mib, max_resident_memory_mib, mean_num_fds, max_num_fds
)
VALUES ?";

fn broadcasts(batch: &mut Batch, rows: &[&BroadcastRow]) {
    const NANOS: i64 = 1_000_000_000;
    for row in rows {
        let record = &row.record;
        let id = Value::Bytes(record.id.as_bytes());
        let time = record.expiration_time;
        let data = record.data.as_ref();
        batch.add(
            INSERT_BROADCAST,
            &[
                id,
                Value::Text(&record.source_service),
                record.destination_service.as_deref().into(),
                Value::Text(&record.message_type),
                time.map(|time| time.seconds).into(),
                time.map(|time| i64::from(time.nanos)).into(),
                data.map(|data| data.type_url.as_str()).into(),
                data.map(|data| &data.value[..]).into(),
                Value::Unsigned(row.sent),
                Value::Unsigned(row.allocated),
                Value::Unsigned(record.limit),
            ],
        );
        if !record.group_name.is_empty() {
            let group = Value::Bytes(record.group_name.as_bytes());
            batch.add(INSERT_GROUP, &[id, group]);
        }
        for slice in slices(&record.required_labels, |_| ROW_BYTES) {
            let values = slice.iter().map(|label| {
                [
                    id,
                    Value::Text(&label.service_name),
                    Value::Text(&label.label),
                ]
            });
            let values = List::rows("(?, ?, ?)", ", ", values);
            batch.add(INSERT_BROADCAST_LABELS, &[Value::List(&values)]);
        }
        for slice in slices(&row.allocations, |_| ROW_BYTES) {
            let values = slice.iter().map(|allocation| {
                [
                    id,
                    Value::Bytes(allocation.id.as_bytes()),
                    Value::Unsigned(allocation.sent),
                    Value::Unsigned(allocation.limit),
                    Value::Int(allocation.expiry_nanos.div_euclid(NANOS)),
                    Value::Int(allocation.expiry_nanos.rem_euclid(NANOS)),
                ]
            });
            let values = List::rows("(?, ?, ?, ?, ?, ?)", ", ", values);
            batch.add(INSERT_ALLOCATIONS, &[Value::List(&values)]);
        }
    }
}

const INSERT_BROADCAST: &str = "\
-- import_rows (broadcast)
INSERT INTO broadcasts (
    broadcast_id, source_service_name, destination_service_name, message_type,
    expiration_time_seconds, expiration_time_nanos, data_type_url, data_value,
    sent, allocated, message_limit
)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

const INSERT_GROUP: &str = "\
-- import_rows (group)
INSERT INTO fleethold_broadcast_groups (broadcast_id, group_name) VALUES (?, ?)";

const INSERT_BROADCAST_LABELS: &str = "\
-- import_rows (broadcast labels)
INSERT INTO broadcast_labels (broadcast_id, service_name, label) VALUES ?";

const INSERT_ALLOCATIONS: &str = "\
-- import_rows (allocations)
INSERT INTO broadcast_allocations (
    broadcast_id, allocation_id, sent, message_limit,
    expiration_time_seconds, expiration_time_nanos
)
VALUES ?";

fn sent(batch: &mut Batch, rows: &[&SentRow]) {
    for slice in slices(rows, |_| ROW_BYTES) {
        let values = slice.iter().map(|row| {
            [
                Value::Bytes(row.broadcast.as_bytes()),
                Value::Bytes(row.client.as_bytes()),
            ]
        });
        let values = List::rows("(?, ?)", ", ", values);
        batch.add(INSERT_SENT, &[Value::List(&values)]);
    }
    let carried: Vec<_> = rows
        .iter()
        .filter_map(|row| Some((*row, row.message.as_ref()?)))
        .collect();
    for slice in slices(&carried, |_| ROW_BYTES) {
        let values = slice.iter().map(|(row, message)| {
            [
                Value::Bytes(row.broadcast.as_bytes()),
                Value::Bytes(row.client.as_bytes()),
                Value::Bytes(message.as_bytes()),
            ]
        });
        let table = List::table(
            "SELECT ? AS broadcast, ? AS client, ? AS message",
            "SELECT ?, ?, ?",
            values,
        );
        batch.add(INSERT_CARRIERS, &[Value::List(&table)]);
    }
}

const INSERT_SENT: &str = "\
-- import_rows (sent)
INSERT INTO broadcast_sent (broadcast_id, client_id) VALUES ?";

const INSERT_CARRIERS: &str = "\
-- import_rows (carriers)
INSERT INTO fleethold_broadcast_messages (broadcast_id, client_id, message_id)
SELECT given.broadcast, given.client, messages.message_id
FROM (?) AS given STRAIGHT_JOIN messages ON messages.message_id = given.message";

fn files(batch: &mut Batch, rows: &[&FileRow]) {
    for row in rows {
        batch.add(
            INSERT_FILE,
            &[
                Value::Text(&row.service),
                Value::Text(&row.name),
                Value::Int(row.modified_nanos),
                Value::Bytes(&row.content),
            ],
        );
    }
}

const INSERT_FILE: &str = "\
-- import_rows (file)
INSERT INTO files (service, name, modified_time_nanos, data) VALUES (?, ?, ?, ?)";

fn remember(before: Option<&Progress>, after: &Progress) -> Batch {
    let values = [
        Value::Bytes(after.source.as_bytes()),
        after.table.map(Table::name).into(),
        after.cursor.as_deref().into(),
        Value::Unsigned(after.rows),
    ];
    let sql = if before.is_some() {
        REMEMBER
    } else {
        BEGIN_COPY
    };
    Batch::of(sql, &values)
}

const BEGIN_COPY: &str = "\
-- import_rows (first)
INSERT INTO fleethold_copies (id, source, table_name, place, row_count) VALUES (1, ?, ?, ?, ?)";

const REMEMBER: &str = "\
-- import_rows (progress)
UPDATE fleethold_copies SET source = ?, table_name = ?, place = ?, row_count = ? WHERE id = 1";

/// Returns how far a copy has come.
pub(super) async fn imported(tx: &mut Tx) -> Worked<Option<Progress>> {
    let replies = tx.only(Batch::of(READ_PROGRESS, &[])).await?;
    let mut rows = replies.into_iter().flat_map(|reply| reply.rows);
    rows.next().map(progress).transpose()
}

fn progress(mut row: mysql_async::Row) -> Worked<Progress> {
    let source: Vec<u8> = take(&mut row, 0)?;
    let table: Option<String> = take(&mut row, 1)?;
    Ok(Progress {
        source: String::from_utf8_lossy(&source).into_owned(),
        table: table.and_then(|name| Table::named(&name)),
        cursor: take::<Option<Vec<u8>>>(&mut row, 2)?.map(Bytes::from),
        rows: take(&mut row, 3)?,
    })
}

const READ_PROGRESS: &str = "\
-- imported
SELECT source, table_name, place, row_count FROM fleethold_copies WHERE id = 1";

const LOCK_PROGRESS: &str = "\
-- import_rows (lock)
SELECT source, table_name, place, row_count FROM fleethold_copies WHERE id = 1 FOR UPDATE";
