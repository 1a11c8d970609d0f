//! Messages on their way into the database: statements that store many at once.

use std::collections::BTreeMap;

use fleethold_proto::fleetspeak::Message;
use fleethold_store::clock::epoch_micros;
use fleethold_store::record::{MessageRecord, ResultRecord};
use fleethold_store::{ClientId, MessageId, Result};
use tokio_postgres::Row;

use crate::Shared;
use crate::contacts::ContactKey;
use crate::error::Worked;
use crate::query::{BOOL, BYTES_LIST, INT_LIST, LONG_LIST, Query, Values};
use crate::transactions::Tx;

/// A longer payload is stored in pieces.
const CHUNKED_ABOVE_BYTES: usize = 256 * 1024;
pub(crate) const CHUNK_BYTES: usize = 512 * 1024;

impl Shared {
    /// Returns the columns of new messages, due as messages are that come by themselves.
    pub(crate) fn columns<'a>(
        &self,
        new: &'a NewMessages,
        contact: Option<&'a ContactKey>,
    ) -> Columns<'a> {
        self.columns_of_all(std::iter::once((new, contact)))
    }

    /// As [`columns`](Self::columns), of several calls that share no message.
    pub(crate) fn columns_of_all<'a>(
        &self,
        calls: impl Iterator<Item = (&'a NewMessages, Option<&'a ContactKey>)>,
    ) -> Columns<'a> {
        let now_micros = epoch_micros(self.clock.now());
        let mut messages: Vec<_> = calls
            .flat_map(|(new, contact)| new.records.iter().map(move |record| (record, contact)))
            .collect();
        messages.sort_by_key(|(record, _)| record.id);
        let mut columns = Columns::default();
        for (record, contact) in messages {
            let due_micros = match record.destination_client {
                Some(_) => now_micros,
                None => epoch_micros(self.clock.server_retry_time(0)),
            };
            columns.push(record, due_micros, contact);
        }
        columns
    }

    /// Tells other servers for whom something waits now.
    pub(crate) fn tell(&self, new: &NewMessages) {
        if let Some(hints) = &self.hints {
            hints.tell(
                new.records
                    .iter()
                    .filter(|record| record.result.is_none())
                    .filter_map(|record| record.destination_client),
            );
        }
    }
}

/// The messages of a call, each once, in the order in which all calls lock them.
pub(crate) struct NewMessages {
    pub(crate) records: Vec<MessageRecord>,
}

impl NewMessages {
    pub(crate) fn parse(operation: &'static str, messages: &[Message]) -> Result<Self> {
        let mut records: BTreeMap<MessageId, MessageRecord> = BTreeMap::new();
        for message in messages {
            let record = MessageRecord::parse(operation, message)?;
            let Some(first) = records.get_mut(&record.id) else {
                records.insert(record.id, record);
                continue;
            };
            // As if it had come in a later call: only its result can count.
            if let Some(result) = record.result
                && result.replaces(first.result.as_ref())
            {
                first.result = Some(result);
                first.data = None;
            }
        }
        Ok(Self {
            records: records.into_values().collect(),
        })
    }
}

/// Messages as the parameters of statements.
#[derive(Default)]
pub(crate) struct Columns<'a> {
    homes: Vec<&'a [u8]>,
    ids: Vec<&'a [u8]>,
    /// The contacts that the messages are linked to.
    contact_clients: Vec<Option<&'a [u8]>>,
    contact_ids: Vec<Option<&'a [u8]>>,
    source_clients: Vec<Option<&'a [u8]>>,
    source_services: Vec<&'a [u8]>,
    source_message_ids: Vec<&'a [u8]>,
    destination_clients: Vec<Option<&'a [u8]>>,
    destination_services: Vec<&'a [u8]>,
    types: Vec<&'a [u8]>,
    creation_seconds: Vec<i64>,
    creation_nanos: Vec<i32>,
    validation_infos: Vec<Option<&'a [u8]>>,
    annotations: Vec<Option<&'a [u8]>>,
    processed_seconds: Vec<Option<i64>>,
    processed_nanos: Vec<Option<i32>>,
    failures: Vec<Option<&'a [u8]>>,
    for_clients: Waiting<'a>,
    for_server: Waiting<'a>,
    chunks: Chunks<'a>,
    /// Messages that come with a result.
    done: Vec<&'a [u8]>,
}

