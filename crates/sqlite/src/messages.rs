//! Messages: storing, results, and what is pending.

use std::ops::ControlFlow;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use fleethold_proto::fleetspeak::{Message, MessageResult};
use fleethold_store::clock::{epoch_micros, timestamp};
use fleethold_store::limits::check_page;
use fleethold_store::record::{MessageRecord, ResultRecord};
use fleethold_store::{
    ClaimServerMessages, ClientId, ContactId, Error, MessageId, MessageProcessor, MessageStore,
    REMOVED_BY_ADMIN, Result, ServiceLimits,
};
use rusqlite::{CachedStatement, Connection, params};

use crate::error::Worked;
use crate::ids::Wanted;
use crate::rows::{self, array, read_messages};
use crate::writer::Tx;
use crate::{SqliteStore, contacts};

#[async_trait]
impl MessageStore for SqliteStore {
    async fn store_messages(
        &self,
        messages: &[Message],
        contact: Option<&ContactId>,
    ) -> Result<()> {
        const OPERATION: &str = "store_messages";
        let contact = contact
            .map(|contact| contact.number(OPERATION))
            .transpose()?;
        let records = parse(OPERATION, messages)?;
        if records.is_empty() {
            return self.shared.check_open(OPERATION);
        }
        self.shared
            .write(OPERATION, move |tx| {
                let contact = match contact {
                    Some(contact) if contacts::exists(tx, contact)? => Some(contact),
                    Some(contact) => {
                        tracing::warn!(contact, "messages are not linked to an unknown contact");
                        None
                    }
                    None => None,
                };
                store(tx, &records, contact)
            })
            .await
    }

    async fn set_message_result(
        &self,
        _destination: Option<ClientId>,
        id: MessageId,
        result: &MessageResult,
    ) -> Result<()> {
        const OPERATION: &str = "set_message_result";
        let result = ResultRecord::parse(OPERATION, result)?;
        self.shared
            .write(OPERATION, move |tx| set_results(tx, &[(id, result)]))
            .await
    }

    async fn set_message_results(&self, results: &[(MessageId, MessageResult)]) -> Result<()> {
        const OPERATION: &str = "set_message_results";
        let results = results
            .iter()
            .map(|(id, result)| Ok((*id, ResultRecord::parse(OPERATION, result)?)))
            .collect::<Result<Vec<_>>>()?;
        if results.is_empty() {
            return self.shared.check_open(OPERATION);
        }
        self.shared
            .write(OPERATION, move |tx| set_results(tx, &results))
            .await
    }

    async fn get_message_result(&self, id: MessageId) -> Result<Option<MessageResult>> {
        let wanted = self.shared.context.ids.want(id);
        self.shared
            .read("get_message_result", move |connection| {
                let Some(message) = wanted.find(connection)? else {
                    return Ok(None);
                };
                let result = connection
                    .prepare_cached(READ_RESULT)?
                    .query_row([message], |row| rows::result(row, 0))?;
                Ok(result.map(ResultRecord::into_result))
            })
            .await
    }

    async fn get_messages(&self, ids: &[MessageId], want_data: bool) -> Result<Vec<Message>> {
        const OPERATION: &str = "get_messages";
        if ids.is_empty() {
            self.shared.check_open(OPERATION)?;
            return Ok(Vec::new());
        }
        let recent = &self.shared.context.ids;
        let wanted: Vec<_> = ids.iter().map(|id| recent.want(*id)).collect();
        self.shared
            .read(OPERATION, move |connection| {
                let messages = find_all(connection, &wanted)?;
                if messages.is_empty() {
                    return Err(Error::not_found(OPERATION, "none of the messages exists").into());
                }
                read_all(connection, &messages, want_data)
            })
            .await
    }

    async fn get_pending_messages(
        &self,
        clients: &[ClientId],
        offset: u64,
        limit: u64,
        want_data: bool,
    ) -> Result<Vec<Message>> {
        const OPERATION: &str = "get_pending_messages";
        let [offset, limit] = check_page(OPERATION, offset, limit)?
            .map(|rows| i64::try_from(rows).unwrap_or(i64::MAX));
        let clients = clients.to_vec();
        self.shared
            .read(OPERATION, move |connection| {
                let messages = connection
                    .prepare_cached(LIST_PENDING)?
                    .query_map(params![rows::ids(&clients), limit, offset], |row| {
                        row.get(0)
                    })?
                    .collect::<Result<Vec<_>, _>>()?;
                read_all(connection, &messages, want_data)
            })
            .await
    }

    async fn get_pending_message_count(&self, clients: &[ClientId]) -> Result<u64> {
        let clients = clients.to_vec();
        self.shared
            .read("get_pending_message_count", move |connection| {
                let count: i64 = connection
                    .prepare_cached(COUNT_PENDING)?
                    .query_row([rows::ids(&clients)], |row| row.get(0))?;
                Ok(count.cast_unsigned())
            })
            .await
    }

