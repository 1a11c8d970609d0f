//! The services on the server, and how messages get to them.

mod backlog;
pub(crate) mod grpc;
pub(crate) mod noop;
mod queue;
pub(crate) mod system;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fleethold_proto::fleetspeak::server::ServiceConfig;
use fleethold_proto::fleetspeak::{Message, MessageResult};
use fleethold_proto::unpack;
use fleethold_store::clock::timestamp;
use fleethold_store::limits::payload_bytes;
use fleethold_store::{ClientId, Clock, MessageId, Store};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

pub(crate) use self::backlog::Backlog;
use self::backlog::Room;
use self::queue::Queue;
use crate::cache::{CachedClient, ClientCache};
use crate::metrics::{ClientLabels, Metrics, Processed};

/// How many messages a service processes at a time unless its configuration says otherwise.
const DEFAULT_PARALLELISM: u32 = 100;

/// How long an agent's contact waits for services; what takes longer is retried
/// from the store.
const FIRST_TRY: Duration = Duration::from_secs(5);

/// How long a retry from the store may take.
const RETRY: Duration = Duration::from_secs(30);

/// How many messages inserted through the admin API are processed at a time, and
/// their payloads; more of them wait in the store for their retry.
const MOST_IN_BACKGROUND: usize = 1_000;
const MOST_BACKGROUND_BYTES: usize = 64 << 20;

/// The longest failure reason in bytes; a longer one ends with `...`.
const MAX_REASON_BYTES: usize = 900;

/// A service on the server.
#[async_trait]
pub(crate) trait Service: Send + Sync {
    /// Processes one message before `deadline`.
    async fn process(&self, message: &Message, deadline: Instant) -> Result<(), ServiceError>;
}

/// Why a service did not process a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ServiceError {
    /// The message stays pending and is retried.
    Temporary(String),
    /// The service takes no more messages at the moment: as a temporary error.
    Busy,
    /// The message has failed for good.
    Permanent(String),
}

/// Which try this is: it decides how long the services may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Try {
    /// The message has just arrived, and its sender waits.
    First,
    /// The message comes from the store.
    Again,
}

/// A service that cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("service `{service}`: {problem}")]
pub struct ServiceConfigError {
    pub(crate) service: String,
    pub(crate) problem: String,
}

/// All services of this server.
pub(crate) struct Services {
    by_name: HashMap<String, Installed>,
    store: Arc<dyn Store>,
    cache: Arc<ClientCache>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    background: TaskTracker,
    background_places: Arc<Semaphore>,
    background_bytes: Arc<Semaphore>,
}

struct Installed {
    service: Arc<dyn Service>,
    queue: Queue,
    backlog: Room,
}

impl Services {
    /// Sets up the configured services and the `system` service.
    pub(crate) fn new(
        configs: &[ServiceConfig],
        system: system::SystemService,
        store: Arc<dyn Store>,
        cache: Arc<ClientCache>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ServiceConfigError> {
        let mut services = Self {
            by_name: HashMap::new(),
            store,
            cache,
            clock,
            metrics,
            background: TaskTracker::new(),
            background_places: Arc::new(Semaphore::new(MOST_IN_BACKGROUND)),
            background_bytes: Arc::new(Semaphore::new(MOST_BACKGROUND_BYTES)),
        };
        for config in configs {
            let (service, parallelism) = make(config)?;
            let parallelism = match config.max_parallelism {
                0 => parallelism,
                parallelism => parallelism,
            };
            services.install(&config.name, service, parallelism);
        }
        services.install(system::NAME, Arc::new(system), DEFAULT_PARALLELISM);
        Ok(services)
    }

    fn install(&mut self, name: &str, service: Arc<dyn Service>, max_parallelism: u32) {
        let installed = Installed {
            service,
            queue: Queue::new(max_parallelism),
            backlog: Room::new(max_parallelism),
        };
        self.by_name.insert(name.to_owned(), installed);
    }

    /// Gives each message to its service, all at the same time, and fills in
    /// the results; a message that is to be retried keeps its payload and has none.
    pub(crate) async fn process(&self, messages: Vec<Message>, which: Try) -> Vec<Message> {
        let budget = match which {
            Try::First => FIRST_TRY,
            Try::Again => RETRY,
        };
        let deadline = Instant::now() + budget;
        let calls = messages
            .into_iter()
            .map(|message| self.process_one(message, deadline, which));
        futures::future::join_all(calls).await
    }

    /// Processes a stored server message in the background and stores its
    /// result; when too much is under way it waits for its retry instead.
    pub(crate) fn process_stored(self: &Arc<Self>, message: Message) {
        let place = Arc::clone(&self.background_places).try_acquire_owned();
        let bytes = u32::try_from(payload_bytes(&message)).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.background_bytes).try_acquire_many_owned(bytes);
        let (Ok(place), Ok(bytes)) = (place, bytes) else {
            return;
        };
        let services = Arc::clone(self);
        self.background.spawn(async move {
            services.process_and_store(vec![message]).await;
            drop((place, bytes));
        });
    }

