//! Contacts of clients and the messages linked to them.

use fleethold_proto::fleetspeak::server::ClientContact;
use fleethold_store::clock::timestamp_from_epoch_nanos;
use fleethold_store::record::ContactRecord;
use fleethold_store::{ClientId, MessageId};

use crate::error::Worked;
use crate::rows::take;
use crate::sql::{Batch, List, MOST_ROWS, Value};
use crate::transaction::Tx;

/// Adds the statements that record a contact: the client's row first, because
/// the foreign key would lock it otherwise and two contacts would wait for each other.
pub(crate) fn record(batch: &mut Batch, contact: &ContactRecord, now_nanos: i64) {
    touch(batch, contact, now_nanos);
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

/// At which of the statements of [`record`] the contact gets its number.
pub(crate) const INSERTED: usize = 1;

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
/// its nonces are random numbers of 64 bits.
pub(crate) async fn find(
    tx: &mut Tx,
    contact: &ContactRecord,
    now_nanos: i64,
) -> Worked<Option<i64>> {
    let batch = Batch::of(
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
