//! Messages from agents to a service.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fleethold_proto::fleetspeak::{Address, Message};
use fleethold_store::MessageId;
use serde_json::json;
use tokio::task::JoinSet;

use super::Ingest;
use super::poll::{AFTER_FAILURE, Line, MOST_FAILURES, connect_all};
use crate::load::agent::Agent;
use crate::load::failure::Failure;
use crate::load::ledger::{Ledger, Mark, Totals};
use crate::load::pace::{Recorder, Schedule};
use crate::load::report::Report;
use crate::load::stream::AgentStream;
use crate::load::{Bench, CONNECTING, Run, for_all};

/// How long to wait for messages that the server has accepted and not handed over.
const SETTLE: Duration = Duration::from_secs(3);
/// How many messages are looked up when the service does not count.
const SAMPLES: u32 = 100;

/// How an agent sends.
enum Way {
    Polling(Line),
    Streaming(Arc<Agent>, Option<AgentStream>),
}

/// What all agents of a run share.
struct Work {
    ledger: Arc<Ledger>,
    recorder: Arc<Recorder>,
    service: String,
    messages: u32,
}

pub(super) async fn run(bench: &mut Bench, ingest: &Ingest) -> Result<Report> {
    let agents = bench.enrolled(bench.settings.agents).await?;
    let fleet = bench.fleet.len();
    let ways = ready(agents, ingest.streaming).await?;
    let run = Run::begin(
        bench,
        "ingest",
        &json!({
            "messages_per_contact": ingest.messages,
            "payload_bytes": ingest.payload_bytes,
            "service": ingest.service,
            "streaming": ingest.streaming,
        }),
    );
    let ledger = Arc::new(Ledger::new(
        bench.random.next_u64(),
        fleet,
        ingest.payload_bytes,
    ));
    let arrivals = Arc::new(Recorder::new(bench.settings.duration));
    if ingest.counted {
        bench.service()?.count(&ledger, &arrivals);
    }
    let work = Arc::new(Work {
        ledger: Arc::clone(&ledger),
        recorder: Arc::clone(&run.recorder),
        service: ingest.service.clone(),
        messages: ingest.messages,
    });
    let start = Instant::now();
    let count = ways.len();
    let mut workers = JoinSet::new();
    for (number, mut way) in ways.into_iter().enumerate() {
        let work = Arc::clone(&work);
        let settings = &bench.settings;
        let mut schedule = Schedule::new(start, settings.duration, settings.rate, number, count);
        workers.spawn(async move {
            let mut failures = 0;
            while let Some(intended) = schedule.turn().await {
                match work.send(&mut way, intended).await {
                    Ok(()) => failures = 0,
                    Err(failure) => {
                        work.recorder.fail(&failure);
                        failures += 1;
                        if failures == MOST_FAILURES {
                            break;
                        }
                        tokio::time::sleep(AFTER_FAILURE).await;
                    }
                }
            }
            work.recorder.skip(schedule.left());
        });
    }
    while workers.join_next().await.is_some() {}
    let totals = if ingest.counted {
        ledger.settle(SETTLE).await
    } else {
        look_up(bench, &ledger, &ingest.service).await?
    };
    let mut elapsed = run.recorder.elapsed();
    if ingest.counted {
        elapsed = elapsed.max(ledger.last_arrival().saturating_duration_since(start));
    }
    let done = if ingest.counted {
        totals.arrived.min(totals.accepted)
    } else {
        totals.accepted
    };
    let figures = vec![
        (
            "messages_per_second",
            done as f64 / elapsed.as_secs_f64().max(1e-6),
        ),
        ("contacts_per_second", run.recorder.rate()),
        ("messages", done as f64),
    ];
    let mut report = run.end("contact", figures);
    if ingest.counted {
        report.latencies.push(("arrival", arrivals.latencies()));
    }
    report.messages.push(("to_service", totals));
    Ok(report)
}

/// Connects all agents.
async fn ready(agents: Vec<Arc<Agent>>, streaming: bool) -> Result<Vec<Way>> {
    if !streaming {
        let lines = connect_all(agents).await?.into_iter();
        let line = |(agent, connection)| {
            Way::Polling(Line {
                agent,
                connection: Some(connection),
            })
        };
        return Ok(lines.map(line).collect());
    }
    let open = |agent: Arc<Agent>| async move {
        let (stream, _) = agent.stream(Vec::new()).await?;
        Ok(Way::Streaming(agent, Some(stream)))
    };
    let ways = for_all(agents, CONNECTING, open).await;
    ways.context("an agent cannot open a stream")
}

/// Asks the server about the first messages of some agents.
async fn look_up(bench: &Bench, ledger: &Ledger, service: &str) -> Result<Totals> {
    let mut totals = ledger.totals();
    // Nobody counts them; those that are asked about stand for the others.
    totals.arrived = totals.accepted;
    totals.missing = 0;
    let Ok(mut admin) = bench.admin() else {
        return Ok(totals);
    };
    let from = bench.around.service;
    for agent in bench
        .fleet
        .iter()
        .filter(|agent| ledger.has_accepted(agent.number, 0))
        .take(SAMPLES as usize)
    {
        let source_id = ledger.source_id(agent.number, 0);
        let id = MessageId::for_source(Some(agent.identity.id), from, &source_id);
        let processed = admin.is_processed(id).await;
        let processed =
            processed.with_context(|| format!("cannot ask about messages for `{service}`"))?;
        if !processed {
            totals.arrived -= 1;
            totals.missing += 1;
        }
    }
    Ok(totals)
}

impl Work {
    /// Sends one contact's messages and waits for the server's word.
    async fn send(&self, way: &mut Way, intended: Instant) -> Result<(), Failure> {
        let agent = match way {
            Way::Polling(line) => &line.agent,
            Way::Streaming(agent, _) => agent,
        };
        let number = agent.number;
        let numbers: Vec<_> = (0..self.messages)
            .map(|_| self.ledger.next(number))
            .collect();
        let messages = numbers
            .iter()
            .map(|message| upward(agent, &self.ledger, &self.service, *message, intended))
            .collect();
        match way {
            Way::Polling(line) => {
                line.poll(messages).await?;
            }
            Way::Streaming(agent, stream) => {
                let mut open = match stream.take() {
                    Some(open) => open,
                    None => agent.stream(Vec::new()).await?.0,
                };
                agent.send_record(&mut open, messages, 0).await?;
                acknowledged(&mut open).await?;
                *stream = Some(open);
            }
        }
        self.ledger.accept(number, &numbers);
        self.recorder.record(number, intended);
        Ok(())
    }
}

/// Waits for the acknowledgement of a record.
async fn acknowledged(stream: &mut AgentStream) -> Result<(), Failure> {
    let ack = async {
        while stream.next_frame().await?.ack_index == 0 {}
        Ok(())
    };
    Failure::within(crate::load::agent::ANSWER_LIMIT, "an acknowledgement", ack).await
}

/// Makes a message from an agent to a service of the server.
pub(super) fn upward(
    agent: &Agent,
    ledger: &Ledger,
    service: &str,
    number: u32,
    intended: Instant,
) -> Message {
    let address = |service: &str| {
        Some(Address {
            service_name: service.to_owned(),
            ..Address::default()
        })
    };
    Message {
        source: address(agent.around().service),
        source_message_id: ledger.source_id(agent.number, number),
        destination: address(service),
        message_type: "Bench".to_owned(),
        data: Some(ledger.payload(Mark {
            agent: agent.number,
            number,
            intended,
        })),
        ..Message::default()
    }
}
