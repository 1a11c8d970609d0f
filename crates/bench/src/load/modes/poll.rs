//! Idle polls, over kept connections or new ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::task::JoinSet;

use super::Poll;
use crate::load::agent::{Agent, Connection};
use crate::load::failure::Failure;
use crate::load::pace::Schedule;
use crate::load::report::Report;
use crate::load::{Bench, CONNECTING, Run, for_all};

/// How long an agent waits after a failure.
pub(super) const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// After so many failures in a row an agent gives up.
pub(super) const MOST_FAILURES: u32 = 50;

pub(super) async fn run(bench: &mut Bench, poll: Poll) -> Result<Report> {
    let agents = bench.enrolled(bench.settings.agents).await?;
    let connected = connect_all(agents).await?;
    let run = Run::begin(bench, "poll", &json!({ "handshake_each": poll.handshake }));
    let start = Instant::now();
    let count = connected.len();
    let mut workers = JoinSet::new();
    for (number, (agent, connection)) in connected.into_iter().enumerate() {
        let recorder = Arc::clone(&run.recorder);
        let settings = &bench.settings;
        let mut schedule = Schedule::new(start, settings.duration, settings.rate, number, count);
        workers.spawn(async move {
            let mut line = Line {
                agent,
                connection: Some(connection),
            };
            let mut failures = 0;
            while let Some(intended) = schedule.turn().await {
                if poll.handshake {
                    line.connection = None;
                }
                match line.poll(Vec::new()).await {
                    Ok(_) => {
                        recorder.record(line.agent.number, intended);
                        failures = 0;
                    }
                    Err(failure) => {
                        recorder.fail(&failure);
                        failures += 1;
                        if failures == MOST_FAILURES {
                            break;
                        }
                        tokio::time::sleep(AFTER_FAILURE).await;
                    }
                }
            }
            recorder.skip(schedule.left());
        });
    }
    while workers.join_next().await.is_some() {}
    let figures = vec![
        ("polls_per_second", run.recorder.rate()),
        ("polls", run.recorder.count() as f64),
    ];
    Ok(run.end("poll", figures))
}

/// Connects all agents, and lets each poll once.
pub(super) async fn connect_all(agents: Vec<Arc<Agent>>) -> Result<Vec<(Arc<Agent>, Connection)>> {
    let connect = |agent: Arc<Agent>| async move {
        let mut connection = agent.connect().await?;
        agent.poll(&mut connection, Vec::new()).await?;
        Ok((agent, connection))
    };
    let connected = for_all(agents, CONNECTING, connect).await;
    connected.context("an agent cannot connect")
}

/// An agent with its connection, which is made again when it is lost.
pub(super) struct Line {
    pub(super) agent: Arc<Agent>,
    pub(super) connection: Option<Connection>,
}

impl Line {
    pub(super) async fn poll(
        &mut self,
        messages: Vec<fleethold_proto::fleetspeak::Message>,
    ) -> Result<fleethold_proto::fleetspeak::ContactData, Failure> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.agent.connect().await?,
        };
        let answer = self.agent.poll(&mut connection, messages).await?;
        self.connection = Some(connection);
        Ok(answer)
    }
}
