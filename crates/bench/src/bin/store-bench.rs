//! Measures the embedded store on a disk; see the library and `docs/benchmarks.md`.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use fleethold_bench::embedded::{GROUPS, Options, Scale, claim_and_report_memory, run};
use indicatif::ProgressBar;

/// Measures the embedded store beside the floors of the disk, and prints a
/// table in Markdown.
#[derive(Parser)]
struct Arguments {
    /// Small sizes, half a minute; the figures say little.
    #[arg(long)]
    quick: bool,

    /// The smallest sizes; the figures say nothing.
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,

    /// Writes everything that was measured to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Where to measure; the directory decides which disk.
    #[arg(long, default_value = "target/store-bench")]
    dir: PathBuf,

    /// Measures only this group; may be repeated.
    #[arg(long, value_name = "GROUP", value_parser = GROUPS)]
    only: Vec<String>,

    /// Claims from a store and prints the memory that took, in KiB.
    #[arg(long, value_name = "DATABASE", hide = true)]
    claim_and_report_memory: Option<PathBuf>,

    /// How far the clock of those claims is ahead.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, hide = true)]
    ahead_seconds: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match measure(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told if this fails.
            drop(writeln!(io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: Arguments) -> Result<()> {
    if let Some(database) = arguments.claim_and_report_memory {
        let memory = claim_and_report_memory(&database, arguments.ahead_seconds).await?;
        return Ok(writeln!(io::stdout(), "{memory}")?);
    }
    let scale = match (arguments.quick, arguments.smoke) {
        (true, _) => Scale::QUICK,
        (_, true) => Scale::SMOKE,
        _ => Scale::FULL,
    };
    // Shown on a terminal only.
    let progress = ProgressBar::new_spinner();
    progress.enable_steady_tick(Duration::from_millis(250));
    let begin = {
        let progress = progress.clone();
        move |what: &str| progress.set_message(what.to_owned())
    };
    let options = Options {
        scale,
        directory: arguments.dir,
        program: std::env::current_exe().context("cannot find this program")?,
        only: arguments.only,
        progress: Box::new(begin),
    };
    let report = run(&options).await?;
    progress.finish_and_clear();
    if let Some(file) = arguments.json {
        let text = format!("{:#}\n", report.json());
        fs::write(&file, text).with_context(|| format!("cannot write `{}`", file.display()))?;
    }
    write!(io::stdout().lock(), "{report}")?;
    Ok(())
}
