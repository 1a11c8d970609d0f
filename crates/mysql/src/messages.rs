//! Messages: storing, results, and what is pending.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use fleethold_proto::fleetspeak::{Message, MessageResult};
use fleethold_store::clock::timestamp;
use fleethold_store::limits::check_page;
use fleethold_store::record::{MessageRecord, ResultRecord};
use fleethold_store::{
    ClaimServerMessages, ClientId, ContactId, Error, ErrorKind, MessageId, MessageProcessor,
    MessageStore, REMOVED_BY_ADMIN, Result, ServiceLimits,
};
use futures::FutureExt;

use crate::MysqlStore;
use crate::changes::Change;
use crate::error::Worked;
use crate::incoming::{DELETE_PENDING, New};
use crate::rows::{self, take_id};
use crate::sql::{Batch, List, MOST_ROWS, Value, slices};
use crate::transaction::{Context, Replay, Tx};

#[async_trait]
impl MessageStore for MysqlStore {
    async fn store_messages(
        &self,
        messages: &[Message],
        contact: Option<&ContactId>,
    ) -> Result<()> {
        const OPERATION: &str = "store_messages";
        let contact = contact
            .map(|contact| contact.number(OPERATION))
            .transpose()?;
        let records = parse(OPERATION, messages, &self.shared.context)?;
        if records.is_empty() {
            return self.shared.check_open(OPERATION);
        }
        let new = New::of(records, &self.shared.context);
        let store = Change::Store { new, contact };
        self.shared.change(OPERATION, store).await.map(drop)
    }

    async fn set_message_result(
        &self,
        _destination: Option<ClientId>,
        id: MessageId,
        result: &MessageResult,
    ) -> Result<()> {
        const OPERATION: &str = "set_message_result";
        let result = ResultRecord::parse(OPERATION, result)?;
        self.set_results(OPERATION, vec![(id, result)]).await
    }

    async fn set_message_results(&self, results: &[(MessageId, MessageResult)]) -> Result<()> {
        const OPERATION: &str = "set_message_results";
        let results = results
            .iter()
            .map(|(id, result)| Ok((*id, ResultRecord::parse(OPERATION, result)?)))
            .collect::<Result<Vec<_>>>()?;
        self.set_results(OPERATION, results).await
    }

    async fn get_message_result(&self, id: MessageId) -> Result<Option<MessageResult>> {
        self.shared
            .read("get_message_result", id, |id, tx| {
                async move {
                    let id = Value::Bytes(id.as_bytes());
                    let replies = tx.only(Batch::of(READ_RESULT, &[id])).await?;
                    let mut rows = replies.into_iter().flat_map(|reply| reply.rows);
                    let result = rows.next().map(|mut row| rows::result(&mut row, 0));
                    Ok(result.transpose()?.flatten().map(ResultRecord::into_result))
                }
                .boxed()
            })
            .await
    }

    async fn get_messages(&self, ids: &[MessageId], want_data: bool) -> Result<Vec<Message>> {
        const OPERATION: &str = "get_messages";
        if ids.is_empty() {
            self.shared.check_open(OPERATION)?;
            return Ok(Vec::new());
        }
        let found = self
            .shared
            .read(
                OPERATION,
                (ids.to_vec(), want_data),
                |(ids, want_data), tx| async move { read_all(tx, ids, *want_data).await }.boxed(),
            )
            .await?;
        if found.is_empty() {
            return Err(Error::not_found(OPERATION, "none of the messages exists"));
        }
        Ok(found)
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
            .map(|rows| usize::try_from(rows).unwrap_or(usize::MAX));
        let arguments = (clients.to_vec(), offset, limit, want_data);
        self.shared
            .read(
                OPERATION,
                arguments,
                |(clients, offset, limit, want_data), tx| {
                    async move {
                        let pending = pending_ids(tx, clients).await?;
                        let ids: Vec<_> = pending.into_iter().skip(*offset).take(*limit).collect();
                        read_all(tx, &ids, *want_data).await
                    }
                    .boxed()
                },
            )
            .await
    }

    async fn get_pending_message_count(&self, clients: &[ClientId]) -> Result<u64> {
        let clients = clients.to_vec();
        self.shared
            .read("get_pending_message_count", clients, |clients, tx| {
                async move {
                    let pending = pending_ids(tx, clients).await?;
                    Ok(u64::try_from(pending.len()).unwrap_or(u64::MAX))
                }
                .boxed()
            })
            .await
    }

