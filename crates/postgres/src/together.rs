//! Calls of many agents at once in one transaction: a commit and two statements
//! for all of them cost hardly more than for one.
//!
//! Whoever comes alone goes alone, and so does everybody of a batch that the
//! database refuses or holds up: nobody suffers for another's call for longer
//! than [`GROUP_LIMIT`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use fleethold_store::gather::{Gather, GatherLimits, Job};
use fleethold_store::{ClientId, Error, ErrorKind, Outcome, Result};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::clients::unknown;
use crate::contacts::{NewContact, RECORD_MANY};
use crate::enrolments::NewClient;
use crate::incoming::{NewMessages, Parameter, store};
use crate::messages::MANY;
use crate::query::{BYTES_LIST, Query, Values, list};
use crate::transactions::{LONG_CALL, Tx};
use crate::{SOON, Shared};

/// Two: while the database syncs one batch, the next is being sent.
const BATCHES: usize = 2;
const MOST_CALLS: usize = 64;
const MOST_BATCH_BYTES: usize = 1024 * 1024;
/// A group that takes longer, because one of its rows is locked, is given up.
pub(crate) const GROUP_LIMIT: Duration = Duration::from_secs(2);
/// What takes longer lets others begin.
const TURN: Duration = Duration::from_secs(1);
/// What a row costs besides its payload.
const ROW_BYTES: usize = 512;

/// Calls that wait for each other.
#[derive(Debug)]
pub(crate) struct Together {
    contacts: Gather<NewContactData, Grouped>,
    looks: Gather<Asked, bool>,
    pub(crate) enrolments: Gather<NewClient, Grouped>,
}

impl Together {
    pub(crate) fn new() -> Self {
        let limits = GatherLimits {
            batches: BATCHES,
            jobs: MOST_CALLS,
            weight: MOST_BATCH_BYTES,
            turn: TURN,
        };
        Self {
            contacts: Gather::new(limits),
            looks: Gather::new(limits),
            enrolments: Gather::new(limits),
        }
    }

    /// Waits for what dropped calls have left.
    pub(crate) async fn settle(&self) {
        tokio::join!(self.contacts.settle(SOON), self.enrolments.settle(SOON));
    }
}

/// What became of a call in a group.
pub(crate) enum Grouped {
    Done(Result<()>),
    /// Its caller goes on alone; what is known of the group's transaction.
    Alone(Outcome),
}

impl Grouped {
    /// What is wrong with one call, or holds it up, is not the others' matter.
    pub(crate) fn answers(calls: usize, group: Result<Vec<Result<()>>>) -> Vec<Self> {
        match group {
            Ok(answers) => answers.into_iter().map(Self::Done).collect(),
            Err(error) => {
                tracing::debug!(calls, %error, "each caller goes on alone");
                (0..calls).map(|_| Self::Alone(error.outcome())).collect()
            }
        }
    }
}

/// A contact with its messages.
#[derive(Clone)]
pub(crate) struct NewContactData {
    pub(crate) contact: Arc<NewContact>,
    pub(crate) new: Arc<NewMessages>,
}

impl Job for NewContactData {
    /// A client's id, padded, or a message's.
    type Key = [u8; 32];

    fn keys(&self) -> impl Iterator<Item = Self::Key> {
        let mut client = [0; 32];
        client[..ClientId::BYTES].copy_from_slice(self.contact.key.client());
        let messages = self.new.records.iter().map(|record| *record.id.as_bytes());
        std::iter::once(client).chain(messages)
    }

    fn weight(&self) -> usize {
        let bytes = self
            .new
            .records
            .iter()
            .map(|record| ROW_BYTES + record.data.as_ref().map_or(0, |data| data.value.len()));
        ROW_BYTES + bytes.sum::<usize>()
    }
}

impl Shared {
    /// Stores a contact with its messages, all or nothing.
    pub(crate) async fn store_contact(
        self: &Arc<Self>,
        operation: &'static str,
        data: NewContactData,
    ) -> Result<()> {
        // Kept to the end: `close` waits for all calls that found the store open.
        let _running = self.running.token();
        self.check_open(operation)?;
        self.together.settle().await;
        let mut outcome = Outcome::NotApplied;
        if self.options.together && data.new.records.len() <= MANY {
            let shared = Arc::clone(self);
            let run = self.together.contacts.run(data.clone(), move |batch| {
                let shared = Arc::clone(&shared);
                async move { shared.store_batch(operation, batch).await }
            });
            match run.await {
                Some(Grouped::Done(done)) => return done,
                Some(Grouped::Alone(so_far)) => outcome = so_far,
                None => return Err(ended_badly(operation)),
            }
        }
        // A second time it changes nothing: all its rows have their keys.
        let stored = self
            .store_one(operation, self.options.call_limit, &data)
            .await;
        stored.map_err(|error| error.after(outcome))
    }

