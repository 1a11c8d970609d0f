//! Reading tables page by page.

use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::Label;
use fleethold_store::limits::MAX_CLAIM_BYTES;
use fleethold_store::maintenance::{
    AllocationRow, BroadcastRow, ClientRow, ContactKey, ContactRow, Cursor, FileRow, LinkRow,
    MessageRow, Page, Row as StoreRow, SentRow, Table,
};
use fleethold_store::{AllocationId, ClientId, Error, MessageId};
use rusqlite::{Connection, Row, ToSql};

use crate::broadcasts::{broadcast, labels};
use crate::error::Worked;
use crate::rows::{read_record, unreadable};
use crate::usage;

/// Returns at most `limit` rows of a table after a place.
///
/// Places are the keys of the tables, so that a page costs the same wherever it is.
pub(crate) fn page(
    connection: &Connection,
    table: Table,
    after: Option<&Cursor>,
    limit: usize,
) -> Worked<Page> {
    let scan = Scan {
        connection,
        after,
        limit,
    };
    match table {
        Table::Clients => scan.by_id(CLIENTS, |row| client(connection, row)),
        Table::Messages => scan.by_number(MESSAGES, message),
        Table::Contacts => scan.by_number(CONTACTS, |row| {
            Ok(StoreRow::Contact(ContactRow {
                key: contact_key(row, 1)?,
                address: row.get(5)?,
            }))
        }),
        Table::Links => scan.links(),
        Table::Usage => scan.by_number(USAGE, |row| {
            Ok(StoreRow::Usage(id(row, 1)?, usage::record(row, 2)?))
        }),
        Table::Broadcasts => scan.by_number(BROADCASTS, |row| broadcast_row(connection, row)),
        Table::Sent => scan.by_pair(SENT, |row| {
            Ok(StoreRow::Sent(SentRow {
                client: id(row, 1)?,
                broadcast: id(row, 2)?,
                message: match row.get_ref(3)?.as_blob_or_null()? {
                    Some(bytes) => Some(MessageId::try_from(bytes).map_err(unreadable)?),
                    None => None,
                },
            }))
        }),
        Table::Files => scan.by_number(FILES, |row| {
            Ok(StoreRow::File(FileRow {
                service: row.get(1)?,
                name: row.get(2)?,
                modified_nanos: row.get(3)?,
                content: Bytes::copy_from_slice(row.get_ref(4)?.as_blob()?),
            }))
        }),
    }
}

struct Scan<'a> {
    connection: &'a Connection,
    after: Option<&'a Cursor>,
    limit: usize,
}

