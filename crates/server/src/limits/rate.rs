//! So many of something per second, with a reserve for bursts.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many seconds' worth may come at once.
pub(super) const BURST: Duration = Duration::from_secs(10);

/// Allows so many per second on average and ten seconds' worth at once.
#[derive(Debug)]
pub(crate) struct Rate {
    spacing: Duration,
    /// Until when what was allowed is spread out.
    used_until: Mutex<Option<Instant>>,
}

impl Rate {
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            spacing: spacing(per_second),
            used_until: Mutex::new(None),
        }
    }

    /// Takes one, or returns how long to wait for the next.
    pub(crate) fn take(&self, now: Instant) -> Result<(), Duration> {
        let mut used_until = self
            .used_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        take(&mut used_until, self.spacing, now)
    }
}

/// Returns the time one takes; zero per second count as one.
pub(super) fn spacing(per_second: u32) -> Duration {
    Duration::from_secs(1) / per_second.max(1)
}

/// Spreads what takes `time` out behind what was allowed before, unless that
/// reaches too far into the future.
pub(super) fn take(
    used_until: &mut Option<Instant>,
    time: Duration,
    now: Instant,
) -> Result<(), Duration> {
    let from = used_until.map_or(now, |until| until.max(now));
    let ahead = from - now;
    if ahead >= BURST {
        return Err(ahead + time - BURST);
    }
    *used_until = Some(from + time);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_is_allowed_once_and_then_the_rate() {
        let rate = Rate::new(5);
        let allowed = |now| (0..1_000).take_while(|_| rate.take(now).is_ok()).count();
        let start = Instant::now();
        assert_eq!(allowed(start), 50);
        let wait = rate.take(start).unwrap_err();
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        let later = start + wait;
        assert_eq!(allowed(later), 1);
        let later = later + Duration::from_secs(2);
        assert_eq!(allowed(later), 10);
        let later = later + Duration::from_secs(3_600);
        assert_eq!(allowed(later), 50, "more than the reserve is not saved up");
    }
}
