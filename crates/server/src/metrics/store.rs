//! A store whose calls are measured.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::{
    Broadcast, Client, ClientContact, ClientResourceUsageRecord,
};
use fleethold_proto::fleetspeak::{Label, Message, MessageResult};
use fleethold_store::limits::{MAX_TEXT_BYTES, check_name};
use fleethold_store::{
    AllocationId, AllocationInfo, BroadcastId, BroadcastInfo, BroadcastProgress, BroadcastStore,
    ClientData, ClientId, ClientStore, ContactData, ContactId, ErrorKind, FileStore, MessageId,
    MessageProcessor, MessageStore, Result, ServiceLimits, Store, StoreStats, StoredFile,
};
use futures::stream::BoxStream;
use prost::Message as _;
use tokio::io::AsyncRead;
use tokio::time::Instant;

use super::Metrics;
use super::labels::text;

/// Hands every call on and measures it, under upstream's name for it.
pub(crate) struct Measured {
    inner: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Measured {
    pub(crate) fn new(inner: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }

    async fn measure<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        let result = call.await;
        self.observe(operation, started, &result);
        result
    }

    fn observe<T>(&self, operation: &'static str, started: Instant, result: &Result<T>) {
        // An unknown client is how most agents begin.
        let errored = result.as_ref().is_err_and(|error| {
            !(operation == "GetClientData" && error.kind() == ErrorKind::NotFound)
        });
        self.metrics
            .store_calls
            .of([operation, text(errored)])
            .observe(started.elapsed().as_secs_f64());
    }

    fn count_repairs(&self, messages: &[Message]) {
        let count = messages.iter().map(overlong_values).sum();
        if count > 0 {
            self.metrics.repairs.inc_by(count);
        }
    }
}

/// Counts what a store will cut or leave out of a message.
fn overlong_values(message: &Message) -> u64 {
    let name = |name: &str| check_name("", "", name).is_err();
    let service = |address: &Option<fleethold_proto::fleetspeak::Address>| {
        address
            .as_ref()
            .is_some_and(|address| name(&address.service_name))
    };
    let overlong = [
        name(&message.message_type),
        service(&message.source),
        service(&message.destination),
        message
            .annotations
            .as_ref()
            .is_some_and(|annotations| annotations.encoded_len() > MAX_TEXT_BYTES),
        message
            .validation_info
            .as_ref()
            .is_some_and(|info| info.encoded_len() > MAX_TEXT_BYTES),
        message
            .result
            .as_ref()
            .is_some_and(|result| result.failed_reason.len() > MAX_TEXT_BYTES),
    ];
    overlong.iter().map(|overlong| u64::from(*overlong)).sum()
}

