//! Agents that wait for messages, on streams or by polls, and acknowledge
//! what they get.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use fleethold_proto::fleetspeak::ContactData;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ingest::upward;
use super::poll::Line;
use crate::load::agent::Agent;
use crate::load::failure::Failure;
use crate::load::ledger::Ledger;
use crate::load::pace::Recorder;
use crate::load::stream::AgentStream;
use crate::load::{CONNECTING, for_all};

/// Real agents poll again so soon after they got something.
const AFTER_MESSAGES: Duration = Duration::from_millis(200);
/// Real agents close a connection they do not need for so long.
const KEEP_IDLE: Duration = Duration::from_secs(30);
/// How long an agent waits after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Begins the types of broadcasts' messages.
pub(super) const BROADCAST: &str = "BenchBroadcast";

/// What agents got.
pub(super) struct Inbox {
    pub(super) ledger: Arc<Ledger>,
    /// From the plan to send a message until it arrived.
    pub(super) arrivals: Arc<Recorder>,
    /// From the plan to poll until the answer.
    pub(super) polls: Arc<Recorder>,
    broadcasts: Mutex<BTreeMap<String, Vec<(u32, Instant)>>>,
    acknowledged: AtomicU64,
    reconnects: AtomicU64,
    handshakes: AtomicU64,
    records: AtomicU64,
}

/// What each agent sends of its own.
#[derive(Clone)]
pub(super) struct Sending {
    pub(super) ledger: Arc<Ledger>,
    /// From the plan to send until the server's word.
    pub(super) recorder: Arc<Recorder>,
    pub(super) service: String,
    pub(super) every: Duration,
}

/// Agents that run until this is dropped.
pub(super) struct Receivers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Inbox {
    pub(super) fn new(ledger: &Arc<Ledger>, longest: Duration) -> Arc<Self> {
        Arc::new(Self {
            ledger: Arc::clone(ledger),
            arrivals: Arc::new(Recorder::new(longest)),
            polls: Arc::new(Recorder::new(longest)),
            broadcasts: Mutex::default(),
            acknowledged: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            handshakes: AtomicU64::new(0),
            records: AtomicU64::new(0),
        })
    }

    /// Takes what a server sent; returns the ids of messages to acknowledge.
    pub(super) fn take(&self, agent: u32, contact: &ContactData) -> Vec<Bytes> {
        let mut ids = Vec::with_capacity(contact.messages.len());
        for message in &contact.messages {
            if message.message_type.starts_with(BROADCAST) {
                let mut broadcasts = self.broadcasts();
                let arrivals = broadcasts.entry(message.message_type.clone()).or_default();
                arrivals.push((agent, Instant::now()));
            } else if let Some(mark) = message
                .data
                .as_ref()
                .and_then(|data| self.ledger.read(data))
                && mark.agent == agent
                && self.ledger.arrive(mark)
            {
                self.arrivals.record(agent, mark.intended);
            }
            ids.push(message.message_id.clone());
        }
        self.acknowledged
            .fetch_add(ids.len() as u64, Ordering::Relaxed);
        ids
    }

    /// Returns who got a broadcast, and when.
    pub(super) fn arrivals_of(&self, message_type: &str) -> Vec<(u32, Instant)> {
        self.broadcasts()
            .get(message_type)
            .cloned()
            .unwrap_or_default()
    }

    pub(super) fn count_of(&self, message_type: &str) -> usize {
        self.broadcasts().get(message_type).map_or(0, Vec::len)
    }

    /// Returns how often agents opened a stream again.
    pub(super) fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Returns for how many polls a connection was made.
    pub(super) fn handshakes(&self) -> u64 {
        self.handshakes.load(Ordering::Relaxed)
    }

