//! Log lines that strangers cause, at a bearable pace.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The least time between two lines.
const PAUSE: Duration = Duration::from_secs(60);

/// Decides when to log again what happens again and again.
#[derive(Debug, Default)]
pub(crate) struct Notice(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    since: u64,
}

impl Notice {
    /// Returns how often it happened since the last line, if a line is due.
    pub(crate) fn due(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now - last < PAUSE) {
            state.since += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_time_is_logged_and_then_once_a_minute() {
        let notice = Notice::default();
        let start = Instant::now();
        assert_eq!(notice.due(start), Some(0));
        for seconds in 1..60 {
            assert_eq!(notice.due(start + Duration::from_secs(seconds)), None);
        }
        assert_eq!(notice.due(start + Duration::from_secs(60)), Some(59));
        assert_eq!(notice.due(start + Duration::from_secs(120)), Some(0));
    }
}
