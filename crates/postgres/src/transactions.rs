//! Transactions: begun and ended with as few round trips as possible, repeated
//! as a whole when they lose a conflict or their connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fleethold_store::dropped::{Dropped, Left};
use fleethold_store::retry::Backoff;
use fleethold_store::{Error, ErrorKind, Outcome, Result, Wait};
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_postgres::{Row, Statement};

use crate::backend::Backend;
use crate::error::{Commit, Failure, Worked, is_lost, spoils};
use crate::pool::{Connections, Object};
use crate::query::{Query, Values};
use crate::{SOON, Shared};

/// How many times [`PostgresOptions::call_limit`](crate::PostgresOptions::call_limit)
/// a call may take whose work grows with what is stored.
pub(crate) const LONG_CALL: u32 = 10;

/// Whether a transaction may run again when it may have been committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replay {
    /// Running it again changes nothing that the first run did not.
    Safe,
    /// Running it again would do it twice.
    Unsafe,
}

impl Shared {
    /// Runs a transaction until it commits; `body` may run several times.
    pub(crate) async fn write<T, F>(
        &self,
        operation: &'static str,
        body: impl Fn(Tx) -> F + Send,
    ) -> Result<T>
    where
        T: Send,
        F: Future<Output = Worked<T>> + Send,
    {
        self.together.settle().await;
        let limit = self.options.call_limit;
        self.run(operation, Kind::Write(Replay::Safe), limit, body)
            .await
    }

    /// As [`write`](Self::write), for a transaction of one or more calls that
    /// were gathered and waited already for those before them.
    pub(crate) async fn write_gathered<T, F>(
        &self,
        operation: &'static str,
        limit: Duration,
        body: impl Fn(Tx) -> F + Send,
    ) -> Result<T>
    where
        T: Send,
        F: Future<Output = Worked<T>> + Send,
    {
        self.run(operation, Kind::Write(Replay::Safe), limit, body)
            .await
    }

    /// As [`write`](Self::write), for a transaction that must not run twice.
    pub(crate) async fn write_once<T, F>(
        &self,
        operation: &'static str,
        body: impl Fn(Tx) -> F + Send,
    ) -> Result<T>
    where
        T: Send,
        F: Future<Output = Worked<T>> + Send,
    {
        self.together.settle().await;
        let limit = self.options.call_limit;
        self.run(operation, Kind::Write(Replay::Unsafe), limit, body)
            .await
    }

    /// As [`write`](Self::write), for one that may change very many rows.
    pub(crate) async fn write_many<T, F>(
        &self,
        operation: &'static str,
        body: impl Fn(Tx) -> F + Send,
    ) -> Result<T>
    where
        T: Send,
        F: Future<Output = Worked<T>> + Send,
    {
        self.together.settle().await;
        let limit = self.options.call_limit * LONG_CALL;
        self.run(operation, Kind::Write(Replay::Safe), limit, body)
            .await
    }

    /// Runs a statement that reads; it sees one state of the database.
    pub(crate) async fn read(
        &self,
        operation: &'static str,
        query: &Query,
        values: Values<'_>,
    ) -> Result<Vec<Row>> {
        let limit = self.options.call_limit;
        self.read_within(operation, limit, query, values).await
    }

    /// As [`read`](Self::read), for one that may return very many rows.
    pub(crate) async fn read_many(
        &self,
        operation: &'static str,
        query: &Query,
        values: Values<'_>,
    ) -> Result<Vec<Row>> {
        let limit = self.options.call_limit * LONG_CALL;
        self.read_within(operation, limit, query, values).await
    }

    pub(crate) async fn read_within(
        &self,
        operation: &'static str,
        limit: Duration,
        query: &Query,
        values: Values<'_>,
    ) -> Result<Vec<Row>> {
        self.run(operation, Kind::Read, limit, |tx| async move {
            tx.last(query, values).await
        })
        .await
    }

