//! Transactions: how a call of the store runs, is tried again, and ends when
//! its caller has gone.
//!
//! Each call is a task of its own. A caller that is dropped leaves a task that
//! ends its round trip, rolls back or commits, and gives the connection back
//! clean. Results leave a transaction only after its commit was answered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fleethold_store::dropped::{Dropped, Left};
use fleethold_store::gather::Gather;
use fleethold_store::retry::Backoff;
use fleethold_store::{Clock, Error, ErrorKind, Outcome, Random, Result};
use futures::future::BoxFuture;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Params, Row};
use tokio::time::{Instant, sleep, timeout};

use crate::changes::{Asked, Changed};
use crate::claims::{self, ClientClaim, GroupClaimed};
use crate::enrolments::{Added, Enrolment};
use crate::error::{Failure, Verdict, Worked, code};
use crate::grouped::{self, Contact, Stored};
use crate::pool::{Lease, Pool};
use crate::probes::{self, Found, Look};
use crate::schema::Facts;
use crate::sql::{Batch, Framing, Packet};

/// What work in a transaction may use besides the database.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<Random>,
    pub(crate) facts: Facts,
}

/// All but the processor.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) context: Context,
    pub(crate) pool: Arc<Pool>,
    pub(crate) times: Times,
    pub(crate) closed: AtomicBool,
    /// What many callers do at once: contacts, looks for what waits for their
    /// clients, claims, and new clients.
    pub(crate) contacts: Gather<Contact, Stored>,
    pub(crate) looks: Gather<Look, Found>,
    pub(crate) claims: Gather<ClientClaim, GroupClaimed>,
    pub(crate) enrolments: Gather<Enrolment, Added>,
    pub(crate) changes: Gather<Asked, Changed>,
    /// Calls that run although their callers have gone.
    dropped: Arc<Dropped>,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// The delays between attempts, together.
    pub(crate) retry_for: Duration,
    /// One round trip.
    pub(crate) statement_timeout: Duration,
    /// A call that writes waits so long for calls whose callers have gone.
    pub(crate) settle: Duration,
}

/// Whether a transaction that may have been committed may run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replay {
    /// It changes nothing the second time, or asks [`Tx::replayed`] and sees to that.
    Safe,
    /// It would count twice.
    Unsafe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Write,
    /// Sees one state of the database and changes nothing.
    Snapshot,
}

impl Shared {
    pub(crate) fn new(context: Context, pool: Arc<Pool>, times: Times) -> Self {
        Self {
            context,
            pool,
            times,
            closed: AtomicBool::new(false),
            contacts: Gather::new(grouped::LIMITS),
            looks: Gather::new(probes::LIMITS),
            claims: Gather::new(claims::LIMITS),
            enrolments: Gather::new(grouped::LIMITS),
            changes: Gather::new(grouped::LIMITS),
            dropped: Arc::default(),
        }
    }

