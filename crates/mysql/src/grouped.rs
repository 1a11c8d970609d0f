//! Contacts of many callers in one transaction: its commit and its packets cost
//! more than what they do for one contact.
//!
//! A contact may be the first of its client, which is added then, too.
//!
//! A group either stores all its contacts, or it is given up and each caller
//! stores its own: nobody suffers for what is wrong with another's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fleethold_store::gather::{GatherLimits, Job};
use fleethold_store::record::ContactRecord;
use fleethold_store::{ClientData, ClientId, Error, Result};
use futures::FutureExt;

use crate::clients::{CLIENT_EXISTS, UNRECORDED};
use crate::contacts;
use crate::enrolments::{self, NewClient};
use crate::error::{Verdict, Worked, code};
use crate::incoming::New;
use crate::rows::take;
use crate::sql::{Batch, Value};
use crate::transaction::{Shared, Tx, ended_badly};

/// Who takes longer, because of a lock or a lost connection, goes on alone.
pub(crate) const TURN: Duration = Duration::from_secs(1);

pub(crate) const LIMITS: GatherLimits = GatherLimits {
    // One prepares while the other one's commit is on its way.
    batches: 2,
    jobs: 64,
    // As much as a packet has, which every server that can be used takes.
    weight: 1024 * 1024,
    turn: TURN,
};

/// A contact with its messages, and perhaps its client, on its way into the database.
#[derive(Clone, Debug)]
pub(crate) struct Contact(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    operation: &'static str,
    /// The contact's client if that is new, with sorted labels.
    client: Option<ClientData>,
    record: ContactRecord,
    new: New,
    now_nanos: i64,
}

/// What became of a contact in a group.
#[derive(Debug)]
pub(crate) enum Stored {
    /// It has this number, unless its client does not exist.
    Done(Result<Option<i64>>),
    /// Its caller must store it; perhaps the group has done it already.
    Alone { replayed: bool },
}

/// What became of a group.
enum Group {
    Stored(Vec<i64>),
    GivenUp { replayed: bool },
}

impl Contact {
    pub(crate) fn new(
        operation: &'static str,
        client: Option<ClientData>,
        record: ContactRecord,
        new: New,
        now_nanos: i64,
    ) -> Self {
        Self(Arc::new(Parts {
            operation,
            client,
            record,
            new,
            now_nanos,
        }))
    }

    fn client(&self) -> ClientId {
        self.0.record.client_id
    }
}

impl Parts {
    fn new_client(&self) -> Option<NewClient<'_>> {
        self.client.as_ref().map(|data| NewClient {
            id: self.record.client_id,
            data,
            now_nanos: self.now_nanos,
            contact: Some(&self.record),
        })
    }

    /// Makes the statements that note the contact in its client's row, which may be new.
    fn touch(&self) -> Batch {
        let mut batch = Batch::default();
        match self.new_client() {
            Some(client) => enrolments::add(&mut batch, std::iter::once(client)),
            None => contacts::touch(&mut batch, &self.record, self.now_nanos),
        }
        batch
    }
}

impl Job for Contact {
    type Key = [u8; 32];

    fn keys(&self) -> impl Iterator<Item = Self::Key> {
        let mut client = [0; 32];
        client[..8].copy_from_slice(self.client().as_bytes());
        let messages = self.0.new.ids().into_iter().map(|id| *id.as_bytes());
        std::iter::once(client).chain(messages)
    }

    fn weight(&self) -> usize {
        let client = self.0.client.as_ref().map_or(0, enrolments::weight);
        1_000 + client + self.0.new.statement_bytes()
    }
}

impl Shared {
    /// Stores a contact, perhaps together with others, and returns its number;
    /// `None` if there is no such client.
    pub(crate) async fn store_contact(self: &Arc<Self>, contact: Contact) -> Result<Option<i64>> {
        let operation = contact.0.operation;
        self.check_open(operation)?;
        self.settle().await;
        let shared = Arc::clone(self);
        let stored = self.contacts.run(contact.clone(), move |contacts| {
            let shared = Arc::clone(&shared);
            async move { shared.store_contacts(contacts).await }
        });
        match stored.await {
            Some(Stored::Done(done)) => done,
            Some(Stored::Alone { replayed }) => self.store_alone(contact, replayed).await,
            None => Err(ended_badly(operation)),
        }
    }

