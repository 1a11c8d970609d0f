//! New clients, those of many callers in one transaction.
//!
//! As with [contacts](crate::grouped), a group adds all its clients or is given
//! up, and each caller adds its own.

use std::sync::Arc;

use fleethold_store::gather::Job;
use fleethold_store::record::ContactRecord;
use fleethold_store::{ClientData, ClientId, Error, ErrorKind, Result};
use futures::FutureExt;

use crate::clients::insert_labels_of;
use crate::error::{Verdict, Worked, code};
use crate::grouped::shared_error;
use crate::sql::{Batch, List, Value, slices};
use crate::transaction::{Shared, Tx, ended_badly};

/// A client on its way into the database.
#[derive(Clone, Debug)]
pub(crate) struct Enrolment(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    id: ClientId,
    data: ClientData,
    now_nanos: i64,
}

/// What became of a client in a group.
#[derive(Debug)]
pub(crate) enum Added {
    Done(Result<()>),
    /// Its caller must add it; perhaps the group has done it already.
    Alone {
        replayed: bool,
    },
}

/// What became of a group.
enum Group {
    Added,
    GivenUp { replayed: bool },
}

impl Enrolment {
    /// Takes labels that are sorted.
    pub(crate) fn new(id: ClientId, data: ClientData, now_nanos: i64) -> Self {
        Self(Arc::new(Parts {
            id,
            data,
            now_nanos,
        }))
    }
}

impl Parts {
    fn client(&self) -> NewClient<'_> {
        NewClient {
            id: self.id,
            data: &self.data,
            now_nanos: self.now_nanos,
            contact: None,
        }
    }
}

impl Job for Enrolment {
    type Key = ClientId;

    fn keys(&self) -> impl Iterator<Item = ClientId> {
        std::iter::once(self.0.id)
    }

    fn weight(&self) -> usize {
        weight(&self.0.data)
    }
}

/// Returns about how many bytes the statements have that add a client.
pub(crate) fn weight(data: &ClientData) -> usize {
    let labels = data.labels.iter();
    let labels = labels.map(|label| 100 + label.service_name.len() + label.label.len());
    200 + 2 * (data.key.len() + labels.sum::<usize>())
}

impl Shared {
    /// Adds a client, perhaps together with others.
    pub(crate) async fn add_client(
        self: &Arc<Self>,
        operation: &'static str,
        enrolment: Enrolment,
    ) -> Result<()> {
        self.check_open(operation)?;
        self.settle().await;
        let shared = Arc::clone(self);
        let added = self.enrolments.run(enrolment.clone(), move |enrolments| {
            let shared = Arc::clone(&shared);
            async move { shared.add_clients(operation, enrolments).await }
        });
        match added.await {
            Some(Added::Done(done)) => done,
            Some(Added::Alone { replayed }) => self.add_alone(operation, enrolment, replayed).await,
            None => Err(ended_badly(operation)),
        }
    }

    async fn add_clients(
        &self,
        operation: &'static str,
        mut enrolments: Vec<Enrolment>,
    ) -> Vec<Added> {
        if enrolments.len() == 1
            && let Some(enrolment) = enrolments.pop()
        {
            let added = self.add_alone(operation, enrolment, false).await;
            return vec![Added::Done(added)];
        }
        let count = enrolments.len();
        // Groups of several servers lock clients in the same order.
        enrolments.sort_unstable_by_key(|enrolment| enrolment.0.id);
        let group = self.write_settled(operation, false, enrolments, |enrolments, tx| {
            async move { add_group(tx, enrolments).await }.boxed()
        });
        let all = |added: &dyn Fn() -> Added| (0..count).map(|_| added()).collect();
        match group.await {
            Ok(Group::Added) => all(&|| Added::Done(Ok(()))),
            Ok(Group::GivenUp { replayed }) => all(&|| Added::Alone { replayed }),
            Err(error) => {
                let error = Arc::new(error);
                all(&|| Added::Done(Err(shared_error(operation, &error))))
            }
        }
    }

