//! What a store knows of its own load.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How far overdue messages are counted: a backlog must not be walked.
pub const MOST_OVERDUE_COUNTED: u64 = 10_000;

/// The load of a store; `None` is what it does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Server-bound messages that are due, counted up to [`MOST_OVERDUE_COUNTED`].
    pub overdue_server_messages: Option<u64>,
    /// For how long the oldest of them has been due; zero if there is none.
    pub oldest_overdue_server_message: Option<Duration>,
    /// Calls that read, and their waits for a connection.
    pub reads: Option<Waits>,
    /// Calls that write, and their waits for a transaction.
    pub writes: Option<Waits>,
}

/// How long calls have waited for their turn, since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Calls that wait now.
    pub waiting: u64,
    /// Calls that got their turn.
    pub count: u64,
    /// The time they have waited, all together.
    pub time: Duration,
}

/// Counts waits, for a backend.
#[derive(Debug, Default)]
pub struct WaitCounter {
    begun: AtomicU64,
    ended: AtomicU64,
    count: AtomicU64,
    nanos: AtomicU64,
}

/// One wait; dropping it without [`end`](Wait::end) gives it up.
#[derive(Debug)]
pub struct Wait<C: AsRef<WaitCounter>> {
    counter: C,
    began: Instant,
}

impl WaitCounter {
    /// Returns what was counted so far.
    pub fn waits(&self) -> Waits {
        // Ended first: the difference must not be negative.
        let ended = self.ended.load(Ordering::Relaxed);
        let begun = self.begun.load(Ordering::Relaxed);
        Waits {
            waiting: begun.saturating_sub(ended),
            count: self.count.load(Ordering::Relaxed),
            time: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
        }
    }
}

impl AsRef<Self> for WaitCounter {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl<C: AsRef<WaitCounter>> Wait<C> {
    /// Begins to wait.
    pub fn begin(counter: C) -> Self {
        counter.as_ref().begun.fetch_add(1, Ordering::Relaxed);
        Self {
            counter,
            began: Instant::now(),
        }
    }

    /// Notes that it was the caller's turn.
    pub fn end(self) {
        let counter = self.counter.as_ref();
        let nanos = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        counter.nanos.fetch_add(nanos, Ordering::Relaxed);
        counter.count.fetch_add(1, Ordering::Relaxed);
    }
}

impl<C: AsRef<WaitCounter>> Drop for Wait<C> {
    fn drop(&mut self) {
        self.counter.as_ref().ended.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_counted_until_they_end_or_are_given_up() {
        let counter = WaitCounter::default();
        let first = Wait::begin(&counter);
        let second = Wait::begin(&counter);
        assert_eq!(counter.waits().waiting, 2);
        first.end();
        drop(second);
        let waits = counter.waits();
        assert_eq!((waits.waiting, waits.count), (0, 1));
    }
}
