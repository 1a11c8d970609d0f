//! What the port for agents and the port for operators both work on.

use std::sync::{Arc, OnceLock};

use fleethold_store::{ClientId, Clock, Random, Store};

use crate::broadcasts::Broadcasts;
use crate::cache::ClientCache;
use crate::config::Config;
use crate::limits::Gate;
use crate::metrics::{Measured, Metrics};
use crate::notifications::{News, Notifier};
use crate::services::system::SystemService;
use crate::services::{ServiceConfigError, Services};
use crate::streams::Streams;

/// Everything between the ports and the store.
pub(crate) struct Engine {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: Arc<ClientCache>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) services: Arc<Services>,
    pub(crate) broadcasts: Arc<Broadcasts>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<Random>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) metrics: Arc<Metrics>,
    /// Set at the start, unless no other server can be on the store.
    notifier: OnceLock<Notifier>,
}

impl Engine {
    /// Puts the parts together; nothing runs yet.
    pub(crate) fn new(
        config: &Config,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        random: Arc<Random>,
    ) -> Result<Self, ServiceConfigError> {
        let metrics = Arc::new(Metrics::new(config.metrics_by_client_labels));
        let store: Arc<dyn Store> = Arc::new(Measured::new(store, Arc::clone(&metrics)));
        let cache = Arc::new(ClientCache::new(Arc::clone(&store)));
        let streams = Arc::new(Streams::default());
        let system = SystemService {
            store: Arc::clone(&store),
            cache: Arc::clone(&cache),
            streams: Arc::clone(&streams),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(&metrics),
        };
        let services = Services::new(
            &config.services,
            system,
            Arc::clone(&store),
            Arc::clone(&cache),
            Arc::clone(&clock),
            Arc::clone(&metrics),
        )?;
        let broadcasts = Broadcasts::new(
            Arc::clone(&store),
            Arc::clone(&streams),
            Arc::clone(&clock),
            Arc::clone(&random),
            config.broadcast_poll,
        );
        Ok(Self {
            store,
            cache,
            streams,
            services: Arc::new(services),
            broadcasts: Arc::new(broadcasts),
            clock,
            random,
            gate: Arc::new(Gate::new(config.limits.clone())),
            metrics,
            notifier: OnceLock::new(),
        })
    }

    /// Lets other servers be told of news.
    pub(crate) fn set_notifier(&self, notifier: Notifier) {
        if self.notifier.set(notifier).is_err() {
            tracing::error!("a second notifier is not used");
        }
    }

    /// Wakes the client's stream, wherever it ends: here now, at another server soon.
    pub(crate) fn wake(&self, client: ClientId, news: News) {
        self.streams.wake(client);
        if let Some(notifier) = self.notifier.get() {
            notifier.tell(client, news);
        }
    }
}
