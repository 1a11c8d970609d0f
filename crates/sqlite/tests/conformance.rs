//! Runs the suite of all stores on SQLite.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use fleethold_conformance::{Bed, Capabilities, Harness};
use fleethold_sqlite::{OnConnect, SqliteOptions, SqliteStore};
use fleethold_store::{ManualClock, Random, Store};
use rusqlite::Connection;

struct Sqlite;

#[async_trait]
impl Harness for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            reopens: true,
            // One process: a second store is refused.
            shares: false,
            damages: true,
            presets_contacts: true,
            conflicts: true,
            counts_work: true,
            maintains: true,
            forgets: true,
        }
    }

    fn unavailable(&self) -> Option<String> {
        None
    }

    async fn open(&self, clock: Arc<ManualClock>, random: Arc<Random>) -> Bed {
        let directory = tempfile::tempdir().expect("a directory for the store");
        let path: Arc<Path> = directory.path().join("fleet.db").into();
        let steps = Arc::new(AtomicU64::new(0));
        let options = SqliteOptions {
            on_connect: Some(count(&steps)),
            ..SqliteOptions::default()
        };
        let open = {
            let (path, clock) = (Arc::clone(&path), Arc::clone(&clock));
            move || -> Arc<SqliteStore> {
                let (clock, random) = (Arc::clone(&clock), Arc::clone(&random));
                let store = SqliteStore::open(&path, options.clone(), clock, random);
                Arc::new(store.expect("the database can be opened"))
            }
        };
        let behind_its_back = move || Connection::open(&path).expect("a second connection");
        let store = open();
        Bed::new(Arc::<SqliteStore>::clone(&store), clock)
            .with_maintenance(store)
            .with_guard(directory)
            .with_reopen(move || {
                let store: Arc<dyn Store> = open();
                async move { store }
            })
            .with_damage({
                let connect = behind_its_back.clone();
                move |id| {
                    let damaged = connect().execute(DAMAGE, [id.as_bytes()]);
                    assert_eq!(damaged, Ok(1), "the message is stored");
                }
            })
            .with_contact_preset({
                let connect = behind_its_back.clone();
                move |number| {
                    let inserted = connect().execute(PRESET_CONTACTS, [number]);
                    assert_eq!(inserted, Ok(1), "there is a client");
                }
            })
            .with_conflict(move || {
                let connection = behind_its_back();
                connection
                    .execute_batch("BEGIN IMMEDIATE")
                    .expect("nobody else writes");
                connection
            })
            .with_work(move || steps.load(Ordering::SeqCst))
    }
}

/// Counts the steps of SQLite's virtual machine.
fn count(steps: &Arc<AtomicU64>) -> OnConnect {
    let steps = Arc::clone(steps);
    Arc::new(move |connection| {
        let steps = Arc::clone(&steps);
        let step = move || {
            steps.fetch_add(1, Ordering::SeqCst);
            false
        };
        connection
            .progress_handler(1, Some(step))
            .expect("a handler can be set");
    })
}

const DAMAGE: &str = "\
-- damage
UPDATE messages SET annotations = x'ff', validation_info = x'ff' WHERE message_id = ?1";

const PRESET_CONTACTS: &str = "\
-- preset_contacts
INSERT INTO contacts (contact, client_id, time_nanos, nonce_sent, nonce_received, address)
SELECT ?1, client_id, 0, 0, 0, '' FROM clients LIMIT 1";

fn main() -> ExitCode {
    fleethold_conformance::run(Sqlite)
}
