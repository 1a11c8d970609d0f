//! What an agent's poll costs the database, counted behind the whole server.

mod agent;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use agent::{Agent, Authority, message};
use fleethold_proto::fleetspeak::ContactData;
use fleethold_proto::fleetspeak::server::ServiceConfig;
use fleethold_server::{AgentsConfig, Config, Server};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{Clock, ManualClock, Random, Store};
use rusqlite::Connection;
use rusqlite::trace::{TraceEvent, TraceEventCodes};
use tempfile::TempDir;

#[derive(Default)]
struct Log {
    statements: Mutex<Vec<String>>,
    commits: AtomicUsize,
}

struct Bed {
    log: Arc<Log>,
    agent: Agent,
    server: Server,
    store: Arc<SqliteStore>,
    _directory: TempDir,
}

impl Bed {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(1_700_000_000));
        let random = Arc::new(Random::seeded(1));
        let log = Arc::new(Log::default());
        let watcher = Arc::clone(&log);
        let options = SqliteOptions {
            on_connect: Some(Arc::new(move |connection| watcher.watch(connection))),
            ..SqliteOptions::default()
        };
        let path = directory.path().join("fleet.db");
        let store = SqliteStore::open(path, options, Arc::clone(&clock), Arc::clone(&random));
        let store = Arc::new(store.unwrap());
        let authority = Authority::new();
        let config = Config {
            agents: Some(AgentsConfig {
                listen: "127.0.0.1:0".to_owned(),
                certificates_pem: authority.certificates_pem.clone(),
                key_pem: authority.key_pem.clone(),
                ..AgentsConfig::default()
            }),
            services: vec![ServiceConfig {
                name: "sink".to_owned(),
                factory: "NOOP".to_owned(),
                ..ServiceConfig::default()
            }],
            ..Config::default()
        };
        let any_store: Arc<dyn Store> = Arc::<SqliteStore>::clone(&store);
        let server = Server::start(config, any_store, clock, random)
            .await
            .unwrap();
        // Looks for overdue messages of its own; not part of a poll.
        fleethold_store::MessageStore::stop_message_processor(&*store).await;
        Self {
            agent: Agent::new(server.agents_addr().unwrap(), &authority),
            server,
            store,
            log,
            _directory: directory,
        }
    }

    /// Returns the statements, without the frame of transactions, and the commits of a poll.
    async fn cost_of(&self, contact: &ContactData) -> (Vec<String>, usize) {
        self.log.statements().clear();
        self.log.commits.store(0, Ordering::Relaxed);
        self.agent.poll(contact).await;
        let frame = ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"];
        let mut statements = std::mem::take(&mut *self.log.statements());
        statements.retain(|sql| !frame.iter().any(|word| sql.starts_with(word)));
        (statements, self.log.commits.load(Ordering::Relaxed))
    }

    async fn stop(self) {
        self.server.stop().await;
        self.store.close().await.unwrap();
    }
}

impl Log {
    fn watch(self: &Arc<Self>, connection: &mut Connection) {
        let log = Arc::clone(self);
        let note = move |event: TraceEvent<'_>| {
            if let TraceEvent::Stmt(_, sql) = event {
                log.statements().push(sql.to_owned());
            }
        };
        connection
            .trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(note))
            .unwrap();
        let log = Arc::clone(self);
        let count = move || {
            log.commits.fetch_add(1, Ordering::Relaxed);
            false
        };
        connection.commit_hook(Some(count)).unwrap();
    }

    fn statements(&self) -> MutexGuard<'_, Vec<String>> {
        self.statements.lock().unwrap()
    }
}

#[tokio::test]
async fn idle_poll_of_a_known_client_is_two_statements_and_one_commit() {
    let bed = Bed::start().await;
    let idle = ContactData::default();
    bed.agent.poll(&idle).await;
    // Fills the client cache; nothing is pending.
    bed.agent.poll(&idle).await;
    let (statements, commits) = bed.cost_of(&idle).await;
    assert!(statements.len() <= 2, "{statements:#?}");
    assert_eq!(commits, 1);
    bed.stop().await;
}

#[tokio::test]
async fn poll_with_a_hundred_processed_messages_is_one_commit_and_one_statement_per_message() {
    let bed = Bed::start().await;
    bed.agent.poll(&ContactData::default()).await;
    let full = ContactData {
        messages: (0..100).map(|number| message("sink", number)).collect(),
        ..ContactData::default()
    };
    bed.agent.poll(&ContactData::default()).await;
    let (statements, commits) = bed.cost_of(&full).await;
    assert_eq!(commits, 1);
    let inserts = statements
        .iter()
        .filter(|sql| sql.contains("insert_message"));
    assert_eq!(inserts.count(), 100);
    assert!(statements.len() <= 103, "{statements:#?}");
    bed.stop().await;
}
