//! Contacts of clients, and which messages belong to them.

use fleethold_proto::fleetspeak::server::ClientContact;
use fleethold_store::clock::{epoch_nanos, timestamp_from_epoch_nanos};
use fleethold_store::record::ContactRecord;
use fleethold_store::{ClientId, Error};
use rusqlite::{Connection, params};

use crate::error::Worked;
use crate::rows::array;
use crate::writer::Tx;

/// Records a contact now and returns its number.
pub(crate) fn record(tx: &Tx<'_>, operation: &'static str, contact: &ContactRecord) -> Worked<i64> {
    let client = contact.client_id.as_bytes();
    let time_nanos = epoch_nanos(tx.clock().now());
    let known = tx.prepare_cached(UPDATE_CLIENT)?.execute(params![
        client,
        time_nanos,
        contact.addr,
        contact.streaming_to,
        contact.client_clock.map(|clock| clock.seconds),
        contact.client_clock.map(|clock| clock.nanos),
    ])?;
    if known == 0 {
        let detail = format!("client {} does not exist", contact.client_id);
        return Err(Error::not_found(operation, detail).into());
    }
    tx.prepare_cached(INSERT_CONTACT)?.execute(params![
        client,
        time_nanos,
        contact.nonce_sent.cast_signed(),
        contact.nonce_received.cast_signed(),
        contact.addr,
    ])?;
    Ok(tx.last_insert_rowid())
}

const UPDATE_CLIENT: &str = "\
-- record_client_contact (client)
UPDATE clients
SET last_contact_nanos = ?2, last_contact_address = ?3, last_contact_streaming_to = ?4,
    last_clock_seconds = ?5, last_clock_nanos = ?6
WHERE client_id = ?1";

const INSERT_CONTACT: &str = "\
-- record_client_contact (contact)
INSERT INTO contacts (client_id, time_nanos, nonce_sent, nonce_received, address)
VALUES (?1, ?2, ?3, ?4, ?5)";

pub(crate) fn exists(connection: &Connection, contact: i64) -> Worked<bool> {
    Ok(connection
        .prepare_cached(EXISTS)?
        .query_row([contact], |row| row.get(0))?)
}

const EXISTS: &str = "\
-- contact_exists
SELECT EXISTS (SELECT 1 FROM contacts WHERE contact = ?1)";

/// Links stored messages to a contact, those that it brought excepted.
pub(crate) fn link(tx: &Tx<'_>, contact: i64, messages: Vec<i64>) -> Worked<()> {
    tx.prepare_cached(LINK)?
        .execute(params![contact, array(messages)])?;
    Ok(())
}

const LINK: &str = "\
-- link_messages_to_contact
INSERT INTO contact_messages (contact, message)
SELECT ?1, message FROM messages
WHERE message IN rarray(?2) AND contact IS NOT ?1
ON CONFLICT DO NOTHING";

/// The place of a contact in the list of its client: time and number.
pub(crate) type Place = (i64, i64);

/// Returns at most `limit` contacts of a client after a place, and the last place.
pub(crate) fn page(
    connection: &Connection,
    client: ClientId,
    after: Option<Place>,
    limit: usize,
) -> Worked<(Vec<ClientContact>, Option<Place>)> {
    let (time_nanos, contact) = after.unwrap_or((i64::MIN, i64::MIN));
    let mut statement = connection.prepare_cached(PAGE)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![client.as_bytes(), time_nanos, contact, limit])?;
    let (mut contacts, mut last) = (Vec::new(), None);
    while let Some(row) = rows.next()? {
        let time_nanos = row.get(1)?;
        last = Some((time_nanos, row.get(0)?));
        contacts.push(ClientContact {
            sent_nonce: row.get::<_, i64>(2)?.cast_unsigned(),
            received_nonce: row.get::<_, i64>(3)?.cast_unsigned(),
            observed_address: row.get(4)?,
            timestamp: Some(timestamp_from_epoch_nanos(time_nanos)),
        });
    }
    Ok((contacts, last))
}

const PAGE: &str = "\
-- list_client_contacts
SELECT contact, time_nanos, nonce_sent, nonce_received, address
FROM contacts INDEXED BY contacts_of_client
WHERE client_id = ?1 AND (time_nanos, contact) > (?2, ?3)
ORDER BY time_nanos, contact LIMIT ?4";
