//! What a fleet does in a day, or in a part of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use fleethold_store::BROADCAST_UNLIMITED;
use serde_json::{Value, json};

use super::Mixed;
use super::deliver::Operators;
use super::receivers::{BROADCAST, Inbox, Receivers, Sending};
use crate::load::agent::SERVICE;
use crate::load::ledger::Ledger;
use crate::load::pace::Recorder;
use crate::load::report::Report;
use crate::load::{Bench, Run};

/// How often a soak looks at everything.
pub(super) const SNAPSHOT_EVERY: Duration = Duration::from_secs(10);
/// How long to wait for accepted messages in the end.
const SETTLE: Duration = Duration::from_secs(5);

pub(super) async fn run(
    bench: &mut Bench,
    mixed: Mixed,
    snapshot_every: Option<Duration>,
) -> Result<Report> {
    let duration = bench.settings.duration;
    let agents = bench.enrolled(bench.settings.agents).await?;
    let streaming = (agents.len() as f64 * mixed.streaming).round() as usize;
    let fleet = bench.fleet.len();
    let ledger = || {
        Arc::new(Ledger::new(
            bench.random.next_u64(),
            fleet,
            mixed.payload_bytes,
        ))
    };
    let (up, down) = (ledger(), ledger());
    let recorder = || Arc::new(Recorder::new(duration));
    let (at_service, inserts) = (recorder(), recorder());
    bench.service()?.count(&up, &at_service);
    let inbox = Inbox::new(&down, duration);
    let accepted = recorder();
    let sending = (mixed.up_per_hour > 0.0).then(|| Sending {
        ledger: Arc::clone(&up),
        recorder: Arc::clone(&accepted),
        service: SERVICE.to_owned(),
        every: Duration::from_secs_f64(3600.0 / mixed.up_per_hour),
    });
    let (streams, polls) = agents.split_at(streaming);
    let mut receivers = Receivers::new();
    receivers
        .stream(streams.to_vec(), &inbox, sending.as_ref())
        .await?;
    receivers.poll(polls.to_vec(), mixed.poll_every, &inbox, sending.as_ref());
    let name = if snapshot_every.is_some() {
        "soak"
    } else {
        "mixed"
    };
    let mut run = Run::begin(bench, name, &parameters(mixed));
    run.recorder = accepted;
    let start = Instant::now();
    let operators = Operators {
        admin: bench.admin()?,
        ids: bench.random.next_u64(),
        agents: Arc::new(agents.clone()),
        ledger: Arc::clone(&down),
        recorder: Arc::clone(&inserts),
    };
    let rate = mixed.down_per_hour * agents.len() as f64 / 3600.0;
    let operate = async {
        if rate > 0.0 {
            operators.send(rate, duration).await;
        } else {
            tokio::time::sleep(duration).await;
        }
    };
    bench.broadcasts += 1;
    let message_type = format!("{BROADCAST}{}", bench.broadcasts);
    let broadcast = async {
        // When half of the time is over.
        tokio::time::sleep(duration / 2).await;
        let id = Bytes::copy_from_slice(&bench.random.next_u64().to_be_bytes());
        let mut admin = bench.admin()?;
        let sent = admin.broadcast(id, SERVICE, &message_type, BROADCAST_UNLIMITED);
        sent.await.context("the server takes no broadcast")
    };
    let mut snapshots = Vec::new();
    let snapshot = async {
        let Some(every) = snapshot_every else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(every.min(duration / 4)).await;
            snapshots.push(take_snapshot(start, &run, &inbox, &up, &down));
        }
    };
    let work = async { tokio::join!(operate, broadcast) };
    let ((), sent) = tokio::select! {
        done = work => done,
        never = snapshot => never,
    };
    sent?;
    let down_totals = down
        .settle(SETTLE.max(mixed.poll_every.min(duration)))
        .await;
    // What is still under way when the last message is sent is work, too.
    let worked = start.elapsed().as_secs_f64();
    let used = run.watch.read().0;
    let used = used.iter().filter(|process| process.name != "generator");
    let cpu_seconds: f64 = used.map(|process| process.cpu_seconds).sum();
    let events = [
        ("worked_seconds", worked),
        ("contacts", (inbox.polls.count() + inbox.records()) as f64),
        ("handshakes", inbox.handshakes() as f64),
        ("messages_up", up.totals().accepted as f64),
        ("messages_down", down_totals.arrived as f64),
        ("broadcast_messages", inbox.count_of(&message_type) as f64),
        ("streams", streaming as f64),
    ];
    receivers.stop().await;
    let up_totals = up.settle(SETTLE).await;
    let arrivals = inbox.arrivals_of(&message_type);
    let mut reached: Vec<_> = arrivals.iter().map(|(agent, _)| *agent).collect();
    reached.sort_unstable();
    reached.dedup();
    let messages = up_totals.arrived + down_totals.arrived;
    let mut figures = vec![
        ("messages", messages as f64),
        (
            "messages_per_second",
            messages as f64 / start.elapsed().as_secs_f64(),
        ),
        ("polls", inbox.polls.count() as f64),
        ("reconnects", inbox.reconnects() as f64),
        ("broadcast_reached", reached.len() as f64),
        ("broadcast_doubled", (arrivals.len() - reached.len()) as f64),
    ];
    let mut report = run.end("message_accepted", Vec::new());
    if report.processes.len() > 1 {
        figures.push(("cpu_percent_while_working", cpu_seconds / worked * 100.0));
        figures.push(("cpu_seconds_while_working", cpu_seconds));
    }
    figures.push((
        "bytes_grown_per_message",
        report.bytes_grown as f64 / (messages as f64).max(1.0),
    ));
    figures.extend(events);
    report.figures = figures;
    report.latencies.extend([
        ("message_at_service", at_service.latencies()),
        ("message_at_agent", inbox.arrivals.latencies()),
        ("poll", inbox.polls.latencies()),
        ("insert", inserts.latencies()),
    ]);
    for (failure, count) in inbox.polls.failures().into_iter().chain(inserts.failures()) {
        *report.failures.entry(failure).or_default() += count;
    }
    report
        .messages
        .extend([("to_service", up_totals), ("to_agents", down_totals)]);
    report.snapshots = snapshots;
    Ok(report)
}

fn parameters(mixed: Mixed) -> Value {
    json!({
        "streaming_part": mixed.streaming,
        "poll_every_seconds": mixed.poll_every.as_secs_f64(),
        "up_per_agent_and_hour": mixed.up_per_hour,
        "down_per_agent_and_hour": mixed.down_per_hour,
        "payload_bytes": mixed.payload_bytes,
    })
}

fn take_snapshot(start: Instant, run: &Run, inbox: &Inbox, up: &Ledger, down: &Ledger) -> Value {
    let (processes, bytes_grown) = run.watch.read();
    let processes: Vec<_> = processes
        .iter()
        .map(crate::load::ProcessUse::json)
        .collect();
    json!({
        "seconds": start.elapsed().as_secs_f64(),
        "to_service": up.totals().json(),
        "to_agents": down.totals().json(),
        "poll_p99_ms": inbox.polls.latencies().percentile_ms(99.0),
        "arrival_p99_ms": inbox.arrivals.latencies().percentile_ms(99.0),
        "processes": processes,
        "bytes_grown": bytes_grown,
    })
}
