//! Where stores and servers read the time, and the arithmetic of times.
//!
//! Stores never ask a database or the system for the time; they are opened
//! with a [`Clock`]. Units follow specification section 1.6: due times are
//! microseconds, contact, file and usage times nanoseconds since the epoch.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleethold_proto::Timestamp;

use crate::random::Random;

/// How long a message handed to a client stays with it before it is due again.
pub const CLIENT_RETRY: Duration = Duration::from_secs(15 * 60);

/// The three functions of time that tests replace (specification section 1.5).
pub trait Clock: fmt::Debug + Send + Sync {
    /// Returns the current time.
    fn now(&self) -> SystemTime;

    /// Returns when a message handed to a client now is due again.
    fn client_retry_time(&self) -> SystemTime;

    /// Returns when a server message is due again that was handed out
    /// `retry_count` times; 0 when it is first stored.
    fn server_retry_time(&self, retry_count: u32) -> SystemTime;
}

/// Returns `now` + 15 minutes.
pub fn client_retry_time(now: SystemTime) -> SystemTime {
    now + CLIENT_RETRY
}

/// Returns `now` + 60 s × 1.1^`retry_count` × (1 + `unit`), with `unit` in [0, 1).
///
/// The exponent saturates at 100 (10 to 19 days), where upstream would overflow.
pub fn server_retry_time(now: SystemTime, retry_count: u32, unit: f64) -> SystemTime {
    let exponent = i32::try_from(retry_count.min(100)).expect("at most 100");
    now + Duration::from_secs_f64(60.0 * 1.1_f64.powi(exponent) * (1.0 + unit))
}

/// The clock of the machine.
#[derive(Debug)]
pub struct SystemClock {
    random: Arc<Random>,
}

impl SystemClock {
    /// Makes a clock whose retry jitter comes from `random`.
    pub fn new(random: Arc<Random>) -> Self {
        Self { random }
    }
}

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn client_retry_time(&self) -> SystemTime {
        client_retry_time(self.now())
    }

    fn server_retry_time(&self, retry_count: u32) -> SystemTime {
        server_retry_time(self.now(), retry_count, self.random.unit())
    }
}

/// A clock that tests set by hand.
///
/// Retries are the real ones with jitter 0 until
/// [`set_retry`](ManualClock::set_retry) fixes them.
#[derive(Debug)]
pub struct ManualClock(Mutex<Manual>);

#[derive(Debug)]
struct Manual {
    now: SystemTime,
    retry: Option<Duration>,
}

impl ManualClock {
    /// Makes a clock that stands at `seconds` since the epoch.
    pub fn at(seconds: u64) -> Self {
        Self(Mutex::new(Manual {
            now: UNIX_EPOCH + Duration::from_secs(seconds),
            retry: None,
        }))
    }

    /// Moves the clock to `seconds` since the epoch.
    pub fn set(&self, seconds: u64) {
        self.with(|clock| clock.now = UNIX_EPOCH + Duration::from_secs(seconds));
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.with(|clock| clock.now += by);
    }

    /// Makes both retry functions return now + `delay`.
    pub fn set_retry(&self, delay: Duration) {
        self.with(|clock| clock.retry = Some(delay));
    }

    fn with<T>(&self, use_clock: impl FnOnce(&mut Manual) -> T) -> T {
        use_clock(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        self.with(|clock| clock.now)
    }

    fn client_retry_time(&self) -> SystemTime {
        self.with(|clock| match clock.retry {
            Some(delay) => clock.now + delay,
            None => client_retry_time(clock.now),
        })
    }

    fn server_retry_time(&self, retry_count: u32) -> SystemTime {
        self.with(|clock| match clock.retry {
            Some(delay) => clock.now + delay,
            None => server_retry_time(clock.now, retry_count, 0.0),
        })
    }
}

/// Returns the nanoseconds since the epoch, saturating at 1677 and 2262.
pub fn epoch_nanos(time: SystemTime) -> i64 {
    saturate(match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i128::try_from(after.as_nanos()).unwrap_or(i128::MAX),
        Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap_or(i128::MAX),
    })
}

