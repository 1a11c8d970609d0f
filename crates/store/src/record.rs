//! Messages, contacts, usage reports and broadcasts as a backend stores them:
//! checked, cut to the limits, and taken apart into plain values.
//!
//! Every backend parses its input here, so that all refuse and repair the same
//! things (specification sections 2.2 and 3).

use bytes::Bytes;
use fleethold_proto::fleetspeak::monitoring::{AggregatedResourceUsage, ResourceUsageData};
use fleethold_proto::fleetspeak::server::{Broadcast, ClientResourceUsageRecord};
use fleethold_proto::fleetspeak::{
    Address, Annotations, Label, Message, MessageResult, ValidationInfo,
};
use fleethold_proto::{Any, Timestamp};

use crate::broadcasts::BROADCAST_UNLIMITED;
use crate::clients::ContactData;
use crate::clock::{timestamp_epoch_nanos, timestamp_from_epoch_nanos};
use crate::error::{Error, Result};
use crate::ids::{BroadcastId, ClientId, MessageId};
use crate::limits::{
    MAX_ADDRESS_CHARS, MAX_NAME_CHARS, MAX_STREAMING_TO_BYTES, MAX_TEXT_BYTES, check_name,
    check_payload, cut_bytes, cut_chars,
};

/// A message as a backend stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct MessageRecord {
    /// The key.
    pub id: MessageId,
    /// `None`: the source is on the server.
    pub source_client: Option<ClientId>,
    /// At most 128 characters.
    pub source_service: String,
    /// Any length, may be empty.
    pub source_message_id: Bytes,
    /// `None`: the destination is on the server.
    pub destination_client: Option<ClientId>,
    /// At most 128 characters.
    pub destination_service: String,
    /// At most 128 characters.
    pub message_type: String,
    /// Seconds are never 0.
    pub creation_time: Timestamp,
    /// The payload, dropped when there is a result.
    pub data: Option<Any>,
    /// Serialised; at most 65,535 bytes.
    pub validation_info: Option<Bytes>,
    /// Serialised; at most 65,535 bytes.
    pub annotations: Option<Bytes>,
    /// `None` while the message is pending.
    pub result: Option<ResultRecord>,
}

/// The result of a message as a backend stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultRecord {
    /// When it was processed.
    pub processed_time: Timestamp,
    /// Why it failed, perhaps empty; `None` for success.
    pub failure: Option<String>,
}

impl MessageRecord {
    /// Checks a message to store and takes it apart.
    ///
    /// Texts that are too long are cut; validation info and annotations that
    /// are too long are dropped, because a cut one could not be read again.
    ///
    /// # Errors
    /// `InvalidArgument` or `TooLarge` as
    /// [`store_messages`](crate::MessageStore::store_messages) says.
    pub fn parse(operation: &'static str, message: &Message) -> Result<Self> {
        let id = MessageId::try_from(&message.message_id[..])
            .map_err(|error| Error::invalid(operation, error.to_string()))?;
        let creation_time = message
            .creation_time
            .filter(|time| time.seconds != 0)
            .ok_or_else(|| {
                Error::invalid(operation, format!("message {id} has no creation time"))
            })?;
        let destination = message
            .destination
            .as_ref()
            .ok_or_else(|| Error::invalid(operation, format!("message {id} has no destination")))?;
        let client = |role: &str, address: &Address| {
            ClientId::from_optional_bytes(&address.client_id).map_err(|error| {
                Error::invalid(operation, format!("{role} of message {id}: {error}"))
            })
        };
        let result = message
            .result
            .as_ref()
            .map(|result| ResultRecord::parse(operation, result))
            .transpose()?;
        let data = match result {
            Some(_) => None,
            None => message.data.clone(),
        };
        if let Some(data) = &data {
            check_payload(operation, "message data", data.value.len())?;
        }
        let (source_client, source_service) = match &message.source {
            Some(source) => (client("source", source)?, short(&source.service_name)),
            None => (None, String::new()),
        };
        Ok(Self {
            id,
            source_client,
            source_service,
            source_message_id: message.source_message_id.clone(),
            destination_client: client("destination", destination)?,
            destination_service: short(&destination.service_name),
            message_type: short(&message.message_type),
            creation_time,
            data,
            validation_info: storable(id, "validation info", message.validation_info.as_ref()),
            annotations: storable(id, "annotations", message.annotations.as_ref()),
            result,
        })
    }

