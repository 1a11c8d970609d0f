//! Claims: who hands out a message moves its due time, so that nobody else does.
//!
//! Most calls find nothing due; they find that out without a transaction. What
//! is due is locked, row by row and only in `pending_messages`, skipping what
//! others have locked; nothing leaves before the commit was answered, because
//! in a cluster the commit decides.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use fleethold_proto::fleetspeak::Message;
use fleethold_store::clock::{epoch_micros, timestamp};
use fleethold_store::gather::{GatherLimits, Job};
use fleethold_store::limits::{MAX_CLAIM_BYTES, MOST_EARLY_CLAIMS};
use fleethold_store::record::ResultRecord;
use fleethold_store::{
    ClaimServerMessages, ClientId, MOST_OVERDUE_COUNTED, MessageId, Result, ServiceLimits,
};
use futures::FutureExt;

use crate::error::{Failure, Verdict, Worked};
use crate::grouped::{TURN, shared_error};
use crate::messages::{READ_WITH_DATA, set_results};
use crate::probes::{Look, Queues};
use crate::rows::{self, SERVER_QUEUE, queue, take, take_id};
use crate::schema::LockClause;
use crate::sql::{Batch, List, MOST_ROWS, Value};
use crate::transaction::{Replay, Shared, Tx, ended_badly};

/// A claim that finds locked what was due looks again so many times at most:
/// the server's search for what is due locks the row behind it for a moment.
const MOST_LOOKS: usize = 3;

impl Shared {
    pub(crate) async fn claim_client_messages(
        self: &Arc<Self>,
        client: ClientId,
        limit: u64,
        service_limits: Option<ServiceLimits>,
    ) -> Result<Vec<Message>> {
        const OPERATION: &str = "client_messages_for_processing";
        let accepted: Option<HashMap<[u8; 16], u64>> = service_limits.as_ref().map(|limits| {
            let queues = limits.iter();
            queues
                .map(|(service, limit)| (queue(client, service), *limit))
                .collect()
        });
        let due = |queues: Queues, now_micros: i64| -> Vec<(Vec<u8>, u64)> {
            queues
                .into_iter()
                .filter(|(_, due_micros)| *due_micros <= now_micros)
                .map(|(queue, _)| {
                    let accepted = accepted.as_ref().map_or(limit, |accepted| {
                        let of_queue = <[u8; 16]>::try_from(&queue[..]).ok();
                        let accepted = of_queue.and_then(|queue| accepted.get(&queue));
                        accepted.copied().unwrap_or(0).min(limit)
                    });
                    (queue, accepted)
                })
                .filter(|(_, accepted)| *accepted > 0)
                .collect()
        };
        let wanted = accepted
            .as_ref()
            .map(|accepted| accepted.keys().copied().collect());
        let look = Look::at(client, wanted);
        for _ in 0..MOST_LOOKS {
            let queues = self.waiting(OPERATION, &look).await?;
            let now_micros = epoch_micros(self.context.clock.now());
            let queues = due(queues, now_micros);
            if queues.is_empty() {
                break;
            }
            let claim = ClientClaim(Arc::new(Claim {
                client: Some(client),
                queues,
                limit,
                service_limits: service_limits.clone(),
            }));
            let messages = self.claim_together(OPERATION, claim).await?;
            if !messages.is_empty() {
                return Ok(messages);
            }
        }
        Ok(Vec::new())
    }

    /// Returns the queues in which something waits for a client, with what stock
    /// servers have stored.
    async fn waiting(self: &Arc<Self>, operation: &'static str, look: &Look) -> Result<Queues> {
        let waiting = match self.look_together(operation, look.clone()).await? {
            Some(waiting) => waiting,
            None => self.look_alone(operation, look.clone()).await?,
        };
        if waiting.foreign {
            self.adopt(operation).await?;
            return Ok(self.look_alone(operation, look.clone()).await?.queues);
        }
        Ok(waiting.queues)
    }

