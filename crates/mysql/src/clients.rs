//! Clients: keys, labels, blacklist, and the calls about contacts and usage.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::{Client, ClientContact, ClientResourceUsageRecord};
use fleethold_proto::fleetspeak::{Label, Message};
use fleethold_store::clock::{epoch_nanos, timestamp_epoch_nanos, timestamp_from_epoch_nanos};
use fleethold_store::record::{ContactRecord, UsageRecord, nanos_range, sorted_labels};
use fleethold_store::{
    ClientData, ClientId, ClientStore, ContactData, ContactId, Error, MessageId, Result,
};
use futures::FutureExt;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use mysql_async::Row;

use crate::MysqlStore;
use crate::changes::Change;
use crate::contacts::{self, Place};
use crate::enrolments::Enrolment;
use crate::error::{Failure, Worked, code};
use crate::grouped::Contact;
use crate::incoming::New;
use crate::messages::parse;
use crate::rows::{take, take_id};
use crate::sql::{Batch, List, MOST_ROWS, Value, slices};
use crate::transaction::{Replay, Tx};
use crate::usage;

/// Rows that a stream reads at once.
const PAGE: usize = 500;

#[async_trait]
impl ClientStore for MysqlStore {
    async fn list_clients(&self, ids: &[ClientId]) -> Result<Vec<Client>> {
        self.shared
            .read("list_clients", ids.to_vec(), |ids, tx| {
                async move { list(tx, ids).await }.boxed()
            })
            .await
    }

