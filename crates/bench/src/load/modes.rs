//! What agents do in each mode.

mod broadcast;
mod deliver;
mod enroll;
mod ingest;
mod mixed;
mod poll;
mod receivers;

use std::time::Duration;

use anyhow::{Result, bail};

use super::report::Report;
use super::{Bench, MOST_MESSAGES, Settings};

/// Payloads may be this large: agents send no more than 2 MB in a message.
const MOST_PAYLOAD_BYTES: usize = 2_000_000;

/// What a run measures.
#[derive(Clone, Debug)]
pub enum Mode {
    /// New agents make their first contact.
    Enroll,
    /// Agents poll, and there is nothing to do.
    Poll(Poll),
    /// Agents send messages to a service.
    Ingest(Ingest),
    /// Agents poll for messages from operators.
    Deliver(Deliver),
    /// A message is pushed to an agent on an open stream.
    Stream(Stream),
    /// One message goes to all agents, or to some.
    Broadcast(Broadcast),
    /// All of it at once, as in a fleet.
    Mixed(Mixed),
    /// As [`Mixed`](Self::Mixed), with snapshots, for hours.
    Soak(Mixed),
}

/// Idle polls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Poll {
    /// Whether each poll makes a connection of its own.
    pub handshake: bool,
}

/// Messages from agents.
#[derive(Clone, Debug)]
pub struct Ingest {
    /// Messages in each contact, 1 to 100.
    pub messages: u32,
    /// Bytes of payload in each.
    pub payload_bytes: usize,
    /// The service on the server that takes them.
    pub service: String,
    /// Whether it is the generator's own, so that arrivals can be counted.
    pub counted: bool,
    /// Whether agents send on streams.
    pub streaming: bool,
}

/// Messages to polling agents.
#[derive(Clone, Copy, Debug)]
pub struct Deliver {
    /// Messages that wait for each agent before it polls; with a rate in the
    /// settings none waits, and messages are sent at this rate.
    pub backlog: u32,
    /// Bytes of payload in each.
    pub payload_bytes: usize,
    /// How often each agent polls when messages are sent at a rate.
    pub poll_every: Duration,
}

/// Messages to agents on open streams, at the rate in the settings.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// Bytes of payload in each.
    pub payload_bytes: usize,
}

/// A broadcast.
#[derive(Clone, Copy, Debug)]
pub struct Broadcast {
    /// The most agents that may have it; none: all.
    pub limit: Option<u32>,
    /// Whether agents poll, so often, instead of streaming.
    pub poll_every: Option<Duration>,
}

/// A day of a fleet, or a part of it.
#[derive(Clone, Copy, Debug)]
pub struct Mixed {
    /// The part of agents that stream, 0 to 1; the others poll.
    pub streaming: f64,
    /// How often the others poll.
    pub poll_every: Duration,
    /// Messages from each agent, per hour.
    pub up_per_hour: f64,
    /// Messages to each agent, per hour.
    pub down_per_hour: f64,
    /// Bytes of payload in each.
    pub payload_bytes: usize,
}

impl Mode {
    /// Returns its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Enroll => "enroll",
            Self::Poll(_) => "poll",
            Self::Ingest(_) => "ingest",
            Self::Deliver(_) => "deliver",
            Self::Stream(_) => "stream",
            Self::Broadcast(_) => "broadcast",
            Self::Mixed(_) => "mixed",
            Self::Soak(_) => "soak",
        }
    }

    /// Checks what can be checked without a server.
    pub(crate) fn check(&self, settings: &Settings) -> Result<()> {
        let payload = match self {
            Self::Ingest(ingest) => {
                if !(1..=100).contains(&ingest.messages) {
                    bail!(
                        "{} messages per contact are not possible; agents send 1 to 100",
                        ingest.messages
                    );
                }
                ingest.payload_bytes
            }
            Self::Deliver(deliver) => {
                let messages = u64::from(deliver.backlog) * u64::from(settings.agents);
                if messages > MOST_MESSAGES {
                    bail!("{messages} messages are too many; ask for up to {MOST_MESSAGES}");
                }
                if deliver.backlog == 0 && settings.rate.is_none() {
                    bail!("neither a backlog nor a rate is given; ask for one of them");
                }
                deliver.payload_bytes
            }
            Self::Stream(stream) => stream.payload_bytes,
            Self::Mixed(mixed) | Self::Soak(mixed) => {
                if !(0.0..=1.0).contains(&mixed.streaming) {
                    bail!("the part of streaming agents is a number from 0 to 1");
                }
                let hours = settings.duration.as_secs_f64() / 3600.0;
                let messages =
                    (mixed.up_per_hour + mixed.down_per_hour) * hours * f64::from(settings.agents);
                if !messages.is_finite() || !(0.0..=MOST_MESSAGES as f64).contains(&messages) {
                    bail!("{messages} messages are not possible; ask for up to {MOST_MESSAGES}");
                }
                mixed.payload_bytes
            }
            Self::Enroll | Self::Poll(_) | Self::Broadcast(_) => 0,
        };
        if payload > MOST_PAYLOAD_BYTES {
            bail!("a payload of {payload} bytes is too large; ask for up to {MOST_PAYLOAD_BYTES}");
        }
        Ok(())
    }

    /// Returns how long the run may take if all goes well.
    pub(crate) fn longest(&self, settings: &Settings) -> Duration {
        let insert = match self {
            // A slow server takes some hundred messages a second.
            Self::Deliver(deliver) => u64::from(deliver.backlog) * u64::from(settings.agents) / 100,
            _ => 0,
        };
        // Enrolment comes first; a slow server enrols some fifty a second.
        settings.duration + Duration::from_secs(insert + u64::from(settings.agents) / 50)
    }
}

pub(crate) async fn run(bench: &mut Bench, mode: &Mode) -> Result<Report> {
    match mode {
        Mode::Enroll => enroll::run(bench).await,
        Mode::Poll(poll) => poll::run(bench, *poll).await,
        Mode::Ingest(ingest) => ingest::run(bench, ingest).await,
        Mode::Deliver(deliver) => deliver::run(bench, *deliver).await,
        Mode::Stream(stream) => deliver::push(bench, *stream).await,
        Mode::Broadcast(broadcast) => broadcast::run(bench, *broadcast).await,
        Mode::Mixed(mixed) => mixed::run(bench, *mixed, None).await,
        Mode::Soak(mixed) => mixed::run(bench, *mixed, Some(mixed::SNAPSHOT_EVERY)).await,
    }
}
