//! Clients in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use async_trait::async_trait;
use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::{Client, ClientContact, ClientResourceUsageRecord};
use fleethold_proto::fleetspeak::{Label, Message};
use futures::stream::{self, BoxStream, StreamExt};

use super::MemoryStore;
use super::messages::parse;
use crate::clients::{ClientData, ClientStore, ContactData, ContactId};
use crate::clock::{epoch_nanos, timestamp_epoch_nanos, timestamp_from_epoch_nanos};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{BroadcastId, ClientId, MessageId};
use crate::record::{ContactRecord, UsageRecord, nanos_range, sorted_labels};

const PAGE: usize = 100;

#[async_trait]
impl ClientStore for MemoryStore {
    async fn list_clients(&self, ids: &[ClientId]) -> Result<Vec<Client>> {
        self.shared.with("list_clients", |state| {
            let wanted: BTreeSet<_> = ids.iter().collect();
            Ok(state
                .clients
                .rows
                .iter()
                .filter(|(id, _)| wanted.is_empty() || wanted.contains(id))
                .map(|(id, row)| row.client(*id))
                .collect())
        })
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
        self.pages(OPERATION, move |state, last| {
            let rest = (
                last.map_or(Bound::Unbounded, Bound::Excluded),
                Bound::Unbounded,
            );
            state
                .clients
                .rows
                .range(rest)
                .filter(|(_, row)| include_blacklisted || !row.blacklisted)
                .filter(|(_, row)| after_nanos.is_none_or(|after| row.last_contact_nanos > after))
                .take(PAGE)
                .map(|(id, _)| (*id, *id))
                .collect()
        })
    }

    async fn get_client_data(&self, id: ClientId) -> Result<ClientData> {
        const OPERATION: &str = "get_client_data";
        self.shared.with(OPERATION, |state| {
            let row = state.clients.row(OPERATION, id)?;
            Ok(ClientData {
                key: row.key.clone(),
                labels: row.labels(),
                blacklisted: row.blacklisted,
            })
        })
    }

    async fn add_client(&self, id: ClientId, data: &ClientData) -> Result<()> {
        const OPERATION: &str = "add_client";
        let labels = sorted_labels(OPERATION, &data.labels)?;
        self.shared.with(OPERATION, |state| {
            let now_nanos = epoch_nanos(self.shared.clock.now());
            state.clients.add(OPERATION, now_nanos, id, data, labels)
        })
    }

    async fn add_client_label(&self, id: ClientId, label: &Label) -> Result<()> {
        const OPERATION: &str = "add_client_label";
        let labels = sorted_labels(OPERATION, std::slice::from_ref(label))?;
        self.shared.with(OPERATION, |state| {
            let row = state.clients.row(OPERATION, id)?;
            row.labels.extend(labels.into_iter().map(label_key));
            Ok(())
        })
    }

    async fn remove_client_label(&self, id: ClientId, label: &Label) -> Result<()> {
        self.shared.with("remove_client_label", |state| {
            if let Some(row) = state.clients.rows.get_mut(&id) {
                row.labels.remove(&label_key(label.clone()));
            }
            Ok(())
        })
    }

    async fn blacklist_client(&self, id: ClientId) -> Result<()> {
        const OPERATION: &str = "blacklist_client";
        self.shared.with(OPERATION, |state| {
            state.clients.row(OPERATION, id)?.blacklisted = true;
            Ok(())
        })
    }

    async fn record_client_contact(&self, contact: &ContactData) -> Result<ContactId> {
        const OPERATION: &str = "record_client_contact";
        let contact = ContactRecord::parse(OPERATION, contact)?;
        self.shared.with(OPERATION, |state| {
            let now_nanos = epoch_nanos(self.shared.clock.now());
            let number = state
                .clients
                .record_contact(OPERATION, now_nanos, contact)?;
            Ok(ContactId::from_number(number))
        })
    }

