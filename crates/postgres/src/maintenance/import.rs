//! Writing rows of another store.

use std::collections::HashMap;
use std::fmt;

use bytes::Bytes;
use fleethold_store::maintenance::{
    BroadcastRow, ClientRow, ContactRow, FileRow, LinkRow, MessageRow, Progress, Row, SentRow,
    Table,
};
use fleethold_store::{Error, ErrorKind, MessageId, Outcome};
use futures::future::join_all;

use crate::contacts::{first_id, ordered_id};
use crate::error::Worked;
use crate::incoming::{CHUNK_BYTES, Columns, insert};
use crate::query::{BOOL, BYTES, BYTES_LIST, INT, INT_LIST, LONG, Query, TEXT, Values, list};
use crate::transactions::Tx;
use crate::{Shared, broadcasts, clients, usage};

/// So many rows are on their way to the database at the same time.
const PIPELINED: usize = 50;

/// Adds rows as they are.
pub(super) async fn rows(
    shared: &Shared,
    tx: &Tx,
    operation: &'static str,
    rows: &[Row],
) -> Worked<()> {
    let taken = |row: &dyn fmt::Display| {
        let detail = format!("{row} exists, or refers to a row that does not");
        Error::new(ErrorKind::AlreadyExists, operation, detail)
    };
    let new: Vec<_> = rows
        .iter()
        .filter_map(|row| match row {
            Row::Message(row) => Some(row),
            _ => None,
        })
        .collect();
    if let Some(known) = messages(tx, &new).await? {
        return Err(taken(&format_args!("message {known}")).into());
    }
    for rows in rows.chunks(PIPELINED) {
        // All are waited for: the first error is the cause of those after it.
        let added = join_all(rows.iter().map(|row| add(shared, tx, row))).await;
        for (row, added) in rows.iter().zip(added) {
            if !added? {
                return Err(taken(row).into());
            }
        }
    }
    Ok(())
}

async fn add(shared: &Shared, tx: &Tx, row: &Row) -> Worked<bool> {
    match row {
        Row::Client(row) => client(tx, row).await,
        Row::Message(_) => Ok(true),
        Row::Contact(row) => contact(shared, tx, row).await,
        Row::Link(row) => link(tx, row).await,
        Row::Usage(client, record) => {
            let id = ordered_id(record.server_nanos, &shared.random);
            usage::insert(tx, *client, &id, record).await
        }
        Row::Broadcast(row) => broadcast(shared, tx, row).await,
        Row::Sent(row) => sent(tx, row).await,
        Row::File(row) => file(shared, tx, row).await,
    }
}

async fn client(tx: &Tx, row: &ClientRow) -> Worked<bool> {
    let (services, labels) = clients::columns(&row.labels);
    let values: Values<'_> = &[
        &row.id.as_ref(),
        &&row.public_key[..],
        &row.blacklisted,
        &row.last_contact_nanos,
        &row.last_contact_address.as_bytes(),
        &row.last_contact_streaming_to.as_ref().map(String::as_bytes),
        &row.last_clock.map(|clock| clock.seconds),
        &row.last_clock.map(|clock| clock.nanos),
        &services,
        &labels,
    ];
    Ok(!tx.rows(&INSERT_CLIENT, values).await?.is_empty())
}

