//! The process that kills, opens what is left, and judges.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use fleethold_conformance::oracle::{Fate, Oracle};
use fleethold_sqlite::SqliteOptions;
use fleethold_store::{MessageStore, Random, Store};
use tokio::runtime::Runtime;

use crate::child::{Death, Order};
use crate::findings::{find, open};
use crate::history::{FIRST_FILLER, Kind, MOST_STEPS, base_client, to_server};

/// The number of SIGKILL.
const KILL: i32 = 9;

/// A process that does not come to the point in this time has a bug.
const LIMIT: Duration = Duration::from_secs(60);

/// Which store the processes of one case write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// All to the same.
    One,
    /// All to the same, with so many messages that ids move to their table.
    Large,
    /// Each to its own.
    Fresh,
}

/// From when on the time to a random kill counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// From the start of the process, so that it may die while it opens.
    Start,
    /// From when the store is open.
    Open,
}

pub(crate) fn kill_repeatedly(
    whose: Whose,
    stage: Stage,
    seed: u64,
    kills: u64,
    death: fn(u64) -> Death,
) -> Result<(), String> {
    let runtime = Runtime::new().map_err(|error| error.to_string())?;
    let random = Random::seeded(seed);
    let mut bed = Bed::new(&runtime, whose);
    let mut totals = [0; 3];
    for round in 0..kills {
        if whose == Whose::Fresh && round > 0 {
            totals = add(totals, bed.oracle.counts());
            bed = Bed::new(&runtime, whose);
        }
        let death = death(round);
        // Up to a fifth of a second of work, often much less.
        let micros = (random.next_u64() % 200_000) >> (random.next_u64() % 4);
        bed.run_and_kill(death, stage, Duration::from_micros(micros))
            .and_then(|()| bed.judge(&runtime))
            .map_err(|problem| {
                format!("seed {seed}, kill {round} ({death:?}, {micros} µs): {problem}")
            })?;
    }
    bed.judge_original(&runtime)?;
    totals = add(totals, bed.oracle.counts());
    let [acknowledged, refused, unknown] = totals;
    #[expect(clippy::print_stderr, reason = "the numbers of the report")]
    {
        eprintln!(
            "{whose:?}, seed {seed}: {kills} kills, {acknowledged} calls acknowledged, \
             {refused} refused, {unknown} unanswered"
        );
    }
    if acknowledged == 0 || unknown == 0 {
        return Err(format!("seed {seed}: the kills came too early or too late"));
    }
    Ok(())
}

fn add(one: [usize; 3], other: [usize; 3]) -> [usize; 3] {
    std::array::from_fn(|at| one[at] + other[at])
}

struct Bed {
    directory: tempfile::TempDir,
    oracle: Oracle,
    next_sequence: u64,
}

