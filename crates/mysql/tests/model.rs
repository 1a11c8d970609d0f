//! Compares random histories on MariaDB with the store in memory.

mod bed;

use std::process::ExitCode;

use bed::Mysql;
use fleethold_mysql::Isolation;

fn main() -> ExitCode {
    fleethold_conformance::run_model_of(Mysql::at("mysql", Isolation::ReadCommitted), 64)
}