    fn stream_client_ids(
        &self,
        include_blacklisted: bool,
        last_contact_after: Option<Timestamp>,
    ) -> BoxStream<'_, Result<ClientId>> {
        const OPERATION: &str = "stream_client_ids";
        let after_nanos = last_contact_after.as_ref().map(timestamp_epoch_nanos);
        if after_nanos == Some(None) {
            let error = Error::invalid(OPERATION, "last contact after is not a valid time");
            return stream::once(async { Err(error) }).boxed();
        }
        let after_nanos = after_nanos.flatten();
        // The end of an id of eight bytes sorts behind the id itself.
        let first = Some(Vec::new());
        stream::try_unfold(first, move |after| async move {
            let Some(after) = after else { return Ok(None) };
            let arguments = (after, after_nanos, include_blacklisted);
            let page = self
                .shared
                .read(OPERATION, arguments, |(after, nanos, blacklisted), tx| {
                    async move { id_page(tx, after, *nanos, *blacklisted).await }.boxed()
                })
                .await?;
            let next = (page.len() == PAGE).then(|| page.last().map(|id| id.as_bytes().to_vec()));
            let items = stream::iter(page.into_iter().map(Ok));
            Ok::<_, Error>(Some((items, next.flatten())))
        })
        .try_flatten()
        .boxed()
    }

    async fn get_client_data(&self, id: ClientId) -> Result<ClientData> {
        const OPERATION: &str = "get_client_data";
        self.shared
            .read(OPERATION, id, |id, tx| {
                async move {
                    let id = Value::Bytes(id.as_bytes());
                    let replies = tx.only(Batch::of(READ_DATA, &[id])).await?;
                    client_data(replies.into_iter().flat_map(|reply| reply.rows))
                }
                .boxed()
            })
            .await?
            .ok_or_else(|| unknown(OPERATION, id))
    }

    async fn add_client(&self, id: ClientId, data: &ClientData) -> Result<()> {
        const OPERATION: &str = "add_client";
        let labels = sorted_labels(OPERATION, &data.labels)?;
        let now_nanos = epoch_nanos(self.shared.context.clock.now());
        let data = ClientData {
            labels,
            ..data.clone()
        };
        let enrolment = Enrolment::new(id, data, now_nanos);
        self.shared.add_client(OPERATION, enrolment).await
    }

    async fn add_client_label(&self, id: ClientId, label: &Label) -> Result<()> {
        const OPERATION: &str = "add_client_label";
        let labels = sorted_labels(OPERATION, std::slice::from_ref(label))?;
        self.shared
            .write(OPERATION, Replay::Safe, (id, labels), |(id, labels), tx| {
                async move {
                    let mut batch = Batch::default();
                    insert_labels(&mut batch, *id, labels);
                    let added = tx.only(batch).await;
                    added.map_err(|failure| no_client(failure, OPERATION, *id))?;
                    Ok(())
                }
                .boxed()
            })
            .await
    }

    async fn remove_client_label(&self, id: ClientId, label: &Label) -> Result<()> {
        self.shared
            .write(
                "remove_client_label",
                Replay::Safe,
                (id, label.clone()),
                |(id, label), tx| {
                    async move {
                        let (service, label) = (label.service_name.as_str(), label.label.as_str());
                        let values = [
                            Value::Bytes(id.as_bytes()),
                            Value::Text(service),
                            Value::Text(label),
                            Value::Bytes(service.as_bytes()),
                            Value::Bytes(label.as_bytes()),
                        ];
                        tx.only(Batch::of(REMOVE_LABEL, &values)).await?;
                        Ok(())
                    }
                    .boxed()
                },
            )
            .await
    }

    async fn blacklist_client(&self, id: ClientId) -> Result<()> {
        const OPERATION: &str = "blacklist_client";
        self.shared
            .write(OPERATION, Replay::Safe, id, |id, tx| {
                async move {
                    let client = Value::Bytes(id.as_bytes());
                    let mut batch = Batch::of(BLACKLIST, &[client]);
                    batch.add(CLIENT_EXISTS, &[client]);
                    let replies = tx.commit(batch).await?;
                    if replies.iter().all(|reply| reply.rows.is_empty()) {
                        return Err(unknown(OPERATION, *id).into());
                    }
                    Ok(())
                }
                .boxed()
            })
            .await
    }

    async fn record_client_contact(&self, contact: &ContactData) -> Result<ContactId> {
        self.store_contact_as("record_client_contact", None, contact, &[])
            .await
    }

    async fn store_contact(
        &self,
        contact: &ContactData,
        messages: &[Message],
    ) -> Result<ContactId> {
        self.store_contact_as("store_contact", None, contact, messages)
            .await
    }

    async fn enrol(&self, data: &ClientData, contact: &ContactData) -> Result<ContactId> {
        const OPERATION: &str = "enrol";
        let labels = sorted_labels(OPERATION, &data.labels)?;
        let data = ClientData {
            labels,
            ..data.clone()
        };
        self.store_contact_as(OPERATION, Some(data), contact, &[])
            .await
    }

    async fn list_client_contacts(&self, id: ClientId) -> Result<Vec<ClientContact>> {
        self.stream_client_contacts(id).try_collect().await
    }

    fn stream_client_contacts(&self, id: ClientId) -> BoxStream<'_, Result<ClientContact>> {
        const OPERATION: &str = "stream_client_contacts";
        // Servers number contacts, each by its own clock: the order is that of
        // the times, so all places are read first, 16 bytes each.
        let places = self.shared.read(OPERATION, id, |id, tx| {
            async move { contacts::places(tx, *id).await }.boxed()
        });
        stream::once(places)
            .map_ok(move |places| {
                let pages: Vec<Vec<Place>> = places.chunks(PAGE).map(<[Place]>::to_vec).collect();
                stream::iter(pages.into_iter().map(Ok)).and_then(move |page| {
                    self.shared.read(OPERATION, page, |page, tx| {
                        async move { contacts::read(tx, page).await }.boxed()
                    })
                })
            })
            .try_flatten()
            .map_ok(|page| stream::iter(page.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }

    async fn link_messages_to_contact(&self, contact: &ContactId, ids: &[MessageId]) -> Result<()> {
        const OPERATION: &str = "link_messages_to_contact";
        if ids.is_empty() {
            return self.shared.check_open(OPERATION);
        }
        let number = contact.number(OPERATION)?;
        if number == UNRECORDED {
            return self.shared.check_open(OPERATION);
        }
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        let link = Change::Link {
            contact: number,
            ids,
        };
        if self.shared.change(OPERATION, link).await? {
            Ok(())
        } else {
            let detail = format!("contact {number:x} does not exist");
            Err(Error::not_found(OPERATION, detail))
        }
    }

    async fn record_resource_usage_data(
        &self,
        id: ClientId,
        usage: &ResourceUsageData,
    ) -> Result<()> {
        const OPERATION: &str = "record_resource_usage_data";
        let now_nanos = epoch_nanos(self.shared.context.clock.now());
        let record = UsageRecord::parse(OPERATION, now_nanos, usage)?;
        self.shared
            .write(OPERATION, Replay::Safe, (id, record), |(id, record), tx| {
                async move {
                    let inserted = usage::insert(tx, *id, record).await;
                    inserted.map_err(|failure| no_client(failure, OPERATION, *id))
                }
                .boxed()
            })
            .await
    }

    async fn fetch_resource_usage_records(
        &self,
        id: ClientId,
        start: &Timestamp,
        end: &Timestamp,
    ) -> Result<Vec<ClientResourceUsageRecord>> {
        const OPERATION: &str = "fetch_resource_usage_records";
        let range = nanos_range(OPERATION, start, end)?;
        self.shared
            .read(OPERATION, (id, range), |(id, range), tx| {
                async move { usage::fetch(tx, *id, range).await }.boxed()
            })
            .await
    }
}

