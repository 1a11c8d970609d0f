//! Which messages were sent, which arrived, and which arrived twice.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fleethold_proto::Any;
use serde_json::{Value, json};

/// Run, agent, number and time at the beginning of each payload.
pub(crate) const HEADER_BYTES: usize = 24;
/// What our payloads call themselves.
const TYPE_URL: &str = "type.googleapis.com/fleethold.bench.Payload";
/// How often somebody who waits looks again.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The messages of one run, by agent and number.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Tells the messages of this run from older ones.
    run: u64,
    /// Times in payloads count from here.
    epoch: Instant,
    filler: Bytes,
    logs: Vec<Mutex<Log>>,
    sent: AtomicU64,
    arrived: AtomicU64,
    doubled: AtomicU64,
    last_arrival_nanos: AtomicU64,
}

#[derive(Debug, Default)]
struct Log {
    next: u32,
    accepted: Bits,
    arrived: Bits,
}

/// What a payload says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) agent: u32,
    pub(crate) number: u32,
    /// When it was meant to be sent.
    pub(crate) intended: Instant,
}

/// What became of all messages of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Messages that were handed to the server.
    pub sent: u64,
    /// Those whose receipt the server has acknowledged.
    pub accepted: u64,
    /// Messages that arrived, each counted once.
    pub arrived: u64,
    /// Accepted ones that did not arrive while the run lasted.
    pub missing: u64,
    /// Arrivals beyond the first.
    pub doubled: u64,
}

impl Totals {
    pub(crate) fn json(self) -> Value {
        json!({
            "sent": self.sent,
            "accepted": self.accepted,
            "arrived": self.arrived,
            "missing": self.missing,
            "doubled": self.doubled,
        })
    }
}

