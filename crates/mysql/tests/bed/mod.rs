//! A database of its own on the server that tests share, or on one of its own.
#![allow(dead_code, reason = "each test target uses its part")]

pub(crate) mod cluster;
pub(crate) mod load;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use fleethold_conformance::{Bed, Capabilities, Harness};
use fleethold_mysql::{DataSource, Isolation, MysqlOptions, MysqlStore, Takeover};
use fleethold_store::{ManualClock, Random, Store};
use fleethold_testdb::mariadb::{self, MariaDb};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};

/// Returns the URL, without database, of the server that tests share.
pub(crate) fn server() -> Result<&'static str, String> {
    static SERVER: OnceLock<Result<MariaDb, String>> = OnceLock::new();
    let server = SERVER.get_or_init(|| mariadb::shared().map_err(|error| format!("{error:#}")));
    server
        .as_ref()
        .map(|server| server.url.as_str())
        .map_err(Clone::clone)
}

/// A database; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Database {
    server: String,
    pub(crate) name: String,
}

impl Database {
    /// Makes an empty database on the shared server.
    pub(crate) async fn make() -> Self {
        Self::make_on(server().expect("a database server")).await
    }

    /// Makes an empty database on this server.
    pub(crate) async fn make_on(server: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let database = Self {
            server: server.to_owned(),
            name: format!("fleethold_test_{}_{number}", std::process::id()),
        };
        let mut connection = connect(&format!("{server}/")).await;
        let name = &database.name;
        // Left by a dead process with the same number.
        run(&mut connection, &format!("DROP DATABASE IF EXISTS {name}")).await;
        run(
            &mut connection,
            &format!("CREATE DATABASE {name} CHARACTER SET utf8mb4"),
        )
        .await;
        database
    }

    pub(crate) fn url(&self) -> String {
        format!("{}/{}", self.server, self.name)
    }

    pub(crate) fn source(&self) -> DataSource {
        self.source_on(&self.server)
    }

    /// Names the database on another node of the same cluster.
    pub(crate) fn source_on(&self, server: &str) -> DataSource {
        let url = format!("{server}/{}", self.name);
        url.parse().expect("a URL of a database")
    }

    /// Connects behind the store's back.
    pub(crate) async fn connect(&self) -> Conn {
        connect(&self.url()).await
    }

    pub(crate) async fn open(
        &self,
        options: MysqlOptions,
        clock: &Arc<ManualClock>,
        random: &Arc<Random>,
    ) -> MysqlStore {
        let clock = Arc::<ManualClock>::clone(clock);
        MysqlStore::open(&self.source(), options, clock, Arc::clone(random))
            .await
            .expect("the database can be opened")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        apart(move || async move {
            // A server that was stopped has taken the database with it.
            if let Ok(opts) = Opts::from_url(&format!("{server}/"))
                && let Ok(mut connection) = Conn::new(opts).await
            {
                let _ = connection.query_drop(format!("DROP DATABASE {name}")).await;
                let _ = connection.disconnect().await;
            }
        });
    }
}

pub(crate) async fn connect(url: &str) -> Conn {
    let opts = mysql_async::OptsBuilder::from_opts(Opts::from_url(url).expect("a URL"));
    Conn::new(opts.prefer_socket(false))
        .await
        .expect("a connection")
}

pub(crate) async fn run(connection: &mut Conn, sql: &str) {
    let outcome = connection.query_drop(sql).await;
    outcome.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Runs something on a thread and a runtime of its own, where it may block.
pub(crate) fn apart<T, F>(work: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    std::thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(work())
    })
    .join()
    .expect("it does not panic")
}

/// Options for tests: a dropped call, or a connection, is waited for as long as it takes.
pub(crate) fn options() -> MysqlOptions {
    MysqlOptions {
        connections: 8.try_into().expect("not zero"),
        takeover: Takeover::No,
        lock_wait: Duration::from_secs(2),
        settle: Duration::from_secs(20),
        // Other tests use the machine, too.
        wait_limit: Duration::from_secs(60),
        ..MysqlOptions::default()
    }
}

/// How the suite obtains stores of this kind.
pub(crate) struct Mysql {
    pub(crate) name: &'static str,
    pub(crate) options: MysqlOptions,
    /// The nodes of a cluster, if not the server that tests share. The first
    /// store of a case is at the first node, further ones are at the others.
    pub(crate) nodes: Vec<String>,
}

impl Mysql {
    pub(crate) fn at(name: &'static str, isolation: Isolation) -> Self {
        Self {
            name,
            options: MysqlOptions {
                isolation,
                ..options()
            },
            nodes: Vec::new(),
        }
    }
}

