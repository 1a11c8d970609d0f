//! A store in a directory of its own, what it does counted.
#![allow(dead_code, reason = "each test target uses its part")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fleethold_proto::fleetspeak::{Address, Message, MessageResult};
use fleethold_proto::{Any, Timestamp};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{ClientData, ClientId, ClientStore, ContactData, ManualClock, Random};
use rusqlite::trace::{TraceEvent, TraceEventCodes};
use rusqlite::{Connection, StatementStatus};
use tempfile::TempDir;

pub(crate) const CLIENT: ClientId = ClientId::new([1; 8]);

pub(crate) struct Bed {
    pub(crate) directory: TempDir,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) log: Arc<Log>,
    pub(crate) store: SqliteStore,
}

impl Bed {
    /// Opens a store with one client.
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(100_000));
        let log = Arc::new(Log::default());
        let store = open(&directory.path().join("fleet.db"), &clock, &log);
        store
            .add_client(CLIENT, &ClientData::default())
            .await
            .unwrap();
        log.clear();
        Self {
            directory,
            clock,
            log,
            store,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("fleet.db")
    }

    pub(crate) fn open(&self) -> SqliteStore {
        open(&self.path(), &self.clock, &self.log)
    }
}

fn open(path: &std::path::Path, clock: &Arc<ManualClock>, log: &Arc<Log>) -> SqliteStore {
    let log = Arc::clone(log);
    let options = SqliteOptions {
        on_connect: Some(Arc::new(move |connection| log.watch(connection))),
        ..SqliteOptions::default()
    };
    let clock = Arc::clone(clock);
    SqliteStore::open(path, options, clock, Arc::new(Random::seeded(1))).unwrap()
}

/// What all connections of a store have done.
#[derive(Default)]
pub(crate) struct Log {
    statements: Mutex<Vec<String>>,
    commits: Arc<AtomicU64>,
    steps: Arc<AtomicU64>,
    prepared_again: AtomicU64,
}

impl Log {
    fn watch(self: &Arc<Self>, connection: &mut Connection) {
        let commits = Arc::clone(&self.commits);
        connection
            .commit_hook(Some(move || {
                commits.fetch_add(1, Ordering::SeqCst);
                false
            }))
            .unwrap();
        let steps = Arc::clone(&self.steps);
        connection
            .progress_handler(
                1,
                Some(move || {
                    steps.fetch_add(1, Ordering::SeqCst);
                    false
                }),
            )
            .unwrap();
        let log = Arc::clone(self);
        let events = TraceEventCodes::SQLITE_TRACE_STMT | TraceEventCodes::SQLITE_TRACE_PROFILE;
        connection
            .trace_v2(
                events,
                Some(move |event: TraceEvent<'_>| match event {
                    TraceEvent::Stmt(statement, _) => {
                        log.statements.lock().unwrap().push(statement.sql().into());
                    }
                    TraceEvent::Profile(statement, _) => {
                        let prepared = statement.get_status(StatementStatus::RePrepare);
                        log.prepared_again
                            .fetch_add(u64::try_from(prepared).unwrap(), Ordering::SeqCst);
                    }
                    _ => {}
                }),
            )
            .unwrap();
    }

    pub(crate) fn clear(&self) {
        self.statements.lock().unwrap().clear();
        self.commits.store(0, Ordering::SeqCst);
        self.steps.store(0, Ordering::SeqCst);
    }

    /// All statements but those that begin and end transactions.
    pub(crate) fn statements(&self) -> Vec<String> {
        let frame = ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"];
        let mut statements = self.statements.lock().unwrap().clone();
        statements.retain(|sql| !frame.iter().any(|word| sql.starts_with(word)));
        statements
    }

    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    /// How often SQLite made a new plan for a statement it knew.
    pub(crate) fn prepared_again(&self) -> u64 {
        self.prepared_again.load(Ordering::SeqCst)
    }

    /// The steps of SQLite's virtual machine.
    pub(crate) fn steps(&self) -> u64 {
        self.steps.load(Ordering::SeqCst)
    }
}

pub(crate) fn id(number: u64) -> [u8; 32] {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id[24..].copy_from_slice(&number.to_be_bytes());
    id
}

/// A message of 100 bytes to a service of a client.
pub(crate) fn to_client(number: u64, client: ClientId, service: &str) -> Message {
    Message {
        message_id: id(number).to_vec().into(),
        source: Some(Address {
            client_id: Vec::new().into(),
            service_name: "server-side".into(),
        }),
        source_message_id: vec![5; 16].into(),
        destination: Some(Address {
            client_id: client.to_bytes(),
            service_name: service.into(),
        }),
        message_type: "type".into(),
        creation_time: Some(Timestamp {
            seconds: 1_700_000_000,
            nanos: 123_456_789,
        }),
        data: Some(Any {
            type_url: "type.googleapis.com/example".into(),
            value: vec![9; 100].into(),
        }),
        ..Message::default()
    }
}

/// A message of a client that the server has processed.
pub(crate) fn processed(number: u64) -> Message {
    let mut message = to_client(number, CLIENT, "service");
    message.source = message.destination.replace(Address {
        client_id: Vec::new().into(),
        service_name: "server-side".into(),
    });
    message.data = None;
    message.result = Some(success());
    message
}

pub(crate) fn success() -> MessageResult {
    MessageResult {
        processed_time: Some(Timestamp {
            seconds: 1_700_000_001,
            nanos: 5,
        }),
        ..MessageResult::default()
    }
}

pub(crate) fn contact() -> ContactData {
    ContactData {
        client_id: CLIENT,
        nonce_sent: u64::MAX,
        nonce_received: 3,
        addr: "192.0.2.1:1234".into(),
        client_clock: Some(Timestamp {
            seconds: 100,
            nanos: 0,
        }),
        streaming_to: None,
        labels: Vec::new(),
    }
}