    async fn run<T, F>(
        &self,
        operation: &'static str,
        kind: Kind,
        limit: Duration,
        body: impl Fn(Tx) -> F + Send,
    ) -> Result<T>
    where
        T: Send,
        F: Future<Output = Worked<T>> + Send,
    {
        // Taken first: `close` waits for all calls that found the store open.
        let _running = self.running.token();
        self.check_open(operation)?;
        let deadline = Instant::now() + limit;
        if kind != Kind::Read {
            self.dropped.wait(SOON).await;
        }
        let mut backoff = Backoff::new(&self.random, limit);
        let mut replays = false;
        let mut lost = Vec::new();
        loop {
            let sent = Arc::new(AtomicBool::new(false));
            let attempt = self.attempt(kind, replays, &mut lost, &sent, &body);
            let failure = match timeout_at(deadline, Box::pin(attempt)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(failure)) => failure,
                Err(_) => {
                    let outcome = if replays || sent.load(Ordering::Acquire) {
                        Outcome::Unknown
                    } else {
                        Outcome::NotApplied
                    };
                    let detail = format!("the database did not answer within {limit:?}");
                    return Err(
                        Error::new(ErrorKind::Transient, operation, detail).with_outcome(outcome)
                    );
                }
            };
            let may_be_committed = failure.may_be_committed() && kind != Kind::Read;
            replays |= may_be_committed;
            let may_repeat = failure.passes() && !(replays && kind == Kind::Write(Replay::Unsafe));
            let Some(delay) = may_repeat.then(|| backoff.next_delay()).flatten() else {
                return Err(failure.into_error(operation, replays));
            };
            tracing::debug!(operation, ?failure, "a transaction is repeated");
            sleep(delay.min(deadline - Instant::now())).await;
        }
    }

    async fn attempt<T, F>(
        &self,
        kind: Kind,
        replays: bool,
        lost: &mut Vec<Backend>,
        commit_sent: &Arc<AtomicBool>,
        body: impl Fn(Tx) -> F,
    ) -> Worked<T>
    where
        F: Future<Output = Worked<T>>,
    {
        let waits = if kind == Kind::Read {
            &self.reads
        } else {
            &self.writes
        };
        let wait = Wait::begin(waits);
        let connection = self.connections.get().await.map_err(Failure::Pool)?;
        wait.end();
        let tx = Tx(Arc::new(Inner {
            connection: Some(connection),
            connections: self.connections.clone(),
            dropped: Arc::clone(&self.dropped),
            begin: (kind != Kind::Read).then(|| self.options.isolation.begin()),
            prepared: self.options.prepared,
            on_commit: self.options.on_commit.clone(),
            replays,
            begun: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            used: AtomicBool::new(!lost.is_empty()),
            commit_sent: Arc::clone(commit_sent),
        }));
        // What may be committed yet would be looked for too early.
        while let Some(backend) = lost.last() {
            backend.end(tx.0.connection()).await?;
            lost.pop();
        }
        let worked = match body(tx.clone()).await {
            Ok(value) => tx.commit().await.map(|()| value),
            Err(failure) => {
                tx.roll_back().await;
                Err(failure)
            }
        };
        if worked.as_ref().is_err_and(Failure::may_be_committed) {
            lost.extend(tx.0.connection().backend);
        }
        worked
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write(Replay),
}

/// A transaction; clones are the same one. It begins with its first statement.
///
/// Unless it has ended when the last clone is dropped, its connection is ended
/// or rolled back before it is used again: whoever drops a call half-way leaves
/// nothing behind.
#[derive(Clone)]
pub(crate) struct Tx(Arc<Inner>);

struct Inner {
    /// Present until the drop.
    connection: Option<Object>,
    connections: Connections,
    dropped: Arc<Dropped>,
    /// `None`: a statement that reads is its own transaction.
    begin: Option<&'static str>,
    prepared: bool,
    on_commit: Option<crate::OnCommit>,
    replays: bool,
    begun: AtomicBool,
    ended: AtomicBool,
    /// Whether anything was sent.
    used: AtomicBool,
    commit_sent: Arc<AtomicBool>,
}

impl Tx {
    /// Returns whether an earlier run of this transaction may have been committed.
    pub(crate) fn replays(&self) -> bool {
        self.0.replays
    }

    /// Runs a statement.
    pub(crate) async fn rows(&self, query: &Query, values: Values<'_>) -> Worked<Vec<Row>> {
        let mut replies = self.send(&[(query, values)], false).await?;
        Ok(replies.pop().unwrap_or_default())
    }

