//! Reading tables page by page.
//!
//! Rows of stock servers lack what they have no column for, and may hold NULL
//! where this store writes a value: both are read as that value.

use std::collections::HashMap;

use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::Label;
use fleethold_store::limits::MAX_CLAIM_BYTES;
use fleethold_store::maintenance::{
    AllocationRow, BroadcastRow, ClientRow, ContactKey, ContactRow, Cursor, FileRow, LinkRow,
    MessageRow, Page, Row as StoreRow, SentRow, Table,
};
use fleethold_store::{AllocationId, BroadcastId, ClientId, Error, MessageId};
use mysql_async::Row;

use crate::broadcasts::broadcast;
use crate::clients::sort;
use crate::error::Worked;
use crate::rows::{self, take, take_id};
use crate::sql::{Batch, List, MOST_ROWS, Value};
use crate::transaction::Tx;

pub(super) const OPERATION: &str = "export_rows";

/// The bytes of the ids that places are made of.
const CLIENT: usize = 8;
const NUMBER: usize = 8;

/// Returns at most `limit` rows of a table after a place; no place is the beginning.
///
/// Places are the keys of the tables, so that a page costs the same wherever it is.
pub(super) async fn page(tx: &mut Tx, table: Table, after: &Cursor, limit: usize) -> Worked<Page> {
    tx.take_time();
    let mut scan = Scan { tx, after, limit };
    match table {
        Table::Clients => scan.clients().await,
        Table::Messages => scan.messages().await,
        Table::Contacts => scan.contacts().await,
        Table::Links => scan.links().await,
        // These have no key; see records.rs.
        Table::Usage => Ok(Page::default()),
        Table::Broadcasts => scan.broadcasts().await,
        Table::Sent => scan.sent().await,
        Table::Files => scan.files().await,
    }
}

struct Scan<'a> {
    tx: &'a mut Tx,
    after: &'a Cursor,
    limit: usize,
}

