//! The loop that gives due server messages to the server: one for all backends.
//!
//! A backend only claims. Rules: specification section 4.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use fleethold_proto::fleetspeak::Message;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::error::{ErrorKind, Result};
use crate::limits::fills_claim;

/// Takes due server messages off a store's hands.
#[async_trait]
pub trait MessageProcessor: Send + Sync {
    /// Processes claimed messages, never none, and stores their results; it may
    /// return before, but no further messages come until it does.
    ///
    /// A message left without result is due again later. The store may be
    /// called; a panic is caught and logged.
    async fn process(&self, messages: Vec<Message>);
}

/// What the loop needs of a store.
#[async_trait]
pub trait ClaimServerMessages: Send + Sync {
    /// Claims due server messages; see
    /// [`server_messages_for_processing`](crate::MessageStore::server_messages_for_processing).
    async fn claim_server_messages(&self, limit: u64) -> Result<Vec<Message>>;
}

/// How often and how much the loop claims.
#[derive(Clone, Copy, Debug)]
pub struct ProcessorOptions {
    /// The wait after a batch that was not full; also before the first claim.
    pub period: Duration,
    /// At most this many messages in one call of the processor.
    pub batch: u64,
}

impl Default for ProcessorOptions {
    fn default() -> Self {
        Self {
            period: Duration::from_millis(300),
            batch: 100,
        }
    }
}

/// The place of a store's registered processor and its running loop.
///
/// The loop holds the store weakly: it ends when the store is closed or dropped.
#[derive(Debug, Default)]
pub struct ProcessorSlot {
    options: ProcessorOptions,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl ProcessorSlot {
    /// Makes an empty slot.
    pub fn new(options: ProcessorOptions) -> Self {
        Self {
            options,
            running: Mutex::default(),
        }
    }

    /// Starts the loop of `processor`, after a running one has been stopped.
    pub async fn register(
        &self,
        store: Weak<dyn ClaimServerMessages>,
        processor: Arc<dyn MessageProcessor>,
    ) {
        let mut running = self.running.lock().await;
        if running.is_some() {
            tracing::warn!("replacing a registered message processor");
        }
        stop(&mut running).await;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(run(self.options, store, processor, stopped));
        *running = Some(Running { stop, task });
    }

    /// Returns after the running call of the processor; no further one starts.
    pub async fn stop(&self) {
        stop(&mut *self.running.lock().await).await;
    }
}

async fn stop(slot: &mut Option<Running>) {
    // A dropped stop leaves the loop in its place for the next one to wait for.
    if let Some(running) = slot {
        running.stop.send_replace(true);
        if let Err(error) = (&mut running.task).await {
            tracing::error!(%error, "the message processor's loop ended badly");
        }
        *slot = None;
    }
}

async fn run(
    options: ProcessorOptions,
    store: Weak<dyn ClaimServerMessages>,
    processor: Arc<dyn MessageProcessor>,
    mut stopped: watch::Receiver<bool>,
) {
    const FIRST_BACKOFF: Duration = Duration::from_millis(100);
    const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
    let mut backoff = FIRST_BACKOFF;
    let mut wait = options.period;
    loop {
        tokio::select! {
            // A stop goes before a claim that is due at the same moment.
            biased;
            // The sender is dropped with the slot, that is, with the store.
            _ = stopped.wait_for(|stop| *stop) => return,
            () = sleep_until(Instant::now() + wait) => {}
        }
        let Some(claimer) = store.upgrade() else {
            return;
        };
        let claimed = claimer.claim_server_messages(options.batch).await;
        drop(claimer);
        wait = match claimed {
            Ok(messages) if messages.is_empty() => {
                backoff = FIRST_BACKOFF;
                options.period
            }
            Ok(messages) => {
                backoff = FIRST_BACKOFF;
                let full = u64::try_from(messages.len()).is_ok_and(|count| count >= options.batch)
                    || fills_claim(&messages);
                // A task of its own, so that a panic ends only this call.
                let processor = Arc::clone(&processor);
                let call = tokio::spawn(async move { processor.process(messages).await });
                if let Err(error) = call.await {
                    tracing::error!(%error, "the message processor panicked");
                }
                if full { Duration::ZERO } else { options.period }
            }
            Err(error) if error.kind() == ErrorKind::Closed => return,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot claim server messages");
                let wait = backoff;
                backoff = (2 * backoff).min(LONGEST_BACKOFF);
                wait
            }
        };
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
