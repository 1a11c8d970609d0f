//! Clients: keys, labels, blacklist; and the methods about contacts and usage.

use std::collections::BTreeSet;
use std::sync::Arc;

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
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio_postgres::Row;

use crate::PostgresStore;
use crate::contacts::{ContactKey, NewContact};
use crate::enrolments::NewClient;
use crate::incoming::NewMessages;
use crate::query::{BYTES, BYTES_LIST, LONG, Query, Values, list};
use crate::rows::{self, unreadable};
use crate::together::NewContactData;

/// How many rows a stream reads at a time.
const PAGE: usize = 1_000;

#[async_trait]
impl ClientStore for PostgresStore {
    async fn list_clients(&self, ids: &[ClientId]) -> Result<Vec<Client>> {
        const OPERATION: &str = "list_clients";
        let ids: BTreeSet<_> = ids.iter().copied().collect();
        let rows = if ids.is_empty() {
            self.shared.read_many(OPERATION, &LIST_CLIENTS, &[]).await?
        } else {
            let values: Values<'_> = &[&list(&ids)];
            self.shared
                .read_many(OPERATION, &LIST_SOME_CLIENTS, values)
                .await?
        };
        let mut clients: Vec<Client> = Vec::new();
        for row in &rows {
            let id: &[u8] = row.get(0);
            let is_new = clients.last().is_none_or(|client| client.client_id != id);
            if is_new {
                clients.push(client(OPERATION, row)?);
            }
            if let Some(client) = clients.last_mut() {
                client.labels.extend(label(OPERATION, row, 7)?);
            }
        }
        Ok(clients)
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
        pages(move |last: Option<Vec<u8>>| async move {
            self.page_of_ids(OPERATION, last, include_blacklisted, after_nanos)
                .await
        })
    }

    async fn get_client_data(&self, id: ClientId) -> Result<ClientData> {
        const OPERATION: &str = "get_client_data";
        let rows = self
            .shared
            .read(OPERATION, &READ_CLIENT, &[&id.as_ref()])
            .await?;
        let first = rows.first().ok_or_else(|| unknown(OPERATION, id))?;
        let mut data = ClientData {
            key: Bytes::copy_from_slice(first.get(0)),
            labels: Vec::new(),
            blacklisted: first.get(1),
        };
        for row in &rows {
            data.labels.extend(label(OPERATION, row, 2)?);
        }
        Ok(data)
    }

    async fn add_client(&self, id: ClientId, data: &ClientData) -> Result<()> {
        const OPERATION: &str = "add_client";
        let client = NewClient {
            operation: OPERATION,
            id,
            key: data.key.clone(),
            blacklisted: data.blacklisted,
            labels: sorted_labels(OPERATION, &data.labels)?,
            now_nanos: epoch_nanos(self.shared.clock.now()),
            contact: None,
        };
        self.shared.add_client(client).await
    }

    async fn add_client_label(&self, id: ClientId, label: &Label) -> Result<()> {
        const OPERATION: &str = "add_client_label";
        let labels = sorted_labels(OPERATION, std::slice::from_ref(label))?;
        let (services, names) = columns(&labels);
        self.change(
            OPERATION,
            id,
            &ADD_LABEL,
            &[&id.as_ref(), &services, &names],
        )
        .await
    }