const INSERT_CLIENT: Query = Query {
    sql: "\
-- import_rows (client)
WITH added AS (
    INSERT INTO clients (
        client_id, public_key, blacklisted, last_contact_nanos, last_contact_address,
        last_contact_streaming_to, last_clock_seconds, last_clock_nanos
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT DO NOTHING
    RETURNING client_id
), labels AS (
    INSERT INTO client_labels (client_id, service, label)
    SELECT added.client_id, given.service, given.label
    FROM added CROSS JOIN unnest($9::bytea[], $10::bytea[]) AS given (service, label)
)
SELECT 1 FROM added",
    types: &[
        BYTES, BYTES, BOOL, LONG, BYTES, BYTES, LONG, INT, BYTES_LIST, BYTES_LIST,
    ],
};

/// Adds messages, or returns one that is known.
async fn messages(tx: &Tx, rows: &[&MessageRow]) -> Worked<Option<MessageId>> {
    if rows.is_empty() {
        return Ok(None);
    }
    let mut due_micros = HashMap::new();
    let mut twice = None;
    for row in rows {
        let known = due_micros.insert(row.record.id, row.due_micros.unwrap_or_default());
        twice = twice.or(known.map(|_| row.record.id));
    }
    let ids = list(due_micros.keys());
    if let Some(row) = tx.rows(&FIND_MESSAGES, &[&ids]).await?.first() {
        twice = MessageId::try_from(row.try_get::<_, &[u8]>(0)?).ok();
    }
    if twice.is_some() {
        return Ok(twice);
    }
    let records: Vec<_> = rows.iter().map(|row| row.record.clone()).collect();
    let columns = Columns::of(&records, |record| due_micros[&record.id]);
    insert(tx, &[], &columns).await?;
    let claimed = rows.iter().filter(|row| row.claims > 0);
    let (claimed, claims): (Vec<&[u8]>, Vec<_>) = claimed
        .map(|row| {
            let claims = i32::try_from(row.claims).unwrap_or(i32::MAX);
            (row.record.id.as_ref(), claims)
        })
        .unzip();
    if !claimed.is_empty() {
        let values: Values<'_> = &[&claimed, &claims];
        tx.all(&[(&SET_CLAIMS, values), (&SET_SERVER_CLAIMS, values)])
            .await?;
    }
    Ok(None)
}

const FIND_MESSAGES: Query = Query {
    sql: "\
-- import_rows (find messages)
SELECT message_id FROM messages WHERE message_id = ANY($1) LIMIT 1",
    types: &[BYTES_LIST],
};

const SET_CLAIMS: Query = Query {
    sql: "\
-- import_rows (claims)
UPDATE client_pending SET claims = given.claims
FROM unnest($1::bytea[], $2::integer[]) AS given (message_id, claims)
WHERE client_pending.message_id = given.message_id",
    types: &[BYTES_LIST, INT_LIST],
};

const SET_SERVER_CLAIMS: Query = Query {
    sql: "\
-- import_rows (claims of the server)
UPDATE server_pending SET claims = given.claims
FROM unnest($1::bytea[], $2::integer[]) AS given (message_id, claims)
WHERE server_pending.message_id = given.message_id",
    types: &[BYTES_LIST, INT_LIST],
};

async fn contact(shared: &Shared, tx: &Tx, row: &ContactRow) -> Worked<bool> {
    let key = &row.key;
    let id = ordered_id(key.time_nanos, &shared.random);
    let values: Values<'_> = &[
        &key.client_id.as_ref(),
        &id.as_slice(),
        &key.time_nanos,
        &key.nonce_sent.cast_signed(),
        &key.nonce_received.cast_signed(),
        &row.address.as_bytes(),
    ];
    Ok(!tx.rows(&INSERT_CONTACT, values).await?.is_empty())
}

const INSERT_CONTACT: Query = Query {
    sql: "\
-- import_rows (contact)
INSERT INTO contacts (client_id, contact_id, time_nanos, nonce_sent, nonce_received, address)
SELECT client_id, $2, $3, $4, $5, $6 FROM clients WHERE client_id = $1
RETURNING 1",
    types: &[BYTES, BYTES, LONG, LONG, LONG, BYTES],
};

/// Links of unknown messages or contacts are left out.
async fn link(tx: &Tx, row: &LinkRow) -> Worked<bool> {
    let key = &row.contact;
    let first = first_id(key.time_nanos);
    let values: Values<'_> = &[
        &key.client_id.as_ref(),
        &first.as_slice(),
        &key.time_nanos,
        &key.nonce_sent.cast_signed(),
        &key.nonce_received.cast_signed(),
        &row.message.as_ref(),
    ];
    tx.rows(&INSERT_LINK, values).await?;
    Ok(true)
}

const INSERT_LINK: Query = Query {
    sql: "\
-- import_rows (link)
INSERT INTO contact_messages (client_id, contact_id, message_id)
SELECT found.client_id, found.contact_id, $6
FROM (
    SELECT client_id, contact_id FROM contacts
    WHERE client_id = $1 AND contact_id >= $2 AND time_nanos = $3
    AND nonce_sent = $4 AND nonce_received = $5
    ORDER BY contact_id LIMIT 1
) AS found
WHERE EXISTS (
    SELECT 1 FROM messages
    WHERE message_id = $6 AND messages.contact_id IS DISTINCT FROM found.contact_id
)
ON CONFLICT DO NOTHING",
    types: &[BYTES, BYTES, LONG, LONG, LONG, BYTES],
};

async fn broadcast(shared: &Shared, tx: &Tx, row: &BroadcastRow) -> Worked<bool> {
    if !broadcasts::insert(tx, &row.record, shared.token()).await? {
        return Ok(false);
    }
    let id: &[u8] = row.record.id.as_ref();
    let values: Values<'_> = &[&id, &row.sent.cast_signed(), &row.allocated.cast_signed()];
    tx.rows(&SET_COUNTERS, values).await?;
    for allocation in &row.allocations {
        let values: Values<'_> = &[
            &id,
            &allocation.id.as_ref(),
            &allocation.sent.cast_signed(),
            &allocation.limit.cast_signed(),
            &allocation.expiry_nanos,
        ];
        tx.rows(&INSERT_ALLOCATION, values).await?;
    }
    Ok(true)
}

