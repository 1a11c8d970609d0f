//! Reading tables page by page.

use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_store::limits::MAX_CLAIM_BYTES;
use fleethold_store::maintenance::{
    AllocationRow, BroadcastRow, ClientRow, ContactKey, ContactRow, Cursor, FileRow, LinkRow,
    MessageRow, Page, Row as StoreRow, SentRow, Table,
};
use fleethold_store::{AllocationId, BroadcastId, ClientId, Error, MessageId, Result};
use tokio_postgres::Row;

use crate::query::{BYTES, BYTES_LIST, LONG, Query, Values};
use crate::rows::{self, Unreadable, unreadable};
use crate::{Shared, broadcasts, clients, usage};

const OPERATION: &str = "export_rows";

/// The bytes of the ids that places are made of.
const CLIENT: usize = 8;
const CONTACT: usize = 16;
const MESSAGE: usize = 32;

/// Returns at most `limit` rows of a table after a place.
///
/// Places are the keys of the tables, so that a page costs the same wherever it is.
pub(super) async fn page(
    shared: &Shared,
    table: Table,
    after: Option<&Cursor>,
    limit: usize,
) -> Result<Page> {
    let scan = Scan {
        shared,
        after: after.map_or(&[][..], |place| &place[..]),
        limit,
    };
    match table {
        Table::Clients => scan.clients().await,
        Table::Messages => scan.pairs(&MESSAGES, MESSAGE, &[0, 19], message).await,
        Table::Contacts => {
            let read = |row: &Row| {
                Ok(StoreRow::Contact(ContactRow {
                    key: contact_key(row, 0, 2)?,
                    address: rows::text(row, 5)?,
                }))
            };
            scan.pairs(&CONTACTS, CLIENT, &[0, 1], read).await
        }
        Table::Links => scan.links().await,
        Table::Usage => {
            let read = |row: &Row| {
                let client = ClientId::try_from(row.try_get::<_, &[u8]>(0)?)?;
                Ok(StoreRow::Usage(client, usage::record(OPERATION, row, 2)?))
            };
            scan.pairs(&USAGE, CLIENT, &[0, 1], read).await
        }
        Table::Broadcasts => scan.broadcasts().await,
        Table::Sent => scan.pairs(&SENT, CLIENT, &[0, 1], sent).await,
        Table::Files => scan.files().await,
    }
}

struct Scan<'a> {
    shared: &'a Shared,
    after: &'a [u8],
    limit: usize,
}

