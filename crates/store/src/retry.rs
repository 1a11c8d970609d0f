//! How long a store waits before it repeats a transaction that lost a conflict.

use std::time::Duration;

use crate::random::Random;

/// The delays between attempts: full jitter, doubled from 5 ms to 2 s.
///
/// A database under conflicts is helped by callers that spread out. The sum of
/// the delays is bounded, so that a call ends even if nobody drops it.
#[derive(Debug)]
pub struct Backoff<'a> {
    random: &'a Random,
    ceiling: Duration,
    left: Duration,
}

/// The first delay is shorter than this.
const FIRST: Duration = Duration::from_millis(5);
/// Every delay is shorter than this.
const LONGEST: Duration = Duration::from_secs(2);

impl<'a> Backoff<'a> {
    /// Begins with the shortest delay; all delays together stay within `limit`.
    pub fn new(random: &'a Random, limit: Duration) -> Self {
        Self {
            random,
            ceiling: FIRST,
            left: limit,
        }
    }

    /// Returns how long to wait before the next attempt; `None` after the limit.
    pub fn next_delay(&mut self) -> Option<Duration> {
        let delay = self.ceiling.mul_f64(self.random.unit());
        self.ceiling = (self.ceiling * 2).min(LONGEST);
        // A delay of nothing must use the limit up, too.
        self.left = self.left.checked_sub(delay.max(Duration::from_millis(1)))?;
        Some(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_spread_and_end() {
        let random = Random::seeded(1);
        let mut backoff = Backoff::new(&random, Duration::from_secs(30));
        let mut ceiling = FIRST;
        let mut sum = Duration::ZERO;
        let mut delays = Vec::new();
        while let Some(delay) = backoff.next_delay() {
            assert!(delay < ceiling, "{delay:?} of {ceiling:?}");
            ceiling = (ceiling * 2).min(LONGEST);
            sum += delay;
            delays.push(delay);
        }
        assert!(sum <= Duration::from_secs(30), "{sum:?}");
        assert!(delays.len() > 20, "{delays:?}");
        delays.sort();
        delays.dedup();
        assert!(delays.len() > 20, "they differ: {delays:?}");
    }
}
