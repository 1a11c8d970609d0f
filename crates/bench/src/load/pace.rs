//! When agents act, and how long it took from then on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::failure::Failure;

/// How far behind its plan an open loop may be at the end.
const CATCH_UP: Duration = Duration::from_secs(20);
/// Histograms that threads share out.
const SHARDS: usize = 8;
/// The longest latency that is told from longer ones.
const MOST_MICROS: u64 = 3_600_000_000;
/// Kinds of failures that are told apart.
const KINDS: usize = 20;

/// The turns of one worker among several.
///
/// In a closed loop a turn begins when the one before has ended. In an open
/// loop turns begin as planned, however long others take: latencies count from
/// the plan, so a server that stalls is charged with all it held up.
#[derive(Debug)]
pub(crate) struct Schedule {
    next: Instant,
    step: Option<Duration>,
    end: Instant,
}

impl Schedule {
    /// Plans the turns of worker `number` of `workers`, which together have
    /// `rate` turns per second, or as many as they can.
    pub(crate) fn new(
        start: Instant,
        duration: Duration,
        rate: Option<f64>,
        number: usize,
        workers: usize,
    ) -> Self {
        let share = |part: usize, rate: f64| Duration::from_secs_f64(part as f64 / rate);
        Self {
            next: start + rate.map_or(Duration::ZERO, |rate| share(number, rate)),
            step: rate.map(|rate| share(workers, rate)),
            end: start + duration,
        }
    }

    /// Waits for the next turn and returns its planned time; `None` at the end.
    pub(crate) async fn turn(&mut self) -> Option<Instant> {
        let Some(step) = self.step else {
            let now = Instant::now();
            return (now < self.end).then_some(now);
        };
        let planned = self.next;
        if planned >= self.end || Instant::now() > self.end + CATCH_UP {
            return None;
        }
        tokio::time::sleep_until(planned.into()).await;
        self.next += step;
        Some(planned)
    }

    /// Returns how many planned turns were not taken.
    pub(crate) fn left(&self) -> u64 {
        match self.step {
            Some(step) if self.next < self.end => {
                let left = (self.end - self.next).as_secs_f64() / step.as_secs_f64();
                left.ceil() as u64
            }
            _ => 0,
        }
    }
}

/// Collects latencies, failures, and how many operations each second had.
#[derive(Debug)]
pub(crate) struct Recorder {
    start: Instant,
    shards: Vec<Mutex<Histogram<u64>>>,
    seconds: Vec<AtomicU64>,
    last_micros: AtomicU64,
    failures: Mutex<BTreeMap<String, u64>>,
    skipped: AtomicU64,
}

impl Recorder {
    /// Begins a recording that may last so long.
    pub(crate) fn new(longest: Duration) -> Self {
        let seconds = usize::try_from(longest.as_secs()).unwrap_or(0).min(100_000) + 60;
        let histogram =
            || Histogram::new_with_bounds(1, MOST_MICROS, 3).expect("the bounds are in order");
        Self {
            start: Instant::now(),
            shards: (0..SHARDS).map(|_| Mutex::new(histogram())).collect(),
            seconds: (0..seconds).map(|_| AtomicU64::new(0)).collect(),
            last_micros: AtomicU64::new(0),
            failures: Mutex::default(),
            skipped: AtomicU64::new(0),
        }
    }

