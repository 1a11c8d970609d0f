//! A store that hands messages out twice: it keeps everything in memory as it
//! should, but returns the messages of a claim with the next one once more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::{
    Broadcast, Client, ClientContact, ClientResourceUsageRecord,
};
use fleethold_proto::fleetspeak::{Label, Message, MessageResult};
use fleethold_store::{
    AllocationId, AllocationInfo, BroadcastId, BroadcastInfo, BroadcastProgress, BroadcastStore,
    ClientData, ClientId, ClientStore, Clock, ContactData, ContactId, FileStore, MemoryStore,
    MessageId, MessageProcessor, MessageStore, Random, Result, ServiceLimits, Store, StoredFile,
};
use futures::stream::BoxStream;
use tokio::io::AsyncRead;

pub(crate) struct Forgetful {
    inner: MemoryStore,
    claimed: Mutex<BTreeMap<ClientId, Vec<Message>>>,
}

impl Forgetful {
    pub(crate) fn new(clock: Arc<dyn Clock>, random: Arc<Random>) -> Self {
        Self {
            inner: MemoryStore::new(clock, random),
            claimed: Mutex::default(),
        }
    }

    /// The bug: what the last claim took comes once more.
    async fn claim(
        &self,
        client: ClientId,
        limit: u64,
        service_limits: Option<&ServiceLimits>,
    ) -> Result<Vec<Message>> {
        let inner = &self.inner;
        let new = inner.client_messages_for_processing(client, limit, service_limits);
        let new = new.await?;
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut messages = claimed.insert(client, new.clone()).unwrap_or_default();
        messages.extend(new);
        Ok(messages)
    }
}

#[async_trait]
impl MessageStore for Forgetful {
    async fn store_messages(
        &self,
        messages: &[Message],
        contact: Option<&ContactId>,
    ) -> Result<()> {
        self.inner.store_messages(messages, contact).await
    }
    async fn set_message_result(
        &self,
        destination: Option<ClientId>,
        id: MessageId,
        result: &MessageResult,
    ) -> Result<()> {
        self.inner.set_message_result(destination, id, result).await
    }
    async fn set_message_results(&self, results: &[(MessageId, MessageResult)]) -> Result<()> {
        self.inner.set_message_results(results).await
    }
    async fn release_messages(&self, client: ClientId, ids: &[MessageId]) -> Result<()> {
        self.inner.release_messages(client, ids).await
    }
    async fn get_message_result(&self, id: MessageId) -> Result<Option<MessageResult>> {
        self.inner.get_message_result(id).await
    }
    async fn get_messages(&self, ids: &[MessageId], want_data: bool) -> Result<Vec<Message>> {
        self.inner.get_messages(ids, want_data).await
    }
    async fn get_pending_messages(
        &self,
        clients: &[ClientId],
        offset: u64,
        limit: u64,
        want_data: bool,
    ) -> Result<Vec<Message>> {
        self.inner
            .get_pending_messages(clients, offset, limit, want_data)
            .await
    }
    async fn get_pending_message_count(&self, clients: &[ClientId]) -> Result<u64> {
        self.inner.get_pending_message_count(clients).await
    }
    async fn delete_pending_messages(&self, clients: &[ClientId]) -> Result<()> {
        self.inner.delete_pending_messages(clients).await
    }
    async fn client_messages_for_processing(
        &self,
        client: ClientId,
        limit: u64,
        service_limits: Option<&ServiceLimits>,
    ) -> Result<Vec<Message>> {
        self.claim(client, limit, service_limits).await
    }
    async fn server_messages_for_processing(&self, limit: u64) -> Result<Vec<Message>> {
        self.inner.server_messages_for_processing(limit).await
    }
    async fn register_message_processor(&self, processor: Arc<dyn MessageProcessor>) {
        self.inner.register_message_processor(processor).await
    }
    async fn stop_message_processor(&self) {
        self.inner.stop_message_processor().await
    }
}

