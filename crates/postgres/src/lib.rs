//! The Fleetspeak datastore on PostgreSQL.
//!
//! [`PostgresStore`] keeps everything a server knows in a database of its own.
//! Any number of servers may use one database at the same time. The layout and
//! the statements keep to what distributed engines with PostgreSQL's protocol
//! understand, too; `docs/operations.md` says which engines are tested.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use fleethold_postgres::{PostgresOptions, PostgresStore};
//! use fleethold_store::{ClientData, ClientId, ClientStore, Random, Store, SystemClock};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = PostgresOptions::from_url("postgres://fleet@localhost/fleet")?;
//! let random = Arc::new(Random::from_os());
//! let clock = Arc::new(SystemClock::new(Arc::clone(&random)));
//! let store = PostgresStore::open(options, clock, random).await?;
//! let id = ClientId::new([1; 8]);
//! store.add_client(id, &ClientData::default()).await?;
//! store.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! * A success is committed, as durably as the database commits.
//! * All calls are correct at READ COMMITTED, REPEATABLE READ and SERIALIZABLE;
//!   a transaction that loses a conflict is repeated as a whole.
//! * A call whose connection breaks at COMMIT is repeated, too: it ends what the
//!   server still runs for that connection, finds what it did, and does it once.
//!   Where it cannot end that (behind a pooler, without the right, on another
//!   node) a claim may come too early to find what it has claimed: those messages
//!   come again when they are due. Only [`cleanup_allocation`] without an allocation
//!   cannot, and says that its outcome is unknown.
//! * When the database comes back after an outage, calls work without a restart.
//!
//! [`cleanup_allocation`]: fleethold_store::BroadcastStore::cleanup_allocation
//!
//! # Limits
//!
//! * Methods are called within a tokio runtime.
//! * A call ends after [`PostgresOptions::call_limit`], whatever the database does.

mod allocations;
mod backend;
mod broadcasts;
mod claims;
mod clients;
mod contacts;
mod enrolments;
mod error;
mod files;
mod incoming;
mod maintenance;
mod messages;
mod migrate;
mod notify;
mod options;
mod pool;
mod query;
mod rows;
mod tls;
mod together;
mod transactions;
mod usage;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use fleethold_store::clock::epoch_micros;
use fleethold_store::dropped::Dropped;
use fleethold_store::{
    ClientId, Clock, Error, ProcessorSlot, Random, Result, Store, StoreStats, WaitCounter,
};
use futures::stream::{self, BoxStream, StreamExt};
use tokio_util::task::TaskTracker;

pub use error::OpenError;
pub use options::{Isolation, OnCommit, PostgresOptions, UrlError};

use notify::Hints;
use pool::Connections;
use together::Together;

/// A store in a PostgreSQL database; clones share it.
#[derive(Clone, Debug)]
pub struct PostgresStore {
    // The processor's loop holds only this part, and weakly.
    shared: Arc<Shared>,
    processor: Arc<ProcessorSlot>,
}

impl PostgresStore {
    /// Connects to the database and brings its schema to the current version;
    /// an empty database gets one.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing in the database was changed then, except that
    /// a migration which breaks off in the middle goes on at the next start.
    pub async fn open(
        options: PostgresOptions,
        clock: Arc<dyn Clock>,
        random: Arc<Random>,
    ) -> Result<Self, OpenError> {
        let connections = Connections::new(&options)?;
        migrate::migrate(&connections, &random).await?;
        let hints = options.listen.then(|| Hints::start(&connections, &random));
        Ok(Self {
            processor: Arc::new(ProcessorSlot::new(options.processor)),
            shared: Arc::new(Shared {
                clock,
                random,
                connections,
                dropped: Arc::default(),
                hints,
                together: Together::new(),
                options,
                running: TaskTracker::new(),
                closed: AtomicBool::new(false),
                reads: WaitCounter::default(),
                writes: WaitCounter::default(),
            }),
        })
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn close(&self) -> Result<()> {
        self.processor.stop().await;
        self.shared.closed.store(true, Ordering::Release);
        self.shared.running.close();
        self.shared.running.wait().await;
        if let Some(hints) = &self.shared.hints {
            hints.stop();
        }
        self.shared.connections.close();
        Ok(())
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn stats(&self) -> Result<StoreStats> {
        let now_micros = epoch_micros(self.shared.clock.now());
        let (overdue, oldest_micros) = self.shared.overdue_for_server(now_micros).await?;
        let oldest_micros = oldest_micros.map_or(0, |oldest| now_micros.saturating_sub(oldest));
        Ok(StoreStats {
            overdue_server_messages: Some(overdue),
            oldest_overdue_server_message: u64::try_from(oldest_micros)
                .ok()
                .map(Duration::from_micros),
            reads: Some(self.shared.reads.waits()),
            writes: Some(self.shared.writes.waits()),
        })
    }

    fn wakeups(&self) -> BoxStream<'static, ClientId> {
        match &self.shared.hints {
            Some(hints) => hints.subscribe(),
            None => stream::empty().boxed(),
        }
    }
}

/// How long the transaction of a dropped call may take to end by itself.
const SOON: Duration = Duration::from_secs(1);

/// All but the processor.
#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    random: Arc<Random>,
    connections: Connections,
    /// Transactions that dropped calls have left.
    dropped: Arc<Dropped>,
    hints: Option<Hints>,
    together: Together,
    options: PostgresOptions,
    /// Calls that have not returned.
    running: TaskTracker,
    closed: AtomicBool,
    reads: WaitCounter,
    writes: WaitCounter,
}

impl Shared {
    fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::closed(operation));
        }
        Ok(())
    }

    /// Draws what names one call in the rows it writes.
    fn token(&self) -> i64 {
        self.random.next_u64().cast_signed()
    }
}
