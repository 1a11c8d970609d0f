//! Clients, messages, contacts and broadcasts that cases store.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fleethold_proto::fleetspeak::monitoring::{AggregatedResourceUsage, ResourceUsageData};
use fleethold_proto::fleetspeak::server::{Broadcast, Client};
use fleethold_proto::fleetspeak::{Address, Label, Message, MessageResult, ValidationInfo};
use fleethold_proto::{Any, Timestamp};
use fleethold_store::{BroadcastId, ClientData, ClientId, ContactData, MessageId};
use futures::future::join_all;

use crate::Bed;

pub(crate) const C1: ClientId = ClientId::new([0, 0, 0, 0, 0, 0, 0, 1]);
pub(crate) const C2: ClientId = ClientId::new([0, 0, 0, 0, 0, 0, 0, 2]);
pub(crate) const C3: ClientId = ClientId::new([0, 0, 0, 0, 0, 0, 0, 3]);

/// The service that sample messages are for.
pub(crate) const SERVICE: &str = "TestService";

/// What reading messages asks for.
pub(crate) const WITH_DATA: bool = true;
pub(crate) const WITHOUT_DATA: bool = false;

impl Bed {
    /// Adds a client without key and labels.
    pub(crate) async fn add_client(&self, id: ClientId) {
        let data = ClientData::default();
        self.store
            .add_client(id, &data)
            .await
            .expect("a new client");
    }

    /// Adds clients without key and labels, all at once.
    pub(crate) async fn add_clients(&self, ids: impl Iterator<Item = ClientId>) {
        join_all(ids.map(|id| self.add_client(id))).await;
    }

    /// Returns the one client with this id.
    pub(crate) async fn client(&self, id: ClientId) -> Client {
        let mut found = self.store.list_clients(&[id]).await.expect("a list");
        assert_eq!(found.len(), 1, "one entry for one known id");
        found.remove(0)
    }

    /// Stores messages outside of any contact.
    pub(crate) async fn send(&self, messages: &[Message]) {
        let stored = self.store.store_messages(messages, None).await;
        stored.expect("messages without fault");
    }

    /// Reads messages with their payloads, one of which exists at least.
    pub(crate) async fn read(&self, ids: &[MessageId]) -> Vec<Message> {
        let found = self.store.get_messages(ids, WITH_DATA).await;
        found.expect("a known message")
    }

    /// Lists all pending messages of clients with their payloads.
    pub(crate) async fn pending(&self, clients: &[ClientId]) -> Vec<Message> {
        let found = self.store.get_pending_messages(clients, 0, 0, WITH_DATA);
        found.await.expect("a list without limit")
    }

    /// Claims all that is due for a client.
    pub(crate) async fn claim(&self, client: ClientId) -> Vec<Message> {
        let claimed = self
            .store
            .client_messages_for_processing(client, u64::MAX, None)
            .await;
        claimed.expect("a claim without limits")
    }

    /// Claims all that is due on the server.
    pub(crate) async fn claim_on_server(&self) -> Vec<Message> {
        let claimed = self.store.server_messages_for_processing(u64::MAX).await;
        claimed.expect("a claim without limit")
    }
}

/// Returns the id whose last bytes are `number`; ids sort like their numbers.
pub(crate) fn message_id(number: u64) -> MessageId {
    let mut bytes = [0; 32];
    bytes[24..].copy_from_slice(&number.to_be_bytes());
    MessageId::new(bytes)
}

pub(crate) fn client_id(number: u64) -> ClientId {
    ClientId::new(number.to_be_bytes())
}

pub(crate) fn broadcast_id(number: u64) -> BroadcastId {
    BroadcastId::new(number.to_be_bytes())
}

pub(crate) fn id_of(message: &Message) -> MessageId {
    MessageId::try_from(&message.message_id[..]).expect("a stored message has an id")
}

pub(crate) fn ids_of(messages: &[Message]) -> Vec<MessageId> {
    messages.iter().map(id_of).collect()
}

/// Returns a message from the server to a client, with a payload.
pub(crate) fn to_client(number: u64, client: ClientId) -> Message {
    Message {
        message_id: message_id(number).to_bytes(),
        source: Some(address(None, SERVICE)),
        destination: Some(address(Some(client), SERVICE)),
        message_type: "test message type".into(),
        creation_time: Some(seconds(42)),
        data: Some(data(number.to_string())),
        ..Message::default()
    }
}

