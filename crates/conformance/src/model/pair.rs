//! A store beside its model: both take the same steps and must show the same.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use fleethold_store::{
    Clock, ErrorKind, ManualClock, MemoryStore, MessageId, MessageStore, Random, Result,
};
use futures::future::join;

use super::calls::{Answer, Names, Side, call, message_id};
use super::ops::{BROADCASTS, CLIENTS, MESSAGES, Op};
use super::seen::{Look, see};
use crate::Bed;
use crate::checks::cancel_after;
use crate::samples::{WITH_DATA, id_of, success};

/// Every so many steps look where they cannot have changed anything, too.
const EVERYWHERE: usize = 10;

/// What differed, for the reader of a report.
pub(crate) type Difference = String;

/// A store and its model.
pub(crate) struct Pair {
    bed: Bed,
    reopens: bool,
    model: MemoryStore,
    names: Names,
    steps: usize,
    /// Whether the last call to drop finished before.
    finished: bool,
}

impl Pair {
    pub(crate) fn new(bed: Bed, reopens: bool, seed: u64) -> Self {
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&bed.clock);
        Self {
            model: MemoryStore::new(clock, Arc::new(Random::seeded(seed))),
            bed,
            reopens,
            names: Names::default(),
            steps: 0,
            finished: false,
        }
    }

    /// Takes a step with both and compares what can be seen.
    pub(crate) async fn step(&mut self, op: &Op) -> Result<(), Difference> {
        match op {
            Op::AdvanceClock { micros } => self.bed.clock.advance(Duration::from_micros(*micros)),
            Op::Reopen if self.reopens => self.bed.reopen().await,
            Op::Reopen => {}
            // Counting twice cannot be told from counting once.
            Op::Drop { call, .. }
                if matches!(
                    **call,
                    Op::CleanupAllocation {
                        allocation: None,
                        ..
                    }
                ) =>
            {
                self.step_both(call).await?;
                self.finished = true;
            }
            Op::Drop { polls, call } => self.step_dropped(usize::from(*polls), call).await?,
            op => self.step_both(op).await?,
        }
        self.steps += 1;
        let look = if self.steps.is_multiple_of(EVERYWHERE) {
            Look::EVERYWHERE
        } else {
            Look::after(op)
        };
        let (shown, expected) = join(see(&*self.bed.store, look), see(&self.model, look)).await;
        same("what can be seen", &shown, &expected)
    }

    /// Brings to light what steps cannot see: due times, counts, allocations.
    pub(crate) async fn finish(&mut self) -> Result<(), Difference> {
        let claims = (0..CLIENTS).map(|client| Op::Claim {
            client,
            limit: u64::MAX,
            tokens: None,
        });
        let claims: Vec<_> = claims
            .chain([Op::ClaimOnServer { limit: u64::MAX }])
            .collect();
        let broadcasts = || 0..BROADCASTS;
        for micros in [0, 60_000_000, 6_000_000, 834_000_000] {
            self.step(&Op::AdvanceClock { micros }).await?;
            for claim in &claims {
                self.step_both(claim).await?;
            }
        }
        for broadcast in broadcasts() {
            let all = Op::CreateAllocation {
                broadcast,
                percent: 100,
                seconds: 60,
            };
            self.step_both(&all).await?;
        }
        self.step(&Op::AdvanceClock {
            micros: 3_600_000_000,
        })
        .await?;
        for broadcast in broadcasts() {
            let all = Op::CreateAllocation {
                broadcast,
                percent: 100,
                seconds: 60,
            };
            self.step_both(&all).await?;
            self.step_both(&Op::SetBroadcastLimit {
                broadcast,
                limit: u64::MAX,
            })
            .await?;
        }
        self.step(&Op::Reopen).await
    }

    /// Drops a call after one poll, two, … until it finishes.
    pub(crate) async fn drop_at_every_await(&mut self, op: &Op) -> Result<(), Difference> {
        /// More than any call has.
        const MOST: u8 = 100;
        for polls in 1..MOST {
            let drop = Op::Drop {
                polls,
                call: Box::new(op.clone()),
            };
            self.finished = false;
            let step = self.step(&drop).await;
            step.map_err(|difference| format!("{op:?} dropped after {polls} polls: {difference}"))?;
            if self.finished {
                return Ok(());
            }
        }
        Err(format!("{op:?} is not finished after {MOST} polls"))
    }

    /// Makes a call to both, which must answer alike.
    async fn step_both(&mut self, op: &Op) -> Result<(), Difference> {
        let expected = self.call_model(op).await;
        let found = self.call_store(op).await;
        self.compare(found, expected)
    }

    async fn call_store(&self, op: &Op) -> Result<Answer> {
        call(
            &*self.bed.store,
            self.bed.clock.now(),
            &self.names,
            Side::Store,
            op,
        )
        .await
    }

    async fn call_model(&self, op: &Op) -> Result<Answer> {
        call(
            &self.model,
            self.bed.clock.now(),
            &self.names,
            Side::Model,
            op,
        )
        .await
    }

    fn compare(
        &mut self,
        found: Result<Answer>,
        expected: Result<Answer>,
    ) -> Result<(), Difference> {
        match (found, expected) {
            (Ok(Answer::Contact(found)), Ok(Answer::Contact(expected))) => {
                self.names.contacts.push([found, expected]);
                Ok(())
            }
            (Ok(Answer::Allocation(Some(found))), Ok(Answer::Allocation(Some(expected)))) => {
                self.names.allocations.push([found.id, expected.id]);
                let visible = (found.limit, found.expiry);
                same(
                    "an allocation",
                    &visible,
                    &(expected.limit, expected.expiry),
                )
            }
            (Ok(found), Ok(expected)) => same("the answer", &found, &expected),
            (Err(found), Err(expected)) => same(
                "the error",
                &(found.kind(), found.outcome()),
                &(expected.kind(), expected.outcome()),
            ),
            (found, expected) => Err(format!(
                "the answer: expected {expected:#?}\nfound {found:#?}"
            )),
        }
    }

    /// Drops a call of the store, which must have happened wholly or not at
    /// all, and brings the model to the same state.
    async fn step_dropped(&mut self, polls: usize, op: &Op) -> Result<(), Difference> {
        let now = self.bed.clock.now();
        let before = see(&self.model, Look::EVERYWHERE).await;
        let finished = {
            let call = call(&*self.bed.store, now, &self.names, Side::Store, op);
            cancel_after(polls, call).await
        };
        if let Some(found) = finished {
            self.finished = true;
            let expected = self.call_model(op).await;
            return self.compare(found, expected);
        }
        // What was handed over is done before any later write.
        let next = self.bed.store.delete_file("", "no file").await;
        next.map_err(|error| format!("the next call fails: {error:?}"))?;
        let shown = see(&*self.bed.store, Look::EVERYWHERE).await;
        let expected = self.call_model(op).await;
        let after = see(&self.model, Look::EVERYWHERE).await;
        if shown != before {
            return same("what a dropped call left half done", &shown, &after);
        }
        self.repeat(op, expected).await
    }

    /// Repeats a dropped call of which nothing can be seen.
    async fn repeat(&mut self, op: &Op, expected: Result<Answer>) -> Result<(), Difference> {
        match op {
            // A second claim takes what a lost one has left.
            Op::Claim { client, .. } => {
                let rest = Op::Claim {
                    client: *client,
                    limit: u64::MAX,
                    tokens: None,
                };
                self.call_store(&rest)
                    .await
                    .map(drop)
                    .map_err(|error| format!("{error:?}"))?;
                self.call_model(&rest)
                    .await
                    .map(drop)
                    .map_err(|error| format!("{error:?}"))
            }
            // Lost claims count, so those messages are of no further use.
            Op::ClaimOnServer { .. } => {
                let results: Vec<_> = self
                    .shown_server_messages()
                    .await
                    .into_iter()
                    .map(|id| (id, success(1)))
                    .collect();
                for store in [&*self.bed.store, &self.model] {
                    let set = store.set_message_results(&results).await;
                    set.map_err(|error| format!("{error:?}"))?;
                }
                Ok(())
            }
            // A lost allocation goes with its broadcast.
            Op::CreateAllocation { broadcast, .. } => {
                self.step_both(&Op::DisableBroadcasts {
                    broadcasts: vec![*broadcast],
                })
                .await
            }
            _ => match (self.call_store(op).await, expected) {
                (Err(error), Ok(_)) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                (found, expected) => self.compare(found, expected),
            },
        }
    }

    async fn shown_server_messages(&self) -> Vec<MessageId> {
        let ids: Vec<_> = (0..MESSAGES).map(message_id).collect();
        let messages = self
            .model
            .get_messages(&ids, WITH_DATA)
            .await
            .unwrap_or_default();
        messages
            .iter()
            .filter(|message| message.result.is_none())
            .filter(|message| {
                message
                    .destination
                    .as_ref()
                    .is_some_and(|to| to.client_id.is_empty())
            })
            .map(id_of)
            .collect()
    }

    /// Closes the store; what removes it is dropped with this pair.
    pub(crate) async fn close(self) {
        let _ = self.bed.store.close().await;
    }
}

fn same<T: Debug + PartialEq>(what: &str, found: &T, expected: &T) -> Result<(), Difference> {
    if found == expected {
        return Ok(());
    }
    Err(format!(
        "{what} differs\n{}",
        differing_lines(&format!("{found:#?}"), &format!("{expected:#?}"))
    ))
}

/// Shows the lines around the first difference of two long texts.
fn differing_lines(found: &str, expected: &str) -> String {
    let equal = found
        .lines()
        .zip(expected.lines())
        .take_while(|(a, b)| a == b)
        .count();
    let excerpt = |text: &str| -> String {
        let lines = text.lines().skip(equal.saturating_sub(6)).take(14);
        lines.map(|line| format!("    {line}\n")).collect()
    };
    format!(
        "  expected, from line {equal}:\n{}  found:\n{}",
        excerpt(expected),
        excerpt(found)
    )
}
