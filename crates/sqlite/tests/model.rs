//! Random histories on SQLite, beside the store in memory.
//!
//! A longer run than the usual one:
//! `FLEETHOLD_MODEL_HISTORIES=100000 cargo test --release -p fleethold-sqlite --test model`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use fleethold_conformance::{Bed, Capabilities, Harness};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{ManualClock, Random, Store};
use tempfile::TempDir;

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
        let directory = directory();
        let path = directory.path().join("fleet.db");
        let options = SqliteOptions {
            // Threads cost more than they bring when one history asks.
            readers: 1.try_into().expect("not zero"),
            ..SqliteOptions::default()
        };
        let open = {
            let clock = Arc::clone(&clock);
            move || -> Arc<dyn Store> {
                let (clock, random) = (Arc::clone(&clock), Arc::clone(&random));
                let store = SqliteStore::open(&path, options.clone(), clock, random);
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

/// Thousands of databases are better made in memory, where there is a place.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory)
        .or_else(|_| tempfile::tempdir())
        .expect("a directory for the store")
}

fn main() -> ExitCode {
    fleethold_conformance::run_model(Sqlite)
}
