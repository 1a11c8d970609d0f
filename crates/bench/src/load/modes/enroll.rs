//! New agents: a handshake and a first contact each.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use serde_json::json;
use tokio::task::JoinSet;

use crate::load::pace::Schedule;
use crate::load::report::Report;
use crate::load::{Bench, CONNECTING, Run};

/// Enrols as many new agents as the settings say, or as many as there is time for.
pub(super) async fn run(bench: &mut Bench) -> Result<Report> {
    (bench.settings.progress)("making keys");
    let first = bench.fleet.len();
    let recruits = bench.recruit(usize::try_from(bench.settings.agents)?)?;
    let waiting = Arc::new(Mutex::new(recruits.into_iter()));
    let run = Run::begin(bench, "enroll", &json!({}));
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for number in 0..CONNECTING {
        let recorder = Arc::clone(&run.recorder);
        let waiting = Arc::clone(&waiting);
        let settings = &bench.settings;
        let mut schedule =
            Schedule::new(start, settings.duration, settings.rate, number, CONNECTING);
        workers.spawn(async move {
            while let Some(intended) = schedule.turn().await {
                let next = waiting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .next();
                let Some(agent) = next else { break };
                let contact = async {
                    let mut connection = agent.connect().await?;
                    agent.poll(&mut connection, Vec::new()).await
                };
                match contact.await {
                    Ok(_) => recorder.record(agent.number, intended),
                    Err(failure) => recorder.fail(&failure),
                }
            }
        });
    }
    while workers.join_next().await.is_some() {}
    let left = waiting.lock().unwrap_or_else(PoisonError::into_inner).len();
    // Those who were not tried, and those who failed, are not in the fleet.
    if left > 0 || !run.recorder.failures().is_empty() {
        bench.fleet.truncate(first);
    }
    let figures = vec![
        ("enrolments_per_second", run.recorder.rate()),
        ("enrolments", run.recorder.count() as f64),
    ];
    Ok(run.end("enrolment", figures))
}