    async fn delete_pending_messages(&self, clients: &[ClientId]) -> Result<()> {
        const OPERATION: &str = "delete_pending_messages";
        self.shared.check_open(OPERATION)?;
        if clients.is_empty() {
            return Ok(());
        }
        let clients = clients.to_vec();
        self.shared
            .writer
            .run_large(OPERATION, move |tx| delete_pending(tx, &clients))
            .await
    }

    async fn client_messages_for_processing(
        &self,
        client: ClientId,
        limit: u64,
        service_limits: Option<&ServiceLimits>,
    ) -> Result<Vec<Message>> {
        self.shared
            .claim_client_messages(client, limit, service_limits.cloned())
            .await
    }

    async fn server_messages_for_processing(&self, limit: u64) -> Result<Vec<Message>> {
        self.shared.claim_server_messages(limit).await
    }

    async fn release_messages(&self, client: ClientId, ids: &[MessageId]) -> Result<()> {
        self.shared
            .release_client_messages(client, ids.to_vec())
            .await
    }

    async fn register_message_processor(&self, processor: Arc<dyn MessageProcessor>) {
        let shared = Arc::downgrade(&self.shared);
        self.processor
            .register(shared as Weak<dyn ClaimServerMessages>, processor)
            .await;
    }

    async fn stop_message_processor(&self) {
        self.processor.stop().await;
    }
}

pub(crate) fn parse(operation: &'static str, messages: &[Message]) -> Result<Vec<MessageRecord>> {
    messages
        .iter()
        .map(|message| MessageRecord::parse(operation, message))
        .collect()
}

/// Stores new messages or new results, and links all of them to `contact`.
pub(crate) fn store(tx: &Tx<'_>, records: &[MessageRecord], contact: Option<i64>) -> Worked<()> {
    let mut insert = Insert::prepare(tx)?;
    let mut known = Vec::new();
    for record in records {
        let due_micros = record.result.is_none().then(|| {
            epoch_micros(match record.destination_client {
                Some(_) => tx.clock().now(),
                None => tx.clock().server_retry_time(0),
            })
        });
        let Some(message) = insert.run(tx, record, contact, due_micros)? else {
            continue;
        };
        known.push(message);
        if let Some(result) = &record.result {
            set_result(tx, message, result, result.failure.is_some())?;
        }
    }
    match contact {
        Some(contact) if !known.is_empty() => contacts::link(tx, contact, known),
        _ => Ok(()),
    }
}

/// Stores a message that is due at `due` unless its id is known.
pub(crate) fn insert(tx: &Tx<'_>, record: &MessageRecord, due_micros: i64) -> Worked<i64> {
    let due_micros = record.result.is_none().then_some(due_micros);
    let known = Insert::prepare(tx)?.run(tx, record, None, due_micros)?;
    // A payload has the number of its message, so this is the message either way.
    Ok(known.unwrap_or_else(|| tx.last_insert_rowid()))
}

/// Stores a message as another store had it; `None` if its id is known.
pub(crate) fn insert_as_it_is(
    tx: &Tx<'_>,
    record: &MessageRecord,
    due_micros: Option<i64>,
) -> Worked<Option<i64>> {
    let known = Insert::prepare(tx)?.run(tx, record, None, due_micros)?;
    // A payload has the number of its message, so this is the message either way.
    Ok(known.is_none().then(|| tx.last_insert_rowid()))
}

struct Insert<'tx> {
    message: CachedStatement<'tx>,
    payload: CachedStatement<'tx>,
}

impl<'tx> Insert<'tx> {
    fn prepare(tx: &'tx Tx<'_>) -> Worked<Self> {
        Ok(Self {
            message: tx.prepare_cached(INSERT_MESSAGE)?,
            payload: tx.prepare_cached(INSERT_PAYLOAD)?,
        })
    }

    /// Inserts a message unless its id is known; returns the message that has it.
    fn run(
        &mut self,
        tx: &Tx<'_>,
        record: &MessageRecord,
        contact: Option<i64>,
        due_micros: Option<i64>,
    ) -> Worked<Option<i64>> {
        let wanted = tx.ids().want(record.id);
        if let Some(message) = wanted.find_recent(tx)? {
            return Ok(Some(message));
        }
        let result = record.result.as_ref();
        let processed = result.map(|result| result.processed_time);
        let inserted = self.message.execute(params![
            wanted.hash,
            record.id.as_bytes(),
            record.source_client.as_ref().map(ClientId::as_bytes),
            record.source_service,
            &record.source_message_id[..],
            record.destination_client.as_ref().map(ClientId::as_bytes),
            record.destination_service,
            record.message_type,
            record.creation_time.seconds,
            record.creation_time.nanos,
            record.validation_info.as_deref(),
            record.annotations.as_deref(),
            contact,
            processed.map(|time| time.seconds),
            processed.map(|time| time.nanos),
            result.and_then(|result| result.failure.as_ref()),
            due_micros,
        ])?;
        if inserted == 0 {
            return Ok(wanted.find(tx)?);
        }
        if let (Some(client), Some(_)) = (record.destination_client, due_micros) {
            tx.disturb(client);
        }
        let message = tx.last_insert_rowid();
        tx.ids().add(wanted.hash, message);
        if let Some(data) = &record.data {
            self.payload
                .execute(params![message, data.type_url, &data.value[..]])?;
        }
        Ok(None)
    }
}