impl Scan<'_> {
    fn limit(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX)
    }

    /// Splits the place after its first part.
    fn split(&self, first: usize) -> Result<(&[u8], &[u8])> {
        if self.after.is_empty() {
            return Ok((&[], &[]));
        }
        self.after.split_at_checked(first).ok_or_else(foreign)
    }

    /// Reads rows whose place is a pair of ids, in the columns `place`.
    async fn pairs(
        &self,
        query: &Query,
        first: usize,
        place: &[usize],
        read: impl Fn(&Row) -> Result<StoreRow, Unreadable>,
    ) -> Result<Page> {
        let (first, second) = self.split(first)?;
        let rows = if query.types.len() == 3 {
            let values: Values<'_> = &[&first, &second, &self.limit()];
            self.shared.read_many(OPERATION, query, values).await?
        } else {
            let values: Values<'_> = &[&first, &second, &self.limit(), &max_bytes()];
            self.shared.read_many(OPERATION, query, values).await?
        };
        self.page(&rows, read, |row| concat(row, place))
    }

    /// Makes a page that ends where rows or bytes reach their limit.
    fn page(
        &self,
        rows: &[Row],
        read: impl Fn(&Row) -> Result<StoreRow, Unreadable>,
        place: impl Fn(&Row) -> Cursor,
    ) -> Result<Page> {
        let (mut page, mut bytes) = (Page::default(), 0);
        for row in rows {
            let read = read(row).map_err(unreadable(OPERATION))?;
            bytes += read.payload_bytes();
            page.rows.push(read);
            if page.rows.len() >= self.limit || bytes >= MAX_CLAIM_BYTES {
                page.next = Some(place(row));
                break;
            }
        }
        Ok(page)
    }

    async fn clients(&self) -> Result<Page> {
        let values: Values<'_> = &[&self.after, &self.limit()];
        let found = self.shared.read_many(OPERATION, &CLIENTS, values).await?;
        let ids: Vec<&[u8]> = found.iter().map(|row| row.get(0)).collect();
        let labels = self
            .shared
            .read_many(OPERATION, &CLIENT_LABELS, &[&ids])
            .await?;
        let read = |row: &Row| {
            let id = row.try_get::<_, &[u8]>(0)?;
            let clock: (Option<i64>, Option<i32>) = (row.try_get(6)?, row.try_get(7)?);
            Ok(StoreRow::Client(ClientRow {
                id: ClientId::try_from(id)?,
                public_key: Bytes::copy_from_slice(row.try_get(1)?),
                blacklisted: row.try_get(2)?,
                labels: labels
                    .iter()
                    .filter(|label| label.get::<_, &[u8]>(0) == id)
                    .filter_map(|label| clients::label(OPERATION, label, 1).transpose())
                    .collect::<Result<_>>()?,
                last_contact_nanos: row.try_get(3)?,
                last_contact_address: rows::text(row, 4)?,
                last_contact_streaming_to: rows::optional_text(row, 5)?,
                last_clock: match clock {
                    (Some(seconds), Some(nanos)) => Some(Timestamp { seconds, nanos }),
                    _ => None,
                },
            }))
        };
        self.page(&found, read, |row| concat(row, &[0]))
    }

    /// Reads first the contacts that brought messages, then the other links.
    ///
    /// The place is that of a message, or that of a contact and a message.
    async fn links(&self) -> Result<Page> {
        const PLACE: usize = CLIENT + CONTACT + MESSAGE;
        let read = |row: &Row| {
            Ok(StoreRow::Link(LinkRow {
                contact: contact_key(row, 0, 3)?,
                message: MessageId::try_from(row.try_get::<_, &[u8]>(2)?)?,
            }))
        };
        let begin = [0; PLACE];
        let mut after = self.after;
        if after.len() != PLACE {
            let page = self.pairs(&LINKS_BROUGHT, MESSAGE, &[2, 6], read).await?;
            if page.next.is_some() {
                return Ok(page);
            }
            if !page.rows.is_empty() {
                let next = Some(Bytes::copy_from_slice(&begin));
                return Ok(Page { next, ..page });
            }
            after = &begin;
        }
        let (client, rest) = after.split_at(CLIENT);
        let (contact, message) = rest.split_at(CONTACT);
        let values: Values<'_> = &[&client, &contact, &message, &self.limit()];
        let found = self.shared.read_many(OPERATION, &LINKS, values).await?;
        self.page(&found, read, |row| concat(row, &[0, 1, 2]))
    }

    async fn broadcasts(&self) -> Result<Page> {
        let values: Values<'_> = &[&self.after, &self.limit(), &max_bytes()];
        let found = self
            .shared
            .read_many(OPERATION, &BROADCASTS, values)
            .await?;
        let ids: Vec<&[u8]> = found.iter().map(|row| row.get(0)).collect();
        let labels = self
            .shared
            .read_many(OPERATION, &BROADCAST_LABELS, &[&ids])
            .await?;
        let allocations = self
            .shared
            .read_many(OPERATION, &ALLOCATIONS, &[&ids])
            .await?;
        let read = |row: &Row| {
            let id = row.try_get::<_, &[u8]>(0)?;
            let mut record = broadcasts::record(OPERATION, BroadcastId::try_from(id)?, row)?;
            record.required_labels = labels
                .iter()
                .filter(|label| label.get::<_, &[u8]>(0) == id)
                .filter_map(|label| clients::label(OPERATION, label, 1).transpose())
                .collect::<Result<_>>()?;
            let allocations = allocations
                .iter()
                .filter(|row| row.get::<_, &[u8]>(0) == id);
            Ok(StoreRow::Broadcast(BroadcastRow {
                record,
                sent: row.try_get::<_, i64>(7)?.cast_unsigned(),
                allocated: row.try_get::<_, i64>(11)?.cast_unsigned(),
                allocations: allocations
                    .map(allocation)
                    .collect::<Result<_, Unreadable>>()?,
            }))
        };
        self.page(&found, read, |row| concat(row, &[0]))
    }

    /// Reads files; the place is the length of the service, the service and the name.
    async fn files(&self) -> Result<Page> {
        let (service, name) = match self.after.split_first_chunk() {
            None if self.after.is_empty() => (None, &[][..]),
            None => return Err(foreign()),
            Some((length, rest)) => {
                let length = usize::from(u16::from_be_bytes(*length));
                let (service, name) = rest.split_at_checked(length).ok_or_else(foreign)?;
                (Some(service), name)
            }
        };
        let values: Values<'_> = &[&service, &name, &self.limit(), &max_bytes()];
        let found = self.shared.read_many(OPERATION, &FILES, values).await?;
        let read = |row: &Row| {
            Ok(StoreRow::File(FileRow {
                service: rows::text(row, 0)?,
                name: rows::text(row, 1)?,
                modified_nanos: row.try_get(2)?,
                content: rows::bytes(row, 3)?.unwrap_or_default(),
            }))
        };
        self.page(&found, read, |row| {
            let service: &[u8] = row.get(0);
            let length = u16::try_from(service.len()).expect("at most 512 bytes");
            let place = [&length.to_be_bytes()[..], service, row.get(1)];
            Bytes::from(place.concat())
        })
    }
}