    pub(crate) fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::closed(operation));
        }
        Ok(())
    }

    /// Runs a transaction that writes; `work` begins anew after a conflict.
    pub(crate) async fn write<A, T, F>(
        &self,
        operation: &'static str,
        replay: Replay,
        arguments: A,
        work: F,
    ) -> Result<T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(&'c A, &'c mut Tx) -> BoxFuture<'c, Worked<T>> + Send + Sync + 'static,
    {
        self.check_open(operation)?;
        self.settle().await;
        self.call(operation, Mode::Write, replay, false, arguments, work)
            .await
    }

    /// Waits for calls that were dropped, as every call that writes does first.
    pub(crate) async fn settle(&self) {
        let limit = self.times.settle;
        tokio::join!(
            self.dropped.wait(limit),
            self.contacts.settle(limit),
            self.claims.settle(limit),
            self.enrolments.settle(limit),
            self.changes.settle(limit),
        );
    }

    /// As [`write`](Self::write), for what was begun on behalf of callers who
    /// have seen to that: the caller's call may itself be one that was dropped.
    /// With `replayed` an earlier transaction may have done it already.
    pub(crate) async fn write_settled<A, T, F>(
        &self,
        operation: &'static str,
        replayed: bool,
        arguments: A,
        work: F,
    ) -> Result<T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(&'c A, &'c mut Tx) -> BoxFuture<'c, Worked<T>> + Send + Sync + 'static,
    {
        let outcome = if replayed {
            Outcome::Unknown
        } else {
            Outcome::NotApplied
        };
        self.check_open(operation)
            .map_err(|closed| closed.with_outcome(outcome))?;
        let (mode, replay) = (Mode::Write, Replay::Safe);
        self.call(operation, mode, replay, replayed, arguments, work)
            .await
    }

    /// Runs a transaction that sees one state of the database.
    pub(crate) async fn read<A, T, F>(
        &self,
        operation: &'static str,
        arguments: A,
        work: F,
    ) -> Result<T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(&'c A, &'c mut Tx) -> BoxFuture<'c, Worked<T>> + Send + Sync + 'static,
    {
        self.check_open(operation)?;
        let (mode, replay) = (Mode::Snapshot, Replay::Safe);
        self.call(operation, mode, replay, false, arguments, work)
            .await
    }

    async fn call<A, T, F>(
        &self,
        operation: &'static str,
        mode: Mode,
        replay: Replay,
        replayed: bool,
        arguments: A,
        work: F,
    ) -> Result<T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(&'c A, &'c mut Tx) -> BoxFuture<'c, Worked<T>> + Send + Sync + 'static,
    {
        let (caller, call) = Caller::begin(&self.dropped);
        let (context, pool, times) = (self.context.clone(), Arc::clone(&self.pool), self.times);
        let task = tokio::spawn(async move {
            let attempts = Attempts {
                operation,
                mode,
                replay,
                replayed,
                context,
                pool,
                times,
                call,
            };
            attempts.run(&arguments, &work).await
        });
        let outcome = task.await;
        drop(caller);
        outcome.unwrap_or_else(|error| Err(ended_badly(operation).with_source(error)))
    }
}

/// One call of the store.
struct Attempts {
    operation: &'static str,
    mode: Mode,
    replay: Replay,
    /// Whether an earlier transaction may have done it already.
    replayed: bool,
    context: Context,
    pool: Arc<Pool>,
    times: Times,
    call: Call,
}

impl Attempts {
    async fn run<A, T, F>(&self, arguments: &A, work: &F) -> Result<T>
    where
        F: for<'c> Fn(&'c A, &'c mut Tx) -> BoxFuture<'c, Worked<T>>,
    {
        let mut backoff = Backoff::new(&self.context.random, self.times.retry_for);
        let began = Instant::now();
        let mut replayed = self.replayed;
        loop {
            let failure = match self.pool.lease().await {
                Err(failure) => failure,
                Ok(lease) => {
                    let mut tx = Tx {
                        lease: Some(lease),
                        context: self.context.clone(),
                        limit: self.times.statement_timeout,
                        mode: self.mode,
                        state: State::Fresh,
                        replayed,
                    };
                    let worked = match work(arguments, &mut tx).await {
                        Ok(value) => tx.end().await.map(|()| value),
                        Err(failure) => Err(failure),
                    };
                    match worked {
                        Ok(value) => {
                            tx.give_back();
                            return Ok(value);
                        }
                        Err(failure) => {
                            replayed |= tx.may_be_committed(&failure);
                            tx.give_up(&failure).await;
                            failure
                        }
                    }
                }
            };
            let outcome = if replayed {
                Outcome::Unknown
            } else {
                Outcome::NotApplied
            };
            let is_final = matches!(failure.verdict(), Verdict::Final(..));
            let counts_twice = replayed && self.replay == Replay::Unsafe;
            // A database that answers nothing is not asked for ever.
            let is_late = began.elapsed() >= self.times.statement_timeout;
            let may_repeat = !(is_final || counts_twice || is_late || self.call.is_abandoned());
            match backoff.next_delay() {
                Some(delay) if may_repeat => {
                    let cause = failure.into_error(self.operation, outcome);
                    tracing::debug!(operation = self.operation, %cause, "trying again");
                    sleep(delay).await;
                }
                _ => return Err(failure.into_error(self.operation, outcome)),
            }
        }
    }
}

