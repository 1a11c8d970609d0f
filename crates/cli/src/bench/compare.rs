//! `fleethold bench compare`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use fleethold_bench::compare::{self, Options, Programs, Size, System};
use indicatif::ProgressBar;

use super::write;
use crate::output::{self, Exit, Failure};
use crate::store::StoreUrl;

/// Which systems are started, and where.
#[derive(Args, Debug)]
struct SystemArgs {
    /// What to compare [default: all that this program can]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SYSTEM,…")]
    systems: Vec<SystemName>,
    /// Small sizes, some seconds for each system; the figures say little
    #[arg(long)]
    quick: bool,
    /// Where to put all data; the directory decides which disk is measured
    #[arg(long, default_value = "target/compare", value_name = "DIR")]
    dir: PathBuf,
    /// The stock server; scripts/interop-venv obtains it
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/interop-venv/fleetspeak-server-bin/usr/bin/fleetspeak-server"
    )]
    stock: PathBuf,
    /// The processors for servers and databases, as `taskset` takes them; the generator uses all [default: all]
    #[arg(long, value_name = "LIST")]
    server_cores: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    systems: SystemArgs,
    /// How often each work is repeated
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20))]
    repetitions: Option<u32>,
    /// Write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write plots to this file, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Put the tables into this document, between its markers for `compare`
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Put the sizing table into this document, between its markers for `sizing`
    #[arg(long, value_name = "FILE")]
    sizing: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct CostArgs {
    #[command(flatten)]
    systems: SystemArgs,
    /// Write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Put the table into this document, between its markers for `cost`
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SystemName {
    /// The stock server on MariaDB
    Stock,
    /// fleethold on SQLite
    Sqlite,
    /// fleethold on MariaDB
    Mariadb,
    /// fleethold on PostgreSQL
    Postgres,
}

impl SystemName {
    fn system(self) -> System {
        match self {
            Self::Stock => System::Stock,
            Self::Sqlite => System::Sqlite,
            Self::Mariadb => System::MariaDb,
            Self::Postgres => System::Postgres,
        }
    }
}

impl CompareArgs {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        // Found now, so that no long run ends in vain.
        let documents = [(&self.report, "compare"), (&self.sizing, "sizing")];
        for (file, part) in documents {
            if let Some(file) = file {
                put(file, part, "", false)?;
            }
        }
        let progress = output::progress("bench compare".to_owned());
        let mut options = self.systems.options(&progress)?;
        if let Some(repetitions) = self.repetitions {
            options.size.repetitions = repetitions;
        }
        let comparison = compare::run(&options).await?;
        progress.finish_and_clear();
        if let Some(file) = &self.json {
            write(file, &format!("{:#}\n", comparison.json()))?;
        }
        if let Some(file) = &self.plot {
            write(file, &comparison.plots())?;
        }
        let plots = self.plot.as_deref().zip(self.report.as_deref());
        let plots = plots.map(|(plot, report)| relative(plot, report));
        let text = comparison.markdown(plots.as_deref());
        if let Some(file) = &self.report {
            put(file, "compare", &text, true)?;
        }
        if let (Some(file), Some(sizing)) = (&self.sizing, comparison.sizing()) {
            put(file, "sizing", &sizing, true)?;
        }
        output::print(&text)
    }
}

impl CostArgs {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        if let Some(file) = &self.report {
            put(file, "cost", "", false)?;
        }
        let progress = output::progress("bench cost".to_owned());
        let options = self.systems.options(&progress)?;
        let card = compare::cost(&options).await?;
        progress.finish_and_clear();
        if let Some(file) = &self.json {
            write(file, &format!("{:#}\n", card.json()))?;
        }
        let text = card.markdown();
        if let Some(file) = &self.report {
            put(file, "cost", &text, true)?;
        }
        output::print(&text)
    }
}

impl SystemArgs {
    /// Returns what to measure, once all that it needs is there.
    fn options(&self, progress: &ProgressBar) -> Result<Options, Failure> {
        let shown = progress.clone();
        let options = Options {
            systems: self.chosen()?,
            programs: Programs {
                fleethold: std::env::current_exe().context("cannot find this program")?,
                stock: self.stock.clone(),
                directory: self.dir.clone(),
                cores: self.server_cores.clone(),
            },
            size: if self.quick { Size::QUICK } else { Size::FULL },
            progress: Box::new(move |what| shown.set_message(what.to_owned())),
        };
        options
            .check()
            .map_err(|error| Failure::new(Exit::Usage, error))?;
        Ok(options)
    }

    fn chosen(&self) -> Result<Vec<System>, Failure> {
        let can = |system: System| match system {
            System::Stock | System::Sqlite => true,
            System::MariaDb => "mysql://u@localhost/d".parse::<StoreUrl>().is_ok(),
            System::Postgres => "postgres://u@localhost/d".parse::<StoreUrl>().is_ok(),
        };
        if self.systems.is_empty() {
            return Ok(System::ALL
                .into_iter()
                .filter(|system| can(*system))
                .collect());
        }
        let mut chosen: Vec<_> = self.systems.iter().map(|name| name.system()).collect();
        chosen.sort_unstable();
        chosen.dedup();
        match chosen.iter().find(|system| !can(**system)) {
            Some(system) => Err(Failure::usage(format!(
                "this program has no store of kind `{}` yet; leave it out",
                system.name()
            ))),
            None => Ok(chosen),
        }
    }
}

/// Puts text into a part of a document, or only sees whether it could.
fn put(file: &Path, part: &str, text: &str, really: bool) -> Result<(), Failure> {
    let document = fs::read_to_string(file)
        .map_err(|error| Failure::usage(format!("cannot read `{}`: {error}", file.display())))?;
    let replaced = compare::replace(&document, part, text).map_err(|error| {
        let message = format!("cannot write into `{}`", file.display());
        Failure::new(Exit::Usage, error).context(message)
    })?;
    if really {
        write(file, &replaced)?;
    }
    Ok(())
}

/// Returns how a document refers to a file, if it lies beside or below it.
fn relative(file: &Path, document: &Path) -> String {
    let directory = document.parent().unwrap_or(Path::new(""));
    let path = file.strip_prefix(directory).unwrap_or(file);
    path.display().to_string()
}