#[async_trait]
impl Harness for Mysql {
    fn name(&self) -> &'static str {
        self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            reopens: true,
            shares: true,
            damages: true,
            // Upstream's column has 31 bits until somebody asks for more.
            presets_contacts: self.options.takeover == Takeover::Widen,
            conflicts: true,
            counts_work: true,
            maintains: true,
            forgets: true,
        }
    }

    fn unavailable(&self) -> Option<String> {
        let is_default = self.options.isolation == Isolation::ReadCommitted;
        // Three times the cases take three times as long.
        if !is_default && std::env::var_os("FLEETHOLD_LONG").is_none() {
            return Some("other levels of isolation run with FLEETHOLD_LONG=1".to_owned());
        }
        if self.nodes.is_empty() {
            return server().err();
        }
        None
    }

    fn patience(&self) -> u32 {
        if self.nodes.is_empty() { 1 } else { 5 }
    }

    async fn open(&self, clock: Arc<ManualClock>, random: Arc<Random>) -> Bed {
        let database = Arc::new(match self.nodes.first() {
            Some(node) => Database::make_on(node).await,
            None => Database::make().await,
        });
        let options = self.options.clone();
        let store = database.open(options.clone(), &clock, &random).await;
        let again = {
            let (database, clock) = (Arc::clone(&database), Arc::clone(&clock));
            let others: Vec<_> = self.nodes.iter().skip(1).cloned().collect();
            let opened = AtomicUsize::new(0);
            let again = move || {
                let (database, clock) = (Arc::clone(&database), Arc::clone(&clock));
                let (options, random) = (options.clone(), Arc::clone(&random));
                let number = opened.fetch_add(1, Ordering::SeqCst);
                let source = match others.len() {
                    0 => database.source(),
                    nodes => database.source_on(&others[number % nodes]),
                };
                async move {
                    let store = MysqlStore::open(&source, options, clock, random).await;
                    Arc::new(store.expect("the database can be opened")) as Arc<dyn Store>
                }
            };
            Arc::new(again)
        };
        let second = Arc::clone(&again);
        let behind = {
            let url = database.url();
            move |sql: String| {
                let url = url.clone();
                apart(move || async move { run(&mut connect(&url).await, &sql).await });
            }
        };
        let (locked, counted) = (database.url(), database.url());
        let aged = behind.clone();
        let store = Arc::new(store);
        Bed::new(Arc::<MysqlStore>::clone(&store), clock)
            .with_maintenance(store)
            .with_aged_leases(move |by| aged(format!("{AGE_LEASES}{}", by.as_micros())))
            .with_guard(database)
            .with_reopen(move || again())
            .with_second(move || second())
            .with_damage({
                let behind = behind.clone();
                move |id| behind(format!("{DAMAGE}x'{id}'"))
            })
            .with_contact_preset(move |number| {
                behind(format!(
                    "ALTER TABLE client_contacts AUTO_INCREMENT = {}",
                    number + 1
                ));
            })
            .with_conflict(move || {
                let url = locked.clone();
                apart(move || async move { Conflict::begin(&url).await })
            })
            .with_work(move || {
                let url = counted.clone();
                apart(move || async move { rows_read(&url).await })
            })
    }
}

const AGE_LEASES: &str = "UPDATE fleethold_leases SET until_micros = until_micros - ";

const DAMAGE: &str = "\
UPDATE messages SET annotations = x'ff', validation_info = x'ff' WHERE message_id = ";

/// Another transaction that has locked every message.
struct Conflict {
    end: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Conflict {
    async fn begin(url: &str) -> Self {
        let (end, ended) = std::sync::mpsc::channel();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let url = url.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let mut connection = connect(&url).await;
                run(&mut connection, "START TRANSACTION").await;
                for table in ["messages", "pending_messages"] {
                    let lock = format!("SELECT message_id FROM {table} FOR UPDATE");
                    run(&mut connection, &lock).await;
                }
                begun.send(()).expect("somebody waits");
                // An error means the same.
                let _ = ended.recv();
                run(&mut connection, "ROLLBACK").await;
                let _ = connection.disconnect().await;
            });
        });
        has_begun.recv().expect("the conflict begins");
        Self {
            end: Some(end),
            thread: Some(thread),
        }
    }
}

impl Drop for Conflict {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the conflict ends");
        }
    }
}

/// Returns how many rows the server has read from a database's tables.
pub(crate) async fn rows_read(url: &str) -> u64 {
    let mut connection = connect(url).await;
    run(&mut connection, "SET GLOBAL userstat = 1").await;
    let read: Option<u64> = connection
        .query_first(
            "SELECT COALESCE(SUM(rows_read), 0) FROM information_schema.table_statistics \
             WHERE table_schema = DATABASE()",
        )
        .await
        .expect("statistics");
    let _ = connection.disconnect().await;
    read.expect("one row")
}
