//! The same work on the stock server and on this program with each store, in
//! turn and in the same run, beside what the machine allows.
//!
//! Each system starts with an empty database, works through all modes, and is
//! stopped; then comes the next, and after all of them the next repetition.
//! All of them share the same processors with the generator.

mod cost;
mod databases;
mod document;
mod echo;
mod fleet;
mod floors;
mod sizing;
mod systems;
mod tables;
mod turns;
mod works;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

pub use cost::{CostCard, cost};
pub use document::replace;
pub use echo::serve as serve_echo;
pub use floors::Floor;
pub use systems::{Programs, System};

use databases::Database;
use works::Work;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// What reports call it.
    pub name: &'static str,
    /// How often each work is done on each system.
    pub repetitions: u32,
    /// How long each lasts.
    pub window: Duration,
    /// Agents on open streams.
    pub streams: u32,
    /// Agents that enrol.
    pub enrolments: u32,
    /// Agents that poll and send.
    pub agents: u32,
    /// Agents with a backlog, and its length.
    pub backlog: (u32, u32),
    /// How long a broadcast may take on a system.
    pub broadcast_limit: Duration,
    /// How long messages are stored to see what they take on disk.
    pub disk: Duration,
    /// Agents of the large runs.
    pub large: u32,
    /// How long a whole fleet is simulated.
    pub fleet: Duration,
    /// When no further turn is begun.
    pub limit: Duration,
}

impl Size {
    /// What docs/benchmarks.md shows; about sixteen minutes with all systems.
    pub const FULL: Self = Self {
        name: "full",
        repetitions: 3,
        window: Duration::from_millis(2500),
        streams: 1_000,
        enrolments: 1_000,
        agents: 64,
        backlog: (40, 100),
        broadcast_limit: Duration::from_secs(90),
        disk: Duration::from_secs(8),
        large: 10_000,
        fleet: Duration::from_secs(30),
        limit: Duration::from_secs(25 * 60),
    };

    /// Shows that everything works; the figures say little.
    pub const QUICK: Self = Self {
        name: "quick",
        repetitions: 1,
        window: Duration::from_millis(400),
        streams: 20,
        enrolments: 20,
        agents: 8,
        backlog: (4, 25),
        broadcast_limit: Duration::from_secs(3),
        disk: Duration::from_millis(500),
        large: 20,
        fleet: Duration::from_secs(1),
        limit: Duration::from_secs(5 * 60),
    };
}

/// What to compare, and how.
pub struct Options {
    /// The systems, the one the others are compared with first.
    pub systems: Vec<System>,
    /// Their programs.
    pub programs: Programs,
    /// How much.
    pub size: Size,
    /// Called with what begins.
    pub progress: Box<dyn Fn(&str) + Send + Sync>,
}

/// What a comparison found.
#[derive(Debug)]
pub struct Comparison {
    size: &'static str,
    machine: Value,
    /// What was compared.
    pub systems: Vec<System>,
    /// What the machine allows.
    pub floors: Vec<Floor>,
    /// One value for each repetition, by work and system.
    samples: BTreeMap<(Work, System), Vec<f64>>,
    /// Distributions of latencies of the last repetition, for plots.
    curves: BTreeMap<(&'static str, System), Vec<(f64, f64)>>,
    /// What happened in the large fleet.
    fleets: BTreeMap<System, fleet::Events>,
    /// What went wrong, and what was not measured.
    pub notes: Vec<String>,
    /// All runs, raw.
    runs: Vec<Value>,
    seconds: f64,
}

impl Options {
    /// Checks that all programs are there, before anything is started.
    ///
    /// # Errors
    /// Says what to install.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.systems.is_empty(), "no system is given");
        let exists = |path: &Path| path.is_file();
        ensure!(
            exists(&self.programs.fleethold),
            "cannot find this program at `{}`",
            self.programs.fleethold.display()
        );
        if self.systems.contains(&System::Stock) && !exists(&self.programs.stock) {
            bail!(
                "the stock server is missing at `{}`; run scripts/interop-venv, say where it is with --stock, or leave it out with --systems",
                self.programs.stock.display()
            );
        }
        if self.programs.cores.is_some() && !databases::find("taskset") {
            bail!("taskset is missing; install util-linux, or leave out --server-cores");
        }
        for database in self.databases() {
            database.check()?;
        }
        Ok(())
    }

    fn databases(&self) -> Vec<Database> {
        let needs = |systems: &[System]| systems.iter().any(|system| self.systems.contains(system));
        let mut databases = Vec::new();
        if needs(&[System::Stock, System::MariaDb]) {
            databases.push(Database::MariaDb);
        }
        if needs(&[System::Postgres]) {
            databases.push(Database::Postgres);
        }
        databases
    }
}

/// Measures everything.
///
/// # Errors
/// If a program or a database is missing. What fails later is noted.
pub async fn run(options: &Options) -> Result<Comparison> {
    options.check()?;
    let begun = Instant::now();
    let programs = options.programs.absolute()?;
    (options.progress)("what the machine allows");
    let floors = floors::measure(&programs, options.size.window, &options.databases()).await?;
    let mut comparison = Comparison {
        size: options.size.name,
        machine: crate::machine::describe(&programs.directory)?,
        systems: options.systems.clone(),
        floors,
        samples: BTreeMap::new(),
        curves: BTreeMap::new(),
        fleets: BTreeMap::new(),
        notes: Vec::new(),
        runs: Vec::new(),
        seconds: 0.0,
    };
    for repetition in 0..options.size.repetitions {
        for at in 0..options.systems.len() {
            if begun.elapsed() > options.size.limit {
                comparison
                    .notes
                    .push("the time was over before all repetitions".to_owned());
                break;
            }
            // Nobody is always the first.
            let system = options.systems[(at + repetition as usize) % options.systems.len()];
            turns::turn(&mut comparison, options, &programs, system, repetition).await;
        }
    }
    for system in &options.systems {
        if begun.elapsed() < options.size.limit {
            turns::once(&mut comparison, options, &programs, *system).await;
        }
    }
    comparison.seconds = begun.elapsed().as_secs_f64();
    Ok(comparison)
}

impl Comparison {
    /// Returns everything, raw.
    pub fn json(&self) -> Value {
        let mut works = serde_json::Map::new();
        for ((work, system), samples) in &self.samples {
            let entry = works
                .entry(work.key())
                .or_insert_with(|| json!({ "title": work.title(), "unit": work.unit() }));
            entry[system.name()] = json!({
                "median": crate::figures::median(samples),
                "samples": samples,
            });
        }
        let floors: Vec<_> = self.floors.iter().map(Floor::json).collect();
        json!({
            "size": self.size,
            "machine": self.machine,
            "seconds": self.seconds,
            "systems": self.systems.iter().map(|system| system.title()).collect::<Vec<_>>(),
            "floors": floors,
            "works": works,
            "sizing_checks": self.sizing_checks(),
            "notes": self.notes,
            "runs": self.runs,
        })
    }

    fn add(&mut self, work: Work, system: System, value: f64) {
        self.samples.entry((work, system)).or_default().push(value);
    }

    /// Returns the median of a work on a system.
    fn median(&self, work: Work, system: System) -> Option<f64> {
        let samples = self.samples.get(&(work, system))?;
        Some(crate::figures::median(samples))
    }

    fn floor(&self, name: &str) -> Option<f64> {
        let floor = self.floors.iter().find(|floor| floor.name == name);
        floor.map(|floor| floor.value)
    }
}
