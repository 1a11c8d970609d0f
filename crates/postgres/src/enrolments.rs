//! New clients, some with their first contact, many of them at once in one transaction.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::fleetspeak::Label;
use fleethold_store::gather::Job;
use fleethold_store::record::ContactRecord;
use fleethold_store::{ClientId, Error, ErrorKind, Outcome, Result};

use crate::Shared;
use crate::contacts::NewContact;
use crate::incoming::Parameter;
use crate::query::{BOOL_LIST, BYTES_LIST, INT_LIST, LONG_LIST, Query};
use crate::together::{GROUP_LIMIT, Grouped, ended_badly};
use crate::transactions::Tx;

/// A client that is new.
#[derive(Clone)]
pub(crate) struct NewClient {
    pub(crate) operation: &'static str,
    pub(crate) id: ClientId,
    pub(crate) key: Bytes,
    pub(crate) blacklisted: bool,
    /// Each once, in order.
    pub(crate) labels: Vec<Label>,
    pub(crate) now_nanos: i64,
    /// Its first, at the same time.
    pub(crate) contact: Option<Arc<NewContact>>,
}

impl Job for NewClient {
    type Key = ClientId;

    fn keys(&self) -> impl Iterator<Item = ClientId> {
        std::iter::once(self.id)
    }

    fn weight(&self) -> usize {
        const ROW_BYTES: usize = 256;
        let label = |label: &Label| ROW_BYTES + label.service_name.len() + label.label.len();
        let contact = self.contact.as_ref().map_or(0, |_| 2 * ROW_BYTES);
        ROW_BYTES + self.key.len() + self.labels.iter().map(label).sum::<usize>() + contact
    }
}

impl Shared {
    /// Adds a client with its labels and its contact, all or nothing.
    pub(crate) async fn add_client(self: &Arc<Self>, client: NewClient) -> Result<()> {
        let operation = client.operation;
        let _running = self.running.token();
        self.check_open(operation)?;
        self.together.settle().await;
        let mut outcome = Outcome::NotApplied;
        if self.options.together {
            let shared = Arc::clone(self);
            let run = self.together.enrolments.run(client.clone(), move |batch| {
                let shared = Arc::clone(&shared);
                async move {
                    let added = shared.add_all(&batch, GROUP_LIMIT, false).await;
                    Grouped::answers(batch.len(), added)
                }
            });
            match run.await {
                Some(Grouped::Done(done)) => return done,
                Some(Grouped::Alone(so_far)) => outcome = so_far,
                None => return Err(ended_badly(operation)),
            }
        }
        let (limit, again) = (self.options.call_limit, outcome == Outcome::Unknown);
        let added = self.add_all(std::slice::from_ref(&client), limit, again);
        let mut answers = added.await.map_err(|error| error.after(outcome))?;
        answers.pop().unwrap_or_else(|| Err(ended_badly(operation)))
    }

    /// Adds different clients; returns which of them existed, and an error if
    /// none was added. With `again` an earlier transaction may have added them.
    async fn add_all(
        &self,
        batch: &[NewClient],
        limit: Duration,
        again: bool,
    ) -> Result<Vec<Result<()>>> {
        let columns = Columns::of(batch);
        let work = |tx: Tx| {
            let columns = &columns;
            async move {
                let mut added = HashSet::new();
                let mut note = |rows: Vec<tokio_postgres::Row>| {
                    added.extend(rows.iter().map(|row| row.get::<_, Vec<u8>>(0)));
                };
                if !(again || tx.replays()) {
                    note(tx.last(&ADD_CLIENTS, &columns.values()).await?);
                    return Ok(added);
                }
                // In this order: adding waits for an earlier transaction that
                // still commits. A first contact of a client in the same
                // nanosecond would have been added with the same key.
                note(tx.rows(&ADD_CLIENTS, &columns.values()).await?);
                note(tx.last(&WERE_ADDED, &columns.keys()).await?);
                Ok(added)
            }
        };
        let operation = batch
            .first()
            .map_or("add_client", |client| client.operation);
        let added = self.write_gathered(operation, limit, work).await?;
        let answer = |client: &NewClient| {
            if added.contains(client.id.as_bytes().as_slice()) {
                return Ok(());
            }
            let detail = format!("client {} exists", client.id);
            Err(Error::new(
                ErrorKind::AlreadyExists,
                client.operation,
                detail,
            ))
        };
        Ok(batch.iter().map(answer).collect())
    }
}