/// Messages without result.
#[derive(Default)]
struct Waiting<'a> {
    homes: Vec<&'a [u8]>,
    ids: Vec<&'a [u8]>,
    services: Vec<&'a [u8]>,
    due_micros: Vec<i64>,
    type_urls: Vec<Option<&'a [u8]>>,
    values: Vec<Option<&'a [u8]>>,
    value_bytes: Vec<i64>,
    chunk_counts: Vec<i32>,
}

/// The pieces of large payloads.
#[derive(Default)]
struct Chunks<'a> {
    homes: Vec<&'a [u8]>,
    ids: Vec<&'a [u8]>,
    numbers: Vec<i32>,
    values: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    pub(crate) fn of(
        records: &'a [MessageRecord],
        due_micros: impl Fn(&MessageRecord) -> i64,
    ) -> Self {
        let mut columns = Self::default();
        for record in records {
            columns.push(record, due_micros(record), None);
        }
        columns
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    fn push(
        &mut self,
        record: &'a MessageRecord,
        due_micros: i64,
        contact: Option<&'a ContactKey>,
    ) {
        let client = |client: &'a Option<ClientId>| client.as_ref().map(AsRef::as_ref);
        let destination: Option<&[u8]> = client(&record.destination_client);
        let home = destination
            .or(client(&record.source_client))
            .unwrap_or_default();
        self.homes.push(home);
        self.ids.push(record.id.as_ref());
        self.contact_clients.push(contact.map(ContactKey::client));
        self.contact_ids.push(contact.map(ContactKey::id));
        self.source_clients.push(client(&record.source_client));
        self.source_services.push(record.source_service.as_bytes());
        self.source_message_ids.push(&record.source_message_id);
        self.destination_clients.push(destination);
        self.destination_services
            .push(record.destination_service.as_bytes());
        self.types.push(record.message_type.as_bytes());
        self.creation_seconds.push(record.creation_time.seconds);
        self.creation_nanos.push(record.creation_time.nanos);
        self.validation_infos
            .push(record.validation_info.as_deref());
        self.annotations.push(record.annotations.as_deref());
        let result = record.result.as_ref();
        self.processed_seconds
            .push(result.map(|result| result.processed_time.seconds));
        self.processed_nanos
            .push(result.map(|result| result.processed_time.nanos));
        self.failures.push(result.and_then(failure));
        if result.is_some() {
            self.done.push(record.id.as_ref());
            return;
        }
        let waiting = match record.destination_client {
            Some(_) => &mut self.for_clients,
            None => &mut self.for_server,
        };
        waiting.homes.push(home);
        waiting.ids.push(record.id.as_ref());
        waiting.services.push(record.destination_service.as_bytes());
        waiting.due_micros.push(due_micros);
        let data = record.data.as_ref();
        waiting
            .type_urls
            .push(data.map(|data| data.type_url.as_bytes()));
        let value = data.map_or(&[][..], |data| &data.value);
        let value_bytes = i64::try_from(value.len()).expect("at most 16 MiB");
        waiting.value_bytes.push(value_bytes);
        if value.len() > CHUNKED_ABOVE_BYTES {
            let count = self.chunks.push(home, record.id.as_ref(), value);
            waiting.chunk_counts.push(count);
            waiting.values.push(None);
        } else {
            waiting.chunk_counts.push(0);
            waiting.values.push(data.map(|_| value));
        }
    }
}

impl<'a> Chunks<'a> {
    fn push(&mut self, home: &'a [u8], id: &'a [u8], value: &'a [u8]) -> i32 {
        let mut count = 0;
        for chunk in value.chunks(CHUNK_BYTES) {
            self.homes.push(home);
            self.ids.push(id);
            self.numbers.push(count);
            self.values.push(chunk);
            count += 1;
        }
        count
    }
}

pub(crate) fn failure(result: &ResultRecord) -> Option<&[u8]> {
    result.failure.as_ref().map(String::as_bytes)
}