    async fn store_contact(
        &self,
        contact: &ContactData,
        messages: &[Message],
    ) -> Result<ContactId> {
        const OPERATION: &str = "store_contact";
        let contact = ContactRecord::parse(OPERATION, contact)?;
        let records = parse(OPERATION, messages)?;
        self.shared.with(OPERATION, |state| {
            let now_nanos = epoch_nanos(self.shared.clock.now());
            let number = state
                .clients
                .record_contact(OPERATION, now_nanos, contact)?;
            self.shared
                .store(&mut state.messages, records, Some(number));
            Ok(ContactId::from_number(number))
        })
    }

    async fn enrol(&self, data: &ClientData, contact: &ContactData) -> Result<ContactId> {
        const OPERATION: &str = "enrol";
        let labels = sorted_labels(OPERATION, &data.labels)?;
        let contact = ContactRecord::parse(OPERATION, contact)?;
        self.shared.with(OPERATION, |state| {
            let now_nanos = epoch_nanos(self.shared.clock.now());
            let clients = &mut state.clients;
            clients.add(OPERATION, now_nanos, contact.client_id, data, labels)?;
            let number = clients.record_contact(OPERATION, now_nanos, contact)?;
            Ok(ContactId::from_number(number))
        })
    }

    async fn list_client_contacts(&self, id: ClientId) -> Result<Vec<ClientContact>> {
        self.shared.with("list_client_contacts", |state| {
            let contacts = state.clients.contacts_after(id, None);
            Ok(contacts.map(|(_, contact)| contact).collect())
        })
    }

    fn stream_client_contacts(&self, id: ClientId) -> BoxStream<'_, Result<ClientContact>> {
        self.pages("stream_client_contacts", move |state, last| {
            state.clients.contacts_after(id, last).take(PAGE).collect()
        })
    }

    async fn link_messages_to_contact(&self, contact: &ContactId, ids: &[MessageId]) -> Result<()> {
        const OPERATION: &str = "link_messages_to_contact";
        self.shared.with(OPERATION, |state| {
            if ids.is_empty() {
                return Ok(());
            }
            let number = contact.number(OPERATION)?;
            if !state.clients.has_contact(number) {
                let detail = format!("contact {contact} does not exist");
                return Err(Error::not_found(OPERATION, detail));
            }
            for id in ids {
                state.messages.link(number, *id);
            }
            Ok(())
        })
    }

    async fn record_resource_usage_data(
        &self,
        id: ClientId,
        usage: &ResourceUsageData,
    ) -> Result<()> {
        const OPERATION: &str = "record_resource_usage_data";
        let now_nanos = epoch_nanos(self.shared.clock.now());
        let record = UsageRecord::parse(OPERATION, now_nanos, usage)?;
        self.shared.with(OPERATION, |state| {
            state.clients.row(OPERATION, id)?.usage.push(record);
            Ok(())
        })
    }

    async fn fetch_resource_usage_records(
        &self,
        id: ClientId,
        start: &Timestamp,
        end: &Timestamp,
    ) -> Result<Vec<ClientResourceUsageRecord>> {
        const OPERATION: &str = "fetch_resource_usage_records";
        let range = nanos_range(OPERATION, start, end)?;
        self.shared.with(OPERATION, |state| {
            let mut records: Vec<_> = state
                .clients
                .rows
                .get(&id)
                .into_iter()
                .flat_map(|row| &row.usage)
                .filter(|record| range.contains(&record.server_nanos))
                .cloned()
                .collect();
            records.sort_by_key(|record| record.server_nanos);
            Ok(records.into_iter().map(UsageRecord::into_wire).collect())
        })
    }
}

/// All clients and how many contacts they made.
#[derive(Debug, Default)]
pub(super) struct Clients {
    pub(super) rows: BTreeMap<ClientId, Row>,
    /// Contacts are numbered from 1 and never removed.
    pub(super) contacts: i64,
}

#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) key: Bytes,
    pub(super) labels: BTreeSet<(String, String)>,
    pub(super) blacklisted: bool,
    pub(super) last_contact_nanos: i64,
    pub(super) last_contact_addr: String,
    pub(super) last_contact_streaming_to: Option<String>,
    pub(super) last_clock: Option<Timestamp>,
    /// By (time in ns, number).
    pub(super) contacts: BTreeMap<(i64, i64), ContactRecord>,
    pub(super) usage: Vec<UsageRecord>,
    /// With the message that carries it, if that is known.
    pub(super) sent_broadcasts: BTreeMap<BroadcastId, Option<MessageId>>,
}