    /// Waits for messages in the background, at most until `limit` has passed.
    pub(crate) async fn finish(&self, limit: Duration) {
        self.background.close();
        if tokio::time::timeout(limit, self.background.wait())
            .await
            .is_err()
        {
            tracing::warn!("left messages in the background to their retry");
        }
    }

    async fn process_and_store(&self, messages: Vec<Message>) {
        let mut messages = self.process(messages, Try::Again).await;
        messages.retain(|message| message.result.is_some());
        if let Err(error) = self.store.store_messages(&messages, None).await {
            tracing::warn!(error = %crate::chain(&error), "cannot store results; the messages will be retried");
        }
    }

    async fn process_one(&self, mut message: Message, deadline: Instant, which: Try) -> Message {
        let source = self.source(&message).await;
        message.is_blocklisted_source = source
            .as_ref()
            .is_some_and(|source| source.data.blacklisted);
        let no_labels = ClientLabels::default();
        let labels = source
            .as_ref()
            .map_or(&no_labels, |source| source.metric_labels());
        let message = Arc::new(message);
        let name = destination(&message);
        let first_try = which == Try::First;
        let started = Instant::now();
        let outcome = match self.by_name.get(name) {
            Some(installed) => {
                self.metrics.ingested(&message, labels, !first_try);
                installed.process(&message, deadline).await
            }
            None => Err(ServiceError::Permanent(format!(
                "no service `{}` on this server",
                fleethold_store::limits::cut_chars(name, 128)
            ))),
        };
        let processed = match &outcome {
            Ok(()) => Some(Processed::Success),
            Err(ServiceError::Busy) => None,
            // Upstream calls an unknown service's error temporary.
            Err(_) if !self.by_name.contains_key(name) => Some(Processed::TemporaryError),
            Err(ServiceError::Temporary(_)) => Some(Processed::TemporaryError),
            Err(ServiceError::Permanent(_)) => Some(Processed::PermanentError),
        };
        match processed {
            Some(processed) => {
                let took = started.elapsed();
                self.metrics
                    .processed(&message, labels, first_try, took, processed);
            }
            None => self.metrics.dropped(&message, labels, first_try),
        }
        // The call has ended, so this is the only reference, unless it panicked just now.
        let mut message = Arc::unwrap_or_clone(message);
        let failed_reason = match outcome {
            Ok(()) => None,
            Err(ServiceError::Permanent(reason)) => Some(shorten(&reason)),
            Err(error @ (ServiceError::Temporary(_) | ServiceError::Busy)) => {
                let reason = match error {
                    ServiceError::Temporary(reason) => reason,
                    _ => "the service is busy".to_owned(),
                };
                tracing::debug!(message = %id(&message), reason, "message will be retried");
                return message;
            }
        };
        message.data = None;
        message.result = Some(MessageResult {
            processed_time: Some(timestamp(self.clock.now())),
            failed: failed_reason.is_some(),
            failed_reason: failed_reason.unwrap_or_default(),
        });
        message
    }

