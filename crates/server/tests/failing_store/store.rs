//! A store in memory that fails when it is told to, and retries when it is told to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
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
    ClientData, ClientId, ClientStore, ContactData, ContactId, Error, ErrorKind, FileStore,
    MemoryStore, MessageId, MessageProcessor, MessageStore, Result, ServiceLimits, Store,
    StoredFile,
};
use futures::stream::BoxStream;
use tokio::io::AsyncRead;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;

/// Hands all calls on to a store in memory, except those that are to fail.
pub(crate) struct FailingStore {
    pub(crate) inner: MemoryStore,
    faults: Mutex<Vec<Fault>>,
    /// How many calls have been held back.
    waiting: AtomicUsize,
    /// The method whose calls take effect and are answered when there is a permit.
    held: Mutex<Option<(&'static str, Arc<Semaphore>)>>,
    /// What another process is said to have stored messages for.
    pub(crate) hint: mpsc::UnboundedSender<ClientId>,
    hints: Mutex<Option<mpsc::UnboundedReceiver<ClientId>>>,
    processor: Mutex<Option<Arc<dyn MessageProcessor>>>,
}

/// One call that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The method's name.
    pub(crate) call: &'static str,
    pub(crate) kind: ErrorKind,
    /// Whether the call takes effect and only its answer is lost.
    pub(crate) applied: bool,
}

impl FailingStore {
    pub(crate) fn new(inner: MemoryStore) -> Self {
        let (hint, hints) = mpsc::unbounded_channel();
        Self {
            inner,
            hint,
            faults: Mutex::default(),
            waiting: AtomicUsize::new(0),
            held: Mutex::default(),
            hints: Mutex::new(Some(hints)),
            processor: Mutex::default(),
        }
    }

    /// Lets the next call of that method fail which no earlier fault meets.
    pub(crate) fn fail_once(&self, fault: Fault) {
        self.faults.lock().unwrap().push(fault);
    }

    /// Returns the faults that no call has met yet.
    pub(crate) fn faults_left(&self) -> Vec<Fault> {
        self.faults.lock().unwrap().clone()
    }

    /// Gives the due server messages to the server, which a store does by
    /// itself otherwise; returns how many there were.
    pub(crate) async fn retry_due_messages(&self) -> usize {
        let due = self.inner.server_messages_for_processing(100).await;
        let due = due.unwrap();
        let count = due.len();
        if count > 0 {
            let processor = self.processor.lock().unwrap().clone();
            processor.expect("a processor").process(due).await;
        }
        count
    }

    /// Holds the answers of a method back until there are permits for them.
    pub(crate) fn hold(&self, call: &'static str) -> Arc<Semaphore> {
        let permits = Arc::new(Semaphore::new(0));
        *self.held.lock().unwrap() = Some((call, Arc::clone(&permits)));
        permits
    }

    /// Returns how many calls were held back.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    fn fault_of(&self, call: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let index = faults.iter().position(|fault| fault.call == call)?;
        Some(faults.remove(index))
    }

    async fn call<T>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let Some(fault) = self.fault_of(name) else {
            let result = call.await;
            let held = self.held.lock().unwrap().clone();
            if let Some((_, permits)) = held.filter(|(held, _)| *held == name) {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                permits.acquire().await.unwrap().forget();
            }
            return result;
        };
        if fault.applied {
            drop(call.await);
        }
        Err(Error::new(fault.kind, name, "as told"))
    }
}