    /// Runs statements in one round trip.
    pub(crate) async fn all(&self, batch: &[(&Query, Values<'_>)]) -> Worked<Vec<Vec<Row>>> {
        self.send(batch, false).await
    }

    /// Runs the last statement and commits, in one round trip.
    pub(crate) async fn last(&self, query: &Query, values: Values<'_>) -> Worked<Vec<Row>> {
        let mut replies = self.send(&[(query, values)], true).await?;
        Ok(replies.pop().unwrap_or_default())
    }

    /// Runs the last statements and commits, in one round trip.
    pub(crate) async fn finish(&self, batch: &[(&Query, Values<'_>)]) -> Worked<Vec<Vec<Row>>> {
        self.send(batch, true).await
    }

    async fn commit(&self) -> Worked<()> {
        if self.0.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        self.send(&[], true).await.map(drop)
    }

    /// Ends a transaction whose body has refused; keeps the connection if that works.
    pub(crate) async fn roll_back(&self) {
        let inner = &*self.0;
        let clean = |connection: &Object| !connection.is_closed();
        if inner.ended.load(Ordering::Acquire) || !inner.begun.load(Ordering::Acquire) {
            return;
        }
        if clean(inner.connection()) && inner.connection().batch_execute(ROLLBACK).await.is_ok() {
            inner.ended.store(true, Ordering::Release);
        }
    }

    async fn send(&self, batch: &[(&Query, Values<'_>)], end: bool) -> Worked<Vec<Vec<Row>>> {
        let inner = &*self.0;
        let connection = inner.connection();
        let mut prepared = Vec::with_capacity(batch.len());
        for (query, _) in batch {
            prepared.push(inner.prepare(query).await?);
        }
        let mut requests: Vec<BoxFuture<'_, Result<Vec<Row>, tokio_postgres::Error>>> = Vec::new();
        let begin = inner.begin.filter(|_| !inner.begun.load(Ordering::Acquire));
        if let Some(begin) = begin {
            requests.push(
                connection
                    .batch_execute(begin)
                    .map(|done| done.map(|()| Vec::new()))
                    .boxed(),
            );
        }
        for ((query, values), statement) in batch.iter().zip(&prepared) {
            requests.push(match statement {
                Some(statement) => connection.query(statement, values).boxed(),
                None => Box::pin(async move {
                    let typed: Vec<_> = values
                        .iter()
                        .copied()
                        .zip(query.types.iter().cloned())
                        .collect();
                    connection.query_typed(query.sql, &typed).await
                }),
            });
        }
        // An injected conflict ends the transaction where a real one would: at its commit.
        let injected =
            end && inner.begin.is_some() && inner.on_commit.as_ref().is_some_and(|fails| fails());
        let commits = end && inner.begin.is_some();
        if commits {
            let last = if injected { ROLLBACK } else { COMMIT };
            requests.push(
                connection
                    .batch_execute(last)
                    .map(|done| done.map(|()| Vec::new()))
                    .boxed(),
            );
        }
        inner.used.store(true, Ordering::Release);
        inner.begun.store(inner.begin.is_some(), Ordering::Release);
        if commits {
            inner.commit_sent.store(true, Ordering::Release);
        }
        let statements = usize::from(begin.is_some())..usize::from(begin.is_some()) + batch.len();
        // All replies are waited for before any is judged: the first error is the
        // cause, those after it only say that the transaction is over.
        let replies = join_all(requests).await;
        let ended_well = replies.last().is_none_or(Result::is_ok);
        let failed = replies.iter().position(Result::is_err);
        let Some(failed) = failed else {
            if end {
                inner.ended.store(true, Ordering::Release);
            }
            if injected {
                return Err(Failure::Injected);
            }
            let rows = replies.into_iter().map(|reply| reply.unwrap_or_default());
            return Ok(rows.skip(statements.start).take(batch.len()).collect());
        };
        let count = replies.len();
        let error = replies
            .into_iter()
            .nth(failed)
            .and_then(Result::err)
            .expect("it has failed");
        // The server has answered COMMIT with a rollback.
        if (commits && ended_well || inner.begin.is_none()) && !spoils(&error) {
            inner.ended.store(true, Ordering::Release);
        }
        let at_commit = commits && failed + 1 == count;
        let committed = if commits && (is_lost(&error) || at_commit && !is_certain(&error)) {
            Commit::Perhaps
        } else {
            Commit::No
        };
        Err(Failure::Database { error, committed })
    }
}

/// Returns whether a refused COMMIT certainly left nothing behind.
fn is_certain(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|refused| {
        let code = refused.code().code();
        !code.starts_with("08") && !code.starts_with("57P") && code != "40003"
    })
}

impl Inner {
    fn connection(&self) -> &Object {
        self.connection.as_ref().expect("present until the drop")
    }

    async fn prepare(&self, query: &Query) -> Worked<Option<Statement>> {
        if !self.prepared {
            return Ok(None);
        }
        // The first use of a statement on a connection asks the server.
        self.used.store(true, Ordering::Release);
        let statement = self
            .connection()
            .prepare_typed_cached(query.sql, query.types)
            .await?;
        Ok(Some(statement))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        if !self.used.load(Ordering::Acquire) || self.ended.load(Ordering::Acquire) {
            return;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !connection.is_closed() => {
                let left = self.dropped.begin();
                runtime.spawn(end(connection, self.connections.clone(), left));
            }
            _ => drop(Object::take(connection)),
        }
    }
}

/// Ends what a dropped call left; the connection is used again only if that
/// works soon.
async fn end(connection: Object, connections: Connections, _left: Left) {
    let ended = timeout(SOON, connection.batch_execute(ROLLBACK)).await;
    if !matches!(ended, Ok(Ok(()))) {
        connections.cancel(connection.cancel_token());
        drop(Object::take(connection));
    }
}

const COMMIT: &str = "COMMIT";
const ROLLBACK: &str = "ROLLBACK";
