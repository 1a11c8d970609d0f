//! Stores to measure, and the clock that makes their messages due.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{
    ClientData, ClientId, ClientStore, Clock, ContactData, ContactId, MessageStore, Random, Store,
    SystemClock, client_retry_time, server_retry_time,
};
use futures::future::try_join_all;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use crate::embedded::Bench;
use crate::embedded::disk::copy;
use crate::embedded::samples::{CLIENT, Kind, Samples};

/// The clock of the machine, but ahead of it.
///
/// Time passes as it does, so that due times differ as they do in a server.
#[derive(Debug)]
pub(crate) struct AheadClock {
    system: SystemClock,
    random: Arc<Random>,
    ahead_seconds: AtomicU64,
}

impl AheadClock {
    pub(crate) fn new(random: &Arc<Random>) -> Self {
        Self {
            system: SystemClock::new(Arc::clone(random)),
            random: Arc::clone(random),
            ahead_seconds: AtomicU64::new(0),
        }
    }

    pub(crate) fn ahead_seconds(&self) -> u64 {
        self.ahead_seconds.load(Ordering::Relaxed)
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.ahead_seconds
            .fetch_add(by.as_secs(), Ordering::Relaxed);
    }
}

impl Clock for AheadClock {
    fn now(&self) -> SystemTime {
        self.system.now() + Duration::from_secs(self.ahead_seconds())
    }

    fn client_retry_time(&self) -> SystemTime {
        client_retry_time(self.now())
    }

    fn server_retry_time(&self, retry_count: u32) -> SystemTime {
        server_retry_time(self.now(), retry_count, self.random.unit())
    }
}

/// More than the longest time to the next retry of a message for a client.
pub(crate) const RETRY: Duration = Duration::from_secs(16 * 60);

/// A store in a directory of its own, with [`CLIENT`] and a contact of it.
pub(crate) struct Bed {
    directory: TempDir,
    pub(crate) store: SqliteStore,
    pub(crate) clock: Arc<AheadClock>,
    pub(crate) random: Arc<Random>,
    pub(crate) contact: ContactId,
}

impl Bed {
    /// Makes a store without messages.
    pub(crate) async fn new(bench: &Bench<'_>) -> Result<Self> {
        let directory = tempfile::tempdir_in(bench.directory)?;
        let clock = Arc::new(AheadClock::new(&bench.random));
        let store = open(&database(&directory), &clock, &bench.random)?;
        store.add_client(CLIENT, &ClientData::default()).await?;
        let contact = store.record_client_contact(&contact(CLIENT)).await?;
        Ok(Self {
            directory,
            store,
            clock,
            random: Arc::clone(&bench.random),
            contact,
        })
    }

    /// Copies a store.
    pub(crate) async fn of(bench: &mut Bench<'_>) -> Result<Self> {
        let directory = tempfile::tempdir_in(bench.directory)?;
        let random = Arc::clone(&bench.random);
        let template = bench.template().await?;
        copy(&template.path, &database(&directory))?;
        let contact = template.contact.clone();
        let clock = Arc::new(AheadClock::new(&random));
        let store = open(&database(&directory), &clock, &random)?;
        Ok(Self {
            directory,
            store,
            clock,
            random,
            contact,
        })
    }

    pub(crate) fn path(&self) -> PathBuf {
        database(&self.directory)
    }

    /// Opens a store again that was closed.
    pub(crate) fn reopen(mut self) -> Result<Self> {
        self.store = open(&self.path(), &self.clock, &self.random)?;
        Ok(self)
    }

    /// Stores messages, without taking the time.
    pub(crate) async fn fill(&self, samples: &Samples, kind: Kind, count: u32) -> Result<()> {
        const CALL: u32 = 500;
        const CALLERS: u32 = 3;
        let contact = kind.comes_with_contact().then_some(&self.contact);
        let mut left = count;
        while left > 0 {
            let calls = (0..CALLERS).map(|_| {
                let call = left.min(CALL);
                left -= call;
                let messages = samples.list(&self.random, call);
                async move { self.store.store_messages(&messages, contact).await }
            });
            let calls: Vec<_> = calls.collect();
            try_join_all(calls).await?;
        }
        Ok(())
    }

    /// Closes the store, and fails unless it has this many messages.
    pub(crate) async fn finish(self, messages: u64) -> Result<Closed> {
        self.store.close().await?;
        let path = self.path();
        let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let found: i64 =
            connection.query_row("SELECT count(*) FROM messages", (), |row| row.get(0))?;
        let found = u64::try_from(found)?;
        ensure!(
            found == messages,
            "{messages} messages were acknowledged and {found} are in the store"
        );
        Ok(Closed {
            _directory: self.directory,
            path,
        })
    }
}

/// A store that was closed; its files go with this.
pub(crate) struct Closed {
    _directory: TempDir,
    pub(crate) path: PathBuf,
}

/// The store with [`prefill`](crate::embedded::Scale::prefill) messages that others copy.
pub(crate) struct Template {
    _closed: Closed,
    path: PathBuf,
    contact: ContactId,
}

impl Template {
    pub(crate) async fn make(bench: &Bench<'_>) -> Result<Self> {
        let bed = Bed::new(bench).await?;
        let samples = Samples::new(Kind::Processed, 100);
        let prefill = bench.scale.prefill;
        bed.fill(&samples, Kind::Processed, prefill).await?;
        let contact = bed.contact.clone();
        let closed = bed.finish(prefill.into()).await?;
        Ok(Self {
            path: closed.path.clone(),
            _closed: closed,
            contact,
        })
    }
}

fn database(directory: &TempDir) -> PathBuf {
    directory.path().join("fleet.db")
}

/// Opens the store in a file.
pub(crate) fn open(
    path: &Path,
    clock: &Arc<AheadClock>,
    random: &Arc<Random>,
) -> Result<SqliteStore> {
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    SqliteStore::open(path, SqliteOptions::default(), clock, Arc::clone(random))
        .context("cannot open a store")
}

/// Makes a contact of a client.
pub(crate) fn contact(client_id: ClientId) -> ContactData {
    ContactData {
        client_id,
        nonce_sent: 0x1234_5678_9abc_def0,
        nonce_received: 0xfedc_ba98_7654_3210,
        addr: "192.0.2.1:51234".into(),
        client_clock: None,
        streaming_to: None,
        labels: Vec::new(),
    }
}
