//! Runs the suite of all stores on PostgreSQL.

mod bed;

use std::process::ExitCode;
use std::sync::Arc;

use bed::Kind;
use fleethold_conformance::Harness;
use fleethold_postgres::Isolation;

fn main() -> ExitCode {
    let kinds = [
        Kind::new("postgres", Isolation::ReadCommitted),
        Kind::new("postgres_repeatable_read", Isolation::RepeatableRead),
        Kind::new("postgres_serializable", Isolation::Serializable),
    ];
    fleethold_conformance::run_all(kinds.map(|kind| Arc::new(kind) as Arc<dyn Harness>))
}
