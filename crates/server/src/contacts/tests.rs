//! The pipeline without a transport. P-numbers: protocol specification section 7.

mod broadcasts;
mod delivery;
mod strangers;
mod system;

use std::collections::BTreeMap;
use std::sync::Arc;

use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::{Broadcast, ServiceConfig};
use fleethold_proto::fleetspeak::{
    ClientInfoData, DieRequest, MessageAckData, MessageErrorData, ValidationInfo,
};
use fleethold_proto::{Any, Name, Timestamp, pack};
use fleethold_store::{
    BROADCAST_UNLIMITED, BroadcastId, ClientStore, Clock, ManualClock, MemoryStore, MessageStore,
    Random, Store,
};
use futures::future::join_all;
use prost::Message as _;

use super::*;
use crate::config::Config;
use crate::streams::Streams;

const NOW: u64 = 1_000_000;

struct Bed {
    store: Arc<MemoryStore>,
    clock: Arc<ManualClock>,
    streams: Arc<Streams>,
    contacts: Arc<Contacts>,
}

fn bed() -> Bed {
    bed_with(None)
}

fn bed_with(required_label: Option<&str>) -> Bed {
    let manual = Arc::new(ManualClock::at(NOW));
    let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&manual);
    let random = Arc::new(Random::seeded(1));
    let memory = Arc::new(MemoryStore::new(Arc::clone(&clock), Arc::clone(&random)));
    let store: Arc<dyn Store> = Arc::<MemoryStore>::clone(&memory);
    let config = Config {
        services: vec![ServiceConfig {
            name: "sink".into(),
            factory: "NOOP".into(),
            ..ServiceConfig::default()
        }],
        ..Config::default()
    };
    let engine = Engine::new(&config, store, clock, random);
    let engine = Arc::new(engine.unwrap_or_else(|error| panic!("{error}")));
    let streams = Arc::clone(&engine.streams);
    let contacts = Arc::new(Contacts {
        engine,
        required_label: required_label.map(str::to_owned),
        streaming_to: "here".into(),
    });
    Bed {
        store: memory,
        clock: manual,
        streams,
        contacts,
    }
}

