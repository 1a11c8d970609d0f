//! Waiting for conditions.

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

/// Far more than anything here takes; below the limit of the test runner, so
/// that a failing case says what it waited for.
const LIMIT: Duration = Duration::from_secs(75);

const PAUSE: Duration = Duration::from_millis(25);

/// Waits until `probe` returns `Ok`; until then it returns the state it saw.
///
/// # Panics
///
/// After a generous time, with the last state.
pub(crate) fn wait_until<T, S: Debug>(what: &str, probe: impl FnMut() -> Result<T, S>) -> T {
    wait_within(LIMIT, what, probe)
}

/// Like [`wait_until`], for what is promised to happen within `limit`.
pub(crate) fn wait_within<T, S: Debug>(
    limit: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<T, S>,
) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(state) if start.elapsed() > limit => {
                panic!("waited {limit:?} in vain for: {what}\nlast state: {state:?}")
            }
            // A pause between two looks at the condition, not a guess how long it takes.
            Err(_) => thread::park_timeout(PAUSE),
        }
    }
}