const SET_COUNTERS: Query = Query {
    sql: "\
-- import_rows (counters)
UPDATE broadcasts SET sent = $2, allocated = $3 WHERE broadcast_id = $1",
    types: &[BYTES, LONG, LONG],
};

const INSERT_ALLOCATION: Query = Query {
    sql: "\
-- import_rows (allocation)
INSERT INTO allocations (broadcast_id, allocation_id, sent, message_limit, expiry_nanos)
VALUES ($1, $2, $3, $4, $5)",
    types: &[BYTES, BYTES, LONG, LONG, LONG],
};

async fn sent(tx: &Tx, row: &SentRow) -> Worked<bool> {
    let message: Option<&[u8]> = row.message.as_ref().map(AsRef::as_ref);
    let values: Values<'_> = &[&row.client.as_ref(), &row.broadcast.as_ref(), &message];
    Ok(!tx.rows(&INSERT_SENT, values).await?.is_empty())
}

const INSERT_SENT: Query = Query {
    sql: "\
-- import_rows (sent)
INSERT INTO broadcasts_sent (client_id, broadcast_id, message_id)
SELECT $1, $2, $3
WHERE EXISTS (SELECT 1 FROM clients WHERE client_id = $1)
AND EXISTS (SELECT 1 FROM broadcasts WHERE broadcast_id = $2)
ON CONFLICT DO NOTHING
RETURNING 1",
    types: &[BYTES, BYTES, BYTES],
};

async fn file(shared: &Shared, tx: &Tx, row: &FileRow) -> Worked<bool> {
    let mut version = [0; 16];
    shared.random.fill(&mut version);
    let chunks: Vec<&[u8]> = row.content.chunks(CHUNK_BYTES).collect();
    let numbers: Vec<i32> = (0..).take(chunks.len()).collect();
    let values: Values<'_> = &[
        &row.service.as_bytes(),
        &row.name.as_bytes(),
        &row.modified_nanos,
        &version.as_slice(),
        &numbers,
        &chunks,
    ];
    Ok(!tx.rows(&INSERT_FILE, values).await?.is_empty())
}

const INSERT_FILE: Query = Query {
    sql: "\
-- import_rows (file)
WITH added AS (
    INSERT INTO files (service, name, modified_nanos, version) VALUES ($1, $2, $3, $4)
    ON CONFLICT DO NOTHING
    RETURNING service, name, version
), chunks AS (
    INSERT INTO file_chunks (service, name, version, chunk, value)
    SELECT added.service, added.name, added.version, given.chunk, given.value
    FROM added CROSS JOIN unnest($5::integer[], $6::bytea[]) AS given (chunk, value)
)
SELECT 1 FROM added",
    types: &[BYTES, BYTES, LONG, BYTES, INT_LIST, BYTES_LIST],
};

/// Notes how far the copy has come.
pub(super) async fn remember(
    tx: &Tx,
    operation: &'static str,
    before: Option<&Progress>,
    progress: &Progress,
) -> Worked<()> {
    let values: Values<'_> = &[
        &progress.source.as_bytes(),
        &progress.table.map(Table::name),
        &progress.cursor.as_deref(),
        &progress.rows.cast_signed(),
    ];
    let query = if before.is_some() {
        &REMEMBER
    } else {
        &BEGIN_COPY
    };
    if tx.rows(query, values).await?.is_empty() {
        let detail = "somebody else copies into this store at the same time";
        let error = Error::new(ErrorKind::Transient, operation, detail);
        return Err(error.with_outcome(Outcome::NotApplied).into());
    }
    Ok(())
}

const BEGIN_COPY: Query = Query {
    sql: "\
-- import_rows (first)
INSERT INTO copies (source, table_name, place, row_count) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING
RETURNING 1",
    types: &[BYTES, TEXT, BYTES, LONG],
};

const REMEMBER: Query = Query {
    sql: "\
-- import_rows (progress)
UPDATE copies SET table_name = $2, place = $3, row_count = $4 WHERE source = $1
RETURNING 1",
    types: &[BYTES, TEXT, BYTES, LONG],
};

/// Returns how far a copy has come, and keeps others from going on.
pub(super) async fn progress(tx: &Tx) -> Worked<Option<Progress>> {
    let rows = tx.rows(&READ_PROGRESS, &[]).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let table: Option<String> = row.try_get(1)?;
    let source: Vec<u8> = row.try_get(0)?;
    Ok(Some(Progress {
        source: String::from_utf8_lossy(&source).into_owned(),
        table: table.and_then(|name| Table::named(&name)),
        cursor: row.try_get::<_, Option<Vec<u8>>>(2)?.map(Bytes::from),
        rows: row.try_get::<_, i64>(3)?.cast_unsigned(),
    }))
}

const READ_PROGRESS: Query = Query {
    sql: "\
-- imported
SELECT source, table_name, place, row_count FROM copies FOR UPDATE",
    types: &[],
};
