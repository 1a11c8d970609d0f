//! Looks for what waits for clients: without a transaction, those of many
//! callers at once, and never by walking a backlog.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use fleethold_store::gather::{GatherLimits, Job};
use fleethold_store::{ClientId, Result};
use futures::FutureExt;

use crate::claims::ANY_FOREIGN;
use crate::error::Worked;
use crate::grouped::{TURN, shared_error};
use crate::rows::{self, take};
use crate::sql::{Batch, List, Value};
use crate::transaction::{Shared, Tx, ended_badly};

pub(crate) const LIMITS: GatherLimits = GatherLimits {
    batches: 2,
    jobs: 64,
    // Each opens the table for itself.
    weight: MOST_QUEUES,
    turn: TURN,
};

/// So many queues are asked for at once.
const MOST_QUEUES: usize = 256;

/// The queues in which something waits, with the time from which on the first
/// is due.
pub(crate) type Queues = Vec<(Vec<u8>, i64)>;

/// What waits for a client.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) queues: Queues,
    /// Whether a stock server has stored messages that are in no queue yet.
    pub(crate) foreign: bool,
}

/// A look for what waits for a client.
#[derive(Clone, Debug)]
pub(crate) struct Look(Arc<Probe>);

/// What a look has found; `None`: its caller must look alone.
pub(crate) type Found = Option<Result<Waiting>>;

impl Look {
    /// Makes a look at the queues of those services that accept anything;
    /// `None` means all.
    pub(crate) fn at(client: ClientId, wanted: Option<Vec<[u8; 16]>>) -> Self {
        Self(Arc::new(Probe { client, wanted }))
    }

    fn client(&self) -> ClientId {
        self.0.client
    }

    /// Returns the queues it asks for by name.
    fn named(&self) -> Option<&[[u8; 16]]> {
        let wanted = self.0.wanted.as_deref();
        wanted.filter(|wanted| wanted.len() <= MOST_WANTED)
    }
}

impl Job for Look {
    type Key = ();

    /// Looks change nothing: none is in another's way.
    fn keys(&self) -> impl Iterator<Item = ()> {
        std::iter::empty()
    }

    fn weight(&self) -> usize {
        1 + self.named().map_or(0, <[_]>::len)
    }
}

impl Shared {
    /// Looks for what waits for a client, perhaps together with others; `None`
    /// if that does not tell.
    pub(crate) async fn look_together(
        self: &Arc<Self>,
        operation: &'static str,
        look: Look,
    ) -> Result<Option<Waiting>> {
        self.check_open(operation)?;
        let shared = Arc::clone(self);
        let found = self.looks.run(look, move |looks| {
            let shared = Arc::clone(&shared);
            async move { shared.look_for(operation, looks).await }
        });
        match found.await {
            Some(found) => found.transpose(),
            None => Err(ended_badly(operation)),
        }
    }

    pub(crate) async fn look_alone(&self, operation: &'static str, look: Look) -> Result<Waiting> {
        let found = self.read(operation, look, |look, tx| {
            async move { look.0.run(tx).await }.boxed()
        });
        let (queues, foreign) = found.await?;
        Ok(Waiting { queues, foreign })
    }

    async fn look_for(&self, operation: &'static str, mut looks: Vec<Look>) -> Vec<Found> {
        if looks.len() == 1
            && let Some(look) = looks.pop()
        {
            return vec![Some(self.look_alone(operation, look).await)];
        }
        let looks = Arc::new(looks);
        let found = self
            .read(operation, Arc::clone(&looks), |looks, tx| {
                async move { look_at_all(tx, looks).await }.boxed()
            })
            .await;
        match found {
            Ok(found) => {
                let waiting = |queues| {
                    Ok(Waiting {
                        queues,
                        foreign: false,
                    })
                };
                found
                    .into_iter()
                    .map(|queues| queues.map(waiting))
                    .collect()
            }
            Err(error) => {
                let error = Arc::new(error);
                let errors = looks.iter();
                errors
                    .map(|_| Some(Err(shared_error(operation, &error))))
                    .collect()
            }
        }
    }
}

