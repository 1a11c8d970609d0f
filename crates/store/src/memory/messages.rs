//! Messages in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use fleethold_proto::fleetspeak::{Message, MessageResult};

use super::{MemoryStore, Shared};
use crate::clients::ContactId;
use crate::clock::{epoch_micros, timestamp};
use crate::error::{Error, Result};
use crate::ids::{ClientId, MessageId};
use crate::limits::{MAX_CLAIM_BYTES, MOST_EARLY_CLAIMS, check_page};
use crate::messages::{MessageStore, REMOVED_BY_ADMIN, ServiceLimits};
use crate::processor::{ClaimServerMessages, MessageProcessor};
use crate::record::{MessageRecord, ResultRecord};
use crate::stats::{MOST_OVERDUE_COUNTED, StoreStats};

#[async_trait]
impl MessageStore for MemoryStore {
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
        self.shared.with(OPERATION, |state| {
            let contact = contact.filter(|&contact| state.clients.has_contact(contact));
            self.shared.store(&mut state.messages, records, contact);
            Ok(())
        })
    }

    async fn set_message_result(
        &self,
        _destination: Option<ClientId>,
        id: MessageId,
        result: &MessageResult,
    ) -> Result<()> {
        const OPERATION: &str = "set_message_result";
        let result = ResultRecord::parse(OPERATION, result)?;
        self.shared.with(OPERATION, |state| {
            state.messages.set_result(id, result);
            Ok(())
        })
    }

    async fn set_message_results(&self, results: &[(MessageId, MessageResult)]) -> Result<()> {
        const OPERATION: &str = "set_message_results";
        let results = results
            .iter()
            .map(|(id, result)| Ok((*id, ResultRecord::parse(OPERATION, result)?)))
            .collect::<Result<Vec<_>>>()?;
        self.shared.with(OPERATION, |state| {
            for (id, result) in results {
                state.messages.set_result(id, result);
            }
            Ok(())
        })
    }

    async fn get_message_result(&self, id: MessageId) -> Result<Option<MessageResult>> {
        self.shared.with("get_message_result", |state| {
            let row = state.messages.rows.get(&id);
            Ok(row
                .and_then(|row| row.record.result.clone())
                .map(ResultRecord::into_result))
        })
    }

    async fn get_messages(&self, ids: &[MessageId], want_data: bool) -> Result<Vec<Message>> {
        const OPERATION: &str = "get_messages";
        self.shared.with(OPERATION, |state| {
            let messages: Vec<_> = ids
                .iter()
                .filter_map(|id| state.messages.rows.get(id))
                .map(|row| row.message(want_data))
                .collect();
            if messages.is_empty() && !ids.is_empty() {
                return Err(Error::not_found(OPERATION, "none of the messages exists"));
            }
            Ok(messages)
        })
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
        self.shared.with(OPERATION, |state| {
            Ok(state
                .messages
                .pending_ids(clients)
                .iter()
                .skip(offset)
                .take(limit)
                .map(|id| state.messages.rows[id].message(want_data))
                .collect())
        })
    }

    async fn get_pending_message_count(&self, clients: &[ClientId]) -> Result<u64> {
        self.shared.with("get_pending_message_count", |state| {
            let count = state.messages.pending_ids(clients).len();
            Ok(u64::try_from(count).expect("a count in memory"))
        })
    }

    async fn delete_pending_messages(&self, clients: &[ClientId]) -> Result<()> {
        self.shared.with("delete_pending_messages", |state| {
            let result = ResultRecord {
                processed_time: timestamp(self.shared.clock.now()),
                failure: Some(REMOVED_BY_ADMIN.to_owned()),
            };
            for id in state.messages.pending_ids(clients) {
                state.messages.set_result(id, result.clone());
            }
            Ok(())
        })
    }

    async fn client_messages_for_processing(
        &self,
        client: ClientId,
        limit: u64,
        service_limits: Option<&ServiceLimits>,
    ) -> Result<Vec<Message>> {
        let clock = &self.shared.clock;
        self.shared.with("client_messages_for_processing", |state| {
            Ok(state
                .messages
                .claim(Some(client), clock.now(), limit, service_limits, |_| {
                    clock.client_retry_time()
                }))
        })
    }

    async fn server_messages_for_processing(&self, limit: u64) -> Result<Vec<Message>> {
        self.shared.claim_server_messages(limit).await
    }

    async fn release_messages(&self, client: ClientId, ids: &[MessageId]) -> Result<()> {
        let now_micros = epoch_micros(self.shared.clock.now());
        self.shared.with("release_messages", |state| {
            for id in ids {
                state.messages.release(client, *id, now_micros);
            }
            Ok(())
        })
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

#[async_trait]
impl ClaimServerMessages for Shared {
    async fn claim_server_messages(&self, limit: u64) -> Result<Vec<Message>> {
        self.with("server_messages_for_processing", |state| {
            Ok(state
                .messages
                .claim(None, self.clock.now(), limit, None, |claims| {
                    self.clock.server_retry_time(claims)
                }))
        })
    }
}

pub(super) fn parse(operation: &'static str, messages: &[Message]) -> Result<Vec<MessageRecord>> {
    messages
        .iter()
        .map(|message| MessageRecord::parse(operation, message))
        .collect()
}

impl Shared {
    /// Stores new messages or new results, and links them to `contact`.
    pub(super) fn store(
        &self,
        messages: &mut Messages,
        records: Vec<MessageRecord>,
        contact: Option<i64>,
    ) {
        for record in records {
            messages
                .links
                .extend(contact.map(|contact| (contact, record.id)));
            match (messages.rows.get(&record.id), &record.result) {
                (None, _) => {
                    let due = match record.destination_client {
                        Some(_) => self.clock.now(),
                        None => self.clock.server_retry_time(0),
                    };
                    messages.insert(record, due);
                }
                (Some(known), Some(result)) if result.replaces(known.record.result.as_ref()) => {
                    messages.set_result(record.id, result.clone());
                }
                (Some(_), _) => {}
            }
        }
    }
}

/// All messages, and which of them are pending.
#[derive(Debug, Default)]
pub(super) struct Messages {
    pub(super) rows: BTreeMap<MessageId, Row>,
    /// What is pending for each client, and for the server, by (due, id).
    pending: BTreeMap<Option<ClientId>, BTreeSet<(i64, MessageId)>>,
    pub(super) links: BTreeSet<(i64, MessageId)>,
}

#[derive(Debug)]
pub(super) struct Row {
    pub(super) record: MessageRecord,
    /// Present as long as the record has no result.
    pub(super) pending: Option<Pending>,
}

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) due_micros: i64,
    pub(super) claims: u32,
}

