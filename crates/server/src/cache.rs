//! What this server remembers of clients between their contacts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use fleethold_store::record::sorted_labels;
use fleethold_store::{ClientData, ClientId, ContactData, ContactId, Error, Store};
use tokio::time::Instant;

use crate::metrics::ClientLabels;

/// How long an entry is good: a change made by another server shows after this.
const LIFETIME: Duration = Duration::from_secs(45);

/// More entries than this, and stale ones are swept; after that new ones are not kept.
const MOST_ENTRIES: usize = 200_000;

/// Client data by id, each entry for 45 s.
pub(crate) struct ClientCache {
    store: Arc<dyn Store>,
    entries: Mutex<HashMap<ClientId, Arc<CachedClient>>>,
    /// How often something was forgotten: what was read before that may be stale.
    forgotten: AtomicU64,
}

/// A client as it was a short while ago.
#[derive(Debug)]
pub(crate) struct CachedClient {
    /// Key, labels and blacklist flag.
    pub(crate) data: ClientData,
    metric_labels: OnceLock<ClientLabels>,
    /// The version of the broadcasts this client has been served for, 0 for none.
    pub(crate) broadcasts_served: AtomicU64,
    loaded: Instant,
}

impl ClientCache {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            entries: Mutex::default(),
            forgotten: AtomicU64::new(0),
        }
    }

    /// Returns the client, from the store if need be; `None` if it is unknown.
    pub(crate) async fn load(&self, client: ClientId) -> Result<Option<Arc<CachedClient>>, Error> {
        let cached = self.with(|entries| entries.get(&client).cloned());
        if let Some(cached) = cached.filter(|cached| cached.loaded.elapsed() < LIFETIME) {
            return Ok(Some(cached));
        }
        let forgotten = self.forgotten.load(Ordering::SeqCst);
        let data = match self.store.get_client_data(client).await {
            Ok(data) => data,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(self.keep(client, data, forgotten)))
    }

    /// Adds a client to the store, with its first contact if there is one here,
    /// and keeps it.
    pub(crate) async fn add(
        &self,
        client: ClientId,
        mut data: ClientData,
        contact: Option<&ContactData>,
    ) -> Result<Option<ContactId>, Error> {
        let forgotten = self.forgotten.load(Ordering::SeqCst);
        let stored = match contact {
            Some(contact) => Some(self.store.enrol(&data, contact).await?),
            None => {
                self.store.add_client(client, &data).await?;
                None
            }
        };
        // As the store returns them.
        data.labels = sorted_labels("add_client", &data.labels)?;
        self.keep(client, data, forgotten);
        Ok(stored)
    }

    /// Keeps what was read or written, unless a client was forgotten since.
    fn keep(&self, client: ClientId, data: ClientData, forgotten: u64) -> Arc<CachedClient> {
        let loaded = Arc::new(CachedClient {
            data,
            metric_labels: OnceLock::new(),
            broadcasts_served: AtomicU64::new(0),
            loaded: Instant::now(),
        });
        self.with(|entries| {
            if entries.len() >= MOST_ENTRIES {
                entries.retain(|_, entry| entry.loaded.elapsed() < LIFETIME);
            }
            if entries.len() < MOST_ENTRIES && self.forgotten.load(Ordering::SeqCst) == forgotten {
                entries.insert(client, Arc::clone(&loaded));
            }
        });
        loaded
    }

    /// Returns whether [`load`](Self::load) would not ask the store now.
    pub(crate) fn holds(&self, client: ClientId) -> bool {
        self.with(|entries| {
            entries
                .get(&client)
                .is_some_and(|entry| entry.loaded.elapsed() < LIFETIME)
        })
    }

    /// Forgets a client whose data has changed.
    pub(crate) fn forget(&self, client: ClientId) {
        self.with(|entries| {
            self.forgotten.fetch_add(1, Ordering::SeqCst);
            entries.remove(&client)
        });
    }

    fn with<T>(
        &self,
        use_entries: impl FnOnce(&mut HashMap<ClientId, Arc<CachedClient>>) -> T,
    ) -> T {
        use_entries(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CachedClient {
    /// Returns the client's labels as metrics have them.
    pub(crate) fn metric_labels(&self) -> &ClientLabels {
        self.metric_labels
            .get_or_init(|| ClientLabels::of(&self.data.labels))
    }

    /// Returns whether the client has been served for this version of the broadcasts.
    pub(crate) fn is_served(&self, version: u64) -> bool {
        self.broadcasts_served.load(Ordering::Relaxed) >= version
    }

    /// Notes that the client has been served for this version of the broadcasts.
    pub(crate) fn set_served(&self, version: u64) {
        self.broadcasts_served.fetch_max(version, Ordering::Relaxed);
    }

    /// Returns whether the client has this label.
    pub(crate) fn has_label(&self, service: &str, label: &str) -> bool {
        self.data
            .labels
            .iter()
            .any(|has| has.service_name == service && has.label == label)
    }
}
