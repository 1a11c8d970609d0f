//! A disk that is full or read-only for a while, and stores that cannot be
//! opened.

use std::sync::Arc;

use fleethold_faultfs::{Device, Fault, FaultFs, FaultPlan, Kind};
use fleethold_sqlite::{OpenError, SqliteOptions, SqliteStore};
use fleethold_store::{ErrorKind, ManualClock, Outcome, Random, Store};

use crate::MOST_CALLS;
use crate::bed::{Bed, CALL_SECONDS, Template};
use crate::calls::CALLS;

/// Refuses all changes; then every method has its turn, several times over.
async fn refuse_and_recover(fault: Fault) {
    let template = Template::new().await;
    for call in CALLS {
        let bed = Bed::open(&template);
        let before = bed.dump();
        bed.disk.set_plan(FaultPlan::new(fault).lasting());
        for _ in 0..3 {
            let answer = (call.run)(&bed.store, &template).await;
            if !call.writes {
                answer.unwrap_or_else(|error| panic!("{}: {error:?}", call.name));
                continue;
            }
            let error = answer.expect_err(call.name);
            assert_eq!(error.kind(), ErrorKind::Transient, "{}", call.name);
            assert_eq!(bed.dump(), before, "{}", call.name);
        }
        bed.disk.clear();
        let answer = (call.run)(&bed.store, &template).await;
        answer.unwrap_or_else(|error| panic!("{}, afterwards: {error:?}", call.name));
        assert_eq!(bed.dump() != before, call.writes, "{}", call.name);
        bed.store_is_whole(&template).await;
        bed.store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_refuses_changes_until_there_is_room_and_needs_no_restart() {
    refuse_and_recover(Fault::Full).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_file_system_refuses_changes_until_it_is_writable_and_needs_no_restart() {
    refuse_and_recover(Fault::ReadOnly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_closes_without_a_disk() {
    let template = Template::new().await;
    let bed = Bed::open(&template);
    (CALLS[0].run)(&bed.store, &template).await.unwrap();
    let before = bed.dump();
    bed.disk.crash();
    let error = (CALLS[0].run)(&bed.store, &template).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert_eq!(error.outcome(), Outcome::NotApplied);
    let bed = bed.reopen().await;
    assert_eq!(bed.dump(), before);
}

/// Fails every call of opening a new store and one with a log to recover.
async fn fail_to_open(with_log: bool) {
    let template = Template::new().await;
    for k in 1..MOST_CALLS {
        let bed = Bed::open(&template);
        (CALLS[0].run)(&bed.store, &template).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fleet.db");
        if with_log {
            bed.copy_to(directory.path());
        }
        let disk = FaultFs::register_as(Device::PowersafeOverwrite);
        let open = || {
            let options = SqliteOptions {
                vfs: Some(disk.name().to_owned()),
                readers: 1.try_into().unwrap(),
                ..SqliteOptions::default()
            };
            let clock = Arc::new(ManualClock::at(CALL_SECONDS));
            SqliteStore::open(&path, options, clock, Arc::new(Random::seeded(1)))
        };
        disk.set_plan(FaultPlan::new(Fault::IoError).on(&Kind::ALL).at(k));
        let opened = open();
        disk.clear();
        if let Err(error) = &opened {
            assert!(
                matches!(error, OpenError::Database { .. }),
                "call {k}: {error:?}"
            );
        }
        let is_over = disk.hits() == 0;
        let store = opened.or_else(|_| open());
        let store = store.unwrap_or_else(|error| panic!("call {k}, again: {error:?}"));
        if with_log {
            template.is_in(&store).await;
        }
        store.close().await.unwrap();
        bed.store.close().await.unwrap();
        if is_over {
            return;
        }
    }
    panic!("opening has no end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_call_may_fail_while_a_store_is_made() {
    fail_to_open(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_call_may_fail_while_a_store_is_repaired() {
    fail_to_open(true).await;
}
