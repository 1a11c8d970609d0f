//! A broadcast to agents on streams or to polling ones, limited or not.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use fleethold_store::BROADCAST_UNLIMITED;
use serde_json::json;

use super::Broadcast;
use super::receivers::{BROADCAST, Inbox, Receivers};
use crate::load::agent::SERVICE;
use crate::load::ledger::Ledger;
use crate::load::report::Report;
use crate::load::{Bench, Run};

/// How often the count is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long to wait for what comes twice, or over the limit, after all have it.
const QUIET: Duration = Duration::from_secs(2);

pub(super) async fn run(bench: &mut Bench, broadcast: Broadcast) -> Result<Report> {
    let agents = bench.enrolled(bench.settings.agents).await?;
    let count = agents.len();
    let ledger = Arc::new(Ledger::new(bench.random.next_u64(), bench.fleet.len(), 0));
    let inbox = Inbox::new(&ledger, bench.settings.duration);
    let mut receivers = Receivers::new();
    match broadcast.poll_every {
        Some(every) => receivers.poll(agents, every, &inbox, None),
        None => receivers.stream(agents, &inbox, None).await?,
    }
    let limit = broadcast.limit.map_or(BROADCAST_UNLIMITED, u64::from);
    let expected = usize::try_from(limit).unwrap_or(usize::MAX).min(count);
    let run = Run::begin(
        bench,
        "broadcast",
        &json!({
            "limit": broadcast.limit,
            "poll_every_seconds": broadcast.poll_every.map(|every| every.as_secs_f64()),
        }),
    );
    bench.broadcasts += 1;
    let message_type = format!("{BROADCAST}{}", bench.broadcasts);
    let id = Bytes::copy_from_slice(&bench.random.next_u64().to_be_bytes());
    let start = Instant::now();
    bench
        .admin()?
        .broadcast(id, SERVICE, &message_type, limit)
        .await
        .context("the server takes no broadcast")?;
    run.recorder.record(0, start);
    let end = start + bench.settings.duration;
    while Instant::now() < end && inbox.count_of(&message_type) < expected {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    tokio::time::sleep(QUIET.min(bench.settings.duration)).await;
    let arrivals = inbox.arrivals_of(&message_type);
    let reached: BTreeSet<_> = arrivals.iter().map(|(agent, _)| *agent).collect();
    let after = |percent: usize| {
        let at = (expected * percent).div_ceil(100).max(1) - 1;
        let time = arrivals.get(at).map(|(_, time)| time.duration_since(start));
        time.map(|time| time.as_secs_f64() * 1e3)
    };
    let mut figures = vec![
        ("agents", count as f64),
        ("reached", reached.len() as f64),
        ("expected", expected as f64),
        ("doubled", (arrivals.len() - reached.len()) as f64),
        ("over_limit", reached.len().saturating_sub(expected) as f64),
        ("reconnects", inbox.reconnects() as f64),
    ];
    for (name, percent) in [("half_ms", 50), ("p99_ms", 99), ("all_ms", 100)] {
        figures.extend(after(percent).map(|time| (name, time)));
    }
    let mut report = run.end("create", figures);
    for (failure, count) in inbox.polls.failures() {
        *report.failures.entry(failure).or_default() += count;
    }
    let mut per_second = Vec::new();
    for (_, time) in &arrivals {
        let second = usize::try_from(time.duration_since(start).as_secs())?;
        if per_second.len() <= second {
            per_second.resize(second + 1, 0);
        }
        per_second[second] += 1;
    }
    report.per_second = per_second;
    receivers.stop().await;
    Ok(report)
}