    /// Counts one operation that was to begin at `intended` and has ended.
    pub(crate) fn record(&self, worker: u32, intended: Instant) {
        let now = Instant::now();
        let micros = micros(now.saturating_duration_since(intended));
        let shard = usize::try_from(worker).unwrap_or(0) % SHARDS;
        lock(&self.shards[shard]).saturating_record(micros.max(1));
        let since = now.saturating_duration_since(self.start);
        self.last_micros
            .fetch_max(self::micros(since), Ordering::Relaxed);
        let second = usize::try_from(since.as_secs()).unwrap_or(usize::MAX);
        if let Some(second) = self.seconds.get(second) {
            second.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn fail(&self, failure: &Failure) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let text = failure.to_string();
        if failures.len() < KINDS || failures.contains_key(&text) {
            *failures.entry(text).or_default() += 1;
        } else {
            *failures.entry("others".to_owned()).or_default() += 1;
        }
    }

    /// Counts turns that were planned and not taken.
    pub(crate) fn skip(&self, turns: u64) {
        self.skipped.fetch_add(turns, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> u64 {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Returns the time from the beginning to the last operation's end.
    pub(crate) fn elapsed(&self) -> Duration {
        Duration::from_micros(self.last_micros.load(Ordering::Relaxed))
    }

    /// Returns the operations per second until the last one ended.
    pub(crate) fn rate(&self) -> f64 {
        match self.elapsed().as_secs_f64() {
            0.0 => 0.0,
            elapsed => self.count() as f64 / elapsed,
        }
    }

    pub(crate) fn latencies(&self) -> Latencies {
        let mut all = lock(&self.shards[0]).clone();
        for shard in &self.shards[1..] {
            all.add(&*lock(shard)).expect("all have the same bounds");
        }
        Latencies(all)
    }

    /// Returns the operations of each second, up to the last that had one.
    pub(crate) fn seconds(&self) -> Vec<u64> {
        let counts = self
            .seconds
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        let mut counts: Vec<_> = counts.collect();
        let used = counts.iter().rposition(|count| *count > 0);
        counts.truncate(used.map_or(0, |last| last + 1));
        counts
    }

    pub(crate) fn failures(&self) -> BTreeMap<String, u64> {
        let mut failures = self
            .failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let skipped = self.skipped.load(Ordering::Relaxed);
        if skipped > 0 {
            failures.insert("planned and not begun in time".to_owned(), skipped);
        }
        failures
    }
}

/// The distribution of latencies.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// Returns how many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Returns the time that so many percent stay at or below, in milliseconds.
    pub fn percentile_ms(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1e3
    }

    /// Returns the longest, in milliseconds.
    pub fn longest_ms(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }

    /// Returns points of the distribution for plots: percent and milliseconds.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        const PERCENTS: [f64; 14] = [
            0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0,
        ];
        let point = |percent| (percent, self.percentile_ms(percent));
        PERCENTS.into_iter().map(point).collect()
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "count": self.count(),
            "mean_ms": self.0.mean() / 1e3,
            "p50_ms": self.percentile_ms(50.0),
            "p90_ms": self.percentile_ms(90.0),
            "p99_ms": self.percentile_ms(99.0),
            "p999_ms": self.percentile_ms(99.9),
            "max_ms": self.longest_ms(),
            "curve_percent_ms": self.curve(),
        })
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn lock(shard: &Mutex<Histogram<u64>>) -> MutexGuard<'_, Histogram<u64>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_open_loop_keeps_to_its_plan_when_a_turn_takes_long() {
        let start = Instant::now();
        // Two workers, a hundred turns a second: each has three.
        let duration = Duration::from_millis(60);
        let mut schedule = Schedule::new(start, duration, Some(100.0), 1, 2);
        let mut planned = Vec::new();
        while let Some(turn) = schedule.turn().await {
            planned.push((turn - start).as_millis());
            tokio::time::sleep(duration).await;
        }
        assert_eq!(planned, [10, 30, 50]);
        assert_eq!(schedule.left(), 0);
    }

    #[test]
    fn latencies_count_from_the_plan() {
        let recorder = Recorder::new(Duration::from_secs(1));
        let now = Instant::now();
        if let Some(earlier) = now.checked_sub(Duration::from_secs(2)) {
            recorder.record(0, earlier);
            assert!(recorder.latencies().percentile_ms(50.0) >= 2_000.0);
        }
        assert_eq!(recorder.seconds(), [1]);
    }

    #[test]
    fn failures_of_many_kinds_do_not_fill_the_memory() {
        let recorder = Recorder::new(Duration::from_secs(1));
        for status in 0..1_000 {
            recorder.fail(&Failure::Refused(status));
        }
        let failures = recorder.failures();
        assert_eq!(failures.len(), KINDS + 1);
        assert_eq!(failures.values().sum::<u64>(), 1_000);
    }
}