/// Returns the microseconds since the epoch, rounded down.
pub fn epoch_micros(time: SystemTime) -> i64 {
    epoch_nanos(time).div_euclid(1_000)
}

/// Returns the time that is `nanos` nanoseconds after the epoch.
pub fn from_epoch_nanos(nanos: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    if nanos < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    }
}

/// Returns a valid timestamp (0 ≤ nanos < 10⁹), also before 1970.
pub fn timestamp_from_epoch_nanos(nanos: i64) -> Timestamp {
    Timestamp {
        seconds: nanos.div_euclid(1_000_000_000),
        nanos: i32::try_from(nanos.rem_euclid(1_000_000_000)).expect("below 10^9"),
    }
}

/// Returns the timestamp of `time`.
pub fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(after.subsec_nanos()).expect("below 10^9"),
        },
        Err(_) => timestamp_from_epoch_nanos(epoch_nanos(time)),
    }
}

/// Returns the nanoseconds since the epoch, saturating; `None` if `time` is
/// not a valid protobuf timestamp (year 1 to 9999, 0 ≤ nanos < 10⁹).
pub fn timestamp_epoch_nanos(time: &Timestamp) -> Option<i64> {
    const YEAR_1: i64 = -62_135_596_800;
    const YEAR_10000: i64 = 253_402_300_800;
    let valid =
        (YEAR_1..YEAR_10000).contains(&time.seconds) && (0..1_000_000_000).contains(&time.nanos);
    valid.then(|| saturate(i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)))
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Vectors: specification sections 1.5 and 11.
    #[test]
    fn server_retry_grows_by_a_tenth_and_saturates() {
        let delay = |count, unit| {
            server_retry_time(UNIX_EPOCH, count, unit)
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs_f64()
        };
        for (count, least, most) in [
            (0, 60.0, 120.0),
            (1, 66.0, 132.0),
            (2, 72.6, 145.2),
            (10, 155.625, 311.249),
            (50, 7043.451, 14086.902),
            (100, 826_836.74, 1_653_673.48),
            (u32::MAX, 826_836.74, 1_653_673.48),
        ] {
            let tolerance = least * 1e-5;
            assert!((delay(count, 0.0) - least).abs() < tolerance, "{count}");
            assert!(
                (delay(count, 1.0) - most).abs() < 2.0 * tolerance,
                "{count}"
            );
        }
    }

    #[test]
    fn times_before_the_epoch_keep_positive_nanos() {
        let time = UNIX_EPOCH - Duration::from_secs(1) + Duration::from_nanos(5);
        assert_eq!(epoch_nanos(time), -999_999_995);
        let expected = Timestamp {
            seconds: -1,
            nanos: 5,
        };
        assert_eq!(timestamp(time), expected);
        assert_eq!(timestamp_from_epoch_nanos(-999_999_995), expected);
        assert_eq!(from_epoch_nanos(-999_999_995), time);
        assert_eq!(epoch_micros(time), -1_000_000);
    }

    #[test]
    fn times_outside_int64_nanoseconds_saturate() {
        let far = Timestamp {
            seconds: 253_402_300_799,
            nanos: 999_999_999,
        };
        assert_eq!(timestamp_epoch_nanos(&far), Some(i64::MAX));
        let early = Timestamp {
            seconds: -62_135_596_800,
            nanos: 0,
        };
        assert_eq!(timestamp_epoch_nanos(&early), Some(i64::MIN));
        for (seconds, nanos) in [(0, -1), (0, 1_000_000_000), (253_402_300_800, 0)] {
            assert_eq!(timestamp_epoch_nanos(&Timestamp { seconds, nanos }), None);
        }
    }
}
