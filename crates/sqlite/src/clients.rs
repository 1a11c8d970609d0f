//! Clients: keys, labels, blacklist; and the methods about contacts and usage.

use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::{Client, ClientContact, ClientResourceUsageRecord};
use fleethold_proto::fleetspeak::{Label, Message};
use fleethold_store::clock::{
    epoch_micros, epoch_nanos, timestamp_epoch_nanos, timestamp_from_epoch_nanos,
};
use fleethold_store::record::{ContactRecord, UsageRecord, nanos_range, sorted_labels};
use fleethold_store::{
    ClientData, ClientId, ClientStore, ContactData, ContactId, Error, ErrorKind, MessageId, Result,
};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use rusqlite::{Connection, Row, params};

use crate::claims::pending_services;
use crate::error::Worked;
use crate::messages::{find_all, parse, store};
use crate::rows::{self, unreadable};
use crate::writer::Tx;
use crate::{SqliteStore, contacts, usage};

/// How many rows a stream reads at a time.
const PAGE: usize = 1_000;

#[async_trait]
impl ClientStore for SqliteStore {
    async fn list_clients(&self, ids: &[ClientId]) -> Result<Vec<Client>> {
        let ids: BTreeSet<_> = ids.iter().copied().collect();
        self.shared
            .read("list_clients", move |connection| {
                list_clients(connection, &ids)
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
        self.pages(OPERATION, move |connection, last| {
            page_of_ids(connection, last, include_blacklisted, after_nanos)
        })
    }

    async fn get_client_data(&self, id: ClientId) -> Result<ClientData> {
        const OPERATION: &str = "get_client_data";
        self.shared
            .read(OPERATION, move |connection| {
                let mut statement = connection.prepare_cached(READ_CLIENT)?;
                let mut rows = statement.query([id.as_bytes()])?;
                let mut data = None;
                while let Some(row) = rows.next()? {
                    let data = match &mut data {
                        Some(data) => data,
                        None => data.insert(ClientData {
                            key: Bytes::copy_from_slice(row.get_ref(0)?.as_blob()?),
                            labels: Vec::new(),
                            blacklisted: row.get(1)?,
                        }),
                    };
                    data.labels.extend(label(row, 2)?);
                }
                data.ok_or_else(|| unknown(OPERATION, id).into())
            })
            .await
    }

    async fn add_client(&self, id: ClientId, data: &ClientData) -> Result<()> {
        const OPERATION: &str = "add_client";
        let labels = sorted_labels(OPERATION, &data.labels)?;
        let (key, blacklisted) = (data.key.clone(), data.blacklisted);
        self.shared
            .write(OPERATION, move |tx| {
                add(tx, OPERATION, id, &key, blacklisted, &labels)
            })
            .await
    }

    async fn add_client_label(&self, id: ClientId, label: &Label) -> Result<()> {
        const OPERATION: &str = "add_client_label";
        let labels = sorted_labels(OPERATION, std::slice::from_ref(label))?;
        self.shared
            .write(OPERATION, move |tx| {
                check_exists(tx, OPERATION, id)?;
                add_labels(tx, id, &labels)
            })
            .await
    }

    async fn remove_client_label(&self, id: ClientId, label: &Label) -> Result<()> {
        let label = label.clone();
        self.shared
            .write("remove_client_label", move |tx| {
                tx.prepare_cached(REMOVE_LABEL)?.execute(params![
                    id.as_bytes(),
                    label.service_name,
                    label.label
                ])?;
                Ok(())
            })
            .await
    }

    async fn blacklist_client(&self, id: ClientId) -> Result<()> {
        const OPERATION: &str = "blacklist_client";
        self.shared
            .write(OPERATION, move |tx| {
                match tx.prepare_cached(BLACKLIST)?.execute([id.as_bytes()])? {
                    0 => Err(unknown(OPERATION, id).into()),
                    _ => Ok(()),
                }
            })
            .await
    }

    async fn record_client_contact(&self, contact: &ContactData) -> Result<ContactId> {
        const OPERATION: &str = "record_client_contact";
        let contact = ContactRecord::parse(OPERATION, contact)?;
        self.shared
            .write(OPERATION, move |tx| {
                contacts::record(tx, OPERATION, &contact).map(ContactId::from_number)
            })
            .await
    }

    async fn store_contact(
        &self,
        contact: &ContactData,
        messages: &[Message],
    ) -> Result<ContactId> {
        const OPERATION: &str = "store_contact";
        let contact = ContactRecord::parse(OPERATION, contact)?;
        let records = parse(OPERATION, messages)?;
        self.shared
            .write(OPERATION, move |tx| {
                let number = contacts::record(tx, OPERATION, &contact)?;
                store(tx, &records, Some(number))?;
                Ok(ContactId::from_number(number))
            })
            .await
    }

    async fn enrol(&self, data: &ClientData, contact: &ContactData) -> Result<ContactId> {
        const OPERATION: &str = "enrol";
        let labels = sorted_labels(OPERATION, &data.labels)?;
        let contact = ContactRecord::parse(OPERATION, contact)?;
        let (id, key, blacklisted) = (contact.client_id, data.key.clone(), data.blacklisted);
        let quiet = &self.shared.context.quiet;
        let seen = quiet.look(id);
        let (number, is_quiet) = self
            .shared
            .write(OPERATION, move |tx| {
                add(tx, OPERATION, id, &key, blacklisted, &labels)?;
                let number = contacts::record(tx, OPERATION, &contact)?;
                // Its agent asks next.
                let now_micros = epoch_micros(tx.clock().now());
                let pending = pending_services(tx, id, now_micros)?;
                Ok((number, pending.is_empty()))
            })
            .await?;
        if let Some(seen) = seen.filter(|_| is_quiet) {
            quiet.remember(id, seen);
        }
        Ok(ContactId::from_number(number))
    }

    async fn list_client_contacts(&self, id: ClientId) -> Result<Vec<ClientContact>> {
        self.shared
            .read("list_client_contacts", move |connection| {
                let (contacts, _) = contacts::page(connection, id, None, usize::MAX)?;
                Ok(contacts)
            })
            .await
    }

    fn stream_client_contacts(&self, id: ClientId) -> BoxStream<'_, Result<ClientContact>> {
        self.pages("stream_client_contacts", move |connection, after| {
            let (contacts, last) = contacts::page(connection, id, after, PAGE)?;
            let last = last.filter(|_| contacts.len() == PAGE);
            Ok((contacts, last))
        })
    }

    async fn link_messages_to_contact(&self, contact: &ContactId, ids: &[MessageId]) -> Result<()> {
        const OPERATION: &str = "link_messages_to_contact";
        if ids.is_empty() {
            return self.shared.check_open(OPERATION);
        }
        let number = contact.number(OPERATION)?;
        let ids = ids.to_vec();
        self.shared
            .write(OPERATION, move |tx| {
                if !contacts::exists(tx, number)? {
                    let detail = format!("contact {number:x} does not exist");
                    return Err(Error::not_found(OPERATION, detail).into());
                }
                let wanted: Vec<_> = ids.iter().map(|id| tx.ids().want(*id)).collect();
                contacts::link(tx, number, find_all(tx, &wanted)?)
            })
            .await
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
            .write(OPERATION, move |tx| {
                check_exists(tx, OPERATION, id)?;
                usage::insert(tx, id, &record)
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
            .read(OPERATION, move |connection| {
                usage::fetch(connection, id, &range)
            })
            .await
    }
}

impl SqliteStore {
    /// Streams pages that are read one by one; `page` returns items and where
    /// to go on, if there may be more.
    fn pages<T, K, F>(&self, operation: &'static str, page: F) -> BoxStream<'_, Result<T>>
    where
        T: Send + 'static,
        K: Send + 'static,
        F: Fn(&Connection, Option<K>) -> Worked<(Vec<T>, Option<K>)> + Clone + Send + 'static,
    {
        // The outer None is the end, the inner one the beginning.
        stream::try_unfold(Some(None), move |after| {
            let page = page.clone();
            async move {
                let Some(after) = after else { return Ok(None) };
                let (items, last) = self
                    .shared
                    .read(operation, move |connection| page(connection, after))
                    .await?;
                let items = stream::iter(items.into_iter().map(Ok));
                Ok(Some((items, last.map(Some))))
            }
        })
        .try_flatten()
        .boxed()
    }
}

fn unknown(operation: &'static str, id: ClientId) -> Error {
    Error::not_found(operation, format!("client {id} does not exist"))
}

pub(crate) fn check_exists(
    connection: &Connection,
    operation: &'static str,
    id: ClientId,
) -> Worked<()> {
    let exists = connection
        .prepare_cached(EXISTS)?
        .query_row([id.as_bytes()], |row| row.get(0))?;
    if exists {
        Ok(())
    } else {
        Err(unknown(operation, id).into())
    }
}

const EXISTS: &str = "\
-- client_exists
SELECT EXISTS (SELECT 1 FROM clients WHERE client_id = ?1)";

const READ_CLIENT: &str = "\
-- get_client_data
SELECT public_key, blacklisted, service, label
FROM clients LEFT JOIN client_labels USING (client_id)
WHERE clients.client_id = ?1
ORDER BY service, label";

/// Reads a label, absent if there was none to join.
fn label(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Label>> {
    let Some(service_name) = row.get(at)? else {
        return Ok(None);
    };
    Ok(Some(Label {
        service_name,
        label: row.get(at + 1)?,
    }))
}

fn add(
    tx: &Tx<'_>,
    operation: &'static str,
    id: ClientId,
    key: &[u8],
    blacklisted: bool,
    labels: &[Label],
) -> Worked<()> {
    let now_nanos = epoch_nanos(tx.clock().now());
    let values = params![id.as_bytes(), key, blacklisted, now_nanos];
    if tx.prepare_cached(ADD_CLIENT)?.execute(values)? == 0 {
        let detail = format!("client {id} exists");
        return Err(Error::new(ErrorKind::AlreadyExists, operation, detail).into());
    }
    add_labels(tx, id, labels)
}

const ADD_CLIENT: &str = "\
-- add_client
INSERT INTO clients (client_id, public_key, blacklisted, last_contact_nanos, last_contact_address)
VALUES (?1, ?2, ?3, ?4, '')
ON CONFLICT DO NOTHING";

pub(crate) fn add_labels(tx: &Tx<'_>, id: ClientId, labels: &[Label]) -> Worked<()> {
    let mut statement = tx.prepare_cached(ADD_LABEL)?;
    for label in labels {
        statement.execute(params![id.as_bytes(), label.service_name, label.label])?;
    }
    Ok(())
}

const ADD_LABEL: &str = "\
-- add_label
INSERT INTO client_labels (client_id, service, label) VALUES (?1, ?2, ?3)
ON CONFLICT DO NOTHING";

const REMOVE_LABEL: &str = "\
-- remove_client_label
DELETE FROM client_labels WHERE client_id = ?1 AND service = ?2 AND label = ?3";

const BLACKLIST: &str = "\
-- blacklist_client
UPDATE clients SET blacklisted = 1 WHERE client_id = ?1";

fn list_clients(connection: &Connection, ids: &BTreeSet<ClientId>) -> Worked<Vec<Client>> {
    let sql = if ids.is_empty() {
        LIST_CLIENTS
    } else {
        LIST_SOME_CLIENTS
    };
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = if ids.is_empty() {
        statement.query(())?
    } else {
        statement.query([rows::ids(ids)])?
    };
    let mut clients: Vec<Client> = Vec::new();
    while let Some(row) = rows.next()? {
        let id = row.get_ref(0)?.as_blob()?;
        let is_new = clients.last().is_none_or(|client| client.client_id != id);
        if is_new {
            clients.push(client(row)?);
        }
        if let Some(client) = clients.last_mut() {
            client.labels.extend(label(row, 7)?);
        }
    }
    Ok(clients)
}

/// Reads all but the labels.
fn client(row: &Row<'_>) -> rusqlite::Result<Client> {
    let clock: (Option<i64>, Option<i32>) = (row.get(4)?, row.get(5)?);
    Ok(Client {
        client_id: Bytes::copy_from_slice(row.get_ref(0)?.as_blob()?),
        labels: Vec::new(),
        last_contact_time: Some(timestamp_from_epoch_nanos(row.get(1)?)),
        last_contact_address: row.get(2)?,
        last_contact_streaming_to: row.get::<_, Option<String>>(3)?.unwrap_or_default(),
        last_clock: match clock {
            (Some(seconds), Some(nanos)) => Some(Timestamp { seconds, nanos }),
            _ => None,
        },
        blacklisted: row.get(6)?,
    })
}

const LIST_CLIENTS: &str = "\
-- list_clients
SELECT clients.client_id, last_contact_nanos, last_contact_address, last_contact_streaming_to,
    last_clock_seconds, last_clock_nanos, blacklisted, service, label
FROM clients LEFT JOIN client_labels USING (client_id)
ORDER BY clients.client_id, service, label";

const LIST_SOME_CLIENTS: &str = "\
-- list_clients (some)
SELECT clients.client_id, last_contact_nanos, last_contact_address, last_contact_streaming_to,
    last_clock_seconds, last_clock_nanos, blacklisted, service, label
FROM clients LEFT JOIN client_labels USING (client_id)
WHERE clients.client_id IN rarray(?1)
ORDER BY clients.client_id, service, label";

/// Reads a page of clients and returns the ids of those that match.
///
/// A page counts the clients read, not those returned: so a read is short
/// whatever the filter.
fn page_of_ids(
    connection: &Connection,
    after: Option<ClientId>,
    include_blacklisted: bool,
    last_contact_after_nanos: Option<i64>,
) -> Worked<(Vec<ClientId>, Option<ClientId>)> {
    let mut statement = connection.prepare_cached(PAGE_OF_CLIENTS)?;
    let after = after.as_ref().map_or(&[][..], |id| id.as_bytes());
    let limit = i64::try_from(PAGE).expect("a small number");
    let mut rows = statement.query(params![after, limit])?;
    let (mut ids, mut read, mut last) = (Vec::new(), 0, None);
    while let Some(row) = rows.next()? {
        let id = ClientId::try_from(row.get_ref(0)?.as_blob()?).map_err(unreadable)?;
        let (blacklisted, last_contact_nanos): (bool, i64) = (row.get(1)?, row.get(2)?);
        if (include_blacklisted || !blacklisted)
            && last_contact_after_nanos.is_none_or(|after| last_contact_nanos > after)
        {
            ids.push(id);
        }
        last = Some(id);
        read += 1;
    }
    Ok((ids, last.filter(|_| read == PAGE)))
}

// An empty key is before all ids.
const PAGE_OF_CLIENTS: &str = "\
-- stream_client_ids
SELECT client_id, blacklisted, last_contact_nanos FROM clients
WHERE client_id > ?1 ORDER BY client_id LIMIT ?2";
