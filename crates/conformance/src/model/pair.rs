//! A store beside its model: both take the same steps and must show the same.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use fleethold_proto::fleetspeak::Message;
use fleethold_proto::fleetspeak::server::{Client, ClientContact, ClientResourceUsageRecord};
use fleethold_store::{
    BroadcastId, BroadcastInfo, ClientData, ClientId, Clock, ErrorKind, ManualClock,
    MemoryStore, MessageId, MessageStore, Random, Result, Store, StoredFile, clock,
};
use futures::TryStreamExt;
use futures::future::{join, join_all};

use super::calls::{self, Answer, Names, Side, call, file_name, message_id};
use super::ops::{CLIENTS, FILES, MESSAGES, Op};
use crate::Bed;
use crate::checks::cancel_after;
use crate::samples::{WITH_DATA, seconds, success};

/// What differed, for the reader of a report.
pub(crate) type Difference = String;

/// A store and its model.
pub(crate) struct Pair {
    bed: Bed,
    reopens: bool,
    model: MemoryStore,
    names: Names,
    /// What the model showed last.
    shown: Option<Seen>,
}

/// All that can be seen of a store without changing it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    messages: Vec<Message>,
    pending: Vec<Message>,
    pending_count: u64,
    clients: Vec<Client>,
    streamed: Vec<ClientId>,
    of_clients: Vec<OfClient>,
    active: Vec<BroadcastInfo>,
    files: Vec<Option<StoredFile>>,
}

#[derive(Clone, Debug, PartialEq)]
struct OfClient {
    data: Option<ClientData>,
    contacts: Vec<ClientContact>,
    usage: Vec<ClientResourceUsageRecord>,
    sent: Vec<BroadcastId>,
}

impl Pair {
    pub(crate) fn new(bed: Bed, reopens: bool, seed: u64) -> Self {
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&bed.clock);
        Self {
            model: MemoryStore::new(clock, Arc::new(Random::seeded(seed))),
            bed,
            reopens,
            names: Names::default(),
            shown: None,
        }
    }

    /// Takes a step with both and compares all that can be seen.
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
            }
            Op::Drop { polls, call } => self.step_dropped(usize::from(*polls), call).await?,
            op => self.step_both(op).await?,
        }
        let (shown, expected) = join(see(&*self.bed.store), see(&self.model)).await;
        same("what can be seen", &shown, &expected)?;
        self.shown = Some(expected);
        Ok(())
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
        let broadcasts = || 0..super::ops::BROADCASTS;
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
        let before = match self.shown.take() {
            Some(shown) => shown,
            None => see(&self.model).await,
        };
        let finished = {
            let call = call(&*self.bed.store, now, &self.names, Side::Store, op);
            cancel_after(polls, call).await
        };
        if let Some(found) = finished {
            let expected = self.call_model(op).await;
            return self.compare(found, expected);
        }
        // What was handed over is done before any later write.
        let next = self.bed.store.delete_file("", "no file").await;
        next.map_err(|error| format!("the next call fails: {error:?}"))?;
        let shown = see(&*self.bed.store).await;
        let expected = self.call_model(op).await;
        let after = see(&self.model).await;
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
            .map(crate::samples::id_of)
            .collect()
    }

    /// Closes the store; what removes it is dropped with this pair.
    pub(crate) async fn close(self) {
        let _ = self.bed.store.close().await;
    }
}

/// Looks at everything, at once.
pub(crate) async fn see(store: &dyn Store) -> Seen {
    let ids: Vec<_> = (0..MESSAGES).map(message_id).collect();
    let clients: Vec<_> = (0..CLIENTS).map(calls::client).collect();
    let far = clock::timestamp_from_epoch_nanos(i64::MAX);
    let start = seconds(0);
    let of_client = |id| {
        let (start, far) = (&start, &far);
        async move {
            let (data, contacts) =
                join(store.get_client_data(id), store.list_client_contacts(id)).await;
            let usage = store.fetch_resource_usage_records(id, start, far);
            let (usage, sent) = join(usage, store.list_sent_broadcasts(id)).await;
            OfClient {
                data: found(data),
                contacts: contacts.expect("contacts"),
                usage: usage.expect("records"),
                sent: sent.expect("broadcasts"),
            }
        }
    };
    let file = |number| async move {
        let (service, name) = file_name(number);
        found(store.read_file(&service, &name).await)
    };
    let of_messages = async {
        let messages = found(store.get_messages(&ids, WITH_DATA).await).unwrap_or_default();
        let pending = store.get_pending_messages(&clients, 0, 0, WITH_DATA).await;
        let count = store.get_pending_message_count(&clients).await;
        (
            messages,
            pending.expect("messages"),
            count.expect("a count"),
        )
    };
    let of_all = async {
        let listed = store.list_clients(&[]).await;
        let streamed: Result<Vec<_>> = store.stream_client_ids(false, None).try_collect().await;
        let active = store.list_active_broadcasts().await;
        (
            listed.expect("clients"),
            streamed.expect("ids"),
            active.expect("broadcasts"),
        )
    };
    let ((messages, pending, pending_count), (listed, streamed, active)) =
        join(of_messages, of_all).await;
    let (of_clients, files) = join(
        join_all(clients.iter().copied().map(of_client)),
        join_all((0..FILES).map(file)),
    )
    .await;
    Seen {
        messages,
        pending,
        pending_count,
        clients: listed,
        streamed,
        of_clients,
        active,
        files,
    }
}

fn found<T>(answer: Result<T>) -> Option<T> {
    match answer {
        Ok(found) => Some(found),
        Err(error) if error.is_not_found() => None,
        Err(error) => panic!("a read fails: {error:?}"),
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