impl Ledger {
    /// Opens a ledger for so many agents, whose payloads have this size.
    pub(crate) fn new(run: u64, agents: usize, payload_bytes: usize) -> Self {
        let mut state = run | 1;
        // Hard to compress, as encrypted or compressed data is.
        let filler = (HEADER_BYTES..payload_bytes.max(HEADER_BYTES)).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        });
        Self {
            run,
            epoch: Instant::now(),
            filler: filler.collect(),
            logs: (0..agents).map(|_| Mutex::default()).collect(),
            sent: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
            doubled: AtomicU64::new(0),
            last_arrival_nanos: AtomicU64::new(0),
        }
    }

    /// Takes the next number of this agent.
    pub(crate) fn next(&self, agent: u32) -> u32 {
        self.sent.fetch_add(1, Ordering::Relaxed);
        let mut log = self.log(agent).expect("the ledger has all agents");
        log.next += 1;
        log.next - 1
    }

    /// Returns the unique id of a message among those of its agent.
    pub(crate) fn source_id(&self, agent: u32, number: u32) -> Bytes {
        let mut id = BytesMut::with_capacity(16);
        id.put_u64(self.run);
        id.put_u32(agent);
        id.put_u32(number);
        id.freeze()
    }

    /// Makes the payload of a message.
    pub(crate) fn payload(&self, mark: Mark) -> Any {
        let mut value = BytesMut::with_capacity(HEADER_BYTES + self.filler.len());
        value.put_u64(self.run);
        value.put_u32(mark.agent);
        value.put_u32(mark.number);
        value.put_u64(self.nanos(mark.intended));
        value.put_slice(&self.filler);
        Any {
            type_url: TYPE_URL.to_owned(),
            value: value.freeze(),
        }
    }

    /// Reads a payload of this run.
    pub(crate) fn read(&self, payload: &Any) -> Option<Mark> {
        let mut value = &payload.value[..];
        if payload.type_url != TYPE_URL || value.len() < HEADER_BYTES {
            return None;
        }
        if value.get_u64() != self.run {
            return None;
        }
        Some(Mark {
            agent: value.get_u32(),
            number: value.get_u32(),
            intended: self.epoch + Duration::from_nanos(value.get_u64()),
        })
    }

    /// Notes that the server has acknowledged these messages.
    pub(crate) fn accept(&self, agent: u32, numbers: &[u32]) {
        if let Some(mut log) = self.log(agent) {
            for number in numbers {
                log.accepted.insert(*number);
            }
        }
    }

    /// Returns whether the server has acknowledged this message.
    pub(crate) fn has_accepted(&self, agent: u32, number: u32) -> bool {
        self.log(agent)
            .is_some_and(|log| log.accepted.contains(number))
    }

    /// Notes an arrival; returns whether it is the first.
    pub(crate) fn arrive(&self, mark: Mark) -> bool {
        let first = self
            .log(mark.agent)
            .is_some_and(|mut log| log.arrived.insert(mark.number));
        let count = if first { &self.arrived } else { &self.doubled };
        count.fetch_add(1, Ordering::Relaxed);
        let now = self.nanos(Instant::now());
        self.last_arrival_nanos.fetch_max(now, Ordering::Relaxed);
        first
    }

    /// Returns how many messages have arrived, each counted once.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Returns when the last message arrived.
    pub(crate) fn last_arrival(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.last_arrival_nanos.load(Ordering::Relaxed))
    }

    pub(crate) fn totals(&self) -> Totals {
        let mut accepted = 0;
        let mut missing = 0;
        for log in &self.logs {
            let log = lock(log);
            accepted += log.accepted.count();
            missing += log.accepted.count_without(&log.arrived);
        }
        Totals {
            sent: self.sent.load(Ordering::Relaxed),
            accepted,
            arrived: self.arrived(),
            missing,
            doubled: self.doubled.load(Ordering::Relaxed),
        }
    }

    /// Waits until all accepted messages have arrived, or none did for `patience`.
    pub(crate) async fn settle(&self, patience: Duration) -> Totals {
        let mut seen = self.arrived();
        let mut since = Instant::now();
        loop {
            let totals = self.totals();
            if totals.missing == 0 || since.elapsed() > patience {
                return totals;
            }
            tokio::time::sleep(LOOK_EVERY).await;
            if self.arrived() != seen {
                seen = self.arrived();
                since = Instant::now();
            }
        }
    }

    fn nanos(&self, time: Instant) -> u64 {
        u64::try_from(time.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    fn log(&self, agent: u32) -> Option<MutexGuard<'_, Log>> {
        Some(lock(self.logs.get(usize::try_from(agent).ok()?)?))
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A set of small numbers.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

/// The most messages of one agent in one run.
const MOST_NUMBERS: u32 = 1 << 26;

impl Bits {
    /// Returns whether the number is new; a nonsensical one never is.
    fn insert(&mut self, number: u32) -> bool {
        let Some(word) = usize::try_from(number / 64)
            .ok()
            .filter(|_| number < MOST_NUMBERS)
        else {
            return false;
        };
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let bit = 1 << (number % 64);
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    fn contains(&self, number: u32) -> bool {
        let word = usize::try_from(number / 64)
            .ok()
            .and_then(|word| self.0.get(word));
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Returns how many numbers `other` lacks.
    fn count_without(&self, other: &Self) -> u64 {
        let words = self.0.iter().enumerate();
        words
            .map(|(at, word)| {
                let others = other.0.get(at).copied().unwrap_or(0);
                u64::from((word & !others).count_ones())
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_and_doubled_messages_are_counted() {
        let ledger = Ledger::new(7, 2, 100);
        let marks: Vec<_> = (0..100)
            .map(|_| Mark {
                agent: 1,
                number: ledger.next(1),
                intended: Instant::now(),
            })
            .collect();
        ledger.accept(1, &(0..100).collect::<Vec<_>>());
        for mark in &marks[..98] {
            let payload = ledger.payload(*mark);
            assert_eq!(payload.value.len(), 100);
            assert!(ledger.arrive(ledger.read(&payload).unwrap()));
        }
        assert!(!ledger.arrive(marks[70]));
        let totals = Totals {
            sent: 100,
            accepted: 100,
            arrived: 98,
            missing: 2,
            doubled: 1,
        };
        assert_eq!(ledger.totals(), totals);
    }

    #[test]
    fn messages_of_other_runs_and_of_others_are_not_counted() {
        let ledger = Ledger::new(7, 1, 100);
        let mark = Mark {
            agent: 0,
            number: 0,
            intended: Instant::now(),
        };
        let older = Ledger::new(6, 1, 100).payload(mark);
        assert_eq!(ledger.read(&older), None);
        assert_eq!(ledger.read(&Any::default()), None);
        // An agent that does not exist, and a number nobody could have taken.
        assert!(!ledger.arrive(Mark { agent: 5, ..mark }));
        let number = u32::MAX;
        assert!(!ledger.arrive(Mark { number, ..mark }));
    }
}
