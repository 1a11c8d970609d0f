//! Connections: as many as the options say, each in use by one call.
//!
//! The driver has a pool, too. This one is ours because a call must wait for
//! its turn in the open (it is counted and ends when the store is closed), and
//! because only a connection whose transaction has ended may be used again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fleethold_store::{Wait, WaitCounter, Waits};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::{Failure, Worked};

/// A connection that was idle for longer is asked whether it still works.
const TRUSTED: Duration = Duration::from_secs(30);
/// A connection that was idle for longer is closed.
const LONGEST_IDLE: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(crate) struct Pool {
    /// The ways to the database: nodes of a cluster, or one server.
    ways: Vec<Opts>,
    /// The way that worked last; it is tried first.
    way: AtomicUsize,
    /// What every new connection runs first.
    setup: String,
    connect_timeout: Duration,
    wait_limit: Duration,
    size: u32,
    turns: Arc<Semaphore>,
    idle: Mutex<Idle>,
    waits: Arc<WaitCounter>,
}

#[derive(Debug, Default)]
struct Idle {
    connections: Vec<(Conn, Instant)>,
    /// Counts losses; connections of an older generation are not used again.
    generation: u64,
    closed: bool,
}

/// A connection in use; dropping it closes it.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Option<Conn>,
    pool: Arc<Pool>,
    generation: u64,
    _turn: OwnedSemaphorePermit,
}

impl Pool {
    /// Makes a pool of connections; `way` is the first of `ways` to try.
    pub(crate) fn new(
        (ways, way): (Vec<Opts>, usize),
        setup: String,
        connect_timeout: Duration,
        wait_limit: Duration,
        size: u16,
    ) -> Self {
        Self {
            ways,
            way: AtomicUsize::new(way),
            setup,
            connect_timeout,
            wait_limit,
            size: u32::from(size),
            turns: Arc::new(Semaphore::new(usize::from(size))),
            idle: Mutex::default(),
            waits: Arc::default(),
        }
    }

    /// Waits for a turn and returns a connection that works as far as is known.
    pub(crate) async fn lease(self: &Arc<Self>) -> Worked<Lease> {
        let wait = Wait::begin(Arc::clone(&self.waits));
        let turn = timeout(self.wait_limit, Arc::clone(&self.turns).acquire_owned())
            .await
            .map_err(|_| Failure::Busy)?
            .map_err(|_| Failure::Closed)?;
        wait.end();
        let lease = |connection, generation| Lease {
            connection: Some(connection),
            pool: Arc::clone(self),
            generation,
            _turn: turn,
        };
        let generation = self.idle().generation;
        while let Some((mut connection, since)) = self.take_idle() {
            if since.elapsed() < TRUSTED
                || matches!(
                    timeout(self.connect_timeout, connection.ping()).await,
                    Ok(Ok(()))
                )
            {
                return Ok(lease(connection, generation));
            }
        }
        let connection = self.connect().await?;
        Ok(lease(connection, generation))
    }

    /// Connects by the way that worked last, or else by the next one that works.
    async fn connect(&self) -> Worked<Conn> {
        let first = self.way.load(Ordering::Relaxed);
        let mut failure = Failure::NoConnection(None);
        for number in first..first + self.ways.len() {
            let way = number % self.ways.len();
            failure = match timeout(self.connect_timeout, self.connect_by(way)).await {
                Ok(Ok(connection)) => {
                    self.way.store(way, Ordering::Relaxed);
                    return Ok(connection);
                }
                Ok(Err(error)) => Failure::NoConnection(Some(error)),
                Err(_) => Failure::NoConnection(None),
            };
        }
        Err(failure)
    }

    async fn connect_by(&self, way: usize) -> mysql_async::Result<Conn> {
        let mut connection = Conn::new(self.ways[way].clone()).await?;
        connection.query_drop(&self.setup).await?;
        Ok(connection)
    }

    fn take_idle(&self) -> Option<(Conn, Instant)> {
        let mut idle = self.idle();
        idle.connections
            .retain(|(_, since)| since.elapsed() < LONGEST_IDLE);
        // The one used last: the others may age and be closed.
        idle.connections.pop()
    }

    /// Waits until no call has a connection, and lets no further one have any.
    pub(crate) async fn close(&self) {
        // A second call finds it closed.
        if let Ok(turns) = self.turns.acquire_many(self.size).await {
            self.turns.close();
            drop(turns);
        }
        let connections = {
            let mut idle = self.idle();
            idle.closed = true;
            std::mem::take(&mut idle.connections)
        };
        for (connection, _) in connections {
            // A server that is gone needs no goodbye.
            let _ = timeout(self.connect_timeout, connection.disconnect()).await;
        }
    }

    pub(crate) fn waits(&self) -> Waits {
        self.waits.waits()
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    pub(crate) fn connection(&mut self) -> Worked<&mut Conn> {
        self.connection.as_mut().ok_or(Failure::NoConnection(None))
    }

    /// Gives back a connection whose transaction has ended.
    pub(crate) fn give_back(mut self) {
        if let Some(connection) = self.connection.take() {
            let mut idle = self.pool.idle();
            if !idle.closed && idle.generation == self.generation {
                idle.connections.push((connection, Instant::now()));
            }
        }
    }

    /// Closes a connection that broke. Others that are idle broke with it, as
    /// far as is known: the next calls make new ones.
    pub(crate) fn lost(self) {
        drop(self.lose());
    }

    /// Does the same with a connection to a node that takes connections but
    /// does not work; the next calls try another node first.
    pub(crate) fn avoid(self) {
        let lost = self.lose();
        // Only the first of the calls that fail together.
        if lost.is_some() {
            let ways = self.pool.ways.len();
            let way = self.pool.way.load(Ordering::Relaxed);
            self.pool.way.store((way + 1) % ways, Ordering::Relaxed);
        }
    }

    /// Returns the idle connections unless a call before has taken them.
    fn lose(&self) -> Option<Vec<(Conn, Instant)>> {
        let mut idle = self.pool.idle();
        let is_first = idle.generation == self.generation;
        is_first.then(|| {
            idle.generation += 1;
            std::mem::take(&mut idle.connections)
        })
    }
}
