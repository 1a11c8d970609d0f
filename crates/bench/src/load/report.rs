//! What one run found.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use serde_json::{Value, json};

use super::ledger::Totals;
use super::pace::Latencies;
use super::watch::ProcessUse;
use crate::figures::number;
use crate::plot::{self, Line};

/// The result of one mode.
#[derive(Clone, Debug)]
pub struct Report {
    /// The mode.
    pub mode: &'static str,
    /// What was asked for.
    pub parameters: Value,
    /// How long the run took.
    pub seconds: f64,
    /// Named figures; the unit is in the name.
    pub figures: Vec<(&'static str, f64)>,
    /// Named distributions of latencies.
    pub latencies: Vec<(&'static str, Latencies)>,
    /// What became of messages, by direction.
    pub messages: Vec<(&'static str, Totals)>,
    /// What failed, and how often.
    pub failures: BTreeMap<String, u64>,
    /// What the watched processes used, and the generator.
    pub processes: Vec<ProcessUse>,
    /// How much the watched directories grew.
    pub bytes_grown: i64,
    /// Operations of each second.
    pub per_second: Vec<u64>,
    /// Snapshots of a long run.
    pub snapshots: Vec<Value>,
    /// Whether the run was cut off because it took too long.
    pub cut_off: bool,
}

impl Report {
    /// Returns a figure by its name.
    pub fn figure(&self, name: &str) -> Option<f64> {
        let found = self.figures.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| *value)
    }

    /// Returns a distribution by its name.
    pub fn latency(&self, name: &str) -> Option<&Latencies> {
        let found = self.latencies.iter().find(|(known, _)| *known == name);
        found.map(|(_, latencies)| latencies)
    }

    /// Returns how many messages are missing or came more than once.
    pub fn wrong(&self) -> u64 {
        let messages = self.messages.iter();
        messages
            .map(|(_, totals)| totals.missing + totals.doubled)
            .sum()
    }

    /// Returns plots of latencies and of what was done each second, as SVG.
    pub fn plots(&self) -> String {
        let lines: Vec<_> = self
            .latencies
            .iter()
            .filter(|(_, latencies)| latencies.count() > 0)
            .map(|(name, latencies)| Line {
                name: name.replace('_', " "),
                points: latencies.curve(),
            })
            .collect();
        let seconds = self.per_second.iter().enumerate();
        let points = seconds.map(|(second, count)| (second as f64, *count as f64));
        let rate = Line {
            name: self.mode.to_owned(),
            points: points.collect(),
        };
        plot::page(&[
            plot::latencies(&format!("{}: latencies", self.mode), &lines),
            plot::over_time(&format!("{}: done in each second", self.mode), &[rate]),
        ])
    }

    /// Returns everything, raw.
    pub fn json(&self) -> Value {
        let latencies: serde_json::Map<_, _> = self
            .latencies
            .iter()
            .map(|(name, latencies)| ((*name).to_owned(), latencies.json()))
            .collect();
        let messages: serde_json::Map<_, _> = self
            .messages
            .iter()
            .map(|(name, totals)| ((*name).to_owned(), totals.json()))
            .collect();
        let figures: serde_json::Map<_, _> = self
            .figures
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        let processes: Vec<_> = self.processes.iter().map(ProcessUse::json).collect();
        json!({
            "mode": self.mode,
            "parameters": self.parameters,
            "seconds": self.seconds,
            "figures": figures,
            "latencies": latencies,
            "messages": messages,
            "failures": self.failures,
            "processes": processes,
            "bytes_grown": self.bytes_grown,
            "per_second": self.per_second,
            "snapshots": self.snapshots,
            "cut_off": self.cut_off,
        })
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} ({:.1} s) {}",
            self.mode, self.seconds, self.parameters
        )?;
        for (name, value) in &self.figures {
            writeln!(f, "  {:32} {:>12}", name.replace('_', " "), number(*value))?;
        }
        for (name, latencies) in &self.latencies {
            let at = |percent| number(latencies.percentile_ms(percent));
            writeln!(
                f,
                "  {:32} p50 {}, p90 {}, p99 {}, p99.9 {}, longest {} ms",
                name.replace('_', " "),
                at(50.0),
                at(90.0),
                at(99.0),
                at(99.9),
                number(latencies.longest_ms()),
            )?;
        }
        for (name, totals) in &self.messages {
            writeln!(
                f,
                "  {:32} sent {}, accepted {}, arrived {}, missing {}, doubled {}",
                name.replace('_', " "),
                totals.sent,
                totals.accepted,
                totals.arrived,
                totals.missing,
                totals.doubled,
            )?;
        }
        for process in &self.processes {
            writeln!(
                f,
                "  process {:24} {:.2} s of CPU, {} MiB at most, {:+} KiB",
                process.name,
                process.cpu_seconds,
                process.peak_kib / 1024,
                i128::from(process.last_kib) - i128::from(process.first_kib),
            )?;
        }
        for (failure, count) in &self.failures {
            writeln!(f, "  failed {count} ×: {failure}")?;
        }
        if self.cut_off {
            writeln!(f, "  cut off: it took too long")?;
        }
        Ok(())
    }
}
