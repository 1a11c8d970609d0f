//! Metrics with labels, kept from growing without end.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use fleethold_store::limits::cut_chars;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};

/// How many combinations of label values a metric has at most. Agents choose
/// message types, labels and versions; without a limit they could fill the memory.
const MOST_SERIES: usize = 1_000;

/// What stands for the agents' values of all combinations over the limit.
const OTHER: &str = "other";

/// The longest label value in characters.
const MOST_VALUE_CHARS: usize = 256;

/// A metric with labels.
pub(super) trait Series {
    type Metric;

    fn with(&self, values: &[&str]) -> Self::Metric;
}

impl Series for IntCounterVec {
    type Metric = IntCounter;

    fn with(&self, values: &[&str]) -> IntCounter {
        self.with_label_values(values)
    }
}

impl Series for HistogramVec {
    type Metric = Histogram;

    fn with(&self, values: &[&str]) -> Histogram {
        self.with_label_values(values)
    }
}

/// A metric whose first labels have few values, and the others any.
pub(super) struct Family<S> {
    series: S,
    /// How many labels, from the first, the server alone sets.
    fixed: usize,
    known: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

impl<S: Series> Family<S> {
    pub(super) fn new(series: S, fixed: usize) -> Self {
        Self {
            series,
            fixed,
            known: Mutex::default(),
            hasher: RandomState::new(),
        }
    }

    /// Returns the metric of these label values, in the order of the labels.
    pub(super) fn of<const N: usize>(&self, mut values: [&str; N]) -> S::Metric {
        for value in &mut values {
            *value = cut_chars(value, MOST_VALUE_CHARS);
        }
        if self.fixed < N && !self.is_known(&values) {
            values[self.fixed..].fill(OTHER);
        }
        self.series.with(&values)
    }

    /// Returns whether a combination is one of the first ones.
    fn is_known(&self, values: &[&str]) -> bool {
        let hash = self.hasher.hash_one(values);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(&hash) || (known.len() < MOST_SERIES && known.insert(hash))
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounterVec, Opts};

    use super::*;

    #[test]
    fn agents_cannot_make_a_metric_grow_without_end() {
        let series = IntCounterVec::new(Opts::new("n", "n"), &["temporary", "type"]).unwrap();
        let family = Family::new(series, 1);
        for number in 0..3 * MOST_SERIES {
            family.of(["true", &number.to_string()]).inc();
        }
        family.of(["true", "0"]).inc();
        family.of(["false", &"x".repeat(1 << 20)]).inc();
        assert_eq!(family.of(["true", "0"]).get(), 2);
        let rest = u64::try_from(2 * MOST_SERIES).unwrap();
        assert_eq!(family.of(["true", OTHER]).get(), rest);
        assert_eq!(family.of(["false", OTHER]).get(), 1);
    }
}