// One statement looks for the id and inserts, so that storing reads nothing on
// its own. Ids that are not in message_ids yet have been looked for in memory.
const INSERT_MESSAGE: &str = "\
-- insert_message
INSERT INTO messages (
    message_id, source_client, source_service, source_message_id,
    destination_client, destination_service, message_type, creation_seconds, creation_nanos,
    validation_info, annotations, contact, processed_seconds, processed_nanos, failure, due_micros
)
SELECT ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17
WHERE NOT EXISTS (
    SELECT 1 FROM message_ids CROSS JOIN messages USING (message)
    WHERE message_ids.hash = ?1 AND messages.message_id = ?2
)";

const INSERT_PAYLOAD: &str = "\
-- insert_payload
INSERT INTO payloads (message, type_url, value) VALUES (?1, ?2, ?3)";

fn set_results(tx: &Tx<'_>, results: &[(MessageId, ResultRecord)]) -> Worked<()> {
    for (id, result) in results {
        if let Some(message) = tx.ids().want(*id).find(tx)? {
            set_result(tx, message, result, false)?;
        }
    }
    Ok(())
}

/// Sets the result of a message, perhaps only if it is pending, and drops its payload.
pub(crate) fn set_result(
    tx: &Tx<'_>,
    message: i64,
    result: &ResultRecord,
    only_pending: bool,
) -> Worked<()> {
    tx.prepare_cached(SET_RESULT)?.execute(params![
        message,
        result.processed_time.seconds,
        result.processed_time.nanos,
        result.failure,
        only_pending,
    ])?;
    tx.prepare_cached(DELETE_PAYLOAD)?.execute([message])?;
    Ok(())
}

const SET_RESULT: &str = "\
-- set_result
UPDATE messages
SET processed_seconds = ?2, processed_nanos = ?3, failure = ?4, due_micros = NULL
WHERE message = ?1 AND (processed_seconds IS NULL OR NOT ?5)";

const DELETE_PAYLOAD: &str = "\
-- delete_payload
DELETE FROM payloads WHERE message = ?1";

const READ_RESULT: &str = "\
-- get_message_result
SELECT processed_seconds, processed_nanos, failure FROM messages WHERE message = ?1";

/// Returns the messages that exist, in order.
pub(crate) fn find_all(connection: &Connection, wanted: &[Wanted]) -> Worked<Vec<i64>> {
    let mut messages = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        messages.extend(wanted.find(connection)?);
    }
    Ok(messages)
}

fn read_all(connection: &Connection, messages: &[i64], want_data: bool) -> Worked<Vec<Message>> {
    let mut list = Vec::with_capacity(messages.len());
    read_messages(connection, messages, want_data, |_, message| {
        list.push(message?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(list)
}

const LIST_PENDING: &str = "\
-- get_pending_messages
SELECT message FROM messages
WHERE destination_client IN rarray(?1) AND due_micros IS NOT NULL
ORDER BY message_id LIMIT ?2 OFFSET ?3";

const COUNT_PENDING: &str = "\
-- get_pending_message_count
SELECT count(*) FROM messages
WHERE destination_client IN rarray(?1) AND due_micros IS NOT NULL";

/// Fails all that is pending, in steps: the memory for one is bounded, the
/// transaction is one.
fn delete_pending(tx: &Tx<'_>, clients: &[ClientId]) -> Worked<()> {
    let clients = rows::ids(clients);
    let now = timestamp(tx.clock().now());
    let mut next = tx.prepare_cached(NEXT_PENDING)?;
    loop {
        let messages = next
            .query_map([&clients], |row| row.get(0))?
            .collect::<Result<Vec<i64>, _>>()?;
        if messages.is_empty() {
            return Ok(());
        }
        let messages = array(messages);
        tx.prepare_cached(FAIL_PENDING)?.execute(params![
            messages,
            now.seconds,
            now.nanos,
            REMOVED_BY_ADMIN
        ])?;
        tx.prepare_cached(DELETE_PAYLOADS)?.execute([&messages])?;
    }
}

const NEXT_PENDING: &str = "\
-- delete_pending_messages (next)
SELECT message FROM messages
WHERE destination_client IN rarray(?1) AND due_micros IS NOT NULL
LIMIT 10000";

const FAIL_PENDING: &str = "\
-- delete_pending_messages (fail)
UPDATE messages
SET processed_seconds = ?2, processed_nanos = ?3, failure = ?4, due_micros = NULL
WHERE message IN rarray(?1)";

const DELETE_PAYLOADS: &str = "\
-- delete_pending_messages (payloads)
DELETE FROM payloads WHERE message IN rarray(?1)";
