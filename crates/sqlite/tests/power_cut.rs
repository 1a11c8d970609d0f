//! The power goes off, and the disk shows less than was written to it: what
//! was acknowledged is there all the same.

#[path = "crash/findings.rs"]
mod findings;
#[path = "crash/history.rs"]
mod history;

use std::sync::{Arc, Mutex};

use fleethold_conformance::oracle::{Fate, Oracle};
use fleethold_faultfs::{Device, Fault, FaultFs, FaultPlan, Kind as FileCall};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{Outcome, Random, Store};
use futures::future::join_all;

use findings::{find, try_open};
use history::{KINDS, Kind, Sequence, prepare, write};

/// What survives of unsynced writes is drawn this often for every cut.
const SEEDS: std::ops::Range<u64> = 0..6;

/// All kinds of sequences one after the other, all at once, and all at once
/// again after the store was closed and opened.
const SEQUENCES: u64 = 3 * KINDS.len() as u64;

/// More than there are in a run.
const MOST_CUTS: u64 = 10_000;

struct Bed {
    directory: tempfile::TempDir,
    disk: FaultFs,
    oracle: Mutex<Oracle>,
}

impl Bed {
    fn new(device: Device) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("live")).unwrap();
        Self {
            directory,
            disk: FaultFs::register_as(device),
            oracle: Mutex::default(),
        }
    }

    fn open(&self) -> Option<SqliteStore> {
        let options = SqliteOptions {
            readers: 1.try_into().unwrap(),
            vfs: Some(self.disk.name().to_owned()),
            // The log is written back all the time.
            on_connect: Some(Arc::new(|connection| {
                connection
                    .pragma_update(None, "wal_autocheckpoint", 12)
                    .unwrap();
            })),
            ..SqliteOptions::default()
        };
        let path = self.directory.path().join("live/fleet.db");
        try_open(&path, options, Arc::new(Random::seeded(1))).ok()
    }

    /// Performs all sequences, or what the disk allows.
    async fn run(&self) {
        let kinds = KINDS.len() as u64;
        let Some(store) = self.open() else { return };
        if prepare(&store).await.is_ok() {
            for number in 0..kinds {
                self.perform(&store, number).await;
            }
            join_all((kinds..2 * kinds).map(|number| self.perform(&store, number))).await;
        }
        store.close().await.unwrap();
        drop(store);
        let Some(store) = self.open() else { return };
        join_all((2 * kinds..SEQUENCES).map(|number| self.perform(&store, number))).await;
        store.close().await.unwrap();
    }

    async fn perform(&self, store: &SqliteStore, number: u64) {
        let parts = Kind::of(number).parts();
        let mut sequence = Sequence::new(number);
        for (step, parts) in parts.iter().enumerate() {
            if self.disk.is_crashed() {
                return;
            }
            let write = write(number, step);
            self.oracle.lock().unwrap().trying(write, *parts);
            let fate = match sequence.perform(store, step).await {
                Ok(()) => Fate::Acknowledged,
                Err(error) if error.outcome() == Outcome::NotApplied => Fate::Refused,
                Err(_) => Fate::Unknown,
            };
            self.oracle.lock().unwrap().learned(write, fate);
            if fate != Fate::Acknowledged {
                return;
            }
        }
    }

    /// Cuts the power with several seeds; returns how many unanswered writes
    /// had happened and had not.
    async fn judge(&self, place: &str) -> [usize; 2] {
        self.disk.crash();
        let mut fates = [0; 2];
        for seed in SEEDS {
            let copy = self.directory.path().join(format!("cut-{seed}"));
            self.disk.power_cut(seed, &copy).unwrap();
            let found = find(&copy.join("fleet.db"), 0..SEQUENCES).await;
            // Each cut is another world.
            let mut oracle = self.oracle.lock().unwrap().clone();
            let findings = oracle.judge(found).unwrap_or_else(|violations| {
                panic!("{place}, seed {seed}: {violations:?}");
            });
            fates[0] += findings.happened;
            fates[1] += findings.not_happened;
            std::fs::remove_dir_all(copy).unwrap();
        }
        fates
    }
}

async fn cut_at_every_sync(device: Device) {
    let mut fates = [0; 2];
    for n in 1..MOST_CUTS {
        let bed = Bed::new(device);
        bed.disk.stop_at_sync(n);
        bed.run().await;
        let is_over = !bed.disk.is_crashed();
        let found = bed.judge(&format!("{device:?}, sync {n}")).await;
        fates = [fates[0] + found[0], fates[1] + found[1]];
        if is_over {
            let [acknowledged, ..] = bed.oracle.lock().unwrap().counts();
            let refused = KINDS.iter().filter(|kind| **kind == Kind::Refused).count();
            let all: usize = KINDS.iter().map(|kind| kind.parts().len()).sum();
            assert_eq!(acknowledged, 3 * (all - refused));
            // Both fates of the commit that was cut off are met.
            assert!(fates.iter().all(|count| *count > 0), "{fates:?}");
            #[expect(clippy::print_stderr, reason = "the numbers of the report")]
            {
                eprintln!("{device:?}: cut at {n} syncs");
            }
            return;
        }
    }
    panic!("the run has no end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_calls_survive_a_power_cut_at_every_sync() {
    cut_at_every_sync(Device::PowersafeOverwrite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_calls_survive_a_power_cut_at_every_sync_of_a_disk_that_damages_sectors() {
    cut_at_every_sync(Device::Bare).await;
}

/// Takes every seventh call; with `FLEETHOLD_FAULTS=all`, every one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_calls_survive_a_power_cut_instead_of_any_change() {
    let changes = [
        FileCall::Open,
        FileCall::Write,
        FileCall::Truncate,
        FileCall::Delete,
    ];
    let all = std::env::var("FLEETHOLD_FAULTS").is_ok_and(|faults| faults == "all");
    for k in (1..MOST_CUTS).step_by(if all { 1 } else { 7 }) {
        let bed = Bed::new(Device::default());
        let plan = FaultPlan::new(Fault::PowerLoss).on(&changes).at(k);
        bed.disk.set_plan(plan);
        bed.run().await;
        let is_over = !bed.disk.is_crashed();
        bed.judge(&format!("change {k}")).await;
        if is_over {
            return;
        }
    }
    panic!("the run has no end");
}
