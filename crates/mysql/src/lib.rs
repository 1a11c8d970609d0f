//! The Fleetspeak datastore on MySQL and MariaDB, in the stock server's own tables.
//!
//! [`MysqlStore`] keeps everything a server knows in the tables that a stock
//! Fleetspeak server makes, so that both kinds of servers can use one database
//! at the same time, and either can be left. Use it for a database that exists,
//! or for several servers on one MariaDB; a single server is faster on the
//! embedded store.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use fleethold_mysql::{MysqlOptions, MysqlStore};
//! use fleethold_store::{ClientData, ClientId, ClientStore, Random, Store, SystemClock};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = "user:password@tcp(127.0.0.1:3306)/fleetspeak".parse()?;
//! let random = Arc::new(Random::from_os());
//! let clock = Arc::new(SystemClock::new(Arc::clone(&random)));
//! let store = MysqlStore::open(&source, MysqlOptions::default(), clock, random).await?;
//! store.add_client(ClientId::new([1; 8]), &ClientData::default()).await?;
//! store.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! * A success is committed: the answer comes after the server's to `COMMIT`.
//!   How durable that is, the server decides (`innodb_flush_log_at_trx_commit`).
//! * Claims are exclusive among stores of this kind; limits of broadcasts are
//!   exact among them. A stock server on the same database keeps to its own
//!   rules.
//! * A transaction that lost against another one is repeated, and one whose
//!   commit was not answered is repeated so that it counts once; where that
//!   cannot be, the error says that the outcome is unknown.
//! * Nothing of a call is left if its caller is dropped: it is done or not done.
//!
//! # Limits
//!
//! * Methods are called within a tokio runtime.
//! * Source message ids beyond 16 bytes are kept beside upstream's column and
//!   cut in it; the progress of broadcasts counts messages that this kind of
//!   store has saved.

mod adoption;
mod allocations;
mod broadcasts;
mod changes;
mod claims;
mod clients;
mod contacts;
mod counters;
mod dsn;
mod enrolments;
mod error;
mod files;
mod grouped;
mod incoming;
mod maintenance;
mod messages;
mod migrate;
mod pool;
mod probes;
mod rows;
mod saves;
mod schema;
mod sql;
mod tables;
mod transaction;
mod usage;

use std::num::NonZeroU16;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fleethold_store::clock::epoch_micros;
use fleethold_store::{Clock, ProcessorOptions, ProcessorSlot, Random, Result, Store, StoreStats};

pub use dsn::{DataSource, Isolation};
pub use migrate::{OpenError, Takeover, inspect};
pub use schema::{DatabaseState, Inspection};

use maintenance::Ahead;
use pool::Pool;
use transaction::{Context, Shared, Times};

/// How a database is opened and used.
#[derive(Clone, Debug)]
pub struct MysqlOptions {
    /// How many connections at most; 32.
    pub connections: NonZeroU16,
    /// How transactions see each other; the data source may ask for another level.
    pub isolation: Isolation,
    /// What may be added to a database that a stock server has made; nothing.
    pub takeover: Takeover,
    /// How long a connection may take; 5 s.
    pub connect_timeout: Duration,
    /// How long a call waits for a connection while all are in use; 5 s.
    pub wait_limit: Duration,
    /// How long one round trip may take; a call that has taken so long begins no
    /// further attempt; 30 s.
    pub statement_timeout: Duration,
    /// How long the delays between attempts may be together; 5 s.
    pub retry_for: Duration,
    /// How long the server waits for a lock, in whole seconds; 3 s.
    pub lock_wait: Duration,
    /// A call that writes waits so long for calls that were dropped; 50 ms.
    pub settle: Duration,
    /// How often and how much the message processor gets.
    pub processor: ProcessorOptions,
}