    async fn store_contacts(&self, mut contacts: Vec<Contact>) -> Vec<Stored> {
        if contacts.len() == 1
            && let Some(contact) = contacts.pop()
        {
            return vec![Stored::Done(self.store_alone(contact, false).await)];
        }
        // Groups of several servers lock clients in the same order.
        let mut order: Vec<_> = (0..contacts.len()).collect();
        order.sort_unstable_by_key(|at| contacts[*at].client());
        let sorted: Vec<_> = order.iter().map(|at| contacts[*at].clone()).collect();
        let group = self
            .write_settled("store_contact", false, sorted, |sorted, tx| {
                async move { store_group(tx, sorted).await }.boxed()
            })
            .await;
        match group {
            Ok(Group::Stored(numbers)) => {
                let mut stored: Vec<_> = order.into_iter().zip(numbers).collect();
                stored.sort_unstable();
                let numbers = stored.into_iter().map(|(_, number)| number);
                numbers
                    .map(|number| Stored::Done(Ok(Some(number))))
                    .collect()
            }
            Ok(Group::GivenUp { replayed }) => contacts
                .iter()
                .map(|_| Stored::Alone { replayed })
                .collect(),
            Err(error) => {
                let error = Arc::new(error);
                contacts
                    .iter()
                    .map(|contact| Stored::Done(Err(shared_error(contact.0.operation, &error))))
                    .collect()
            }
        }
    }

    async fn store_alone(&self, contact: Contact, replayed: bool) -> Result<Option<i64>> {
        let operation = contact.0.operation;
        self.write_settled(operation, replayed, contact, |contact, tx| {
            async move { store_one(tx, &contact.0).await }.boxed()
        })
        .await
    }
}

/// Makes one caller's error of that of a transaction it had with others.
pub(crate) fn shared_error(operation: &'static str, error: &Arc<Error>) -> Error {
    Error::new(
        error.kind(),
        operation,
        "what it did together with other calls failed",
    )
    .with_outcome(error.outcome())
    .with_source(Arc::clone(error))
}

async fn store_group(tx: &mut Tx, contacts: &[Contact]) -> Worked<Group> {
    match store_together(tx, contacts).await {
        Ok(numbers) => Ok(Group::Stored(numbers)),
        // What one of them waits for, or is refused for, is not the others' matter.
        Err(failure) if matches!(failure.verdict(), Verdict::Conflict | Verdict::Final(..)) => {
            let contacts = contacts.len();
            tracing::debug!(contacts, ?failure, "each caller stores its own contact");
            Ok(Group::GivenUp {
                replayed: tx.replayed(),
            })
        }
        Err(failure) => Err(failure),
    }
}