    /// Puts the message together again.
    ///
    /// Source and destination are always set. Validation info and annotations
    /// that are empty or cannot be read are absent, so that one damaged row
    /// never blocks its neighbours.
    pub fn into_message(self) -> Message {
        let address = |client: Option<ClientId>, service_name| Address {
            client_id: client.map(ClientId::to_bytes).unwrap_or_default(),
            service_name,
        };
        Message {
            message_id: self.id.to_bytes(),
            source: Some(address(self.source_client, self.source_service)),
            source_message_id: self.source_message_id,
            destination: Some(address(self.destination_client, self.destination_service)),
            message_type: self.message_type,
            creation_time: Some(self.creation_time),
            data: self.data,
            validation_info: readable(self.id, "validation info", self.validation_info)
                .filter(|info: &ValidationInfo| !info.tags.is_empty()),
            result: self.result.map(ResultRecord::into_result),
            annotations: readable(self.id, "annotations", self.annotations)
                .filter(|annotations: &Annotations| !annotations.entries.is_empty()),
            ..Message::default()
        }
    }
}

impl ResultRecord {
    /// Checks a result; a reason without failure is dropped, a long one cut.
    ///
    /// # Errors
    /// `InvalidArgument` without processed time.
    pub fn parse(operation: &'static str, result: &MessageResult) -> Result<Self> {
        let processed_time = result
            .processed_time
            .ok_or_else(|| Error::invalid(operation, "a result has no processed time"))?;
        Ok(Self {
            processed_time,
            failure: result
                .failed
                .then(|| cut_bytes(&result.failed_reason, MAX_TEXT_BYTES).to_owned()),
        })
    }

    /// Returns whether this result takes the place of `stored`: a success
    /// always, a failure only where there is none.
    pub fn replaces(&self, stored: Option<&Self>) -> bool {
        self.failure.is_none() || stored.is_none()
    }

    /// Puts the result together again.
    pub fn into_result(self) -> MessageResult {
        MessageResult {
            processed_time: Some(self.processed_time),
            failed: self.failure.is_some(),
            failed_reason: self.failure.unwrap_or_default(),
        }
    }
}

/// A contact as a backend stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct ContactRecord {
    /// Who made contact.
    pub client_id: ClientId,
    /// Sent by the server.
    pub nonce_sent: u64,
    /// Sent by the client.
    pub nonce_received: u64,
    /// At most 64 characters.
    pub addr: String,
    /// Valid and not before 1970.
    pub client_clock: Option<Timestamp>,
    /// `None` for a poll.
    pub streaming_to: Option<String>,
}

impl ContactRecord {
    /// Checks a contact; cuts the address and drops a clock that is no time
    /// since 1970, because a wrong clock must not cut a client off.
    ///
    /// # Errors
    /// `InvalidArgument` for a streaming target over 128 bytes.
    pub fn parse(operation: &'static str, contact: &ContactData) -> Result<Self> {
        let streaming_to = contact.streaming_to.clone().filter(|to| !to.is_empty());
        if streaming_to
            .as_ref()
            .is_some_and(|to| to.len() > MAX_STREAMING_TO_BYTES)
        {
            return Err(Error::invalid(
                operation,
                format!("a streaming target has at most {MAX_STREAMING_TO_BYTES} bytes"),
            ));
        }
        Ok(Self {
            client_id: contact.client_id,
            nonce_sent: contact.nonce_sent,
            nonce_received: contact.nonce_received,
            addr: cut_chars(&contact.addr, MAX_ADDRESS_CHARS).to_owned(),
            client_clock: contact
                .client_clock
                .filter(|clock| clock.seconds >= 0 && (0..1_000_000_000).contains(&clock.nanos)),
            streaming_to,
        })
    }
}

/// A resource usage report as a backend stores it; times in ns since the epoch.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(
    missing_docs,
    reason = "named and documented by ClientResourceUsageRecord"
)]
pub struct UsageRecord {
    pub scope: String,
    pub pid: i64,
    pub process_start_nanos: i64,
    pub client_nanos: i64,
    pub server_nanos: i64,
    pub process_terminated: bool,
    pub mean_user_cpu_rate: f32,
    pub max_user_cpu_rate: f32,
    pub mean_system_cpu_rate: f32,
    pub max_system_cpu_rate: f32,
    pub mean_resident_memory_mib: i32,
    pub max_resident_memory_mib: i32,
    pub mean_num_fds: i32,
    pub max_num_fds: i32,
}

