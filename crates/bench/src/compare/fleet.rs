//! A large fleet: what each event costs a server that has little to do, and
//! all of them together, so that a sum can be compared with what it foretells.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::Comparison;
use super::systems::{Bed, Programs, System};
use super::turns::{SMALL, Turn, cpu_seconds};
use super::works::Work;
use crate::load::{Broadcast, Ingest, Mixed, Mode, Poll, Report, SERVICE, Stream};

/// What each agent does: the defaults of `fleethold bench mixed`.
pub(super) const UP_PER_HOUR: f64 = 60.0;
pub(super) const DOWN_PER_HOUR: f64 = 6.0;
pub(super) const STREAMING: f64 = 0.5;
pub(super) const POLL_EVERY: Duration = Duration::from_secs(300);

/// Events of one kind per second while its cost is measured: about what the
/// whole fleet makes of each kind, so that as little is shared as there.
const EVENTS_PER_SECOND: f64 = 100.0;
/// The part of the fleet that makes them.
const ACTIVE: u32 = 5;
/// Keeps the time of idle streams from being that of pushes.
const PUSHES_PER_SECOND: f64 = 1.0;

/// Costs in processor time of server and database.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventCosts {
    /// A poll, or a record of a stream, with what each of them writes.
    pub(super) contact_us: f64,
    pub(super) handshake_us: f64,
    pub(super) up_us: f64,
    pub(super) down_us: f64,
    /// With its acknowledgement.
    pub(super) broadcast_us: f64,
    /// For each second that a stream is open.
    pub(super) stream_us: f64,
}

/// How much happens, in a run or in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Events {
    pub(super) seconds: f64,
    pub(super) contacts: f64,
    pub(super) handshakes: f64,
    pub(super) up: f64,
    pub(super) down: f64,
    pub(super) broadcast_messages: f64,
    pub(super) streams: f64,
    /// What it took, where it was measured.
    pub(super) cpu_seconds: Option<f64>,
}

impl Events {
    fn of(report: &Report) -> Option<Self> {
        Some(Self {
            seconds: report.figure("worked_seconds")?,
            // Acknowledgements of broadcasts come in a burst, and are part of
            // what a broadcast's message was measured to cost.
            contacts: (report.figure("contacts")? - report.figure("broadcast_messages")?).max(0.0),
            handshakes: report.figure("handshakes")?,
            up: report.figure("messages_up")?,
            down: report.figure("messages_down")?,
            broadcast_messages: report.figure("broadcast_messages")?,
            streams: report.figure("streams")?,
            cpu_seconds: report.figure("cpu_seconds_while_working"),
        })
    }

    /// Returns what a fleet does in each second of a day with one broadcast.
    pub(super) fn per_second(agents: f64) -> Self {
        const HOUR_SECONDS: f64 = 3600.0;
        const BROADCASTS_PER_SECOND: f64 = 1.0 / (24.0 * HOUR_SECONDS);
        let (up, down) = (UP_PER_HOUR / HOUR_SECONDS, DOWN_PER_HOUR / HOUR_SECONDS);
        let polling = agents * (1.0 - STREAMING);
        let idle_polls = polling / POLL_EVERY.as_secs_f64();
        Self {
            seconds: 1.0,
            // Each message up has a contact of its own, and each message down
            // an acknowledgement, on whichever way.
            contacts: idle_polls + agents * (up + down),
            // Acknowledgements follow on the same connection.
            handshakes: idle_polls + polling * up,
            up: agents * up,
            down: agents * down,
            broadcast_messages: agents * BROADCASTS_PER_SECOND,
            streams: agents * STREAMING,
            cpu_seconds: None,
        }
    }
}

impl EventCosts {
    pub(super) fn cpu_seconds(&self, events: &Events) -> f64 {
        let micros = events.contacts * self.contact_us
            + events.handshakes * self.handshake_us
            + events.up * self.up_us
            + events.down * self.down_us
            + events.broadcast_messages * self.broadcast_us
            + events.streams * events.seconds * self.stream_us;
        micros / 1e6
    }
}

impl Comparison {
    /// Returns the terms of the sizing formula, from what was measured one by one.
    pub(super) fn event_costs(&self, system: System) -> Option<EventCosts> {
        let median = |work| self.median(work, system);
        let contact_us = median(Work::FleetContact)?;
        // Each of these was measured with the contact that carries it, or that
        // carries its acknowledgement.
        let beyond = |us: f64| (us - contact_us).max(0.0);
        Some(EventCosts {
            contact_us,
            handshake_us: beyond(median(Work::FleetHandshake)?),
            up_us: beyond(median(Work::FleetUp)?),
            down_us: beyond(median(Work::FleetDown)?),
            broadcast_us: median(Work::FleetBroadcast)?,
            stream_us: median(Work::FleetStream)?,
        })
    }

    /// Returns what the formula gives for each simulated fleet, and what it took.
    pub(super) fn sizing_checks(&self) -> Value {
        let mut checks = serde_json::Map::new();
        for (system, events) in &self.fleets {
            let Some(costs) = self.event_costs(*system) else {
                continue;
            };
            let check = json!({
                "seconds": events.seconds,
                "contacts": events.contacts,
                "handshakes": events.handshakes,
                "messages_up": events.up,
                "messages_down": events.down,
                "broadcast_messages": events.broadcast_messages,
                "streams": events.streams,
                "computed_cpu_seconds": costs.cpu_seconds(events),
                "measured_cpu_seconds": events.cpu_seconds,
            });
            checks.insert(system.name().to_owned(), check);
        }
        Value::Object(checks)
    }
}