/// Returns what waits for each; `None` for those that must look for themselves.
async fn look_at_all(tx: &mut Tx, looks: &[Look]) -> Worked<Vec<Option<Queues>>> {
    let clients: BTreeSet<_> = looks.iter().map(Look::client).collect();
    let ranges: Vec<_> = clients.iter().map(|client| rows::queues(*client)).collect();
    let ranges = ranges
        .iter()
        .map(|[first, last]| [Value::Bytes(first), Value::Bytes(last)]);
    let ranges = List::rows(ANY_OF_CLIENT, " UNION ALL ", ranges);
    let mut batch = Batch::of(ANY_FOREIGN, &[]);
    batch.add(ANY_OF_CLIENTS, &[Value::List(&ranges)]);
    let mut replies = tx.only(batch).await?.into_iter();
    if replies.next().is_some_and(|reply| !reply.rows.is_empty()) {
        return Ok(looks.iter().map(|_| None).collect());
    }
    let mut busy = BTreeSet::new();
    for mut row in replies.flat_map(|reply| reply.rows) {
        let queue: Vec<u8> = take(&mut row, 0)?;
        busy.extend(
            queue
                .first_chunk::<8>()
                .map(|client| ClientId::new(*client)),
        );
    }
    let of_busy = looks.iter().filter(|look| busy.contains(&look.client()));
    let wanted: BTreeSet<_> = of_busy.filter_map(Look::named).flatten().collect();
    let mut firsts = HashMap::with_capacity(wanted.len());
    if !wanted.is_empty() {
        let wanted = wanted.iter().map(|queue| [Value::Bytes(&queue[..])]);
        let wanted = List::rows(FIRST_OF_QUEUE, " UNION ALL ", wanted);
        let batch = Batch::of(FIRST_OF_QUEUES, &[Value::List(&wanted)]);
        for mut row in tx
            .only(batch)
            .await?
            .into_iter()
            .flat_map(|reply| reply.rows)
        {
            let queue: Vec<u8> = take(&mut row, 0)?;
            firsts.insert(queue, take(&mut row, 1)?);
        }
    }
    let found = looks.iter().map(|look| {
        if !busy.contains(&look.client()) {
            return Some(Vec::new());
        }
        let named = look.named()?.iter();
        let first = |queue: &[u8; 16]| Some((queue.to_vec(), *firsts.get(&queue[..])?));
        Some(named.filter_map(first).collect())
    });
    Ok(found.collect())
}

/// Looks for what waits for a client.
#[derive(Debug)]
struct Probe {
    client: ClientId,
    /// The queues of the services that accept anything; `None` means all.
    wanted: Option<Vec<[u8; 16]>>,
}

/// So many services are asked for by name; a client that names more, whatever
/// they are, gets an answer about those that something waits for.
const MOST_WANTED: usize = 16;

impl Probe {
    async fn run(&self, tx: &mut Tx) -> Worked<(Queues, bool)> {
        let mut queues = Vec::new();
        match &self.wanted {
            Some(wanted) if wanted.len() <= MOST_WANTED => {
                let mut batch = Batch::of(ANY_FOREIGN, &[]);
                if !wanted.is_empty() {
                    let wanted = wanted.iter().map(|queue| [Value::Bytes(queue)]);
                    let wanted = List::rows(FIRST_OF_QUEUE, " UNION ALL ", wanted);
                    batch.add(FIRST_OF_QUEUES, &[Value::List(&wanted)]);
                }
                let mut replies = tx.only(batch).await?.into_iter();
                let foreign = replies.next().is_some_and(|reply| !reply.rows.is_empty());
                for mut row in replies.flat_map(|reply| reply.rows) {
                    queues.push((take(&mut row, 0)?, take(&mut row, 1)?));
                }
                Ok((queues, foreign))
            }
            _ => {
                let [_, last] = rows::queues(self.client);
                let mut after = self.client.as_bytes().to_vec();
                loop {
                    let values = [Value::Bytes(&after), Value::Bytes(&last)];
                    let mut batch = Batch::of(NEXT_QUEUE, &values);
                    batch.add(ANY_FOREIGN, &[]);
                    let replies = tx.only(batch).await?;
                    let foreign = replies.get(1).is_some_and(|reply| !reply.rows.is_empty());
                    let mut next = replies
                        .into_iter()
                        .next()
                        .map_or(Vec::new(), |reply| reply.rows);
                    let Some(row) = next.first_mut() else {
                        return Ok((queues, foreign));
                    };
                    after = take(row, 0)?;
                    queues.push((after.clone(), take(row, 1)?));
                }
            }
        }
    }
}

const ANY_OF_CLIENTS: &str = "\
-- any_pending
?";

const ANY_OF_CLIENT: &str = "\
(
    SELECT fleethold_queue FROM pending_messages FORCE INDEX (fleethold_queue)
    WHERE fleethold_queue BETWEEN ? AND ? ORDER BY fleethold_queue LIMIT 1
)";

const FIRST_OF_QUEUES: &str = "\
-- due_queues
?";

const FIRST_OF_QUEUE: &str = "\
(
    SELECT fleethold_queue, scheduled_time FROM pending_messages FORCE INDEX (fleethold_queue)
    WHERE fleethold_queue = ? ORDER BY scheduled_time, message_id LIMIT 1
)";

// From queue to queue, because the server decides by its statistics whether it
// reads a whole queue to find the next: a backlog must not be walked.
const NEXT_QUEUE: &str = "\
-- next_queue
SELECT fleethold_queue, scheduled_time FROM pending_messages FORCE INDEX (fleethold_queue)
WHERE fleethold_queue > ? AND fleethold_queue <= ?
ORDER BY fleethold_queue, scheduled_time, message_id LIMIT 1";