/// The number of a contact for which upstream's column has no number left.
pub(crate) const UNRECORDED: i64 = 0;

impl MysqlStore {
    async fn store_contact_as(
        &self,
        operation: &'static str,
        client: Option<ClientData>,
        contact: &ContactData,
        messages: &[Message],
    ) -> Result<ContactId> {
        let record = ContactRecord::parse(operation, contact)?;
        let records = parse(operation, messages, &self.shared.context)?;
        let new = New::of(records, &self.shared.context);
        let now_nanos = epoch_nanos(self.shared.context.clock.now());
        let id = record.client_id;
        let contact = Contact::new(operation, client, record, new, now_nanos);
        match self.shared.store_contact(contact).await? {
            Some(number) => Ok(ContactId::from_number(number)),
            None => Err(unknown(operation, id)),
        }
    }
}

fn unknown(operation: &'static str, id: ClientId) -> Error {
    Error::not_found(operation, format!("client {id} does not exist"))
}

/// Says it in the store's words if a row could not be added for want of its client.
pub(crate) fn no_client(failure: Failure, operation: &'static str, id: ClientId) -> Failure {
    if failure.is_server(code::NO_PARENT_ROW) {
        return unknown(operation, id).into();
    }
    failure
}

pub(crate) const CLIENT_EXISTS: &str = "\
-- client_exists
SELECT 1 FROM clients WHERE client_id = ?";

const BLACKLIST: &str = "\
-- blacklist_client
UPDATE clients SET blacklisted = 1 WHERE client_id = ?";

/// Adds labels; on a database whose collation takes two for equal, the first one stays.
fn insert_labels(batch: &mut Batch, id: ClientId, labels: &[Label]) {
    let labels: Vec<_> = labels.iter().map(|label| (id, label)).collect();
    insert_labels_of(batch, &labels);
}

/// As [`insert_labels`], of clients that differ.
pub(crate) fn insert_labels_of(batch: &mut Batch, labels: &[(ClientId, &Label)]) {
    let bytes = |(_, label): &(ClientId, &Label)| label.service_name.len() + label.label.len();
    for slice in slices(labels, bytes) {
        let rows = slice.iter().map(|(id, label)| {
            [
                Value::Bytes(id.as_bytes()),
                Value::Text(&label.service_name),
                Value::Text(&label.label),
            ]
        });
        let rows = List::rows("(?, ?, ?)", ", ", rows);
        batch.add(ADD_LABELS, &[Value::List(&rows)]);
    }
}

const ADD_LABELS: &str = "\
-- add_client_label
INSERT INTO client_labels (client_id, service_name, label) VALUES ?
ON DUPLICATE KEY UPDATE label = client_labels.label";

// The first conditions lead through the key, the others compare byte by byte.
const REMOVE_LABEL: &str = "\
-- remove_client_label
DELETE FROM client_labels
WHERE client_id = ? AND service_name = ? AND label = ?
AND CAST(service_name AS BINARY) = ? AND CAST(label AS BINARY) = ?";

const READ_DATA: &str = "\
-- get_client_data
SELECT client_key, blacklisted, service_name, label FROM clients
LEFT JOIN client_labels ON client_labels.client_id = clients.client_id
WHERE clients.client_id = ?";

fn client_data(rows: impl Iterator<Item = Row>) -> Worked<Option<ClientData>> {
    let mut data: Option<ClientData> = None;
    for mut row in rows {
        let key: Option<Vec<u8>> = take(&mut row, 0)?;
        let blacklisted = take(&mut row, 1)?;
        let data = data.get_or_insert_with(|| ClientData {
            key: Bytes::from(key.unwrap_or_default()),
            labels: Vec::new(),
            blacklisted,
        });
        if let Some(service_name) = take(&mut row, 2)? {
            data.labels.push(Label {
                service_name,
                label: take(&mut row, 3)?,
            });
        }
    }
    if let Some(data) = &mut data {
        sort(&mut data.labels);
    }
    Ok(data)
}