impl Row {
    fn message(&self, want_data: bool) -> Message {
        let mut record = self.record.clone();
        if !want_data {
            record.data = None;
        }
        record.into_message()
    }
}

impl Messages {
    pub(super) fn contains(&self, id: MessageId) -> bool {
        self.rows.contains_key(&id)
    }

    /// Returns the result of a message that exists, `None` within if it is pending.
    pub(super) fn result(&self, id: MessageId) -> Option<Option<&ResultRecord>> {
        self.rows.get(&id).map(|row| row.record.result.as_ref())
    }

    pub(super) fn link(&mut self, contact: i64, id: MessageId) {
        if self.contains(id) {
            self.links.insert((contact, id));
        }
    }

    /// Inserts a message that is not known yet, pending unless it has a result.
    pub(super) fn insert(&mut self, record: MessageRecord, due: SystemTime) {
        let pending = record.result.is_none().then(|| Pending {
            due_micros: epoch_micros(due),
            claims: 0,
        });
        self.put(record, pending);
    }

    /// Inserts a message that is not known yet, as it is.
    pub(super) fn put(&mut self, record: MessageRecord, pending: Option<Pending>) {
        if let Some(pending) = &pending {
            self.pending
                .entry(record.destination_client)
                .or_default()
                .insert((pending.due_micros, record.id));
        }
        self.rows.insert(record.id, Row { record, pending });
    }

