//! A disk without faults.

use std::thread;

use fleethold_faultfs::{Device, FaultFs, Kind};
use rusqlite::Connection;

use crate::workload::{Bed, STEPS, Synchronous, commits_in};

#[test]
fn everything_works_without_a_plan_and_is_counted() {
    let bed = Bed::new(FaultFs::register());
    let (commits, outcome) = bed.run(Synchronous::Full);
    outcome.unwrap();
    assert_eq!(commits, STEPS + 1);
    assert_eq!(commits_in(&bed.path()).unwrap(), STEPS + 1);

    let calls = bed.disk.calls();
    for kind in Kind::ALL {
        // Nobody asks for other writers in WAL mode.
        assert_eq!(calls.of(kind) == 0, kind == Kind::CheckLock, "{calls:?}");
    }
    assert_eq!(calls.total(), calls.of_all(&Kind::ALL));
    assert_eq!(calls.of(Kind::Sync), bed.disk.syncs());
    // Each commit syncs the log.
    assert!(bed.disk.syncs() > u64::from(STEPS), "{calls:?}");
    assert_eq!(bed.disk.hits(), 0);
    assert!(!bed.disk.is_crashed());
}

#[test]
fn a_repeated_history_makes_the_same_calls() {
    let counts = [(); 2].map(|()| {
        let bed = Bed::new(FaultFs::register());
        bed.run(Synchronous::Full).1.unwrap();
        bed.disk.calls()
    });
    assert_eq!(counts[0], counts[1]);
}

#[test]
fn log_is_padded_to_sectors_only_on_a_disk_that_promises_nothing() {
    let writes = [Device::Bare, Device::PowersafeOverwrite].map(|device| {
        let bed = Bed::new(FaultFs::register_as(device));
        bed.run(Synchronous::Full).1.unwrap();
        bed.disk.calls().of(Kind::Write)
    });
    assert!(writes[0] > writes[1], "{writes:?}");
}

#[test]
fn database_is_never_mapped_into_memory() {
    let bed = Bed::new(FaultFs::register());
    let connection = bed.open(Synchronous::Full).unwrap();
    let limit: i64 = connection
        .query_row("PRAGMA mmap_size = 1000000", [], |row| row.get(0))
        .unwrap();
    assert_eq!(limit, 0);
}

#[test]
fn instances_do_not_share_names_faults_or_counters() {
    let [one, other] = [(); 2].map(|()| Bed::new(FaultFs::register()));
    assert_ne!(one.disk.name(), other.disk.name());
    one.disk.crash();
    other.run(Synchronous::Full).1.unwrap();
    assert_eq!(one.disk.calls().total(), 0);
}

#[test]
fn connections_outlive_the_handles_of_their_disk() {
    let bed = Bed::new(FaultFs::register());
    let name = bed.disk.name().to_owned();
    let connection = bed.open(Synchronous::Full).unwrap();
    let path = bed.path();
    let directory = bed.give_up_disk();
    connection
        .execute_batch("CREATE TABLE a (b); INSERT INTO a VALUES (1)")
        .unwrap();
    drop(connection);

    let refused = Connection::open_with_flags_and_vfs(&path, Default::default(), name.as_str());
    assert!(refused.is_err());
    let rows: i64 = Connection::open(&path)
        .unwrap()
        .query_row("SELECT count(*) FROM a", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 1);
    drop(directory);
}

#[test]
fn many_connections_of_many_threads_share_one_disk() {
    let bed = Bed::new(FaultFs::register());
    let first = bed.open(Synchronous::Full).unwrap();
    first.execute_batch("CREATE TABLE a (b)").unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let connection = bed.open(Synchronous::Full).unwrap();
                for row in 0..20 {
                    connection
                        .execute("INSERT INTO a VALUES (?)", [row])
                        .unwrap();
                }
            });
        }
    });
    let rows: i64 = first
        .query_row("SELECT count(*) FROM a", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 80);
}