impl Turn<'_> {
    /// A broadcast to many streams, the cost of each kind of event, and a fleet
    /// in which all of them happen.
    pub(super) async fn fleet(&mut self, programs: &Programs) -> Result<()> {
        let size = self.options.size;
        let bed = Bed::make(self.system, programs).await?;
        let running = bed.start().await?;
        let mut bench = bed.connect(&running).await?;
        bench.settings.agents = size.large;
        bench.settings.duration = size.broadcast_limit / 2;
        let broadcast = Mode::Broadcast(Broadcast {
            limit: None,
            poll_every: None,
        });
        if let Some(report) = self.run(&mut bench, &broadcast).await {
            self.seconds(Work::BroadcastLarge, &report);
            self.cpu(Work::FleetBroadcast, &report, "reached");
        }
        bench.settings.agents = (size.large / ACTIVE).max(1);
        bench.settings.duration = size.fleet / 5;
        bench.settings.rate = Some(EVENTS_PER_SECOND);
        let poll = |handshake| Mode::Poll(Poll { handshake });
        let ingest = Mode::Ingest(Ingest {
            messages: 1,
            payload_bytes: SMALL,
            service: SERVICE.to_owned(),
            counted: true,
            streaming: true,
        });
        let push = Mode::Stream(Stream {
            payload_bytes: SMALL,
        });
        for (mode, work, events) in [
            (poll(false), Work::FleetContact, "polls"),
            (poll(true), Work::FleetHandshake, "polls"),
            (ingest, Work::FleetUp, "messages"),
            (push.clone(), Work::FleetDown, "messages"),
        ] {
            if let Some(report) = self.run(&mut bench, &mode).await {
                self.cpu(work, &report, events);
            }
        }
        let streams = f64::from(size.large) * STREAMING;
        bench.settings.agents = (streams as u32).max(1);
        bench.settings.duration = size.fleet / 3;
        bench.settings.rate = Some(PUSHES_PER_SECOND);
        if let Some(report) = self.run(&mut bench, &push).await {
            let push_us = self.comparison.median(Work::FleetDown, self.system);
            let pushes_us = report.figure("messages").unwrap_or(0.0) * push_us.unwrap_or(0.0);
            let idle_us = (cpu_seconds(&report) * 1e6 - pushes_us).max(0.0);
            self.add(Work::FleetStream, idle_us / streams / report.seconds);
        }
        bench.settings.rate = None;
        bench.settings.agents = size.large;
        bench.settings.duration = size.fleet;
        let mixed = Mode::Mixed(Mixed {
            streaming: STREAMING,
            poll_every: POLL_EVERY,
            up_per_hour: UP_PER_HOUR,
            down_per_hour: DOWN_PER_HOUR,
            payload_bytes: SMALL,
        });
        if let Some(report) = self.run(&mut bench, &mixed).await {
            self.figure(Work::MixedCpu, &report, "cpu_percent_while_working");
            if let Some(latencies) = report.latency("message_at_service") {
                self.add(Work::MixedArrivalP99, latencies.percentile_ms(99.0));
            }
            if let Some(events) = Events::of(&report) {
                self.comparison.fleets.insert(self.system, events);
            }
        }
        drop(bench);
        running.stop().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: EventCosts = EventCosts {
        contact_us: 100.0,
        handshake_us: 200.0,
        up_us: 300.0,
        down_us: 400.0,
        broadcast_us: 500.0,
        stream_us: 6.0,
    };

    #[test]
    fn every_kind_of_event_counts_in_the_sum() {
        let none = Events {
            seconds: 10.0,
            contacts: 0.0,
            handshakes: 0.0,
            up: 0.0,
            down: 0.0,
            broadcast_messages: 0.0,
            streams: 0.0,
            cpu_seconds: None,
        };
        let micros = |events| (COSTS.cpu_seconds(&events) * 1e6).round();
        assert!(micros(none).abs() < f64::EPSILON);
        let contacts = 2.0;
        assert_eq!(micros(Events { contacts, ..none }), 200.0);
        let handshakes = 2.0;
        assert_eq!(micros(Events { handshakes, ..none }), 400.0);
        assert_eq!(micros(Events { up: 2.0, ..none }), 600.0);
        assert_eq!(micros(Events { down: 2.0, ..none }), 800.0);
        let broadcast_messages = 2.0;
        assert_eq!(
            micros(Events {
                broadcast_messages,
                ..none
            }),
            1000.0
        );
        assert_eq!(
            micros(Events {
                streams: 2.0,
                ..none
            }),
            120.0
        );
    }

    #[test]
    fn a_fleet_makes_the_contacts_that_its_messages_and_polls_need() {
        let fleet = Events::per_second(7_200.0);
        // 120 up, 12 acknowledged, 12 idle polls.
        assert_eq!(fleet.contacts.round(), 144.0);
        // Idle polls, and those with messages of agents that poll.
        assert_eq!(fleet.handshakes.round(), 72.0);
        assert_eq!(fleet.streams.round(), 3_600.0);
    }
}
