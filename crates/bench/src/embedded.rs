//! Measures the embedded store beside the floors no store on the same disk can
//! sink below.
//!
//! The program `store-bench` is all there is to use; what it prints is
//! explained in `docs/benchmarks.md`. The codecs have micro-benchmarks of their
//! own (`cargo bench -p fleethold-bench`), because they touch no disk.
//!
//! # How it measures
//!
//! * Stores and tables are in new directories on the disk under test. Those for
//!   storing messages hold [`Scale::prefill`] rows from the beginning, because
//!   an empty tree flatters everybody.
//! * Messages are made before the time is taken, and in memory that is shared
//!   where the store shares it.
//! * Each figure is the median of several repetitions; the JSON has all of them.
//! * What was acknowledged is counted at the end, in the file. A measurement
//!   that lost something fails.
//!
//! # Limits
//!
//! Callers run in the same process and on the same cores as the store.

pub(crate) mod bed;
mod claims;
mod contacts;
pub(crate) mod disk;
mod drain;
mod files;
mod floors;
mod footprint;
mod goals;
mod measure;
mod memory;
mod polls;
mod report;
pub(crate) mod samples;
mod scale;
mod storing;
mod streams;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use fleethold_store::Random;

pub use memory::claim_and_report_memory;
pub use report::{Report, Row};
pub use scale::Scale;

use bed::Template;
use floors::Floors;

/// What to measure, and where.
pub struct Options {
    /// How much of everything.
    pub scale: Scale,
    /// A directory on the disk under test; made if it is missing. What is
    /// written there is removed in the end.
    pub directory: PathBuf,
    /// This program, which is started again to measure memory on its own.
    pub program: PathBuf,
    /// Only these [groups](GROUPS); empty: all.
    pub only: Vec<String>,
    /// Called with what begins.
    pub progress: Box<dyn Fn(&str)>,
}

/// The groups of rows, in the order of their measurement.
pub const GROUPS: [&str; 8] = [
    "claims", "polls", "drain", "storing", "clients", "streams", "files", "disk",
];

/// Measures everything.
///
/// # Errors
/// Fails if the disk or the store does, or if the store loses a message.
pub async fn run(options: &Options) -> Result<Report> {
    std::fs::create_dir_all(&options.directory)
        .with_context(|| format!("cannot make `{}`", options.directory.display()))?;
    let directory = tempfile::Builder::new()
        .prefix("store-bench-")
        .tempdir_in(&options.directory)
        .with_context(|| format!("cannot write to `{}`", options.directory.display()))?;
    let random = Arc::new(Random::seeded(1));
    let machine = crate::machine::describe(directory.path())?;
    let mut bench = Bench {
        scale: options.scale,
        directory: directory.path(),
        program: &options.program,
        random: Arc::clone(&random),
        progress: &*options.progress,
        template: None,
        floors: Floors::new(options.scale, directory.path(), random),
        rows: Vec::new(),
    };
    for group in GROUPS {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == group) {
            continue;
        }
        match group {
            "claims" => claims::measure(&mut bench).await?,
            "polls" => polls::measure(&mut bench).await?,
            "drain" => drain::measure(&mut bench).await?,
            "storing" => storing::measure(&mut bench).await?,
            "clients" => contacts::measure(&mut bench).await?,
            "streams" => streams::measure(&mut bench).await?,
            "files" => files::measure(&mut bench).await?,
            _ => footprint::measure(&mut bench).await?,
        }
    }
    let mut rows = bench.floors.rows();
    rows.append(&mut bench.rows);
    let goals = goals::compare(&rows, options.scale);
    directory.close().context("cannot clean up")?;
    Ok(Report {
        scale: options.scale,
        machine,
        rows,
        goals,
    })
}

/// What all measurements share.
pub(crate) struct Bench<'a> {
    scale: Scale,
    directory: &'a Path,
    program: &'a Path,
    random: Arc<Random>,
    progress: &'a dyn Fn(&str),
    /// Made by the first that needs it.
    template: Option<Template>,
    floors: Floors,
    rows: Vec<Row>,
}

impl Bench<'_> {
    fn begin(&self, what: &str) {
        (self.progress)(what);
    }

    async fn template(&mut self) -> Result<&Template> {
        if self.template.is_none() {
            self.begin("filling a store");
            self.template = Some(Template::make(self).await?);
        }
        Ok(self.template.as_ref().expect("made above"))
    }
}

/// Returns how many messages per second the store takes by itself: processed
/// ones of 100 bytes, a hundred in each of 16 calls at once.
pub(crate) async fn store_rate(directory: &Path) -> Result<f64> {
    let random = Arc::new(Random::seeded(1));
    let scale = Scale::QUICK;
    let mut bench = Bench {
        scale,
        directory,
        program: Path::new(""),
        random: Arc::clone(&random),
        progress: &|_| {},
        template: None,
        floors: Floors::new(scale, directory, random),
        rows: Vec::new(),
    };
    let cell = storing::Cell {
        callers: 16,
        messages: 100,
        payload_bytes: 100,
        kind: samples::Kind::Processed,
    };
    storing::store(&mut bench, cell).await?;
    Ok(bench.rows.last().map_or(0.0, Row::value))
}
