//! Requests whose bodies have not arrived yet. Honest agents send theirs at
//! once, so when there are too many, the oldest is the one to give up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::reply::Refusal;
use crate::limits::Refused;

/// When an agent may try again whose request was given up.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// The requests that wait, at most so many.
pub(super) struct Waiting {
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// How to end each of them, the oldest first.
    waiting: BTreeMap<u64, Arc<Notify>>,
}

/// One request that waits; dropping it ends that.
struct Place<'a> {
    waiting: &'a Waiting,
    number: u64,
    given_up: Arc<Notify>,
}

impl Waiting {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            state: Mutex::default(),
        }
    }

    /// Waits for what arrives, unless too many newer requests wait, too.
    pub(super) async fn arrival<T, E>(
        &self,
        arriving: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Refusal>
    where
        Refusal: From<E>,
    {
        let place = self.enter();
        tokio::select! {
            biased;
            arrived = arriving => Ok(arrived?),
            () = place.given_up.notified() => Err(Refusal::busy(
                Refused::Unfinished,
                "too many requests are unfinished, and this one for the longest time",
                RETRY_AFTER,
            )),
        }
    }

    fn enter(&self) -> Place<'_> {
        let given_up = Arc::new(Notify::new());
        let mut state = self.state();
        if state.waiting.len() >= self.most
            && let Some((_, oldest)) = state.waiting.pop_first()
        {
            oldest.notify_one();
        }
        let number = state.next;
        state.next += 1;
        state.waiting.insert(number, Arc::clone(&given_up));
        Place {
            waiting: self,
            number,
            given_up,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.state().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn oldest_request_is_given_up_and_finished_ones_count_no_more() {
        let waiting = Waiting::new(2);
        let wait = || Box::pin(waiting.arrival(pending::<Result<(), Refusal>>()));
        let (mut first, mut second, mut third) = (wait(), wait(), wait());
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        assert!(matches!((&mut first).now_or_never(), Some(Err(_))));
        assert!((&mut second).now_or_never().is_none());

        drop(third);
        let arrived = waiting.arrival(ready(Ok::<_, Refusal>(7))).now_or_never();
        assert!(matches!(arrived, Some(Ok(7))));
        assert!((&mut second).now_or_never().is_none());
        assert_eq!(waiting.state().waiting.len(), 1);
    }
}