    /// Claims messages, perhaps together with others who claim for their clients.
    async fn claim_together(
        self: &Arc<Self>,
        operation: &'static str,
        claim: ClientClaim,
    ) -> Result<Vec<Message>> {
        self.check_open(operation)?;
        self.settle().await;
        let shared = Arc::clone(self);
        let claimed = self.claims.run(claim.clone(), move |claims| {
            let shared = Arc::clone(&shared);
            async move { shared.claim_all(operation, claims).await }
        });
        let claimed = match claimed.await {
            Some(Some(claimed)) => claimed?,
            Some(None) => self.claim_alone(operation, claim.0).await?,
            None => return Err(ended_badly(operation)),
        };
        self.hand_out(operation, claimed).await
    }

    async fn claim_all(
        &self,
        operation: &'static str,
        mut claims: Vec<ClientClaim>,
    ) -> Vec<GroupClaimed> {
        if claims.len() == 1
            && let Some(claim) = claims.pop()
        {
            return vec![Some(self.claim_alone(operation, claim.0).await)];
        }
        let claims: Vec<_> = claims.into_iter().map(|claim| claim.0).collect();
        let count = claims.len();
        let claimed = self
            .write_settled(operation, false, claims, |claims, tx| {
                async move {
                    match claim_all(tx, claims).await {
                        // What one of them is refused for is not the others' matter.
                        Err(failure)
                            if matches!(
                                failure.verdict(),
                                Verdict::Conflict | Verdict::Final(..)
                            ) =>
                        {
                            tracing::debug!(?failure, "each caller claims for itself");
                            Ok(claims.iter().map(|_| None).collect())
                        }
                        claimed => claimed,
                    }
                }
                .boxed()
            })
            .await;
        match claimed {
            Ok(claimed) => claimed.into_iter().map(|claimed| claimed.map(Ok)).collect(),
            Err(error) => {
                let error = Arc::new(error);
                (0..count)
                    .map(|_| Some(Err(shared_error(operation, &error))))
                    .collect()
            }
        }
    }

    async fn claim_alone(&self, operation: &'static str, claim: Arc<Claim>) -> Result<Claimed> {
        let claimed = self.write_settled(operation, false, claim, |claim, tx| {
            async move { claim_all(tx, std::slice::from_ref(claim)).await }.boxed()
        });
        let claimed = claimed.await?.into_iter().flatten().next();
        Ok(claimed.unwrap_or_default())
    }

    async fn hand_out(&self, operation: &'static str, claimed: Claimed) -> Result<Vec<Message>> {
        if !claimed.damaged.is_empty() {
            self.fail_damaged(operation, claimed.damaged).await?;
        }
        Ok(claimed.messages)
    }

    /// Gives messages a result that nobody can read, so that they block nobody.
    async fn fail_damaged(
        &self,
        operation: &'static str,
        damaged: Vec<(MessageId, String)>,
    ) -> Result<()> {
        let now = timestamp(self.context.clock.now());
        let results: BTreeMap<_, _> = damaged
            .into_iter()
            .map(|(message, error)| {
                tracing::error!(%message, %error, "a message cannot be read and has failed");
                let result = ResultRecord {
                    processed_time: now,
                    failure: Some(format!("The stored message cannot be read: {error}.")),
                };
                (message, result)
            })
            .collect();
        let results: Vec<_> = results.into_iter().collect();
        self.write(operation, Replay::Safe, results, |results, tx| {
            async move {
                let mut batch = Batch::default();
                set_results(&mut batch, results);
                tx.commit(batch).await?;
                Ok(())
            }
            .boxed()
        })
        .await
    }

    pub(crate) async fn release_client_messages(
        &self,
        client: ClientId,
        mut ids: Vec<MessageId>,
    ) -> Result<()> {
        const OPERATION: &str = "release_messages";
        if ids.is_empty() {
            return self.check_open(OPERATION);
        }
        ids.sort_unstable();
        let now_micros = epoch_micros(self.context.clock.now());
        self.write(
            OPERATION,
            Replay::Safe,
            (client, ids, now_micros),
            |(client, ids, now_micros), tx| {
                async move {
                    let [first, last] = rows::queues(*client);
                    let mut batch = Batch::default();
                    for slice in ids.chunks(MOST_ROWS) {
                        let ids = List::ids(slice);
                        batch.add(
                            RELEASE,
                            &[
                                Value::Int(*now_micros),
                                Value::List(&ids),
                                Value::Bytes(&first),
                                Value::Bytes(&last),
                                Value::Int(*now_micros),
                                Value::Unsigned(MOST_EARLY_CLAIMS.into()),
                            ],
                        );
                    }
                    tx.commit(batch).await?;
                    Ok(())
                }
                .boxed()
            },
        )
        .await
    }

