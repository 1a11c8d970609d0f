//! The one writer: a thread that owns the only connection that writes, and
//! commits the work of many callers at once.
//!
//! A sync of the disk costs the same for one job and for a hundred. So jobs
//! queue while a commit runs, and the next transaction takes all that wait.
//! Three rules keep that correct:
//!
//! * A caller gets its answer after `COMMIT`, also one whose job has failed:
//!   perhaps because of what a job before it has done and nobody can see yet.
//! * Each job but the first of a transaction runs in a savepoint, so that one
//!   that fails is undone alone. If the first fails, there is nothing else to keep.
//! * SQLite undoes the *whole* transaction after some errors, such as a full
//!   disk. After every error the writer asks whether it is still in one; if
//!   not, all jobs of the transaction have failed.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use fleethold_store::{
    ClientId, Clock, Error, ErrorKind, Outcome, Random, Result, Wait, WaitCounter, Waits,
};
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::connection::Lock;
use crate::error::{Failure, OpenError, Worked, store_error};
use crate::ids::RecentIds;
use crate::quiet::Quiet;

/// How many jobs may wait. Further callers wait for a place.
const QUEUE: usize = 1_024;

/// How many jobs one transaction takes: many enough to make the sync cheap,
/// few enough to bound the wait of the first.
const BATCH: usize = 256;

/// After a job that brings the payloads of answers to this many bytes, the
/// transaction takes no further one: all answers wait for its commit in memory.
const BATCH_BYTES: usize = 32 * 1024 * 1024;

/// Sends jobs to the writing thread; the thread ends when this is dropped.
pub(crate) struct Writer {
    jobs: Mutex<Option<mpsc::Sender<Box<dyn Job>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    waits: Arc<WaitCounter>,
}

impl Writer {
    /// Starts the thread. It keeps `lock` until its connection is closed.
    pub(crate) fn start(
        path: &Path,
        connection: Connection,
        context: Context,
        lock: Lock,
    ) -> Result<Self, OpenError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new()
            .name("fleethold-sqlite-writer".into())
            .spawn(move || {
                let _lock = lock;
                run(connection, &context, queue);
            })
            .map_err(|source| OpenError::Io {
                action: "start the writing thread for",
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            waits: Arc::default(),
        })
    }

    /// Runs `work` in one of the next transactions and returns after that is on disk.
    ///
    /// If the caller goes away, the work is done or not done as a whole.
    pub(crate) async fn run<T, F>(&self, operation: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Worked<T> + Send + 'static,
    {
        self.send(operation, false, work).await
    }

    /// Does the same for work that may change any number of rows: alone in its
    /// transaction, it needs no savepoint, which would keep in memory what every
    /// changed page was before.
    pub(crate) async fn run_large<T, F>(&self, operation: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Worked<T> + Send + 'static,
    {
        self.send(operation, true, work).await
    }

    async fn send<T, F>(&self, operation: &'static str, large: bool, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Worked<T> + Send + 'static,
    {
        let jobs = lock(&self.jobs)
            .clone()
            .ok_or_else(|| Error::closed(operation))?;
        let (reply, answer) = oneshot::channel();
        let job = Task {
            wait: Some(Wait::begin(Arc::clone(&self.waits))),
            operation,
            large,
            work: Some(work),
            result: None,
            reply,
        };
        jobs.send(Box::new(job))
            .await
            .map_err(|_| Error::closed(operation))?;
        drop(jobs);
        answer
            .await
            .unwrap_or_else(|_| Err(Error::closed(operation)))
    }

    /// Returns how long jobs have waited for their transaction.
    pub(crate) fn waits(&self) -> Waits {
        self.waits.waits()
    }

    /// Waits until all jobs are done and the database is closed.
    pub(crate) fn finish(&self) {
        drop(lock(&self.jobs).take());
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            // A job may hold the last reference to the store.
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the writing thread panicked");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish();
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What jobs need besides the connection.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<Random>,
    pub(crate) ids: Arc<RecentIds>,
    pub(crate) quiet: Arc<Quiet>,
}

/// A transaction that writes.
pub(crate) struct Tx<'a> {
    connection: &'a Connection,
    context: &'a Context,
    /// Bytes of payloads in the answers of its jobs.
    held: Cell<usize>,
    /// Who gets messages.
    disturbed: RefCell<Vec<ClientId>>,
}

impl Tx<'_> {
    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.context.clock
    }

    pub(crate) fn random(&self) -> &Random {
        &self.context.random
    }

    pub(crate) fn ids(&self) -> &RecentIds {
        &self.context.ids
    }

    /// Notes that something is pending for a client as soon as this is committed.
    pub(crate) fn disturb(&self, client: ClientId) {
        let mut disturbed = self.disturbed.borrow_mut();
        if disturbed.last() != Some(&client) {
            disturbed.push(client);
        }
    }

    /// Notes that an answer holds payloads of so many bytes.
    pub(crate) fn hold(&self, bytes: usize) {
        self.held.set(self.held.get().saturating_add(bytes));
    }
}

