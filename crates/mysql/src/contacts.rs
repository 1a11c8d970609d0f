//! Contacts of clients and the messages linked to them.

use std::collections::HashMap;

use fleethold_proto::fleetspeak::server::ClientContact;
use fleethold_store::clock::timestamp_from_epoch_nanos;
use fleethold_store::record::ContactRecord;
use fleethold_store::{ClientId, MessageId};

use crate::error::{Failure, Worked};
use crate::rows::{take, take_id};
use crate::sql::{Batch, List, MOST_ROWS, Value};
use crate::transaction::{Reply, Tx};

/// Adds the statement that records a contact; behind [`touch`], because the
/// foreign key would lock the client's row otherwise and two contacts would wait
/// for each other.
pub(crate) fn insert(batch: &mut Batch, contact: &ContactRecord, now_nanos: i64) {
    batch.add(
        INSERT_CONTACT,
        &[
            Value::Bytes(contact.client_id.as_bytes()),
            Value::Int(now_nanos),
            Value::Bytes(&contact.nonce_sent.to_le_bytes()),
            Value::Bytes(&contact.nonce_received.to_le_bytes()),
            Value::Text(&contact.addr),
        ],
    );
}

/// Adds the statement that notes a contact in the client's row.
pub(crate) fn touch(batch: &mut Batch, contact: &ContactRecord, now_nanos: i64) {
    batch.add(
        TOUCH_CLIENT,
        &[
            Value::Int(now_nanos),
            Value::Text(&contact.addr),
            contact.streaming_to.as_deref().into(),
            contact.client_clock.map(|clock| clock.seconds).into(),
            contact
                .client_clock
                .map(|clock| i64::from(clock.nanos))
                .into(),
            Value::Bytes(contact.client_id.as_bytes()),
        ],
    );
}

const TOUCH_CLIENT: &str = "\
-- record_client_contact (client)
UPDATE clients
SET
    last_contact_time = ?, last_contact_address = ?, last_contact_streaming_to = ?,
    last_clock_seconds = ?, last_clock_nanos = ?
WHERE client_id = ?";

const INSERT_CONTACT: &str = "\
-- record_client_contact
INSERT INTO client_contacts (client_id, time, sent_nonce, received_nonce, address)
VALUES (?, ?, ?, ?, ?)";

/// Returns the number of a contact that an earlier attempt may have recorded:
/// its nonces are random numbers of 64 bits. Who touches the client waits for
/// the commit of that attempt, which may be on its way.
pub(crate) async fn find(
    tx: &mut Tx,
    contact: &ContactRecord,
    now_nanos: i64,
) -> Worked<Option<i64>> {
    let mut batch = Batch::default();
    touch(&mut batch, contact, now_nanos);
    batch.add(
        FIND_CONTACT,
        &[
            Value::Bytes(contact.client_id.as_bytes()),
            Value::Int(now_nanos),
            Value::Bytes(&contact.nonce_sent.to_le_bytes()),
            Value::Bytes(&contact.nonce_received.to_le_bytes()),
        ],
    );
    let replies = tx.run(batch).await?;
    let mut rows = replies.into_iter().flat_map(|reply| reply.rows);
    rows.next().map(|mut row| take(&mut row, 0)).transpose()
}

const FIND_CONTACT: &str = "\
-- record_client_contact (replayed)
SELECT client_contact_id FROM client_contacts
WHERE client_id = ? AND time = ? AND sent_nonce = ? AND received_nonce = ? LIMIT 1";

/// A contact of several, and when it was made.
pub(crate) type Made<'a> = (&'a ContactRecord, i64);

