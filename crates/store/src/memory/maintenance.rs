//! Moving, checking and measuring what is in memory.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::Label;

use super::{MemoryStore, State, broadcasts, clients, messages};
use crate::clock::{epoch_nanos, from_epoch_nanos, timestamp};
use crate::error::{Error, ErrorKind, Result};
use crate::files::StoredFile;
use crate::ids::ClientId;
use crate::limits::MAX_CLAIM_BYTES;
use crate::maintenance::{
    AllocationRow, BroadcastRow, ClientRow, ContactKey, ContactRow, Cursor, EXPIRED, FileRow,
    Finding, Lease, LinkRow, MOST_EXAMPLES, Maintenance, MessageRow, Old, Page, Progress, Removed,
    Row, SentRow, Sizes, Table,
};
use crate::record::{ContactRecord, ResultRecord};

#[async_trait]
impl Maintenance for MemoryStore {
    async fn export_rows(
        &self,
        table: Table,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page> {
        const OPERATION: &str = "export_rows";
        // A place is the number of rows before it.
        let done = match after {
            None => 0,
            Some(cursor) => cursor[..]
                .try_into()
                .map(u64::from_be_bytes)
                .ok()
                .and_then(|done| usize::try_from(done).ok())
                .ok_or_else(|| Error::invalid(OPERATION, "the place is none of this store"))?,
        };
        self.shared.with(OPERATION, |state| {
            let mut rows = state.rows(table).into_iter().skip(done).peekable();
            let (mut page, mut bytes) = (Page::default(), 0);
            while page.rows.len() < limit && bytes < MAX_CLAIM_BYTES {
                let Some(row) = rows.next() else { break };
                bytes += row.payload_bytes();
                page.rows.push(row);
            }
            let end = (done + page.rows.len()) as u64;
            page.next = rows
                .peek()
                .map(|_| Bytes::copy_from_slice(&end.to_be_bytes()));
            Ok(page)
        })
    }

    async fn import_rows(
        &self,
        rows: &[Row],
        before: Option<&Progress>,
        after: &Progress,
    ) -> Result<()> {
        const OPERATION: &str = "import_rows";
        self.shared.with(OPERATION, |state| {
            Progress::check(OPERATION, state.imported.as_ref(), before)?;
            if let Some(taken) = rows.iter().find(|row| state.has(row)) {
                let detail = format!("{taken} exists");
                return Err(Error::new(ErrorKind::AlreadyExists, OPERATION, detail));
            }
            for row in rows {
                state.import(row.clone());
            }
            state.imported = Some(after.clone());
            Ok(())
        })
    }

    async fn imported(&self) -> Result<Option<Progress>> {
        self.shared
            .with("imported", |state| Ok(state.imported.clone()))
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        self.shared.with("check", |state| {
            let without_client: Vec<_> = state
                .messages
                .rows
                .values()
                .filter_map(|row| row.record.destination_client.map(|client| (row, client)))
                .filter(|(row, client)| {
                    row.pending.is_some() && !state.clients.rows.contains_key(client)
                })
                .map(|(row, _)| row.record.id.to_string())
                .collect();
            let finding = Finding {
                problem: "pending messages of clients that do not exist",
                rows: without_client.len() as u64,
                examples: without_client.into_iter().take(MOST_EXAMPLES).collect(),
            };
            Ok(Some(finding)
                .filter(|finding| finding.rows > 0)
                .into_iter()
                .collect())
        })
    }

    async fn sizes(&self) -> Result<Sizes> {
        self.shared.with("sizes", |state| {
            let pending = |server: bool| {
                let rows = state.messages.rows.values();
                rows.filter(|row| {
                    row.pending.is_some() && row.record.destination_client.is_none() == server
                })
                .count() as u64
            };
            Ok(Sizes {
                rows: Table::ALL
                    .map(|table| (table, state.rows(table).len() as u64))
                    .to_vec(),
                pending_for_clients: pending(false),
                pending_for_server: pending(true),
                bytes: None,
            })
        })
    }

    async fn hold_lease(
        &self,
        name: &str,
        holder: u64,
        duration: Duration,
    ) -> Result<Option<Lease>> {
        let now = self.shared.clock.now();
        self.shared.with("hold_lease", |state| {
            let held = state.leases.get(name);
            let fence = match held {
                Some((lease, _)) if lease.holder == holder => lease.fence,
                Some((_, end)) if *end > now => return Ok(None),
                Some((lease, _)) => lease.fence + 1,
                None => 1,
            };
            let lease = Lease {
                name: name.to_owned(),
                holder,
                fence,
            };
            let entry = (lease.clone(), now + duration);
            state.leases.insert(name.to_owned(), entry);
            Ok(Some(lease))
        })
    }

    async fn remove_old(
        &self,
        what: Old,
        before: SystemTime,
        _after: Option<&Cursor>,
        limit: usize,
        lease: &Lease,
    ) -> Result<Removed> {
        const OPERATION: &str = "remove_old";
        let now = timestamp(self.shared.clock.now());
        self.shared.with(OPERATION, |state| {
            match state.leases.get(&lease.name) {
                Some((held, _)) if held == lease => {}
                _ => return Err(lease.lost(OPERATION)),
            }
            let rows = state.remove_old(what, before, limit, now);
            Ok(Removed {
                rows: rows as u64,
                // What is removed is first: the next ones are there, too.
                next: (rows == limit).then(Bytes::new),
            })
        })
    }
}

impl State {
    /// Removes at most `limit` old rows and returns how many.
    fn remove_old(&mut self, what: Old, before: SystemTime, limit: usize, now: Timestamp) -> usize {
        let nanos = epoch_nanos(before);
        let end = timestamp(before);
        let is_old = |time: &Timestamp| (time.seconds, time.nanos) < (end.seconds, end.nanos);
        let mut left = limit;
        match what {
            Old::Contacts => {
                let newest = self.clients.contacts;
                for client in self.clients.rows.values_mut() {
                    client.contacts.retain(|(time_nanos, number), _| {
                        let old = *time_nanos < nanos && *number < newest && left > 0;
                        left -= usize::from(old);
                        if old {
                            self.messages.links.retain(|(contact, _)| contact != number);
                        }
                        !old
                    });
                }
            }
            Old::Usage => {
                for client in self.clients.rows.values_mut() {
                    client.usage.retain(|record| {
                        let old = record.server_nanos < nanos && left > 0;
                        left -= usize::from(old);
                        !old
                    });
                }
            }
            Old::Messages => {
                let old: Vec<_> = self
                    .messages
                    .rows
                    .iter()
                    .filter(|(_, row)| {
                        let result = row.record.result.as_ref();
                        result.is_some_and(|result| is_old(&result.processed_time))
                    })
                    .map(|(id, _)| *id)
                    .take(limit)
                    .collect();
                left -= old.len();
                for id in old {
                    self.messages.rows.remove(&id);
                    self.messages.links.retain(|(_, message)| *message != id);
                }
            }
            Old::Pending => {
                let old: Vec<_> = self
                    .messages
                    .rows
                    .iter()
                    .filter(|(_, row)| {
                        let record = &row.record;
                        row.pending.is_some()
                            && record.destination_client.is_some()
                            && is_old(&record.creation_time)
                    })
                    .map(|(id, _)| *id)
                    .take(limit)
                    .collect();
                left -= old.len();
                for id in old {
                    let failure = Some(EXPIRED.to_owned());
                    let result = ResultRecord {
                        processed_time: now,
                        failure,
                    };
                    self.messages.set_result(id, result);
                }
            }
        }
        limit - left
    }

