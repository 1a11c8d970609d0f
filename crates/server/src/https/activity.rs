//! What a connection is doing, to find the ones that do nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The longest a request may make no progress. Handling is limited to five
/// minutes; what takes longer is an answer that nobody reads.
const STALLED_AFTER: Duration = Duration::from_secs(6 * 60);

/// An answer that is taken more slowly than this makes no progress at times.
const LEAST_BYTES_PER_SECOND: usize = 1024;

/// How often a busy connection is looked at when the server stops.
const STOPPING_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection that begins while the server stops may take to do so.
pub(super) const STOPPING_GRACE: Duration = Duration::from_secs(2);

/// How long a connection may serve no request.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdleLimits {
    /// From its start to the end of the first request's header.
    pub(super) first: Duration,
    /// Between two requests, the header of the second included.
    pub(super) between: Duration,
}

/// What one connection is doing.
#[derive(Debug)]
pub(super) struct Activity {
    limits: IdleLimits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    requests: u32,
    /// How many of the requests are streams; those watch themselves.
    streams: u32,
    served: bool,
    progress: Instant,
}

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look again at this time.
    Fine(Instant),
    /// It serves no request, and has not for the allowed time.
    Idle,
    /// A request makes no progress.
    Stalled,
}

/// One request of a connection, from its header to the end of its answer.
#[derive(Debug)]
pub(super) struct Busy {
    activity: Arc<Activity>,
    stream: bool,
}

impl Activity {
    pub(super) fn new(limits: IdleLimits) -> Self {
        Self {
            limits,
            state: Mutex::new(State {
                requests: 0,
                streams: 0,
                served: false,
                progress: Instant::now(),
            }),
        }
    }

    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        let mut state = self.state();
        state.requests += 1;
        state.served = true;
        state.progress = Instant::now();
        Busy {
            activity: Arc::clone(self),
            stream: false,
        }
    }

    /// Returns whether there ever was a request.
    pub(super) fn has_served(&self) -> bool {
        self.state().served
    }

    /// Judges the connection; `stopping` allows no idle time but for the first request.
    pub(super) fn verdict(&self, now: Instant, stopping: bool) -> Verdict {
        let state = self.state();
        if state.requests == 0 {
            let limit = match state.served {
                true if stopping => Duration::ZERO,
                false if stopping => self.limits.first.min(STOPPING_GRACE),
                false => self.limits.first,
                true => self.limits.between,
            };
            let end = state.progress + limit;
            return if end <= now {
                Verdict::Idle
            } else {
                Verdict::Fine(end)
            };
        }
        let stalled = state.progress + STALLED_AFTER;
        if state.requests > state.streams && stalled <= now {
            return Verdict::Stalled;
        }
        // Often enough to notice in time that the last request has ended.
        let pause = match stopping {
            true => STOPPING_PAUSE,
            false => self.limits.first.min(self.limits.between),
        };
        Verdict::Fine(now + pause)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Busy {
    /// Notes that the request has made progress.
    pub(super) fn touch(&self) {
        self.activity.state().progress = Instant::now();
    }

    /// Notes that the peer has taken so many bytes of the answer. Few bytes are
    /// little progress: the whole answer has to be taken at a minimal speed.
    pub(super) fn took(&self, bytes: usize) {
        self.took_at(bytes, Instant::now());
    }

    fn took_at(&self, bytes: usize, now: Instant) {
        let seconds = bytes / LEAST_BYTES_PER_SECOND + 1;
        let worth = Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX >> 32));
        let mut state = self.activity.state();
        state.progress = (state.progress + worth).min(now).max(state.progress);
    }

    /// Notes that the request is a stream.
    pub(super) fn is_stream(&mut self) {
        if !self.stream {
            self.stream = true;
            self.activity.state().streams += 1;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.requests -= 1;
        state.streams -= u32::from(self.stream);
        state.progress = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: IdleLimits = IdleLimits {
        first: Duration::from_secs(10),
        between: Duration::from_secs(30),
    };

    fn after(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[test]
    fn connection_without_a_request_is_idle_after_a_while() {
        let activity = Arc::new(Activity::new(LIMITS));
        assert!(matches!(
            activity.verdict(after(9), false),
            Verdict::Fine(_)
        ));
        assert!(matches!(activity.verdict(after(1), true), Verdict::Fine(_)));
        assert_eq!(activity.verdict(after(2), true), Verdict::Idle);
        assert_eq!(activity.verdict(after(10), false), Verdict::Idle);

        let busy = activity.begin();
        assert!(matches!(
            activity.verdict(after(60), true),
            Verdict::Fine(_)
        ));
        drop(busy);
        assert!(matches!(
            activity.verdict(after(29), false),
            Verdict::Fine(_)
        ));
        assert_eq!(activity.verdict(after(30), false), Verdict::Idle);
    }

    #[test]
    fn request_without_progress_stalls_unless_it_is_a_stream() {
        let activity = Arc::new(Activity::new(LIMITS));
        let mut busy = activity.begin();
        assert!(matches!(
            activity.verdict(after(359), false),
            Verdict::Fine(_)
        ));
        assert_eq!(activity.verdict(after(360), false), Verdict::Stalled);
        busy.is_stream();
        assert!(matches!(
            activity.verdict(after(360), false),
            Verdict::Fine(_)
        ));
    }

    #[test]
    fn s4_answer_that_is_taken_byte_by_byte_stalls_and_one_at_a_fair_speed_does_not() {
        for (bytes, is_fair) in [(10, false), (60 * 1024, true)] {
            let activity = Arc::new(Activity::new(LIMITS));
            let busy = activity.begin();
            let start = Instant::now();
            let minute = |number: u64| start + Duration::from_secs(60 * number);
            let takes = (1..=60).take_while(|number| {
                busy.took_at(bytes, minute(*number));
                activity.verdict(minute(*number), false) != Verdict::Stalled
            });
            let minutes = takes.count();
            assert_eq!(minutes == 60, is_fair, "{bytes} bytes: {minutes} minutes");
        }
    }
}
