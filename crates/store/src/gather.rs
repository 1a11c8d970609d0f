//! Calls of many callers that run as one, for backends whose commit costs more
//! than the call.
//!
//! A call that finds nothing running starts at once and alone: gathering delays
//! nobody. Those that come meanwhile wait and then run together. Nothing is
//! promised about their order, but calls that share a key never run at once,
//! and run in the order in which they came.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::dropped::{Dropped, Left};

/// What can run together with others of its kind.
pub trait Job: Send + 'static {
    /// What two jobs that run at once must not share.
    type Key: Clone + Eq + Hash + Send;

    /// Returns what this job touches.
    fn keys(&self) -> impl Iterator<Item = Self::Key>;

    /// Returns how much this job adds to a batch, in the unit of
    /// [`GatherLimits::weight`].
    fn weight(&self) -> usize;
}

/// How much runs at once.
#[derive(Clone, Copy, Debug)]
pub struct GatherLimits {
    /// Batches at the same time, at least one. More of them wait less for each
    /// other, and each is smaller.
    pub batches: usize,
    /// Jobs in a batch, at least one.
    pub jobs: usize,
    /// The weights of a batch together; a single job may be above.
    pub weight: usize,
    /// A batch that runs for longer goes on, but others no longer wait for it.
    pub turn: Duration,
}

/// Gathers jobs `J` and hands each its answer `A`; clones share the jobs.
pub struct Gather<J: Job, A> {
    limits: GatherLimits,
    state: Arc<Mutex<State<J, A>>>,
    dropped: Arc<Dropped>,
}

struct State<J: Job, A> {
    waiting: VecDeque<Waiting<J, A>>,
    running: usize,
    /// The keys of all jobs that run.
    busy: HashSet<J::Key>,
}

struct Waiting<J, A> {
    job: J,
    answer: oneshot::Sender<A>,
    link: Arc<Mutex<Stage>>,
}

/// How far a job is.
#[derive(Debug)]
enum Stage {
    Waits,
    Runs,
    /// It runs, and its caller has gone.
    Abandoned {
        _left: Left,
    },
    Ended,
}

impl<J: Job, A: Send + 'static> Gather<J, A> {
    /// Gathers within these limits.
    pub fn new(limits: GatherLimits) -> Self {
        Self {
            limits,
            state: Arc::new(Mutex::new(State {
                waiting: VecDeque::new(),
                running: 0,
                busy: HashSet::new(),
            })),
            dropped: Arc::default(),
        }
    }

    /// Runs a job, perhaps together with others, and returns its answer; `None`
    /// if `work` panicked or its runtime ended, and the job may have happened.
    ///
    /// `work` gets jobs in the order in which they came and returns their
    /// answers in the same order; it is that of any of the callers. Dropping
    /// this before the job has begun takes it back; later the job goes on, and
    /// [`settle`](Self::settle) waits for it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn run<F>(
        &self,
        job: J,
        work: impl Fn(Vec<J>) -> F + Send + Sync + 'static,
    ) -> Option<A>
    where
        F: Future<Output = Vec<A>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let link = Arc::new(Mutex::new(Stage::Waits));
        let _caller = Caller {
            link: Arc::clone(&link),
            gather: self,
        };
        let begins = {
            let mut state = lock(&self.state);
            state.waiting.push_back(Waiting { job, answer, link });
            let begins = state.running < self.limits.batches.max(1);
            state.running += usize::from(begins);
            begins
        };
        if begins {
            let driver = Driver {
                limits: self.limits,
                state: Arc::clone(&self.state),
                has_ended: false,
            };
            tokio::spawn(driver.run(Arc::new(work)));
        }
        answered.await.ok()
    }

    /// Waits, but not for longer than `limit`, until the jobs have ended that
    /// run although their callers have gone: so that whoever goes on after a
    /// call that was given up finds it done or not done.
    pub async fn settle(&self, limit: Duration) {
        self.dropped.wait(limit).await;
    }
}

impl<J: Job, A> fmt::Debug for Gather<J, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gather")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Runs batch after batch until nothing waits that may run.
struct Driver<J: Job, A> {
    limits: GatherLimits,
    state: Arc<Mutex<State<J, A>>>,
    has_ended: bool,
}