    async fn store_batch(
        &self,
        operation: &'static str,
        batch: Vec<NewContactData>,
    ) -> Vec<Grouped> {
        let stored = if let [one] = &batch[..] {
            let stored = self.store_one(operation, GROUP_LIMIT, one).await;
            match stored {
                Err(error) if error.is_retryable() => Err(error),
                done => Ok(vec![done]),
            }
        } else {
            self.store_many(operation, &batch).await
        };
        Grouped::answers(batch.len(), stored)
    }

    async fn store_one(
        &self,
        operation: &'static str,
        limit: Duration,
        data: &NewContactData,
    ) -> Result<()> {
        let contact = &data.contact;
        let columns = self.columns(&data.new, Some(&contact.key));
        let work = |tx: Tx| {
            let columns = &columns;
            async move {
                contact.record(&tx, operation, columns.is_empty()).await?;
                if columns.is_empty() {
                    return Ok(());
                }
                store(tx, columns).await
            }
        };
        let factor = if data.new.records.len() > MANY {
            LONG_CALL
        } else {
            1
        };
        self.write_gathered(operation, limit * factor, work).await
    }

    /// Stores contacts of different clients with different messages; returns
    /// which of the clients are unknown, and an error if nothing was stored.
    async fn store_many(
        &self,
        operation: &'static str,
        batch: &[NewContactData],
    ) -> Result<Vec<Result<()>>> {
        let contacts = Contacts::of(batch);
        let is_idle = batch.iter().all(|data| data.new.records.is_empty());
        let work = |tx: Tx| {
            let contacts = &contacts;
            async move {
                let values = contacts.values();
                let rows = if is_idle {
                    tx.last(&RECORD_MANY, &values).await?
                } else {
                    tx.rows(&RECORD_MANY, &values).await?
                };
                let mut known: Vec<Vec<u8>> = rows.iter().map(|row| row.get(0)).collect();
                known.sort_unstable();
                let is_known = |data: &NewContactData| {
                    let client = data.contact.key.client();
                    known
                        .binary_search_by(|known| known[..].cmp(client))
                        .is_ok()
                };
                if !is_idle {
                    let stored = batch.iter().filter(|data| is_known(data));
                    let columns = self
                        .columns_of_all(stored.map(|data| (&*data.new, Some(&data.contact.key))));
                    if !columns.is_empty() {
                        store(tx, &columns).await?;
                    }
                }
                Ok(batch.iter().map(is_known).collect::<Vec<_>>())
            }
        };
        let known = self.write_gathered(operation, GROUP_LIMIT, work).await?;
        let answer = |(data, is_known): (&NewContactData, bool)| {
            is_known
                .then_some(())
                .ok_or_else(|| unknown(operation, data.contact.client()))
        };
        Ok(batch.iter().zip(known).map(answer).collect())
    }
}

/// The contacts of a batch as the parameters of a statement.
#[derive(Default)]
struct Contacts<'a> {
    clients: Vec<&'a [u8]>,
    ids: Vec<&'a [u8]>,
    times_nanos: Vec<i64>,
    nonces_sent: Vec<i64>,
    nonces_received: Vec<i64>,
    addresses: Vec<&'a [u8]>,
    streaming_to: Vec<Option<&'a [u8]>>,
    clock_seconds: Vec<Option<i64>>,
    clock_nanos: Vec<Option<i32>>,
}