impl Scan<'_> {
    fn limit(&self) -> Value<'static> {
        Value::Unsigned(u64::try_from(self.limit).unwrap_or(u64::MAX))
    }

    async fn rows(&mut self, sql: &'static str, values: &[Value<'_>]) -> Worked<Vec<Row>> {
        let replies = self.tx.run(Batch::of(sql, values)).await?;
        Ok(replies.into_iter().flat_map(|reply| reply.rows).collect())
    }

    /// Makes a page of all rows; the place of the last one is where to go on.
    fn page(&self, read: Vec<(StoreRow, Cursor)>) -> Page {
        let is_full = read.len() >= self.limit;
        let next = read.last().map(|(_, place)| place.clone());
        Page {
            next: next.filter(|_| is_full),
            rows: read.into_iter().map(|(row, _)| row).collect(),
        }
    }

    /// Reads the keys of the next rows and how many bytes each has, and returns
    /// those that fit into a page, with whether they are the last.
    async fn fitting(
        &mut self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> Worked<(Vec<Row>, bool)> {
        let mut found = self.rows(sql, values).await?;
        let mut bytes = 0;
        let mut fitting = 0;
        for row in &mut found {
            bytes += take::<u64>(row, 0)?;
            fitting += 1;
            if bytes >= MAX_CLAIM_BYTES as u64 {
                break;
            }
        }
        let is_last = fitting == found.len() && found.len() < self.limit;
        found.truncate(fitting);
        Ok((found, is_last))
    }

    async fn clients(&mut self) -> Worked<Page> {
        let values = [Value::Bytes(self.after), self.limit()];
        let found = self.rows(CLIENTS, &values).await?;
        let mut read = Vec::with_capacity(found.len());
        for mut row in found {
            let row = &mut row;
            let id: ClientId = take_id(row, 0)?;
            let seconds: Option<i64> = take(row, 6)?;
            let nanos: Option<i32> = take(row, 7)?;
            read.push(ClientRow {
                id,
                public_key: take::<Option<Vec<u8>>>(row, 1)?.unwrap_or_default().into(),
                blacklisted: take(row, 2)?,
                labels: Vec::new(),
                last_contact_nanos: take(row, 3)?,
                last_contact_address: take::<Option<String>>(row, 4)?.unwrap_or_default(),
                last_contact_streaming_to: take(row, 5)?,
                last_clock: seconds
                    .zip(nanos)
                    .map(|(seconds, nanos)| Timestamp { seconds, nanos }),
            });
        }
        let ids: Vec<_> = read.iter().map(|row| row.id).collect();
        let mut labels: HashMap<ClientId, Vec<Label>> = self.labels(CLIENT_LABELS, &ids).await?;
        let rows = read.into_iter().map(|mut row| {
            row.labels = labels.remove(&row.id).unwrap_or_default();
            let place = row.id.to_bytes();
            (StoreRow::Client(row), place)
        });
        Ok(self.page(rows.collect()))
    }

    /// Reads the labels of clients or broadcasts, in order.
    async fn labels<I>(&mut self, sql: &'static str, ids: &[I]) -> Worked<HashMap<I, Vec<Label>>>
    where
        I: AsRef<[u8]> + Eq + std::hash::Hash,
        I: for<'b> TryFrom<&'b [u8], Error = fleethold_store::IdError>,
    {
        let mut labels: HashMap<I, Vec<Label>> = HashMap::new();
        for ids in ids.chunks(MOST_ROWS) {
            let ids = List::ids(ids);
            for mut row in self.rows(sql, &[Value::List(&ids)]).await? {
                labels
                    .entry(take_id(&mut row, 0)?)
                    .or_default()
                    .push(Label {
                        service_name: take(&mut row, 1)?,
                        label: take(&mut row, 2)?,
                    });
            }
        }
        labels.values_mut().for_each(|labels| sort(labels));
        Ok(labels)
    }

    async fn messages(&mut self) -> Worked<Page> {
        let values = [Value::Bytes(self.after), self.limit()];
        let (mut keys, is_last) = self.fitting(MESSAGE_KEYS, &values).await?;
        let Some(last) = keys.last_mut() else {
            return Ok(Page::default());
        };
        let last: MessageId = take_id(last, 1)?;
        let values = [Value::Bytes(self.after), Value::Bytes(last.as_bytes())];
        let mut rows = Vec::with_capacity(keys.len());
        for mut row in self.rows(MESSAGES, &values).await? {
            let mut record = rows::message(&mut row)?;
            let due_micros: Option<i64> = take(&mut row, 17)?;
            let claims: Option<u32> = take(&mut row, 18)?;
            // Stock servers may leave a pending row behind a result.
            let is_pending = record.result.is_none();
            if !is_pending {
                record.data = None;
            }
            rows.push(StoreRow::Message(MessageRow {
                record,
                due_micros: due_micros.filter(|_| is_pending),
                claims: claims.filter(|_| is_pending).unwrap_or_default(),
            }));
        }
        let next = (!is_last).then(|| last.to_bytes());
        Ok(Page { rows, next })
    }

    async fn contacts(&mut self) -> Worked<Page> {
        let after = Value::Unsigned(number(self.after)?);
        let found = self.rows(CONTACTS, &[after, self.limit()]).await?;
        let mut read = Vec::with_capacity(found.len());
        for mut row in found {
            let place: u64 = take(&mut row, 0)?;
            let contact = ContactRow {
                key: contact_key(&mut row, 1)?,
                address: take::<Option<String>>(&mut row, 5)?.unwrap_or_default(),
            };
            let place = Bytes::copy_from_slice(&place.to_be_bytes());
            read.push((StoreRow::Contact(contact), place));
        }
        Ok(self.page(read))
    }

    async fn links(&mut self) -> Worked<Page> {
        let (contact, message) = self.split(NUMBER)?;
        let contact = Value::Unsigned(number(contact)?);
        let values = [contact, contact, Value::Bytes(message), self.limit()];
        let found = self.rows(LINKS, &values).await?;
        let mut read = Vec::with_capacity(found.len());
        for mut row in found {
            let contact: u64 = take(&mut row, 0)?;
            let link = LinkRow {
                contact: contact_key(&mut row, 1)?,
                message: take_id(&mut row, 5)?,
            };
            let place = [&contact.to_be_bytes()[..], link.message.as_bytes()].concat();
            read.push((StoreRow::Link(link), place.into()));
        }
        Ok(self.page(read))
    }

    async fn broadcasts(&mut self) -> Worked<Page> {
        let values = [Value::Bytes(self.after), self.limit()];
        let (mut keys, is_last) = self.fitting(BROADCAST_KEYS, &values).await?;
        let Some(last) = keys.last_mut() else {
            return Ok(Page::default());
        };
        let last: BroadcastId = take_id(last, 1)?;
        let values = [Value::Bytes(self.after), Value::Bytes(last.as_bytes())];
        let mut read = Vec::with_capacity(keys.len());
        for mut row in self.rows(BROADCASTS, &values).await? {
            read.push(BroadcastRow {
                sent: take(&mut row, 7)?,
                allocated: take(&mut row, 11)?,
                allocations: Vec::new(),
                record: broadcast(&mut row)?,
            });
        }
        let ids: Vec<_> = read.iter().map(|row| row.record.id).collect();
        let mut labels: HashMap<BroadcastId, _> = self.labels(BROADCAST_LABELS, &ids).await?;
        let mut allocations = self.allocations(&ids).await?;
        for row in &mut read {
            row.record.required_labels = labels.remove(&row.record.id).unwrap_or_default();
            row.allocations = allocations.remove(&row.record.id).unwrap_or_default();
        }
        Ok(Page {
            rows: read.into_iter().map(StoreRow::Broadcast).collect(),
            next: (!is_last).then(|| last.to_bytes()),
        })
    }

    async fn allocations(
        &mut self,
        ids: &[BroadcastId],
    ) -> Worked<HashMap<BroadcastId, Vec<AllocationRow>>> {
        let mut allocations: HashMap<BroadcastId, Vec<AllocationRow>> = HashMap::new();
        for ids in ids.chunks(MOST_ROWS) {
            let ids = List::ids(ids);
            for mut row in self.rows(ALLOCATIONS, &[Value::List(&ids)]).await? {
                let row = &mut row;
                let seconds: i64 = take(row, 4)?;
                let nanos: i64 = take(row, 5)?;
                allocations
                    .entry(take_id(row, 0)?)
                    .or_default()
                    .push(AllocationRow {
                        id: take_id::<AllocationId>(row, 1)?,
                        sent: take(row, 2)?,
                        limit: take(row, 3)?,
                        expiry_nanos: seconds.saturating_mul(1_000_000_000).saturating_add(nanos),
                    });
            }
        }
        Ok(allocations)
    }

    async fn sent(&mut self) -> Worked<Page> {
        let (client, broadcast) = self.split(CLIENT)?;
        let client = Value::Bytes(client);
        let values = [client, client, Value::Bytes(broadcast), self.limit()];
        let found = self.rows(SENT, &values).await?;
        let mut read = Vec::with_capacity(found.len());
        for mut row in found {
            let message: Option<Vec<u8>> = take(&mut row, 2)?;
            let sent = SentRow {
                client: take_id(&mut row, 0)?,
                broadcast: take_id(&mut row, 1)?,
                message: message
                    .map(|id| MessageId::try_from(&id[..]).map_err(rows::unreadable))
                    .transpose()?,
            };
            let place = [&sent.client.as_bytes()[..], sent.broadcast.as_bytes()].concat();
            read.push((StoreRow::Sent(sent), place.into()));
        }
        Ok(self.page(read))
    }

    /// The place is the service with its length, and the name.
    async fn files(&mut self) -> Worked<Page> {
        let place = |place: &Cursor| -> Option<(String, String)> {
            let (length, rest) = place.split_first_chunk()?;
            let length = usize::from(u16::from_be_bytes(*length));
            let (service, name) = rest.split_at_checked(length)?;
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
            Some((text(service)?, text(name)?))
        };
        let (begins, (service, name)) = if self.after.is_empty() {
            (true, Default::default())
        } else {
            (false, place(self.after).ok_or_else(foreign)?)
        };
        let begins = Value::Int(begins.into());
        let (service, name) = (Value::Text(&service), Value::Text(&name));
        let values = [begins, service, service, name, self.limit()];
        let (mut keys, is_last) = self.fitting(FILE_KEYS, &values).await?;
        let Some(last) = keys.last_mut() else {
            return Ok(Page::default());
        };
        let last: (String, String) = (take(last, 1)?, take(last, 2)?);
        let (last_service, last_name) = (Value::Text(&last.0), Value::Text(&last.1));
        let values = [
            begins,
            service,
            service,
            name,
            last_service,
            last_service,
            last_name,
        ];
        let mut rows = Vec::with_capacity(keys.len());
        for mut row in self.rows(FILES, &values).await? {
            let content: Option<Vec<u8>> = take(&mut row, 3)?;
            rows.push(StoreRow::File(FileRow {
                service: take(&mut row, 0)?,
                name: take(&mut row, 1)?,
                modified_nanos: take(&mut row, 2)?,
                content: content.unwrap_or_default().into(),
            }));
        }
        let length = u16::try_from(last.0.len()).expect("at most 512 bytes");
        let place = [
            &length.to_be_bytes()[..],
            last.0.as_bytes(),
            last.1.as_bytes(),
        ]
        .concat();
        let next = (!is_last).then(|| place.into());
        Ok(Page { rows, next })
    }
}

impl<'a> Scan<'a> {
    /// Splits the place after its first part.
    fn split(&self, first: usize) -> Worked<(&'a [u8], &'a [u8])> {
        if self.after.is_empty() {
            return Ok((&[], &[]));
        }
        let parts = self.after.split_at_checked(first);
        Ok(parts.ok_or_else(foreign)?)
    }
}

fn number(place: &[u8]) -> Worked<u64> {
    if place.is_empty() {
        return Ok(0);
    }
    let bytes = place.try_into().map_err(|_| foreign())?;
    Ok(u64::from_be_bytes(bytes))
}

pub(super) fn foreign() -> Error {
    Error::invalid(OPERATION, "the place is none of this table")
}

fn contact_key(row: &mut Row, at: usize) -> Worked<ContactKey> {
    let nonce = |bytes: Option<Vec<u8>>| {
        let bytes = bytes.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
        bytes.map(u64::from_le_bytes).unwrap_or_default()
    };
    Ok(ContactKey {
        client_id: take_id(row, at)?,
        time_nanos: take::<Option<i64>>(row, at + 1)?.unwrap_or_default(),
        nonce_sent: nonce(take(row, at + 2)?),
        nonce_received: nonce(take(row, at + 3)?),
    })
}

const CLIENTS: &str = "\
-- export_rows (clients)
SELECT
    client_id, client_key, blacklisted, last_contact_time, last_contact_address,
    last_contact_streaming_to, last_clock_seconds, last_clock_nanos
FROM clients WHERE client_id > ? ORDER BY client_id LIMIT ?";

const CLIENT_LABELS: &str = "\
-- export_rows (client labels)
SELECT client_id, service_name, label FROM client_labels WHERE client_id IN (?)";

const MESSAGE_KEYS: &str = "\
-- export_rows (message keys)
SELECT COALESCE(LENGTH(data_value), 0), messages.message_id
FROM messages
LEFT JOIN pending_messages
    ON pending_messages.for_server = (destination_client_id IS NULL)
    AND pending_messages.message_id = messages.message_id
WHERE messages.message_id > ? ORDER BY messages.message_id LIMIT ?";

// The first columns are those of `rows::message`.
const MESSAGES: &str = "\
-- export_rows (messages)
SELECT
    messages.message_id, source_client_id, source_service_name,
    COALESCE(fleethold_messages.source_message_id, messages.source_message_id),
    destination_client_id, destination_service_name, message_type,
    creation_time_seconds, creation_time_nanos, validation_info, annotations,
    processed_time_seconds, processed_time_nanos, failed, failed_reason,
    data_type_url, data_value, scheduled_time, retry_count
FROM messages
LEFT JOIN pending_messages
    ON pending_messages.for_server = (destination_client_id IS NULL)
    AND pending_messages.message_id = messages.message_id
LEFT JOIN fleethold_messages ON fleethold_messages.message_id = messages.message_id
WHERE messages.message_id > ? AND messages.message_id <= ? ORDER BY messages.message_id";

const CONTACTS: &str = "\
-- export_rows (contacts)
SELECT client_contact_id, client_id, time, sent_nonce, received_nonce, address
FROM client_contacts WHERE client_contact_id > ? ORDER BY client_contact_id LIMIT ?";

const LINKS: &str = "\
-- export_rows (links)
SELECT
    links.client_contact_id, client_id, time, sent_nonce, received_nonce, links.message_id
FROM client_contact_messages AS links
STRAIGHT_JOIN client_contacts ON client_contacts.client_contact_id = links.client_contact_id
STRAIGHT_JOIN messages ON messages.message_id = links.message_id
WHERE links.client_contact_id > ?
OR (links.client_contact_id = ? AND links.message_id > ?)
ORDER BY links.client_contact_id, links.message_id LIMIT ?";

const BROADCAST_KEYS: &str = "\
-- export_rows (broadcast keys)
SELECT COALESCE(LENGTH(data_value), 0), broadcast_id FROM broadcasts
WHERE broadcast_id > ? ORDER BY broadcast_id LIMIT ?";

// The first columns are those of `broadcasts::broadcast`.
const BROADCASTS: &str = "\
-- export_rows (broadcasts)
SELECT
    broadcasts.broadcast_id, source_service_name, destination_service_name, message_type,
    expiration_time_seconds, expiration_time_nanos, group_name, COALESCE(sent, 0),
    COALESCE(message_limit, 0), data_type_url, data_value, COALESCE(allocated, 0)
FROM broadcasts
LEFT JOIN fleethold_broadcast_groups
    ON fleethold_broadcast_groups.broadcast_id = broadcasts.broadcast_id
WHERE broadcasts.broadcast_id > ? AND broadcasts.broadcast_id <= ?
ORDER BY broadcasts.broadcast_id";

const BROADCAST_LABELS: &str = "\
-- export_rows (broadcast labels)
SELECT broadcast_id, service_name, label FROM broadcast_labels WHERE broadcast_id IN (?)";

const ALLOCATIONS: &str = "\
-- export_rows (allocations)
SELECT
    broadcast_id, allocation_id, COALESCE(sent, 0), COALESCE(message_limit, 0),
    COALESCE(expiration_time_seconds, 0), COALESCE(expiration_time_nanos, 0)
FROM broadcast_allocations WHERE broadcast_id IN (?) ORDER BY broadcast_id, allocation_id";

const SENT: &str = "\
-- export_rows (sent)
SELECT broadcast_sent.client_id, broadcast_sent.broadcast_id, message_id
FROM broadcast_sent
LEFT JOIN fleethold_broadcast_messages
    ON fleethold_broadcast_messages.broadcast_id = broadcast_sent.broadcast_id
    AND fleethold_broadcast_messages.client_id = broadcast_sent.client_id
WHERE broadcast_sent.client_id > ?
OR (broadcast_sent.client_id = ? AND broadcast_sent.broadcast_id > ?)
ORDER BY broadcast_sent.client_id, broadcast_sent.broadcast_id LIMIT ?";

// The order is that of the columns' collation, which tells all keys apart.
const FILE_KEYS: &str = "\
-- export_rows (file keys)
SELECT COALESCE(LENGTH(data), 0), service, name FROM files
WHERE ? OR service > ? OR (service = ? AND name > ?)
ORDER BY service, name LIMIT ?";

const FILES: &str = "\
-- export_rows (files)
SELECT service, name, modified_time_nanos, data FROM files
WHERE (? OR service > ? OR (service = ? AND name > ?))
AND (service < ? OR (service = ? AND name <= ?))
ORDER BY service, name";
