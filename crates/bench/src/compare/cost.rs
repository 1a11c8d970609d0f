//! What one poll or message costs a store: round trips, statements, bytes
//! written, syncs. One agent does one thing after the other, so nothing is
//! shared with others; a busy server pays less for each.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{
    ClientData, ClientStore, Clock, MessageId, MessageStore, Random, Store, SystemClock,
};
use rusqlite::Connection;
use rusqlite::trace::{TraceEvent, TraceEventCodes};
use serde_json::{Value, json};

use super::systems::{Bed, NOOP, Running, System};
use super::{Options, databases::Counters};
use crate::embedded::bed;
use crate::embedded::samples::{CLIENT, Kind, Samples, success};
use crate::figures::number;
use crate::load::{Bench, Deliver, Ingest, Mode, Poll, written_bytes};

/// How long what happens by itself is watched.
const IDLE: Duration = Duration::from_secs(3);

/// The costs of one event on one system.
#[derive(Clone, Debug)]
struct Cost {
    system: System,
    event: &'static str,
    /// How many of them were counted.
    events: f64,
    round_trips: Option<f64>,
    statements: Option<f64>,
    log_bytes: Option<f64>,
    written_bytes: f64,
    syncs: Option<f64>,
}

/// The costs of all events on all systems.
#[derive(Debug)]
pub struct CostCard(Vec<Cost>);

/// What happens: a name, how it is done, and the figure that counts it.
struct Event {
    name: &'static str,
    mode: Mode,
    counted_by: &'static str,
}

fn events() -> [Event; 4] {
    let ingest = |messages| {
        Mode::Ingest(Ingest {
            messages,
            payload_bytes: 100,
            service: NOOP.to_owned(),
            counted: false,
            streaming: false,
        })
    };
    [
        Event {
            name: "idle poll",
            mode: Mode::Poll(Poll::default()),
            counted_by: "polls",
        },
        Event {
            name: "message from an agent, 1 per contact",
            mode: ingest(1),
            counted_by: "messages",
        },
        Event {
            name: "message from an agent, 100 per contact",
            mode: ingest(100),
            counted_by: "messages",
        },
        Event {
            name: "message to an agent: insert, hand out (100 at a time), acknowledge",
            mode: Mode::Deliver(Deliver {
                backlog: 500,
                payload_bytes: 100,
                poll_every: Duration::from_secs(1),
            }),
            counted_by: "messages",
        },
    ]
}

/// Measures the costs on all systems.
///
/// # Errors
/// If a program or a database is missing, or a system does not work.
pub async fn cost(options: &Options) -> Result<CostCard> {
    options.check()?;
    let programs = options.programs.absolute()?;
    let mut costs = Vec::new();
    for system in &options.systems {
        (options.progress)(system.title());
        let bed = Bed::make_counted(*system, &programs).await?;
        let running = bed.start().await?;
        let mut bench = bed.connect(&running).await?;
        bench.settings.duration = options.size.window.max(Duration::from_secs(1));
        let system_costs = measure(&bed, &running, &mut bench).await;
        costs.extend(system_costs.with_context(|| system.title())?);
        drop(bench);
        running.stop().await?;
        if *system == System::Sqlite {
            for (cost, [statements, commits]) in costs
                .iter_mut()
                .filter(|cost| cost.system == System::Sqlite)
                .zip(sqlite_statements(&programs.directory).await?)
            {
                cost.statements = statements;
                cost.syncs = commits;
            }
        }
    }
    Ok(CostCard(costs))
}

/// A look at everything that counts.
#[derive(Clone, Copy, Debug, Default)]
struct Look {
    counters: Option<Counters>,
    round_trips: Option<f64>,
    written_bytes: f64,
}

async fn look(bed: &Bed, running: &Running) -> Result<Look> {
    let counters = match bed.database() {
        Some(database) => Some(database.counters().await?),
        None => None,
    };
    Ok(Look {
        counters,
        round_trips: bed.round_trips().map(|count| count as f64),
        // Where there is a database, it is the one that writes.
        written_bytes: running
            .watched
            .last()
            .map_or(0, |process| written_bytes(process.pid)) as f64,
    })
}