    async fn delete_pending_messages(&self, clients: &[ClientId]) -> Result<()> {
        const OPERATION: &str = "delete_pending_messages";
        if clients.is_empty() {
            return self.shared.check_open(OPERATION);
        }
        let result = ResultRecord {
            processed_time: timestamp(self.shared.context.clock.now()),
            failure: Some(REMOVED_BY_ADMIN.to_owned()),
        };
        self.shared
            .write(
                OPERATION,
                Replay::Safe,
                (clients.to_vec(), result),
                |(clients, result), tx| {
                    async move {
                        let pending = pending_ids(tx, clients).await?;
                        let pending: Vec<_> = pending.into_iter().collect();
                        for some in pending.chunks(10 * MOST_ROWS) {
                            let mut batch = Batch::default();
                            fail_pending(&mut batch, some, result);
                            tx.run(batch).await?;
                        }
                        tx.commit(Batch::default()).await?;
                        Ok(())
                    }
                    .boxed()
                },
            )
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

impl MysqlStore {
    async fn set_results(
        &self,
        operation: &'static str,
        results: Vec<(MessageId, ResultRecord)>,
    ) -> Result<()> {
        if results.is_empty() {
            return self.shared.check_open(operation);
        }
        // The last one of each message wins; the order keeps callers from deadlocks.
        let results: BTreeMap<_, _> = results.into_iter().collect();
        let results: Vec<_> = results.into_iter().collect();
        let finish = Change::Finish(results);
        self.shared.change(operation, finish).await.map(drop)
    }
}

/// Parses messages and refuses payloads that this database cannot hold.
pub(crate) fn parse(
    operation: &'static str,
    messages: &[Message],
    context: &Context,
) -> Result<Vec<MessageRecord>> {
    messages
        .iter()
        .map(|message| {
            let record = MessageRecord::parse(operation, message)?;
            let bytes = record.data.as_ref().map_or(0, |data| data.value.len());
            check_fits(operation, bytes, context)?;
            Ok(record)
        })
        .collect()
}

/// Refuses what the database's columns or packets have no room for.
pub(crate) fn check_fits(operation: &'static str, bytes: usize, context: &Context) -> Result<()> {
    let most = context.facts.most_payload_bytes;
    if bytes > most {
        return Err(Error::new(
            ErrorKind::TooLarge,
            operation,
            format!(
                "{bytes} bytes are more than the {most} that this database takes; its log at start says why"
            ),
        ));
    }
    Ok(())
}

/// Adds the statements that set results, whatever was there, and drop payloads.
pub(crate) fn set_results(batch: &mut Batch, results: &[(MessageId, ResultRecord)]) {
    let same = results.first().map(|(_, first)| first);
    match same.filter(|same| results.iter().all(|(_, result)| result == *same)) {
        Some(result) => {
            for slice in results.chunks(MOST_ROWS) {
                let ids = List::ids(slice.iter().map(|(id, _)| id));
                add_result(batch, SET_RESULT, result, &ids);
            }
        }
        None => set_each(batch, results),
    }
    for slice in results.chunks(MOST_ROWS) {
        let ids = List::ids(slice.iter().map(|(id, _)| id));
        batch.add(DELETE_PENDING, &[Value::List(&ids)]);
    }
}

/// Adds the statements that fail pending messages and drop their payloads; one
/// that was finished meanwhile keeps its result.
pub(crate) fn fail_pending(batch: &mut Batch, ids: &[MessageId], result: &ResultRecord) {
    for slice in ids.chunks(MOST_ROWS) {
        add_result(batch, FAIL_PENDING, result, &List::ids(slice));
    }
    for slice in ids.chunks(MOST_ROWS) {
        batch.add(DELETE_PENDING, &[Value::List(&List::ids(slice))]);
    }
}

fn add_result(batch: &mut Batch, sql: &'static str, result: &ResultRecord, ids: &List<'_>) {
    let [seconds, nanos, failed, reason] = values_of(result);
    batch.add(sql, &[seconds, nanos, failed, reason, Value::List(ids)]);
}

// A table of constants costs the database about twice what a list does.
fn set_each(batch: &mut Batch, results: &[(MessageId, ResultRecord)]) {
    let bytes = |(_, result): &(MessageId, ResultRecord)| {
        100 + result.failure.as_ref().map_or(0, String::len)
    };
    for slice in slices(results, bytes) {
        let rows = slice.iter().map(|(id, result)| {
            let [seconds, nanos, failed, reason] = values_of(result);
            [Value::Bytes(id.as_bytes()), seconds, nanos, failed, reason]
        });
        let table = List::table(
            "SELECT ? AS id, ? AS seconds, ? AS nanos, ? AS failed, ? AS reason",
            "SELECT ?, ?, ?, ?, ?",
            rows,
        );
        batch.add(SET_RESULTS, &[Value::List(&table)]);
    }
}

fn values_of(result: &ResultRecord) -> [Value<'_>; 4] {
    let failure = result.failure.as_deref();
    [
        Value::Int(result.processed_time.seconds),
        Value::Int(result.processed_time.nanos.into()),
        failure.map(|_| 1).into(),
        failure.into(),
    ]
}

const SET_RESULT: &str = "\
-- set_message_results (all the same)
UPDATE messages FORCE INDEX (PRIMARY)
SET processed_time_seconds = ?, processed_time_nanos = ?, failed = ?, failed_reason = ?
WHERE message_id IN (?)";

const SET_RESULTS: &str = "\
-- set_message_results
UPDATE (?) AS given STRAIGHT_JOIN messages ON messages.message_id = given.id
SET
    messages.processed_time_seconds = given.seconds,
    messages.processed_time_nanos = given.nanos,
    messages.failed = given.failed,
    messages.failed_reason = given.reason";

const FAIL_PENDING: &str = "\
-- delete_pending_messages
UPDATE messages FORCE INDEX (PRIMARY)
SET processed_time_seconds = ?, processed_time_nanos = ?, failed = ?, failed_reason = ?
WHERE message_id IN (?) AND processed_time_seconds IS NULL";

const READ_RESULT: &str = "\
-- get_message_result
SELECT processed_time_seconds, processed_time_nanos, failed, failed_reason
FROM messages WHERE message_id = ?";

/// Returns all that is pending for clients, also what a stock server has stored.
async fn pending_ids(tx: &mut Tx, clients: &[ClientId]) -> Worked<BTreeSet<MessageId>> {
    let mut found = BTreeSet::new();
    for clients in clients.chunks(MOST_ROWS) {
        let ranges: Vec<_> = clients.iter().map(|client| rows::queues(*client)).collect();
        let ranges = ranges
            .iter()
            .map(|[first, last]| [Value::Bytes(first), Value::Bytes(last)]);
        let ranges = List::rows("fleethold_queue BETWEEN ? AND ?", " OR ", ranges);
        let mut batch = Batch::of(LIST_PENDING, &[Value::List(&ranges)]);
        let clients = List::ids(clients);
        batch.add(LIST_FOREIGN, &[Value::List(&clients)]);
        for reply in tx.run(batch).await? {
            for mut row in reply.rows {
                found.insert(take_id(&mut row, 0)?);
            }
        }
    }
    Ok(found)
}

const LIST_PENDING: &str = "\
-- pending_ids
SELECT message_id FROM pending_messages WHERE ?";

const LIST_FOREIGN: &str = "\
-- pending_ids (of stock servers)
SELECT pending_messages.message_id FROM pending_messages
JOIN messages ON messages.message_id = pending_messages.message_id
WHERE pending_messages.fleethold_queue IS NULL AND pending_messages.for_server = 0
AND messages.destination_client_id IN (?)";

/// Returns messages in the order of `ids`, one for each occurrence, and ends
/// the transaction.
async fn read_all(tx: &mut Tx, ids: &[MessageId], want_data: bool) -> Worked<Vec<Message>> {
    let mut found: HashMap<MessageId, Message> = HashMap::with_capacity(ids.len());
    let sql = if want_data {
        READ_WITH_DATA
    } else {
        READ_MESSAGES
    };
    let slices: Vec<_> = ids.chunks(MOST_ROWS).collect();
    let count = slices.len();
    for (number, slice) in slices.into_iter().enumerate() {
        let ids = List::ids(slice);
        let batch = Batch::of(sql, &[Value::List(&ids)]);
        let replies = match (number, count) {
            (0, 1) if tx.is_fresh() => tx.only(batch).await?,
            (number, count) if number + 1 == count => tx.commit(batch).await?,
            _ => tx.run(batch).await?,
        };
        for mut row in replies.into_iter().flat_map(|reply| reply.rows) {
            let record = rows::message(&mut row)?;
            found.insert(record.id, record.into_message());
        }
    }
    Ok(ids.iter().filter_map(|id| found.get(id).cloned()).collect())
}

const READ_MESSAGES: &str = "\
-- read_messages
SELECT
    messages.message_id, source_client_id, source_service_name,
    COALESCE(fleethold_messages.source_message_id, messages.source_message_id),
    destination_client_id, destination_service_name, message_type,
    creation_time_seconds, creation_time_nanos, validation_info, annotations,
    processed_time_seconds, processed_time_nanos, failed, failed_reason, NULL, NULL
FROM messages
LEFT JOIN fleethold_messages ON fleethold_messages.message_id = messages.message_id
WHERE messages.message_id IN (?)";

pub(crate) const READ_WITH_DATA: &str = "\
-- read_messages (with data)
SELECT
    messages.message_id, source_client_id, source_service_name,
    COALESCE(fleethold_messages.source_message_id, messages.source_message_id),
    destination_client_id, destination_service_name, message_type,
    creation_time_seconds, creation_time_nanos, validation_info, annotations,
    processed_time_seconds, processed_time_nanos, failed, failed_reason,
    data_type_url, data_value
FROM messages
LEFT JOIN pending_messages
    ON pending_messages.for_server = (destination_client_id IS NULL)
    AND pending_messages.message_id = messages.message_id
LEFT JOIN fleethold_messages ON fleethold_messages.message_id = messages.message_id
WHERE messages.message_id IN (?)";