    /// Returns how many records agents sent on open streams.
    pub(super) fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    fn broadcasts(&self) -> MutexGuard<'_, BTreeMap<String, Vec<(u32, Instant)>>> {
        self.broadcasts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receivers {
    pub(super) fn new() -> Self {
        Self {
            stop: CancellationToken::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Opens a stream for each of these agents, and returns when all are open.
    pub(super) async fn stream(
        &mut self,
        agents: Vec<Arc<Agent>>,
        inbox: &Arc<Inbox>,
        sending: Option<&Sending>,
    ) -> Result<()> {
        let open = |agent: Arc<Agent>| async move {
            let (stream, first) = agent.stream(Vec::new()).await?;
            Ok((agent, stream, first))
        };
        let opened = for_all(agents, CONNECTING, open)
            .await
            .context("an agent cannot open a stream")?;
        let count = opened.len();
        let start = Instant::now();
        for (at, (agent, stream, first)) in opened.into_iter().enumerate() {
            let streaming = Streaming {
                agent,
                inbox: Arc::clone(inbox),
                plan: Plan::new(sending, start, at, count),
                outstanding: VecDeque::new(),
            };
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = Box::pin(streaming.run(stream, first)) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        Ok(())
    }

    /// Lets each of these agents poll so often; they begin one after the other.
    pub(super) fn poll(
        &mut self,
        agents: Vec<Arc<Agent>>,
        every: Duration,
        inbox: &Arc<Inbox>,
        sending: Option<&Sending>,
    ) {
        let start = Instant::now();
        let count = agents.len();
        for (at, agent) in agents.into_iter().enumerate() {
            let polling = Polling {
                line: Line {
                    agent,
                    connection: None,
                },
                inbox: Arc::clone(inbox),
                plan: Plan::new(sending, start, at, count),
                every,
                next: start + every.mul_f64(at as f64 / count as f64),
            };
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = Box::pin(polling.run()) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    /// Stops all agents.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// When an agent sends its messages.
struct Plan {
    sending: Option<Sending>,
    next: Instant,
}

impl Plan {
    fn new(sending: Option<&Sending>, start: Instant, at: usize, count: usize) -> Self {
        let offset = sending.map_or(Duration::ZERO, |sending| {
            sending.every.mul_f64((at as f64 + 0.5) / count as f64)
        });
        Self {
            sending: sending.cloned(),
            next: start + offset,
        }
    }

    /// Returns when the next message is due, if there is any.
    fn next(&self) -> Option<Instant> {
        self.sending.as_ref().map(|_| self.next)
    }

    /// Waits for the next message; for ever, if there is none.
    async fn due(&self) {
        match self.next() {
            Some(next) => tokio::time::sleep_until(next.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Takes the message that is due.
    fn take(&mut self, agent: &Agent) -> Option<(fleethold_proto::fleetspeak::Message, Sent)> {
        let sending = self.sending.as_ref()?;
        let intended = self.next;
        if Instant::now() < intended {
            return None;
        }
        self.next += sending.every;
        let number = sending.ledger.next(agent.number);
        let message = upward(agent, &sending.ledger, &sending.service, number, intended);
        Some((message, Sent { number, intended }))
    }

    /// Notes the server's word for a message.
    fn accepted(&self, agent: &Agent, sent: Sent) {
        if let Some(sending) = &self.sending {
            sending.ledger.accept(agent.number, &[sent.number]);
            sending.recorder.record(agent.number, sent.intended);
        }
    }
}

/// A message without the server's word.
#[derive(Clone, Copy)]
struct Sent {
    number: u32,
    intended: Instant,
}

struct Streaming {
    agent: Arc<Agent>,
    inbox: Arc<Inbox>,
    plan: Plan,
    /// What records hold that are not acknowledged.
    outstanding: VecDeque<Option<Sent>>,
}

impl Streaming {
    async fn run(mut self, stream: AgentStream, first: ContactData) {
        let mut open = Some((stream, first));
        loop {
            let (stream, first) = match open.take() {
                Some(open) => open,
                None => match self.agent.stream(Vec::new()).await {
                    Ok(open) => open,
                    Err(failure) => {
                        self.inbox.polls.fail(&failure);
                        tokio::time::sleep(AFTER_FAILURE).await;
                        continue;
                    }
                },
            };
            match self.serve(stream, first).await {
                Failure::Ended => {}
                failure => self.inbox.polls.fail(&failure),
            }
            self.inbox.reconnects.fetch_add(1, Ordering::Relaxed);
            self.outstanding.clear();
            tokio::time::sleep(AFTER_MESSAGES).await;
        }
    }

    /// Uses a stream until it ends, and returns why.
    async fn serve(&mut self, mut stream: AgentStream, first: ContactData) -> Failure {
        if let Err(failure) = self.take(&mut stream, &first).await {
            return failure;
        }
        loop {
            let result = tokio::select! {
                frame = stream.next_frame() => match frame {
                    Ok(frame) if frame.done_sending => Err(Failure::Ended),
                    Ok(frame) => {
                        if frame.ack_index > 0
                            && let Some(Some(sent)) = self.outstanding.pop_front()
                        {
                            self.plan.accepted(&self.agent, sent);
                        }
                        self.take(&mut stream, &frame).await
                    }
                    Err(failure) => Err(failure),
                },
                () = self.plan.due() => self.send(&mut stream).await,
            };
            if let Err(failure) = result {
                return failure;
            }
        }
    }

    /// Takes a frame and acknowledges its messages.
    async fn take(&mut self, stream: &mut AgentStream, frame: &ContactData) -> Result<(), Failure> {
        let ids = self.inbox.take(self.agent.number, frame);
        if ids.is_empty() {
            return Ok(());
        }
        let processed = ids.len() as u64;
        self.outstanding.push_back(None);
        self.inbox.records.fetch_add(1, Ordering::Relaxed);
        let acknowledgement = self.agent.acknowledge(ids);
        self.agent
            .send_record(stream, acknowledgement, processed)
            .await
    }

    async fn send(&mut self, stream: &mut AgentStream) -> Result<(), Failure> {
        let Some((message, sent)) = self.plan.take(&self.agent) else {
            return Ok(());
        };
        self.outstanding.push_back(Some(sent));
        self.inbox.records.fetch_add(1, Ordering::Relaxed);
        self.agent.send_record(stream, vec![message], 0).await
    }
}

struct Polling {
    line: Line,
    inbox: Arc<Inbox>,
    plan: Plan,
    every: Duration,
    next: Instant,
}

impl Polling {
    async fn run(mut self) {
        let mut ids = Vec::new();
        let mut again: Option<Instant> = None;
        loop {
            let due = [again, self.plan.next()].into_iter().flatten();
            let due = due.fold(self.next, Instant::min);
            if due.saturating_duration_since(Instant::now()) > KEEP_IDLE {
                self.line.connection = None;
            }
            tokio::time::sleep_until(due.into()).await;
            let agent = Arc::clone(&self.line.agent);
            let taken = self.plan.take(&agent);
            let mut messages = agent.acknowledge(std::mem::take(&mut ids));
            let sent = taken.map(|(message, sent)| {
                messages.push(message);
                sent
            });
            if self.line.connection.is_none() {
                self.inbox.handshakes.fetch_add(1, Ordering::Relaxed);
            }
            match self.line.poll(messages).await {
                Ok(answer) => {
                    self.inbox.polls.record(agent.number, due);
                    if let Some(sent) = sent {
                        self.plan.accepted(&agent, sent);
                    }
                    ids = self.inbox.take(agent.number, &answer);
                }
                Err(failure) => {
                    self.inbox.polls.fail(&failure);
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
            again = (!ids.is_empty()).then(|| Instant::now() + AFTER_MESSAGES);
            while self.next <= due {
                self.next += self.every;
            }
        }
    }
}
