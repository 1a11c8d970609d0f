//! Databases of their own on a PostgreSQL server that tests share.
#![allow(dead_code, reason = "each test target uses its part")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use fleethold_conformance::{Bed, Capabilities, Harness};
use fleethold_postgres::{Isolation, OnCommit, PostgresOptions, PostgresStore};
use fleethold_proto::fleetspeak::{Address, Message, MessageResult};
use fleethold_proto::{Any, Timestamp};
use fleethold_store::{
    ClientId, Clock, ContactData, ManualClock, MessageId, Random, Store, SystemClock,
};
use fleethold_testdb::Proxy;
use fleethold_testdb::postgres::{self, Postgres};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Begins the names of all databases made here.
const PREFIX: &str = "fleethold_test_";

/// Returns the server, or why there is none.
pub(crate) fn server() -> Result<&'static Postgres, String> {
    static SERVER: OnceLock<Result<Postgres, String>> = OnceLock::new();
    SERVER
        .get_or_init(|| postgres::shared().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(String::clone)
}

/// Runs `work` to its end on a runtime of its own, also within another one.
pub(crate) fn block<T: Send>(work: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(work)
        });
        thread.join().expect("the work does not panic")
    })
}

/// Connects to a URL, of a server that may be starting; the connection ends
/// with its client.
pub(crate) async fn connect(url: &str) -> Client {
    const ATTEMPTS: u32 = 600;
    for attempt in 0.. {
        match tokio_postgres::connect(url, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(error) => assert!(attempt < ATTEMPTS, "{error:?}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    unreachable!("the last attempt has panicked")
}

/// A database that is dropped with this.
#[derive(Debug)]
pub(crate) struct Database {
    server_url: String,
    pub(crate) name: String,
    /// Replaces the server's address in URLs, for instance by a proxy's.
    pub(crate) url: String,
}

impl Database {
    /// Makes a database with the current schema.
    pub(crate) async fn new() -> Self {
        let server = server().expect("PostgreSQL is there");
        Self::on(&server.url).await
    }

    /// Makes a database with the current schema on this server.
    pub(crate) async fn on(server_url: &str) -> Self {
        let admin = connect(&format!("{server_url}/postgres")).await;
        let template = template(&admin, server_url).await;
        Self::make(&admin, server_url, &format!("TEMPLATE {template}")).await
    }

    /// Makes an empty database with these options of `CREATE DATABASE`.
    pub(crate) async fn empty(options: &str) -> Self {
        let server = server().expect("PostgreSQL is there");
        let admin = connect(&format!("{}/postgres", server.url)).await;
        Self::make(&admin, &server.url, options).await
    }

    async fn make(admin: &Client, server_url: &str, options: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}_{number}", std::process::id());
        admin
            .batch_execute(&format!("CREATE DATABASE {name} {options}"))
            .await
            .expect("the user may create databases");
        Self {
            url: format!("{server_url}/{name}"),
            server_url: server_url.to_owned(),
            name,
        }
    }

    pub(crate) fn options(&self) -> PostgresOptions {
        let url = format!("{}?sslmode=disable&pool_size=8", self.url);
        let mut options = PostgresOptions::from_url(&url).expect("a URL");
        // Cases make hundreds of calls at once, and share the machine.
        options.wait_limit = std::time::Duration::from_secs(30);
        options.call_limit = std::time::Duration::from_secs(15);
        options
    }

    pub(crate) async fn connect(&self) -> Client {
        connect(&self.url).await
    }

    /// Opens a store with the clock and chance of the machine.
    pub(crate) async fn open(&self) -> PostgresStore {
        open(self.options()).await
    }
}

pub(crate) async fn open(options: PostgresOptions) -> PostgresStore {
    let random = Arc::new(Random::from_os());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(Arc::clone(&random)));
    PostgresStore::open(options, clock, random)
        .await
        .expect("the database can be opened")
}

impl Drop for Database {
    fn drop(&mut self) {
        let (url, name) = (self.server_url.clone(), self.name.clone());
        block(async move {
            // The server may be gone already, and the database with it.
            if let Ok((admin, connection)) =
                tokio_postgres::connect(&format!("{url}/postgres"), NoTls).await
            {
                tokio::spawn(connection);
                let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                drop(admin.batch_execute(&sql).await);
            }
        });
    }
}

/// Returns the name of a database with the current schema that nobody uses; also
/// drops what ended processes left.
async fn template(admin: &Client, server_url: &str) -> String {
    let schema = [
        include_str!("../../migrations/0001_initial.sql"),
        include_str!("../../migrations/0002_leases.sql"),
    ];
    let hash = schema
        .iter()
        .flat_map(|migration| migration.bytes())
        .fold(14_695_981_039_346_656_037_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211)
        });
    let name = format!("fleethold_template_{hash:016x}");
    admin
        .batch_execute("SELECT pg_advisory_lock(1718383460)")
        .await
        .expect("a lock");
    let sql = "SELECT datname::text FROM pg_database WHERE datname::text LIKE 'fleethold\\_%'";
    // Nothing is prepared, so that a pooler may be in between.
    let found = admin.simple_query(sql).await;
    let databases: Vec<String> = found
        .expect("the list of databases")
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect();
    for left in databases
        .iter()
        .filter_map(|database| database.strip_prefix(PREFIX))
    {
        let process = left.split('_').next().unwrap_or_default();
        if !std::path::Path::new("/proc").join(process).exists() {
            let sql = format!("DROP DATABASE IF EXISTS {PREFIX}{left} WITH (FORCE)");
            drop(admin.batch_execute(&sql).await);
        }
    }
    if !databases.contains(&name) {
        let making = format!("{name}_making");
        let sql = format!("DROP DATABASE IF EXISTS {making} WITH (FORCE)");
        admin.batch_execute(&sql).await.expect("it can be dropped");
        let sql = format!("CREATE DATABASE {making}");
        admin.batch_execute(&sql).await.expect("it can be made");
        let url = format!("{server_url}/{making}?sslmode=disable&listen=off");
        let store = open(PostgresOptions::from_url(&url).expect("a URL")).await;
        store.close().await.expect("the store can be closed");
        // Connections of the pool may still be on their way out.
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        admin
            .execute(sql, &[&making])
            .await
            .expect("they can be ended");
        for attempt in 0.. {
            let sql = format!("ALTER DATABASE {making} RENAME TO {name}");
            match admin.batch_execute(&sql).await {
                Ok(()) => break,
                Err(error) => assert!(attempt < 100, "{error:?}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    admin
        .batch_execute("SELECT pg_advisory_unlock(1718383460)")
        .await
        .expect("the lock is ours");
    name
}

/// A database behind a proxy.
pub(crate) struct Proxied {
    pub(crate) proxy: Proxy,
    pub(crate) database: Database,
}

impl Proxied {
    pub(crate) async fn new() -> Self {
        let database = Database::new().await;
        let server = SocketAddr::from(([127, 0, 0, 1], port(&database.url)));
        Self {
            proxy: Proxy::start(server).await.expect("a free port"),
            database,
        }
    }

    /// Returns options that lead through the proxy, without hints.
    pub(crate) fn options(&self) -> PostgresOptions {
        let port = format!(":{}/", port(&self.database.url));
        let through = self
            .database
            .url
            .replace(&port, &format!(":{}/", self.proxy.port()));
        let url = format!("{through}?sslmode=disable&pool_size=2&listen=off");
        PostgresOptions::from_url(&url).expect("a URL")
    }
}

fn port(url: &str) -> u16 {
    let place = url.rsplit_once('/').map_or(url, |(server, _)| server);
    let port = place
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse().ok());
    port.expect("the URL of a test server names its port")
}

pub(crate) const CLIENT: ClientId = ClientId::new([1; 8]);

pub(crate) fn id(number: u64) -> MessageId {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    MessageId::new(bytes)
}

pub(crate) fn to_client(number: u64) -> Message {
    Message {
        message_id: id(number).to_bytes(),
        source: Some(Address {
            service_name: "here".into(),
            ..Address::default()
        }),
        destination: Some(Address {
            client_id: CLIENT.to_bytes(),
            service_name: "there".into(),
        }),
        message_type: "test".into(),
        creation_time: Some(seconds(1)),
        data: Some(Any {
            type_url: "test".into(),
            value: vec![1; 100].into(),
        }),
        ..Message::default()
    }
}

/// A message from the client that was processed already.
pub(crate) fn processed(number: u64) -> Message {
    Message {
        source: to_client(number).destination,
        destination: to_client(number).source,
        result: Some(success()),
        data: None,
        ..to_client(number)
    }
}

pub(crate) fn success() -> MessageResult {
    MessageResult {
        processed_time: Some(seconds(5)),
        ..MessageResult::default()
    }
}

fn seconds(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

pub(crate) fn contact() -> ContactData {
    ContactData {
        client_id: CLIENT,
        nonce_sent: 1,
        nonce_received: 2,
        addr: "192.0.2.1".into(),
        client_clock: None,
        streaming_to: None,
        labels: Vec::new(),
    }
}

pub(crate) fn ids_of(messages: &[Message]) -> Vec<MessageId> {
    let id = |message: &Message| MessageId::try_from(&message.message_id[..]);
    messages
        .iter()
        .map(|message| id(message).expect("an id"))
        .collect()
}

/// How the suite opens stores.
#[derive(Clone)]
pub(crate) struct Kind {
    name: &'static str,
    isolation: Isolation,
    change: fn(&mut PostgresOptions),
    on_commit: Option<fn() -> OnCommit>,
}

impl Kind {
    pub(crate) fn new(name: &'static str, isolation: Isolation) -> Self {
        Self {
            name,
            isolation,
            change: |_| {},
            on_commit: None,
        }
    }

    pub(crate) fn with(mut self, change: fn(&mut PostgresOptions)) -> Self {
        self.change = change;
        self
    }

    pub(crate) fn with_commits(mut self, on_commit: fn() -> OnCommit) -> Self {
        self.on_commit = Some(on_commit);
        self
    }
}

#[async_trait]
impl Harness for Kind {
    fn name(&self) -> &'static str {
        self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            reopens: true,
            shares: true,
            damages: true,
            // Contact ids are no numbers that grow.
            presets_contacts: false,
            conflicts: true,
            // Statistics of the server come late; `plans` counts what a claim reads.
            counts_work: false,
            maintains: true,
            forgets: true,
        }
    }

    fn unavailable(&self) -> Option<String> {
        server().err()
    }

    /// Every third commit fails, or each call crosses a network several times.
    fn patience(&self) -> u32 {
        3
    }

    async fn open(&self, clock: Arc<ManualClock>, random: Arc<Random>) -> Bed {
        let database = Arc::new(Database::new().await);
        let mut options = database.options();
        options.isolation = self.isolation;
        options.on_commit = self.on_commit.map(|on_commit| on_commit());
        (self.change)(&mut options);
        let open_store = {
            let clock = Arc::clone(&clock);
            move || {
                let clock = Arc::clone(&clock);
                let store = PostgresStore::open(options.clone(), clock, Arc::clone(&random));
                async move { Arc::new(store.await.expect("the database can be opened")) }
            }
        };
        let open = {
            let open_store = open_store.clone();
            move || {
                let store = open_store();
                async move { store.await as Arc<dyn Store> }
            }
        };
        let store = open_store().await;
        let (damaged, locked) = (database.url.clone(), database.url.clone());
        let aged = database.url.clone();
        Bed::new(Arc::clone(&store) as Arc<dyn Store>, clock)
            .with_maintenance(store)
            .with_aged_leases(move |by| block(age_leases(&aged, by)))
            .with_guard(database)
            .with_reopen(open.clone())
            .with_second(open)
            .with_damage(move |id| block(damage(&damaged, id)))
            .with_conflict(move || Conflict::begin(&locked))
    }
}

async fn damage(url: &str, id: MessageId) {
    let client = connect(url).await;
    let id: &[u8] = id.as_ref();
    let damaged = client.execute(DAMAGE, &[&id]).await.expect("a statement");
    assert_eq!(damaged, 1, "the message is stored");
}

async fn age_leases(url: &str, by: std::time::Duration) {
    let client = connect(url).await;
    let micros = by.as_micros();
    let sql = format!("UPDATE leases SET until_micros = until_micros - {micros}");
    client.batch_execute(&sql).await.expect("a statement");
}

const DAMAGE: &str = "\
-- damage
UPDATE messages SET annotations = '\\xff', validation_info = '\\xff' WHERE message_id = $1";

/// Holds locks that everybody who writes needs.
struct Conflict {
    client: Option<Client>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Conflict {
    fn begin(url: &str) -> Self {
        std::thread::scope(|scope| {
            let begin = || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(1)
                    .enable_all()
                    .build()
                    .expect("a runtime");
                let client = runtime.block_on(async {
                    let client = connect(url).await;
                    client.batch_execute(LOCK).await.expect("the locks");
                    client
                });
                Self {
                    client: Some(client),
                    runtime: Some(runtime),
                }
            };
            scope.spawn(begin).join().expect("the locks")
        })
    }
}

impl Drop for Conflict {
    fn drop(&mut self) {
        let (client, runtime) = (self.client.take(), self.runtime.take());
        let end = std::thread::spawn(move || {
            if let (Some(client), Some(runtime)) = (client, runtime) {
                runtime
                    .block_on(client.batch_execute("COMMIT"))
                    .expect("the locks end");
            }
        });
        end.join().expect("the locks end");
    }
}

const LOCK: &str = "\
-- lock
BEGIN;
LOCK TABLE clients, messages, client_pending, server_pending IN EXCLUSIVE MODE";
