//! Writes of nearly every kind, each known by its number alone: who has the
//! number knows what to call and what must be found.
//!
//! A *sequence* is up to four calls that build on each other. Its number says
//! of which kind it is. A *write* is one call: four times the sequence, plus
//! the step.
#![allow(dead_code, reason = "each test target uses its part")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_proto::fleetspeak::{Address, Label, Message, MessageResult};
use fleethold_proto::{Any, Timestamp};
use fleethold_sqlite::SqliteStore;
use fleethold_store::{
    AllocationId, BroadcastId, BroadcastStore, ClientData, ClientId, ClientStore, ContactData,
    ContactId, ErrorKind, FileStore, MessageId, MessageStore, Result,
};

/// When everything happens; nothing is due again before a retry time passes.
pub(crate) const NOW_SECONDS: u64 = 100_000;

/// Messages of this and later sequences only make a database large.
pub(crate) const FIRST_FILLER: u64 = 1 << 40;

pub(crate) const MOST_STEPS: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A contact that brings three messages for the server.
    Contact,
    /// Two messages for a client.
    ToClient,
    /// A message that has its result already.
    Processed,
    /// Two messages, then their results.
    Results,
    /// Two messages, then their claim.
    Claim,
    Label,
    /// A broadcast, an allocation, a message under it, its end.
    Broadcast,
    File,
    Usage,
    /// A client with two labels, then its blacklisting.
    Client,
    /// Two messages, then their removal.
    DeletePending,
    /// A contact of an unknown client that brings two messages.
    Refused,
    /// A broadcast, a higher limit, its end.
    EndedBroadcast,
    /// A client with a label, then without.
    GoneLabel,
    /// A file, another, and the first one's deletion.
    GoneFile,
    /// A contact, a message outside of it, their link.
    Link,
}

/// Sequence 0 is of the first kind, and so on, over and over.
pub(crate) const KINDS: [Kind; 16] = [
    Kind::Contact,
    Kind::ToClient,
    Kind::Processed,
    Kind::Results,
    Kind::Claim,
    Kind::Label,
    Kind::Broadcast,
    Kind::File,
    Kind::Usage,
    Kind::Client,
    Kind::DeletePending,
    Kind::Refused,
    Kind::EndedBroadcast,
    Kind::GoneLabel,
    Kind::GoneFile,
    Kind::Link,
];

impl Kind {
    pub(crate) fn of(sequence: u64) -> Self {
        KINDS[(sequence % KINDS.len() as u64) as usize]
    }

    /// The calls of a sequence: for each, how many parts can be found of it.
    pub(crate) fn parts(self) -> &'static [u32] {
        match self {
            Self::Contact => &[4],
            Self::ToClient | Self::Refused => &[2],
            Self::Processed | Self::Label | Self::File | Self::Usage => &[1],
            Self::Results | Self::Claim | Self::DeletePending => &[2, 2],
            Self::Broadcast => &[1, 1, 2, 2],
            Self::Client => &[3, 1],
            Self::GoneLabel => &[1, 1],
            Self::EndedBroadcast | Self::GoneFile | Self::Link => &[1, 1, 1],
        }
    }
}

pub(crate) fn write(sequence: u64, step: usize) -> u64 {
    sequence * MOST_STEPS + step as u64
}

/// The clients of contacts, labels and broadcasts.
pub(crate) fn base_client(sequence: u64) -> ClientId {
    ClientId::new([1 + (sequence / 16 % 4) as u8; 8])
}

/// A client that only this sequence knows; for most kinds it is not stored.
pub(crate) fn own_client(sequence: u64) -> ClientId {
    ClientId::new((1_000 + sequence).to_be_bytes())
}

pub(crate) fn broadcast_id(sequence: u64) -> BroadcastId {
    BroadcastId::new(sequence.to_be_bytes())
}

/// The number of a message, in the last bytes of its id.
pub(crate) fn message_number(sequence: u64, part: u64) -> u64 {
    sequence * 8 + part
}

pub(crate) fn message_id(sequence: u64, part: u64) -> MessageId {
    let number = message_number(sequence, part);
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id[24..].copy_from_slice(&number.to_be_bytes());
    MessageId::new(id)
}

pub(crate) fn nonce(sequence: u64) -> u64 {
    sequence + 1
}

pub(crate) fn label(sequence: u64) -> Label {
    Label {
        service_name: "client".into(),
        label: sequence.to_string(),
    }
}

/// Longer than a page, and different for every file.
pub(crate) fn content(sequence: u64) -> Vec<u8> {
    sequence.to_be_bytes().repeat(700)
}

