//! How large a server has to be, computed from what a comparison measured.

use std::fmt::Write as _;

use super::fleet::{DOWN_PER_HOUR, EventCosts, Events, POLL_EVERY, STREAMING, UP_PER_HOUR};
use super::works::Work;
use super::{Comparison, System};
use crate::figures::number;

/// The part of its processors that a server should use at most.
const UTILIZATION: f64 = 0.6;
/// How far the formula may be from its check, as a factor.
const CLOSE: f64 = 1.5;
const FLEETS: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];
const DAY_SECONDS: f64 = 86_400.0;

/// What one agent, message or poll costs on a system.
struct Costs {
    events: EventCosts,
    stream_kib: f64,
    base_mib: f64,
    message_bytes: f64,
    poll_bytes: f64,
}

impl Comparison {
    fn costs(&self, system: System) -> Option<Costs> {
        let median = |work| self.median(work, system);
        Some(Costs {
            events: self.event_costs(system)?,
            stream_kib: median(Work::StreamMemory)?,
            base_mib: median(Work::Memory)?,
            message_bytes: median(Work::DiskMessage)?,
            poll_bytes: median(Work::DiskPoll)?.max(0.0),
        })
    }

    /// Returns the sizing table in Markdown, if enough was measured.
    pub fn sizing(&self) -> Option<String> {
        let (mut costs_rows, mut rows, mut checks) = <(String, String, String)>::default();
        for system in &self.systems {
            if *system == System::Stock {
                continue;
            }
            let Some(costs) = self.costs(*system) else {
                continue;
            };
            let events = &costs.events;
            let _ = writeln!(
                costs_rows,
                "| {} | {} µs | {} µs | {} µs | {} µs | {} µs | {} µs | {} KiB | {} MiB | {} B | {} B |",
                system.title(),
                number(events.contact_us),
                number(events.handshake_us),
                number(events.up_us),
                number(events.down_us),
                number(events.broadcast_us),
                number(events.stream_us),
                number(costs.stream_kib),
                number(costs.base_mib),
                number(costs.message_bytes),
                number(costs.poll_bytes),
            );
            for agents in FLEETS {
                rows.push_str(&costs.row(*system, agents));
            }
            if let Some(events) = self.fleets.get(system) {
                checks.push_str(&costs.check(*system, events).unwrap_or_default());
            }
        }
        if rows.is_empty() {
            return None;
        }
        let mut text = format!(
            "Costs, measured one by one in the run in [benchmarks.md](benchmarks.md), server and database together:\n\n\
             | store | contact | handshake | message up | message down | broadcast message | open stream, per second | memory per stream | server without streams | disk per message | disk per poll |\n\
             | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n{costs_rows}\n\
             For a fleet in which {:.0} % of the agents stream, the others poll every {:.0} s, each agent \
             sends {UP_PER_HOUR} and gets {DOWN_PER_HOUR} messages of 100 bytes per hour, and one broadcast a day goes to all:\n\n\
             | agents | messages per day | store | cores | memory | disk per day | |\n\
             | ---: | ---: | --- | ---: | ---: | ---: | --- |\n{rows}",
            STREAMING * 100.0,
            POLL_EVERY.as_secs_f64(),
        );
        if !checks.is_empty() {
            let _ = write!(
                text,
                "\nChecked by fleets that do all of it at once, with a broadcast in the midst (`mixed`); the formula, without ÷ {UTILIZATION}, \
                 is given the events that happened in the run:\n\n\
                 | store | streams | seconds | contacts | handshakes | messages up | down | broadcast messages | CPU computed | CPU measured | measured ÷ computed | |\n\
                 | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n{checks}"
            );
        }
        Some(text)
    }
}

impl Costs {
    fn row(&self, system: System, agents: u32) -> String {
        let fleet = f64::from(agents);
        let second = Events::per_second(fleet);
        let cores = self.events.cpu_seconds(&second) / UTILIZATION;
        let memory_mib = self.base_mib + second.streams * self.stream_kib / 1024.0;
        let messages = (second.up + second.down + second.broadcast_messages) * DAY_SECONDS;
        // Only polls are kept, not the records of streams.
        let records = STREAMING * (second.up + second.down);
        let acknowledging = (1.0 - STREAMING) * second.broadcast_messages;
        let polls = (second.contacts - records + acknowledging) * DAY_SECONDS;
        let gigabytes = (messages * self.message_bytes + polls * self.poll_bytes) / 1e9;
        let how = match (system, agents) {
            (_, ..=10_000) => "computed from costs measured on this machine",
            (System::Sqlite, _) => "computed, extrapolated; one server, one disk",
            _ => "computed, extrapolated; spread over several servers, the database is one",
        };
        format!(
            "| {} | {} | {} | {} | {} MiB | {} GB | {how} |\n",
            number(fleet),
            number(messages),
            system.title(),
            number(cores.max(0.01)),
            number(memory_mib),
            number(gigabytes),
        )
    }

    /// Compares the formula with a fleet in which all of it happened.
    fn check(&self, system: System, events: &Events) -> Option<String> {
        let measured = events.cpu_seconds?;
        let computed = self.events.cpu_seconds(events);
        let ratio = measured / computed;
        let verdict = if (1.0 / CLOSE..=CLOSE).contains(&ratio) {
            "close enough".to_owned()
        } else {
            format!("**further off than a factor of {CLOSE}**")
        };
        Some(format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} s | {} s | {} | {verdict} |\n",
            system.title(),
            number(events.streams),
            number(events.seconds),
            number(events.contacts),
            number(events.handshakes),
            number(events.up),
            number(events.down),
            number(events.broadcast_messages),
            number(computed),
            number(measured),
            number(ratio),
        ))
    }
}
