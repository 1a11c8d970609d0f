//! Writing rows of another store.

use fleethold_store::maintenance::{
    BroadcastRow, ClientRow, ContactKey, ContactRow, FileRow, LinkRow, MessageRow, Progress, Row,
    SentRow, Table,
};
use fleethold_store::{Error, ErrorKind};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use crate::clients::add_labels;
use crate::error::{Failure, Worked};
use crate::messages::insert_as_it_is;
use crate::writer::Tx;
use crate::{broadcasts, usage};

/// Adds rows as they are.
pub(crate) fn rows(tx: &Tx<'_>, operation: &'static str, rows: &[Row]) -> Worked<()> {
    for row in rows {
        let added = match row {
            Row::Client(row) => client(tx, row),
            Row::Message(row) => message(tx, row),
            Row::Contact(row) => contact(tx, row),
            Row::Link(row) => link(tx, row),
            Row::Usage(client, record) => usage::insert(tx, *client, record),
            Row::Broadcast(row) => broadcast(tx, operation, row),
            Row::Sent(row) => sent(tx, row),
            Row::File(row) => file(tx, row),
        };
        added.map_err(|failure| match failure {
            Failure::Database(error)
                if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) =>
            {
                let detail = format!("{row} exists, or refers to a row that does not");
                Error::new(ErrorKind::AlreadyExists, operation, detail)
                    .with_source(error)
                    .into()
            }
            failure => failure,
        })?;
    }
    Ok(())
}

fn client(tx: &Tx<'_>, row: &ClientRow) -> Worked<()> {
    tx.prepare_cached(INSERT_CLIENT)?.execute(params![
        row.id.as_bytes(),
        &row.public_key[..],
        row.blacklisted,
        row.last_contact_nanos,
        row.last_contact_address,
        row.last_contact_streaming_to,
        row.last_clock.map(|clock| clock.seconds),
        row.last_clock.map(|clock| clock.nanos),
    ])?;
    add_labels(tx, row.id, &row.labels)
}

const INSERT_CLIENT: &str = "\
-- import_rows (client)
INSERT INTO clients (
    client_id, public_key, blacklisted, last_contact_nanos, last_contact_address,
    last_contact_streaming_to, last_clock_seconds, last_clock_nanos
)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

fn message(tx: &Tx<'_>, row: &MessageRow) -> Worked<()> {
    let Some(message) = insert_as_it_is(tx, &row.record, row.due_micros)? else {
        let detail = format!("message {} exists", row.record.id);
        return Err(Error::new(ErrorKind::AlreadyExists, "import_rows", detail).into());
    };
    if row.claims > 0 {
        tx.prepare_cached(SET_CLAIMS)?
            .execute(params![message, row.claims])?;
    }
    Ok(())
}

const SET_CLAIMS: &str = "\
-- import_rows (claims)
UPDATE messages SET claims = ?2 WHERE message = ?1";

fn contact(tx: &Tx<'_>, row: &ContactRow) -> Worked<()> {
    let key = &row.key;
    tx.prepare_cached(INSERT_CONTACT)?.execute(params![
        key.client_id.as_bytes(),
        key.time_nanos,
        key.nonce_sent.cast_signed(),
        key.nonce_received.cast_signed(),
        row.address,
    ])?;
    Ok(())
}

const INSERT_CONTACT: &str = "\
-- import_rows (contact)
INSERT INTO contacts (client_id, time_nanos, nonce_sent, nonce_received, address)
VALUES (?1, ?2, ?3, ?4, ?5)";

fn link(tx: &Tx<'_>, row: &LinkRow) -> Worked<()> {
    let contact = find_contact(tx, &row.contact)?;
    let message = tx.ids().want(row.message).find(tx)?;
    let (Some(contact), Some(message)) = (contact, message) else {
        return Ok(());
    };
    let brought = tx.prepare_cached(SET_CONTACT)?.execute(params![
        contact,
        message,
        row.contact.client_id.as_bytes()
    ])?;
    if brought == 0 {
        tx.prepare_cached(INSERT_LINK)?
            .execute(params![contact, message])?;
    }
    Ok(())
}

fn find_contact(tx: &Tx<'_>, key: &ContactKey) -> Worked<Option<i64>> {
    Ok(tx
        .prepare_cached(FIND_CONTACT)?
        .query_row(
            params![
                key.client_id.as_bytes(),
                key.time_nanos,
                key.nonce_sent.cast_signed(),
                key.nonce_received.cast_signed(),
            ],
            |row| row.get(0),
        )
        .optional()?)
}