    /// Returns how many messages are overdue for services, up to a limit, and
    /// since when the oldest is.
    pub(crate) async fn overdue_for_server(&self, now_micros: i64) -> Result<(u64, Option<i64>)> {
        self.read("stats", now_micros, |now_micros, tx| {
            async move {
                let overdue = [
                    Value::Bytes(SERVER_QUEUE),
                    Value::Int(*now_micros),
                    Value::Unsigned(MOST_OVERDUE_COUNTED),
                ];
                let replies = tx.only(Batch::of(OVERDUE_FOR_SERVER, &overdue)).await?;
                let mut rows = replies.into_iter().flat_map(|reply| reply.rows);
                match rows.next() {
                    Some(mut row) => Ok((take(&mut row, 0)?, take(&mut row, 1)?)),
                    None => Ok((0, None)),
                }
            }
            .boxed()
        })
        .await
    }
}

#[async_trait]
impl ClaimServerMessages for Shared {
    async fn claim_server_messages(&self, limit: u64) -> Result<Vec<Message>> {
        const OPERATION: &str = "server_messages_for_processing";
        if limit == 0 {
            self.check_open(OPERATION)?;
            return Ok(Vec::new());
        }
        let now_micros = epoch_micros(self.context.clock.now());
        let (mut any, foreign) = self.any_due_for_server(OPERATION, now_micros).await?;
        if foreign {
            self.adopt(OPERATION).await?;
            (any, _) = self.any_due_for_server(OPERATION, now_micros).await?;
        }
        if !any {
            return Ok(Vec::new());
        }
        let claim = Claim {
            client: None,
            queues: vec![(SERVER_QUEUE.to_vec(), limit)],
            limit,
            service_limits: None,
        };
        self.settle().await;
        let claimed = self.claim_alone(OPERATION, Arc::new(claim)).await?;
        self.hand_out(OPERATION, claimed).await
    }
}

impl Shared {
    async fn any_due_for_server(
        &self,
        operation: &'static str,
        now_micros: i64,
    ) -> Result<(bool, bool)> {
        self.read(operation, now_micros, |now_micros, tx| {
            async move {
                let due = [Value::Bytes(SERVER_QUEUE), Value::Int(*now_micros)];
                let mut batch = Batch::of(ANY_DUE, &due);
                batch.add(ANY_FOREIGN, &[]);
                let replies = tx.only(batch).await?;
                let mut any = replies.iter().map(|reply| !reply.rows.is_empty());
                Ok((any.next() == Some(true), any.next() == Some(true)))
            }
            .boxed()
        })
        .await
    }
}

/// What to claim.
#[derive(Debug)]
struct Claim {
    /// `None` stands for the server's services.
    client: Option<ClientId>,
    /// With how many messages at most are taken from each.
    queues: Vec<(Vec<u8>, u64)>,
    limit: u64,
    service_limits: Option<ServiceLimits>,
}

#[derive(Debug, Default)]
pub(crate) struct Claimed {
    messages: Vec<Message>,
    damaged: Vec<(MessageId, String)>,
}

/// What a claim of a group has got; `None`: its caller must claim alone.
pub(crate) type GroupClaimed = Option<Result<Claimed>>;

/// A claim that may run together with those for other clients.
#[derive(Clone, Debug)]
pub(crate) struct ClientClaim(Arc<Claim>);

pub(crate) const LIMITS: GatherLimits = GatherLimits {
    batches: 2,
    jobs: 32,
    // So many messages may be asked for.
    weight: 4_000,
    turn: TURN,
};

impl Job for ClientClaim {
    type Key = Option<ClientId>;

    /// A transaction does not skip what it has locked itself.
    fn keys(&self) -> impl Iterator<Item = Self::Key> {
        std::iter::once(self.0.client)
    }

    fn weight(&self) -> usize {
        usize::try_from(self.0.limit)
            .unwrap_or(usize::MAX)
            .min(LIMITS.weight)
    }
}

/// A due message that is locked; the order is that of claims.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    due_micros: i64,
    message: MessageId,
    claims: u32,
    bytes: usize,
}

