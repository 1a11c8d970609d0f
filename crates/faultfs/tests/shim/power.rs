//! Power cuts, and proof that the model of them bites.

use fleethold_faultfs::{Device, Fault, FaultFs, FaultPlan, Kind};
use rusqlite::{Connection, Result};

use crate::workload::{Bed, STEPS, Synchronous, commits, commits_in, create_tables, perform};

const SEEDS: std::ops::Range<u64> = 0..12;

const DEVICES: [Device; 2] = [Device::Bare, Device::PowersafeOverwrite];

/// What the database shows after power cuts at every sync point, one result
/// per seed, with the number of acknowledged commits.
fn cut_at_every_sync(device: Device, mut judge: impl FnMut(u64, u64, u32, Result<u32>)) {
    let probe = Bed::new(FaultFs::register_as(device));
    probe.run(Synchronous::Full).1.unwrap();
    for n in 1..=probe.disk.syncs() {
        let bed = Bed::new(FaultFs::register_as(device));
        bed.disk.stop_at_sync(n);
        let (acknowledged, _) = bed.run(Synchronous::Full);
        assert!(bed.disk.is_crashed());
        assert_eq!(bed.disk.syncs(), n - 1);
        for seed in SEEDS {
            judge(n, seed, acknowledged, bed.commits_after_power_cut(seed));
        }
    }
}

#[test]
fn acknowledged_commits_survive_a_power_cut_at_every_sync() {
    for device in DEVICES {
        let mut undecided = [0; 2];
        cut_at_every_sync(device, |n, seed, acknowledged, found| {
            let place = format!("{device:?}, sync {n}, seed {seed}");
            let found = found.unwrap_or_else(|error| panic!("{place}: {error}"));
            let unknown = found.checked_sub(acknowledged);
            let unknown = unknown.filter(|unknown| *unknown <= 1);
            let unknown = unknown.unwrap_or_else(|| {
                panic!("{place}: {acknowledged} commits acknowledged, {found} found")
            });
            undecided[unknown as usize] += 1;
        });
        // Both fates of the commit that was cut off are met.
        assert!(undecided.iter().all(|count| *count > 0), "{undecided:?}");
    }
}

#[test]
fn acknowledged_commits_survive_a_power_cut_at_every_change() {
    let changes = [Kind::Write, Kind::Truncate, Kind::Delete, Kind::Open];
    let probe = Bed::new(FaultFs::register());
    probe.run(Synchronous::Full).1.unwrap();
    for k in 1..=probe.disk.calls().of_all(&changes) {
        let bed = Bed::new(FaultFs::register());
        let plan = FaultPlan::new(Fault::PowerLoss).on(&changes).at(k);
        bed.disk.set_plan(plan);
        let (acknowledged, _) = bed.run(Synchronous::Full);
        // Another seed for each call: all styles of cuts are met.
        let found = bed.commits_after_power_cut(k);
        let found = found.unwrap_or_else(|error| panic!("call {k}: {error}"));
        assert!(
            [acknowledged, acknowledged + 1].contains(&found),
            "call {k}: {acknowledged} commits acknowledged, {found} found"
        );
    }
}

/// A commit with a rollback journal is the deletion of the journal. SQLite
/// documents that only `EXTRA` makes sure that it is not undone.
#[test]
fn deleted_rollback_journal_comes_back_unless_its_directory_is_synced() {
    for (synchronous, durable) in [("FULL", false), ("EXTRA", true)] {
        let mut lost = 0;
        for n in 1.. {
            let bed = Bed::new(FaultFs::register());
            let mut connection = bed.open(Synchronous::Full).unwrap();
            create_tables(&mut connection).unwrap();
            connection
                .execute_batch(&format!(
                    "PRAGMA journal_mode = DELETE; PRAGMA synchronous = {synchronous};"
                ))
                .unwrap();
            bed.disk.stop_at_sync(bed.disk.syncs() + n);
            let mut acknowledged: u32 = 1;
            for step in 1..=6 {
                if perform(&mut connection, step).is_err() {
                    break;
                }
                acknowledged += 1;
            }
            for seed in SEEDS {
                let found = bed.commits_after_power_cut(seed).unwrap();
                lost += acknowledged.saturating_sub(found);
            }
            if !bed.disk.is_crashed() {
                break;
            }
        }
        assert_eq!(lost == 0, durable, "{synchronous}");
    }
}

