//! Single calls that fail.

use std::time::Duration;

use fleethold_faultfs::{Fault, FaultFs, FaultPlan, Kind};
use rusqlite::{Connection, Error, ErrorCode};

use crate::workload::{Bed, STEPS, Synchronous, commits, commits_in, create_tables, perform};

/// Enough to write the log back several times; the cost grows with the square.
const LAST_STEP: u32 = STEPS / 3;

/// Lets call number 1, 2, … fail until the history does not get that far, and
/// checks each time that the commits up to the failure are there, that the next
/// attempt of the same connection works, and that nothing is broken.
fn fail_every_call(plan: impl Fn(u64) -> FaultPlan, errors: &[ErrorCode]) {
    let mut failed = 0;
    for k in 1.. {
        let bed = Bed::new(FaultFs::register());
        let mut connection = bed.open(Synchronous::Full).unwrap();
        create_tables(&mut connection).unwrap();
        bed.disk.set_plan(plan(k));
        for step in 1..=LAST_STEP {
            let Err(error) = perform(&mut connection, step) else {
                continue;
            };
            failed += 1;
            let code = error.sqlite_error_code().expect("an error of SQLite");
            assert!(errors.contains(&code), "call {k}: {error:?}");
            bed.disk.clear();
            assert!(connection.is_autocommit(), "call {k}: {error:?}");
            // The failed commit may have happened or not, but not in part.
            let found = commits(&connection).unwrap();
            assert!([step, step + 1].contains(&found), "call {k}: {error:?}");
            if found == step {
                perform(&mut connection, step).unwrap();
            }
        }
        let reached = bed.disk.hits() > 0;
        bed.disk.clear();
        assert_eq!(commits(&connection).unwrap(), LAST_STEP + 1, "call {k}");
        drop(connection);
        assert_eq!(commits_in(&bed.path()).unwrap(), LAST_STEP + 1, "call {k}");
        if !reached {
            break;
        }
    }
    assert!(failed > 0, "no failure was noticed");
}

const IO_ERRORS: &[ErrorCode] = &[ErrorCode::SystemIoFailure, ErrorCode::CannotOpen];

#[test]
fn any_single_write_may_fail() {
    fail_every_call(
        |k| FaultPlan::new(Fault::IoError).on(&[Kind::Write]).at(k),
        IO_ERRORS,
    );
}

#[test]
fn any_single_sync_may_fail() {
    fail_every_call(
        |k| FaultPlan::new(Fault::IoError).on(&[Kind::Sync]).at(k),
        IO_ERRORS,
    );
}

#[test]
fn any_single_call_may_fail() {
    fail_every_call(|k| FaultPlan::new(Fault::IoError).at(k), IO_ERRORS);
}

#[test]
fn all_calls_after_any_one_may_fail() {
    fail_every_call(
        |k| FaultPlan::new(Fault::IoError).at(k).lasting(),
        IO_ERRORS,
    );
}

#[test]
fn any_single_change_may_take_place_and_be_reported_as_failed() {
    fail_every_call(
        |k| {
            FaultPlan::new(Fault::IoError)
                .on(&[Kind::Write, Kind::Sync, Kind::Truncate, Kind::Delete])
                .at(k)
                .after_the_call()
        },
        IO_ERRORS,
    );
}

#[test]
fn disk_may_be_full_at_any_write() {
    fail_every_call(
        |k| FaultPlan::new(Fault::Full).at(k).lasting(),
        &[ErrorCode::DiskFull, ErrorCode::SystemIoFailure],
    );
}

#[test]
fn any_statement_may_be_interrupted() {
    fail_every_call(
        |k| FaultPlan::new(Fault::Interrupt).at(k),
        &[ErrorCode::OperationInterrupted],
    );
}

#[test]
fn file_system_may_become_read_only_at_any_write() {
    fail_every_call(
        |k| FaultPlan::new(Fault::ReadOnly).at(k).lasting(),
        &[ErrorCode::ReadOnly],
    );
}

#[test]
fn any_lock_may_be_taken_by_others_for_longer_than_the_timeout() {
    fail_every_call(
        |k| FaultPlan::new(Fault::Busy).at(k).lasting(),
        // The second one after a hundred attempts to take a reader's place.
        &[
            ErrorCode::DatabaseBusy,
            ErrorCode::FileLockingProtocolFailed,
        ],
    );
}

#[test]
fn waiting_for_a_lock_succeeds_when_it_is_busy_once() {
    let bed = Bed::new(FaultFs::register());
    let mut connection = bed.open(Synchronous::Full).unwrap();
    create_tables(&mut connection).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    bed.disk.set_plan(FaultPlan::new(Fault::Busy));
    perform(&mut connection, 1).unwrap();
    assert_eq!(bed.disk.hits(), 1);
}

#[test]
fn full_disk_refuses_commits_until_there_is_room_again() {
    let bed = Bed::new(FaultFs::register());
    let mut connection = bed.open(Synchronous::Full).unwrap();
    create_tables(&mut connection).unwrap();
    perform(&mut connection, 1).unwrap();

    bed.disk.set_plan(FaultPlan::new(Fault::Full).lasting());
    for _ in 0..3 {
        let error = perform(&mut connection, 2).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DiskFull));
        assert_eq!(commits(&connection).unwrap(), 2);
    }

    bed.disk.clear();
    for step in 2..=STEPS {
        perform(&mut connection, step).unwrap();
    }
    drop(connection);
    assert_eq!(commits_in(&bed.path()).unwrap(), STEPS + 1);
}

#[test]
fn failed_open_is_an_error_and_the_next_one_works() {
    let bed = Bed::new(FaultFs::register());
    bed.disk
        .set_plan(FaultPlan::new(Fault::IoError).on(&[Kind::Open]));
    let error: Error = bed
        .open(Synchronous::Full)
        .map(Connection::close)
        .unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen));
    bed.run(Synchronous::Full).1.unwrap();
}
