//! The suite every fleethold store has to pass.
//!
//! A backend says in a [`Harness`] how a fresh store comes alive; [`run`] puts
//! every case of the suite through it. Each case has its own store, clock and
//! runtime and is reported under its own name, by plain `cargo test` and by
//! nextest alike. Use it from a test target with `harness = false`; it is no
//! help outside of tests.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use std::sync::Arc;
//!
//! use async_trait::async_trait;
//! use fleethold_conformance::{Bed, Capabilities, Harness};
//! use fleethold_store::{ManualClock, MemoryStore, Random};
//!
//! struct Memory;
//!
//! #[async_trait]
//! impl Harness for Memory {
//!     fn name(&self) -> &'static str {
//!         "memory"
//!     }
//!
//!     fn capabilities(&self) -> Capabilities {
//!         Capabilities::default()
//!     }
//!
//!     fn unavailable(&self) -> Option<String> {
//!         None
//!     }
//!
//!     async fn open(&self, clock: Arc<ManualClock>, random: Arc<Random>) -> Bed {
//!         let store = Arc::new(MemoryStore::new(clock.clone(), random));
//!         Bed::new(store, clock)
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     fleethold_conformance::run(Memory)
//! }
//! ```
//!
//! A store on disk hands the suite its directory and the way to open it again:
//! `Bed::new(store, clock).with_guard(directory).with_reopen(open)`. Cases that
//! reach behind the store, for instance to damage a row, run for harnesses whose
//! [`Capabilities`] say that they have a way; the others show as ignored.
//!
//! A complete example with a store that is broken, and its report, is
//! `examples/own_store`: `cargo run -p fleethold-conformance --example own_store`.
//!
//! # Random histories
//!
//! [`run_model`] takes the same [`Harness`] and compares thousands of random
//! histories with the store in memory. It belongs into a test target of its own.
//! `FLEETHOLD_MODEL_HISTORIES=100000 FLEETHOLD_MODEL_SEED=1000000 cargo test
//! --release --test model` runs longer and elsewhere; what a failure prints
//! repeats it.
//!
//! # Names
//!
//! The names of cases that prove a numbered behaviour of the specification
//! (section 7) start with its numbers: `b_013_to_021_…`, `s_04_…`, `f_27_…`. A test of
//! this crate proves that every number is named.
//!
//! # When a database is missing
//!
//! [`Harness::unavailable`] turns all cases into ignored ones and prints why.
//! If the comma-separated environment variable `FLEETHOLD_REQUIRE` names the
//! harness, they fail instead.

mod allocations;
mod bed;
mod broadcasts;
mod checks;
mod claims;
mod clients;
mod contacts;
mod disturbed;
mod durability;
mod files;
mod groups;
mod lifecycle;
mod maintenance;
mod messages;
mod model;
pub mod oracle;
mod processor;
mod races;
mod refusals;
mod results;
mod samples;
mod saves;
mod sharing;
mod text;
mod usage;
mod volume;

use std::any::Any;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use fleethold_store::{ManualClock, Random};
use futures::future::BoxFuture;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime;
use tokio::task::JoinError;
use tokio::time::timeout;

pub use bed::{Bed, Capabilities, Harness};
pub use model::{run_model, run_model_of};

/// Runs all cases for one kind of store, as the command line says; for `main`.
pub fn run(harness: impl Harness) -> ExitCode {
    run_all([Arc::new(harness) as Arc<dyn Harness>])
}

/// Runs all cases for several kinds or configurations of stores; for `main`.
pub fn run_all(harnesses: impl IntoIterator<Item = Arc<dyn Harness>>) -> ExitCode {
    run_with(&Arguments::from_args(), harnesses)
}

/// As [`run_all`], with a command line that is parsed already.
pub fn run_with(
    arguments: &Arguments,
    harnesses: impl IntoIterator<Item = Arc<dyn Harness>>,
) -> ExitCode {
    let trials = harnesses
        .into_iter()
        .flat_map(|harness| trials(&harness))
        .collect();
    libtest_mimic::run(arguments, trials).exit_code()
}

/// Names the cases of a module, each once: a function that is missing here is
/// dead code, which the lints refuse. `name if capability` is a case for stores
/// with that capability only.
macro_rules! cases {
    ($($name:ident $(if $capability:ident)?),* $(,)?) => {
        pub(crate) const CASES: &[$crate::Case] = &[$($crate::Case {
            name: stringify!($name),
            applies: |_can| true $(&& _can.$capability)?,
            run: |bed| Box::pin($name(bed)),
        }),*];
    };
}
use cases;

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    /// Whether the case means anything to a store with these capabilities.
    applies: fn(Capabilities) -> bool,
    run: fn(Bed) -> BoxFuture<'static, ()>,
}