pub(crate) fn sort(labels: &mut [Label]) {
    labels.sort_by(|a, b| (&a.service_name, &a.label).cmp(&(&b.service_name, &b.label)));
}

async fn list(tx: &mut Tx, ids: &[ClientId]) -> Worked<Vec<Client>> {
    let mut clients: BTreeMap<ClientId, Client> = BTreeMap::new();
    let mut batches = Vec::new();
    if ids.is_empty() {
        let mut batch = Batch::of(LIST_CLIENTS, &[]);
        batch.add(LIST_LABELS, &[]);
        batches.push(batch);
    }
    for slice in ids.chunks(MOST_ROWS) {
        let ids = List::ids(slice);
        let mut batch = Batch::of(LIST_SOME_CLIENTS, &[Value::List(&ids)]);
        batch.add(LIST_SOME_LABELS, &[Value::List(&ids)]);
        batches.push(batch);
    }
    let last = batches.pop();
    let mut replies = Vec::new();
    for batch in batches {
        replies.extend(tx.run(batch).await?);
    }
    replies.extend(tx.commit(last.unwrap_or_default()).await?);
    let mut replies = replies.into_iter();
    while let (Some(rows), Some(labels)) = (replies.next(), replies.next()) {
        for mut row in rows.rows {
            let (id, client) = client(&mut row)?;
            clients.insert(id, client);
        }
        for mut row in labels.rows {
            let id: ClientId = take_id(&mut row, 0)?;
            let label = Label {
                service_name: take(&mut row, 1)?,
                label: take(&mut row, 2)?,
            };
            if let Some(client) = clients.get_mut(&id)
                && !client.labels.contains(&label)
            {
                client.labels.push(label);
            }
        }
    }
    for client in clients.values_mut() {
        sort(&mut client.labels);
    }
    Ok(clients.into_values().collect())
}

fn client(row: &mut Row) -> Worked<(ClientId, Client)> {
    let id: ClientId = take_id(row, 0)?;
    let seconds: Option<i64> = take(row, 5)?;
    let nanos: Option<i32> = take(row, 6)?;
    let client = Client {
        client_id: id.to_bytes(),
        labels: Vec::new(),
        blacklisted: take(row, 1)?,
        last_contact_time: Some(timestamp_from_epoch_nanos(take(row, 2)?)),
        last_contact_address: take::<Option<String>>(row, 3)?.unwrap_or_default(),
        last_contact_streaming_to: take::<Option<String>>(row, 4)?.unwrap_or_default(),
        last_clock: seconds
            .zip(nanos)
            .map(|(seconds, nanos)| Timestamp { seconds, nanos }),
    };
    Ok((id, client))
}

const LIST_CLIENTS: &str = "\
-- list_clients
SELECT
    client_id, blacklisted, last_contact_time, last_contact_address, last_contact_streaming_to,
    last_clock_seconds, last_clock_nanos
FROM clients";

const LIST_LABELS: &str = "\
-- list_clients (labels)
SELECT client_id, service_name, label FROM client_labels";

const LIST_SOME_CLIENTS: &str = "\
-- list_clients (some)
SELECT
    client_id, blacklisted, last_contact_time, last_contact_address, last_contact_streaming_to,
    last_clock_seconds, last_clock_nanos
FROM clients WHERE client_id IN (?)";

const LIST_SOME_LABELS: &str = "\
-- list_clients (labels of some)
SELECT client_id, service_name, label FROM client_labels WHERE client_id IN (?)";

async fn id_page(
    tx: &mut Tx,
    after: &[u8],
    contact_after_nanos: Option<i64>,
    include_blacklisted: bool,
) -> Worked<Vec<ClientId>> {
    let values = [
        Value::Bytes(after),
        // No time is before the first of all.
        Value::Int(contact_after_nanos.is_none().into()),
        Value::Int(contact_after_nanos.unwrap_or(i64::MIN)),
        Value::Int(include_blacklisted.into()),
        Value::Unsigned(u64::try_from(PAGE).unwrap_or(u64::MAX)),
    ];
    let replies = tx.only(Batch::of(ID_PAGE, &values)).await?;
    let rows = replies.into_iter().flat_map(|reply| reply.rows);
    rows.map(|mut row| take_id(&mut row, 0)).collect()
}

const ID_PAGE: &str = "\
-- stream_client_ids
SELECT client_id FROM clients
WHERE client_id > ? AND (? OR last_contact_time > ?) AND (? OR NOT blacklisted)
ORDER BY client_id LIMIT ?";