impl Deref for Tx<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

/// Work of one caller.
trait Job: Send {
    /// Whether nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;

    fn is_large(&self) -> bool;

    /// Does the work; false if it must be undone.
    fn run(&mut self, tx: &Tx<'_>) -> bool;

    /// Answers the caller: with the result of the work, or with what happened
    /// to its transaction.
    fn finish(self: Box<Self>, transaction: Result<(), &Lost>);
}

/// A transaction that was not, or perhaps not, committed.
struct Lost {
    outcome: Outcome,
    cause: Arc<rusqlite::Error>,
}

impl Lost {
    fn rolled_back(cause: rusqlite::Error) -> Self {
        Self {
            outcome: Outcome::NotApplied,
            cause: Arc::new(cause),
        }
    }
}

struct Task<T, F> {
    /// Ends when the work begins.
    wait: Option<Wait<Arc<WaitCounter>>>,
    operation: &'static str,
    large: bool,
    work: Option<F>,
    result: Option<Worked<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<T, F> Job for Task<T, F>
where
    T: Send,
    F: FnOnce(&Tx<'_>) -> Worked<T> + Send,
{
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn is_large(&self) -> bool {
        self.large
    }

    fn run(&mut self, tx: &Tx<'_>) -> bool {
        let Some(work) = self.work.take() else {
            return false;
        };
        self.wait.take().into_iter().for_each(Wait::end);
        let result = catch_unwind(AssertUnwindSafe(|| work(tx)))
            .unwrap_or_else(|panic| Err(panicked(self.operation, &*panic).into()));
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn finish(self: Box<Self>, transaction: Result<(), &Lost>) {
        let operation = self.operation;
        let answer = match (transaction, self.result) {
            // An error of SQLite says more than that of its transaction; the
            // store's own may rest on what is lost.
            (Ok(()), Some(Err(failure))) | (Err(_), Some(Err(failure @ Failure::Database(_)))) => {
                Err(failure.rolled_back(operation))
            }
            (Err(lost), _) => Err(store_error(
                operation,
                lost.outcome,
                Arc::clone(&lost.cause),
            )),
            (Ok(()), Some(Ok(value))) => Ok(value),
            (Ok(()), None) => Err(Error::closed(operation)),
        };
        // The caller may have gone.
        drop(self.reply.send(answer));
    }
}

pub(crate) fn panicked(operation: &'static str, panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
        .to_owned();
    tracing::error!(operation, panic = text, "work on the database panicked");
    Error::new(ErrorKind::Internal, operation, "the work panicked")
        .with_outcome(Outcome::NotApplied)
        .with_source(text)
}

fn run(connection: Connection, context: &Context, mut queue: mpsc::Receiver<Box<dyn Job>>) {
    let mut large = None;
    while let Some(job) = large.take().or_else(|| queue.blocking_recv()) {
        large = run_batch(&connection, context, job, &mut queue);
    }
    if let Err(error) = connection.execute_batch(TRUNCATE_LOG) {
        tracing::warn!(%error, "cannot empty the log; the next start reads it");
    }
    if let Err((_, error)) = connection.close() {
        tracing::warn!(%error, "cannot close the database");
    }
}

const TRUNCATE_LOG: &str = "\
-- close
PRAGMA wal_checkpoint(TRUNCATE)";

/// Runs `first` and all jobs that wait in one transaction; returns a large job
/// that has to begin the next one.
fn run_batch(
    connection: &Connection,
    context: &Context,
    first: Box<dyn Job>,
    queue: &mut mpsc::Receiver<Box<dyn Job>>,
) -> Option<Box<dyn Job>> {
    let ids = &*context.ids;
    let tx = Tx {
        connection,
        context,
        held: Cell::new(0),
        disturbed: RefCell::default(),
    };
    let mut done: Vec<Box<dyn Job>> = Vec::new();
    let mut undone: Vec<Box<dyn Job>> = Vec::new();
    let mut next = Some(first);
    let mut large = None;
    while let Some(mut job) = next.take() {
        if !job.is_abandoned() {
            let begin = if done.is_empty() { BEGIN } else { SAVEPOINT };
            if let Err(error) = execute(connection, begin) {
                undone.push(job);
                done.append(&mut undone);
                abort(&tx, done, &Lost::rolled_back(error));
                return None;
            }
            let added = ids.added();
            let keep = job.run(&tx);
            let ended = match (keep, done.is_empty()) {
                _ if connection.is_autocommit() => Err(rusqlite::Error::SqliteFailure(
                    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT),
                    Some("SQLite undid the transaction that several calls shared".into()),
                )),
                (true, true) => Ok(()),
                (true, false) => execute(connection, RELEASE),
                (false, true) => execute(connection, ROLLBACK),
                (false, false) => {
                    execute(connection, UNDO).and_then(|()| execute(connection, RELEASE))
                }
            };
            if keep {
                done.push(job);
            } else {
                ids.roll_back_to(added);
                undone.push(job);
            }
            if let Err(error) = ended {
                done.append(&mut undone);
                abort(&tx, done, &Lost::rolled_back(error));
                return None;
            }
            if done.is_empty() {
                // What it has seen is committed.
                undone.drain(..).for_each(|job| job.finish(Ok(())));
            }
        }
        let is_alone = done.first().is_some_and(|job| job.is_large());
        if done.len() + undone.len() < BATCH && tx.held.get() < BATCH_BYTES && !is_alone {
            next = queue.try_recv().ok();
        }
        if !done.is_empty() && next.as_ref().is_some_and(|job| job.is_large()) {
            large = next.take();
        }
    }
    if !done.is_empty() {
        done.append(&mut undone);
        commit(&tx, done);
    }
    large
}

fn commit(tx: &Tx<'_>, done: Vec<Box<dyn Job>>) {
    if let Err(error) = tx.ids().write_slice(tx) {
        abort(tx, done, &Lost::rolled_back(error));
        return;
    }
    if let Err(error) = execute(tx, COMMIT) {
        // The log may hold all of the commit if only its sync has failed.
        let lost = Lost {
            outcome: Outcome::Unknown,
            cause: Arc::new(error),
        };
        abort(tx, done, &lost);
        return;
    }
    tx.ids().committed();
    tx.context.quiet.disturb(&tx.disturbed.take());
    for job in done {
        job.finish(Ok(()));
    }
}

/// Leaves the transaction and answers its jobs.
fn abort(tx: &Tx<'_>, done: Vec<Box<dyn Job>>, lost: &Lost) {
    if !tx.is_autocommit()
        && let Err(error) = execute(tx, ROLLBACK)
    {
        // The next BEGIN fails then, and tries this again.
        tracing::error!(%error, "cannot roll back a transaction");
    }
    tx.ids().roll_back_to(0);
    // The commit may be on disk after all.
    tx.context.quiet.disturb(&tx.disturbed.take());
    tracing::warn!(jobs = done.len(), error = %lost.cause, "lost a transaction");
    for job in done {
        job.finish(Err(lost));
    }
}

fn execute(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute(()).map(drop)
}

// Not IMMEDIATE: a claim that finds nothing must not commit. Nobody else
// writes, so turning into a writer later cannot fail.
const BEGIN: &str = "BEGIN";
const COMMIT: &str = "COMMIT";
const ROLLBACK: &str = "ROLLBACK";
const SAVEPOINT: &str = "SAVEPOINT job";
const RELEASE: &str = "RELEASE job";
const UNDO: &str = "ROLLBACK TO job";

#[cfg(test)]
mod tests;
