//! The process that is killed: writes, and says what it tries and learns.
//!
//! It prints a line before and after each call: `t` and the number of the
//! write, then `a`, `r` or `u` for its fate. `o` means that the store is open,
//! and `k` asks to be killed at once.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{Outcome, Random};
use rusqlite::Connection;
use rusqlite::trace::{TraceEvent, TraceEventCodes};

use crate::findings::try_open;
use crate::history::{Kind, Sequence, prepare, write};

/// How many calls run at the same time.
const TASKS: u64 = 8;

/// Far more sequences than a process lives for.
const MOST_SEQUENCES: u64 = 100_000;

const ORDER: &str = "FLEETHOLD_CRASH_ORDER";

/// When the process is killed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Death {
    AtRandom,
    /// When SQLite is about to make this commit.
    InCommit(u64),
    /// When this commit is on disk, before its callers hear of it.
    AfterCommit(u64),
}

/// What the process is to do.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) path: PathBuf,
    pub(crate) first_sequence: u64,
    pub(crate) death: Death,
}

impl Order {
    pub(crate) fn from_environment() -> Option<Self> {
        let text = std::env::var(ORDER).ok()?;
        let mut words = text.splitn(4, ' ');
        let mut word = || words.next().expect("four words");
        let first_sequence = word().parse().expect("a number");
        let kind = word();
        let commit = word().parse().expect("a number");
        Some(Self {
            first_sequence,
            death: match kind {
                "in" => Death::InCommit(commit),
                "after" => Death::AfterCommit(commit),
                _ => Death::AtRandom,
            },
            path: word().into(),
        })
    }

    pub(crate) fn to_environment(&self) -> (&'static str, String) {
        let (kind, commit) = match self.death {
            Death::AtRandom => ("random", 0),
            Death::InCommit(commit) => ("in", commit),
            Death::AfterCommit(commit) => ("after", commit),
        };
        let (first, path) = (self.first_sequence, self.path.display());
        (ORDER, format!("{first} {kind} {commit} {path}"))
    }
}

pub(crate) fn run(order: &Order) -> ExitCode {
    let death = order.death;
    let options = SqliteOptions {
        on_connect: Some(Arc::new(move |connection| await_death(connection, death))),
        ..SqliteOptions::default()
    };
    let random = Arc::new(Random::seeded(order.first_sequence));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let store = try_open(&order.path, options, random).expect("the store can be opened");
        prepare(&store).await.expect("clients can be added");
        say('o', 0);
        let tasks = (0..TASKS).map(|task| {
            let store = store.clone();
            let first = order.first_sequence + task;
            tokio::spawn(async move {
                for turn in 0..MOST_SEQUENCES / TASKS {
                    perform(&store, first + turn * TASKS).await;
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("a task");
        }
    });
    // The parent expects to have to kill us.
    ExitCode::FAILURE
}

async fn perform(store: &SqliteStore, number: u64) {
    let mut sequence = Sequence::new(number);
    for step in 0..Kind::of(number).parts().len() {
        let write = write(number, step);
        say('t', write);
        let fate = match sequence.perform(store, step).await {
            Ok(()) => 'a',
            Err(error) if error.outcome() == Outcome::NotApplied => 'r',
            Err(_) => 'u',
        };
        say(fate, write);
        if fate != 'a' {
            return;
        }
    }
}

fn say(what: char, number: u64) {
    // One call: lines are whole, also when the process dies.
    let line = format!("{what}{number}\n");
    std::io::stdout()
        .lock()
        .write_all(line.as_bytes())
        .expect("somebody listens");
}

/// Makes the writing connection stop for ever at a commit.
fn await_death(connection: &mut Connection, death: Death) {
    if connection.is_readonly("main").expect("a database") {
        return;
    }
    let seen = AtomicU64::new(0);
    let stop_at = move |commit: u64| {
        if seen.fetch_add(1, Ordering::SeqCst) + 1 == commit {
            say('k', 0);
            loop {
                thread::park();
            }
        }
    };
    match death {
        Death::AtRandom => {}
        Death::InCommit(commit) => connection
            .commit_hook(Some(move || {
                stop_at(commit);
                false
            }))
            .expect("a hook"),
        Death::AfterCommit(commit) => connection
            .trace_v2(
                TraceEventCodes::SQLITE_TRACE_PROFILE,
                Some(move |event: TraceEvent<'_>| {
                    if let TraceEvent::Profile(statement, _) = event
                        && statement.sql() == "COMMIT"
                    {
                        stop_at(commit);
                    }
                }),
            )
            .expect("a trace"),
    }
}