/// Claims for clients that differ; `None` for those whose messages are too much
/// to be read with the others'.
async fn claim_all(tx: &mut Tx, claims: &[Arc<Claim>]) -> Worked<Vec<Option<Claimed>>> {
    let now_micros = epoch_micros(tx.context.clock.now());
    let mut taken = Vec::with_capacity(claims.len());
    let mut batch = Batch::default();
    let mut bytes = 0;
    for (claim, mut due) in claims.iter().zip(lock(tx, claims, now_micros).await?) {
        let bytes_of_claim = claim.choose(&mut due);
        if bytes > 0 && bytes + bytes_of_claim > MAX_CLAIM_BYTES {
            taken.push(None);
            continue;
        }
        bytes += bytes_of_claim;
        taken.push(Some(due));
    }
    let all: Vec<_> = taken.iter().flatten().flatten().collect();
    if !all.is_empty() {
        let for_server = claims.iter().any(|claim| claim.client.is_none());
        for slice in all.chunks(MOST_ROWS) {
            reschedule(&mut batch, tx, slice, for_server, now_micros);
            let ids = List::ids(slice.iter().map(|due| &due.message));
            batch.add(READ_WITH_DATA, &[Value::List(&ids)]);
        }
    }
    let mut found = HashMap::with_capacity(all.len());
    if !all.is_empty() {
        for mut row in tx
            .commit(batch)
            .await?
            .into_iter()
            .flat_map(|reply| reply.rows)
        {
            let Some(id) = rows::id(&row, 0) else {
                continue;
            };
            let message = match rows::message(&mut row) {
                Ok(record) => Ok(record.into_message()),
                Err(Failure::Unreadable(what)) => Err(what.into_owned()),
                Err(failure) => return Err(failure),
            };
            found.insert(id, message);
        }
    }
    let claimed = claims.iter().zip(taken).map(|(claim, due)| {
        let (mut messages, mut damaged) = (Vec::new(), Vec::new());
        for due in due? {
            match found.remove(&due.message) {
                Some(Ok(message)) => messages.push(message),
                Some(Err(error)) => damaged.push((due.message, error)),
                None => {}
            }
        }
        Some(Claimed {
            messages: claim.keep_limits(messages.into_iter()),
            damaged,
        })
    });
    Ok(claimed.collect())
}

/// Locks what is due in the queues of each claim.
async fn lock(tx: &mut Tx, claims: &[Arc<Claim>], now_micros: i64) -> Worked<Vec<Vec<Due>>> {
    let sql = match tx.context.facts.lock {
        LockClause::SkipLocked => LOCK_DUE,
        LockClause::Wait => LOCK_DUE_AND_WAIT,
    };
    let mut batch = Batch::default();
    for (queue, accepted) in claims.iter().flat_map(|claim| &claim.queues) {
        batch.add(
            sql,
            &[
                Value::Bytes(queue),
                Value::Int(now_micros),
                Value::Unsigned(*accepted),
            ],
        );
    }
    let mut replies = tx.run(batch).await?.into_iter();
    let mut all = Vec::with_capacity(claims.len());
    for claim in claims {
        let mut due = Vec::new();
        let of_claim = replies.by_ref().take(claim.queues.len());
        for mut row in of_claim.flat_map(|reply| reply.rows) {
            due.push(Due {
                message: take_id(&mut row, 0)?,
                due_micros: take(&mut row, 1)?,
                claims: u32::try_from(take::<i64>(&mut row, 2)?).unwrap_or(u32::MAX),
                bytes: take::<Option<usize>>(&mut row, 3)?.unwrap_or(0),
            });
        }
        all.push(due);
    }
    Ok(all)
}

fn reschedule(batch: &mut Batch, tx: &Tx, due: &[&Due], for_server: bool, now_micros: i64) {
    let clock = &tx.context.clock;
    if !for_server {
        let ids = List::ids(due.iter().map(|due| &due.message));
        let values = [
            Value::Int(epoch_micros(clock.client_retry_time())),
            Value::List(&ids),
            Value::Int(now_micros),
        ];
        batch.add(RESCHEDULE_FOR_CLIENTS, &values);
        return;
    }
    // Each has its own time.
    let rows = due.iter().map(|due| {
        let due_at = clock.server_retry_time(due.claims.saturating_add(1));
        [
            Value::Bytes(due.message.as_bytes()),
            Value::Int(epoch_micros(due_at)),
        ]
    });
    let table = List::table("SELECT ? AS id, ? AS due", "SELECT ?, ?", rows);
    let values = [Value::List(&table), Value::Int(now_micros)];
    batch.add(RESCHEDULE_FOR_SERVER, &values);
}

