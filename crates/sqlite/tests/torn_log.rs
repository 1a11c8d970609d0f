//! Copies of database and log, the log cut off anywhere or damaged: the store
//! opens and shows the first commits, whole, and none after a missing one.
//!
//! It is cut and damaged at 150 places; with `FLEETHOLD_FAULTS=all`, at 3,000.

#[path = "crash/findings.rs"]
mod findings;
#[path = "crash/history.rs"]
mod history;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fleethold_conformance::oracle::{Fate, Findings, Oracle};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{Random, Store};
use tokio::sync::watch;

use findings::{find, open};
use history::{KINDS, Kind, MOST_STEPS, Sequence, prepare, write};

const LOG_HEADER_BYTES: usize = 32;
const FRAME_BYTES: usize = 24 + 4096;

/// Files of a live database at one moment.
struct Snapshot {
    database: Vec<u8>,
    log: Vec<u8>,
}

impl Snapshot {
    /// Only right while no checkpoint writes to the database.
    fn take(path: &Path) -> Self {
        let log = PathBuf::from(format!("{}-wal", path.display()));
        Self {
            database: fs::read(path).unwrap(),
            log: fs::read(log).unwrap(),
        }
    }

    /// Opens the store with another log and returns what it shows.
    async fn judge(&self, log: &[u8], oracle: &Oracle, sequences: u64) -> Findings {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fleet.db");
        fs::write(&path, &self.database).unwrap();
        fs::write(directory.path().join("fleet.db-wal"), log).unwrap();
        let found = find(&path, 0..sequences).await;
        let findings = oracle.clone().judge(found);
        let findings = findings.unwrap_or_else(|violations| panic!("{violations:?}"));
        // The store works.
        let store = open(&path, SqliteOptions::default());
        for kind in 0..3 {
            let number = 10 * sequences.next_multiple_of(KINDS.len() as u64) + kind;
            Sequence::new(number).perform(&store, 0).await.unwrap();
        }
        store.close().await.unwrap();
        findings
    }
}

/// Acknowledged calls, one after the other.
struct Told {
    /// All unknown: what comes after the cut may be lost.
    oracle: Oracle,
    order: Vec<u64>,
}

async fn perform(store: &SqliteStore, numbers: std::ops::Range<u64>, told: &mut Told) {
    for number in numbers {
        let kind = Kind::of(number);
        let mut sequence = Sequence::new(number);
        for (step, parts) in kind.parts().iter().enumerate() {
            let write = write(number, step);
            told.oracle.trying(write, *parts);
            let performed = sequence.perform(store, step).await;
            if kind == Kind::Refused {
                performed.unwrap_err();
                told.oracle.learned(write, Fate::Refused);
            } else {
                performed.unwrap();
                told.order.push(write);
            }
        }
    }
}

/// A database whose first commits are in the file and whose others are in the
/// log; how many of them are in the file.
async fn history() -> (Snapshot, Told, usize) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fleet.db");
    let kinds = KINDS.len() as u64;
    let mut told = Told {
        oracle: Oracle::default(),
        order: Vec::new(),
    };
    let store = open(&path, SqliteOptions::default());
    prepare(&store).await.unwrap();
    perform(&store, 0..kinds, &mut told).await;
    store.close().await.unwrap();
    let in_file = told.order.len();
    let store = open(&path, SqliteOptions::default());
    perform(&store, kinds..SEQUENCES, &mut told).await;
    let snapshot = Snapshot::take(&path);
    store.close().await.unwrap();
    (snapshot, told, in_file)
}