impl<'a> Contacts<'a> {
    /// In the order of clients: batches of several servers mostly lock their rows
    /// in it, and those that do not are repeated.
    fn of(batch: &'a [NewContactData]) -> Self {
        let mut contacts: Vec<_> = batch.iter().map(|data| &data.contact).collect();
        contacts.sort_unstable_by_key(|contact| contact.client());
        let mut columns = Self::default();
        for contact in contacts {
            let record = &contact.record;
            columns.clients.push(contact.key.client());
            columns.ids.push(contact.key.id());
            columns.times_nanos.push(contact.time_nanos);
            columns.nonces_sent.push(record.nonce_sent.cast_signed());
            columns
                .nonces_received
                .push(record.nonce_received.cast_signed());
            columns.addresses.push(record.addr.as_bytes());
            columns
                .streaming_to
                .push(record.streaming_to.as_ref().map(String::as_bytes));
            columns
                .clock_seconds
                .push(record.client_clock.map(|clock| clock.seconds));
            columns
                .clock_nanos
                .push(record.client_clock.map(|clock| clock.nanos));
        }
        columns
    }

    fn values(&self) -> [Parameter<'_>; 9] {
        [
            &self.clients,
            &self.ids,
            &self.times_nanos,
            &self.nonces_sent,
            &self.nonces_received,
            &self.addresses,
            &self.streaming_to,
            &self.clock_seconds,
            &self.clock_nanos,
        ]
    }
}

/// A client whose agent asks for messages.
pub(crate) struct Asked {
    client: ClientId,
    /// Tells who asks alone to go on, until what is sent here is dropped.
    alone: oneshot::Sender<oneshot::Sender<()>>,
}

impl Job for Asked {
    type Key = ClientId;

    /// Reads disturb nobody.
    fn keys(&self) -> impl Iterator<Item = ClientId> {
        std::iter::empty()
    }

    fn weight(&self) -> usize {
        0
    }
}

/// Whether a claim may find something.
pub(crate) enum Waiting {
    Nothing,
    /// Perhaps; those who ask while this is kept ask together.
    Perhaps(Option<oneshot::Sender<()>>),
}

impl Shared {
    /// Asks, with others if there are, whether anything waits for a client. Who
    /// asks alone is told to claim: that costs him no more than asking.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        operation: &'static str,
        client: ClientId,
    ) -> Result<Waiting> {
        let _running = self.running.token();
        self.check_open(operation)?;
        if !self.options.together {
            return Ok(Waiting::Perhaps(None));
        }
        let shared = Arc::clone(self);
        let (alone, is_alone) = oneshot::channel();
        let asked = self
            .together
            .looks
            .run(Asked { client, alone }, move |batch| {
                let shared = Arc::clone(&shared);
                async move { shared.which_wait(operation, batch).await }
            });
        tokio::select! {
            Ok(turn) = is_alone => Ok(Waiting::Perhaps(Some(turn))),
            answer = asked => match answer {
                Some(true) => Ok(Waiting::Perhaps(None)),
                Some(false) => Ok(Waiting::Nothing),
                None => Err(ended_badly(operation)),
            }
        }
    }

    async fn which_wait(&self, operation: &'static str, mut batch: Vec<Asked>) -> Vec<bool> {
        if batch.len() == 1
            && let Some(asked) = batch.pop()
        {
            let (turn, ended) = oneshot::channel();
            // Its caller may have gone, or may not be polled.
            drop(asked.alone.send(turn));
            drop(timeout(TURN, ended).await);
            return vec![true];
        }
        let clients = list(batch.iter().map(|asked| &asked.client));
        let values: Values<'_> = &[&clients];
        let rows = self.read_within(operation, GROUP_LIMIT, &WITH_PENDING, values);
        match rows.await {
            Ok(rows) => {
                let found: HashSet<&[u8]> = rows.iter().map(|row| row.get(0)).collect();
                clients
                    .iter()
                    .map(|client| found.contains(client))
                    .collect()
            }
            Err(error) => {
                tracing::debug!(%error, "each caller claims for itself");
                batch.iter().map(|_| true).collect()
            }
        }
    }
}

pub(crate) fn ended_badly(operation: &'static str) -> Error {
    Error::new(ErrorKind::Internal, operation, "the call ended badly")
}

// Any row, due or not: a backlog that is on its way is not walked.
const WITH_PENDING: Query = Query {
    sql: "\
-- client_messages_for_processing (which)
SELECT asked.client_id
FROM unnest($1::bytea[]) AS asked (client_id)
CROSS JOIN LATERAL (
    SELECT 1 FROM client_pending WHERE client_pending.client_id = asked.client_id LIMIT 1
) AS pending",
    types: &[BYTES_LIST],
};