/// Stores new messages or new results, links them to their contacts, and commits.
pub(crate) async fn store(tx: Tx, new: &Columns<'_>) -> Worked<()> {
    let messages = new.messages(&false);
    let mut batch: Vec<(&Query, Values<'_>)> = vec![(&STORE, &messages)];
    let (for_clients, for_server) = (new.for_clients.values(), new.for_server.values());
    let chunks = new.chunks.values();
    new.push_payloads(&mut batch, &for_clients, &for_server, &chunks);
    let done: Values<'_> = &[&new.done];
    if !new.done.is_empty() {
        batch.push((&SETTLE, done));
    }
    let links: Values<'_> = &[&new.contact_clients, &new.contact_ids, &new.ids];
    if new.contact_ids.iter().any(Option::is_some) {
        batch.push((&LINK, links));
    }
    tx.finish(&batch).await.map(drop)
}

/// Runs `first`, then stores messages whose ids are unknown, in one round trip;
/// returns the answers to `first`.
pub(crate) async fn insert(
    tx: &Tx,
    first: &[(&Query, Values<'_>)],
    new: &Columns<'_>,
) -> Worked<Vec<Vec<Row>>> {
    let messages = new.messages(&true);
    let mut batch = first.to_vec();
    batch.push((&STORE, &messages));
    let (for_clients, for_server) = (new.for_clients.values(), new.for_server.values());
    let chunks = new.chunks.values();
    new.push_payloads(&mut batch, &for_clients, &for_server, &chunks);
    tx.all(&batch).await
}

pub(crate) type Parameter<'v> = &'v (dyn tokio_postgres::types::ToSql + Sync);

impl Columns<'_> {
    fn messages<'v>(&'v self, only_new: &'v bool) -> [Parameter<'v>; 18] {
        [
            &self.homes,
            &self.ids,
            &self.source_clients,
            &self.source_services,
            &self.source_message_ids,
            &self.destination_clients,
            &self.destination_services,
            &self.types,
            &self.creation_seconds,
            &self.creation_nanos,
            &self.validation_infos,
            &self.annotations,
            &self.processed_seconds,
            &self.processed_nanos,
            &self.failures,
            &self.contact_clients,
            &self.contact_ids,
            only_new,
        ]
    }

    fn push_payloads<'v>(
        &self,
        batch: &mut Vec<(&'v Query, Values<'v>)>,
        for_clients: Values<'v>,
        for_server: Values<'v>,
        chunks: Values<'v>,
    ) {
        if !self.for_clients.ids.is_empty() {
            batch.push((&WAIT_FOR_CLIENTS, for_clients));
        }
        if !self.for_server.ids.is_empty() {
            batch.push((&WAIT_FOR_SERVER, for_server));
        }
        if !self.chunks.ids.is_empty() {
            batch.push((&STORE_CHUNKS, chunks));
        }
    }
}

impl Waiting<'_> {
    fn values(&self) -> [Parameter<'_>; 8] {
        [
            &self.homes,
            &self.ids,
            &self.services,
            &self.due_micros,
            &self.type_urls,
            &self.values,
            &self.value_bytes,
            &self.chunk_counts,
        ]
    }
}

impl Chunks<'_> {
    fn values(&self) -> [Parameter<'_>; 4] {
        [&self.homes, &self.ids, &self.numbers, &self.values]
    }
}