async fn measure(bed: &Bed, running: &Running, bench: &mut Bench) -> Result<Vec<Cost>> {
    // Caches are filled, and what is made once is made.
    bench.run(&Mode::Poll(Poll::default())).await?;
    let before = look(bed, running).await?;
    tokio::time::sleep(IDLE).await;
    let after = look(bed, running).await?;
    let idle = |pick: &dyn Fn(&Look) -> Option<f64>| {
        let grown = pick(&after)
            .zip(pick(&before))
            .map(|(after, before)| after - before);
        grown.unwrap_or(0.0) / IDLE.as_secs_f64()
    };
    let mut costs = Vec::new();
    for event in events() {
        let before = look(bed, running).await?;
        let start = Instant::now();
        let report = bench.run(&event.mode).await?;
        let seconds = start.elapsed().as_secs_f64();
        let after = look(bed, running).await?;
        let events = report.figure(event.counted_by).unwrap_or(0.0).max(1.0);
        let each = |pick: &dyn Fn(&Look) -> Option<f64>| {
            let grown = pick(&after)? - pick(&before)?;
            Some(((grown - idle(pick) * seconds) / events).max(0.0))
        };
        costs.push(Cost {
            system: bed.system,
            event: event.name,
            events,
            round_trips: each(&|look| look.round_trips),
            statements: each(&|look| look.counters?.statements),
            log_bytes: each(&|look| Some(look.counters?.log_bytes)),
            written_bytes: each(&|look| Some(look.written_bytes)).unwrap_or(0.0),
            syncs: each(&|look| Some(look.counters?.syncs)),
        });
    }
    Ok(costs)
}

/// Counts statements and commits of the embedded store, by the calls that the
/// server makes; each commit is one sync. Background work is not part of it.
async fn sqlite_statements(directory: &Path) -> Result<[[Option<f64>; 2]; 4]> {
    let directory = tempfile::tempdir_in(directory)?;
    let random = Arc::new(Random::from_os());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(Arc::clone(&random)));
    let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let watch = Arc::clone(&counts);
    let options = SqliteOptions {
        on_connect: Some(Arc::new(move |connection| count(connection, &watch))),
        ..SqliteOptions::default()
    };
    let path = directory.path().join("cost.db");
    let store = SqliteStore::open(path, options, clock, Arc::clone(&random))?;
    store.add_client(CLIENT, &ClientData::default()).await?;
    let contact = bed::contact(CLIENT);
    let take = |events: f64| {
        [0, 1].map(|at: usize| Some(counts[at].swap(0, Ordering::Relaxed) as f64 / events))
    };
    let poll = async |messages: &[fleethold_proto::fleetspeak::Message]| -> Result<usize> {
        store.store_contact(&contact, messages).await?;
        Ok(store
            .client_messages_for_processing(CLIENT, 100, None)
            .await?
            .len())
    };
    poll(&[]).await?;
    take(1.0);
    poll(&[]).await?;
    let idle = take(1.0);
    let processed = Samples::new(Kind::Processed, 100);
    poll(&processed.list(&random, 1)).await?;
    let one = take(1.0);
    poll(&processed.list(&random, 100)).await?;
    let hundred = take(100.0);
    let pending = Samples::new(Kind::ForOneClient, 100).list(&random, 100);
    for message in &pending {
        store
            .store_messages(std::slice::from_ref(message), None)
            .await?;
    }
    let handed_out = poll(&[]).await?;
    let mut results = Vec::new();
    for message in &pending {
        let id = MessageId::from_optional_bytes(&message.message_id)?;
        results.push((id.context("samples have ids")?, success()));
    }
    store.set_message_results(&results).await?;
    let down = take(handed_out.max(1) as f64);
    store.close().await?;
    Ok([idle, one, hundred, down])
}

fn count(connection: &mut Connection, counts: &Arc<[AtomicU64; 2]>) {
    let statements = Arc::clone(counts);
    let note = move |event: TraceEvent<'_>| {
        if matches!(event, TraceEvent::Stmt(..)) {
            statements[0].fetch_add(1, Ordering::Relaxed);
        }
    };
    // Without it nothing would be counted, which shows.
    let _ = connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(note));
    let commits = Arc::clone(counts);
    let note = move || {
        commits[1].fetch_add(1, Ordering::Relaxed);
        false
    };
    let _ = connection.commit_hook(Some(note));
}

impl CostCard {
    /// Returns everything, raw.
    pub fn json(&self) -> Value {
        let costs = self.0.iter().map(|cost| {
            json!({
                "system": cost.system.name(),
                "event": cost.event,
                "events": cost.events,
                "round_trips": cost.round_trips,
                "statements": cost.statements,
                "log_bytes": cost.log_bytes,
                "written_bytes": cost.written_bytes,
                "syncs": cost.syncs,
            })
        });
        costs.collect()
    }

    /// Returns the table in Markdown.
    pub fn markdown(&self) -> String {
        let mut text =
            "| each | on | round trips | statements | bytes to the log | bytes written | syncs |\n\
                        | --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
                .to_owned();
        let mut rows: Vec<_> = self.0.iter().collect();
        let place = |cost: &Cost| events().iter().position(|event| event.name == cost.event);
        rows.sort_by_key(|cost| place(cost));
        for cost in rows {
            let show = |value: Option<f64>| value.map_or("–".to_owned(), number);
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} |",
                cost.event,
                cost.system.title(),
                show(cost.round_trips),
                show(cost.statements),
                show(cost.log_bytes),
                number(cost.written_bytes),
                show(cost.syncs),
            );
        }
        text
    }
}