const SEQUENCES: u64 = 2 * KINDS.len() as u64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_cut_at_any_frame_shows_a_prefix_of_the_commits() {
    let (snapshot, told, in_file) = history().await;
    let frames = (snapshot.log.len() - LOG_HEADER_BYTES) / FRAME_BYTES;
    let mut last = 0;
    for frame in 0..=frames {
        let log = &snapshot.log[..LOG_HEADER_BYTES + frame * FRAME_BYTES];
        let findings = snapshot.judge(log, &told.oracle, SEQUENCES).await;
        let prefix = findings.prefix_of(&told.order);
        let prefix = prefix.unwrap_or_else(|| panic!("frame {frame}: {findings:?}"));
        if frame == 0 {
            assert_eq!(prefix, in_file);
        }
        // A frame completes one commit at most.
        assert!([last, last + 1].contains(&prefix) || frame == 0, "{frame}");
        last = prefix;
    }
    assert_eq!(last, told.order.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_cut_or_damaged_at_any_byte_shows_a_prefix_of_the_commits() {
    let (snapshot, told, in_file) = history().await;
    let random = Random::seeded(7);
    let draw = |below: usize| (random.next_u64() % below as u64) as usize;
    let all = std::env::var("FLEETHOLD_FAULTS").is_ok_and(|faults| faults == "all");
    for round in 0..if all { 3_000 } else { 150 } {
        // Both ends are met for certain.
        let at = match round {
            0 => 0,
            1 => snapshot.log.len() - 1,
            2 => draw(LOG_HEADER_BYTES),
            _ => draw(snapshot.log.len()),
        };
        let mut log = snapshot.log.clone();
        if round % 2 == 0 {
            log.truncate(at);
        } else {
            log[at] ^= 1 << draw(8);
        }
        let findings = snapshot.judge(&log, &told.oracle, SEQUENCES).await;
        let prefix = findings.prefix_of(&told.order);
        let prefix = prefix.unwrap_or_else(|| panic!("round {round}, byte {at}: {findings:?}"));
        assert!(prefix >= in_file, "round {round}, byte {at}");
        assert!(prefix < told.order.len(), "round {round}, byte {at}");
    }
}

/// Who was told what, and when: ticks of one clock.
#[derive(Default)]
struct Times {
    tick: u64,
    tried: BTreeMap<u64, u64>,
    acknowledged: BTreeMap<u64, u64>,
}

impl Times {
    fn tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// What was known at a tick; what came later is unknown.
    fn oracle(&self, until: u64) -> Oracle {
        let mut oracle = Oracle::default();
        for write in self.tried.keys() {
            let kind = Kind::of(write / MOST_STEPS);
            oracle.trying(*write, kind.parts()[(write % MOST_STEPS) as usize]);
            if kind == Kind::Refused {
                oracle.learned(*write, Fate::Refused);
            } else if self.acknowledged[write] <= until {
                oracle.learned(*write, Fate::Acknowledged);
            }
        }
        oracle
    }

    /// Panics if a write is there and one that was over before it began is not.
    fn assert_prefix(&self, findings: &Findings) {
        let began = findings.present.iter().map(|write| self.tried[write]);
        let last_began = began.max().unwrap_or_default();
        for (write, tick) in &self.acknowledged {
            assert!(
                *tick > last_began || findings.present.binary_search(write).is_ok(),
                "write {write} is missing and a later one is not"
            );
        }
    }
}

async fn load(store: &SqliteStore, number: u64, times: &Mutex<Times>) {
    let kind = Kind::of(number);
    let mut sequence = Sequence::new(number);
    for step in 0..kind.parts().len() {
        let write = write(number, step);
        {
            let mut times = times.lock().unwrap();
            let tick = times.tick();
            times.tried.insert(write, tick);
        }
        let performed = sequence.perform(store, step).await;
        assert_eq!(performed.is_ok(), kind != Kind::Refused, "{write}");
        if performed.is_ok() {
            let mut times = times.lock().unwrap();
            let tick = times.tick();
            times.acknowledged.insert(write, tick);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_taken_under_load_hold_what_was_acknowledged_and_cut_ones_a_prefix() {
    const TASKS: usize = 8;
    const LOAD: u64 = 240;
    const COPIES: usize = 6;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fleet.db");
    let store = open(&path, SqliteOptions::default());
    prepare(&store).await.unwrap();
    store.close().await.unwrap();

    let store = open(&path, SqliteOptions::default());
    let times = Arc::new(Mutex::new(Times::default()));
    let (progress, mut seen) = watch::channel(0_usize);
    let tasks = (0..TASKS).map(|task| {
        let (store, times, progress) = (store.clone(), Arc::clone(&times), progress.clone());
        tokio::spawn(async move {
            for number in (task as u64..LOAD).step_by(TASKS) {
                load(&store, number, &times).await;
                progress.send_modify(|done| *done += 1);
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut copies = Vec::new();
    for copy in 1..=COPIES {
        let enough = copy * LOAD as usize / (COPIES + 1);
        seen.wait_for(|done| *done >= enough).await.unwrap();
        let told = times.lock().unwrap().tick;
        copies.push((Snapshot::take(&path), told));
    }
    for task in tasks {
        task.await.unwrap();
    }
    store.close().await.unwrap();

    let times = std::mem::take(&mut *times.lock().unwrap());
    let random = Random::seeded(3);
    for (copy, told) in copies {
        copy.judge(&copy.log, &times.oracle(told), LOAD).await;
        for _ in 0..8 {
            let at = (random.next_u64() % copy.log.len() as u64) as usize;
            let findings = copy.judge(&copy.log[..at], &times.oracle(0), LOAD).await;
            times.assert_prefix(&findings);
        }
    }
}