    async fn remove_client_label(&self, id: ClientId, label: &Label) -> Result<()> {
        const OPERATION: &str = "remove_client_label";
        let values: Values<'_> = &[
            &id.as_ref(),
            &label.service_name.as_bytes(),
            &label.label.as_bytes(),
        ];
        self.shared
            .write(OPERATION, |tx| async move {
                tx.last(&REMOVE_LABEL, values).await.map(drop)
            })
            .await
    }

    async fn blacklist_client(&self, id: ClientId) -> Result<()> {
        self.change("blacklist_client", id, &BLACKLIST, &[&id.as_ref()])
            .await
    }

    async fn record_client_contact(&self, contact: &ContactData) -> Result<ContactId> {
        const OPERATION: &str = "record_client_contact";
        let record = ContactRecord::parse(OPERATION, contact)?;
        let contact = NewContact::new(record, &self.shared);
        self.shared
            .write(OPERATION, |tx| {
                let contact = &contact;
                async move { contact.record(&tx, OPERATION, true).await }
            })
            .await?;
        Ok(contact.key.text())
    }

    async fn store_contact(
        &self,
        contact: &ContactData,
        messages: &[Message],
    ) -> Result<ContactId> {
        const OPERATION: &str = "store_contact";
        let record = ContactRecord::parse(OPERATION, contact)?;
        let new = Arc::new(NewMessages::parse(OPERATION, messages)?);
        let contact = Arc::new(NewContact::new(record, &self.shared));
        let key = contact.key;
        let data = NewContactData {
            contact,
            new: Arc::clone(&new),
        };
        self.shared.store_contact(OPERATION, data).await?;
        self.shared.tell(&new);
        Ok(key.text())
    }

    async fn enrol(&self, data: &ClientData, contact: &ContactData) -> Result<ContactId> {
        const OPERATION: &str = "enrol";
        let labels = sorted_labels(OPERATION, &data.labels)?;
        let contact = NewContact::new(ContactRecord::parse(OPERATION, contact)?, &self.shared);
        let key = contact.key;
        let client = NewClient {
            operation: OPERATION,
            id: contact.client(),
            key: data.key.clone(),
            blacklisted: data.blacklisted,
            labels,
            now_nanos: contact.time_nanos,
            contact: Some(Arc::new(contact)),
        };
        self.shared.add_client(client).await?;
        Ok(key.text())
    }

    async fn list_client_contacts(&self, id: ClientId) -> Result<Vec<ClientContact>> {
        let page = self
            .shared
            .page_of_contacts("list_client_contacts", id, None, i64::MAX);
        Ok(page.await?.0)
    }

    fn stream_client_contacts(&self, id: ClientId) -> BoxStream<'_, Result<ClientContact>> {
        pages(move |after| async move {
            let limit = i64::try_from(PAGE).expect("a small number");
            let (contacts, last) = self
                .shared
                .page_of_contacts("stream_client_contacts", id, after, limit)
                .await?;
            let last = last.filter(|_| contacts.len() == PAGE);
            Ok((contacts, last))
        })
    }

    async fn link_messages_to_contact(&self, contact: &ContactId, ids: &[MessageId]) -> Result<()> {
        const OPERATION: &str = "link_messages_to_contact";
        if ids.is_empty() {
            return self.shared.check_open(OPERATION);
        }
        let contact = ContactKey::parse(OPERATION, contact)?;
        self.shared.link(OPERATION, contact, ids).await
    }

    async fn record_resource_usage_data(
        &self,
        id: ClientId,
        usage: &ResourceUsageData,
    ) -> Result<()> {
        const OPERATION: &str = "record_resource_usage_data";
        let now_nanos = epoch_nanos(self.shared.clock.now());
        let record = UsageRecord::parse(OPERATION, now_nanos, usage)?;
        self.shared.insert_usage(OPERATION, id, &record).await
    }

    async fn fetch_resource_usage_records(
        &self,
        id: ClientId,
        start: &Timestamp,
        end: &Timestamp,
    ) -> Result<Vec<ClientResourceUsageRecord>> {
        const OPERATION: &str = "fetch_resource_usage_records";
        let range = nanos_range(OPERATION, start, end)?;
        self.shared.fetch_usage(OPERATION, id, &range).await
    }
}

impl PostgresStore {
    /// Runs a statement that returns a row if the client exists.
    async fn change(
        &self,
        operation: &'static str,
        id: ClientId,
        query: &'static Query,
        values: Values<'_>,
    ) -> Result<()> {
        self.shared
            .write(operation, |tx| async move {
                if tx.last(query, values).await?.is_empty() {
                    return Err(unknown(operation, id).into());
                }
                Ok(())
            })
            .await
    }

    /// Reads a page of clients and returns the ids of those that match.
    ///
    /// A page counts the clients read, not those returned: so a read is short
    /// whatever the filter.
    async fn page_of_ids(
        &self,
        operation: &'static str,
        after: Option<Vec<u8>>,
        include_blacklisted: bool,
        last_contact_after_nanos: Option<i64>,
    ) -> Result<(Vec<ClientId>, Option<Vec<u8>>)> {
        let limit = i64::try_from(PAGE).expect("a small number");
        let values: Values<'_> = &[&after.unwrap_or_default(), &limit];
        let rows = self
            .shared
            .read(operation, &PAGE_OF_CLIENTS, values)
            .await?;
        let mut ids = Vec::new();
        for row in &rows {
            let id = ClientId::try_from(row.get::<_, &[u8]>(0))
                .map_err(Box::from)
                .map_err(unreadable(operation))?;
            let (blacklisted, last_contact_nanos): (bool, i64) = (row.get(1), row.get(2));
            if (include_blacklisted || !blacklisted)
                && last_contact_after_nanos.is_none_or(|after| last_contact_nanos > after)
            {
                ids.push(id);
            }
        }
        let last = rows.last().filter(|_| rows.len() == PAGE);
        Ok((ids, last.map(|row| row.get(0))))
    }
}