impl Claim {
    /// Keeps what one call hands out, in the order of claims, and returns its bytes.
    fn choose(&self, due: &mut Vec<Due>) -> usize {
        due.sort_unstable();
        due.truncate(usize::try_from(self.limit).unwrap_or(usize::MAX));
        let mut bytes = 0;
        let fitting = due.iter().take_while(|due| {
            let is_taken = bytes < MAX_CLAIM_BYTES;
            bytes += if is_taken { due.bytes } else { 0 };
            is_taken
        });
        let count = fitting.count();
        due.truncate(count);
        bytes
    }

    /// Never hands out more for a service than it accepts, even if the hashes
    /// of two names are equal; what is left out is due again later.
    fn keep_limits(&self, messages: impl Iterator<Item = Message>) -> Vec<Message> {
        let mut left = self.service_limits.clone();
        messages
            .filter(|message| {
                let Some(left) = &mut left else { return true };
                let destination = message.destination.as_ref();
                let service = destination.map_or("", |to| to.service_name.as_str());
                match left.get_mut(service) {
                    None | Some(0) => false,
                    Some(left) => {
                        *left -= 1;
                        true
                    }
                }
            })
            .collect()
    }
}

const ANY_DUE: &str = "\
-- any_due_for_server
SELECT 1 FROM pending_messages WHERE fleethold_queue = ? AND scheduled_time <= ? LIMIT 1";

pub(crate) const ANY_FOREIGN: &str = "\
-- any_foreign
SELECT 1 FROM pending_messages WHERE fleethold_queue IS NULL LIMIT 1";

const LOCK_DUE: &str = "\
-- claim (lock)
SELECT message_id, scheduled_time, retry_count, OCTET_LENGTH(data_value) FROM pending_messages
FORCE INDEX (fleethold_queue)
WHERE fleethold_queue = ? AND scheduled_time <= ?
ORDER BY scheduled_time, message_id LIMIT ?
FOR UPDATE SKIP LOCKED";

const LOCK_DUE_AND_WAIT: &str = "\
-- claim (lock and wait)
SELECT message_id, scheduled_time, retry_count, OCTET_LENGTH(data_value) FROM pending_messages
FORCE INDEX (fleethold_queue)
WHERE fleethold_queue = ? AND scheduled_time <= ?
ORDER BY scheduled_time, message_id LIMIT ?
FOR UPDATE";

const RESCHEDULE_FOR_CLIENTS: &str = "\
-- claim (for clients)
UPDATE pending_messages FORCE INDEX (PRIMARY)
SET retry_count = retry_count + 1, scheduled_time = ?
WHERE for_server = 0 AND message_id IN (?) AND scheduled_time <= ?";

const RESCHEDULE_FOR_SERVER: &str = "\
-- claim (for services)
UPDATE (?) AS given STRAIGHT_JOIN pending_messages
    ON pending_messages.for_server = 1 AND pending_messages.message_id = given.id
SET
    pending_messages.retry_count = pending_messages.retry_count + 1,
    pending_messages.scheduled_time = given.due
WHERE pending_messages.scheduled_time <= ?";

const RELEASE: &str = "\
-- release_messages
UPDATE pending_messages SET scheduled_time = ?
WHERE for_server = 0 AND message_id IN (?)
AND fleethold_queue BETWEEN ? AND ? AND scheduled_time > ? AND retry_count <= ?";

// A part of the index, as long as the limit at most.
const OVERDUE_FOR_SERVER: &str = "\
-- overdue_for_server
SELECT COUNT(*), MIN(scheduled_time) FROM (
    SELECT scheduled_time FROM pending_messages
    WHERE fleethold_queue = ? AND scheduled_time <= ?
    ORDER BY scheduled_time LIMIT ?
) AS overdue";
