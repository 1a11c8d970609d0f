//! The built-in `system` service: acknowledgements, errors, client info and
//! resource usage (protocol specification section 3.6).

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use fleethold_proto::fleetspeak::monitoring::{KillNotification, ResourceUsageData};
use fleethold_proto::fleetspeak::{
    ClientInfoData, Label, Message, MessageAckData, MessageErrorData, MessageResult,
};
use fleethold_proto::{Name, unpack};
use fleethold_store::clock::timestamp;
use fleethold_store::limits::{check_name, cut_chars};
use fleethold_store::{ClientId, Clock, ErrorKind, MessageId, Store};
use tokio::time::Instant;

use super::{Service, ServiceError};
use crate::cache::ClientCache;
use crate::metrics::{ClientLabels, Metrics, reason_name};
use crate::streams::Streams;
use crate::wire::{MOST_ELEMENTS, check_lists};

/// The name under which every server and every agent has this service.
pub(crate) const NAME: &str = "system";

/// The service name of labels that the agent itself reports.
pub(crate) const CLIENT: &str = "client";

/// Tells an agent to make itself a new key.
pub(crate) const REKEY_REQUEST: &str = "RekeyRequest";

/// Tells an agent to end; it is never acknowledged.
pub(crate) const DIE: &str = "Die";

/// The most ids in one acknowledgement; stock agents send at most some hundreds.
const MOST_ACKNOWLEDGED: usize = 10_000;

pub(crate) struct SystemService {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: Arc<ClientCache>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
}

#[async_trait]
impl Service for SystemService {
    async fn process(&self, message: &Message, _deadline: Instant) -> Result<(), ServiceError> {
        let source = message
            .source
            .as_ref()
            .map_or(&[][..], |source| &source.client_id);
        let client = ClientId::try_from(source)
            .map_err(|_| permanent("a message to `system` must come from a client"))?;
        match Report::read(message)? {
            Report::Ack(ack) => self.acknowledge(client, ack).await,
            Report::Error(report) => self.fail(client, report).await,
            Report::Info(info) => self.update_labels(client, info).await,
            Report::Usage(usage) => self.record_usage(client, usage).await,
            Report::Killed(killed) => {
                let reason = reason_name(killed.reason());
                let service = cut_chars(&killed.service, 128);
                tracing::warn!(%client, service, reason, "agent killed a service");
                self.measure(client, |labels, blacklisted| {
                    self.metrics.killed(labels, blacklisted, &killed);
                })
                .await;
                Ok(())
            }
        }
    }
}

/// What agents tell the server.
pub(crate) enum Report {
    Ack(MessageAckData),
    Error(MessageErrorData),
    Info(ClientInfoData),
    Usage(ResourceUsageData),
    Killed(KillNotification),
}

impl Report {
    /// Reads a message to `system`.
    pub(crate) fn read(message: &Message) -> Result<Self, ServiceError> {
        Ok(match message.message_type.as_str() {
            "MessageAck" => Self::Ack(payload_with_lists(
                message,
                "message ids",
                MOST_ACKNOWLEDGED,
            )?),
            "MessageError" => Self::Error(payload(message)?),
            "ClientInfo" => Self::Info(payload_with_lists(
                message,
                "labels and services",
                MOST_ELEMENTS,
            )?),
            "ResourceUsage" => Self::Usage(payload(message)?),
            "KillNotification" => Self::Killed(payload(message)?),
            other => {
                return Err(permanent(format!(
                    "unknown message type `{}` for `system`",
                    cut_chars(other, 128)
                )));
            }
        })
    }
}

impl SystemService {
    async fn acknowledge(&self, client: ClientId, ack: MessageAckData) -> Result<(), ServiceError> {
        let mut ids = BTreeSet::new();
        for id in ack.message_ids.iter() {
            ids.insert(MessageId::try_from(&id[..]).map_err(|error| permanent(error.to_string()))?);
        }
        let ids: Vec<_> = ids.into_iter().collect();
        let messages = self.known(&ids).await?;
        let success = MessageResult {
            processed_time: Some(timestamp(self.clock.now())),
            ..MessageResult::default()
        };
        let mut results = Vec::with_capacity(messages.len());
        for message in messages.iter().filter(|message| message.result.is_none()) {
            // After a rekey the agent acknowledges the request under its new id.
            if is_for(message, client) || is_rekey_request(message) {
                let id = MessageId::try_from(&message.message_id[..])
                    .map_err(|error| permanent(error.to_string()))?;
                results.push((id, success.clone()));
            } else {
                tracing::debug!(%client, message = %super::id(message), "ignored an acknowledgement of another client's message");
            }
        }
        if results.is_empty() {
            return Ok(());
        }
        self.store
            .set_message_results(&results)
            .await
            .map_err(|error| store_error(&error))
    }