/// Records contacts with their messages and returns the contacts' numbers.
async fn store_together(tx: &mut Tx, contacts: &[Contact]) -> Worked<Vec<i64>> {
    let rows: Vec<_> = contacts
        .iter()
        .map(|contact| (&contact.0.record, contact.0.now_nanos))
        .collect();
    if tx.replayed() {
        let found = contacts::find_all(tx, &rows).await?;
        if let Some(found) = all_of(contacts, &found) {
            return Ok(found);
        }
        // A transaction is there as a whole or not at all.
    }
    let mut batch = Batch::default();
    enrolments::add(
        &mut batch,
        contacts.iter().filter_map(|contact| contact.0.new_client()),
    );
    let known = contacts.iter().zip(&rows);
    let known = known.filter(|(contact, _)| contact.0.client.is_none());
    contacts::touch_all(&mut batch, &known.map(|(_, row)| *row).collect::<Vec<_>>());
    let inserting = batch.len();
    contacts::insert_all(&mut batch, &rows);
    let messages: Vec<_> = contacts.iter().map(|contact| contact.0.new.ids()).collect();
    if tx.context.facts.is_cluster {
        // The distance of two numbers changes when a node comes or goes.
        let replies = tx.run(batch).await?;
        let first = contacts::inserted(&replies, inserting);
        let found = contacts::numbers(tx, &rows, first).await?;
        let numbers = all_of(contacts, &found).ok_or_else(contacts::lost)?;
        let mut batch = Batch::default();
        New::store_all(contacts.iter().map(|contact| &contact.0.new), &mut batch);
        contacts::link_all(&mut batch, &numbers, &messages);
        tx.commit(batch).await?;
        return Ok(numbers);
    }
    batch.add(contacts::READ_STEP, &[]);
    New::store_all(contacts.iter().map(|contact| &contact.0.new), &mut batch);
    contacts::link_all_to_new(&mut batch, &messages);
    let mut replies = tx.commit(batch).await?;
    let first = contacts::inserted(&replies, inserting);
    let step = replies
        .get_mut(inserting + 1)
        .and_then(|reply| reply.rows.first_mut());
    let step: i64 = take(step.ok_or_else(contacts::lost)?, 0)?;
    let numbers = (0..).zip(contacts);
    Ok(numbers
        .map(|(nth, _)| first.saturating_add(step.saturating_mul(nth)))
        .collect())
}

/// Returns the numbers in the order of the contacts if each has one.
fn all_of(contacts: &[Contact], found: &HashMap<ClientId, i64>) -> Option<Vec<i64>> {
    contacts
        .iter()
        .map(|contact| found.get(&contact.client()).copied())
        .collect()
}

/// Records a contact with its messages; `None` if there is no such client.
async fn store_one(tx: &mut Tx, parts: &Parts) -> Worked<Option<i64>> {
    let Parts {
        record: contact,
        new,
        now_nanos,
        ..
    } = parts;
    let now_nanos = *now_nanos;
    let ids = new.ids();
    if tx.replayed()
        && let Some(number) = contacts::find(tx, contact, now_nanos).await?
    {
        return Ok(Some(number));
    }
    let mut batch = parts.touch();
    let inserting = batch.len();
    contacts::insert(&mut batch, contact, now_nanos);
    new.store(&mut batch);
    contacts::link_to_new(&mut batch, &ids);
    match tx.commit(batch).await {
        Ok(replies) => Ok(Some(contacts::inserted(&replies, inserting))),
        Err(failure) if failure.is_server(code::NO_PARENT_ROW) => Ok(None),
        Err(failure) if parts.client.is_some() && failure.is_server(code::DUPLICATE_KEY) => {
            if tx.replayed() {
                // An earlier attempt was not committed yet when it was looked for.
                tx.roll_back_and_go_on().await?;
                if let Some(number) = contacts::find(tx, contact, now_nanos).await? {
                    return Ok(Some(number));
                }
            }
            Err(enrolments::exists(parts.operation, contact.client_id).into())
        }
        Err(failure)
            if [
                code::OUT_OF_RANGE,
                code::NO_MORE_NUMBERS,
                code::NUMBER_TOO_LARGE,
            ]
            .iter()
            .any(|code| failure.is_server(*code)) =>
        {
            tracing::error!(
                "client_contacts has no number left, so contacts are not recorded; \
                 start a server with --takeover=widen"
            );
            tx.roll_back_and_go_on().await?;
            let mut batch = parts.touch();
            let asked = batch.len();
            batch.add(CLIENT_EXISTS, &[Value::Bytes(contact.client_id.as_bytes())]);
            new.store(&mut batch);
            let replies = tx.commit(batch).await?;
            let exists = replies
                .get(asked)
                .is_some_and(|reply| !reply.rows.is_empty());
            Ok(exists.then_some(UNRECORDED))
        }
        Err(failure) => Err(failure),
    }
}