impl UsageRecord {
    /// Converts a report received at `server_nanos`: memory to MiB and file
    /// descriptors truncated, out of range saturated, not a number to 0.
    ///
    /// # Errors
    /// `InvalidArgument` if a time is absent or invalid.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "float casts saturate and turn NaN into 0, as specified"
    )]
    pub fn parse(
        operation: &'static str,
        server_nanos: i64,
        report: &ResourceUsageData,
    ) -> Result<Self> {
        const MIB: f64 = 1_048_576.0;
        let nanos = |what: &str, time: &Option<Timestamp>| {
            time.as_ref()
                .and_then(timestamp_epoch_nanos)
                .ok_or_else(|| {
                    Error::invalid(operation, format!("{what} is absent or not a valid time"))
                })
        };
        let rate = |rate: f64| {
            if rate.is_finite() {
                rate.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
            } else {
                0.0
            }
        };
        let zero = AggregatedResourceUsage::default();
        let usage = report.resource_usage.as_ref().unwrap_or(&zero);
        Ok(Self {
            scope: short(&report.scope),
            pid: report.pid,
            process_start_nanos: nanos("process start time", &report.process_start_time)?,
            client_nanos: nanos("data timestamp", &report.data_timestamp)?,
            server_nanos,
            process_terminated: report.process_terminated,
            mean_user_cpu_rate: rate(usage.mean_user_cpu_rate),
            max_user_cpu_rate: rate(usage.max_user_cpu_rate),
            mean_system_cpu_rate: rate(usage.mean_system_cpu_rate),
            max_system_cpu_rate: rate(usage.max_system_cpu_rate),
            mean_resident_memory_mib: (usage.mean_resident_memory / MIB) as i32,
            max_resident_memory_mib: (usage.max_resident_memory as f64 / MIB) as i32,
            mean_num_fds: usage.mean_num_fds as i32,
            max_num_fds: usage.max_num_fds,
        })
    }

    /// Converts the record into its wire form.
    pub fn into_wire(self) -> ClientResourceUsageRecord {
        let time = |nanos| Some(timestamp_from_epoch_nanos(nanos));
        ClientResourceUsageRecord {
            scope: self.scope,
            pid: self.pid,
            process_start_time: time(self.process_start_nanos),
            client_timestamp: time(self.client_nanos),
            server_timestamp: time(self.server_nanos),
            process_terminated: self.process_terminated,
            mean_user_cpu_rate: self.mean_user_cpu_rate,
            max_user_cpu_rate: self.max_user_cpu_rate,
            mean_system_cpu_rate: self.mean_system_cpu_rate,
            max_system_cpu_rate: self.max_system_cpu_rate,
            mean_resident_memory_mib: self.mean_resident_memory_mib,
            max_resident_memory_mib: self.max_resident_memory_mib,
            mean_num_fds: self.mean_num_fds,
            max_num_fds: self.max_num_fds,
        }
    }
}

/// Returns the half-open range of nanoseconds from `start` to `end`.
///
/// # Errors
/// `InvalidArgument` for an invalid time or a start after the end.
pub fn nanos_range(
    operation: &'static str,
    start: &Timestamp,
    end: &Timestamp,
) -> Result<std::ops::Range<i64>> {
    let nanos = |what: &str, time| {
        timestamp_epoch_nanos(time)
            .ok_or_else(|| Error::invalid(operation, format!("{what} is not a valid time")))
    };
    let range = nanos("start", start)?..nanos("end", end)?;
    if range.start > range.end {
        return Err(Error::invalid(operation, "start is after end"));
    }
    Ok(range)
}

/// A broadcast as a backend stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct BroadcastRecord {
    /// The key.
    pub id: BroadcastId,
    /// At most 128 characters.
    pub source_service: String,
    /// Absent differs from empty.
    pub destination_service: Option<String>,
    /// At most 128 characters.
    pub message_type: String,
    /// `None`: never.
    pub expiration_time: Option<Timestamp>,
    /// What is sent.
    pub data: Option<Any>,
    /// Sorted by (service name, label), each once.
    pub required_labels: Vec<Label>,
    /// Empty: no group.
    pub group_name: String,
    /// At most [`BROADCAST_UNLIMITED`].
    pub limit: u64,
}