    async fn fail(&self, client: ClientId, report: MessageErrorData) -> Result<(), ServiceError> {
        let id = MessageId::try_from(&report.message_id[..])
            .map_err(|error| permanent(error.to_string()))?;
        let Some(message) = self.known(&[id]).await?.pop() else {
            return Err(permanent(format!("unknown message {id}")));
        };
        if !is_for(&message, client) {
            return Err(permanent(format!("message {id} is not for this client")));
        }
        let result = MessageResult {
            processed_time: Some(timestamp(self.clock.now())),
            failed: true,
            failed_reason: report.error,
        };
        self.store
            .set_message_results(&[(id, result)])
            .await
            .map_err(|error| store_error(&error))
    }

    /// Makes the reported labels exactly the client's `client` labels.
    async fn update_labels(
        &self,
        client: ClientId,
        info: ClientInfoData,
    ) -> Result<(), ServiceError> {
        let mut wanted: Vec<&Label> = Vec::new();
        for label in &info.labels {
            if label.service_name != CLIENT
                || check_name("client_info", "label", &label.label).is_err()
            {
                tracing::debug!(%client, service = label.service_name, "ignored a label that an agent cannot set");
            } else if !wanted.contains(&label) {
                wanted.push(label);
            }
        }
        let stored = self
            .store
            .get_client_data(client)
            .await
            .map_err(|error| store_error(&error))?;
        let stored: Vec<&Label> = stored
            .labels
            .iter()
            .filter(|label| label.service_name == CLIENT)
            .collect();
        let mut changed = false;
        for label in wanted.iter().filter(|label| !stored.contains(label)) {
            self.store
                .add_client_label(client, label)
                .await
                .map_err(|error| store_error(&error))?;
            changed = true;
        }
        for label in stored.iter().filter(|label| !wanted.contains(label)) {
            self.store
                .remove_client_label(client, label)
                .await
                .map_err(|error| store_error(&error))?;
            changed = true;
        }
        if changed {
            self.cache.forget(client);
            // The labels may make the client eligible for a broadcast.
            self.streams.wake(client);
        }
        Ok(())
    }

    async fn record_usage(
        &self,
        client: ClientId,
        usage: ResourceUsageData,
    ) -> Result<(), ServiceError> {
        self.store
            .record_resource_usage_data(client, &usage)
            .await
            .map_err(|error| store_error(&error))?;
        self.measure(client, |labels, blacklisted| {
            self.metrics.usage(labels, blacklisted, &usage);
        })
        .await;
        Ok(())
    }

    /// Measures what belongs to a client; one that cannot be looked up has no labels.
    async fn measure(&self, client: ClientId, measure: impl FnOnce(&ClientLabels, bool)) {
        match self.cache.load(client).await {
            Ok(Some(known)) => measure(known.metric_labels(), known.data.blacklisted),
            _ => measure(&ClientLabels::default(), false),
        }
    }

    async fn known(&self, ids: &[MessageId]) -> Result<Vec<Message>, ServiceError> {
        match self.store.get_messages(ids, false).await {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            other => other.map_err(|error| store_error(&error)),
        }
    }
}

/// Returns the payload of a message whose lists, fields 1 and 2, have no more
/// elements than `most`.
fn payload_with_lists<M: prost::Message + Name + Default>(
    message: &Message,
    what: &'static str,
    most: usize,
) -> Result<M, ServiceError> {
    let data = message.data.as_ref().map_or(&[][..], |data| &data.value);
    check_lists(data, &[1, 2], what, most).map_err(|error| permanent(error.to_string()))?;
    payload(message)
}

fn payload<M: prost::Message + Name + Default>(message: &Message) -> Result<M, ServiceError> {
    let data = message
        .data
        .as_ref()
        .ok_or_else(|| permanent("a message to `system` without data"))?;
    unpack(data).map_err(|error| permanent(error.to_string()))
}

fn is_for(message: &Message, client: ClientId) -> bool {
    message
        .destination
        .as_ref()
        .is_some_and(|destination| destination.client_id[..] == client.as_bytes()[..])
}

fn is_rekey_request(message: &Message) -> bool {
    message.message_type == REKEY_REQUEST
        && message
            .source
            .as_ref()
            .is_some_and(|source| source.client_id.is_empty() && source.service_name == NAME)
}

fn permanent(reason: impl Into<String>) -> ServiceError {
    ServiceError::Permanent(reason.into())
}

fn store_error(error: &fleethold_store::Error) -> ServiceError {
    let reason = crate::chain(error);
    match error.kind() {
        ErrorKind::InvalidArgument | ErrorKind::TooLarge | ErrorKind::NotFound => {
            ServiceError::Permanent(reason)
        }
        _ => ServiceError::Temporary(reason),
    }
}