    fn rows(&self, table: Table) -> Vec<Row> {
        let contacts = || {
            self.clients.rows.values().flat_map(|row| {
                let contacts = row.contacts.iter();
                contacts.map(|((nanos, number), contact)| (*number, key(*nanos, contact), contact))
            })
        };
        match table {
            Table::Clients => {
                let clients = self.clients.rows.iter();
                clients.map(|(id, row)| client(*id, row)).collect()
            }
            Table::Messages => self.messages.rows.values().map(message).collect(),
            Table::Contacts => contacts()
                .map(|(_, key, contact)| {
                    let address = contact.addr.clone();
                    Row::Contact(ContactRow { key, address })
                })
                .collect(),
            Table::Links => {
                let keys: std::collections::BTreeMap<_, _> =
                    contacts().map(|(number, key, _)| (number, key)).collect();
                let links = self.messages.links.iter();
                links
                    .filter(|(_, message)| self.messages.contains(*message))
                    .filter_map(|(number, message)| {
                        let contact = keys.get(number)?.clone();
                        Some(Row::Link(LinkRow {
                            contact,
                            message: *message,
                        }))
                    })
                    .collect()
            }
            Table::Usage => {
                let clients = self.clients.rows.iter();
                clients
                    .flat_map(|(id, row)| row.usage.iter().map(|record| (*id, record.clone())))
                    .map(|(id, record)| Row::Usage(id, record))
                    .collect()
            }
            Table::Broadcasts => self.broadcasts.rows.values().map(broadcast).collect(),
            Table::Sent => {
                let clients = self.clients.rows.iter();
                clients
                    .flat_map(|(client, row)| {
                        let sent = row.sent_broadcasts.iter();
                        sent.map(|(broadcast, message)| {
                            Row::Sent(SentRow {
                                client: *client,
                                broadcast: *broadcast,
                                message: message.filter(|message| self.messages.contains(*message)),
                            })
                        })
                    })
                    .collect()
            }
            Table::Files => self
                .files
                .iter()
                .map(|((service, name), file)| {
                    Row::File(FileRow {
                        service: service.clone(),
                        name: name.clone(),
                        modified_nanos: epoch_nanos(file.modified),
                        content: file.content.clone(),
                    })
                })
                .collect(),
        }
    }

