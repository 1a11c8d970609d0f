//! The queue before one service: how many messages it processes at a time, and
//! how many wait for that, for how long and with how many bytes.
//!
//! A short wait helps with what passes in milliseconds. What does not fit, or
//! waits longer, stays pending and is tried again from the store: a slow
//! service fills neither the memory nor the time of agents.

use std::sync::Arc;
use std::time::Duration;

use fleethold_proto::fleetspeak::Message;
use fleethold_store::limits::payload_bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::ServiceError;

/// How long a message waits at most; well under the time of a first try, so
/// that the call has some left, and so little of a retry's that it is a full try.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// How many messages wait at most for each that is processed.
const MOST_WAITING_PER_PLACE: usize = 10;

/// How many payload bytes wait at most.
const MOST_WAITING_BYTES: usize = 64 << 20;

pub(super) struct Queue {
    places: Arc<Semaphore>,
    waiting: Semaphore,
    waiting_bytes: Semaphore,
}

impl Queue {
    /// Lets so many messages in at a time.
    pub(super) fn new(parallelism: u32) -> Self {
        let most = Semaphore::MAX_PERMITS / MOST_WAITING_PER_PLACE;
        let places = usize::try_from(parallelism).unwrap_or(most).min(most);
        Self {
            places: Arc::new(Semaphore::new(places)),
            waiting: Semaphore::new(MOST_WAITING_PER_PLACE * places),
            waiting_bytes: Semaphore::new(MOST_WAITING_BYTES),
        }
    }

    /// Returns the permission to process a message, after a short wait if need be.
    pub(super) async fn enter(
        &self,
        message: &Message,
        deadline: Instant,
    ) -> Result<OwnedSemaphorePermit, ServiceError> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(place);
        }
        let bytes = u32::try_from(payload_bytes(message)).unwrap_or(u32::MAX);
        let _waiting = self.waiting.try_acquire().map_err(|_| ServiceError::Busy)?;
        let bytes = self.waiting_bytes.try_acquire_many(bytes);
        let _bytes = bytes.map_err(|_| ServiceError::Busy)?;
        let end = deadline.min(Instant::now() + LONGEST_WAIT);
        let place = timeout_at(end, Arc::clone(&self.places).acquire_owned()).await;
        let place = place.map_err(|_| ServiceError::Busy)?;
        Ok(place.expect("the semaphore is never closed"))
    }
}
