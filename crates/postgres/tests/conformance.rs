//! Runs the suite of all stores on PostgreSQL.

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
    let kinds = [
        Kind::new("postgres", Isolation::ReadCommitted),
        Kind::new("postgres_repeatable_read", Isolation::RepeatableRead),
        Kind::new("postgres_serializable", Isolation::Serializable),
        // As engines do that find conflicts only at the commit.
        Kind::new("postgres_conflicts", Isolation::Serializable).with_commits(every_third),
        // Behind a pooler that lends connections per transaction.
        Kind::new("postgres_unprepared", Isolation::ReadCommitted)
            .with(|options| options.prepared = false),
    ];
    fleethold_conformance::run_all(kinds.map(|kind| Arc::new(kind) as Arc<dyn Harness>))
}