    fn has(&self, row: &Row) -> bool {
        match row {
            Row::Client(row) => self.clients.rows.contains_key(&row.id),
            Row::Message(row) => self.messages.contains(row.record.id),
            Row::Broadcast(row) => self.broadcasts.rows.contains_key(&row.record.id),
            Row::Sent(row) => self
                .clients
                .rows
                .get(&row.client)
                .is_some_and(|client| client.sent_broadcasts.contains_key(&row.broadcast)),
            Row::File(row) => self
                .files
                .contains_key(&(row.service.clone(), row.name.clone())),
            Row::Contact(_) | Row::Link(_) | Row::Usage(..) => false,
        }
    }

    fn import(&mut self, row: Row) {
        match row {
            Row::Client(row) => {
                let client = clients::Row {
                    key: row.public_key,
                    labels: row
                        .labels
                        .into_iter()
                        .map(|label| (label.service_name, label.label))
                        .collect(),
                    blacklisted: row.blacklisted,
                    last_contact_nanos: row.last_contact_nanos,
                    last_contact_addr: row.last_contact_address,
                    last_contact_streaming_to: row.last_contact_streaming_to,
                    last_clock: row.last_clock,
                    ..clients::Row::default()
                };
                self.clients.rows.insert(row.id, client);
            }
            Row::Message(row) => {
                let pending = row.due_micros.map(|due_micros| messages::Pending {
                    due_micros,
                    claims: row.claims,
                });
                self.messages.put(row.record, pending);
            }
            Row::Contact(row) => {
                let key = row.key;
                let number = self.clients.contacts + 1;
                if let Some(client) = self.clients.rows.get_mut(&key.client_id) {
                    let contact = ContactRecord {
                        client_id: key.client_id,
                        nonce_sent: key.nonce_sent,
                        nonce_received: key.nonce_received,
                        addr: row.address,
                        client_clock: None,
                        streaming_to: None,
                    };
                    client.contacts.insert((key.time_nanos, number), contact);
                    self.clients.contacts = number;
                }
            }
            Row::Link(row) => {
                if let Some(client) = self.clients.rows.get(&row.contact.client_id)
                    && let Some((_, number)) = client
                        .contacts
                        .iter()
                        .find(|((nanos, _), contact)| key(*nanos, contact) == row.contact)
                        .map(|(place, _)| *place)
                {
                    self.messages.link(number, row.message);
                }
            }
            Row::Usage(client, record) => {
                if let Some(client) = self.clients.rows.get_mut(&client) {
                    client.usage.push(record);
                }
            }
            Row::Broadcast(row) => {
                let allocations = row
                    .allocations
                    .into_iter()
                    .map(|allocation| {
                        let stored = broadcasts::Allocation {
                            sent: allocation.sent,
                            limit: allocation.limit,
                            expiry: from_epoch_nanos(allocation.expiry_nanos),
                        };
                        (allocation.id, stored)
                    })
                    .collect();
                let broadcast = broadcasts::Row {
                    sent: row.sent,
                    allocated: row.allocated,
                    allocations,
                    record: row.record,
                };
                let id = broadcast.record.id;
                self.broadcasts.rows.insert(id, broadcast);
            }
            Row::Sent(row) => {
                if let Some(client) = self.clients.rows.get_mut(&row.client) {
                    client.sent_broadcasts.insert(row.broadcast, row.message);
                }
            }
            Row::File(row) => {
                let file = StoredFile {
                    modified: from_epoch_nanos(row.modified_nanos),
                    content: row.content,
                };
                self.files.insert((row.service, row.name), file);
            }
        }
    }
}

fn key(time_nanos: i64, contact: &ContactRecord) -> ContactKey {
    ContactKey {
        client_id: contact.client_id,
        time_nanos,
        nonce_sent: contact.nonce_sent,
        nonce_received: contact.nonce_received,
    }
}

fn client(id: ClientId, row: &clients::Row) -> Row {
    let labels = row.labels.iter();
    Row::Client(ClientRow {
        id,
        public_key: row.key.clone(),
        blacklisted: row.blacklisted,
        labels: labels
            .map(|(service_name, label)| Label {
                service_name: service_name.clone(),
                label: label.clone(),
            })
            .collect(),
        last_contact_nanos: row.last_contact_nanos,
        last_contact_address: row.last_contact_addr.clone(),
        last_contact_streaming_to: row.last_contact_streaming_to.clone(),
        last_clock: row.last_clock,
    })
}

fn message(row: &messages::Row) -> Row {
    let pending = row.pending.as_ref();
    Row::Message(MessageRow {
        record: row.record.clone(),
        due_micros: pending.map(|pending| pending.due_micros),
        claims: pending.map_or(0, |pending| pending.claims),
    })
}

fn broadcast(row: &broadcasts::Row) -> Row {
    let allocations = row.allocations.iter();
    Row::Broadcast(BroadcastRow {
        record: row.record.clone(),
        sent: row.sent,
        allocated: row.allocated,
        allocations: allocations
            .map(|(id, allocation)| AllocationRow {
                id: *id,
                sent: allocation.sent,
                limit: allocation.limit,
                expiry_nanos: epoch_nanos(allocation.expiry),
            })
            .collect(),
    })
}
