//! The model test: random histories of calls to a store and to
//! [`MemoryStore`](fleethold_store::MemoryStore), which must answer alike and
//! show the same after every step.
//!
//! After each step all is compared that the step can change in any way; after
//! every tenth, after a dropped call and after reopening, everything else, too.
//! At the end the due times, the
//! counts of claims and the allocations, which nobody sees, are brought to light.

mod calls;
mod ops;
mod pair;
mod regressions;
mod seen;

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use fleethold_store::{ManualClock, Random};
use futures::FutureExt;
use futures::future::join_all;
use libtest_mimic::{Arguments, Failed, Trial};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::runtime::{self, Runtime};
use tokio::time::timeout;

use crate::{Bed, Harness, availability, cases};
use ops::{Op, history};
use pair::{Difference, Pair};
use regressions::REGRESSIONS;

cases![f_34_every_call_can_be_dropped_at_every_await];

const LENGTH: usize = 100;
const HISTORIES: u64 = 2_000;

/// Few enough histories for each that the runner's limit of time is far.
const SHARDS: u64 = 8;

/// Histories take their steps at the same time, so that their waits overlap.
const AT_ONCE: usize = 8;

const HISTORY_LIMIT: Duration = Duration::from_secs(60);

/// Compares random histories on one kind of store with the store in memory, as
/// the command line says; for `main`.
///
/// Chance is seeded: 2,000 histories of 100 steps from seed 1 on. The
/// environment variables `FLEETHOLD_MODEL_HISTORIES` and `FLEETHOLD_MODEL_SEED`
/// ask for another number and another first seed. A history that differs is
/// shortened before it is reported, with its seed.
pub fn run_model(harness: impl Harness) -> ExitCode {
    run_model_of(harness, HISTORIES)
}

/// As [`run_model`], with so many histories unless the environment asks for
/// another number: for stores whose every step crosses a network.
pub fn run_model_of(harness: impl Harness, histories: u64) -> ExitCode {
    let arguments = Arguments::from_args();
    let harness = Arc::new(harness) as Arc<dyn Harness>;
    libtest_mimic::run(&arguments, trials(&harness, histories)).exit_code()
}

fn trials(harness: &Arc<dyn Harness>, histories: u64) -> Vec<Trial> {
    let first = number_from("FLEETHOLD_MODEL_SEED").unwrap_or(1);
    let count = number_from("FLEETHOLD_MODEL_HISTORIES").unwrap_or(histories);
    let (problem, ignored) = availability(&**harness);
    let trial = |name: &str, compare: Compare| {
        let harness = Arc::clone(harness);
        let problem = problem.clone();
        Trial::test(
            format!("{}::model::{name}", harness.name()),
            move || match problem {
                Some(problem) => Err(problem.into()),
                None => compare(&*harness),
            },
        )
        .with_ignored_flag(ignored)
    };
    let shards = (0..SHARDS).map(|shard| {
        let name = format!("random_histories_{}_of_{SHARDS}_equal_the_model", shard + 1);
        let seeds = first + count * shard / SHARDS..first + count * (shard + 1) / SHARDS;
        trial(&name, Box::new(|harness| compare(harness, seeds)))
    });
    let regressions = REGRESSIONS
        .iter()
        .map(|(name, ops)| trial(name, Box::new(|harness| compare_once(harness, ops()))));
    shards.chain(regressions).collect()
}

type Compare = Box<dyn FnOnce(&dyn Harness) -> Result<(), Failed> + Send>;

/// Compares one history.
fn compare_once(harness: &dyn Harness, ops: Vec<Op>) -> Result<(), Failed> {
    const SEED: u64 = 1;
    match runtime()?.block_on(run(harness, SEED, &ops)) {
        Ok(()) => Ok(()),
        Err(_) => Err(report(harness, SEED, ops)?.into()),
    }
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}")),
    )
}

/// Compares the histories of these seeds.
fn compare(harness: &dyn Harness, mut seeds: Range<u64>) -> Result<(), Failed> {
    let runtime = runtime()?;
    loop {
        let some: Vec<_> = seeds.by_ref().take(AT_ONCE).collect();
        if some.is_empty() {
            return Ok(());
        }
        let runs = join_all(some.into_iter().map(|seed| async move {
            let ops = history(&mut StdRng::seed_from_u64(seed), LENGTH);
            let outcome = run(harness, seed, &ops).await;
            (seed, ops, outcome)
        }));
        for (seed, ops, outcome) in runtime.block_on(runs) {
            if outcome.is_err() {
                return Err(report(harness, seed, ops)?.into());
            }
        }
    }
}

