//! What a run found, as a table and as JSON.

use std::fmt::{self, Display, Formatter};

use serde_json::{Value, json};

use crate::embedded::Scale;
use crate::embedded::goals::Goal;
use crate::figures::{median, number};

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is about.
    pub group: &'static str,
    /// What was measured.
    pub name: String,
    /// Of the samples.
    pub unit: &'static str,
    /// One for each repetition.
    pub samples: Vec<f64>,
    /// How many times the floors (a), (b) and (c).
    pub ratios: Option<[f64; 3]>,
}

impl Row {
    /// The figure: the median.
    pub fn value(&self) -> f64 {
        median(&self.samples)
    }
}

/// All figures of a run; displayed as tables in Markdown.
#[derive(Debug)]
pub struct Report {
    pub(crate) scale: Scale,
    pub(crate) machine: Value,
    /// In the order of their groups.
    pub rows: Vec<Row>,
    pub(crate) goals: Vec<Goal>,
}

impl Report {
    /// Returns everything, raw.
    pub fn json(&self) -> Value {
        let rows: Vec<_> = self.rows.iter().map(row_json).collect();
        let goals: Vec<_> = self.goals.iter().map(Goal::json).collect();
        json!({
            "scale": self.scale.name,
            "machine": self.machine,
            "rows": rows,
            "goals": goals,
        })
    }
}

fn row_json(row: &Row) -> Value {
    json!({
        "group": row.group,
        "name": row.name,
        "unit": row.unit,
        "median": row.value(),
        "samples": row.samples,
        "times_sequential_key": row.ratios.map(|ratios| ratios[0]),
        "times_random_key": row.ratios.map(|ratios| ratios[1]),
        "times_sync": row.ratios.map(|ratios| ratios[2]),
    })
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let part = |name: &str| self.machine[name].to_string().replace('"', "");
        writeln!(
            f,
            "{} run: {} cores, {} GiB, {}, {} {}, load {} at the start\n",
            self.scale.name,
            part("cores"),
            part("memory_gib"),
            part("file_system"),
            part("system"),
            part("architecture"),
            part("load_at_start"),
        )?;
        writeln!(
            f,
            "| {:55} | {:>10} | {:10} | {:>19} | {:>6} | {:>6} | {:>6} |",
            "what", "median", "unit", "least to most", "× (a)", "× (b)", "× (c)"
        )?;
        writeln!(f, "| --- | ---: | --- | ---: | ---: | ---: | ---: |")?;
        for row in &self.rows {
            let least = row.samples.iter().copied().fold(f64::INFINITY, f64::min);
            let most = row.samples.iter().copied().fold(0.0, f64::max);
            let range = if row.samples.len() > 1 {
                format!("{} – {}", number(least), number(most))
            } else {
                String::new()
            };
            let [a, b, c] = row
                .ratios
                .map_or_else(Default::default, |ratios| ratios.map(number));
            writeln!(
                f,
                "| {:55} | {:>10} | {:10} | {range:>19} | {a:>6} | {b:>6} | {c:>6} |",
                row.name,
                number(row.value()),
                row.unit,
            )?;
        }
        if self.goals.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n| must hold | wanted | found | |")?;
        writeln!(f, "| --- | ---: | ---: | --- |")?;
        for goal in &self.goals {
            writeln!(f, "{goal}")?;
        }
        Ok(())
    }
}