fn max_bytes() -> i64 {
    i64::try_from(MAX_CLAIM_BYTES).expect("some megabytes")
}

fn concat(row: &Row, columns: &[usize]) -> Cursor {
    let parts: Vec<&[u8]> = columns.iter().map(|at| row.get(*at)).collect();
    Bytes::from(parts.concat())
}

fn foreign() -> Error {
    Error::invalid(OPERATION, "the place is none of this table")
}

fn message(row: &Row) -> Result<StoreRow, Unreadable> {
    let claims: Option<i32> = row.try_get(17)?;
    Ok(StoreRow::Message(MessageRow {
        record: rows::record(row)?,
        due_micros: row.try_get(16)?,
        claims: claims.map_or(0, i32::cast_unsigned),
    }))
}

fn contact_key(row: &Row, client: usize, at: usize) -> Result<ContactKey, Unreadable> {
    Ok(ContactKey {
        client_id: ClientId::try_from(row.try_get::<_, &[u8]>(client)?)?,
        time_nanos: row.try_get(at)?,
        nonce_sent: row.try_get::<_, i64>(at + 1)?.cast_unsigned(),
        nonce_received: row.try_get::<_, i64>(at + 2)?.cast_unsigned(),
    })
}

fn sent(row: &Row) -> Result<StoreRow, Unreadable> {
    let message: Option<&[u8]> = row.try_get(2)?;
    Ok(StoreRow::Sent(SentRow {
        client: ClientId::try_from(row.try_get::<_, &[u8]>(0)?)?,
        broadcast: BroadcastId::try_from(row.try_get::<_, &[u8]>(1)?)?,
        message: message.map(MessageId::try_from).transpose()?,
    }))
}

fn allocation(row: &Row) -> Result<AllocationRow, Unreadable> {
    Ok(AllocationRow {
        id: AllocationId::try_from(row.try_get::<_, &[u8]>(1)?)?,
        sent: row.try_get::<_, i64>(2)?.cast_unsigned(),
        limit: row.try_get::<_, i64>(3)?.cast_unsigned(),
        expiry_nanos: row.try_get(4)?,
    })
}

const CLIENTS: Query = Query {
    sql: "\
-- export_rows (clients)
SELECT client_id, public_key, blacklisted, last_contact_nanos, last_contact_address,
    last_contact_streaming_to, last_clock_seconds, last_clock_nanos
FROM clients WHERE client_id > $1 ORDER BY client_id LIMIT $2",
    types: &[BYTES, LONG],
};

const CLIENT_LABELS: Query = Query {
    sql: "\
-- export_rows (client labels)
SELECT client_id, service, label FROM client_labels
WHERE client_id = ANY($1) ORDER BY client_id, service, label",
    types: &[BYTES_LIST],
};

