//! Runs the suite of all stores on SQLite.

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use fleethold_conformance::{Bed, Capabilities, Harness};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{ManualClock, Random, Store};

struct Sqlite;

#[async_trait]
impl Harness for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            reopens: true,
            ..Capabilities::default()
        }
    }

    fn unavailable(&self) -> Option<String> {
        None
    }

    async fn open(&self, clock: Arc<ManualClock>, random: Arc<Random>) -> Bed {
        let directory = tempfile::tempdir().expect("a directory for the store");
        let path = directory.path().join("fleet.db");
        let open = {
            let clock = Arc::clone(&clock);
            move || -> Arc<dyn Store> {
                let (clock, random) = (Arc::clone(&clock), Arc::clone(&random));
                let store = SqliteStore::open(&path, SqliteOptions::default(), clock, random);
                Arc::new(store.expect("the database can be opened"))
            }
        };
        Bed::new(open(), clock)
            .with_guard(directory)
            .with_reopen(move || {
                let store = open();
                async move { store }
            })
    }
}

fn main() -> ExitCode {
    fleethold_conformance::run(Sqlite)
}