/// The cases of each subject.
const TOPICS: &[(&str, &[Case])] = &[
    ("messages", messages::CASES),
    ("results", results::CASES),
    ("claims", claims::CASES),
    ("clients", clients::CASES),
    ("contacts", contacts::CASES),
    ("usage", usage::CASES),
    ("broadcasts", broadcasts::CASES),
    ("saves", saves::CASES),
    ("groups", groups::CASES),
    ("allocations", allocations::CASES),
    ("files", files::CASES),
    ("processor", processor::CASES),
    ("lifecycle", lifecycle::CASES),
    ("durability", durability::CASES),
    ("refusals", refusals::CASES),
    ("text", text::CASES),
    ("volume", volume::CASES),
    ("races", races::CASES),
    ("sharing", sharing::CASES),
    ("disturbed", disturbed::CASES),
    ("maintenance", maintenance::CASES),
    ("model", model::CASES),
];

fn trials(harness: &Arc<dyn Harness>) -> Vec<Trial> {
    let (problem, ignored) = availability(&**harness);
    let capabilities = harness.capabilities();
    TOPICS
        .iter()
        .flat_map(|(topic, cases)| cases.iter().map(move |case| (topic, *case)))
        .map(|(topic, case)| {
            let name = format!("{}::{topic}::{}", harness.name(), case.name);
            let harness = Arc::clone(harness);
            let problem = problem.clone();
            Trial::test(name, move || match problem {
                Some(problem) => Err(problem.into()),
                None => run_case(&*harness, case),
            })
            .with_ignored_flag(ignored || !(case.applies)(capabilities))
        })
        .collect()
}

/// Returns why nothing can run, and whether that may be ignored.
fn availability(harness: &dyn Harness) -> (Option<String>, bool) {
    let required = std::env::var("FLEETHOLD_REQUIRE").unwrap_or_default();
    let problem = harness.unavailable();
    if let Some(problem) = &problem {
        #[expect(clippy::print_stderr, reason = "ignored cases carry no reason")]
        {
            eprintln!("{} is not available: {problem}", harness.name());
        }
    }
    let ignored = problem.is_some() && !is_required(harness.name(), &required);
    (problem, ignored)
}

/// Returns whether a list with commas names this kind.
fn is_required(kind: &str, required: &str) -> bool {
    required.split(',').any(|name| name.trim() == kind)
}

/// Every case, its store's opening included, has to end within this time or a
/// multiple of it, see [`Harness::patience`].
const CASE_LIMIT: Duration = Duration::from_secs(60);
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

fn run_case(harness: &dyn Harness, case: Case) -> Result<(), Failed> {
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // The name of the thread starts the report of a panic.
        .thread_name(case.name)
        .enable_all()
        .build()?;
    let limit = CASE_LIMIT * harness.patience();
    let outcome = runtime.block_on(async {
        let clock = Arc::new(ManualClock::at(100_000));
        let random = Arc::new(Random::seeded(1));
        let mut bed = timeout(limit, harness.open(clock, random)).await?;
        let guard = bed.guard.take();
        let opened = Arc::clone(&bed.opened);
        let mut task = tokio::spawn((case.run)(bed));
        let outcome = match timeout(limit, &mut task).await {
            Ok(ended) => ended.map_err(panic_text),
            Err(_) => {
                task.abort();
                Err(format!("not finished after {limit:?}").into())
            }
        };
        let opened = std::mem::take(&mut *opened.lock().unwrap_or_else(PoisonError::into_inner));
        for store in opened {
            timeout(CLOSE_LIMIT, store.close()).await??;
        }
        drop(guard);
        outcome
    });
    // A call that hangs must not hang the suite.
    runtime.shutdown_timeout(CLOSE_LIMIT);
    outcome
}

fn panic_text(error: JoinError) -> Failed {
    let text = match error.try_into_panic() {
        Ok(payload) => text_of(payload),
        Err(error) => error.to_string(),
    };
    text.into()
}

