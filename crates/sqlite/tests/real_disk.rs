//! A disk that is really full, and one that is really read-only: file systems
//! in memory, which this program mounts where only it sees them.
//!
//! Where the system does not allow that, the tests say so and are skipped;
//! `FLEETHOLD_REQUIRE=real-disk` makes them fail instead.

#[path = "crash/findings.rs"]
mod findings;
#[path = "crash/history.rs"]
mod history;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use fleethold_conformance::oracle::{Fate, Oracle};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{ErrorKind, Outcome, Random, Store};

use findings::{find, open, try_open};
use history::{KINDS, Kind, Sequence, prepare, write};

/// Says to the program that it has mounts of its own.
const INSIDE: &str = "FLEETHOLD_OWN_MOUNTS";

/// Far more sequences than the disk has room for.
const MOST_SEQUENCES: u64 = 20_000;

/// Runs a test of this program again, with mounts of its own; `true` if this
/// is that run.
fn has_own_mounts(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = |program: &Path, arguments: &[&str]| {
        Command::new("unshare")
            .args(["--mount", "--map-root-user", "--"])
            .arg(program)
            .args(arguments)
            .env(INSIDE, "1")
            .output()
    };
    let text = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_str().unwrap();
    let probe = unshare(Path::new("mount"), &["-t", "tmpfs", "tmpfs", place]);
    let problem = match &probe {
        Err(error) => Some(format!("cannot run unshare: {error}")),
        Ok(probe) if !probe.status.success() => Some(text(probe)),
        Ok(_) => None,
    };
    if let Some(problem) = problem {
        let required = std::env::var("FLEETHOLD_REQUIRE").unwrap_or_default();
        let is_required = required.split(',').any(|name| name.trim() == "real-disk");
        assert!(!is_required, "cannot mount: {problem}");
        #[expect(clippy::print_stderr, reason = "why the test did nothing")]
        {
            eprintln!("skipped, this system lets nobody mount for themselves: {problem}");
        }
        return false;
    }
    let program = std::env::current_exe().unwrap();
    let run = unshare(&program, &["--exact", test, "--nocapture"]).unwrap();
    assert!(run.status.success(), "{}", text(&run));
    false
}

fn mount(arguments: &[&str], place: &Path) {
    let status = Command::new("mount").args(arguments).arg(place).status();
    assert!(status.unwrap().success(), "mount {arguments:?}");
}

/// Performs one sequence up to its first error that is the disk's.
async fn perform(store: &SqliteStore, number: u64, oracle: &mut Oracle) -> Option<ErrorKind> {
    let kind = Kind::of(number);
    let mut sequence = Sequence::new(number);
    for (step, parts) in kind.parts().iter().enumerate() {
        let write = write(number, step);
        oracle.trying(write, *parts);
        match sequence.perform(store, step).await {
            Ok(()) => oracle.learned(write, Fate::Acknowledged),
            Err(error) if error.outcome() == Outcome::NotApplied => {
                oracle.learned(write, Fate::Refused);
                return (kind != Kind::Refused).then(|| error.kind());
            }
            Err(error) => {
                oracle.learned(write, Fate::Unknown);
                return Some(error.kind());
            }
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_refuses_calls_until_there_is_room_again() {
    if !has_own_mounts("full_disk_refuses_calls_until_there_is_room_again") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path();
    mount(&["-t", "tmpfs", "-o", "size=8m", "tmpfs"], disk);
    let filler = disk.join("others");
    fs::write(&filler, vec![1; 3 << 20]).unwrap();

    let path = disk.join("fleet.db");
    let store = open(&path, SqliteOptions::default());
    prepare(&store).await.unwrap();
    let mut oracle = Oracle::default();
    let mut refused = 0;
    let mut number = 0;
    // All kinds, once the disk is full.
    while refused < 3 * KINDS.len() {
        assert!(number < MOST_SEQUENCES, "the disk is never full");
        if let Some(kind) = perform(&store, number, &mut oracle).await {
            assert_eq!(kind, ErrorKind::Transient);
            refused += 1;
        }
        number += 1;
    }
    assert!(number as usize > refused, "it had room at first");

    fs::remove_file(&filler).unwrap();
    let end = number + KINDS.len() as u64;
    for number in number..end {
        assert_eq!(perform(&store, number, &mut oracle).await, None, "{number}");
    }
    store.close().await.unwrap();
    let found = find(&path, 0..end).await;
    let judged = oracle.judge(found);
    judged.unwrap_or_else(|violations| panic!("{violations:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_disk_is_an_error_at_the_start_and_changes_nothing() {
    if !has_own_mounts("read_only_disk_is_an_error_at_the_start_and_changes_nothing") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path();
    mount(&["-t", "tmpfs", "-o", "size=8m", "tmpfs"], disk);
    let path = disk.join("fleet.db");
    let mut oracle = Oracle::default();
    let kinds = KINDS.len() as u64;
    let store = open(&path, SqliteOptions::default());
    prepare(&store).await.unwrap();
    for number in 0..kinds {
        assert_eq!(perform(&store, number, &mut oracle).await, None, "{number}");
    }
    store.close().await.unwrap();

    mount(&["-o", "remount,ro"], disk);
    for path in [&path, &disk.join("new.db")] {
        let random = Arc::new(Random::seeded(1));
        let error = try_open(path, SqliteOptions::default(), random).unwrap_err();
        let text = format!("{error}: {:?}", std::error::Error::source(&error));
        assert!(text.to_lowercase().contains("read"), "{text}");
    }

    mount(&["-o", "remount,rw"], disk);
    let found = find(&path, 0..kinds).await;
    let judged = oracle.judge(found);
    judged.unwrap_or_else(|violations| panic!("{violations:?}"));
}