#[async_trait]
impl ClientStore for Forgetful {
    async fn list_clients(&self, ids: &[ClientId]) -> Result<Vec<Client>> {
        self.inner.list_clients(ids).await
    }
    fn stream_client_ids(
        &self,
        include_blacklisted: bool,
        last_contact_after: Option<Timestamp>,
    ) -> BoxStream<'_, Result<ClientId>> {
        self.inner
            .stream_client_ids(include_blacklisted, last_contact_after)
    }
    async fn get_client_data(&self, id: ClientId) -> Result<ClientData> {
        self.inner.get_client_data(id).await
    }
    async fn add_client(&self, id: ClientId, data: &ClientData) -> Result<()> {
        self.inner.add_client(id, data).await
    }
    async fn add_client_label(&self, id: ClientId, label: &Label) -> Result<()> {
        self.inner.add_client_label(id, label).await
    }
    async fn remove_client_label(&self, id: ClientId, label: &Label) -> Result<()> {
        self.inner.remove_client_label(id, label).await
    }
    async fn blacklist_client(&self, id: ClientId) -> Result<()> {
        self.inner.blacklist_client(id).await
    }
    async fn record_client_contact(&self, contact: &ContactData) -> Result<ContactId> {
        self.inner.record_client_contact(contact).await
    }
    async fn store_contact(
        &self,
        contact: &ContactData,
        messages: &[Message],
    ) -> Result<ContactId> {
        self.inner.store_contact(contact, messages).await
    }
    async fn enrol(&self, data: &ClientData, contact: &ContactData) -> Result<ContactId> {
        self.inner.enrol(data, contact).await
    }
    async fn list_client_contacts(&self, id: ClientId) -> Result<Vec<ClientContact>> {
        self.inner.list_client_contacts(id).await
    }
    fn stream_client_contacts(&self, id: ClientId) -> BoxStream<'_, Result<ClientContact>> {
        self.inner.stream_client_contacts(id)
    }
    async fn link_messages_to_contact(&self, contact: &ContactId, ids: &[MessageId]) -> Result<()> {
        self.inner.link_messages_to_contact(contact, ids).await
    }
    async fn record_resource_usage_data(
        &self,
        id: ClientId,
        usage: &ResourceUsageData,
    ) -> Result<()> {
        self.inner.record_resource_usage_data(id, usage).await
    }
    async fn fetch_resource_usage_records(
        &self,
        id: ClientId,
        start: &Timestamp,
        end: &Timestamp,
    ) -> Result<Vec<ClientResourceUsageRecord>> {
        self.inner
            .fetch_resource_usage_records(id, start, end)
            .await
    }
}

#[async_trait]
impl BroadcastStore for Forgetful {
    async fn create_broadcast(&self, broadcast: &Broadcast, limit: u64) -> Result<()> {
        self.inner.create_broadcast(broadcast, limit).await
    }
    async fn set_broadcast_limit(&self, id: BroadcastId, limit: u64) -> Result<()> {
        self.inner.set_broadcast_limit(id, limit).await
    }
    async fn disable_broadcasts(&self, ids: &[BroadcastId]) -> Result<()> {
        self.inner.disable_broadcasts(ids).await
    }
    async fn save_broadcast_message(
        &self,
        message: &Message,
        broadcast: BroadcastId,
        client: ClientId,
        allocation: Option<AllocationId>,
    ) -> Result<()> {
        self.inner
            .save_broadcast_message(message, broadcast, client, allocation)
            .await
    }
    async fn list_active_broadcasts(&self) -> Result<Vec<BroadcastInfo>> {
        self.inner.list_active_broadcasts().await
    }
    async fn list_sent_broadcasts(&self, client: ClientId) -> Result<Vec<BroadcastId>> {
        self.inner.list_sent_broadcasts(client).await
    }
    async fn broadcast_progress(&self, id: BroadcastId) -> Result<BroadcastProgress> {
        self.inner.broadcast_progress(id).await
    }
    async fn create_allocation(
        &self,
        broadcast: BroadcastId,
        fraction: f32,
        expiry: SystemTime,
    ) -> Result<Option<AllocationInfo>> {
        self.inner
            .create_allocation(broadcast, fraction, expiry)
            .await
    }
    async fn cleanup_allocation(
        &self,
        broadcast: BroadcastId,
        allocation: Option<AllocationId>,
        final_sent: u64,
    ) -> Result<()> {
        self.inner
            .cleanup_allocation(broadcast, allocation, final_sent)
            .await
    }
}

#[async_trait]
impl FileStore for Forgetful {
    async fn store_file(
        &self,
        service: &str,
        name: &str,
        content: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<()> {
        self.inner.store_file(service, name, content).await
    }
    async fn delete_file(&self, service: &str, name: &str) -> Result<()> {
        self.inner.delete_file(service, name).await
    }
    async fn stat_file(&self, service: &str, name: &str) -> Result<SystemTime> {
        self.inner.stat_file(service, name).await
    }
    async fn read_file(&self, service: &str, name: &str) -> Result<StoredFile> {
        self.inner.read_file(service, name).await
    }
}

#[async_trait]
impl Store for Forgetful {
    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