fn text_of(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload
            .downcast_ref::<&str>()
            .map_or("panicked", |text| *text)
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use std::sync::atomic::{AtomicBool, Ordering};

    use fleethold_store::{ClientId, ErrorKind, FileStore, MemoryStore};
    use futures::FutureExt;

    use async_trait::async_trait;

    use super::*;

    #[test]
    fn cases_of_a_missing_database_are_ignored_unless_it_is_required() {
        let harness: Arc<dyn Harness> = Arc::new(Stub {
            problem: Some("no server"),
            ..Stub::default()
        });
        let ignored = trials(&harness).iter().all(Trial::has_ignored_flag);
        assert!(ignored, "nothing requires it");
        for (required, expected) in [("", false), ("stubs,other", false), ("other, stub", true)] {
            assert_eq!(is_required("stub", required), expected, "{required}");
        }
    }

    #[test]
    fn failed_case_is_reported_and_cleaned_up() {
        let harness = Stub::default();
        let case = Case {
            name: "failing",
            applies: |_| true,
            run: |bed| {
                Box::pin(async move {
                    bed.add_client(ClientId::new([1; 8])).await;
                    panic!("1 is not {}", 2);
                })
            },
        };
        let failed = run_case(&harness, case).unwrap_err();
        assert_eq!(failed.message(), Some("1 is not 2"));
        assert!(harness.closed_before_guard.load(Ordering::SeqCst));
    }

    #[derive(Default)]
    struct Stub {
        problem: Option<&'static str>,
        closed_before_guard: Arc<AtomicBool>,
    }

    #[async_trait]
    impl Harness for Stub {
        fn name(&self) -> &'static str {
            "stub"
        }

        fn capabilities(&self) -> Capabilities {
            Capabilities::default()
        }

        fn unavailable(&self) -> Option<String> {
            self.problem.map(Into::into)
        }

        async fn open(&self, clock: Arc<ManualClock>, random: Arc<Random>) -> Bed {
            let store = Arc::new(MemoryStore::new(Arc::<ManualClock>::clone(&clock), random));
            let guard = Guard {
                store: Arc::<MemoryStore>::clone(&store),
                closed: Arc::clone(&self.closed_before_guard),
            };
            Bed::new(store, clock).with_guard(guard)
        }
    }

    struct Guard {
        store: Arc<MemoryStore>,
        closed: Arc<AtomicBool>,
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            let call = self.store.delete_file("", "").now_or_never();
            let found = call.expect("the store in memory never waits");
            let closed = found.is_err_and(|error| error.kind() == ErrorKind::Closed);
            self.closed.store(closed, Ordering::SeqCst);
        }
    }

    /// Returns the numbers at the start of a name: `b_001_to_003_s_04_…`.
    fn numbers(name: &str) -> Vec<(char, u32)> {
        let mut found = Vec::new();
        let mut series = None;
        let mut range = false;
        for word in name.split('_') {
            match (word, series) {
                ("b" | "f" | "s", _) => series = word.chars().next(),
                ("to", Some(_)) if !found.is_empty() => range = true,
                (number, Some(letter)) => {
                    let Ok(number) = number.parse() else { break };
                    match found.last() {
                        Some(&(_, first)) if range => {
                            found.extend((first + 1..=number).map(|number| (letter, number)));
                        }
                        _ => found.push((letter, number)),
                    }
                    range = false;
                }
                _ => break,
            }
        }
        found
    }

    #[test]
    fn numbers_are_read_from_the_start_of_a_name() {
        let expected = [('b', 1), ('b', 2), ('b', 3), ('b', 9), ('s', 4)];
        assert_eq!(numbers("b_001_to_003_009_s_04_the_2_are_equal"), expected);
        assert_eq!(numbers("a_limit_of_0_means_none"), []);
    }

    #[test]
    fn every_behaviour_of_the_specification_is_named_by_a_case() {
        let named: BTreeSet<_> = TOPICS
            .iter()
            .flat_map(|(_, cases)| *cases)
            .flat_map(|case| numbers(case.name))
            .collect();
        // B-120 to B-123 need a server.
        let wanted = (1..=119)
            .map(|number| ('b', number))
            .chain((1..=15).map(|number| ('s', number)))
            // F-36 and F-37 belong to the MySQL layout.
            .chain((1..=35).map(|number| ('f', number)));
        let missing: Vec<_> = wanted.filter(|number| !named.contains(number)).collect();
        assert_eq!(missing, []);
    }

    #[test]
    fn names_of_cases_are_unique() {
        let mut names = BTreeSet::new();
        for case in TOPICS.iter().flat_map(|(_, cases)| *cases) {
            assert!(names.insert(case.name), "{} appears twice", case.name);
        }
    }
}