/// Returns a message from a client to the server, with a payload.
pub(crate) fn to_server(number: u64, client: ClientId) -> Message {
    Message {
        source: Some(address(Some(client), SERVICE)),
        source_message_id: Bytes::copy_from_slice(&number.to_be_bytes()),
        destination: Some(address(None, SERVICE)),
        ..to_client(number, client)
    }
}

/// Returns the message as it is read without asking for its payload.
pub(crate) fn without_data(message: &Message) -> Message {
    Message {
        data: None,
        ..message.clone()
    }
}

/// Returns the message as it is read after it got a result.
pub(crate) fn with_result(message: &Message, result: MessageResult) -> Message {
    Message {
        result: Some(result),
        ..without_data(message)
    }
}

pub(crate) fn for_service(message: Message, service: &str) -> Message {
    let client = message.destination.as_ref().map(|to| to.client_id.clone());
    Message {
        destination: Some(Address {
            client_id: client.unwrap_or_default(),
            service_name: service.into(),
        }),
        ..message
    }
}

pub(crate) fn address(client: Option<ClientId>, service: &str) -> Address {
    Address {
        client_id: client.map(ClientId::to_bytes).unwrap_or_default(),
        service_name: service.into(),
    }
}

pub(crate) fn data(value: impl Into<Bytes>) -> Any {
    Any {
        type_url: "type.googleapis.com/test".into(),
        value: value.into(),
    }
}

pub(crate) fn success(second: i64) -> MessageResult {
    MessageResult {
        processed_time: Some(seconds(second)),
        ..MessageResult::default()
    }
}

pub(crate) fn failure(second: i64, reason: &str) -> MessageResult {
    MessageResult {
        failed: true,
        failed_reason: reason.into(),
        ..success(second)
    }
}

pub(crate) fn seconds(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

/// Returns the time `seconds` after the epoch.
pub(crate) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

pub(crate) fn label(service: &str, label: &str) -> Label {
    Label {
        service_name: service.into(),
        label: label.into(),
    }
}

/// Returns a poll of a client.
pub(crate) fn contact(client: ClientId) -> ContactData {
    ContactData {
        client_id: client,
        nonce_sent: 42,
        nonce_received: 54,
        addr: "127.0.0.1:4321".into(),
        client_clock: Some(seconds(21)),
        streaming_to: None,
        labels: Vec::new(),
    }
}

/// Returns the message without source and type that B-097 saves.
pub(crate) fn bare_message(number: u64, client: ClientId) -> Message {
    Message {
        source: None,
        message_type: String::new(),
        ..to_client(number, client)
    }
}

/// Returns a broadcast that never expires.
pub(crate) fn broadcast(number: u64) -> Broadcast {
    Broadcast {
        broadcast_id: broadcast_id(number).to_bytes(),
        source: Some(address(None, SERVICE)),
        message_type: "test broadcast".into(),
        data: Some(data("broadcast payload")),
        ..Broadcast::default()
    }
}

/// Returns a report of a client's resource usage.
pub(crate) fn usage_report() -> ResourceUsageData {
    ResourceUsageData {
        scope: "test-scope".into(),
        pid: 1234,
        process_start_time: Some(Timestamp {
            seconds: 1_234_567_890,
            nanos: 98_765,
        }),
        data_timestamp: Some(seconds(1_234_567_891)),
        resource_usage: Some(AggregatedResourceUsage {
            mean_user_cpu_rate: 50.0,
            max_user_cpu_rate: 60.0,
            mean_system_cpu_rate: 70.0,
            max_system_cpu_rate: 80.0,
            mean_resident_memory: 190.0 * 1_048_576.0,
            max_resident_memory: 200 * 1_048_576,
            mean_num_fds: 13.4,
            max_num_fds: 42,
        }),
        process_terminated: true,
        ..ResourceUsageData::default()
    }
}

pub(crate) fn tags(value: &str) -> ValidationInfo {
    ValidationInfo {
        tags: [("result".to_owned(), value.to_owned())].into(),
    }
}
