//! Messages: storing, results, and what is pending.
//!
//! A message changes its state by a change of its row in `messages`, whose lock
//! decides between calls at the same time. Only then rows of the pending tables
//! follow, in a statement of its own: so it sees what the other call did.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use fleethold_proto::fleetspeak::{Message, MessageResult};
use fleethold_store::clock::timestamp;
use fleethold_store::limits::check_page;
use fleethold_store::record::ResultRecord;
use fleethold_store::{
    ClaimServerMessages, ClientId, ContactId, Error, MessageId, MessageProcessor, MessageStore,
    REMOVED_BY_ADMIN, Result, ServiceLimits,
};

use crate::contacts::ContactKey;
use crate::incoming::{NewMessages, Parameter, SETTLE, failure, store};
use crate::query::{BOOL, BYTES, BYTES_LIST, INT, LONG, Query, Values, list, number};
use crate::rows::{self, unreadable};
use crate::transactions::Tx;
use crate::{PostgresStore, Shared};

/// More messages than this may take longer.
pub(crate) const MANY: usize = 1_000;

#[async_trait]
impl MessageStore for PostgresStore {
    async fn store_messages(
        &self,
        messages: &[Message],
        contact: Option<&ContactId>,
    ) -> Result<()> {
        const OPERATION: &str = "store_messages";
        let contact = contact
            .map(|contact| ContactKey::parse(OPERATION, contact))
            .transpose()?;
        let new = NewMessages::parse(OPERATION, messages)?;
        if new.records.is_empty() {
            return self.shared.check_open(OPERATION);
        }
        let columns = self.shared.columns(&new, contact.as_ref());
        if new.records.len() > MANY {
            self.shared
                .write_many(OPERATION, |tx| store(tx, &columns))
                .await?;
        } else {
            self.shared
                .write(OPERATION, |tx| store(tx, &columns))
                .await?;
        }
        self.shared.tell(&new);
        Ok(())
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
            .set_results(OPERATION, BTreeMap::from([(id, result)]))
            .await
    }

