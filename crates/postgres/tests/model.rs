//! Random histories on PostgreSQL, beside the store in memory.
//!
//! A longer run than the usual one:
//! `FLEETHOLD_MODEL_HISTORIES=10000 cargo test --release -p fleethold-postgres --test model`.

mod bed;

use std::process::ExitCode;

use bed::Kind;
use fleethold_postgres::Isolation;

fn main() -> ExitCode {
    fleethold_conformance::run_model_of(Kind::new("postgres", Isolation::ReadCommitted), 100)
}