impl Bed {
    async fn contact(&self, name: u8, messages: Vec<Message>) -> Contact {
        self.begin(peer(name), record(messages), ContactKind::Poll)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    async fn begin(
        &self,
        peer: Peer,
        record: WrappedContactData,
        kind: ContactKind,
    ) -> Result<Contact, ContactError> {
        self.contacts.begin(peer, record, kind).await
    }

    /// Stores a message for a client and returns its id.
    async fn send(&self, to: ClientId, service: &str, number: u8) -> MessageId {
        let id = MessageId::new([number; 32]);
        let message = Message {
            message_id: id.to_bytes(),
            source: Some(address(None, "greeter")),
            destination: Some(address(Some(to), service)),
            message_type: "greeting".into(),
            creation_time: Some(timestamp(self.clock.now())),
            ..Message::default()
        };
        self.store.store_messages(&[message], None).await.unwrap();
        id
    }

    async fn stored(&self, client: ClientId, source_id: &[u8]) -> Message {
        let id = MessageId::for_source(Some(client), "agent", source_id);
        self.store
            .get_messages(&[id], true)
            .await
            .unwrap()
            .remove(0)
    }

    async fn broadcast(&self, number: u8, limit: u64, label: Option<&str>) {
        let broadcast = Broadcast {
            broadcast_id: BroadcastId::new([number; 8]).to_bytes(),
            source: Some(address(None, "greeter")),
            message_type: "broadcast".into(),
            required_labels: label.map(client_label).into_iter().collect(),
            ..Broadcast::default()
        };
        self.contacts
            .engine
            .store
            .create_broadcast(&broadcast, limit)
            .await
            .unwrap();
        self.contacts.engine.broadcasts.refresh().await.unwrap();
    }
}

fn peer(name: u8) -> Peer {
    let key = Bytes::from(vec![name; 91]);
    Peer {
        client: ClientId::from_public_key(&key),
        key,
        addr: "127.0.0.1:1234".parse().unwrap(),
    }
}

fn address(client: Option<ClientId>, service: &str) -> Address {
    Address {
        client_id: client.map(ClientId::to_bytes).unwrap_or_default(),
        service_name: service.into(),
    }
}

fn client_label(label: &str) -> Label {
    Label {
        service_name: CLIENT.into(),
        label: label.into(),
    }
}

fn record(messages: Vec<Message>) -> WrappedContactData {
    record_with(WireContact {
        messages,
        ..WireContact::default()
    })
}

fn record_with(contact: WireContact) -> WrappedContactData {
    WrappedContactData {
        contact_data: contact.encode_to_vec().into(),
        client_labels: vec!["linux".into()],
        ..WrappedContactData::default()
    }
}

fn tokens(list: &[(&str, u64)]) -> WrappedContactData {
    record_with(WireContact {
        allowed_messages: list
            .iter()
            .map(|(name, count)| ((*name).into(), *count))
            .collect(),
        ..WireContact::default()
    })
}

fn message(source_id: &[u8], to: &str) -> Message {
    Message {
        source: Some(address(None, "agent")),
        source_message_id: Bytes::copy_from_slice(source_id),
        destination: Some(address(None, to)),
        message_type: "answer".into(),
        data: Some(Any {
            type_url: "type.googleapis.com/x".into(),
            value: Bytes::from_static(b"payload"),
        }),
        ..Message::default()
    }
}

fn to_system<M: prost::Message + Name>(source_id: &[u8], kind: &str, data: &M) -> Message {
    Message {
        message_type: kind.into(),
        data: Some(pack(data)),
        ..message(source_id, SYSTEM)
    }
}

fn ack(ids: &[MessageId]) -> Message {
    let data = MessageAckData {
        message_ids: ids.iter().map(|id| id.to_bytes()).collect(),
    };
    to_system(&ids[0].as_bytes()[..4], "MessageAck", &data)
}

#[tokio::test]
async fn p_040_to_042_only_the_server_says_who_sent_what_and_when() {
    let bed = bed();
    let mut forged = message(b"1", "nowhere yet");
    forged.destination = Some(address(None, "sink"));
    forged.message_id = Bytes::from(vec![7; 32]);
    forged.source = Some(address(Some(ClientId::new([9; 8])), "agent"));
    forged.creation_time = Some(Timestamp {
        seconds: 5,
        nanos: 0,
    });
    forged.validation_info = Some(ValidationInfo {
        tags: BTreeMap::from([("a".into(), "b".into())]),
    });
    forged.result = Some(MessageResult {
        processed_time: Some(Timestamp {
            seconds: 6,
            nanos: 0,
        }),
        failed: true,
        failed_reason: "forged".into(),
    });
    forged.is_blocklisted_source = true;
    let contact = bed.contact(1, vec![forged]).await;

    let stored = bed.stored(contact.client(), b"1").await;
    let now = timestamp(bed.clock.now());
    assert_eq!(
        stored.source,
        Some(address(Some(contact.client()), "agent"))
    );
    assert_eq!(stored.creation_time, Some(now));
    assert_eq!(stored.validation_info, None);
    let result = stored.result.expect("the service took it");
    assert_eq!((result.processed_time, result.failed), (Some(now), false));
    assert_eq!(stored.data, None, "P-046: the payload is gone");
}

#[tokio::test]
async fn p_043_messages_without_sender_or_receiver_are_dropped_and_the_rest_kept() {
    let bed = bed();
    let good = message(b"good", "sink");
    let bad = [
        Message {
            destination: None,
            ..message(b"a", "sink")
        },
        Message {
            destination: Some(address(Some(ClientId::new([1; 8])), "sink")),
            ..message(b"b", "sink")
        },
        Message {
            destination: Some(address(None, "")),
            ..message(b"c", "sink")
        },
        Message {
            source: None,
            ..message(b"d", "sink")
        },
        Message {
            source: Some(address(None, "")),
            ..message(b"e", "sink")
        },
        Message {
            source_message_id: Bytes::new(),
            ..message(b"f", "sink")
        },
    ];
    let dropped = bad.clone().map(|message| {
        let service = message.source.unwrap_or_default().service_name;
        let id = &message.source_message_id;
        MessageId::for_source(Some(peer(1).client), &service, id)
    });
    let contact = bed
        .contact(1, bad.into_iter().chain([good]).collect())
        .await;
    bed.stored(contact.client(), b"good").await;
    for id in dropped {
        assert!(
            bed.store
                .get_messages(&[id], false)
                .await
                .unwrap_err()
                .is_not_found()
        );
    }
}

#[tokio::test]
async fn p_045_message_for_an_unknown_service_has_failed() {
    let bed = bed();
    let contact = bed.contact(1, vec![message(b"1", "nobody")]).await;
    let result = bed.stored(contact.client(), b"1").await.result.unwrap();
    assert!(
        result.failed && result.failed_reason.contains("nobody"),
        "{result:?}"
    );
}

#[tokio::test]
async fn p_024_and_025_too_many_messages_or_garbage_store_nothing() {
    let bed = bed();
    let many = |count: u8| {
        record(
            (0..count)
                .map(|number| message(&[number], "sink"))
                .collect(),
        )
    };
    let garbage = WrappedContactData {
        contact_data: Bytes::from_static(b"\xff\xff"),
        ..WrappedContactData::default()
    };
    for bad in [many(101), garbage] {
        let error = bed
            .begin(peer(1), bad, ContactKind::Poll)
            .await
            .err()
            .expect("refused");
        assert!(matches!(error, ContactError::Failed(_)), "{error}");
        assert!(bed.store.list_clients(&[]).await.unwrap().is_empty());
    }
    assert!(
        bed.begin(peer(1), many(100), ContactKind::Poll)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn p_011_known_id_with_another_key_is_refused_and_stores_nothing() {
    let bed = bed();
    bed.contact(1, Vec::new()).await;
    let mut forger = peer(2);
    forger.client = peer(1).client;
    let refused = bed
        .begin(
            forger,
            record(vec![message(b"1", "sink")]),
            ContactKind::Poll,
        )
        .await;
    assert!(matches!(refused.err(), Some(ContactError::NotAuthorized)));
    assert_eq!(
        bed.store
            .list_client_contacts(peer(1).client)
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn p_032_agent_without_the_required_label_leaves_no_trace() {
    let bed = bed_with(Some("mine"));
    let refused = bed
        .begin(peer(1), record(Vec::new()), ContactKind::Poll)
        .await;
    assert!(matches!(refused.err(), Some(ContactError::NotAuthorized)));
    assert!(bed.store.list_clients(&[]).await.unwrap().is_empty());
    assert!(bed.contacts.file_allowed(&["mine".into()]) && !bed.contacts.file_allowed(&[]));
}

#[tokio::test]
async fn p_033_labels_of_the_first_contact_stay() {
    let bed = bed();
    bed.contact(1, Vec::new()).await;
    let mut second = record(Vec::new());
    second.client_labels = vec!["darwin".into()];
    bed.begin(peer(1), second, ContactKind::Poll)
        .await
        .ok()
        .unwrap();
    let data = bed.store.get_client_data(peer(1).client).await.unwrap();
    assert_eq!(data.labels, [client_label("linux")]);
}

#[tokio::test]
async fn p_034_and_082_stream_is_recorded_and_a_poll_clears_it() {
    let bed = bed();
    let client = || async { bed.store.list_clients(&[]).await.unwrap().remove(0) };
    bed.begin(peer(1), record(Vec::new()), ContactKind::Stream)
        .await
        .ok()
        .unwrap();
    assert_eq!(client().await.last_contact_streaming_to, "here");
    assert_eq!(client().await.last_contact_address, "127.0.0.1:1234");
    bed.contact(1, Vec::new()).await;
    assert_eq!(client().await.last_contact_streaming_to, "");
}

#[tokio::test]
async fn p_036_simultaneous_first_contacts_all_succeed() {
    let bed = bed();
    let contacts = (0..8).map(|_| bed.begin(peer(1), record(Vec::new()), ContactKind::Poll));
    assert!(join_all(contacts).await.iter().all(Result::is_ok));
    assert_eq!(bed.store.list_clients(&[]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn p_044_message_sent_twice_is_stored_once() {
    let bed = bed();
    let twice = vec![message(b"1", "sink"), message(b"1", "sink")];
    let contact = bed.contact(1, twice.clone()).await;
    contact.accept_record(record(twice)).await.unwrap();
    bed.stored(contact.client(), b"1").await;
}

#[tokio::test]
async fn p_230_signature_without_certificate_is_no_trouble_and_a_broken_one_fails_the_contact() {
    let bed = bed();
    let signed = |certificate: Vec<Bytes>| WrappedContactData {
        signatures: vec![fleethold_proto::fleetspeak::Signature {
            certificate,
            ..Default::default()
        }],
        ..record(Vec::new())
    };
    assert!(
        bed.begin(peer(1), signed(Vec::new()), ContactKind::Poll)
            .await
            .is_ok()
    );
    let broken = signed(vec![Bytes::from_static(b"no certificate")]);
    assert!(bed.begin(peer(1), broken, ContactKind::Poll).await.is_err());
}