    async fn set_message_results(&self, results: &[(MessageId, MessageResult)]) -> Result<()> {
        const OPERATION: &str = "set_message_results";
        // The last result of a message counts.
        let results = results
            .iter()
            .map(|(id, result)| Ok((*id, ResultRecord::parse(OPERATION, result)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        if results.is_empty() {
            return self.shared.check_open(OPERATION);
        }
        self.shared.set_results(OPERATION, results).await
    }

    async fn get_message_result(&self, id: MessageId) -> Result<Option<MessageResult>> {
        const OPERATION: &str = "get_message_result";
        let rows = self
            .shared
            .read(OPERATION, &READ_RESULT, &[&id.as_ref()])
            .await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let result = rows::result(row, 0).map_err(unreadable(OPERATION))?;
        Ok(result.map(ResultRecord::into_result))
    }

    async fn get_messages(&self, ids: &[MessageId], want_data: bool) -> Result<Vec<Message>> {
        const OPERATION: &str = "get_messages";
        if ids.is_empty() {
            self.shared.check_open(OPERATION)?;
            return Ok(Vec::new());
        }
        let mut wanted = list(ids);
        wanted.sort_unstable();
        wanted.dedup();
        let values: Values<'_> = &[&wanted, &want_data];
        let rows = self.shared.read(OPERATION, &READ_MESSAGES, values).await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            let message = rows::message(row).map_err(unreadable(OPERATION))?;
            found.insert(message.message_id.clone(), message);
        }
        let messages: Vec<_> = ids
            .iter()
            .filter_map(|id| found.get(id.as_bytes().as_slice()).cloned())
            .collect();
        if messages.is_empty() {
            return Err(Error::not_found(OPERATION, "none of the messages exists"));
        }
        Ok(messages)
    }

    async fn get_pending_messages(
        &self,
        clients: &[ClientId],
        offset: u64,
        limit: u64,
        want_data: bool,
    ) -> Result<Vec<Message>> {
        const OPERATION: &str = "get_pending_messages";
        let [offset, limit] = check_page(OPERATION, offset, limit)?.map(number);
        let values: Values<'_> = &[&list(clients), &limit, &offset, &want_data];
        let rows = self
            .shared
            .read_many(OPERATION, &LIST_PENDING, values)
            .await?;
        rows.iter()
            .map(|row| rows::message(row).map_err(unreadable(OPERATION)))
            .collect()
    }

    async fn get_pending_message_count(&self, clients: &[ClientId]) -> Result<u64> {
        const OPERATION: &str = "get_pending_message_count";
        let rows = self
            .shared
            .read_many(OPERATION, &COUNT_PENDING, &[&list(clients)])
            .await?;
        let count = rows.first().map_or(0, |row| row.get::<_, i64>(0));
        Ok(count.cast_unsigned())
    }

    async fn delete_pending_messages(&self, clients: &[ClientId]) -> Result<()> {
        const OPERATION: &str = "delete_pending_messages";
        if clients.is_empty() {
            return self.shared.check_open(OPERATION);
        }
        let clients = list(clients);
        let now = timestamp(self.shared.clock.now());
        self.shared
            .write_many(OPERATION, |tx| {
                let clients = &clients;
                async move {
                    let reason = REMOVED_BY_ADMIN.as_bytes();
                    let values: Values<'_> = &[clients, &now.seconds, &now.nanos, &reason];
                    tx.last(&DELETE_PENDING, values).await.map(drop)
                }
            })
            .await
    }

    async fn client_messages_for_processing(
        &self,
        client: ClientId,
        limit: u64,
        service_limits: Option<&ServiceLimits>,
    ) -> Result<Vec<Message>> {
        self.shared
            .claim_client_messages(client, limit, service_limits)
            .await
    }

    async fn server_messages_for_processing(&self, limit: u64) -> Result<Vec<Message>> {
        self.shared.claim_server_messages(limit).await
    }

    async fn release_messages(&self, client: ClientId, ids: &[MessageId]) -> Result<()> {
        self.shared.release_client_messages(client, ids).await
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

impl Shared {
    pub(crate) async fn set_results(
        &self,
        operation: &'static str,
        results: BTreeMap<MessageId, ResultRecord>,
    ) -> Result<()> {
        let ids = list(results.keys());
        // Most calls have one result for all their messages.
        let mut groups: BTreeMap<_, Vec<&[u8]>> = BTreeMap::new();
        for (id, result) in &results {
            let time = result.processed_time;
            let group = (time.seconds, time.nanos, failure(result));
            groups.entry(group).or_default().push(id.as_ref());
        }
        let groups: Vec<_> = groups.into_iter().collect();
        let work = |tx: Tx| {
            let (ids, groups) = (&ids, &groups);
            async move {
                let values: Vec<[Parameter<'_>; 4]> = groups
                    .iter()
                    .map(|((seconds, nanos, failure), ids)| -> [Parameter<'_>; 4] {
                        [ids, seconds, nanos, failure]
                    })
                    .collect();
                let mut batch: Vec<(&Query, Values<'_>)> = values
                    .iter()
                    .map(|values| (&SET_RESULTS, &values[..]))
                    .collect();
                let settled: Values<'_> = &[ids];
                batch.push((&SETTLE, settled));
                tx.finish(&batch).await.map(drop)
            }
        };
        if ids.len() > MANY {
            return self.write_many(operation, work).await;
        }
        self.write(operation, work).await
    }
}

const SET_RESULTS: Query = Query {
    sql: "\
-- set_message_results
UPDATE messages SET processed_seconds = $2, processed_nanos = $3, failure = $4
WHERE message_id = ANY($1)",
    types: &[BYTES_LIST, LONG, INT, BYTES],
};

const READ_RESULT: Query = Query {
    sql: "\
-- get_message_result
SELECT processed_seconds, processed_nanos, failure FROM messages WHERE message_id = $1",
    types: &[BYTES],
};

const READ_MESSAGES: Query = Query {
    sql: "\
-- get_messages
SELECT
    messages.message_id, source_client, source_service, source_message_id, destination_client,
    destination_service, message_type, creation_seconds, creation_nanos, validation_info,
    annotations, processed_seconds, processed_nanos, failure, type_url,
    CASE WHEN chunks > 0 THEN (
        SELECT string_agg(chunk.value, ''::bytea ORDER BY chunk.chunk) FROM payload_chunks AS chunk
        WHERE chunk.client_id = messages.client_id AND chunk.message_id = messages.message_id
        AND chunk.chunk < chunks
    ) ELSE pending.value END
FROM messages
LEFT JOIN LATERAL (
    SELECT type_url, value, chunks FROM client_pending AS pending
    WHERE pending.client_id = messages.client_id AND pending.message_id = messages.message_id
    UNION ALL
    SELECT type_url, value, chunks FROM server_pending AS pending
    WHERE pending.client_id = messages.client_id AND pending.message_id = messages.message_id
) AS pending ON $2
WHERE messages.message_id = ANY($1)",
    types: &[BYTES_LIST, BOOL],
};

const LIST_PENDING: Query = Query {
    sql: "\
-- get_pending_messages
SELECT
    messages.message_id, source_client, source_service, source_message_id, destination_client,
    destination_service, message_type, creation_seconds, creation_nanos, validation_info,
    annotations, processed_seconds, processed_nanos, failure,
    CASE WHEN $4 THEN type_url END,
    CASE WHEN $4 AND chunks > 0 THEN (
        SELECT string_agg(chunk.value, ''::bytea ORDER BY chunk.chunk) FROM payload_chunks AS chunk
        WHERE chunk.client_id = pending.client_id AND chunk.message_id = pending.message_id
        AND chunk.chunk < chunks
    ) WHEN $4 THEN pending.value END
FROM (
    SELECT client_id, message_id, type_url, value, chunks FROM client_pending
    WHERE client_id = ANY($1) ORDER BY message_id LIMIT $2 OFFSET $3
) AS pending
CROSS JOIN LATERAL (
    SELECT
        message_id, source_client, source_service, source_message_id, destination_client,
        destination_service, message_type, creation_seconds, creation_nanos, validation_info,
        annotations, processed_seconds, processed_nanos, failure
    FROM messages
    WHERE messages.message_id = pending.message_id AND messages.client_id = pending.client_id
    LIMIT 1
) AS messages
ORDER BY pending.message_id",
    types: &[BYTES_LIST, LONG, LONG, BOOL],
};

const COUNT_PENDING: Query = Query {
    sql: "\
-- get_pending_message_count
SELECT count(*) FROM client_pending WHERE client_id = ANY($1)",
    types: &[BYTES_LIST],
};

const DELETE_PENDING: Query = Query {
    sql: "\
-- delete_pending_messages
WITH removed AS (
    DELETE FROM client_pending WHERE client_id = ANY($1) RETURNING message_id
), chunks AS (
    DELETE FROM payload_chunks
    WHERE message_id = ANY(ARRAY(SELECT message_id FROM removed)) AND client_id = ANY($1)
)
UPDATE messages SET processed_seconds = $2, processed_nanos = $3, failure = $4
WHERE message_id = ANY(ARRAY(SELECT message_id FROM removed)) AND client_id = ANY($1)",
    types: &[BYTES_LIST, LONG, INT, BYTES],
};
