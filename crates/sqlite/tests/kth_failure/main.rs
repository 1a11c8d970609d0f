//! Every method of the store, with every call that it makes to the file system
//! failing in every way: it is done or not done, says so, and the next one works.
//!
//! All calls are failed with I/O errors, before and after they are made. Of the
//! other errors, which take a third of the places of an I/O error or fewer,
//! every third one is tried; with `FLEETHOLD_FAULTS=all`, every one.

mod bed;
mod calls;
mod disk;
#[path = "../crash/history.rs"]
mod history;

use std::time::Duration;

use fleethold_faultfs::{Fault, FaultPlan, Kind};
use fleethold_store::{Error, ErrorKind, Outcome};
use tokio::time::timeout;

use bed::{Bed, Template};
use calls::{CALLS, Call};

/// Far more calls than any method makes.
const MOST_CALLS: u64 = 10_000;

/// A method that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(30);

async fn fail_every_call(plan: impl Fn() -> FaultPlan, sampled: bool) {
    fail_every_call_of(|_| true, plan, sampled).await;
}

async fn fail_every_call_of(
    methods: impl Fn(&Call) -> bool,
    plan: impl Fn() -> FaultPlan,
    sampled: bool,
) {
    let all = std::env::var("FLEETHOLD_FAULTS").is_ok_and(|faults| faults == "all");
    let step = if sampled && !all { 3 } else { 1 };
    let template = Template::new().await;
    let (mut failed, mut tried) = (0_u32, 0_u32);
    for (call, position) in CALLS.iter().filter(|call| methods(call)).zip(0..) {
        let expected = Expected::of(call, &template).await;
        let mut attempt = async |k| {
            let plan = plan().at(k);
            let place = format!("{}, {plan:?}", call.name);
            let run = timeout(LIMIT, expected.judge(call, &template, plan, &place));
            let result = run.await.unwrap_or_else(|_| panic!("{place}: hangs"));
            failed += u32::from(result.is_err());
            tried += 1;
            result != Ok(Reached::No)
        };
        // Always the first place and the last one, whatever is tried between them.
        let mut last = 0;
        let mut is_over = false;
        let places = (1 + position % step..MOST_CALLS).step_by(step as usize);
        for k in std::iter::once(1).chain(places.filter(|k| *k > 1)) {
            if attempt(k).await {
                last = k;
                continue;
            }
            for between in (last + 1..k).rev() {
                if attempt(between).await {
                    break;
                }
            }
            is_over = true;
            break;
        }
        assert!(is_over, "{} has no end", call.name);
    }
    assert!(failed > 0, "no failure was noticed in {tried} attempts");
    #[expect(clippy::print_stderr, reason = "the numbers of the report")]
    {
        eprintln!("{tried} attempts, of which {failed} failed");
    }
}

/// A success, and whether a call to the file system has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    Yes,
    No,
}

/// What a method does if nothing fails.
struct Expected {
    before: Vec<String>,
    after: Vec<String>,
    answer: String,
}

impl Expected {
    async fn of(call: &Call, template: &Template) -> Self {
        let bed = Bed::open(template);
        let before = bed.dump();
        let answer = (call.run)(&bed.store, template).await;
        let answer = answer.unwrap_or_else(|error| panic!("{}: {error:?}", call.name));
        let after = bed.dump();
        assert_eq!(before != after, call.writes, "{}", call.name);
        bed.store_is_whole(template).await;
        Self {
            before,
            after,
            answer,
        }
    }

    async fn judge(
        &self,
        call: &Call,
        template: &Template,
        plan: FaultPlan,
        place: &str,
    ) -> Result<Reached, ErrorKind> {
        let bed = Bed::open(template);
        bed.disk.set_plan(plan);
        let result = (call.run)(&bed.store, template).await;
        bed.disk.clear();
        let reached = if bed.disk.hits() > 0 {
            Reached::Yes
        } else {
            Reached::No
        };
        let state = bed.dump();
        match &result {
            Ok(answer) => {
                assert_eq!(*answer, self.answer, "{place}");
                assert_eq!(state, self.after, "{place}: a success is complete");
            }
            Err(error) => {
                self.judge_error(error, &state, place);
                // What a killed process would find.
                let crashed = bed.dump_of_copy();
                self.judge_error(error, &crashed, place);
            }
        }
        if result.is_err() && state == self.before {
            let again = (call.run)(&bed.store, template).await;
            let answer = again.unwrap_or_else(|error| panic!("{place}, again: {error:?}"));
            assert_eq!(answer, self.answer, "{place}, again");
            assert_eq!(bed.dump(), self.after, "{place}, again");
        } else {
            bed.next_call_works(place).await;
        }
        bed.store_is_whole(template).await;
        let state = bed.dump();
        let bed = bed.reopen().await;
        assert_eq!(bed.dump(), state, "{place}, after reopening");
        bed.store_is_whole(template).await;
        result.map(|_| reached).map_err(|error| error.kind())
    }

    fn judge_error(&self, error: &Error, state: &[String], place: &str) {
        assert_eq!(error.kind(), ErrorKind::Transient, "{place}: {error:?}");
        let is_undone = state == self.before;
        assert!(
            is_undone || state == self.after,
            "{place}: {error:?} did half of it: {state:#?}"
        );
        assert!(
            is_undone || error.outcome() == Outcome::Unknown,
            "{place}: {error:?} is wrong about its outcome"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_call_of_a_method_that_writes_may_fail_with_an_io_error() {
    fail_every_call_of(|call| call.writes, || FaultPlan::new(Fault::IoError), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_call_of_a_method_that_reads_may_fail_with_an_io_error() {
    fail_every_call_of(
        |call| !call.writes,
        || FaultPlan::new(Fault::IoError),
        false,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_change_may_take_place_and_be_reported_as_failed() {
    let changes = [Kind::Write, Kind::Sync, Kind::Truncate, Kind::Delete];
    let plan = || FaultPlan::new(Fault::IoError).on(&changes).after_the_call();
    fail_every_call(plan, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_calls_after_any_one_may_fail_with_io_errors() {
    fail_every_call(|| FaultPlan::new(Fault::IoError).lasting(), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_lock_may_be_taken_by_others_once() {
    // Most are waited for.
    let plan = || FaultPlan::new(Fault::Busy);
    fail_every_call(plan, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_lock_may_be_taken_by_others_for_longer_than_the_timeout() {
    fail_every_call(|| FaultPlan::new(Fault::Busy).lasting(), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_may_be_full_at_any_write() {
    fail_every_call(|| FaultPlan::new(Fault::Full), true).await;
    fail_every_call(|| FaultPlan::new(Fault::Full).lasting(), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_call_may_be_interrupted() {
    fail_every_call(|| FaultPlan::new(Fault::Interrupt), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_system_may_be_read_only_at_any_write() {
    fail_every_call(|| FaultPlan::new(Fault::ReadOnly), true).await;
    fail_every_call(|| FaultPlan::new(Fault::ReadOnly).lasting(), true).await;
}