impl Scan<'_> {
    /// Reads rows whose place is a number, in the first column.
    fn by_number(
        &self,
        sql: &str,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<StoreRow>,
    ) -> Worked<Page> {
        let after = self.after.map(|place| number(place)).transpose()?;
        self.run(sql, &[&after.unwrap_or(i64::MIN)], read, |row| {
            let number: i64 = row.get(0)?;
            Ok(Bytes::copy_from_slice(&number.to_be_bytes()))
        })
    }

    /// Reads rows whose place is an id, in the first column.
    fn by_id(
        &self,
        sql: &str,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<StoreRow>,
    ) -> Worked<Page> {
        let after = self.after.map_or(&[][..], |place| &place[..]);
        self.run(sql, &[&after], read, |row| {
            Ok(Bytes::copy_from_slice(row.get_ref(0)?.as_blob()?))
        })
    }

    /// Reads rows whose place is a pair of ids of 8 bytes, in the second and third column.
    fn by_pair(
        &self,
        sql: &str,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<StoreRow>,
    ) -> Worked<Page> {
        let (first, second) = match self.after {
            None => (&[][..], &[][..]),
            Some(place) if place.len() == 16 => place.split_at(8),
            Some(_) => return Err(foreign().into()),
        };
        self.run(sql, &[&first, &second], read, |row| {
            let pair = [row.get_ref(1)?.as_blob()?, row.get_ref(2)?.as_blob()?];
            Ok(Bytes::from(pair.concat()))
        })
    }

    /// Reads first the contacts that brought messages, then the other links.
    ///
    /// The place is that of a message, or that of a contact and a message.
    fn links(&self) -> Worked<Page> {
        let brought = match self.after {
            None => Some(None),
            Some(place) if place.len() == 8 => Some(Some(place)),
            Some(_) => None,
        };
        let after = match (brought, self.after) {
            (Some(after), _) => {
                let scan = Self { after, ..*self };
                let page = scan.by_number(LINKS_BROUGHT, |row| link(row, 1))?;
                if page.next.is_some() {
                    return Ok(page);
                }
                let rest = Bytes::copy_from_slice(&[u8::MIN; 16]);
                if !page.rows.is_empty() {
                    return Ok(Page {
                        next: Some(rest),
                        ..page
                    });
                }
                rest
            }
            (None, Some(place)) if place.len() == 16 => place.clone(),
            _ => return Err(foreign().into()),
        };
        let (contact, message) = after.split_at(8);
        self.run(
            LINKS,
            &[&number(contact)?, &number(message)?],
            |row| link(row, 2),
            |row| {
                let pair: [i64; 2] = [row.get(0)?, row.get(1)?];
                Ok(Bytes::from(pair.map(i64::to_be_bytes).concat()))
            },
        )
    }

    fn run(
        &self,
        sql: &str,
        after: &[&dyn ToSql],
        read: impl Fn(&Row<'_>) -> rusqlite::Result<StoreRow>,
        place: impl Fn(&Row<'_>) -> rusqlite::Result<Cursor>,
    ) -> Worked<Page> {
        let limit = i64::try_from(self.limit).unwrap_or(i64::MAX);
        let mut parameters = after.to_vec();
        parameters.push(&limit);
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut found = statement.query(&parameters[..])?;
        let (mut page, mut bytes) = (Page::default(), 0);
        while let Some(row) = found.next()? {
            let read = read(row)?;
            bytes += read.payload_bytes();
            page.rows.push(read);
            if page.rows.len() >= self.limit || bytes >= MAX_CLAIM_BYTES {
                page.next = Some(place(row)?);
                break;
            }
        }
        Ok(page)
    }
}

fn number(place: &[u8]) -> Worked<i64> {
    let bytes = place.try_into().map_err(|_| foreign())?;
    Ok(i64::from_be_bytes(bytes))
}

fn foreign() -> Error {
    Error::invalid("export_rows", "the place is none of this table")
}

fn id<T>(row: &Row<'_>, at: usize) -> rusqlite::Result<T>
where
    T: for<'a> TryFrom<&'a [u8], Error = fleethold_store::IdError>,
{
    T::try_from(row.get_ref(at)?.as_blob()?).map_err(unreadable)
}

fn client(connection: &Connection, row: &Row<'_>) -> rusqlite::Result<StoreRow> {
    let id: ClientId = id(row, 0)?;
    let clock: (Option<i64>, Option<i32>) = (row.get(6)?, row.get(7)?);
    let labels = connection
        .prepare_cached(LABELS)?
        .query_map([id.as_bytes()], |row| {
            Ok(Label {
                service_name: row.get(0)?,
                label: row.get(1)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(StoreRow::Client(ClientRow {
        id,
        public_key: Bytes::copy_from_slice(row.get_ref(1)?.as_blob()?),
        blacklisted: row.get(2)?,
        labels,
        last_contact_nanos: row.get(3)?,
        last_contact_address: row.get(4)?,
        last_contact_streaming_to: row.get(5)?,
        last_clock: match clock {
            (Some(seconds), Some(nanos)) => Some(Timestamp { seconds, nanos }),
            _ => None,
        },
    }))
}

const CLIENTS: &str = "\
-- export_rows (clients)
SELECT client_id, public_key, blacklisted, last_contact_nanos, last_contact_address,
    last_contact_streaming_to, last_clock_seconds, last_clock_nanos
FROM clients WHERE client_id > ?1 ORDER BY client_id LIMIT ?2";

const LABELS: &str = "\
-- export_rows (labels)
SELECT service, label FROM client_labels WHERE client_id = ?1 ORDER BY service, label";

fn message(row: &Row<'_>) -> rusqlite::Result<StoreRow> {
    let due_micros = row.get(17)?;
    let claims: u32 = row.get(18)?;
    Ok(StoreRow::Message(MessageRow {
        record: read_record(row)?,
        due_micros,
        claims: due_micros.map_or(0, |_: i64| claims),
    }))
}

const MESSAGES: &str = "\
-- export_rows (messages)
SELECT
    messages.message, message_id, source_client, source_service, source_message_id,
    destination_client, destination_service, message_type, creation_seconds, creation_nanos,
    validation_info, annotations, processed_seconds, processed_nanos, failure,
    type_url, payloads.value, due_micros, claims
FROM messages LEFT JOIN payloads USING (message)
WHERE messages.message > ?1 ORDER BY messages.message LIMIT ?2";

fn contact_key(row: &Row<'_>, at: usize) -> rusqlite::Result<ContactKey> {
    Ok(ContactKey {
        client_id: id(row, at)?,
        time_nanos: row.get(at + 1)?,
        nonce_sent: row.get::<_, i64>(at + 2)?.cast_unsigned(),
        nonce_received: row.get::<_, i64>(at + 3)?.cast_unsigned(),
    })
}

const CONTACTS: &str = "\
-- export_rows (contacts)
SELECT contact, client_id, time_nanos, nonce_sent, nonce_received, address
FROM contacts WHERE contact > ?1 ORDER BY contact LIMIT ?2";

fn link(row: &Row<'_>, at: usize) -> rusqlite::Result<StoreRow> {
    Ok(StoreRow::Link(LinkRow {
        contact: contact_key(row, at)?,
        message: id(row, at + 4)?,
    }))
}

const LINKS_BROUGHT: &str = "\
-- export_rows (links, brought)
SELECT message, client_id, time_nanos, nonce_sent, nonce_received, message_id
FROM messages CROSS JOIN contacts USING (contact)
WHERE message > ?1 ORDER BY message LIMIT ?2";

const LINKS: &str = "\
-- export_rows (links)
SELECT links.contact, links.message,
    client_id, time_nanos, nonce_sent, nonce_received, message_id
FROM contact_messages AS links
CROSS JOIN contacts ON contacts.contact = links.contact
CROSS JOIN messages ON messages.message = links.message
WHERE (links.contact, links.message) > (?1, ?2)
ORDER BY links.contact, links.message LIMIT ?3";

const USAGE: &str = "\
-- export_rows (usage)
SELECT
    record, client_id,
    server_nanos, client_nanos, process_start_nanos, scope, pid, process_terminated,
    mean_user_cpu_rate, max_user_cpu_rate, mean_system_cpu_rate, max_system_cpu_rate,
    mean_resident_memory_mib, max_resident_memory_mib, mean_num_fds, max_num_fds
FROM usage_records WHERE record > ?1 ORDER BY record LIMIT ?2";

fn broadcast_row(connection: &Connection, row: &Row<'_>) -> rusqlite::Result<StoreRow> {
    let (mut record, sent) = broadcast(row, 1)?;
    record.required_labels = labels(connection, record.id)?;
    let allocations = connection
        .prepare_cached(ALLOCATIONS)?
        .query_map([record.id.as_bytes()], |row| {
            Ok(AllocationRow {
                id: id::<AllocationId>(row, 0)?,
                sent: row.get::<_, i64>(1)?.cast_unsigned(),
                limit: row.get::<_, i64>(2)?.cast_unsigned(),
                expiry_nanos: row.get(3)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(StoreRow::Broadcast(BroadcastRow {
        record,
        sent,
        allocated: row.get::<_, i64>(12)?.cast_unsigned(),
        allocations,
    }))
}

const BROADCASTS: &str = "\
-- export_rows (broadcasts)
SELECT
    broadcast, broadcast_id, source_service, destination_service, message_type,
    expiration_seconds, expiration_nanos, group_name, sent, message_limit, type_url, value,
    allocated
FROM broadcasts WHERE broadcast > ?1 ORDER BY broadcast LIMIT ?2";

const ALLOCATIONS: &str = "\
-- export_rows (allocations)
SELECT allocation_id, sent, message_limit, expiry_nanos
FROM allocations WHERE broadcast_id = ?1 ORDER BY allocation_id";

const SENT: &str = "\
-- export_rows (sent)
SELECT 0, client_id, broadcast_id, message_id
FROM broadcasts_sent LEFT JOIN messages USING (message)
WHERE (client_id, broadcast_id) > (?1, ?2) ORDER BY client_id, broadcast_id LIMIT ?3";

const FILES: &str = "\
-- export_rows (files)
SELECT file, service, name, modified_nanos, content
FROM files WHERE file > ?1 ORDER BY file LIMIT ?2";