impl Bed {
    fn new(runtime: &Runtime, whose: Whose) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("live")).expect("a directory");
        let bed = Self {
            directory,
            oracle: Oracle::default(),
            next_sequence: 0,
        };
        if whose == Whose::Large {
            runtime.block_on(fill(&bed.path()));
        }
        bed
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("live/fleet.db")
    }

    /// Lets a process write until its death, and takes note of what it said.
    fn run_and_kill(&mut self, death: Death, stage: Stage, delay: Duration) -> Result<(), String> {
        let order = Order {
            path: self.path(),
            first_sequence: self.next_sequence,
            death,
        };
        let (name, value) = order.to_environment();
        let mut child = std::env::current_exe()
            .and_then(|program| {
                Command::new(program)
                    .env(name, value)
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .spawn()
            })
            .map_err(|error| error.to_string())?;
        let lines = kill_in_time(&mut child, death, stage, delay)?;
        for line in lines {
            self.take_note(&line)?;
        }
        Ok(())
    }

    fn take_note(&mut self, line: &str) -> Result<(), String> {
        let mut characters = line.chars();
        let what = characters.next();
        let number = characters.as_str().parse::<u64>();
        let number = number.map_err(|_| format!("the process said `{line}`"))?;
        let fate = match what {
            Some('t') => {
                let (sequence, step) = (number / MOST_STEPS, number % MOST_STEPS);
                let parts = Kind::of(sequence).parts()[step as usize];
                self.oracle.trying(number, parts);
                self.next_sequence = self.next_sequence.max(sequence + 1);
                return Ok(());
            }
            Some('o' | 'k') => return Ok(()),
            Some('a') => Fate::Acknowledged,
            Some('r') => Fate::Refused,
            _ => Fate::Unknown,
        };
        self.oracle.learned(number, fate);
        if fate == Fate::Unknown {
            return Err(format!("write {number} failed before the kill"));
        }
        let is_refused = Kind::of(number / MOST_STEPS) == Kind::Refused;
        if is_refused != (fate == Fate::Refused) {
            return Err(format!("write {number} was {fate:?}"));
        }
        Ok(())
    }

    /// Judges a copy: the next process has to repair the original, and may be
    /// killed while it does.
    fn judge(&mut self, runtime: &Runtime) -> Result<(), String> {
        let copy = self.directory.path().join("copy");
        fs::create_dir(&copy).map_err(|error| error.to_string())?;
        for suffix in ["", "-wal", "-journal"] {
            let from = format!("{}{suffix}", self.path().display());
            if Path::new(&from).exists() {
                let to = copy.join(format!("fleet.db{suffix}"));
                fs::copy(from, to).map_err(|error| error.to_string())?;
            }
        }
        self.judge_at(runtime, &copy.join("fleet.db"))?;
        fs::remove_dir_all(copy).map_err(|error| error.to_string())
    }

    fn judge_original(&mut self, runtime: &Runtime) -> Result<(), String> {
        let path = self.path();
        self.judge_at(runtime, &path)
    }

    fn judge_at(&mut self, runtime: &Runtime, path: &Path) -> Result<(), String> {
        let found = runtime.block_on(find(path, 0..self.next_sequence));
        let judged = self.oracle.judge(found);
        judged.map(drop).map_err(|violations| {
            let texts: Vec<_> = violations.iter().map(ToString::to_string).collect();
            texts.join("; ")
        })
    }
}

/// Stores as many messages as fit into one set of recent ids.
async fn fill(path: &Path) {
    const MESSAGES: u64 = 65_500;
    let store = open(path, SqliteOptions::default());
    for start in (0..MESSAGES).step_by(500) {
        let messages: Vec<_> = (start..start + 500)
            .map(|number| to_server(FIRST_FILLER + number, 0, base_client(0)))
            .collect();
        store.store_messages(&messages, None).await.expect("space");
    }
    store.close().await.expect("the store can be closed");
}

/// Waits for the moment, kills the process and returns all that it said.
fn kill_in_time(
    child: &mut Child,
    death: Death,
    stage: Stage,
    delay: Duration,
) -> Result<Vec<String>, String> {
    let output = child.stdout.take().expect("a pipe");
    let (sender, receiver) = channel();
    let listener = thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = String::new();
        // A line without an end was cut off by the kill.
        while matches!(output.read_line(&mut line), Ok(1..)) && line.ends_with('\n') {
            let said = std::mem::take(&mut line);
            if sender.send(said.trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let mut lines = Vec::new();
    let started = Instant::now();
    let is_random = matches!(death, Death::AtRandom);
    let mut kill_at = (is_random && stage == Stage::Start).then(|| started + delay);
    let ended = loop {
        // The random time to the kill is the subject of this test.
        let deadline = kill_at.unwrap_or(started + LIMIT);
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                match &line[..1] {
                    "o" if is_random && kill_at.is_none() => {
                        kill_at = Some(Instant::now() + delay);
                    }
                    "k" => break Ok(()),
                    _ => {}
                }
                lines.push(line);
            }
            Err(RecvTimeoutError::Timeout) if kill_at.is_some() => break Ok(()),
            Err(RecvTimeoutError::Timeout) => break Err("was not ready in time"),
            Err(RecvTimeoutError::Disconnected) => break Err("ended by itself"),
        }
    };
    child.kill().map_err(|error| error.to_string())?;
    let status = child.wait().map_err(|error| error.to_string())?;
    listener.join().expect("the listener does not panic");
    lines.extend(receiver.try_iter());
    match ended {
        Ok(()) if status.signal() != Some(KILL) => {
            Err(format!("the process was not killed: {status}"))
        }
        Ok(()) => Ok(lines),
        Err(problem) => Err(format!("the process {problem}")),
    }
}
