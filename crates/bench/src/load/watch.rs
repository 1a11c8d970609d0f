//! What the processes under load use, from /proc.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Linux counts processor time in hundredths of a second for all programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process to watch, with the processes it has started.
#[derive(Clone, Debug)]
pub struct Watched {
    /// What reports call it.
    pub name: String,
    /// Its id.
    pub pid: u32,
}

/// What a process and its descendants used during a run.
#[derive(Clone, Debug)]
pub struct ProcessUse {
    /// What reports call it.
    pub name: String,
    /// Processor time.
    pub cpu_seconds: f64,
    /// Resident memory when the run began.
    pub first_kib: u64,
    /// Resident memory when the run ended.
    pub last_kib: u64,
    /// The most resident memory that was seen.
    pub peak_kib: u64,
}

impl ProcessUse {
    pub(crate) fn json(&self) -> Value {
        json!({
            "name": self.name,
            "cpu_seconds": self.cpu_seconds,
            "first_kib": self.first_kib,
            "last_kib": self.last_kib,
            "peak_kib": self.peak_kib,
        })
    }
}

/// Watches processes and directories from its making to its end.
#[derive(Debug)]
pub(crate) struct Watch {
    processes: Vec<Watched>,
    before: Vec<Sample>,
    peaks: Arc<Mutex<Vec<u64>>>,
    directories: Vec<PathBuf>,
    bytes_before: u64,
    _looking: AbortOnDropHandle<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    cpu_seconds: f64,
    resident_kib: u64,
}

impl Watch {
    pub(crate) fn begin(watched: &[Watched], directories: &[PathBuf]) -> Self {
        let mut processes = watched.to_vec();
        processes.push(Watched {
            name: "generator".to_owned(),
            pid: std::process::id(),
        });
        let before: Vec<_> = sample(&processes);
        let peaks = before.iter().map(|sample| sample.resident_kib).collect();
        let peaks = Arc::new(Mutex::new(peaks));
        let looking = tokio::spawn({
            let (processes, peaks) = (processes.clone(), Arc::clone(&peaks));
            async move {
                loop {
                    tokio::time::sleep(LOOK_EVERY).await;
                    raise(&peaks, &sample(&processes));
                }
            }
        });
        Self {
            processes,
            before,
            peaks,
            bytes_before: bytes_in(directories),
            directories: directories.to_vec(),
            _looking: AbortOnDropHandle::new(looking),
        }
    }

    /// Returns what each process used so far, and how much the directories grew.
    pub(crate) fn read(&self) -> (Vec<ProcessUse>, i64) {
        let now = sample(&self.processes);
        raise(&self.peaks, &now);
        let peaks = lock(&self.peaks).clone();
        let uses = self
            .processes
            .iter()
            .enumerate()
            .map(|(at, process)| ProcessUse {
                name: process.name.clone(),
                cpu_seconds: now[at].cpu_seconds - self.before[at].cpu_seconds,
                first_kib: self.before[at].resident_kib,
                last_kib: now[at].resident_kib,
                peak_kib: peaks[at],
            });
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let grown = bytes(bytes_in(&self.directories)) - bytes(self.bytes_before);
        (uses.collect(), grown)
    }
}

fn raise(peaks: &Mutex<Vec<u64>>, samples: &[Sample]) {
    for (peak, sample) in lock(peaks).iter_mut().zip(samples) {
        *peak = sample.resident_kib.max(*peak);
    }
}

fn lock(peaks: &Mutex<Vec<u64>>) -> MutexGuard<'_, Vec<u64>> {
    peaks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sums up each process with its descendants.
fn sample(processes: &[Watched]) -> Vec<Sample> {
    let own = std::process::id();
    let children = children();
    let sums = processes.iter().map(|process| {
        let mut sum = Sample::default();
        let mut open = vec![process.pid];
        while let Some(pid) = open.pop() {
            let Some(one) = sample_one(pid, pid == process.pid) else {
                continue;
            };
            sum.cpu_seconds += one.cpu_seconds;
            sum.resident_kib += one.resident_kib;
            // The generator may have started the others.
            if pid != own {
                open.extend(children.get(&pid).into_iter().flatten());
            }
        }
        sum
    });
    sums.collect()
}

/// Returns the children of each process.
fn children() -> BTreeMap<u32, Vec<u32>> {
    let mut children = BTreeMap::<_, Vec<_>>::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    children
}

/// Returns the fields of a process after its name, beginning with its state.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn sample_one(pid: u32, with_ended_children: bool) -> Option<Sample> {
    const USER_TICKS: usize = 11;
    let fields = stat(pid)?;
    let counts = if with_ended_children { 4 } else { 2 };
    let ticks: f64 = fields
        .iter()
        .skip(USER_TICKS)
        .take(counts)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    // What processes share counts for the first of them only.
    let shared = if with_ended_children {
        0
    } else {
        kib("RssShmem:").unwrap_or(0) + kib("RssFile:").unwrap_or(0)
    };
    Some(Sample {
        cpu_seconds: ticks / TICKS_PER_SECOND,
        resident_kib: kib("VmRSS:").unwrap_or(0).saturating_sub(shared),
    })
}

/// Returns the bytes that a process and its descendants have had written to disks.
pub(crate) fn written_bytes(pid: u32) -> u64 {
    let children = children();
    let mut sum = 0;
    let mut open = vec![pid];
    while let Some(pid) = open.pop() {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let line = io
            .lines()
            .find_map(|line| line.strip_prefix("write_bytes: "));
        sum += line
            .and_then(|bytes| bytes.parse::<u64>().ok())
            .unwrap_or(0);
        open.extend(children.get(&pid).into_iter().flatten());
    }
    sum
}

/// Returns the most memory a process ever had resident.
pub(crate) fn peak_mib(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024.0)
}

/// Returns the bytes of all files in these directories.
pub(crate) fn bytes_in(directories: &[PathBuf]) -> u64 {
    fn walk(path: &Path) -> u64 {
        let Ok(data) = fs::symlink_metadata(path) else {
            return 0;
        };
        if !data.is_dir() {
            return data.len();
        }
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| walk(&entry.path())).sum()
    }
    directories.iter().map(|path| walk(path)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn own_memory_and_the_growth_of_a_directory_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let watch = Watch::begin(&[], &[directory.path().to_owned()]);
        fs::write(directory.path().join("file"), [0; 1000]).unwrap();
        let (uses, grown) = watch.read();
        assert_eq!(grown, 1000);
        assert_eq!(uses.len(), 1);
        assert!(uses[0].peak_kib >= uses[0].first_kib && uses[0].first_kib > 0);
    }
}
