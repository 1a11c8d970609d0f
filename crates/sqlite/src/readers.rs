//! A pool of connections that read. In WAL mode they never wait for the
//! writer, nor the writer for them.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fleethold_store::{Error, ErrorKind, Outcome, Result, Wait, WaitCounter, Waits};
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::SqliteOptions;
use crate::connection::open_reader;
use crate::error::{OpenError, Worked};
use crate::writer::panicked;

/// Runs reads, as many at a time as there are connections.
pub(crate) struct Readers {
    count: u32,
    /// One permit for each idle connection.
    free: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
    waits: WaitCounter,
}

impl Readers {
    pub(crate) fn open(path: &Path, options: &SqliteOptions) -> Result<Self, OpenError> {
        let connections = (0..options.readers.get())
            .map(|_| open_reader(path, options))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            count: options.readers.get().into(),
            free: Arc::new(Semaphore::new(connections.len())),
            idle: Arc::new(Mutex::new(connections)),
            waits: WaitCounter::default(),
        })
    }

    /// Runs `read` in one transaction, which sees one state of the database.
    ///
    /// If the caller goes away, the read comes to its end on its own.
    pub(crate) async fn run<T, F>(&self, operation: &'static str, read: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Worked<T> + Send + 'static,
    {
        let wait = Wait::begin(&self.waits);
        let permit = Arc::clone(&self.free)
            .acquire_owned()
            .await
            .map_err(|_| Error::closed(operation))?;
        wait.end();
        let idle = Arc::clone(&self.idle);
        let task = tokio::task::spawn_blocking(move || {
            let lease = Lease::take(idle, permit);
            let connection = lease.connection.as_ref().expect("a lease has one");
            catch_unwind(AssertUnwindSafe(|| in_transaction(connection, read)))
                .unwrap_or_else(|panic| Err(panicked(operation, &*panic).into()))
                .map_err(|failure| failure.rolled_back(operation))
        });
        task.await.unwrap_or_else(|error| {
            // The runtime is shutting down.
            Err(
                Error::new(ErrorKind::Transient, operation, "the read did not run")
                    .with_outcome(Outcome::NotApplied)
                    .with_source(error),
            )
        })
    }

    /// Returns how long reads have waited for a connection.
    pub(crate) fn waits(&self) -> Waits {
        self.waits.waits()
    }

    /// Waits for running reads and closes the connections.
    pub(crate) async fn close(&self) {
        if let Ok(_all) = self.free.acquire_many(self.count).await {
            self.free.close();
            lock(&self.idle).clear();
        }
    }
}

impl fmt::Debug for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readers")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

fn in_transaction<T>(
    connection: &Connection,
    read: impl FnOnce(&Connection) -> Worked<T>,
) -> Worked<T> {
    let transaction = connection.unchecked_transaction()?;
    let value = read(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// A connection out of the pool, which it returns to whatever happens.
struct Lease {
    connection: Option<Connection>,
    idle: Arc<Mutex<Vec<Connection>>>,
    /// Last, so that it is free after the connection is back.
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    fn take(idle: Arc<Mutex<Vec<Connection>>>, permit: OwnedSemaphorePermit) -> Self {
        let connection = lock(&idle).pop();
        Self {
            connection,
            idle,
            _permit: permit,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.idle).extend(self.connection.take());
    }
}

fn lock(idle: &Mutex<Vec<Connection>>) -> MutexGuard<'_, Vec<Connection>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}