const FIND_CONTACT: &str = "\
-- import_rows (find contact)
SELECT contact FROM contacts
WHERE client_id = ?1 AND time_nanos = ?2 AND nonce_sent = ?3 AND nonce_received = ?4
ORDER BY contact LIMIT 1";

// The first contact of a message from the client is the one that brought it.
const SET_CONTACT: &str = "\
-- import_rows (contact of message)
UPDATE messages SET contact = ?1
WHERE message = ?2 AND contact IS NULL AND source_client = ?3";

const INSERT_LINK: &str = "\
-- import_rows (link)
INSERT INTO contact_messages (contact, message) VALUES (?1, ?2) ON CONFLICT DO NOTHING";

fn broadcast(tx: &Tx<'_>, operation: &'static str, row: &BroadcastRow) -> Worked<()> {
    let id = row.record.id.as_bytes();
    broadcasts::insert(tx, operation, &row.record)?;
    tx.prepare_cached(SET_COUNTERS)?.execute(params![
        id,
        row.sent.cast_signed(),
        row.allocated.cast_signed()
    ])?;
    let mut statement = tx.prepare_cached(INSERT_ALLOCATION)?;
    for allocation in &row.allocations {
        statement.execute(params![
            id,
            allocation.id.as_bytes(),
            allocation.sent.cast_signed(),
            allocation.limit.cast_signed(),
            allocation.expiry_nanos,
        ])?;
    }
    Ok(())
}

const SET_COUNTERS: &str = "\
-- import_rows (counters)
UPDATE broadcasts SET sent = ?2, allocated = ?3 WHERE broadcast_id = ?1";

const INSERT_ALLOCATION: &str = "\
-- import_rows (allocation)
INSERT INTO allocations (broadcast_id, allocation_id, sent, message_limit, expiry_nanos)
VALUES (?1, ?2, ?3, ?4, ?5)";

fn sent(tx: &Tx<'_>, row: &SentRow) -> Worked<()> {
    /// No message has this number.
    const UNKNOWN: i64 = 0;
    let message = match row.message {
        Some(id) => tx.ids().want(id).find(tx)?,
        None => None,
    };
    tx.prepare_cached(INSERT_SENT)?.execute(params![
        row.client.as_bytes(),
        row.broadcast.as_bytes(),
        message.unwrap_or(UNKNOWN)
    ])?;
    Ok(())
}

const INSERT_SENT: &str = "\
-- import_rows (sent)
INSERT INTO broadcasts_sent (client_id, broadcast_id, message) VALUES (?1, ?2, ?3)";

fn file(tx: &Tx<'_>, row: &FileRow) -> Worked<()> {
    tx.prepare_cached(INSERT_FILE)?.execute(params![
        row.service,
        row.name,
        row.modified_nanos,
        &row.content[..]
    ])?;
    Ok(())
}

const INSERT_FILE: &str = "\
-- import_rows (file)
INSERT INTO files (service, name, modified_nanos, content) VALUES (?1, ?2, ?3, ?4)";

/// Notes how far the copy has come.
pub(crate) fn remember(tx: &Tx<'_>, progress: &Progress) -> Worked<()> {
    tx.prepare_cached(REMEMBER)?.execute(params![
        progress.source,
        progress.table.map(Table::name),
        progress.cursor.as_deref(),
        progress.rows.cast_signed(),
    ])?;
    Ok(())
}

const REMEMBER: &str = "\
-- import_rows (progress)
INSERT INTO copies (source, table_name, place, row_count) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (source) DO UPDATE
SET table_name = excluded.table_name, place = excluded.place, row_count = excluded.row_count";

/// Returns how far a copy has come.
pub(crate) fn progress(connection: &Connection) -> Worked<Option<Progress>> {
    Ok(connection
        .prepare_cached(READ_PROGRESS)?
        .query_row((), |row| {
            let table: Option<String> = row.get(1)?;
            let cursor: Option<Vec<u8>> = row.get(2)?;
            Ok(Progress {
                source: row.get(0)?,
                table: table.and_then(|name| Table::named(&name)),
                cursor: cursor.map(Into::into),
                rows: row.get::<_, i64>(3)?.cast_unsigned(),
            })
        })
        .optional()?)
}

const READ_PROGRESS: &str = "\
-- imported
SELECT source, table_name, place, row_count FROM copies";
