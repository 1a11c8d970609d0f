//! A comparison as tables in Markdown, and as plots.

use std::fmt::Write as _;

use super::works::{Wanted, Work};
use super::{Comparison, System, floors};
use crate::figures::number;
use crate::plot::{self, Line};

/// At least this part of the echo's requests must be idle polls.
const POLLS_OF_ECHO: f64 = 0.5;
/// At least this part of the store's own rate must be reached with a server around it.
const NOOP_OF_STORE: f64 = 0.4;

impl Comparison {
    /// Returns all tables in Markdown; `plots` is where pages find the plots.
    pub fn markdown(&self, plots: Option<&str>) -> String {
        let mut text = String::new();
        let part = |name: &str| self.machine[name].to_string().replace('"', "");
        let _ = writeln!(
            text,
            "{} run, {:.0} minutes: {} cores, shared by servers, databases and generator, {} GiB, {}, {} {}, load {} at the start{}.\n",
            self.size,
            self.seconds / 60.0,
            part("cores"),
            part("memory_gib"),
            part("file_system"),
            part("system"),
            part("architecture"),
            part("load_at_start"),
            if part("optimized") == "true" {
                ""
            } else {
                "; **not optimized: the figures say nothing**"
            },
        );
        text.push_str(&self.results());
        text.push_str(&self.goals());
        text.push_str(&self.floors_table());
        if let Some(plots) = plots {
            let _ = writeln!(text, "\n![plots of this run]({plots})");
        }
        if !self.notes.is_empty() {
            text.push_str("\nWhat went wrong or was not measured:\n\n");
            for note in &self.notes {
                let _ = writeln!(text, "* {}", note.replace('\n', " "));
            }
        }
        text
    }

    fn results(&self) -> String {
        let mut text = "| median | unit |".to_owned();
        for system in &self.systems {
            let _ = write!(text, " {} |", system.title());
            if *system != System::Stock {
                text.push_str(" × stock |");
            }
        }
        text.push_str("\n| --- | --- |");
        for system in &self.systems {
            text.push_str(if *system == System::Stock {
                " ---: |"
            } else {
                " ---: | ---: |"
            });
        }
        text.push('\n');
        for work in Work::ALL {
            if !self
                .systems
                .iter()
                .any(|system| self.median(work, *system).is_some())
            {
                continue;
            }
            let _ = write!(text, "| {} | {} |", work.title(), work.unit());
            for system in &self.systems {
                let value = self.median(work, *system);
                let _ = write!(text, " {} |", value.map_or("–".to_owned(), number));
                if *system != System::Stock {
                    let ratio = self.ratio(work, *system);
                    let _ = write!(text, " {} |", ratio.map_or(String::new(), number));
                }
            }
            text.push('\n');
        }
        text
    }

    /// Returns a system's median over that of the stock server.
    fn ratio(&self, work: Work, system: System) -> Option<f64> {
        let stock = self.median(work, System::Stock)?;
        let ratio = self.median(work, system)? / stock;
        ratio.is_finite().then_some(ratio)
    }

    fn goals(&self) -> String {
        let mut rows = String::new();
        for work in Work::ALL {
            let Some(wanted) = work.wanted() else {
                continue;
            };
            for system in &self.systems {
                let wanted = match system {
                    System::Stock => continue,
                    System::Sqlite => wanted[0],
                    System::MariaDb | System::Postgres => wanted[1],
                };
                let (text, found, met) = match wanted {
                    Wanted::Times(least) => {
                        let Some(found) = self.ratio(work, *system) else {
                            continue;
                        };
                        (
                            format!("≥ {} × stock", number(least)),
                            format!("{} ×", number(found)),
                            found >= least,
                        )
                    }
                    Wanted::Part(most) => {
                        let Some(found) = self.ratio(work, *system) else {
                            continue;
                        };
                        (
                            format!("≤ {:.0} % of stock", most * 100.0),
                            format!("{:.0} %", found * 100.0),
                            found <= most,
                        )
                    }
                    Wanted::AtMost(most) => {
                        let Some(found) = self.median(work, *system) else {
                            continue;
                        };
                        let unit = work.unit();
                        (
                            format!("≤ {} {unit}", number(most)),
                            format!("{} {unit}", number(found)),
                            found <= most,
                        )
                    }
                };
                let met = if met { "met" } else { "not met" };
                let _ = writeln!(
                    rows,
                    "| {} | {} | {text} | {found} | {met} |",
                    work.title(),
                    system.title()
                );
            }
        }
        for (name, work, floor, least) in [
            (
                "idle polls over bare requests",
                Work::Poll,
                floors::ECHO,
                POLLS_OF_ECHO,
            ),
            (
                "ingest to NOOP over the store alone",
                Work::IngestNoop,
                floors::STORE,
                NOOP_OF_STORE,
            ),
        ] {
            let found = self.median(work, System::Sqlite).zip(self.floor(floor));
            let Some((value, floor)) = found else {
                continue;
            };
            let met = if value / floor >= least {
                "met"
            } else {
                "not met"
            };
            let _ = writeln!(
                rows,
                "| {name} | {} | ≥ {:.0} % | {:.0} % | {met} |",
                System::Sqlite.title(),
                least * 100.0,
                value / floor * 100.0
            );
        }
        if rows.is_empty() {
            return rows;
        }
        format!(
            "\n| must hold | on | wanted | found | |\n| --- | --- | ---: | ---: | --- |\n{rows}"
        )
    }

    fn floors_table(&self) -> String {
        let mut text =
            "\n| what the machine allows | value | unit |\n| --- | ---: | --- |\n".to_owned();
        for floor in &self.floors {
            let _ = writeln!(
                text,
                "| {} | {} | {} |",
                floor.name,
                number(floor.value),
                floor.unit
            );
        }
        text
    }

    /// Returns the plots as one SVG.
    pub fn plots(&self) -> String {
        let mut panels = Vec::new();
        for work in Work::ALL {
            let bars: Vec<_> = self
                .systems
                .iter()
                .filter_map(|system| Some((system.title().to_owned(), self.median(work, *system)?)))
                .collect();
            if bars.len() > 1 && work.wanted().is_some() {
                let better = if work.more_is_better() {
                    "more is better"
                } else {
                    "less is better"
                };
                let title = format!("{} ({}, {better})", work.title(), work.unit());
                panels.push(plot::bars(&title, &bars));
            }
        }
        for (key, title) in [
            ("poll", "idle polls, closed loop: latencies"),
            (
                "ingest",
                "contacts with one message, closed loop: latencies",
            ),
            ("push", "insert to a waiting stream, open loop: latencies"),
        ] {
            let lines: Vec<_> = self
                .systems
                .iter()
                .filter_map(|system| {
                    Some(Line {
                        name: system.title().to_owned(),
                        points: self.curves.get(&(key, *system))?.clone(),
                    })
                })
                .collect();
            if !lines.is_empty() {
                panels.push(plot::latencies(title, &lines));
            }
        }
        plot::page(&panels)
    }
}