#[test]
fn commits_are_lost_or_torn_without_syncs() {
    let bed = Bed::new(FaultFs::register());
    let connection = run_open(&bed, Synchronous::Off);
    bed.disk.crash();
    assert_eq!(bed.disk.syncs(), 0);
    let lost = SEEDS
        .map(|seed| bed.commits_after_power_cut(seed))
        .filter(|found| !matches!(found, Ok(commits) if *commits > STEPS))
        .count();
    assert!(lost > 0);
    drop(connection);
}

#[test]
fn commits_are_lost_but_never_torn_if_only_checkpoints_sync() {
    let mut lost = 0;
    for last in 1..=STEPS {
        let bed = Bed::new(FaultFs::register());
        let mut connection = bed.open(Synchronous::Normal).unwrap();
        create_tables(&mut connection).unwrap();
        for step in 1..=last {
            perform(&mut connection, step).unwrap();
        }
        bed.disk.crash();
        for seed in SEEDS {
            let found = bed.commits_after_power_cut(seed);
            let found = found.unwrap_or_else(|error| panic!("step {last}, seed {seed}: {error}"));
            lost += last + 1 - found;
        }
    }
    assert!(lost > 0);
}

#[test]
fn dead_process_loses_nothing_that_it_wrote() {
    let bed = Bed::new(FaultFs::register());
    let mut connection = run_open(&bed, Synchronous::Off);
    bed.disk.crash();
    perform(&mut connection, STEPS + 1).unwrap_err();
    drop(connection);
    assert_eq!(commits_in(&bed.path()).unwrap(), STEPS + 1);
}

#[test]
fn recovery_may_be_cut_off_as_well() {
    let bed = Bed::new(FaultFs::register());
    let connection = run_open(&bed, Synchronous::Full);
    bed.disk.crash();
    drop(connection);
    // What the dead process left: a database and a log to be recovered.
    let mut syncs = 1;
    for n in 1.. {
        let copy = Bed::new(FaultFs::register());
        for suffix in ["", "-wal"] {
            let [from, to] = [&bed, &copy].map(|bed| format!("{}{suffix}", bed.path().display()));
            std::fs::copy(from, to).unwrap();
        }
        copy.disk.stop_at_sync(n);
        let recovered = copy.open(Synchronous::Full).and_then(|mut connection| {
            perform(&mut connection, STEPS + 1)?;
            connection.close().map_err(|(_, error)| error)
        });
        for seed in SEEDS {
            let found = copy.commits_after_power_cut(seed).unwrap();
            assert!(
                found == STEPS + 1 || found == STEPS + 2,
                "sync {n}, seed {seed}"
            );
        }
        if !copy.disk.is_crashed() {
            recovered.unwrap();
            break;
        }
        syncs += 1;
    }
    assert!(syncs > 1);
}

#[test]
fn log_beside_an_existing_database_counts_as_synced() {
    let bed = Bed::new(FaultFs::register());
    let connection = run_open(&bed, Synchronous::Full);
    bed.disk.crash();
    drop(connection);

    // Only the database is opened before the power goes off again.
    let again = FaultFs::register();
    let plan = FaultPlan::new(Fault::PowerLoss).on(&[Kind::Read]);
    again.set_plan(plan);
    let bed = bed.with_disk(again);
    assert!(bed.open(Synchronous::Full).is_err());
    for seed in SEEDS {
        assert_eq!(bed.commits_after_power_cut(seed).unwrap(), STEPS + 1);
    }
}

#[test]
fn one_seed_always_gives_the_same_files() {
    let bed = Bed::new(FaultFs::register());
    let _connection = run_open(&bed, Synchronous::Normal);
    let target = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| {
        let directory = target.path().join(name);
        bed.disk.power_cut(5, &directory).unwrap();
        std::fs::read(directory.join("fleet.db-wal")).unwrap()
    });
    assert!(one == other);
    let occupied = bed.disk.power_cut(5, &target.path().join("one"));
    assert!(occupied.is_err());
}

#[test]
fn power_cut_leaves_the_live_database_alone() {
    let bed = Bed::new(FaultFs::register());
    let mut connection = run_open(&bed, Synchronous::Full);
    assert_eq!(bed.commits_after_power_cut(1).unwrap(), STEPS + 1);
    perform(&mut connection, STEPS + 1).unwrap();
    assert_eq!(commits(&connection).unwrap(), STEPS + 2);
    assert_eq!(bed.commits_after_power_cut(1).unwrap(), STEPS + 2);
}

/// Performs the history on one connection and leaves it open, with the newest
/// commits in the log only.
fn run_open(bed: &Bed, synchronous: Synchronous) -> Connection {
    let mut connection = bed.open(synchronous).unwrap();
    create_tables(&mut connection).unwrap();
    for step in 1..=STEPS {
        perform(&mut connection, step).unwrap();
    }
    connection
}
