//! Runs the suite of all stores on MariaDB; with `FLEETHOLD_LONG=1` at each
//! level of isolation.

mod bed;

use std::process::ExitCode;
use std::sync::Arc;

use bed::Mysql;
use fleethold_conformance::Harness;
use fleethold_mysql::{Isolation, Takeover};

fn main() -> ExitCode {
    let mut committed = Mysql::at("mysql", Isolation::ReadCommitted);
    committed.options.takeover = Takeover::Widen;
    let others = [
        Mysql::at("mysql-repeatable-read", Isolation::RepeatableRead),
        Mysql::at("mysql-serializable", Isolation::Serializable),
    ];
    let all = std::iter::once(committed).chain(others);
    fleethold_conformance::run_all(all.map(|kind| Arc::new(kind) as Arc<dyn Harness>))
}
