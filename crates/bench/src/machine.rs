//! The machine that is measured.

use std::path::Path;

use anyhow::Result;
use fleethold_proto::Timestamp;
use fleethold_store::clock::timestamp;
use fleethold_store::{Clock, Random, SystemClock};
use serde_json::{Value, json};

/// Describes the machine; what it does not tell is `null`.
pub(crate) fn describe(directory: &Path) -> Result<Value> {
    let cores = std::thread::available_parallelism()?.get();
    let Timestamp { seconds, .. } = timestamp(SystemClock::new(Random::from_os().into()).now());
    Ok(json!({
        "cores": cores,
        "memory_gib": memory_gib(),
        "system": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
        "file_system": file_system(directory),
        "load_at_start": load(),
        "time_seconds": seconds,
        "optimized": !cfg!(debug_assertions),
    }))
}

fn memory_gib() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some((kib + (1 << 19)) >> 20)
}

/// The load average of the last minute.
fn load() -> Option<f64> {
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    load.split_whitespace().next()?.parse().ok()
}

/// The type of the file system that `directory` is on.
fn file_system(directory: &Path) -> Option<String> {
    let directory = directory.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts
        .lines()
        .filter_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let point = mount.split(' ').nth(4)?;
            directory.starts_with(point).then(|| {
                (
                    point.len(),
                    file_system.split(' ').next().map(str::to_owned),
                )
            })
        })
        .max()?
        .1
}