/// Implements a trait by handing on the calls of these methods; `rest` is kept as it is.
macro_rules! hand_on {
    (
        $trait:ident {
            $($name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*
        }
        rest { $($rest:tt)* }
    ) => {
        #[async_trait]
        impl $trait for FailingStore {
            $(
                async fn $name(&self, $($argument: $type),*) -> Result<$output> {
                    let call = self.inner.$name($($argument),*);
                    self.call(stringify!($name), call).await
                }
            )*
            $($rest)*
        }
    };
}

hand_on! {
    MessageStore {
        store_messages(messages: &[Message], contact: Option<&ContactId>) -> ();
        set_message_result(destination: Option<ClientId>, id: MessageId, result: &MessageResult) -> ();
        set_message_results(results: &[(MessageId, MessageResult)]) -> ();
        release_messages(client: ClientId, ids: &[MessageId]) -> ();
        get_message_result(id: MessageId) -> Option<MessageResult>;
        get_messages(ids: &[MessageId], want_data: bool) -> Vec<Message>;
        get_pending_messages(clients: &[ClientId], offset: u64, limit: u64, want_data: bool) -> Vec<Message>;
        get_pending_message_count(clients: &[ClientId]) -> u64;
        delete_pending_messages(clients: &[ClientId]) -> ();
        client_messages_for_processing(client: ClientId, limit: u64, service_limits: Option<&ServiceLimits>) -> Vec<Message>;
        server_messages_for_processing(limit: u64) -> Vec<Message>;
    }
    rest {
        async fn register_message_processor(&self, processor: Arc<dyn MessageProcessor>) {
            *self.processor.lock().unwrap() = Some(processor);
        }

        async fn stop_message_processor(&self) {
            *self.processor.lock().unwrap() = None;
        }
    }
}

hand_on! {
    ClientStore {
        list_clients(ids: &[ClientId]) -> Vec<Client>;
        get_client_data(id: ClientId) -> ClientData;
        add_client(id: ClientId, data: &ClientData) -> ();
        add_client_label(id: ClientId, label: &Label) -> ();
        remove_client_label(id: ClientId, label: &Label) -> ();
        blacklist_client(id: ClientId) -> ();
        record_client_contact(contact: &ContactData) -> ContactId;
        store_contact(contact: &ContactData, messages: &[Message]) -> ContactId;
        enrol(data: &ClientData, contact: &ContactData) -> ContactId;
        list_client_contacts(id: ClientId) -> Vec<ClientContact>;
        link_messages_to_contact(contact: &ContactId, ids: &[MessageId]) -> ();
        record_resource_usage_data(id: ClientId, usage: &ResourceUsageData) -> ();
        fetch_resource_usage_records(id: ClientId, start: &Timestamp, end: &Timestamp) -> Vec<ClientResourceUsageRecord>;
    }
    rest {
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

hand_on! {
    BroadcastStore {
        create_broadcast(broadcast: &Broadcast, limit: u64) -> ();
        set_broadcast_limit(id: BroadcastId, limit: u64) -> ();
        disable_broadcasts(ids: &[BroadcastId]) -> ();
        save_broadcast_message(message: &Message, broadcast: BroadcastId, client: ClientId, allocation: Option<AllocationId>) -> ();
        list_active_broadcasts() -> Vec<BroadcastInfo>;
        list_sent_broadcasts(client: ClientId) -> Vec<BroadcastId>;
        broadcast_progress(id: BroadcastId) -> BroadcastProgress;
        create_allocation(broadcast: BroadcastId, fraction: f32, expiry: SystemTime) -> Option<AllocationInfo>;
        cleanup_allocation(broadcast: BroadcastId, allocation: Option<AllocationId>, final_sent: u64) -> ();
    }
    rest {}
}

hand_on! {
    FileStore {
        store_file(service: &str, name: &str, content: &mut (dyn AsyncRead + Send + Unpin)) -> ();
        delete_file(service: &str, name: &str) -> ();
        stat_file(service: &str, name: &str) -> SystemTime;
        read_file(service: &str, name: &str) -> StoredFile;
    }
    rest {}
}

hand_on! {
    Store {
        close() -> ();
    }
    rest {
        fn wakeups(&self) -> BoxStream<'static, ClientId> {
            let hints = self.hints.lock().unwrap().take();
            let hints = hints.expect("one server follows the hints");
            Box::pin(UnboundedReceiverStream::new(hints))
        }
    }
}
