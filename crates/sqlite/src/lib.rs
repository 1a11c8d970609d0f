//! The embedded Fleetspeak datastore on SQLite.
//!
//! [`SqliteStore`] keeps everything a server knows in one file. Use it for one
//! server process on a local disk; it refuses a database that another process
//! has open, and SQLite's log does not work on network file systems.
//!
//! ```
//! use std::sync::Arc;
//!
//! use fleethold_sqlite::{SqliteOptions, SqliteStore};
//! use fleethold_store::{ClientData, ClientId, ClientStore, Random, Store, SystemClock};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! let path = directory.path().join("fleet.db");
//! let random = Arc::new(Random::from_os());
//! let clock = Arc::new(SystemClock::new(Arc::clone(&random)));
//! let store = SqliteStore::open(&path, SqliteOptions::default(), clock, random)?;
//! let id = ClientId::new([1; 8]);
//! store.add_client(id, &ClientData::default()).await?;
//! assert!(!store.get_client_data(id).await?.blacklisted);
//! store.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! * A success is on disk: `synchronous = FULL`, and the answer comes after the
//!   commit.
//! * All writes go through one thread, which commits the work of many callers
//!   at once (group commit). A call that fails is undone alone.
//! * Reads see one state of the database and neither wait for writes nor delay
//!   them.
//! * On a full or unwritable disk, calls that write fail with
//!   [`Transient`](fleethold_store::ErrorKind::Transient); once there is space
//!   again, they work without a restart.
//!
//! # Limits
//!
//! * Methods are called within a tokio runtime.
//! * The log beside the file grows to some 16 MiB under load, and beyond that
//!   only while a single transaction or a long read needs it.

mod broadcasts;
mod claims;
mod clients;
mod connection;
mod contacts;
mod error;
mod files;
mod ids;
mod maintenance;
mod messages;
mod migrate;
mod quiet;
mod readers;
mod rows;
mod usage;
mod writer;

use std::fmt;
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use fleethold_store::clock::epoch_micros;
use fleethold_store::{
    Clock, Error, ErrorKind, ProcessorOptions, ProcessorSlot, Random, Result, Store, StoreStats,
};

pub use error::OpenError;

use connection::Lock;
use error::Worked;
use ids::RecentIds;
use quiet::Quiet;
use readers::Readers;
use writer::{Context, Tx, Writer};

/// Called with every new connection, after its settings and before its first use.
pub type OnConnect = Arc<dyn Fn(&mut rusqlite::Connection) + Send + Sync>;

/// How a database is opened.
#[derive(Clone)]
pub struct SqliteOptions {
    /// How many reads run at the same time; 4.
    pub readers: NonZeroU16,
    /// How often and how much the message processor gets.
    pub processor: ProcessorOptions,
    /// Installs hooks, for instance to count statements and commits.
    pub on_connect: Option<OnConnect>,
    /// The name of the file system, in SQLite's words the VFS, that all
    /// connections use; the platform's.
    pub vfs: Option<String>,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            readers: NonZeroU16::new(4).expect("not zero"),
            processor: ProcessorOptions::default(),
            on_connect: None,
            vfs: None,
        }
    }
}

impl fmt::Debug for SqliteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteOptions")
            .field("readers", &self.readers)
            .field("processor", &self.processor)
            .field("on_connect", &self.on_connect.is_some())
            .field("vfs", &self.vfs)
            .finish()
    }
}

/// A store in a SQLite database; clones share it.
///
/// [`close`](Store::close) it to be sure that everything is finished. Dropping
/// the last clone also finishes the work that was handed over, and blocks for it.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    // The processor's loop holds only this part, and weakly.
    shared: Arc<Shared>,
    processor: Arc<ProcessorSlot>,
}

impl SqliteStore {
    /// Opens the database at `path`; makes it if the file is missing or empty.
    ///
    /// A database of an older version is migrated. The file's directory also
    /// gets `-wal`, `-shm` and `.lock` files beside it. Blocks for the time
    /// that takes, usually below a second.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing in the database was changed then.
    pub fn open(
        path: impl AsRef<Path>,
        options: SqliteOptions,
        clock: Arc<dyn Clock>,
        random: Arc<Random>,
    ) -> Result<Self, OpenError> {
        // An absolute path also keeps SQLite's special names away.
        let path = std::path::absolute(&path).map_err(|source| OpenError::Io {
            action: "find",
            path: path.as_ref().to_owned(),
            source,
        })?;
        if let Some(directory) = path.parent().filter(|directory| !directory.is_dir()) {
            return Err(OpenError::NoDirectory {
                directory: directory.to_owned(),
            });
        }
        migrate::check_file(&path)?;
        let lock = Lock::take(&path)?;
        let connection = connection::open_writer(&path, &options)?;
        let ids = RecentIds::load(&connection).map_err(|source| OpenError::Database {
            path: path.clone(),
            source,
        })?;
        let readers = Readers::open(&path, &options)?;
        let context = Context {
            clock,
            random,
            ids: Arc::new(ids),
            quiet: Arc::new(Quiet::new()),
        };
        let writer = Writer::start(&path, connection, context.clone(), lock)?;
        Ok(Self {
            shared: Arc::new(Shared {
                context,
                readers,
                writer: Arc::new(writer),
                closed: AtomicBool::new(false),
                closing: tokio::sync::Mutex::default(),
            }),
            processor: Arc::new(ProcessorSlot::new(options.processor)),
        })
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn close(&self) -> Result<()> {
        self.processor.stop().await;
        self.shared.closed.store(true, Ordering::Release);
        // A second caller waits for the first.
        let _closing = self.shared.closing.lock().await;
        self.shared.readers.close().await;
        let writer = Arc::clone(&self.shared.writer);
        tokio::task::spawn_blocking(move || writer.finish())
            .await
            .map_err(|error| {
                Error::new(ErrorKind::Internal, "close", "the writer did not finish")
                    .with_source(error)
            })
    }

    async fn stats(&self) -> Result<StoreStats> {
        let now_micros = epoch_micros(self.shared.context.clock.now());
        let (overdue, oldest_micros) = self
            .shared
            .read("stats", move |connection| {
                claims::overdue_for_server(connection, now_micros)
            })
            .await?;
        let oldest_micros = oldest_micros.map_or(0, |oldest| now_micros.saturating_sub(oldest));
        Ok(StoreStats {
            overdue_server_messages: Some(overdue),
            oldest_overdue_server_message: u64::try_from(oldest_micros)
                .ok()
                .map(Duration::from_micros),
            reads: Some(self.shared.readers.waits()),
            writes: Some(self.shared.writer.waits()),
        })
    }
}

/// All but the processor.
#[derive(Debug)]
struct Shared {
    context: Context,
    readers: Readers,
    writer: Arc<Writer>,
    closed: AtomicBool,
    closing: tokio::sync::Mutex<()>,
}

impl Shared {
    /// Runs work in one of the next transactions that write.
    async fn write<T, F>(&self, operation: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Worked<T> + Send + 'static,
    {
        self.check_open(operation)?;
        self.writer.run(operation, work).await
    }

    /// Runs a read in a transaction of its own.
    async fn read<T, F>(&self, operation: &'static str, read: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> Worked<T> + Send + 'static,
    {
        self.check_open(operation)?;
        self.readers.run(operation, read).await
    }

    fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::closed(operation));
        }
        Ok(())
    }
}