/// A transaction, from its first statement to its commit.
pub(crate) struct Tx {
    lease: Option<Lease>,
    pub(crate) context: Context,
    limit: Duration,
    mode: Mode,
    state: State,
    replayed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was sent.
    Fresh,
    Begun,
    /// The commit is on its way; nobody knows whether it happens.
    Committing,
    Ended,
}

/// What the server answered to one statement.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) rows: Vec<Row>,
    /// Rows that an `UPDATE` changed, an `INSERT` added or a `DELETE` removed.
    pub(crate) affected: u64,
    pub(crate) last_insert_id: u64,
}

const BEGIN: &[&str] = &["START TRANSACTION"];
const BEGIN_SNAPSHOT: &[&str] = &[
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
];
const COMMIT: &[&str] = &["COMMIT"];

impl Tx {
    /// Returns whether an earlier attempt of the same call may have been committed.
    pub(crate) fn replayed(&self) -> bool {
        self.replayed
    }

    /// Returns whether no statement has run.
    pub(crate) fn is_fresh(&self) -> bool {
        self.state == State::Fresh
    }

    /// Lets statements run longer than those of servers, for those of operators.
    pub(crate) fn take_time(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(3600);
        self.limit = self.limit.max(PATIENCE);
    }

    /// Runs statements and keeps the transaction open.
    pub(crate) async fn run(&mut self, batch: Batch) -> Worked<Vec<Reply>> {
        self.send(batch, false).await
    }

    /// Runs statements and commits.
    pub(crate) async fn commit(&mut self, batch: Batch) -> Worked<Vec<Reply>> {
        self.send(batch, true).await
    }

    /// Runs statements each of which is a transaction by itself.
    pub(crate) async fn only(&mut self, batch: Batch) -> Worked<Vec<Reply>> {
        debug_assert_ne!(self.state, State::Begun, "no transaction is open");
        self.state = State::Committing;
        let packets = batch.framed(&[], &[], self.framing());
        let replies = self.send_packets(packets).await?;
        self.state = State::Ended;
        Ok(replies)
    }

    async fn send(&mut self, batch: Batch, commit: bool) -> Worked<Vec<Reply>> {
        let begin = match (self.state, self.mode) {
            (State::Fresh, Mode::Write) => BEGIN,
            (State::Fresh, Mode::Snapshot) => BEGIN_SNAPSHOT,
            _ => &[],
        };
        let end = if commit { COMMIT } else { &[] };
        let mut packets = batch.framed(begin, end, self.framing());
        let Some(last) = packets.pop() else {
            return Ok(Vec::new());
        };
        self.state = State::Begun;
        let mut replies = self.send_packets(packets).await?;
        if commit {
            self.state = State::Committing;
        }
        replies.extend(self.send_packets(vec![last]).await?);
        if commit {
            self.state = State::Ended;
        }
        Ok(replies)
    }

    fn framing(&self) -> Framing {
        if self.context.facts.is_cluster && self.mode == Mode::Write {
            Framing::OneByOne
        } else {
            Framing::Together
        }
    }

    async fn send_packets(&mut self, packets: Vec<Packet>) -> Worked<Vec<Reply>> {
        let limit = self.limit;
        let lease = self.lease.as_mut().ok_or(Failure::NoConnection(None))?;
        let connection = lease.connection()?;
        let mut replies = Vec::new();
        for packet in packets {
            let answers = timeout(limit, exchange(connection, packet))
                .await
                .map_err(|_| Failure::Late)??;
            replies.extend(answers);
        }
        Ok(replies)
    }

    /// Rolls back a transaction of which a statement failed, and begins anew.
    pub(crate) async fn roll_back_and_go_on(&mut self) -> Worked<()> {
        self.roll_back().await;
        if self.lease.is_none() {
            return Err(Failure::NoConnection(None));
        }
        self.state = State::Fresh;
        Ok(())
    }

    /// Ends a transaction that its work has left open because there is nothing
    /// to commit, or because a statement before the commit was refused.
    async fn end(&mut self) -> Worked<()> {
        if matches!(self.state, State::Begun | State::Committing) {
            self.roll_back().await;
        }
        Ok(())
    }