/// New clients as the parameters of statements.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<&'a [u8]>,
    public_keys: Vec<&'a [u8]>,
    blacklisted: Vec<bool>,
    nows_nanos: Vec<i64>,
    contact_ids: Vec<Option<&'a [u8]>>,
    nonces_sent: Vec<i64>,
    nonces_received: Vec<i64>,
    addresses: Vec<&'a [u8]>,
    streaming_to: Vec<Option<&'a [u8]>>,
    clock_seconds: Vec<Option<i64>>,
    clock_nanos: Vec<Option<i32>>,
    labelled: Vec<&'a [u8]>,
    services: Vec<&'a [u8]>,
    labels: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    /// In the order of ids, in which batches of several servers lock them.
    fn of(batch: &'a [NewClient]) -> Self {
        let mut clients: Vec<_> = batch.iter().collect();
        clients.sort_unstable_by_key(|client| client.id);
        let mut columns = Self::default();
        for client in clients {
            columns.ids.push(client.id.as_ref());
            columns.public_keys.push(&client.key);
            columns.blacklisted.push(client.blacklisted);
            columns.nows_nanos.push(client.now_nanos);
            columns.push_contact(client.contact.as_deref());
            for label in &client.labels {
                columns.labelled.push(client.id.as_ref());
                columns.services.push(label.service_name.as_bytes());
                columns.labels.push(label.label.as_bytes());
            }
        }
        columns
    }

    fn push_contact(&mut self, contact: Option<&'a NewContact>) {
        let record = contact.map(|contact| &contact.record);
        let clock = record.and_then(|record| record.client_clock);
        let nonce =
            |of: fn(&ContactRecord) -> u64| record.map_or(0, |record| of(record).cast_signed());
        self.contact_ids
            .push(contact.map(|contact| contact.key.id()));
        self.nonces_sent.push(nonce(|record| record.nonce_sent));
        self.nonces_received
            .push(nonce(|record| record.nonce_received));
        self.addresses
            .push(record.map_or(&[], |record| record.addr.as_bytes()));
        self.streaming_to.push(
            record
                .and_then(|record| record.streaming_to.as_ref())
                .map(String::as_bytes),
        );
        self.clock_seconds.push(clock.map(|clock| clock.seconds));
        self.clock_nanos.push(clock.map(|clock| clock.nanos));
    }

    fn keys(&self) -> [Parameter<'_>; 3] {
        [&self.ids, &self.public_keys, &self.nows_nanos]
    }

    fn values(&self) -> [Parameter<'_>; 14] {
        [
            &self.ids,
            &self.public_keys,
            &self.blacklisted,
            &self.nows_nanos,
            &self.labelled,
            &self.services,
            &self.labels,
            &self.contact_ids,
            &self.nonces_sent,
            &self.nonces_received,
            &self.addresses,
            &self.streaming_to,
            &self.clock_seconds,
            &self.clock_nanos,
        ]
    }
}

const ADD_CLIENTS: Query = Query {
    sql: "\
-- add_client
WITH input AS (
    SELECT
        client_id, public_key, blacklisted, now_nanos, contact_id, nonce_sent, nonce_received,
        address, streaming_to, clock_seconds, clock_nanos
    FROM unnest(
        $1::bytea[], $2::bytea[], $3::boolean[], $4::bigint[], $8::bytea[], $9::bigint[],
        $10::bigint[], $11::bytea[], $12::bytea[], $13::bigint[], $14::integer[]
    ) AS given (
        client_id, public_key, blacklisted, now_nanos, contact_id, nonce_sent, nonce_received,
        address, streaming_to, clock_seconds, clock_nanos
    )
), added AS (
    INSERT INTO clients (
        client_id, public_key, blacklisted, last_contact_nanos, last_contact_address,
        last_contact_streaming_to, last_clock_seconds, last_clock_nanos
    )
    SELECT
        client_id, public_key, blacklisted, now_nanos, address, streaming_to, clock_seconds,
        clock_nanos
    FROM input
    ON CONFLICT DO NOTHING
    RETURNING client_id
), labels AS (
    INSERT INTO client_labels (client_id, service, label)
    SELECT given.client_id, given.service, given.label
    FROM added JOIN unnest($5::bytea[], $6::bytea[], $7::bytea[])
        AS given (client_id, service, label) ON given.client_id = added.client_id
    ON CONFLICT DO NOTHING
), first_contacts AS (
    INSERT INTO contacts (client_id, contact_id, time_nanos, nonce_sent, nonce_received, address)
    SELECT client_id, contact_id, now_nanos, nonce_sent, nonce_received, address
    FROM added JOIN input USING (client_id) WHERE contact_id IS NOT NULL
    ON CONFLICT DO NOTHING
)
SELECT client_id FROM added",
    types: &[
        BYTES_LIST, BYTES_LIST, BOOL_LIST, LONG_LIST, BYTES_LIST, BYTES_LIST, BYTES_LIST,
        BYTES_LIST, LONG_LIST, LONG_LIST, BYTES_LIST, BYTES_LIST, LONG_LIST, INT_LIST,
    ],
};

const WERE_ADDED: Query = Query {
    sql: "\
-- add_client (again)
SELECT clients.client_id
FROM unnest($1::bytea[], $2::bytea[], $3::bigint[]) AS input (client_id, public_key, now_nanos)
CROSS JOIN LATERAL (
    SELECT client_id FROM clients
    WHERE clients.client_id = input.client_id AND clients.public_key = input.public_key
    AND last_contact_nanos = input.now_nanos LIMIT 1
) AS clients",
    types: &[BYTES_LIST, BYTES_LIST, LONG_LIST],
};
