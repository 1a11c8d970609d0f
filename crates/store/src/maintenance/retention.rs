//! Removing what is old, by one of all servers on a database.

use std::sync::Arc;
use std::time::Duration;

use super::{Lease, Maintenance, Old};
use crate::clock::Clock;
use crate::error::Result;
use crate::random::Random;

/// How long rows are kept; `None` is for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Contacts of clients.
    pub contacts: Option<Duration>,
    /// Resource usage records.
    pub usage: Option<Duration>,
    /// Messages that have a result.
    pub messages: Option<Duration>,
    /// Messages that wait for a client; after that they fail.
    pub pending: Option<Duration>,
}

impl Default for Retention {
    /// The ages that upstream's Spanner store has: 14 days, and 15 for messages.
    fn default() -> Self {
        let days = |days: u64| Some(Duration::from_secs(days * 24 * 60 * 60));
        Self {
            contacts: days(14),
            usage: days(14),
            messages: days(15),
            pending: days(14),
        }
    }
}

impl Retention {
    /// Keeps everything for ever.
    pub const NONE: Self = Self {
        contacts: None,
        usage: None,
        messages: None,
        pending: None,
    };

    fn age(&self, what: Old) -> Option<Duration> {
        match what {
            Old::Contacts => self.contacts,
            Old::Usage => self.usage,
            Old::Messages => self.messages,
            Old::Pending => self.pending,
        }
    }
}

/// Removes what is too old from a store, a little at a time.
pub struct RetentionTask {
    store: Arc<dyn Maintenance>,
    retention: Retention,
    clock: Arc<dyn Clock>,
    holder: u64,
}

/// How many rows are looked at in one transaction.
const STEP: usize = 1_000;
/// The pause after each: others write, too.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a lease lasts; one round of a large store renews it often.
const LEASE: Duration = Duration::from_secs(120);

impl RetentionTask {
    /// The time between two rounds.
    pub const EVERY: Duration = Duration::from_secs(600);

    /// Makes a task for one process.
    pub fn new(
        store: Arc<dyn Maintenance>,
        retention: Retention,
        clock: Arc<dyn Clock>,
        random: &Random,
    ) -> Self {
        Self {
            store,
            retention,
            clock,
            // Stored as a signed number.
            holder: random.next_u64() >> 1,
        }
    }

    /// Removes what is old now; returns how many rows that were. Nothing, if
    /// another process does it at the same time.
    ///
    /// # Errors
    /// Those of the store; the next round goes on.
    pub async fn round(&self) -> Result<u64> {
        let mut removed = 0;
        for what in Old::ALL {
            let Some(age) = self.retention.age(what) else {
                continue;
            };
            let Some(before) = self.clock.now().checked_sub(age) else {
                continue;
            };
            let mut place = None;
            loop {
                let Some(lease) = self.lease().await? else {
                    return Ok(removed);
                };
                let step = self
                    .store
                    .remove_old(what, before, place.as_ref(), STEP, &lease)
                    .await?;
                removed += step.rows;
                if step.next.is_none() {
                    break;
                }
                place = step.next;
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(removed)
    }

    async fn lease(&self) -> Result<Option<Lease>> {
        self.store.hold_lease("retention", self.holder, LEASE).await
    }
}
