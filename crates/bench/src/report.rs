//! What a run found, as a table and as JSON.

use std::fmt::{self, Display, Formatter};

use serde_json::{Value, json};

use crate::Scale;
use crate::goals::Goal;
use crate::measure::median;

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

/// Writes a figure with three digits or more, and thousands apart.
pub(crate) fn number(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.2}");
    }
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_or_more() {
        for (value, text) in [
            (0.128, "0.13"),
            (12.34, "12.3"),
            (987.6, "988"),
            (1_000.0, "1,000"),
            (1_234_567.8, "1,234,568"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