    async fn add_alone(
        &self,
        operation: &'static str,
        enrolment: Enrolment,
        replayed: bool,
    ) -> Result<()> {
        self.write_settled(operation, replayed, enrolment, move |enrolment, tx| {
            async move { add_one(tx, &enrolment.0, operation).await }.boxed()
        })
        .await
    }
}

async fn add_group(tx: &mut Tx, enrolments: &[Enrolment]) -> Worked<Group> {
    let mut batch = Batch::default();
    let clients = enrolments.iter().map(|enrolment| enrolment.0.client());
    add(&mut batch, clients);
    match tx.commit(batch).await {
        Ok(_) => Ok(Group::Added),
        // One that exists, perhaps because an earlier attempt has added all.
        Err(failure) if matches!(failure.verdict(), Verdict::Conflict | Verdict::Final(..)) => {
            let clients = enrolments.len();
            tracing::debug!(clients, ?failure, "each caller adds its own client");
            Ok(Group::GivenUp {
                replayed: tx.replayed(),
            })
        }
        Err(failure) => Err(failure),
    }
}

async fn add_one(tx: &mut Tx, parts: &Parts, operation: &'static str) -> Worked<()> {
    let mut batch = Batch::default();
    add(&mut batch, std::iter::once(parts.client()));
    match tx.commit(batch).await {
        Err(failure) if failure.is_server(code::DUPLICATE_KEY) => {
            if tx.replayed() && has_key(tx, parts.id, &parts.data.key).await? {
                return Ok(());
            }
            Err(exists(operation, parts.id).into())
        }
        added => added.map(drop),
    }
}

pub(crate) fn exists(operation: &'static str, id: ClientId) -> Error {
    let detail = format!("client {id} exists");
    Error::new(ErrorKind::AlreadyExists, operation, detail)
}

/// A client that gets added now.
pub(crate) struct NewClient<'a> {
    pub(crate) id: ClientId,
    pub(crate) data: &'a ClientData,
    pub(crate) now_nanos: i64,
    /// Its first, at the same time.
    pub(crate) contact: Option<&'a ContactRecord>,
}

/// Adds the statements that add clients with their labels.
pub(crate) fn add<'a>(batch: &mut Batch, clients: impl Iterator<Item = NewClient<'a>>) {
    let clients: Vec<_> = clients.collect();
    for slice in slices(&clients, |client| 50 + client.data.key.len()) {
        let rows = slice.iter().map(|client| {
            let contact = client.contact;
            let clock = contact.and_then(|contact| contact.client_clock);
            [
                Value::Bytes(client.id.as_bytes()),
                Value::Bytes(&client.data.key),
                Value::Int(client.data.blacklisted.into()),
                Value::Int(client.now_nanos),
                contact.map(|contact| contact.addr.as_str()).into(),
                contact
                    .and_then(|contact| contact.streaming_to.as_deref())
                    .into(),
                clock.map(|clock| clock.seconds).into(),
                clock.map(|clock| i64::from(clock.nanos)).into(),
            ]
        });
        let rows = List::rows("(?, ?, ?, ?, ?, ?, ?, ?)", ", ", rows);
        batch.add(ADD_CLIENTS, &[Value::List(&rows)]);
    }
    let labels: Vec<_> = clients
        .iter()
        .flat_map(|client| client.data.labels.iter().map(|label| (client.id, label)))
        .collect();
    insert_labels_of(batch, &labels);
}

const ADD_CLIENTS: &str = "\
-- add_client
INSERT INTO clients (
    client_id, client_key, blacklisted, last_contact_time, last_contact_address,
    last_contact_streaming_to, last_clock_seconds, last_clock_nanos
)
VALUES ?";

async fn has_key(tx: &mut Tx, id: ClientId, key: &[u8]) -> Worked<bool> {
    tx.roll_back_and_go_on().await?;
    let replies = tx
        .run(Batch::of(
            HAS_KEY,
            &[Value::Bytes(id.as_bytes()), Value::Bytes(key)],
        ))
        .await?;
    Ok(replies.iter().any(|reply| !reply.rows.is_empty()))
}

const HAS_KEY: &str = "\
-- add_client (replayed)
SELECT 1 FROM clients WHERE client_id = ? AND client_key = ?";