fn runtime() -> std::io::Result<Runtime> {
    runtime::Builder::new_current_thread()
        // A busy thread needs no waking, and only one core is wanted.
        .max_blocking_threads(1)
        .enable_all()
        .build()
}

/// Takes the steps of a history with a new store and its model.
async fn run(harness: &dyn Harness, seed: u64, ops: &[Op]) -> Result<(), Difference> {
    let clock = Arc::new(ManualClock::at(100_000));
    let mut bed = harness.open(clock, Arc::new(Random::seeded(seed))).await;
    let guard = bed.guard.take();
    let mut pair = Pair::new(bed, harness.capabilities().reopens, seed);
    let steps = async {
        for (number, op) in (1..).zip(ops) {
            let step = pair.step(op).await;
            step.map_err(|difference| format!("after step {number}, {op:?}: {difference}"))?;
        }
        let finish = pair.finish().await;
        finish.map_err(|difference| format!("after the last step: {difference}"))
    };
    let outcome = match timeout(HISTORY_LIMIT, AssertUnwindSafe(steps).catch_unwind()).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => Err(format!("a call panicked: {}", crate::text_of(panic))),
        Err(_) => Err(format!("not finished after {HISTORY_LIMIT:?}")),
    };
    pair.close().await;
    drop(guard);
    outcome
}

/// Shortens a history that differs and says all about it.
fn report(harness: &dyn Harness, seed: u64, ops: Vec<Op>) -> std::io::Result<String> {
    let runtime = runtime()?;
    let fails = |ops: &[Op]| runtime.block_on(run(harness, seed, ops)).err();
    let Some(found) = fails(&ops) else {
        return Ok(format!(
            "the history of seed {seed} differs, but not each time"
        ));
    };
    let ops = shortened(ops, |ops| fails(ops).is_some());
    let found = fails(&ops).unwrap_or(found);
    let steps: String = ops.iter().map(|op| format!("  {op:?}\n")).collect();
    Ok(format!(
        "a history of {} steps tells {} from the store in memory:\n{steps}{found}\n\
         again: FLEETHOLD_MODEL_SEED={seed} FLEETHOLD_MODEL_HISTORIES=1",
        ops.len(),
        harness.name(),
    ))
}

/// Returns a part of `items` that still fails, and of which no single item can
/// be left out.
fn shortened<T: Clone>(mut items: Vec<T>, fails: impl Fn(&[T]) -> bool) -> Vec<T> {
    let mut size = items.len().div_ceil(2);
    while size > 0 {
        let mut start = 0;
        let before = items.len();
        while start < items.len() {
            let end = (start + size).min(items.len());
            let rest = [&items[..start], &items[end..]].concat();
            if fails(&rest) {
                items = rest;
            } else {
                start = end;
            }
        }
        // Once nothing goes, smaller parts may.
        if items.len() == before || size > 1 {
            size /= 2;
        }
    }
    items
}

/// A dropped call happens wholly or not at all, and the next one works: each
/// call is dropped after its first poll, its second, … until it finishes.
async fn f_34_every_call_can_be_dropped_at_every_await(bed: Bed) {
    let mut pair = Pair::new(bed, false, 1);
    let mut random = StdRng::seed_from_u64(34);
    // Long enough that each kind of call comes in many states.
    for op in history(&mut random, 600) {
        let step = match op {
            Op::AdvanceClock { .. } | Op::Reopen => pair.step(&op).await,
            Op::Drop { call, .. } => pair.drop_at_every_await(&call).await,
            call => pair.drop_at_every_await(&call).await,
        };
        if let Err(difference) = step {
            panic!("a dropped call is done or not done: {difference}");
        }
    }
    let finish = pair.finish().await;
    finish.expect("due times, counts and allocations are as if nothing had been dropped");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_shortened_to_what_matters() {
        let fails = |items: &[u32]| items.contains(&17) && items.contains(&63);
        assert_eq!(shortened((0..100).collect(), fails), [17, 63]);
        assert_eq!(shortened(vec![17], |_| true), []);
    }

    #[test]
    fn seed_means_the_same_history_again() {
        let again = || history(&mut StdRng::seed_from_u64(7), LENGTH);
        assert_eq!(again(), again());
    }
}
