//! Messages from operators to agents: from a backlog, at a rate, and pushed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use fleethold_store::MessageId;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::poll::{AFTER_FAILURE, Line, MOST_FAILURES, connect_all};
use super::receivers::{Inbox, Receivers};
use super::{Deliver, Stream};
use crate::load::admin::Admin;
use crate::load::agent::{Agent, SERVICE};
use crate::load::failure::Failure;
use crate::load::ledger::{Ledger, Mark};
use crate::load::pace::{Recorder, Schedule};
use crate::load::report::Report;
use crate::load::{Bench, Run};

/// How many operators send at the same time.
const OPERATORS: usize = 32;
/// How long agents go on polling when nothing comes any more.
const PATIENCE: Duration = Duration::from_secs(3);
/// How soon an agent polls again that got nothing.
const AFTER_NOTHING: Duration = Duration::from_millis(50);
/// The rate of pushed messages, if the settings have none.
const PUSHES_PER_SECOND: f64 = 20.0;

pub(super) async fn run(bench: &mut Bench, deliver: Deliver) -> Result<Report> {
    let agents = bench.enrolled(bench.settings.agents).await?;
    let parameters = json!({
        "backlog_per_agent": deliver.backlog,
        "payload_bytes": deliver.payload_bytes,
        "poll_every_seconds": deliver.poll_every.as_secs_f64(),
    });
    let ledger = ledger(bench, deliver.payload_bytes);
    let inbox = Inbox::new(&ledger, bench.settings.duration);
    if let Some(rate) = bench.settings.rate {
        let run = Run::begin(bench, "deliver", &parameters);
        let mut receivers = Receivers::new();
        receivers.poll(agents.clone(), deliver.poll_every, &inbox, None);
        let report = paced(bench, run, agents, rate, &inbox, deliver.poll_every).await?;
        receivers.stop().await;
        return Ok(report);
    }
    backlog(bench, agents, deliver, &inbox, &parameters).await
}

/// Fills the queues of all agents, then lets them poll until nothing is left.
async fn backlog(
    bench: &Bench,
    agents: Vec<Arc<Agent>>,
    deliver: Deliver,
    inbox: &Arc<Inbox>,
    parameters: &Value,
) -> Result<Report> {
    let mut lines = connect_all(agents.clone()).await?;
    (bench.settings.progress)("deliver: filling the backlog");
    let ledger = &inbox.ledger;
    let inserts = Arc::new(Recorder::new(bench.settings.duration));
    let operators = Operators {
        admin: bench.admin()?,
        ids: bench.random.next_u64(),
        agents: Arc::new(agents),
        ledger: Arc::clone(ledger),
        recorder: Arc::clone(&inserts),
    };
    operators.fill(deliver.backlog).await;
    let accepted = ledger.totals().accepted;
    if accepted == 0 {
        bail!(
            "the server takes no messages for agents: {}",
            first_failure(&inserts)
        );
    }
    let run = Run::begin(bench, "deliver", parameters);
    let start = Instant::now();
    let end = start + bench.settings.duration;
    let mut polling = JoinSet::new();
    for (agent, connection) in lines.drain(..) {
        let inbox = Arc::clone(inbox);
        let recorder = Arc::clone(&run.recorder);
        let line = Line {
            agent,
            connection: Some(connection),
        };
        polling.spawn(drain(line, inbox, recorder, end, deliver.backlog));
    }
    while polling.join_next().await.is_some() {}
    let totals = ledger.totals();
    let took = ledger.last_arrival().saturating_duration_since(start);
    let figures = vec![
        (
            "messages_per_second",
            totals.arrived as f64 / took.as_secs_f64().max(1e-6),
        ),
        ("messages", totals.arrived as f64),
        ("inserts_per_second", inserts.rate()),
    ];
    let mut report = run.end("contact", figures);
    report.latencies.push(("insert", inserts.latencies()));
    for (failure, count) in inserts.failures() {
        *report.failures.entry(failure).or_default() += count;
    }
    report.messages.push(("to_agents", totals));
    Ok(report)
}

