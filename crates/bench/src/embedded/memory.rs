//! The memory of a process that does nothing but claim.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fleethold_store::{MessageStore, Random, Store};

use crate::embedded::bed::{AheadClock, Bed, RETRY, open};
use crate::embedded::samples::CLIENT;
use crate::embedded::{Bench, Row};

const CLAIMS: u32 = 50;

/// Lets another process claim from the store; returns the store opened again.
pub(crate) async fn measure(bench: &mut Bench<'_>, bed: Bed, pending: u32) -> Result<Bed> {
    bed.store.close().await?;
    let mut samples = Vec::new();
    for _ in 0..bench.scale.repetitions.min(3) {
        let output = Command::new(bench.program)
            .arg("--claim-and-report-memory")
            .arg(bed.path())
            .arg("--ahead-seconds")
            .arg(bed.clock.ahead_seconds().to_string())
            .output()
            .context("cannot start another store-bench")?;
        ensure!(
            output.status.success(),
            "the process that claims failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        // As far as the clock of that process went.
        bed.clock.advance(RETRY * (CLAIMS + 1));
        let kib: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
        samples.push(kib / 1024.0);
    }
    bench.rows.push(Row {
        group: "claims",
        name: name(pending),
        unit: "MiB",
        samples,
        ratios: None,
    });
    bed.reopen()
}

pub(crate) fn name(pending: u32) -> String {
    format!("memory of {CLAIMS} claims out of {pending}")
}

/// Claims from the store at `path`, with a clock ahead of the machine's, and
/// returns the most memory that this process had until now, in KiB.
///
/// # Errors
/// Fails if the store does.
pub async fn claim_and_report_memory(path: &Path, ahead_seconds: u64) -> Result<String> {
    let random = Arc::new(Random::from_os());
    let clock = Arc::new(AheadClock::new(&random));
    clock.advance(Duration::from_secs(ahead_seconds));
    let store = open(path, &clock, &random)?;
    for _ in 0..CLAIMS {
        clock.advance(RETRY);
        let claimed = store
            .client_messages_for_processing(CLIENT, 100, None)
            .await?;
        ensure!(!claimed.is_empty(), "nothing was due");
    }
    store.close().await?;
    let status = std::fs::read_to_string("/proc/self/status")
        .context("this system does not tell the memory of a process")?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .context("this system does not tell the most memory of a process")?;
    Ok(peak.to_owned())
}
