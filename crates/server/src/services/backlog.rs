//! The messages that a store hands out because nobody has taken them yet.
//!
//! Each service has its own: one that hangs keeps its share of the memory until
//! its calls time out, and delays the backlog of no other one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fleethold_proto::fleetspeak::Message;
use fleethold_store::MessageProcessor;
use fleethold_store::limits::{MAX_CLAIM_BYTES, MAX_PAYLOAD_BYTES, payload_bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::{Services, destination};

/// How many messages of one service's backlog are in work: not many more than
/// it processes at a time, or they would be refused by its queue.
const MOST_MESSAGES: u32 = 100;
const MOST_PER_PARALLEL_CALL: u32 = 5;

/// How many payload bytes of it are in work: whatever one claim holds.
const MOST_BYTES: usize = MAX_CLAIM_BYTES + MAX_PAYLOAD_BYTES;

/// How long messages of one claim wait for a service that is still busy with
/// earlier ones, as long as it finishes some.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Gives what a store hands out to its services.
pub(crate) struct Backlog(pub(crate) Arc<Services>);

/// How much of one service's backlog may be in work.
pub(super) struct Room {
    most_messages: u32,
    messages: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// When the service last finished a message, or got the first after all were finished.
    progress: Mutex<Instant>,
}

/// The room of some messages, until it is dropped.
pub(super) struct Place(#[expect(dead_code, reason = "held")] [OwnedSemaphorePermit; 2]);

#[async_trait]
impl MessageProcessor for Backlog {
    /// Returns when the messages are in work, or left to their retry because
    /// their service is too busy.
    async fn process(&self, messages: Vec<Message>) {
        let mut by_service = BTreeMap::<_, Vec<_>>::new();
        for message in messages {
            let service = destination(&message).to_owned();
            by_service.entry(service).or_default().push(message);
        }
        let services = by_service.into_iter();
        futures::future::join_all(services.map(|(name, messages)| self.start(name, messages)))
            .await;
    }
}

impl Backlog {
    async fn start(&self, name: String, mut messages: Vec<Message>) {
        let services = &self.0;
        let Some(installed) = services.by_name.get(&name) else {
            // Nobody is to be waited for.
            services.process_and_store(messages).await;
            return;
        };
        let room = &installed.backlog;
        let deadline = Instant::now() + LONGEST_WAIT;
        while !messages.is_empty() {
            let rest = messages.split_off(messages.len().min(room.most_messages as usize));
            let Some(place) = room.enter(&messages, deadline).await else {
                tracing::debug!(
                    service = name,
                    messages = messages.len() + rest.len(),
                    "a service is busy; messages wait for their retry"
                );
                services.dropped(messages.iter().chain(&rest)).await;
                return;
            };
            let services = Arc::clone(services);
            let tracker = services.background.clone();
            tracker.spawn(async move {
                services.process_and_store(messages).await;
                drop(place);
            });
            messages = rest;
        }
    }
}

impl Room {
    /// Makes room for a service that processes so many messages at a time.
    pub(super) fn new(parallelism: u32) -> Self {
        let most_messages = parallelism.saturating_mul(MOST_PER_PARALLEL_CALL);
        let most_messages = most_messages.clamp(1, MOST_MESSAGES);
        Self {
            most_messages,
            messages: Arc::new(Semaphore::new(most_messages as usize)),
            bytes: Arc::new(Semaphore::new(MOST_BYTES)),
            progress: Mutex::new(Instant::now()),
        }
    }

    /// Notes that the service has finished a message.
    pub(super) fn progress(&self) {
        *self.last_progress() = Instant::now();
    }

    /// Returns room for messages, after a short wait if the service finishes others.
    async fn enter(&self, messages: &[Message], deadline: Instant) -> Option<Place> {
        if self.messages.available_permits() == self.most_messages as usize {
            self.progress();
        }
        let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        // A claim may hold one payload more than its limit, and a store may have kept larger ones.
        let bytes = messages.iter().map(payload_bytes).sum::<usize>();
        let bytes = u32::try_from(bytes.min(MOST_BYTES)).expect("some MiB");
        let acquire = async {
            let messages = Arc::clone(&self.messages).acquire_many_owned(count).await;
            let bytes = Arc::clone(&self.bytes).acquire_many_owned(bytes).await;
            Place([messages, bytes].map(|permit| permit.expect("never closed")))
        };
        let hangs = self.hangs(Instant::now());
        let end = if hangs { Instant::now() } else { deadline };
        timeout_at(end, acquire).await.ok()
    }

    fn hangs(&self, now: Instant) -> bool {
        now.saturating_duration_since(*self.last_progress()) >= LONGEST_WAIT
    }

    fn last_progress(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_is_waited_for_only_while_the_service_finishes_messages() {
        let room = Room::new(1_000);
        let messages = vec![Message::default(); MOST_MESSAGES as usize];
        let now = Instant::now();
        let place = room.enter(&messages, now).await.unwrap();
        assert!(room.enter(&messages[..1], now).await.is_none());
        let wait = room.enter(&messages[..1], now + Duration::from_secs(100));
        let (entered, ()) = tokio::join!(wait, async {
            tokio::task::yield_now().await;
            drop(place);
        });
        assert!(entered.is_some());
    }

    #[test]
    fn service_hangs_that_finishes_nothing_for_two_seconds() {
        let room = Room::new(1);
        assert_eq!(room.most_messages, 5);
        room.progress();
        let finished = *room.last_progress();
        assert!(!room.hangs(finished + LONGEST_WAIT - Duration::from_millis(1)));
        assert!(room.hangs(finished + LONGEST_WAIT));
        room.progress();
        let finished = *room.last_progress();
        assert!(!room.hangs(finished));
    }
}
