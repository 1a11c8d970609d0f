//! How large a server has to be, computed from what a comparison measured.

use std::fmt::Write as _;

use super::works::Work;
use super::{Comparison, System};
use crate::figures::number;

/// The part of its processors that a server should use at most.
const UTILIZATION: f64 = 0.6;
/// What each agent of the table does: that of `fleethold bench mixed`.
const UP_PER_HOUR: f64 = 60.0;
const DOWN_PER_HOUR: f64 = 6.0;
const STREAMING: f64 = 0.5;
const POLL_EVERY_SECONDS: f64 = 300.0;
const FLEETS: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];
const DAY_SECONDS: f64 = 86_400.0;

/// What one agent, message or poll costs on a system.
struct Costs {
    poll_us: f64,
    up_us: f64,
    down_us: f64,
    stream_kib: f64,
    base_mib: f64,
    message_bytes: f64,
    poll_bytes: f64,
}

impl Comparison {
    fn costs(&self, system: System) -> Option<Costs> {
        let median = |work| self.median(work, system);
        Some(Costs {
            // Idle connections are closed between polls this far apart.
            poll_us: median(Work::CpuHandshake)?,
            up_us: median(Work::CpuUp1)?,
            down_us: median(Work::CpuDown)?,
            stream_kib: median(Work::StreamMemory)?,
            base_mib: median(Work::Memory)?,
            message_bytes: median(Work::DiskMessage)?,
            poll_bytes: median(Work::DiskPoll)?.max(0.0),
        })
    }

    /// Returns the sizing table in Markdown, if enough was measured.
    pub fn sizing(&self) -> Option<String> {
        let mut rows = String::new();
        let mut costs_rows = String::new();
        for system in &self.systems {
            if *system == System::Stock {
                continue;
            }
            let Some(costs) = self.costs(*system) else {
                continue;
            };
            let _ = writeln!(
                costs_rows,
                "| {} | {} µs | {} µs | {} µs | {} KiB | {} MiB | {} B | {} B |",
                system.title(),
                number(costs.poll_us),
                number(costs.up_us),
                number(costs.down_us),
                number(costs.stream_kib),
                number(costs.base_mib),
                number(costs.message_bytes),
                number(costs.poll_bytes),
            );
            for agents in FLEETS {
                rows.push_str(&costs.row(*system, agents));
            }
        }
        if rows.is_empty() {
            return None;
        }
        let mut text = format!(
            "Costs, medians of the run in [benchmarks.md](benchmarks.md), server and database together:\n\n\
             | store | poll with handshake | message up | message down | idle stream | server without streams | message kept | poll kept |\n\
             | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n{costs_rows}\n\
             For a fleet in which {:.0} % of the agents stream, the others poll every {POLL_EVERY_SECONDS} s, and each agent \
             sends {UP_PER_HOUR} and gets {DOWN_PER_HOUR} messages of 100 bytes per hour:\n\n\
             | agents | messages per day | store | cores | memory | disk per day | |\n\
             | ---: | ---: | --- | ---: | ---: | ---: | --- |\n{rows}",
            STREAMING * 100.0
        );
        for system in &self.systems {
            if let Some(percent) = self.median(Work::MixedCpu, *system)
                && let Some(costs) = self.costs(*system)
            {
                let _ = writeln!(
                    text,
                    "\nChecked with 10,000 simulated agents on {}: {} % of one core while they work; the formula gives {} %.",
                    system.title(),
                    number(percent),
                    number(costs.cpu_seconds_per_second(10_000.0) * 100.0),
                );
            }
        }
        Some(text)
    }
}

impl Costs {
    fn cpu_seconds_per_second(&self, agents: f64) -> f64 {
        let polls = agents * (1.0 - STREAMING) / POLL_EVERY_SECONDS;
        let up = agents * UP_PER_HOUR / 3600.0;
        let down = agents * DOWN_PER_HOUR / 3600.0;
        (polls * self.poll_us + up * self.up_us + down * self.down_us) / 1e6
    }

    fn row(&self, system: System, agents: u32) -> String {
        let fleet = f64::from(agents);
        let cores = self.cpu_seconds_per_second(fleet) / UTILIZATION;
        let memory_mib = self.base_mib + fleet * STREAMING * self.stream_kib / 1024.0;
        let messages = fleet * (UP_PER_HOUR + DOWN_PER_HOUR) * 24.0;
        let polls = fleet * (1.0 - STREAMING) * DAY_SECONDS / POLL_EVERY_SECONDS;
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
}