impl BroadcastRecord {
    /// Checks a broadcast to create and takes it apart.
    ///
    /// # Errors
    /// `InvalidArgument` or `TooLarge` as
    /// [`create_broadcast`](crate::BroadcastStore::create_broadcast) says.
    pub fn parse(operation: &'static str, broadcast: &Broadcast, limit: u64) -> Result<Self> {
        let id = BroadcastId::try_from(&broadcast.broadcast_id[..])
            .map_err(|error| Error::invalid(operation, error.to_string()))?;
        let source = broadcast
            .source
            .as_ref()
            .ok_or_else(|| Error::invalid(operation, format!("broadcast {id} has no source")))?;
        check_name(operation, "source service", &source.service_name)?;
        if let Some(destination) = &broadcast.destination {
            check_name(operation, "destination service", &destination.service_name)?;
        }
        check_name(operation, "message type", &broadcast.message_type)?;
        check_name(operation, "group name", &broadcast.group_name)?;
        if let Some(data) = &broadcast.data {
            check_payload(operation, "broadcast data", data.value.len())?;
        }
        Ok(Self {
            id,
            source_service: source.service_name.clone(),
            destination_service: broadcast
                .destination
                .as_ref()
                .map(|destination| destination.service_name.clone()),
            message_type: broadcast.message_type.clone(),
            expiration_time: broadcast.expiration_time,
            data: broadcast.data.clone(),
            required_labels: sorted_labels(operation, &broadcast.required_labels)?,
            group_name: broadcast.group_name.clone(),
            limit: limit.min(BROADCAST_UNLIMITED),
        })
    }

    /// Returns whether creating this broadcast disables `other`, an active one.
    pub fn replaces(&self, other: &Self) -> bool {
        let destination = |broadcast: &Self| {
            broadcast
                .destination_service
                .clone()
                .unwrap_or_else(|| broadcast.source_service.clone())
        };
        !self.group_name.is_empty()
            && self.group_name == other.group_name
            && self.source_service == other.source_service
            && destination(self) == destination(other)
            && self.required_labels == other.required_labels
    }

    /// Puts the broadcast together again.
    pub fn into_broadcast(self) -> Broadcast {
        let address = |service_name| Address {
            client_id: Bytes::new(),
            service_name,
        };
        Broadcast {
            broadcast_id: self.id.to_bytes(),
            source: Some(address(self.source_service)),
            destination: self.destination_service.map(address),
            message_type: self.message_type,
            required_labels: self.required_labels,
            expiration_time: self.expiration_time,
            data: self.data,
            group_name: self.group_name,
        }
    }
}

/// Returns labels sorted by (service name, label), each once.
///
/// # Errors
/// `InvalidArgument` for a service name or label over 128 characters.
pub fn sorted_labels(operation: &'static str, labels: &[Label]) -> Result<Vec<Label>> {
    for label in labels {
        check_name(operation, "label service", &label.service_name)?;
        check_name(operation, "label", &label.label)?;
    }
    let mut labels = labels.to_vec();
    labels.sort_by(|a, b| (&a.service_name, &a.label).cmp(&(&b.service_name, &b.label)));
    labels.dedup();
    Ok(labels)
}

fn short(name: &str) -> String {
    cut_chars(name, MAX_NAME_CHARS).to_owned()
}

fn storable(id: MessageId, what: &str, part: Option<&impl prost::Message>) -> Option<Bytes> {
    let part = part?;
    let size_bytes = part.encoded_len();
    if size_bytes == 0 {
        return None;
    }
    if size_bytes > MAX_TEXT_BYTES {
        tracing::warn!(message = %id, part = what, size_bytes, "dropped an over-long part of a message");
        return None;
    }
    Some(part.encode_to_vec().into())
}

fn readable<M: prost::Message + Default>(
    id: MessageId,
    what: &str,
    part: Option<Bytes>,
) -> Option<M> {
    M::decode(part?)
        .inspect_err(|error| {
            tracing::warn!(message = %id, part = what, %error, "left out an unreadable part of a message");
        })
        .ok()
}
