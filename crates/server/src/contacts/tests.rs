//! The pipeline without a transport. P-numbers: protocol specification section 7.

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
    let contact = bed
        .contact(1, bad.into_iter().chain([good]).collect())
        .await;
    bed.stored(contact.client(), b"good").await;
    for dropped in [b"a", b"b", b"c", b"d", b"e"] {
        let id = MessageId::for_source(Some(contact.client()), "agent", dropped);
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
async fn p_090_to_093_tokens_limit_what_each_service_gets() {
    let bed = bed();
    bed.contact(1, Vec::new()).await;
    let client = peer(1).client;
    for number in 1..=3 {
        bed.send(client, "a", number).await;
    }
    bed.send(client, "b", 4).await;
    let contact = bed
        .begin(peer(1), tokens(&[("a", 2)]), ContactKind::Stream)
        .await
        .ok()
        .unwrap();
    assert_eq!(contact.take_messages().await.unwrap().messages.len(), 2);
    assert!(contact.take_messages().await.unwrap().messages.is_empty());

    let accepted = contact.accept_record(tokens(&[("a", 1)])).await.unwrap();
    assert!(accepted.deliver, "P-093: tokens from 0 to 1");
    assert_eq!(contact.take_messages().await.unwrap().messages.len(), 1);

    assert!(
        contact
            .accept_record(tokens(&[("b", 5)]))
            .await
            .unwrap()
            .deliver
    );
    let delivery = contact.take_messages().await.unwrap();
    assert_eq!(
        delivery.messages[0].destination,
        Some(address(Some(client), "b"))
    );
    assert!(
        !contact
            .accept_record(tokens(&[("b", 1)]))
            .await
            .unwrap()
            .deliver
    );
}

#[tokio::test]
async fn p_093_tokens_that_come_during_a_claim_are_used_at_once() {
    let bed = bed();
    bed.contact(1, Vec::new()).await;
    let begun = bed.begin(peer(1), tokens(&[("a", 1)]), ContactKind::Stream);
    let contact = begun.await.ok().unwrap();
    let at_claim = contact.tokens().clone();
    let accepted = contact.accept_record(tokens(&[("a", 1)])).await.unwrap();
    assert!(!accepted.deliver, "the service had a token already");
    let claimed = Message {
        destination: Some(address(Some(contact.client()), "a")),
        ..Message::default()
    };
    assert!(contact.use_tokens(&[claimed], at_claim));
    let at_claim = contact.tokens().clone();
    assert!(
        !contact.use_tokens(&[], at_claim),
        "the claim was not limited"
    );
}

#[tokio::test]
async fn p_092_agent_that_never_sent_tokens_has_no_limits() {
    let bed = bed();
    let contact = bed.contact(1, Vec::new()).await;
    contact
        .accept_record(record(vec![message(b"1", "sink")]))
        .await
        .unwrap();
    bed.send(contact.client(), "any", 1).await;
    assert_eq!(contact.take_messages().await.unwrap().messages.len(), 1);
}

#[tokio::test]
async fn p_094_die_costs_no_token_and_is_done_when_handed_out() {
    let bed = bed();
    bed.contact(1, Vec::new()).await;
    let id = MessageId::new([1; 32]);
    let die = Message {
        message_id: id.to_bytes(),
        message_type: DIE.into(),
        source: Some(address(None, "operator")),
        destination: Some(address(Some(peer(1).client), SYSTEM)),
        creation_time: Some(timestamp(bed.clock.now())),
        data: Some(pack(&DieRequest { force: true })),
        ..Message::default()
    };
    bed.store.store_messages(&[die], None).await.unwrap();
    let contact = bed
        .begin(peer(1), tokens(&[(SYSTEM, 1)]), ContactKind::Stream)
        .await
        .ok()
        .unwrap();
    assert_eq!(contact.take_messages().await.unwrap().messages.len(), 1);
    let result = bed.store.get_message_result(id).await.unwrap().unwrap();
    assert!(!result.failed);
    assert_eq!(contact.tokens().as_ref().unwrap()[SYSTEM], 1);
}

#[tokio::test]
async fn p_100_unacknowledged_message_comes_again_after_15_minutes() {
    let bed = bed();
    let contact = bed.contact(1, Vec::new()).await;
    let id = bed.send(contact.client(), "a", 1).await;
    let mut taken = Vec::new();
    for seconds in [0, 899, 900] {
        bed.clock.set(NOW + seconds);
        taken.push(contact.take_messages().await.unwrap().messages.len());
    }
    assert_eq!(taken, [1, 0, 1]);
    contact
        .accept_record(record(vec![ack(&[id])]))
        .await
        .unwrap();
    bed.clock.set(NOW + 5000);
    assert!(contact.take_messages().await.unwrap().messages.is_empty());
    assert!(
        !bed.store
            .get_message_result(id)
            .await
            .unwrap()
            .unwrap()
            .failed
    );
}

#[tokio::test]
async fn p_101_acknowledgement_skips_unknown_and_foreign_messages() {
    let bed = bed();
    let mine = bed.contact(1, Vec::new()).await;
    let other = bed.contact(2, Vec::new()).await;
    let for_me = bed.send(mine.client(), "a", 1).await;
    let for_other = bed.send(other.client(), "a", 2).await;
    let unknown = MessageId::new([3; 32]);
    mine.accept_record(record(vec![ack(&[unknown, for_other, for_me])]))
        .await
        .unwrap();
    assert!(
        bed.store
            .get_message_result(for_me)
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        bed.store
            .get_message_result(for_other)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn p_102_error_report_fails_the_senders_own_message_only() {
    let bed = bed();
    let mine = bed.contact(1, Vec::new()).await;
    let other = bed.contact(2, Vec::new()).await;
    let id = bed.send(mine.client(), "a", 1).await;
    let report = MessageErrorData {
        message_id: id.to_bytes(),
        error: "no such service".into(),
    };
    let report = to_system(b"e", "MessageError", &report);
    other
        .accept_record(record(vec![report.clone()]))
        .await
        .unwrap();
    assert!(bed.store.get_message_result(id).await.unwrap().is_none());
    assert!(
        bed.stored(other.client(), b"e")
            .await
            .result
            .unwrap()
            .failed
    );
    mine.accept_record(record(vec![report])).await.unwrap();
    let result = bed.store.get_message_result(id).await.unwrap().unwrap();
    assert_eq!(
        (result.failed, result.failed_reason.as_str()),
        (true, "no such service")
    );
}

#[tokio::test]
async fn p_110_client_info_replaces_exactly_the_agents_own_labels() {
    let bed = bed();
    let contact = bed.contact(1, Vec::new()).await;
    let operator = Label {
        service_name: "ops".into(),
        label: "vip".into(),
    };
    bed.store
        .add_client_label(contact.client(), &operator)
        .await
        .unwrap();
    let info = ClientInfoData {
        labels: vec![
            client_label("amd64"),
            client_label("amd64"),
            Label {
                service_name: "ops".into(),
                label: "forged".into(),
            },
        ],
        ..ClientInfoData::default()
    };
    let handle = bed.streams.register(contact.client());
    contact
        .accept_record(record(vec![to_system(b"i", "ClientInfo", &info)]))
        .await
        .unwrap();
    handle.woken().await;
    let data = bed.store.get_client_data(contact.client()).await.unwrap();
    assert_eq!(data.labels, [client_label("amd64"), operator]);
}

#[tokio::test]
async fn p_111_and_113_usage_is_recorded_and_odd_system_messages_fail_alone() {
    let bed = bed();
    let time = Some(Timestamp {
        seconds: 50,
        nanos: 0,
    });
    let usage = ResourceUsageData {
        scope: "agent".into(),
        process_start_time: time,
        data_timestamp: time,
        ..ResourceUsageData::default()
    };
    let without_data = Message {
        data: None,
        ..to_system(b"2", "MessageAck", &usage)
    };
    let contact = bed
        .contact(
            1,
            vec![
                to_system(b"1", "ResourceUsage", &usage),
                without_data,
                to_system(b"3", "Unheard", &usage),
                to_system(b"4", "MessageAck", &usage),
            ],
        )
        .await;
    for (id, failed) in [(b"1", false), (b"2", true), (b"3", true), (b"4", true)] {
        assert_eq!(
            bed.stored(contact.client(), id)
                .await
                .result
                .unwrap()
                .failed,
            failed,
            "{id:?}"
        );
    }
    let start = Timestamp {
        seconds: 0,
        nanos: 0,
    };
    let end = Timestamp {
        seconds: 2_000_000,
        nanos: 0,
    };
    let records = bed
        .store
        .fetch_resource_usage_records(contact.client(), &start, &end)
        .await
        .unwrap();
    assert_eq!(records[0].scope, "agent");
}

#[tokio::test]
async fn p_120_blacklisted_client_gets_one_rekey_request_and_keeps_its_messages() {
    let bed = bed();
    let contact = bed.contact(1, Vec::new()).await;
    let client = contact.client();
    bed.send(client, "a", 1).await;
    bed.store.blacklist_client(client).await.unwrap();
    bed.contacts.engine.cache.forget(client);
    for _ in 0..2 {
        let again = bed.contact(1, vec![message(b"1", "sink")]).await;
        let delivery = again.take_messages().await.unwrap();
        assert_eq!(delivery.messages.len(), 1);
        assert_eq!(delivery.messages[0].message_type, REKEY_REQUEST);
        assert!(delivery.wind_down);
        assert!(again.take_messages().await.unwrap().messages.is_empty());
    }
    let pending = bed
        .store
        .get_pending_message_count(&[client])
        .await
        .unwrap();
    assert_eq!(
        pending, 2,
        "the waiting message and one rekey request, not two"
    );
}

#[tokio::test]
async fn p_103_rekey_request_is_acknowledged_under_the_new_id() {
    let bed = bed();
    let old = bed.contact(1, Vec::new()).await;
    bed.store.blacklist_client(old.client()).await.unwrap();
    bed.contacts.engine.cache.forget(old.client());
    let request = bed
        .contact(1, Vec::new())
        .await
        .take_messages()
        .await
        .unwrap()
        .messages
        .remove(0);
    let id = MessageId::try_from(&request.message_id[..]).unwrap();
    bed.contact(2, vec![ack(&[id])]).await;
    assert!(
        !bed.store
            .get_message_result(id)
            .await
            .unwrap()
            .unwrap()
            .failed
    );
}

#[tokio::test]
async fn p_130_and_134_broadcast_reaches_every_client_once_also_on_an_open_contact() {
    let bed = bed();
    let contact = bed.contact(1, Vec::new()).await;
    assert!(contact.take_messages().await.unwrap().messages.is_empty());
    bed.broadcast(1, BROADCAST_UNLIMITED, None).await;
    let delivery = contact.take_messages().await.unwrap();
    let sent = &delivery.messages[0];
    assert_eq!(sent.message_type, "broadcast");
    assert_eq!(
        sent.destination,
        Some(address(Some(contact.client()), "greeter")),
        "P-133"
    );
    for again in [contact, bed.contact(1, Vec::new()).await] {
        assert!(again.take_messages().await.unwrap().messages.is_empty());
    }
    bed.contacts.engine.broadcasts.close().await;
    assert_eq!(
        bed.contacts
            .engine
            .store
            .list_active_broadcasts()
            .await
            .unwrap()[0]
            .sent,
        1
    );
}

#[tokio::test]
async fn p_131_limited_broadcast_reaches_exactly_its_limit() {
    let bed = bed();
    bed.broadcast(1, 7, None).await;
    let deliveries = join_all((1..=20).map(|name| {
        let bed = &bed;
        async move {
            bed.contact(name, Vec::new())
                .await
                .take_messages()
                .await
                .unwrap()
                .messages
                .len()
        }
    }));
    assert_eq!(deliveries.await.iter().sum::<usize>(), 7);
    bed.contacts.engine.broadcasts.refresh().await.unwrap();
    assert!(
        bed.contacts
            .engine
            .store
            .list_active_broadcasts()
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn p_132_and_138_broadcast_needs_all_labels_and_notices_new_ones() {
    let bed = bed();
    bed.broadcast(1, BROADCAST_UNLIMITED, Some("vip")).await;
    let contact = bed.contact(1, Vec::new()).await;
    assert!(contact.take_messages().await.unwrap().messages.is_empty());
    let info = ClientInfoData {
        labels: vec![client_label("vip")],
        ..ClientInfoData::default()
    };
    contact
        .accept_record(record(vec![to_system(b"i", "ClientInfo", &info)]))
        .await
        .unwrap();
    assert_eq!(contact.take_messages().await.unwrap().messages.len(), 1);
}

#[tokio::test]
async fn p_135_disabled_and_expired_broadcasts_are_not_sent() {
    let bed = bed();
    bed.broadcast(1, BROADCAST_UNLIMITED, None).await;
    bed.contacts
        .engine
        .store
        .disable_broadcasts(&[BroadcastId::new([1; 8])])
        .await
        .unwrap();
    assert!(
        bed.contact(1, Vec::new())
            .await
            .take_messages()
            .await
            .unwrap()
            .messages
            .is_empty()
    );

    let expiring = Broadcast {
        broadcast_id: BroadcastId::new([2; 8]).to_bytes(),
        source: Some(address(None, "greeter")),
        expiration_time: Some(Timestamp {
            seconds: i64::try_from(NOW).unwrap() + 10,
            nanos: 0,
        }),
        ..Broadcast::default()
    };
    bed.contacts
        .engine
        .store
        .create_broadcast(&expiring, 5)
        .await
        .unwrap();
    bed.contacts.engine.broadcasts.refresh().await.unwrap();
    bed.clock.set(NOW + 10);
    assert!(
        bed.contact(2, Vec::new())
            .await
            .take_messages()
            .await
            .unwrap()
            .messages
            .is_empty()
    );
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