impl Clients {
    pub(super) fn has_contact(&self, number: i64) -> bool {
        (1..=self.contacts).contains(&number)
    }

    /// Returns the broadcasts saved for a client.
    pub(super) fn sent_broadcasts(
        &mut self,
        id: ClientId,
    ) -> Option<&mut BTreeMap<BroadcastId, Option<MessageId>>> {
        self.rows.get_mut(&id).map(|row| &mut row.sent_broadcasts)
    }

    /// Returns the messages that carry a broadcast, as far as they are known.
    pub(super) fn messages_of_broadcast(
        &self,
        id: BroadcastId,
    ) -> impl Iterator<Item = Option<MessageId>> + '_ {
        let sent = self.rows.values().map(|row| &row.sent_broadcasts);
        sent.filter_map(move |sent| sent.get(&id).copied())
    }

    fn row(&mut self, operation: &'static str, id: ClientId) -> Result<&mut Row> {
        self.rows
            .get_mut(&id)
            .ok_or_else(|| Error::not_found(operation, format!("client {id} does not exist")))
    }

    fn add(
        &mut self,
        operation: &'static str,
        now_nanos: i64,
        id: ClientId,
        data: &ClientData,
        labels: Vec<Label>,
    ) -> Result<()> {
        if self.rows.contains_key(&id) {
            let detail = format!("client {id} exists");
            return Err(Error::new(ErrorKind::AlreadyExists, operation, detail));
        }
        let row = Row {
            key: data.key.clone(),
            labels: labels.into_iter().map(label_key).collect(),
            blacklisted: data.blacklisted,
            last_contact_nanos: now_nanos,
            ..Row::default()
        };
        self.rows.insert(id, row);
        Ok(())
    }

    fn record_contact(
        &mut self,
        operation: &'static str,
        now_nanos: i64,
        contact: ContactRecord,
    ) -> Result<i64> {
        let number = self.contacts + 1;
        let row = self.row(operation, contact.client_id)?;
        row.last_contact_nanos = now_nanos;
        row.last_contact_addr.clone_from(&contact.addr);
        row.last_contact_streaming_to
            .clone_from(&contact.streaming_to);
        row.last_clock = contact.client_clock;
        row.contacts.insert((now_nanos, number), contact);
        self.contacts = number;
        Ok(number)
    }

    fn contacts_after(
        &self,
        id: ClientId,
        last: Option<(i64, i64)>,
    ) -> impl Iterator<Item = ((i64, i64), ClientContact)> {
        let rest = (
            last.map_or(Bound::Unbounded, Bound::Excluded),
            Bound::Unbounded,
        );
        self.rows
            .get(&id)
            .into_iter()
            .flat_map(move |row| row.contacts.range(rest))
            .map(|(&(nanos, number), contact)| {
                let contact = ClientContact {
                    sent_nonce: contact.nonce_sent,
                    received_nonce: contact.nonce_received,
                    observed_address: contact.addr.clone(),
                    timestamp: Some(timestamp_from_epoch_nanos(nanos)),
                };
                ((nanos, number), contact)
            })
    }
}

impl Row {
    fn labels(&self) -> Vec<Label> {
        self.labels
            .iter()
            .map(|(service_name, label)| Label {
                service_name: service_name.clone(),
                label: label.clone(),
            })
            .collect()
    }

    fn client(&self, id: ClientId) -> Client {
        Client {
            client_id: id.to_bytes(),
            labels: self.labels(),
            last_contact_time: Some(timestamp_from_epoch_nanos(self.last_contact_nanos)),
            last_contact_address: self.last_contact_addr.clone(),
            last_contact_streaming_to: self.last_contact_streaming_to.clone().unwrap_or_default(),
            last_clock: self.last_clock,
            blacklisted: self.blacklisted,
        }
    }
}

fn label_key(label: Label) -> (String, String) {
    (label.service_name, label.label)
}