const MESSAGES: Query = Query {
    sql: "\
-- export_rows (messages)
SELECT
    message_id, source_client, source_service, source_message_id, destination_client,
    destination_service, message_type, creation_seconds, creation_nanos, validation_info,
    annotations, processed_seconds, processed_nanos, failure, type_url,
    CASE WHEN chunks > 0 THEN (
        SELECT string_agg(chunk.value, ''::bytea ORDER BY chunk.chunk) FROM payload_chunks AS chunk
        WHERE chunk.client_id = fitting.client_id AND chunk.message_id = fitting.message_id
        AND chunk.chunk < chunks
    ) ELSE value END,
    due_micros, claims, bytes_before, client_id
FROM (
    SELECT
        messages.message_id, messages.client_id, source_client, source_service,
        source_message_id, destination_client, destination_service, message_type,
        creation_seconds, creation_nanos, validation_info, annotations, processed_seconds,
        processed_nanos, failure, type_url, value, chunks, due_micros, claims,
        sum(value_bytes) OVER (
            ORDER BY messages.message_id, messages.client_id
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS bytes_before
    FROM (
        SELECT
            message_id, client_id, source_client, source_service, source_message_id,
            destination_client, destination_service, message_type, creation_seconds,
            creation_nanos, validation_info, annotations, processed_seconds, processed_nanos,
            failure
        FROM messages WHERE (message_id, client_id) > ($1, $2)
        ORDER BY message_id, client_id LIMIT $3
    ) AS messages
    LEFT JOIN LATERAL (
        SELECT type_url, value, value_bytes, chunks, due_micros, claims
        FROM client_pending AS pending
        WHERE pending.message_id = messages.message_id AND pending.client_id = messages.client_id
        UNION ALL
        SELECT type_url, value, value_bytes, chunks, due_micros, claims
        FROM server_pending AS pending
        WHERE pending.message_id = messages.message_id AND pending.client_id = messages.client_id
    ) AS pending ON true
) AS fitting
WHERE coalesce(bytes_before, 0) < $4
ORDER BY message_id, client_id",
    types: &[BYTES, BYTES, LONG, LONG],
};

const CONTACTS: Query = Query {
    sql: "\
-- export_rows (contacts)
SELECT client_id, contact_id, time_nanos, nonce_sent, nonce_received, address
FROM contacts WHERE (client_id, contact_id) > ($1, $2)
ORDER BY client_id, contact_id LIMIT $3",
    types: &[BYTES, BYTES, LONG],
};

// Only a contact of the source itself is noted with its message.
const LINKS_BROUGHT: Query = Query {
    sql: "\
-- export_rows (links, brought)
SELECT
    contacts.client_id, contacts.contact_id, messages.message_id, time_nanos, nonce_sent,
    nonce_received, messages.client_id
FROM messages CROSS JOIN LATERAL (
    SELECT client_id, contact_id, time_nanos, nonce_sent, nonce_received FROM contacts
    WHERE contacts.client_id = messages.source_client
    AND contacts.contact_id = messages.contact_id
    LIMIT 1
) AS contacts
WHERE (messages.message_id, messages.client_id) > ($1, $2)
AND messages.contact_id IS NOT NULL
ORDER BY messages.message_id, messages.client_id LIMIT $3",
    types: &[BYTES, BYTES, LONG],
};

const LINKS: Query = Query {
    sql: "\
-- export_rows (links)
SELECT
    links.client_id, links.contact_id, links.message_id, time_nanos, nonce_sent, nonce_received
FROM contact_messages AS links CROSS JOIN LATERAL (
    SELECT time_nanos, nonce_sent, nonce_received FROM contacts
    WHERE contacts.client_id = links.client_id AND contacts.contact_id = links.contact_id
    LIMIT 1
) AS contacts
WHERE (links.client_id, links.contact_id, links.message_id) > ($1, $2, $3)
AND EXISTS (SELECT 1 FROM messages WHERE messages.message_id = links.message_id)
ORDER BY links.client_id, links.contact_id, links.message_id LIMIT $4",
    types: &[BYTES, BYTES, BYTES, LONG],
};

const USAGE: Query = Query {
    sql: "\
-- export_rows (usage)
SELECT
    client_id, record_id,
    server_nanos, client_nanos, process_start_nanos, scope, pid, process_terminated,
    mean_user_cpu_rate, max_user_cpu_rate, mean_system_cpu_rate, max_system_cpu_rate,
    mean_resident_memory_mib, max_resident_memory_mib, mean_num_fds, max_num_fds
FROM usage_records WHERE (client_id, record_id) > ($1, $2)
ORDER BY client_id, record_id LIMIT $3",
    types: &[BYTES, BYTES, LONG],
};

const BROADCASTS: Query = Query {
    sql: "\
-- export_rows (broadcasts)
SELECT
    broadcast_id, source_service, destination_service, message_type, expiration_seconds,
    expiration_nanos, group_name, sent, message_limit, type_url,
    CASE WHEN chunks > 0 THEN (
        SELECT string_agg(chunk.value, ''::bytea ORDER BY chunk.chunk)
        FROM broadcast_chunks AS chunk WHERE chunk.broadcast_id = fitting.broadcast_id
    ) END,
    allocated
FROM (
    SELECT
        broadcast_id, source_service, destination_service, message_type, expiration_seconds,
        expiration_nanos, group_name, sent, message_limit, type_url, chunks, allocated,
        sum((
            SELECT sum(octet_length(chunk.value)) FROM broadcast_chunks AS chunk
            WHERE chunk.broadcast_id = page.broadcast_id
        )) OVER (
            ORDER BY broadcast_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS bytes_before
    FROM (
        SELECT
            broadcast_id, source_service, destination_service, message_type, expiration_seconds,
            expiration_nanos, group_name, sent, message_limit, type_url, chunks, allocated
        FROM broadcasts WHERE broadcast_id > $1 ORDER BY broadcast_id LIMIT $2
    ) AS page
) AS fitting
WHERE coalesce(bytes_before, 0) < $3
ORDER BY broadcast_id",
    types: &[BYTES, LONG, LONG],
};

const BROADCAST_LABELS: Query = Query {
    sql: "\
-- export_rows (broadcast labels)
SELECT broadcast_id, service, label FROM broadcast_labels
WHERE broadcast_id = ANY($1) ORDER BY broadcast_id, service, label",
    types: &[BYTES_LIST],
};

const ALLOCATIONS: Query = Query {
    sql: "\
-- export_rows (allocations)
SELECT broadcast_id, allocation_id, sent, message_limit, expiry_nanos FROM allocations
WHERE broadcast_id = ANY($1) ORDER BY broadcast_id, allocation_id",
    types: &[BYTES_LIST],
};

const SENT: Query = Query {
    sql: "\
-- export_rows (sent)
SELECT client_id, broadcast_id, (
    SELECT messages.message_id FROM messages
    WHERE messages.message_id = broadcasts_sent.message_id LIMIT 1
)
FROM broadcasts_sent WHERE (client_id, broadcast_id) > ($1, $2)
ORDER BY client_id, broadcast_id LIMIT $3",
    types: &[BYTES, BYTES, LONG],
};

const FILES: Query = Query {
    sql: "\
-- export_rows (files)
SELECT service, name, modified_nanos, (
    SELECT string_agg(chunk.value, ''::bytea ORDER BY chunk.chunk) FROM file_chunks AS chunk
    WHERE chunk.service = fitting.service AND chunk.name = fitting.name
    AND chunk.version = fitting.version
)
FROM (
    SELECT service, name, modified_nanos, version, sum((
        SELECT sum(octet_length(chunk.value)) FROM file_chunks AS chunk
        WHERE chunk.service = page.service AND chunk.name = page.name
        AND chunk.version = page.version
    )) OVER (
        ORDER BY service, name ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS bytes_before
    FROM (
        SELECT service, name, modified_nanos, version FROM files
        WHERE $1::bytea IS NULL OR (service, name) > ($1, $2)
        ORDER BY service, name LIMIT $3
    ) AS page
) AS fitting
WHERE coalesce(bytes_before, 0) < $4
ORDER BY service, name",
    types: &[BYTES, BYTES, LONG, LONG],
};
