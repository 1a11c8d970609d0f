//! Dropped calls: what they had sent is decided before a later call writes.
//! For backends whose calls go on in the background when they are dropped.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

/// The transactions of dropped calls that have not ended.
#[derive(Debug, Default)]
pub struct Dropped {
    state: Mutex<State>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: BTreeSet<u64>,
}

/// One of them; it has ended when this is dropped.
#[derive(Debug)]
pub struct Left {
    dropped: Arc<Dropped>,
    number: u64,
}

impl Dropped {
    /// Notes a call that was dropped, until what is returned is dropped, too.
    pub fn begin(self: &Arc<Self>) -> Left {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.open.insert(number);
        Left {
            dropped: Arc::clone(self),
            number,
        }
    }

    /// Waits until those that are open now have ended, but not for longer than
    /// `limit`.
    pub async fn wait(&self, limit: Duration) {
        let before = {
            let state = self.state();
            if state.open.is_empty() {
                return;
            }
            state.next
        };
        let all_ended = async {
            loop {
                let ended = self.ended.notified();
                if self
                    .state()
                    .open
                    .first()
                    .is_none_or(|first| *first >= before)
                {
                    return;
                }
                ended.await;
            }
        };
        // A database that hangs delays nobody for longer than one who dropped.
        let _ = timeout(limit, all_ended).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.dropped.state().open.remove(&self.number);
        self.dropped.ended.notify_waiters();
    }
}