impl<J: Job, A: Send + 'static> Driver<J, A> {
    fn run<F: Future<Output = Vec<A>> + Send + 'static>(
        mut self,
        work: Arc<impl Fn(Vec<J>) -> F + Send + Sync + 'static>,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while let Some((jobs, batch)) = self.begin() {
                let answers = AssertUnwindSafe(async { work(jobs).await }).catch_unwind();
                let mut answers = std::pin::pin!(answers);
                let Ok(in_time) = timeout(self.limits.turn, &mut answers).await else {
                    // Another driver goes on in its place.
                    tokio::spawn(self.run(Arc::clone(&work)));
                    batch.answer(answers.await.unwrap_or_default());
                    return;
                };
                batch.answer(in_time.unwrap_or_default());
            }
        })
    }

    /// Takes the next batch; if there is none, this driver has ended.
    fn begin(&mut self) -> Option<(Vec<J>, Batch<J, A>)> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let (mut jobs, mut callers, mut busy) = (Vec::new(), Vec::new(), Vec::new());
        let mut weight = 0;
        let mut passed_over = VecDeque::new();
        // What waits behind a job with the same key waits longer.
        let mut blocked = HashSet::new();
        while let Some(waiting) = state.waiting.pop_front() {
            if !waits(&waiting.link) {
                continue;
            }
            let keys: Vec<_> = waiting.job.keys().collect();
            let is_free = |key| !state.busy.contains(key) && !blocked.contains(key);
            if !keys.iter().all(is_free) {
                blocked.extend(keys);
                passed_over.push_back(waiting);
                continue;
            }
            let job_weight = waiting.job.weight();
            let has_room =
                jobs.len() < self.limits.jobs && weight + job_weight <= self.limits.weight;
            if !(jobs.is_empty() || has_room) {
                state.waiting.push_front(waiting);
                break;
            }
            if !begin(&waiting.link) {
                continue;
            }
            weight += job_weight;
            for key in keys {
                if state.busy.insert(key.clone()) {
                    busy.push(key);
                }
            }
            jobs.push(waiting.job);
            callers.push((waiting.answer, waiting.link));
        }
        passed_over.append(&mut state.waiting);
        state.waiting = passed_over;
        if jobs.is_empty() {
            state.running -= 1;
            self.has_ended = true;
            return None;
        }
        let batch = Batch {
            state: Arc::clone(&self.state),
            callers,
            keys: busy,
        };
        Some((jobs, batch))
    }
}

impl<J: Job, A> Drop for Driver<J, A> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        // The runtime ends: who waits must not wait for ever.
        let mut state = lock(&self.state);
        state.running -= 1;
        if state.running == 0 {
            state.waiting.clear();
        }
    }
}

/// The callers of a batch that runs; it has ended when this is dropped.
struct Batch<J: Job, A> {
    state: Arc<Mutex<State<J, A>>>,
    callers: Vec<(oneshot::Sender<A>, Arc<Mutex<Stage>>)>,
    keys: Vec<J::Key>,
}

impl<J: Job, A> Batch<J, A> {
    fn answer(mut self, answers: Vec<A>) {
        let callers = std::mem::take(&mut self.callers);
        // First, so that a caller who goes on finds its keys free.
        self.free_keys();
        // Who gets no answer is told so.
        let answers = answers
            .into_iter()
            .map(Some)
            .chain(std::iter::repeat_with(|| None));
        for ((caller, link), answer) in callers.into_iter().zip(answers) {
            // It may have gone.
            drop(answer.map(|answer| caller.send(answer)));
            *lock(&link) = Stage::Ended;
        }
    }

    fn free_keys(&mut self) {
        let mut state = lock(&self.state);
        for key in self.keys.drain(..) {
            state.busy.remove(&key);
        }
    }
}

impl<J: Job, A> Drop for Batch<J, A> {
    fn drop(&mut self) {
        self.free_keys();
        for (_, link) in self.callers.drain(..) {
            *lock(&link) = Stage::Ended;
        }
    }
}

/// Who waits for a job.
struct Caller<'g, J: Job, A> {
    link: Arc<Mutex<Stage>>,
    gather: &'g Gather<J, A>,
}

impl<J: Job, A> Drop for Caller<'_, J, A> {
    fn drop(&mut self) {
        let waited = {
            let mut stage = lock(&self.link);
            let waited = matches!(*stage, Stage::Waits);
            *stage = match *stage {
                Stage::Runs => Stage::Abandoned {
                    _left: self.gather.dropped.begin(),
                },
                _ => Stage::Ended,
            };
            waited
        };
        if waited {
            // What it holds must not wait with a database that does not answer.
            let mut state = lock(&self.gather.state);
            state
                .waiting
                .retain(|waiting| !Arc::ptr_eq(&waiting.link, &self.link));
        }
    }
}