    /// Returns whether the changes may be there although they failed.
    fn may_be_committed(&self, failure: &Failure) -> bool {
        self.mode == Mode::Write
            && self.state == State::Committing
            && (failure.verdict() == Verdict::Lost || failure.is_server(code::NODE_NOT_READY))
    }

    /// Ends a transaction that failed, and its connection if that broke.
    async fn give_up(mut self, failure: &Failure) {
        match failure.verdict() {
            // Others to the same server fare no better, and there may be another server.
            Verdict::Lost | Verdict::Unwilling(_) => {
                let is_of_no_use =
                    matches!(failure, Failure::Late) || failure.verdict() != Verdict::Lost;
                match self.lease.take() {
                    Some(lease) if is_of_no_use => lease.avoid(),
                    Some(lease) => lease.lost(),
                    None => {}
                }
            }
            Verdict::Conflict | Verdict::Final(..) => {
                if matches!(self.state, State::Begun | State::Committing) {
                    self.roll_back().await;
                }
                self.give_back();
            }
        }
    }

    /// Rolls back; a connection that cannot is closed, and the server does it.
    async fn roll_back(&mut self) {
        self.state = State::Ended;
        let limit = self.limit;
        let Some(mut lease) = self.lease.take() else {
            return;
        };
        if let Ok(connection) = lease.connection()
            && let Ok(Ok(())) = timeout(limit, connection.query_drop("ROLLBACK")).await
        {
            self.lease = Some(lease);
        }
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

async fn exchange(connection: &mut Conn, packet: Packet) -> Worked<Vec<Reply>> {
    match packet {
        Packet::Text {
            statements,
            before,
            after,
        } => {
            let mut replies = Vec::with_capacity(statements.len());
            let mut result = connection.query_iter(statements.join(";\n")).await?;
            for _ in &statements {
                let is_answered = result.columns().is_some();
                let (affected, id) = (result.affected_rows(), result.last_insert_id());
                // An error comes out here.
                let rows = result.collect().await?;
                if !is_answered {
                    return Err(Failure::CutShort);
                }
                replies.push(Reply {
                    affected,
                    last_insert_id: id.unwrap_or(0),
                    rows,
                });
            }
            result.drop_result().await?;
            replies.truncate(statements.len() - after);
            replies.drain(..before);
            Ok(replies)
        }
        Packet::Prepared { sql, values } => {
            let values = Params::Positional(values);
            let mut result = connection.exec_iter(sql, values).await?;
            let reply = Reply {
                affected: result.affected_rows(),
                last_insert_id: result.last_insert_id().unwrap_or(0),
                rows: result.collect().await?,
            };
            result.drop_result().await?;
            Ok(vec![reply])
        }
    }
}

/// Says that a panic, or the end of the runtime, has ended a call.
pub(crate) fn ended_badly(operation: &'static str) -> Error {
    Error::new(ErrorKind::Internal, operation, "the call ended badly")
}

/// Who waits for a call; dropping it earlier abandons the call.
struct Caller {
    link: Arc<Mutex<Link>>,
    dropped: Arc<Dropped>,
}

/// A running call; dropping it ends the call.
struct Call(Arc<Mutex<Link>>);

#[derive(Debug)]
enum Link {
    Running,
    Abandoned { _left: Left },
    Ended,
}

impl Caller {
    fn begin(dropped: &Arc<Dropped>) -> (Self, Call) {
        let link = Arc::new(Mutex::new(Link::Running));
        let caller = Self {
            link: Arc::clone(&link),
            dropped: Arc::clone(dropped),
        };
        (caller, Call(link))
    }
}

impl Call {
    fn is_abandoned(&self) -> bool {
        matches!(*lock(&self.0), Link::Abandoned { .. })
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut link = lock(&self.link);
        if matches!(*link, Link::Running) {
            *link = Link::Abandoned {
                _left: self.dropped.begin(),
            };
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        *lock(&self.0) = Link::Ended;
    }
}

fn lock(link: &Mutex<Link>) -> MutexGuard<'_, Link> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}
