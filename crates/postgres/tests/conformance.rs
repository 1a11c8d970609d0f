//! Runs the suite of all stores on PostgreSQL, at each isolation level; with
//! `FLEETHOLD_LONG=1` also without prepared statements.

mod bed;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bed::Kind;
use fleethold_conformance::Harness;
use fleethold_postgres::{Isolation, OnCommit};

/// Makes every third commit fail.
fn every_third() -> OnCommit {
    let commits = AtomicU64::new(0);
    Arc::new(move || commits.fetch_add(1, Ordering::Relaxed) % 3 == 2)
}

fn main() -> ExitCode {
    let mut kinds = vec![
        Kind::new("postgres", Isolation::ReadCommitted),
        Kind::new("postgres_repeatable_read", Isolation::RepeatableRead),
        Kind::new("postgres_serializable", Isolation::Serializable),
        // As engines do that find conflicts only at the commit.
        Kind::new("postgres_conflicts", Isolation::Serializable).with_commits(every_third),
    ];
    if std::env::var_os("FLEETHOLD_LONG").is_some() {
        // As behind a pooler that lends connections per transaction.
        let unprepared = Kind::new("postgres_unprepared", Isolation::ReadCommitted);
        kinds.push(unprepared.with(|options| options.prepared = false));
    }
    fleethold_conformance::run_all(
        kinds
            .into_iter()
            .map(|kind| Arc::new(kind) as Arc<dyn Harness>),
    )
}