/// Polls until an agent has all of its backlog, or gets nothing for a while.
async fn drain(
    mut line: Line,
    inbox: Arc<Inbox>,
    recorder: Arc<Recorder>,
    end: Instant,
    backlog: u32,
) {
    let agent = Arc::clone(&line.agent);
    let mut ids = Vec::new();
    let mut got = 0;
    let mut failures = 0;
    let mut last = Instant::now();
    while Instant::now() < end && last.elapsed() < PATIENCE && failures < MOST_FAILURES {
        let intended = Instant::now();
        let acknowledging = !ids.is_empty();
        match line.poll(agent.acknowledge(ids.clone())).await {
            Ok(answer) => {
                recorder.record(agent.number, intended);
                failures = 0;
                ids = inbox.take(agent.number, &answer);
                got += ids.len();
                if !ids.is_empty() {
                    last = Instant::now();
                } else if acknowledging && got >= backlog as usize {
                    // All are here, and the server knows it.
                    return;
                } else {
                    tokio::time::sleep(AFTER_NOTHING).await;
                }
            }
            Err(failure) => {
                recorder.fail(&failure);
                failures += 1;
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }
}

/// Pushes messages to agents on open streams.
pub(super) async fn push(bench: &mut Bench, stream: Stream) -> Result<Report> {
    let rate = bench.settings.rate.unwrap_or(PUSHES_PER_SECOND);
    let agents = bench.enrolled(bench.settings.agents).await?;
    let ledger = ledger(bench, stream.payload_bytes);
    let inbox = Inbox::new(&ledger, bench.settings.duration);
    let parameters = json!({
        "payload_bytes": stream.payload_bytes,
        "pushes_per_second": rate,
    });
    // What polls have used must not count as that of streams.
    tokio::time::sleep(PATIENCE.min(bench.settings.duration) / 3).await;
    let opening = Run::begin(bench, "stream", &json!({}));
    let mut receivers = Receivers::new();
    receivers.stream(agents.clone(), &inbox, None).await?;
    tokio::time::sleep(PATIENCE.min(bench.settings.duration) / 3).await;
    let count = agents.len() as f64;
    let (processes, _) = opening.watch.read();
    let opened = opening.end("opening", Vec::new());
    let run = Run::begin(bench, "stream", &parameters);
    let mut report = paced(bench, run, agents, rate, &inbox, Duration::ZERO).await?;
    report
        .figures
        .push(("reconnects", inbox.reconnects() as f64));
    report.figures.push(("opening_seconds", opened.seconds));
    // The generator is the last; the server is named first.
    if let [server, _, ..] = &processes[..] {
        let grown = server.last_kib.saturating_sub(server.first_kib) as f64;
        report.figures.push(("stream_kib_each", grown / count));
    }
    receivers.stop().await;
    Ok(report)
}

/// Sends messages at a rate, and waits for those that were accepted.
async fn paced(
    bench: &Bench,
    run: Run,
    agents: Vec<Arc<Agent>>,
    rate: f64,
    inbox: &Arc<Inbox>,
    poll_every: Duration,
) -> Result<Report> {
    let operators = Operators {
        admin: bench.admin()?,
        ids: bench.random.next_u64(),
        agents: Arc::new(agents),
        ledger: Arc::clone(&inbox.ledger),
        recorder: Arc::clone(&run.recorder),
    };
    operators.send(rate, bench.settings.duration).await;
    let totals = inbox.ledger.settle(PATIENCE + poll_every).await;
    let figures = vec![
        ("messages_per_second", inbox.arrivals.rate()),
        ("messages", totals.arrived as f64),
    ];
    let mut report = run.end("insert", figures);
    report
        .latencies
        .push(("arrival", inbox.arrivals.latencies()));
    report.per_second = inbox.arrivals.seconds();
    for (failure, count) in inbox.polls.failures() {
        *report.failures.entry(failure).or_default() += count;
    }
    report.messages.push(("to_agents", totals));
    Ok(report)
}

fn ledger(bench: &Bench, payload_bytes: usize) -> Arc<Ledger> {
    let run = bench.random.next_u64();
    Arc::new(Ledger::new(run, bench.fleet.len(), payload_bytes))
}

fn first_failure(recorder: &Recorder) -> String {
    let failures = recorder.failures();
    failures.into_keys().next().unwrap_or_default()
}

/// Those who send messages to agents.
#[derive(Clone)]
pub(super) struct Operators {
    pub(super) admin: Admin,
    /// Begins the ids of all messages.
    pub(super) ids: u64,
    pub(super) agents: Arc<Vec<Arc<Agent>>>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) recorder: Arc<Recorder>,
}

impl Operators {
    /// Sends so many messages to each agent, as fast as the server takes them.
    async fn fill(&self, each: u32) {
        let total = self.agents.len() * each as usize;
        let mut workers = JoinSet::new();
        for worker in 0..OPERATORS {
            let mut operators = self.clone();
            workers.spawn(async move {
                let mut failures = 0;
                for at in (worker..total).step_by(OPERATORS) {
                    let agent = Arc::clone(&operators.agents[at % operators.agents.len()]);
                    match operators.insert(&agent, Instant::now()).await {
                        Ok(()) => failures = 0,
                        Err(_) => failures += 1,
                    }
                    if failures == MOST_FAILURES {
                        break;
                    }
                }
            });
        }
        while workers.join_next().await.is_some() {}
    }

    /// Sends messages at a rate, to one agent after the other.
    pub(super) async fn send(&self, rate: f64, duration: Duration) {
        let start = Instant::now();
        let mut workers = JoinSet::new();
        for worker in 0..OPERATORS {
            let mut operators = self.clone();
            let mut schedule = Schedule::new(start, duration, Some(rate), worker, OPERATORS);
            workers.spawn(async move {
                let mut at = worker;
                while let Some(intended) = schedule.turn().await {
                    let agent = Arc::clone(&operators.agents[at % operators.agents.len()]);
                    at += OPERATORS;
                    // It is counted.
                    let _ = operators.insert(&agent, intended).await;
                }
                operators.recorder.skip(schedule.left());
            });
        }
        while workers.join_next().await.is_some() {}
    }

    async fn insert(&mut self, agent: &Agent, intended: Instant) -> Result<(), Failure> {
        let number = self.ledger.next(agent.number);
        let mark = Mark {
            agent: agent.number,
            number,
            intended,
        };
        let source_id = self.ledger.source_id(agent.number, number);
        let id = MessageId::for_source(None, &self.ids.to_string(), &source_id);
        let data = self.ledger.payload(mark);
        let inserted = self
            .admin
            .insert(id, agent.identity.id, SERVICE, data)
            .await;
        match &inserted {
            Ok(()) => {
                self.ledger.accept(agent.number, &[number]);
                self.recorder.record(agent.number, intended);
            }
            Err(failure) => self.recorder.fail(failure),
        }
        inserted
    }
}