// A message that is known keeps its home and its fields. Its row is locked also
// if nothing changes, so that the statements after this one see its final state.
const STORE: Query = Query {
    sql: "\
-- store_messages
INSERT INTO messages AS known (
    client_id, message_id, source_client, source_service, source_message_id,
    destination_client, destination_service, message_type, creation_seconds, creation_nanos,
    validation_info, annotations, contact_id, processed_seconds, processed_nanos, failure
)
SELECT
    coalesce((
        SELECT other.client_id FROM messages AS other
        WHERE other.message_id = input.message_id LIMIT 1
    ), input.client_id),
    message_id, source_client, source_service, source_message_id, destination_client,
    destination_service, message_type, creation_seconds, creation_nanos, validation_info,
    annotations,
    CASE WHEN source_client = input.contact_client THEN (
        SELECT contacts.contact_id FROM contacts
        WHERE contacts.client_id = input.contact_client AND contacts.contact_id = input.contact_id
    ) END,
    processed_seconds, processed_nanos, failure
FROM unnest(
    $1::bytea[], $2::bytea[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bytea[],
    $8::bytea[], $9::bigint[], $10::integer[], $11::bytea[], $12::bytea[], $13::bigint[],
    $14::integer[], $15::bytea[], $16::bytea[], $17::bytea[]
) AS input (
    client_id, message_id, source_client, source_service, source_message_id,
    destination_client, destination_service, message_type, creation_seconds, creation_nanos,
    validation_info, annotations, processed_seconds, processed_nanos, failure, contact_client,
    contact_id
)
ON CONFLICT (message_id, client_id) DO UPDATE
SET processed_seconds = excluded.processed_seconds,
    processed_nanos = excluded.processed_nanos,
    failure = excluded.failure
WHERE NOT $18 AND excluded.processed_seconds IS NOT NULL
AND (excluded.failure IS NULL OR known.processed_seconds IS NULL)",
    types: &[
        BYTES_LIST, BYTES_LIST, BYTES_LIST, BYTES_LIST, BYTES_LIST, BYTES_LIST, BYTES_LIST,
        BYTES_LIST, LONG_LIST, INT_LIST, BYTES_LIST, BYTES_LIST, LONG_LIST, INT_LIST, BYTES_LIST,
        BYTES_LIST, BYTES_LIST, BOOL,
    ],
};

// A message that was known waits already, or has a result, or goes elsewhere.
const WAIT_FOR_CLIENTS: Query = Query {
    sql: "\
-- store_messages (for clients)
INSERT INTO client_pending (
    client_id, message_id, service, due_micros, claims, claim_token, was_due_micros, type_url,
    value, value_bytes, chunks
)
SELECT
    client_id, message_id, service, due_micros, 0, 0, due_micros, type_url, value, value_bytes,
    chunks
FROM unnest(
    $1::bytea[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bytea[], $6::bytea[], $7::bigint[],
    $8::integer[]
) AS input (client_id, message_id, service, due_micros, type_url, value, value_bytes, chunks)
WHERE (
    SELECT processed_seconds IS NULL AND destination_client IS NOT NULL FROM messages
    WHERE messages.client_id = input.client_id AND messages.message_id = input.message_id
)
ON CONFLICT DO NOTHING",
    types: &[
        BYTES_LIST, BYTES_LIST, BYTES_LIST, LONG_LIST, BYTES_LIST, BYTES_LIST, LONG_LIST, INT_LIST,
    ],
};

const WAIT_FOR_SERVER: Query = Query {
    sql: "\
-- store_messages (for the server)
INSERT INTO server_pending (
    client_id, message_id, service, due_micros, claims, claim_token, was_due_micros, type_url,
    value, value_bytes, chunks
)
SELECT
    client_id, message_id, service, due_micros, 0, 0, due_micros, type_url, value, value_bytes,
    chunks
FROM unnest(
    $1::bytea[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bytea[], $6::bytea[], $7::bigint[],
    $8::integer[]
) AS input (client_id, message_id, service, due_micros, type_url, value, value_bytes, chunks)
WHERE (
    SELECT processed_seconds IS NULL AND destination_client IS NULL FROM messages
    WHERE messages.client_id = input.client_id AND messages.message_id = input.message_id
)
ON CONFLICT DO NOTHING",
    types: &[
        BYTES_LIST, BYTES_LIST, BYTES_LIST, LONG_LIST, BYTES_LIST, BYTES_LIST, LONG_LIST, INT_LIST,
    ],
};

// Pieces of a message that was known already are beyond its count, or there.
const STORE_CHUNKS: Query = Query {
    sql: "\
-- store_messages (chunks)
INSERT INTO payload_chunks (client_id, message_id, chunk, value)
SELECT input.client_id, input.message_id, input.chunk, input.value
FROM unnest($1::bytea[], $2::bytea[], $3::integer[], $4::bytea[])
    AS input (client_id, message_id, chunk, value)
WHERE (
    SELECT processed_seconds IS NULL FROM messages
    WHERE messages.client_id = input.client_id AND messages.message_id = input.message_id
)
ON CONFLICT DO NOTHING",
    types: &[BYTES_LIST, BYTES_LIST, INT_LIST, BYTES_LIST],
};

pub(crate) const SETTLE: Query = Query {
    sql: "\
-- settle
WITH for_clients AS (
    DELETE FROM client_pending WHERE message_id = ANY($1)
), for_server AS (
    DELETE FROM server_pending WHERE message_id = ANY($1)
)
DELETE FROM payload_chunks WHERE message_id = ANY($1)",
    types: &[BYTES_LIST],
};

/// Links messages to contacts that exist, those that they brought excepted.
const LINK: Query = Query {
    sql: "\
-- store_messages (link)
INSERT INTO contact_messages (client_id, contact_id, message_id)
SELECT contacts.client_id, contacts.contact_id, input.message_id
FROM unnest($1::bytea[], $2::bytea[], $3::bytea[]) AS input (client_id, contact_id, message_id)
CROSS JOIN LATERAL (
    SELECT client_id, contact_id FROM contacts
    WHERE contacts.client_id = input.client_id AND contacts.contact_id = input.contact_id LIMIT 1
) AS contacts
CROSS JOIN LATERAL (
    SELECT contact_id FROM messages WHERE messages.message_id = input.message_id LIMIT 1
) AS messages
WHERE messages.contact_id IS DISTINCT FROM contacts.contact_id
ON CONFLICT DO NOTHING",
    types: &[BYTES_LIST, BYTES_LIST, BYTES_LIST],
};