/// As [`insert`], for contacts of clients that differ.
pub(crate) fn insert_all(batch: &mut Batch, contacts: &[Made<'_>]) {
    let nonces = nonces(contacts);
    let rows = contacts.iter().zip(&nonces);
    let rows = rows.map(|((contact, now_nanos), (sent, received))| {
        [
            Value::Bytes(contact.client_id.as_bytes()),
            Value::Int(*now_nanos),
            Value::Bytes(sent),
            Value::Bytes(received),
            Value::Text(&contact.addr),
        ]
    });
    let rows = List::rows(CONTACT_ROW, ", ", rows);
    batch.add(INSERT_CONTACTS, &[Value::List(&rows)]);
}

/// As [`touch`], for contacts of clients that differ.
pub(crate) fn touch_all(batch: &mut Batch, contacts: &[Made<'_>]) {
    if contacts.is_empty() {
        return;
    }
    let rows = contacts.iter().map(|(contact, now_nanos)| {
        let clock = contact.client_clock;
        [
            Value::Bytes(contact.client_id.as_bytes()),
            Value::Int(*now_nanos),
            Value::Text(&contact.addr),
            contact.streaming_to.as_deref().into(),
            clock.map(|clock| clock.seconds).into(),
            clock.map(|clock| i64::from(clock.nanos)).into(),
        ]
    });
    let table = List::table(
        "SELECT ? AS id, ? AS time, ? AS address, ? AS streaming_to, ? AS seconds, ? AS nanos",
        "SELECT ?, ?, ?, ?, ?, ?",
        rows,
    );
    batch.add(TOUCH_CLIENTS, &[Value::List(&table)]);
}

/// Reads by how much the numbers of contacts differ that one statement makes;
/// stands behind [`insert_all`].
pub(crate) const READ_STEP: &str = "\
-- store_contacts (step)
SELECT @@auto_increment_increment";

/// Returns the number of the first contact of [`insert`] or [`insert_all`].
pub(crate) fn inserted(replies: &[Reply], at: usize) -> i64 {
    let number = replies.get(at).map_or(0, |reply| reply.last_insert_id);
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn lost() -> Failure {
    Failure::Unreadable("a contact that was just recorded has no number".into())
}

// Locks in the order of the rows.
const TOUCH_CLIENTS: &str = "\
-- store_contacts (clients)
UPDATE (?) AS given STRAIGHT_JOIN clients ON clients.client_id = given.id
SET
    clients.last_contact_time = given.time,
    clients.last_contact_address = given.address,
    clients.last_contact_streaming_to = given.streaming_to,
    clients.last_clock_seconds = given.seconds,
    clients.last_clock_nanos = given.nanos";

const CONTACT_ROW: &str = "(?, ?, ?, ?, ?)";

// One of its rows after the other gets the next number.
const INSERT_CONTACTS: &str = "\
-- store_contacts
INSERT INTO client_contacts (client_id, time, sent_nonce, received_nonce, address)
VALUES ?";

/// As [`find`], for contacts of clients that differ.
pub(crate) async fn find_all(tx: &mut Tx, contacts: &[Made<'_>]) -> Worked<HashMap<ClientId, i64>> {
    let nonces = nonces(contacts);
    let rows = contacts.iter().zip(&nonces);
    let rows = rows.map(|((contact, now_nanos), (sent, received))| {
        [
            Value::Bytes(contact.client_id.as_bytes()),
            Value::Int(*now_nanos),
            Value::Bytes(sent),
            Value::Bytes(received),
        ]
    });
    let table = List::table(
        "SELECT ? AS id, ? AS time, ? AS sent, ? AS received",
        "SELECT ?, ?, ?, ?",
        rows,
    );
    let mut batch = Batch::default();
    touch_all(&mut batch, contacts);
    batch.add(FIND_CONTACTS, &[Value::List(&table)]);
    let mut found = HashMap::with_capacity(contacts.len());
    for mut row in tx
        .run(batch)
        .await?
        .into_iter()
        .flat_map(|reply| reply.rows)
    {
        found.insert(take_id(&mut row, 0)?, take(&mut row, 1)?);
    }
    Ok(found)
}

const FIND_CONTACTS: &str = "\
-- store_contacts (replayed)
SELECT client_contacts.client_id, client_contacts.client_contact_id
FROM (?) AS given STRAIGHT_JOIN client_contacts
    ON client_contacts.client_id = given.id AND client_contacts.time = given.time
    AND client_contacts.sent_nonce = given.sent
    AND client_contacts.received_nonce = given.received";

/// Returns the numbers of contacts that the same transaction has recorded, the
/// first one with number `first`.
pub(crate) async fn numbers(
    tx: &mut Tx,
    contacts: &[Made<'_>],
    first: i64,
) -> Worked<HashMap<ClientId, i64>> {
    let clients = List::ids(contacts.iter().map(|(contact, _)| &contact.client_id));
    let batch = Batch::of(READ_NUMBERS, &[Value::Int(first), Value::List(&clients)]);
    let nonces = nonces(contacts);
    let made: HashMap<_, _> = contacts
        .iter()
        .zip(&nonces)
        .map(|((contact, now_nanos), nonces)| (contact.client_id, (*now_nanos, nonces)))
        .collect();
    let mut found = HashMap::with_capacity(contacts.len());
    for mut row in tx
        .run(batch)
        .await?
        .into_iter()
        .flat_map(|reply| reply.rows)
    {
        let client: ClientId = take_id(&mut row, 0)?;
        let time: Option<i64> = take(&mut row, 2)?;
        let [sent, received]: [Option<Vec<u8>>; 2] = [take(&mut row, 3)?, take(&mut row, 4)?];
        let is_it = made.get(&client).is_some_and(|(made, nonces)| {
            time == Some(*made)
                && sent.as_deref() == Some(&nonces.0)
                && received.as_deref() == Some(&nonces.1)
        });
        if is_it {
            found.insert(client, take(&mut row, 1)?);
        }
    }
    Ok(found)
}

fn nonces(contacts: &[Made<'_>]) -> Vec<([u8; 8], [u8; 8])> {
    let nonces = contacts.iter().map(|(contact, _)| contact);
    nonces
        .map(|contact| {
            let sent = contact.nonce_sent.to_le_bytes();
            (sent, contact.nonce_received.to_le_bytes())
        })
        .collect()
}

// Only what came since is read.
const READ_NUMBERS: &str = "\
-- store_contacts (numbers)
SELECT client_id, client_contact_id, time, sent_nonce, received_nonce
FROM client_contacts FORCE INDEX (PRIMARY)
WHERE client_contact_id >= ? AND client_id IN (?)";

/// Adds the statements that link messages to the contacts with these numbers.
pub(crate) fn link_all(batch: &mut Batch, numbers: &[i64], messages: &[Vec<MessageId>]) {
    link_given(batch, LINK_ALL, numbers.iter().copied(), messages);
}

/// As [`link_all`], to the contacts that the same transaction has recorded.
pub(crate) fn link_all_to_new(batch: &mut Batch, messages: &[Vec<MessageId>]) {
    link_given(batch, LINK_ALL_TO_NEW, 0.., messages);
}

fn link_given(
    batch: &mut Batch,
    sql: &'static str,
    numbers: impl Iterator<Item = i64>,
    messages: &[Vec<MessageId>],
) {
    let links = numbers.zip(messages);
    let links: Vec<_> = links
        .flat_map(|(number, ids)| ids.iter().map(move |id| (number, id)))
        .collect();
    for slice in links.chunks(MOST_ROWS) {
        let rows = slice
            .iter()
            .map(|(number, id)| [Value::Int(*number), Value::Bytes(id.as_bytes())]);
        let table = List::table("SELECT ? AS contact, ? AS id", "SELECT ?, ?", rows);
        batch.add(sql, &[Value::List(&table)]);
    }
}

const LINK_ALL: &str = "\
-- store_contacts (links)
INSERT INTO client_contact_messages (client_contact_id, message_id)
SELECT given.contact, messages.message_id
FROM (?) AS given STRAIGHT_JOIN messages ON messages.message_id = given.id
ON DUPLICATE KEY UPDATE message_id = client_contact_messages.message_id";

const LINK_ALL_TO_NEW: &str = "\
-- store_contacts (links to new)
INSERT INTO client_contact_messages (client_contact_id, message_id)
SELECT LAST_INSERT_ID() + given.contact * @@auto_increment_increment, messages.message_id
FROM (?) AS given STRAIGHT_JOIN messages ON messages.message_id = given.id
ON DUPLICATE KEY UPDATE message_id = client_contact_messages.message_id";

/// Adds the statements that link those of the messages that exist to a contact
/// if that exists.
pub(crate) fn link(batch: &mut Batch, contact: i64, ids: &[MessageId]) {
    for slice in ids.chunks(MOST_ROWS) {
        let ids = List::ids(slice);
        batch.add(LINK, &[Value::Int(contact), Value::List(&ids)]);
    }
}

/// As [`link`], to the contact that the same transaction has recorded.
pub(crate) fn link_to_new(batch: &mut Batch, ids: &[MessageId]) {
    for slice in ids.chunks(MOST_ROWS) {
        let ids = List::ids(slice);
        batch.add(LINK_TO_NEW, &[Value::List(&ids)]);
    }
}

const LINK: &str = "\
-- link_messages_to_contact
INSERT INTO client_contact_messages (client_contact_id, message_id)
SELECT client_contacts.client_contact_id, messages.message_id
FROM client_contacts STRAIGHT_JOIN messages
WHERE client_contacts.client_contact_id = ? AND messages.message_id IN (?)
ON DUPLICATE KEY UPDATE message_id = client_contact_messages.message_id";

const LINK_TO_NEW: &str = "\
-- store_contact (links)
INSERT INTO client_contact_messages (client_contact_id, message_id)
SELECT LAST_INSERT_ID(), messages.message_id FROM messages WHERE messages.message_id IN (?)
ON DUPLICATE KEY UPDATE message_id = client_contact_messages.message_id";

pub(crate) const CONTACT_EXISTS: &str = "\
-- link_messages_to_contact (check)
SELECT 1 FROM client_contacts WHERE client_contact_id = ?";

/// The place of a contact in the order of the client's contacts.
pub(crate) type Place = (i64, i64);

/// Returns the places of all contacts of a client, in order: (time in ns, number).
pub(crate) async fn places(tx: &mut Tx, client: ClientId) -> Worked<Vec<Place>> {
    let batch = Batch::of(PLACES, &[Value::Bytes(client.as_bytes())]);
    let mut places = Vec::new();
    for mut row in tx
        .only(batch)
        .await?
        .into_iter()
        .flat_map(|reply| reply.rows)
    {
        places.push((take(&mut row, 0)?, take(&mut row, 1)?));
    }
    places.sort_unstable();
    Ok(places)
}

/// Returns the contacts at these places that still exist.
pub(crate) async fn read(tx: &mut Tx, places: &[Place]) -> Worked<Vec<ClientContact>> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let numbers = places.iter().map(|(_, number)| [Value::Int(*number)]);
    let numbers = List::rows("?", ", ", numbers);
    let batch = Batch::of(READ_CONTACTS, &[Value::List(&numbers)]);
    let mut found = Vec::with_capacity(places.len());
    for mut row in tx
        .only(batch)
        .await?
        .into_iter()
        .flat_map(|reply| reply.rows)
    {
        let nonce = |bytes: Option<Vec<u8>>| {
            let bytes = bytes.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
            bytes.map(u64::from_le_bytes).unwrap_or_default()
        };
        let place: Place = (take(&mut row, 1)?, take(&mut row, 0)?);
        let contact = ClientContact {
            sent_nonce: nonce(take(&mut row, 2)?),
            received_nonce: nonce(take(&mut row, 3)?),
            observed_address: take::<Option<String>>(&mut row, 4)?.unwrap_or_default(),
            timestamp: Some(timestamp_from_epoch_nanos(place.0)),
        };
        found.push((place, contact));
    }
    found.sort_unstable_by_key(|(place, _)| *place);
    Ok(found.into_iter().map(|(_, contact)| contact).collect())
}

// By the index that the foreign key needs; one on the time as well would cost
// a write for each contact.
const PLACES: &str = "\
-- list_client_contacts (places)
SELECT time, client_contact_id FROM client_contacts WHERE client_id = ?";

const READ_CONTACTS: &str = "\
-- list_client_contacts
SELECT client_contact_id, time, sent_nonce, received_nonce, address
FROM client_contacts WHERE client_contact_id IN (?)";