fn waits(link: &Mutex<Stage>) -> bool {
    matches!(*lock(link), Stage::Waits)
}

/// Returns whether the job may begin: its caller still waits.
fn begin(link: &Mutex<Stage>) -> bool {
    let mut stage = lock(link);
    let begins = matches!(*stage, Stage::Waits);
    if begins {
        *stage = Stage::Runs;
    }
    begins
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    const LIMITS: GatherLimits = GatherLimits {
        batches: 1,
        jobs: 4,
        weight: 100,
        turn: Duration::from_secs(600),
    };

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Number {
        key: u32,
        weight: usize,
    }

    impl Job for Number {
        type Key = u32;

        fn keys(&self) -> impl Iterator<Item = u32> {
            std::iter::once(self.key)
        }

        fn weight(&self) -> usize {
            self.weight
        }
    }

    fn light(key: u32) -> Number {
        Number { key, weight: 1 }
    }

    /// Batches that run when the test lets them.
    #[derive(Clone)]
    struct Bed {
        gather: Arc<Gather<Number, u32>>,
        /// Has a permit for each batch that has begun.
        begun: Arc<Semaphore>,
        may_end: Arc<Semaphore>,
        batches: Arc<Mutex<Vec<Vec<u32>>>>,
    }

    impl Bed {
        fn new(limits: GatherLimits) -> Self {
            Self {
                gather: Arc::new(Gather::new(limits)),
                begun: Arc::new(Semaphore::new(0)),
                may_end: Arc::new(Semaphore::new(0)),
                batches: Arc::default(),
            }
        }

        fn call(&self, job: Number) -> tokio::task::JoinHandle<Option<u32>> {
            let (bed, work) = (self.clone(), self.clone());
            tokio::spawn(async move {
                let run = bed.gather.run(job, move |jobs: Vec<Number>| {
                    let bed = work.clone();
                    async move {
                        let keys: Vec<_> = jobs.iter().map(|job| job.key).collect();
                        lock(&bed.batches).push(keys.clone());
                        bed.begun.add_permits(1);
                        bed.may_end.acquire().await.unwrap().forget();
                        assert_ne!(keys, [13], "a batch that panics");
                        keys
                    }
                });
                run.await
            })
        }

        /// Lets all tasks go as far as they can.
        async fn rest(&self) {
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
        }

        /// Returns whether nothing is waited for.
        async fn settles(&self) -> Option<()> {
            let mut settled = Box::pin(self.gather.settle(Duration::from_secs(600)));
            (&mut settled).now_or_never()
        }

        fn batches(&self) -> Vec<Vec<u32>> {
            lock(&self.batches).clone()
        }
    }

    #[tokio::test]
    async fn who_comes_first_runs_alone_and_the_others_together() {
        let bed = Bed::new(LIMITS);
        let mut calls = Vec::new();
        for key in 0..7 {
            calls.push(bed.call(light(key)));
            bed.rest().await;
        }
        assert_eq!(bed.batches(), [vec![0]]);
        bed.may_end.add_permits(9);
        let answers: Vec<_> = join_all(calls).await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, (0..7).map(Some).collect::<Vec<_>>());
        assert_eq!(bed.batches(), [vec![0], vec![1, 2, 3, 4], vec![5, 6]]);
    }

    #[tokio::test]
    async fn a_batch_ends_when_it_is_heavy() {
        let bed = Bed::new(LIMITS);
        let mut calls = vec![bed.call(light(0))];
        bed.rest().await;
        for (key, weight) in [(1, 60), (2, 40), (3, 1), (4, 500), (5, 1)] {
            calls.push(bed.call(Number { key, weight }));
            bed.rest().await;
        }
        bed.may_end.add_permits(9);
        join_all(calls).await;
        assert_eq!(
            bed.batches(),
            [vec![0], vec![1, 2], vec![3], vec![4], vec![5]]
        );
    }

    #[tokio::test]
    async fn jobs_that_share_a_key_run_one_after_the_other() {
        let bed = Bed::new(GatherLimits {
            batches: 2,
            ..LIMITS
        });
        let mut calls = Vec::new();
        for key in [1, 1, 2, 1, 3] {
            calls.push(bed.call(light(key)));
            bed.rest().await;
        }
        // The second batch has found 1 busy, so 2 has gone first.
        assert_eq!(bed.batches(), [vec![1], vec![2]]);
        bed.may_end.add_permits(9);
        join_all(calls).await;
        let batches = bed.batches();
        assert_eq!(batches.iter().flatten().filter(|key| **key == 1).count(), 3);
        let shares_none =
            |batch: &Vec<u32>| batch.iter().collect::<HashSet<_>>().len() == batch.len();
        assert!(batches.iter().all(shares_none), "{batches:?}");
    }

    #[tokio::test]
    async fn a_call_that_is_dropped_early_never_runs_and_later_is_waited_for() {
        let bed = Bed::new(LIMITS);
        let first = bed.call(light(1));
        bed.rest().await;
        let second = bed.call(light(2));
        bed.rest().await;
        second.abort();
        first.abort();
        bed.rest().await;
        assert!(
            lock(&bed.gather.state).waiting.is_empty(),
            "it was taken back"
        );
        assert_eq!(bed.settles().await, None, "still running");
        bed.may_end.add_permits(9);
        bed.gather.settle(Duration::from_secs(60)).await;
        assert_eq!(bed.settles().await, Some(()));
        assert_eq!(bed.call(light(3)).await.unwrap(), Some(3));
        assert_eq!(bed.batches(), [vec![1], vec![3]]);
    }

    #[tokio::test]
    async fn a_batch_that_takes_long_keeps_only_those_with_its_key_waiting() {
        let bed = Bed::new(GatherLimits {
            turn: Duration::from_millis(1),
            ..LIMITS
        });
        let first = bed.call(light(1));
        bed.rest().await;
        let _same = bed.call(light(1));
        let other = bed.call(light(2));
        bed.begun.acquire_many(2).await.unwrap().forget();
        assert_eq!(bed.batches(), [vec![1], vec![2]]);
        bed.may_end.add_permits(2);
        assert_eq!(first.await.unwrap(), Some(1));
        assert_eq!(other.await.unwrap(), Some(2));
    }

    #[tokio::test]
    async fn a_batch_that_panics_gives_no_answer_and_the_next_one_runs() {
        let bed = Bed::new(LIMITS);
        bed.may_end.add_permits(9);
        assert_eq!(bed.call(light(13)).await.unwrap(), None);
        assert_eq!(bed.call(light(13)).await.unwrap(), None, "the key is free");
        assert_eq!(bed.settles().await, Some(()), "nobody waits for it");
        assert_eq!(bed.call(light(2)).await.unwrap(), Some(2));
    }

    #[test]
    fn who_waits_is_told_when_the_runtime_of_the_batch_ends() {
        let bed = Bed::new(LIMITS);
        let ending = tokio::runtime::Builder::new_multi_thread()
            .enable_time()
            .build()
            .unwrap();
        let other = tokio::runtime::Builder::new_multi_thread()
            .enable_time()
            .build()
            .unwrap();
        let first = ending.spawn({
            let bed = bed.clone();
            async move { bed.call(light(1)).await }
        });
        while bed.batches().is_empty() {
            std::thread::yield_now();
        }
        let second = {
            let _entered = other.enter();
            bed.call(light(2))
        };
        while lock(&bed.gather.state).waiting.is_empty() {
            std::thread::yield_now();
        }
        ending.shutdown_background();
        drop(first);
        assert_eq!(other.block_on(second).unwrap(), None);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn every_one_of_many_callers_gets_its_own_answer() {
        let gather = Arc::new(Gather::<Number, u32>::new(GatherLimits {
            batches: 3,
            jobs: 8,
            weight: 20,
            turn: Duration::from_secs(600),
        }));
        let running = Arc::new(AtomicUsize::new(0));
        let calls = (0..2_000_u32).map(|number| {
            let (gather, running) = (Arc::clone(&gather), Arc::clone(&running));
            tokio::spawn(async move {
                let job = light(number % 50);
                let answer = gather.run(job, move |jobs: Vec<Number>| {
                    let running = Arc::clone(&running);
                    async move {
                        assert!(running.fetch_add(1, Ordering::SeqCst) < 3);
                        tokio::task::yield_now().await;
                        running.fetch_sub(1, Ordering::SeqCst);
                        assert!(jobs.len() <= 8);
                        jobs.iter().map(|job| job.key).collect()
                    }
                });
                assert_eq!(answer.await, Some(number % 50));
            })
        });
        for call in join_all(calls).await {
            call.unwrap();
        }
        let state = lock(&gather.state);
        assert!(state.busy.is_empty() && state.waiting.is_empty() && state.running == 0);
    }
}