/// Makes what all sequences rely on; may be repeated.
pub(crate) async fn prepare(store: &SqliteStore) -> Result<()> {
    for number in 0..4 {
        let (id, data) = (base_client(number * 16), ClientData::default());
        match store.add_client(id, &data).await {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The calls of one sequence, to be made in order.
pub(crate) struct Sequence {
    number: u64,
    allocation: Option<AllocationId>,
    contact: Option<ContactId>,
}

impl Sequence {
    pub(crate) fn new(number: u64) -> Self {
        Self {
            number,
            allocation: None,
            contact: None,
        }
    }

    pub(crate) async fn perform(&mut self, store: &SqliteStore, step: usize) -> Result<()> {
        let number = self.number;
        let own = own_client(number);
        let base = base_client(number);
        let two = || [0, 1].map(|part| to_client(number, part, own));
        match (Kind::of(number), step) {
            (Kind::Contact, _) => {
                let messages = [0, 1, 2].map(|part| to_server(number, part, base));
                store
                    .store_contact(&contact(number, base), &messages)
                    .await?;
            }
            (Kind::Refused, _) => {
                let messages = [0, 1].map(|part| to_server(number, part, own));
                store
                    .store_contact(&contact(number, own), &messages)
                    .await?;
            }
            (Kind::Processed, _) => {
                let message = Message {
                    result: Some(success()),
                    ..to_server(number, 0, base)
                };
                store.store_messages(&[message], None).await?;
            }
            (Kind::Label, _) => store.add_client_label(base, &label(number)).await?,
            (Kind::Usage, _) => {
                store
                    .record_resource_usage_data(base, &usage(number))
                    .await?
            }
            (Kind::ToClient | Kind::Results | Kind::Claim | Kind::DeletePending, 0) => {
                store.store_messages(&two(), None).await?;
            }
            (Kind::Results, _) => {
                let results = [0, 1].map(|part| (message_id(number, part), success()));
                store.set_message_results(&results).await?;
            }
            (Kind::Claim, _) => {
                let claimed = store.client_messages_for_processing(own, 10, None).await?;
                assert_eq!(claimed.len(), 2, "the messages of {own} were due");
            }
            (Kind::DeletePending, _) => store.delete_pending_messages(&[own]).await?,
            (Kind::Client, 0) => {
                let data = ClientData {
                    labels: vec![label(1), label(2)],
                    ..ClientData::default()
                };
                store.add_client(own, &data).await?;
            }
            (Kind::Client, _) => store.blacklist_client(own).await?,
            (Kind::GoneLabel, 0) => {
                let data = ClientData {
                    labels: vec![label(1)],
                    ..ClientData::default()
                };
                store.add_client(own, &data).await?;
            }
            (Kind::GoneLabel, _) => store.remove_client_label(own, &label(1)).await?,
            (Kind::Broadcast | Kind::EndedBroadcast, _) => {
                self.perform_broadcast(store, step).await?;
            }
            (Kind::File | Kind::GoneFile, step @ (0 | 1)) => {
                let (name, content) = (file_name(number, step), content(number));
                let mut content = &content[..];
                store.store_file("service", &name, &mut content).await?;
            }
            (Kind::GoneFile, _) => {
                store.delete_file("service", &file_name(number, 0)).await?;
            }
            (Kind::Link, 0) => {
                let contact = contact(number, base);
                self.contact = Some(store.record_client_contact(&contact).await?);
            }
            (Kind::Link, 1) => {
                store
                    .store_messages(&[to_server(number, 0, base)], None)
                    .await?;
            }
            (Kind::Link, _) => {
                let contact = self.contact.as_ref().expect("step 0 was acknowledged");
                store
                    .link_messages_to_contact(contact, &[message_id(number, 0)])
                    .await?;
            }
            (kind, step) => unreachable!("{kind:?} has no step {step}"),
        }
        Ok(())
    }

    async fn perform_broadcast(&mut self, store: &SqliteStore, step: usize) -> Result<()> {
        let number = self.number;
        let (id, client) = (broadcast_id(number), base_client(number));
        match (Kind::of(number), step) {
            (_, 0) => store.create_broadcast(&broadcast(number), 10).await,
            (Kind::EndedBroadcast, 1) => store.set_broadcast_limit(id, 20).await,
            (Kind::EndedBroadcast, _) => store.disable_broadcasts(&[id]).await,
            (_, 1) => {
                let expiry = time(NOW_SECONDS + 1_000);
                let allocated = store.create_allocation(id, 0.5, expiry).await?;
                self.allocation = Some(allocated.expect("half of ten is left").id);
                Ok(())
            }
            (_, 2) => {
                let message = to_client(number, 0, client);
                store
                    .save_broadcast_message(&message, id, client, self.allocation)
                    .await
            }
            _ => store.cleanup_allocation(id, self.allocation, 1).await,
        }
    }
}

pub(crate) fn file_name(sequence: u64, step: usize) -> String {
    format!("{sequence}-{step}")
}

fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn seconds(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

fn success() -> MessageResult {
    MessageResult {
        processed_time: Some(seconds(50)),
        ..MessageResult::default()
    }
}

fn address(client: Option<ClientId>) -> Address {
    Address {
        client_id: client.map(ClientId::to_bytes).unwrap_or_default(),
        service_name: "service".into(),
    }
}

pub(crate) fn to_client(sequence: u64, part: u64, client: ClientId) -> Message {
    Message {
        message_id: message_id(sequence, part).to_bytes(),
        source: Some(address(None)),
        destination: Some(address(Some(client))),
        message_type: "type".into(),
        creation_time: Some(seconds(42)),
        data: Some(Any {
            type_url: "type.googleapis.com/test".into(),
            value: content(sequence)[..100].to_vec().into(),
        }),
        ..Message::default()
    }
}

pub(crate) fn to_server(sequence: u64, part: u64, client: ClientId) -> Message {
    Message {
        source: Some(address(Some(client))),
        destination: Some(address(None)),
        ..to_client(sequence, part, client)
    }
}

fn contact(sequence: u64, client: ClientId) -> ContactData {
    ContactData {
        client_id: client,
        nonce_sent: nonce(sequence),
        nonce_received: 0,
        addr: "192.0.2.1:1234".into(),
        client_clock: Some(seconds(21)),
        streaming_to: None,
        labels: Vec::new(),
    }
}

fn usage(sequence: u64) -> ResourceUsageData {
    ResourceUsageData {
        scope: "scope".into(),
        pid: sequence.cast_signed(),
        process_start_time: Some(seconds(1)),
        data_timestamp: Some(seconds(2)),
        ..ResourceUsageData::default()
    }
}

fn broadcast(sequence: u64) -> Broadcast {
    Broadcast {
        broadcast_id: broadcast_id(sequence).to_bytes(),
        source: Some(address(None)),
        message_type: "type".into(),
        ..Broadcast::default()
    }
}