macro_rules! measured {
    (
        $trait:ident {
            $($label:literal $name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*
        }
        rest { $($rest:tt)* }
    ) => {
        #[async_trait]
        impl $trait for Measured {
            $(
                async fn $name(&self, $($argument: $type),*) -> Result<$output> {
                    self.measure($label, self.inner.$name($($argument),*)).await
                }
            )*
            $($rest)*
        }
    };
}

measured! {
    MessageStore {
        "SetMessageResult" set_message_result(destination: Option<ClientId>, id: MessageId, result: &MessageResult) -> ();
        "SetMessageResult" set_message_results(results: &[(MessageId, MessageResult)]) -> ();
        "GetMessageResult" get_message_result(id: MessageId) -> Option<MessageResult>;
        "GetMessages" get_messages(ids: &[MessageId], want_data: bool) -> Vec<Message>;
        "GetPendingMessages" get_pending_messages(clients: &[ClientId], offset: u64, limit: u64, want_data: bool) -> Vec<Message>;
        "GetPendingMessageCount" get_pending_message_count(clients: &[ClientId]) -> u64;
        "DeletePendingMessages" delete_pending_messages(clients: &[ClientId]) -> ();
        "ReleaseMessages" release_messages(client: ClientId, ids: &[MessageId]) -> ();
        "ServerMessagesForProcessing" server_messages_for_processing(limit: u64) -> Vec<Message>;
    }
    rest {
        async fn store_messages(&self, messages: &[Message], contact: Option<&ContactId>) -> Result<()> {
            self.count_repairs(messages);
            self.measure("StoreMessages", self.inner.store_messages(messages, contact)).await
        }

        async fn client_messages_for_processing(
            &self,
            client: ClientId,
            limit: u64,
            service_limits: Option<&ServiceLimits>,
        ) -> Result<Vec<Message>> {
            let started = Instant::now();
            let result = self.inner.client_messages_for_processing(client, limit, service_limits).await;
            self.metrics.claims.observe(started.elapsed().as_secs_f64());
            self.observe("ClientMessagesForProcessing", started, &result);
            result
        }

        async fn register_message_processor(&self, processor: Arc<dyn MessageProcessor>) {
            self.inner.register_message_processor(processor).await;
        }

        async fn stop_message_processor(&self) {
            self.inner.stop_message_processor().await;
        }
    }
}

measured! {
    ClientStore {
        "ListClients" list_clients(ids: &[ClientId]) -> Vec<Client>;
        "GetClientData" get_client_data(id: ClientId) -> ClientData;
        "AddClient" add_client(id: ClientId, data: &ClientData) -> ();
        "AddClientLabel" add_client_label(id: ClientId, label: &Label) -> ();
        "RemoveClientLabel" remove_client_label(id: ClientId, label: &Label) -> ();
        "BlacklistClient" blacklist_client(id: ClientId) -> ();
        "RecordClientContact" record_client_contact(contact: &ContactData) -> ContactId;
        "Enrol" enrol(data: &ClientData, contact: &ContactData) -> ContactId;
        "ListClientContacts" list_client_contacts(id: ClientId) -> Vec<ClientContact>;
        "LinkMessagesToContact" link_messages_to_contact(contact: &ContactId, ids: &[MessageId]) -> ();
        "RecordResourceUsageData" record_resource_usage_data(id: ClientId, usage: &ResourceUsageData) -> ();
        "FetchResourceUsageRecords" fetch_resource_usage_records(id: ClientId, start: &Timestamp, end: &Timestamp) -> Vec<ClientResourceUsageRecord>;
    }
    rest {
        async fn store_contact(&self, contact: &ContactData, messages: &[Message]) -> Result<ContactId> {
            self.count_repairs(messages);
            self.measure("StoreContact", self.inner.store_contact(contact, messages)).await
        }

        // Their time is that of whoever reads them.
        fn stream_client_ids(
            &self,
            include_blacklisted: bool,
            last_contact_after: Option<Timestamp>,
        ) -> BoxStream<'_, Result<ClientId>> {
            self.inner.stream_client_ids(include_blacklisted, last_contact_after)
        }

        fn stream_client_contacts(&self, id: ClientId) -> BoxStream<'_, Result<ClientContact>> {
            self.inner.stream_client_contacts(id)
        }
    }
}

measured! {
    BroadcastStore {
        "CreateBroadcast" create_broadcast(broadcast: &Broadcast, limit: u64) -> ();
        "SetBroadcastLimit" set_broadcast_limit(id: BroadcastId, limit: u64) -> ();
        "DisableBroadcasts" disable_broadcasts(ids: &[BroadcastId]) -> ();
        "SaveBroadcastMessage" save_broadcast_message(message: &Message, broadcast: BroadcastId, client: ClientId, allocation: Option<AllocationId>) -> ();
        "ListActiveBroadcasts" list_active_broadcasts() -> Vec<BroadcastInfo>;
        "ListSentBroadcasts" list_sent_broadcasts(client: ClientId) -> Vec<BroadcastId>;
        "BroadcastProgress" broadcast_progress(id: BroadcastId) -> BroadcastProgress;
        "CreateAllocation" create_allocation(broadcast: BroadcastId, fraction: f32, expiry: SystemTime) -> Option<AllocationInfo>;
        "CleanupAllocation" cleanup_allocation(broadcast: BroadcastId, allocation: Option<AllocationId>, final_sent: u64) -> ();
    }
    rest {}
}

measured! {
    FileStore {
        "StoreFile" store_file(service: &str, name: &str, content: &mut (dyn AsyncRead + Send + Unpin)) -> ();
        "DeleteFile" delete_file(service: &str, name: &str) -> ();
        "StatFile" stat_file(service: &str, name: &str) -> SystemTime;
        "ReadFile" read_file(service: &str, name: &str) -> StoredFile;
    }
    rest {}
}

#[async_trait]
impl Store for Measured {
    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    async fn stats(&self) -> Result<StoreStats> {
        self.inner.stats().await
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn wakeups(&self) -> BoxStream<'static, ClientId> {
        self.inner.wakeups()
    }
}