    pub(super) fn set_result(&mut self, id: MessageId, result: ResultRecord) {
        let Some(row) = self.rows.get_mut(&id) else {
            return;
        };
        row.record.data = None;
        row.record.result = Some(result);
        if let Some(pending) = row.pending.take()
            && let Some(queue) = self.pending.get_mut(&row.record.destination_client)
        {
            queue.remove(&(pending.due_micros, id));
        }
    }

    fn release(&mut self, client: ClientId, id: MessageId, now_micros: i64) {
        let Some(queue) = self.pending.get_mut(&Some(client)) else {
            return;
        };
        if let Some(pending) = self.rows.get_mut(&id).and_then(|row| row.pending.as_mut())
            && pending.due_micros > now_micros
            && pending.claims <= MOST_EARLY_CLAIMS
            && queue.remove(&(pending.due_micros, id))
        {
            pending.due_micros = now_micros;
            queue.insert((now_micros, id));
        }
    }

    pub(super) fn stats(&self, now: SystemTime) -> StoreStats {
        let now_micros = epoch_micros(now);
        let queue = self.pending.get(&None).into_iter().flatten();
        let mut overdue = queue
            .map(|(due_micros, _)| *due_micros)
            .take_while(|due_micros| *due_micros <= now_micros)
            .take(usize::try_from(MOST_OVERDUE_COUNTED).unwrap_or(usize::MAX))
            .peekable();
        let oldest = overdue.peek().map_or(0, |oldest| now_micros - oldest);
        StoreStats {
            oldest_overdue_server_message: u64::try_from(oldest).ok().map(Duration::from_micros),
            overdue_server_messages: u64::try_from(overdue.count()).ok(),
            ..StoreStats::default()
        }
    }

    fn pending_ids(&self, clients: &[ClientId]) -> BTreeSet<MessageId> {
        clients
            .iter()
            .filter_map(|client| self.pending.get(&Some(*client)))
            .flatten()
            .map(|(_, id)| *id)
            .collect()
    }

    fn claim(
        &mut self,
        destination: Option<ClientId>,
        now: SystemTime,
        limit: u64,
        service_limits: Option<&ServiceLimits>,
        retry_time: impl Fn(u32) -> SystemTime,
    ) -> Vec<Message> {
        let Some(queue) = self.pending.get_mut(&destination) else {
            return Vec::new();
        };
        let now_micros = epoch_micros(now);
        let mut tokens = service_limits.cloned();
        let mut left = match &tokens {
            None => limit,
            Some(tokens) => tokens
                .values()
                .fold(0, |sum: u64, tokens| sum.saturating_add(*tokens))
                .min(limit),
        };
        let (mut claimed, mut bytes) = (Vec::new(), 0);
        for &(due_micros, id) in queue.iter() {
            if left == 0 || due_micros > now_micros || bytes >= MAX_CLAIM_BYTES {
                break;
            }
            if let Some(tokens) = &mut tokens {
                let service = &self.rows[&id].record.destination_service;
                match tokens.get_mut(service) {
                    None | Some(0) => continue,
                    Some(tokens) => *tokens -= 1,
                }
            }
            left -= 1;
            claimed.push((due_micros, id));
            let data = &self.rows[&id].record.data;
            bytes += data.as_ref().map_or(0, |data| data.value.len());
        }
        claimed
            .into_iter()
            .filter_map(|(due_micros, id)| {
                let row = self.rows.get_mut(&id)?;
                let pending = row.pending.as_mut()?;
                pending.claims = pending.claims.saturating_add(1);
                pending.due_micros = epoch_micros(retry_time(pending.claims));
                queue.remove(&(due_micros, id));
                queue.insert((pending.due_micros, id));
                Some(row.message(true))
            })
            .collect()
    }
}