    /// Counts messages that their service has no room for.
    async fn dropped(&self, messages: impl Iterator<Item = &Message>) {
        for message in messages {
            let source = self.source(message).await;
            let no_labels = ClientLabels::default();
            let labels = source
                .as_ref()
                .map_or(&no_labels, |source| source.metric_labels());
            self.metrics.dropped(message, labels, false);
        }
    }

    /// Returns the client that a message comes from, if there is one.
    async fn source(&self, message: &Message) -> Option<Arc<CachedClient>> {
        let source = message
            .source
            .as_ref()
            .map_or(&[][..], |source| &source.client_id);
        let Ok(Some(client)) = ClientId::from_optional_bytes(source) else {
            return None;
        };
        match self.cache.load(client).await {
            Ok(client) => client,
            Err(error) => {
                tracing::debug!(%client, %error, "cannot look the source of a message up");
                None
            }
        }
    }
}

impl Installed {
    async fn process(&self, message: &Arc<Message>, deadline: Instant) -> Result<(), ServiceError> {
        let late = |_| ServiceError::Temporary("the service did not answer in time".into());
        let place = self.queue.enter(message, deadline).await?;
        // A task of its own, so that a panic is an error of this message only.
        let service = Arc::clone(&self.service);
        let shared = Arc::clone(message);
        let call = tokio::spawn(async move {
            let result = timeout_at(deadline, service.process(&shared, deadline)).await;
            drop(place);
            result
        });
        let result = match call.await {
            Ok(result) => result.map_err(late)?,
            Err(panic) => {
                tracing::error!(error = %panic, "a service panicked");
                Err(ServiceError::Temporary("the service panicked".into()))
            }
        };
        if matches!(result, Ok(()) | Err(ServiceError::Permanent(_))) {
            self.backlog.progress();
        }
        result
    }
}

/// Returns the service and how many messages it processes at a time unless
/// its configuration says otherwise.
pub(crate) fn make(config: &ServiceConfig) -> Result<(Arc<dyn Service>, u32), ServiceConfigError> {
    let problem = |problem: String| ServiceConfigError {
        service: config.name.clone(),
        problem,
    };
    match config.factory.as_str() {
        "NOOP" => Ok((Arc::new(noop::NoopService), DEFAULT_PARALLELISM)),
        "GRPC" => {
            let any = config.config.as_ref().ok_or_else(|| {
                problem(
                    "factory GRPC needs a `config` of type fleetspeak.grpcservice.Config".into(),
                )
            })?;
            if grpc::batch::is_config(any) {
                let batch = unpack(any).map_err(|error| problem(error.to_string()))?;
                let (service, parallelism) =
                    grpc::GrpcService::from_batch_config(&config.name, &batch)?;
                return Ok((Arc::new(service), parallelism));
            }
            let grpc = unpack(any).map_err(|error| problem(error.to_string()))?;
            let service = grpc::GrpcService::from_config(&config.name, &grpc)?;
            Ok((Arc::new(service), DEFAULT_PARALLELISM))
        }
        "CPS" => Err(problem(
            "factory CPS (Google Pub/Sub) is not supported; use GRPC".into(),
        )),
        other => Err(problem(format!(
            "unknown factory `{other}`; use GRPC or NOOP"
        ))),
    }
}

/// Returns the service that a message is for.
fn destination(message: &Message) -> &str {
    let destination = message.destination.as_ref();
    destination.map_or("", |destination| &destination.service_name)
}

fn shorten(reason: &str) -> String {
    if reason.len() <= MAX_REASON_BYTES {
        return reason.to_owned();
    }
    let start = fleethold_store::limits::cut_bytes(reason, MAX_REASON_BYTES - 3);
    format!("{start}...")
}

/// Returns the message's id for a log line.
pub(crate) fn id(message: &Message) -> String {
    MessageId::try_from(&message.message_id[..])
        .map_or_else(|error| error.to_string(), |id| id.to_string())
}

#[cfg(test)]
mod tests;