impl Default for MysqlOptions {
    fn default() -> Self {
        Self {
            connections: NonZeroU16::new(32).expect("not zero"),
            isolation: Isolation::default(),
            takeover: Takeover::default(),
            connect_timeout: Duration::from_secs(5),
            wait_limit: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            retry_for: Duration::from_secs(5),
            lock_wait: Duration::from_secs(3),
            settle: Duration::from_millis(50),
            processor: ProcessorOptions::default(),
        }
    }
}

/// A store in a MySQL or MariaDB database; clones share it.
#[derive(Clone, Debug)]
pub struct MysqlStore {
    // The processor's loop holds only this part, and weakly.
    shared: Arc<Shared>,
    processor: Arc<ProcessorSlot>,
    ahead: Arc<Mutex<Ahead>>,
}

impl MysqlStore {
    /// Opens a database; makes the tables if there are none.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing in the database was changed then.
    pub async fn open(
        source: &DataSource,
        options: MysqlOptions,
        clock: Arc<dyn Clock>,
        random: Arc<Random>,
    ) -> Result<Self, OpenError> {
        let (mut connection, ways) = migrate::connect(source, options.connect_timeout).await?;
        let (facts, found) =
            migrate::prepare(source, &mut connection, options.takeover, options.lock_wait).await?;
        // A server that does not hear it closes the connection itself.
        let _ = connection.disconnect().await;
        for reservation in &found.reservations {
            tracing::warn!(database = %source.place(), "{reservation}");
        }
        let setup = setup(&options, source.isolation, found.is_cluster);
        let pool = Pool::new(
            ways,
            setup,
            options.connect_timeout,
            options.wait_limit,
            options.connections.get(),
        );
        let times = Times {
            retry_for: options.retry_for,
            statement_timeout: options.statement_timeout,
            settle: options.settle,
        };
        let context = Context {
            clock,
            random,
            facts,
        };
        Ok(Self {
            shared: Arc::new(Shared::new(context, Arc::new(pool), times)),
            processor: Arc::new(ProcessorSlot::new(options.processor)),
            ahead: Arc::default(),
        })
    }

    /// Takes what an export has read ahead.
    fn take_ahead(&self) -> Ahead {
        std::mem::take(&mut *self.ahead.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn keep_ahead(&self, ahead: Ahead) {
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = ahead;
    }
}

/// What a session needs, whatever the server's configuration says.
fn setup(options: &MysqlOptions, isolation: Option<Isolation>, is_cluster: bool) -> String {
    let isolation = isolation.unwrap_or(options.isolation).sql();
    let lock_wait_seconds = options.lock_wait.as_secs().max(1);
    // Whoever reads or changes on one node what was acknowledged on another
    // must see it. The last statement fails at a node that has lost the others.
    let (cluster, ready) = if is_cluster {
        (", SESSION wsrep_sync_wait = 7", "; DO 1")
    } else {
        ("", "")
    };
    format!(
        "SET NAMES utf8mb4; \
         SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
         SESSION autocommit = 1, SESSION time_zone = '+00:00', SESSION innodb_lock_wait_timeout = {lock_wait_seconds}, \
         SESSION lock_wait_timeout = {lock_wait_seconds}{cluster}; \
         SET SESSION TRANSACTION ISOLATION LEVEL {isolation}{ready}"
    )
}

#[async_trait]
impl Store for MysqlStore {
    async fn close(&self) -> Result<()> {
        self.processor.stop().await;
        self.shared.closed.store(true, Ordering::Release);
        self.shared.pool.close().await;
        Ok(())
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn stats(&self) -> Result<StoreStats> {
        let now_micros = epoch_micros(self.shared.context.clock.now());
        let (overdue, oldest_micros) = self.shared.overdue_for_server(now_micros).await?;
        let oldest_micros = oldest_micros.map_or(0, |oldest| now_micros.saturating_sub(oldest));
        Ok(StoreStats {
            overdue_server_messages: Some(overdue),
            oldest_overdue_server_message: u64::try_from(oldest_micros)
                .ok()
                .map(Duration::from_micros),
            reads: None,
            writes: Some(self.shared.pool.waits()),
        })
    }
}