/// Streams pages that are read one by one; `page` returns items and where to go
/// on, if there may be more.
fn pages<'a, T, K, F>(page: impl Fn(Option<K>) -> F + Clone + Send + 'a) -> BoxStream<'a, Result<T>>
where
    T: Send + 'a,
    K: Send + 'a,
    F: Future<Output = Result<(Vec<T>, Option<K>)>> + Send + 'a,
{
    // The outer None is the end, the inner one the beginning.
    stream::try_unfold(Some(None), move |after| {
        let page = page.clone();
        async move {
            let Some(after) = after else { return Ok(None) };
            let (items, last) = page(after).await?;
            let items = stream::iter(items.into_iter().map(Ok));
            Ok(Some((items, last.map(Some))))
        }
    })
    .try_flatten()
    .boxed()
}

pub(crate) fn unknown(operation: &'static str, id: ClientId) -> Error {
    Error::not_found(operation, format!("client {id} does not exist"))
}

/// Returns labels as the parameters of a statement.
pub(crate) fn columns(labels: &[Label]) -> (Vec<&[u8]>, Vec<&[u8]>) {
    labels
        .iter()
        .map(|label| (label.service_name.as_bytes(), label.label.as_bytes()))
        .unzip()
}

/// Reads a label, absent if there was none to join.
pub(crate) fn label(operation: &'static str, row: &Row, at: usize) -> Result<Option<Label>> {
    let Some(service_name) = rows::optional_text(row, at).map_err(unreadable(operation))? else {
        return Ok(None);
    };
    Ok(Some(Label {
        service_name,
        label: rows::text(row, at + 1).map_err(unreadable(operation))?,
    }))
}

/// Reads all but the labels.
fn client(operation: &'static str, row: &Row) -> Result<Client> {
    let clock: (Option<i64>, Option<i32>) = (row.get(4), row.get(5));
    let read = |text: Result<_, _>| text.map_err(unreadable(operation));
    Ok(Client {
        client_id: Bytes::copy_from_slice(row.get(0)),
        labels: Vec::new(),
        last_contact_time: Some(timestamp_from_epoch_nanos(row.get(1))),
        last_contact_address: read(rows::text(row, 2))?,
        last_contact_streaming_to: rows::optional_text(row, 3)
            .map_err(unreadable(operation))?
            .unwrap_or_default(),
        last_clock: match clock {
            (Some(seconds), Some(nanos)) => Some(Timestamp { seconds, nanos }),
            _ => None,
        },
        blacklisted: row.get(6),
    })
}

const READ_CLIENT: Query = Query {
    sql: "\
-- get_client_data
SELECT public_key, blacklisted, service, label
FROM clients LEFT JOIN client_labels USING (client_id)
WHERE clients.client_id = $1
ORDER BY service, label",
    types: &[BYTES],
};

const ADD_LABEL: Query = Query {
    sql: "\
-- add_client_label
WITH client AS (
    SELECT client_id FROM clients WHERE client_id = $1
), labels AS (
    INSERT INTO client_labels (client_id, service, label)
    SELECT client.client_id, given.service, given.label
    FROM client CROSS JOIN unnest($2::bytea[], $3::bytea[]) AS given (service, label)
    ON CONFLICT DO NOTHING
)
SELECT 1 FROM client",
    types: &[BYTES, BYTES_LIST, BYTES_LIST],
};

const REMOVE_LABEL: Query = Query {
    sql: "\
-- remove_client_label
DELETE FROM client_labels WHERE client_id = $1 AND service = $2 AND label = $3",
    types: &[BYTES, BYTES, BYTES],
};

const BLACKLIST: Query = Query {
    sql: "\
-- blacklist_client
UPDATE clients SET blacklisted = true WHERE client_id = $1 RETURNING 1",
    types: &[BYTES],
};

const LIST_CLIENTS: Query = Query {
    sql: "\
-- list_clients
SELECT clients.client_id, last_contact_nanos, last_contact_address, last_contact_streaming_to,
    last_clock_seconds, last_clock_nanos, blacklisted, service, label
FROM clients LEFT JOIN client_labels USING (client_id)
ORDER BY clients.client_id, service, label",
    types: &[],
};

const LIST_SOME_CLIENTS: Query = Query {
    sql: "\
-- list_clients (some)
SELECT clients.client_id, last_contact_nanos, last_contact_address, last_contact_streaming_to,
    last_clock_seconds, last_clock_nanos, blacklisted, service, label
FROM clients LEFT JOIN client_labels USING (client_id)
WHERE clients.client_id = ANY($1)
ORDER BY clients.client_id, service, label",
    types: &[BYTES_LIST],
};

const PAGE_OF_CLIENTS: Query = Query {
    sql: "\
-- stream_client_ids
SELECT client_id, blacklisted, last_contact_nanos FROM clients
WHERE client_id > $1
ORDER BY client_id LIMIT $2",
    types: &[BYTES, LONG],
};
