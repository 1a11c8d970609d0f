//! The admin interface over a real connection (protocol specification section 4.2, P-150 to P-167).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_proto::fleetspeak::server::{
    BlacklistClientRequest, Broadcast, CreateBroadcastRequest, DeleteFileRequest,
    DeletePendingMessagesRequest, DisableBroadcastsRequest, FetchClientResourceUsageRecordsRequest,
    GetMessageStatusRequest, GetMessageStatusResponse, GetPendingMessageCountRequest,
    GetPendingMessagesRequest, ListActiveBroadcastsRequest, ListClientContactsRequest,
    ListClientsRequest, ServiceConfig, StoreFileRequest, StreamClientContactsRequest,
    StreamClientIdsRequest,
};
use fleethold_proto::fleetspeak::{Address, EmptyMessage, Label, Message};
use fleethold_proto::{Any, Timestamp};
use fleethold_server::{AdminConfig, Config, Server};
use fleethold_store::clock::timestamp;
use fleethold_store::{
    ClientData, ClientId, ClientStore, Clock, ContactData, FileStore, ManualClock, MemoryStore,
    MessageId, MessageStore, REMOVED_BY_ADMIN, Random,
};
use futures::TryStreamExt;
use prost::Message as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const CLIENT: ClientId = ClientId::new([1; 8]);
const OTHER: ClientId = ClientId::new([2; 8]);
const UNKNOWN: ClientId = ClientId::new([3; 8]);

/// A server with nothing but the admin interface and a NOOP service.
struct Bed {
    server: Server,
    admin: AdminClient<Channel>,
    store: Arc<MemoryStore>,
    clock: Arc<ManualClock>,
}

impl Bed {
    async fn new() -> Self {
        let clock = Arc::new(ManualClock::at(1_000));
        let random = Arc::new(Random::seeded(1));
        let store = Arc::new(MemoryStore::new(clock.clone(), random.clone()));
        let config = Config {
            admin: Some(AdminConfig {
                listen: "127.0.0.1:0".to_owned(),
            }),
            services: vec![ServiceConfig {
                name: "sink".to_owned(),
                factory: "NOOP".to_owned(),
                ..ServiceConfig::default()
            }],
            ..Config::default()
        };
        let server = Server::start(config, store.clone(), clock.clone(), random)
            .await
            .unwrap();
        let addr = server.admin_addr().unwrap();
        let channel = Endpoint::from_shared(format!("http://{addr}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        for client in [CLIENT, OTHER] {
            let data = ClientData {
                labels: vec![label("linux")],
                ..ClientData::default()
            };
            store.add_client(client, &data).await.unwrap();
        }
        Self {
            server,
            admin: AdminClient::new(channel),
            store,
            clock,
        }
    }

    async fn insert(&mut self, message: Message) -> Result<(), Status> {
        self.admin.insert_message(message).await.map(drop)
    }

    async fn message_status(&mut self, id: impl AsRef<[u8]>) -> GetMessageStatusResponse {
        let request = GetMessageStatusRequest {
            message_id: Bytes::copy_from_slice(id.as_ref()),
        };
        let answer = self.admin.get_message_status(request).await;
        answer.unwrap().into_inner()
    }

    /// Waits until a message has a result.
    async fn finished(&mut self, id: MessageId) -> GetMessageStatusResponse {
        let finished = async {
            let mut look = tokio::time::interval(Duration::from_millis(5));
            loop {
                look.tick().await;
                let status = self.message_status(id).await;
                if status.result.is_some() {
                    return status;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), finished)
            .await
            .expect("no result in 20 s")
    }

    async fn pending(
        &mut self,
        request: GetPendingMessagesRequest,
    ) -> Result<Vec<Message>, Status> {
        let answer = self.admin.get_pending_messages(request).await?;
        Ok(answer.into_inner().messages)
    }

    async fn count(&mut self, clients: &[ClientId]) -> u64 {
        let request = GetPendingMessageCountRequest {
            client_ids: ids(clients),
        };
        let answer = self.admin.get_pending_message_count(request).await;
        answer.unwrap().into_inner().count
    }

    async fn streamed_ids(&mut self, request: StreamClientIdsRequest) -> Vec<Bytes> {
        let answer = self.admin.stream_client_ids(request).await.unwrap();
        let ids = answer.into_inner().map_ok(|answer| answer.client_id);
        ids.try_collect().await.unwrap()
    }

    async fn active(&mut self, service: &str) -> Vec<Broadcast> {
        let request = ListActiveBroadcastsRequest {
            service_name: service.to_owned(),
        };
        let answer = self.admin.list_active_broadcasts(request).await;
        answer.unwrap().into_inner().broadcasts
    }
}

fn label(label: &str) -> Label {
    Label {
        service_name: "client".to_owned(),
        label: label.to_owned(),
    }
}

fn ids(clients: &[ClientId]) -> Vec<Bytes> {
    clients.iter().map(|client| client.to_bytes()).collect()
}

fn address(client: Option<ClientId>, service: &str) -> Option<Address> {
    Some(Address {
        client_id: client.map(ClientId::to_bytes).unwrap_or_default(),
        service_name: service.to_owned(),
    })
}

fn id(number: u8) -> MessageId {
    MessageId::new([number; 32])
}

fn message(number: u8, client: Option<ClientId>, service: &str) -> Message {
    Message {
        message_id: id(number).to_bytes(),
        source: address(None, "operator"),
        destination: address(client, service),
        message_type: "Order".to_owned(),
        data: Some(Any {
            type_url: "type.googleapis.com/x".to_owned(),
            value: Bytes::from_static(b"payload"),
        }),
        ..Message::default()
    }
}

fn broadcast(number: u8) -> Broadcast {
    Broadcast {
        broadcast_id: Bytes::copy_from_slice(&[number; 8]),
        source: address(None, "operator"),
        message_type: "Order".to_owned(),
        ..Broadcast::default()
    }
}

/// Asserts that a call was refused, and returns the text.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code) -> String {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    status.message().to_owned()
}

// P-151.
#[tokio::test]
async fn message_without_source_or_destination_service_is_refused() {
    let mut bed = Bed::new().await;
    let good = message(1, Some(CLIENT), "shell");
    for (wrong, field) in [
        (
            Message {
                source: None,
                ..good.clone()
            },
            "source",
        ),
        (
            Message {
                source: address(None, ""),
                ..good.clone()
            },
            "source",
        ),
        (
            Message {
                destination: None,
                ..good.clone()
            },
            "destination",
        ),
        (
            Message {
                destination: address(Some(CLIENT), ""),
                ..good.clone()
            },
            "destination",
        ),
    ] {
        let text = refused(bed.insert(wrong).await, Code::InvalidArgument);
        assert!(text.contains(field), "{text}");
    }
    for wrong_id in [&[1; 31][..], &[1; 33], &[1]] {
        let wrong = Message {
            message_id: Bytes::copy_from_slice(wrong_id),
            ..good.clone()
        };
        refused(bed.insert(wrong).await, Code::InvalidArgument);
    }
    let mut wrong = good.clone();
    wrong.destination.as_mut().unwrap().client_id = Bytes::from_static(&[1; 7]);
    refused(bed.insert(wrong).await, Code::InvalidArgument);
    assert_eq!(bed.count(&[CLIENT]).await, 0);
}

#[tokio::test]
async fn inserted_message_is_kept_as_given_and_completed() {
    let mut bed = Bed::new().await;
    let given = Message {
        source: address(Some(OTHER), "operator"),
        source_message_id: Bytes::from_static(b"mine"),
        creation_time: Some(Timestamp {
            seconds: 5,
            nanos: 6,
        }),
        ..message(1, Some(CLIENT), "shell")
    };
    bed.insert(given.clone()).await.unwrap();
    let request = GetPendingMessagesRequest {
        client_ids: ids(&[CLIENT]),
        want_data: true,
        ..GetPendingMessagesRequest::default()
    };
    assert_eq!(bed.pending(request.clone()).await.unwrap(), [given]);

    bed.clock.set(2_000);
    let bare = Message {
        message_id: Bytes::new(),
        ..message(0, Some(OTHER), "shell")
    };
    bed.insert(bare).await.unwrap();
    let request = GetPendingMessagesRequest {
        client_ids: ids(&[OTHER]),
        ..request
    };
    let stored = bed.pending(request).await.unwrap().pop().unwrap();
    assert_eq!(stored.message_id.len(), 32);
    assert_eq!(stored.creation_time, Some(timestamp(bed.clock.now())));
}

// P-151: the limit is exact, after the missing fields are filled in.
#[tokio::test]
async fn message_to_a_client_has_at_most_2_mib_when_complete() {
    const LIMIT: usize = 2_097_152;
    let mut bed = Bed::new().await;
    let sized = |total: usize| {
        let mut message = message(0, Some(CLIENT), "shell");
        message.message_id = Bytes::new();
        let complete = |message: &Message| Message {
            message_id: id(1).to_bytes(),
            creation_time: Some(timestamp(bed.clock.now())),
            ..message.clone()
        };
        // The length of the lengths depends on the size, so the size is only nearly right first.
        let mut payload = total - 200;
        for _ in 0..2 {
            message.data.as_mut().unwrap().value = vec![7; payload].into();
            payload += total - complete(&message).encoded_len();
        }
        assert_eq!(complete(&message).encoded_len(), total);
        message
    };
    let (largest, too_large) = (sized(LIMIT), sized(LIMIT + 1));
    bed.insert(largest).await.unwrap();
    let text = refused(bed.insert(too_large).await, Code::ResourceExhausted);
    assert!(text.contains("exceeds the 2097152-byte limit"), "{text}");
    assert_eq!(bed.count(&[CLIENT]).await, 1);
}

// P-152.
#[tokio::test]
async fn message_inserted_twice_is_stored_once() {
    let mut bed = Bed::new().await;
    for _ in 0..2 {
        bed.insert(message(1, Some(CLIENT), "shell")).await.unwrap();
    }
    assert_eq!(bed.count(&[CLIENT]).await, 1);
}

// P-153.
#[tokio::test]
async fn message_to_an_unknown_client_is_refused_and_not_stored() {
    let mut bed = Bed::new().await;
    let text = refused(
        bed.insert(message(1, Some(UNKNOWN), "shell")).await,
        Code::NotFound,
    );
    assert!(text.contains(&UNKNOWN.to_string()), "{text}");
    assert_eq!(
        bed.message_status(id(1)).await,
        GetMessageStatusResponse::default()
    );
    assert_eq!(bed.count(&[UNKNOWN]).await, 0);
}

// P-154: the clock stands still, so the store's own retry is never due.
#[tokio::test]
async fn message_to_a_service_on_the_server_is_processed_at_once() {
    let mut bed = Bed::new().await;
    bed.insert(message(1, None, "sink")).await.unwrap();
    let status = bed.finished(id(1)).await;
    assert!(!status.result.unwrap().failed);
    assert_eq!(status.creation_time, Some(timestamp(bed.clock.now())));

    bed.insert(message(2, None, "nobody")).await.unwrap();
    let result = bed.finished(id(2)).await.result.unwrap();
    assert!(result.failed);
    assert!(
        result.failed_reason.contains("nobody"),
        "{}",
        result.failed_reason
    );
}

// P-155.
#[tokio::test]
async fn status_of_an_unknown_message_is_empty() {
    let mut bed = Bed::new().await;
    for unknown in [&[][..], &[9; 32]] {
        let status = bed.message_status(unknown).await;
        assert_eq!(status, GetMessageStatusResponse::default());
    }
    let wrong = GetMessageStatusRequest {
        message_id: Bytes::from_static(&[9; 31]),
    };
    refused(
        bed.admin.get_message_status(wrong).await,
        Code::InvalidArgument,
    );
}

// P-156.
#[tokio::test]
async fn pending_messages_come_by_id_and_in_pages() {
    let mut bed = Bed::new().await;
    for (number, client) in [(3, CLIENT), (1, OTHER), (2, CLIENT), (4, OTHER)] {
        bed.insert(message(number, Some(client), "shell"))
            .await
            .unwrap();
    }
    let all = GetPendingMessagesRequest {
        client_ids: ids(&[CLIENT, OTHER]),
        ..GetPendingMessagesRequest::default()
    };
    let numbers = |messages: &[Message]| {
        let numbers = messages.iter().map(|message| message.message_id[0]);
        numbers.collect::<Vec<_>>()
    };
    let found = bed.pending(all.clone()).await.unwrap();
    assert_eq!(numbers(&found), [1, 2, 3, 4]);
    assert!(found.iter().all(|message| message.data.is_none()));

    let page = GetPendingMessagesRequest {
        offset: 1,
        limit: 2,
        want_data: true,
        ..all.clone()
    };
    let found = bed.pending(page).await.unwrap();
    assert_eq!(numbers(&found), [2, 3]);
    assert!(found.iter().all(|message| message.data.is_some()));

    let one_client = GetPendingMessagesRequest {
        client_ids: ids(&[CLIENT]),
        ..all.clone()
    };
    assert_eq!(numbers(&bed.pending(one_client).await.unwrap()), [2, 3]);
    assert_eq!(bed.count(&[CLIENT, OTHER]).await, 4);
    assert_eq!(bed.count(&[UNKNOWN]).await, 0);
    assert_eq!(bed.count(&[]).await, 0);

    let offset_alone = GetPendingMessagesRequest { offset: 1, ..all };
    refused(bed.pending(offset_alone).await, Code::InvalidArgument);
}

// P-157, P-155.
#[tokio::test]
async fn deleted_pending_messages_have_failed() {
    let mut bed = Bed::new().await;
    bed.insert(message(1, Some(CLIENT), "shell")).await.unwrap();
    bed.insert(message(2, Some(OTHER), "shell")).await.unwrap();
    for nobody in [vec![], vec![Bytes::new()]] {
        let request = DeletePendingMessagesRequest { client_ids: nobody };
        bed.admin.delete_pending_messages(request).await.unwrap();
        assert_eq!(bed.count(&[CLIENT, OTHER]).await, 2);
    }
    let request = DeletePendingMessagesRequest {
        client_ids: ids(&[CLIENT]),
    };
    bed.admin.delete_pending_messages(request).await.unwrap();
    assert_eq!(bed.count(&[CLIENT]).await, 0);
    assert_eq!(bed.count(&[OTHER]).await, 1);
    let result = bed.message_status(id(1)).await.result.unwrap();
    assert!(result.failed);
    assert_eq!(result.failed_reason, REMOVED_BY_ADMIN);
    assert_eq!(result.processed_time, Some(timestamp(bed.clock.now())));
}

// P-158.
#[tokio::test]
async fn clients_are_listed_with_labels_and_last_contact() {
    let mut bed = Bed::new().await;
    for (asked, expected) in [
        (vec![], vec![CLIENT, OTHER]),
        (ids(&[OTHER]), vec![OTHER]),
        (ids(&[UNKNOWN, CLIENT]), vec![CLIENT]),
        (vec![Bytes::new()], vec![]),
    ] {
        let request = ListClientsRequest {
            client_ids: asked.clone(),
        };
        let found = bed.admin.list_clients(request).await.unwrap();
        let found = found.into_inner().clients;
        let found_ids: Vec<_> = found
            .iter()
            .map(|client| client.client_id.clone())
            .collect();
        assert_eq!(found_ids, ids(&expected), "{asked:?}");
        for client in found {
            assert_eq!(client.labels, [label("linux")]);
            assert_eq!(client.last_contact_time, Some(timestamp(bed.clock.now())));
        }
    }
    let request = ListClientsRequest {
        client_ids: vec![Bytes::from_static(b"short")],
    };
    refused(bed.admin.list_clients(request).await, Code::InvalidArgument);
}

// P-159, P-161.
#[tokio::test]
async fn blacklisted_and_old_clients_are_left_out_of_the_stream_of_ids() {
    let mut bed = Bed::new().await;
    for unknown in [Bytes::new(), UNKNOWN.to_bytes(), OTHER.to_bytes()] {
        let request = BlacklistClientRequest { client_id: unknown };
        bed.admin.blacklist_client(request).await.unwrap();
    }
    let wrong = BlacklistClientRequest {
        client_id: Bytes::from_static(b"x"),
    };
    refused(
        bed.admin.blacklist_client(wrong).await,
        Code::InvalidArgument,
    );
    assert!(bed.store.get_client_data(OTHER).await.unwrap().blacklisted);

    let all = StreamClientIdsRequest {
        include_blacklisted: true,
        last_contact_after: None,
    };
    assert_eq!(bed.streamed_ids(all).await, ids(&[CLIENT, OTHER]));
    assert_eq!(
        bed.streamed_ids(StreamClientIdsRequest::default()).await,
        ids(&[CLIENT])
    );
    for (seconds, expected) in [(999, &[CLIENT, OTHER][..]), (1_000, &[])] {
        let later = StreamClientIdsRequest {
            last_contact_after: Some(Timestamp { seconds, nanos: 0 }),
            ..all
        };
        assert_eq!(bed.streamed_ids(later).await, ids(expected), "{seconds}");
    }
    let wrong = StreamClientIdsRequest {
        last_contact_after: Some(Timestamp {
            seconds: 1,
            nanos: -1,
        }),
        ..all
    };
    refused(
        bed.admin.stream_client_ids(wrong).await,
        Code::InvalidArgument,
    );
}

// P-159: more clients than are read ahead or fit into one page.
#[tokio::test]
async fn every_one_of_many_clients_is_streamed_once() {
    let mut bed = Bed::new().await;
    let mut expected = vec![CLIENT, OTHER];
    for number in 0..3_000_u64 {
        let client = ClientId::new((number << 8).to_be_bytes());
        bed.store
            .add_client(client, &ClientData::default())
            .await
            .unwrap();
        expected.push(client);
    }
    expected.sort();
    let found = bed.streamed_ids(StreamClientIdsRequest::default()).await;
    assert_eq!(found, ids(&expected));
}

// P-160.
#[tokio::test]
async fn streamed_contacts_equal_listed_contacts() {
    let mut bed = Bed::new().await;
    for nonce in 1..=200 {
        bed.clock.advance(Duration::from_millis(1));
        let contact = ContactData {
            client_id: CLIENT,
            nonce_sent: nonce,
            nonce_received: nonce - 1,
            addr: "192.0.2.1:5".to_owned(),
            client_clock: None,
            streaming_to: None,
            labels: Vec::new(),
        };
        bed.store.record_client_contact(&contact).await.unwrap();
    }
    for (client, expected) in [
        (CLIENT.to_bytes(), 200),
        (UNKNOWN.to_bytes(), 0),
        (Bytes::new(), 0),
    ] {
        let request = ListClientContactsRequest {
            client_id: client.clone(),
        };
        let listed = bed.admin.list_client_contacts(request).await.unwrap();
        let listed = listed.into_inner().contacts;
        assert_eq!(listed.len(), expected);
        assert!(listed.iter().all(|contact| contact.timestamp.is_some()));
        let request = StreamClientContactsRequest { client_id: client };
        let streamed = bed.admin.stream_client_contacts(request).await.unwrap();
        let streamed: Vec<_> = streamed.into_inner().try_collect().await.unwrap();
        let streamed: Vec<_> = streamed
            .into_iter()
            .filter_map(|answer| answer.contact)
            .collect();
        assert_eq!(streamed, listed);
    }
    let wrong = Bytes::from_static(b"x");
    let request = ListClientContactsRequest {
        client_id: wrong.clone(),
    };
    refused(
        bed.admin.list_client_contacts(request).await,
        Code::InvalidArgument,
    );
    let request = StreamClientContactsRequest { client_id: wrong };
    refused(
        bed.admin.stream_client_contacts(request).await,
        Code::InvalidArgument,
    );
}

// P-162.
#[tokio::test]
async fn usage_records_need_a_range_which_excludes_its_end() {
    let mut bed = Bed::new().await;
    let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
    for second in [1_000, 1_001, 1_002] {
        bed.clock.set(second);
        let usage = ResourceUsageData {
            scope: second.to_string(),
            process_start_time: at(1),
            data_timestamp: at(2),
            ..ResourceUsageData::default()
        };
        bed.store
            .record_resource_usage_data(CLIENT, &usage)
            .await
            .unwrap();
    }
    let request = FetchClientResourceUsageRecordsRequest {
        client_id: CLIENT.to_bytes(),
        start_timestamp: at(1_000),
        end_timestamp: at(1_002),
    };
    let found = bed
        .admin
        .fetch_client_resource_usage_records(request.clone())
        .await;
    let found = found.unwrap().into_inner().records;
    let scopes: Vec<_> = found.iter().map(|record| record.scope.as_str()).collect();
    assert_eq!(scopes, ["1000", "1001"]);

    for (client, start, end) in [
        (CLIENT.to_bytes(), None, at(1)),
        (CLIENT.to_bytes(), at(1), None),
        (CLIENT.to_bytes(), at(2), at(1)),
        (Bytes::new(), at(2), at(1)),
        (CLIENT.to_bytes(), at(i64::MIN), at(1)),
        (Bytes::from_static(b"x"), at(1), at(2)),
    ] {
        let wrong = FetchClientResourceUsageRecordsRequest {
            client_id: client,
            start_timestamp: start,
            end_timestamp: end,
        };
        let answer = bed.admin.fetch_client_resource_usage_records(wrong).await;
        refused(answer, Code::InvalidArgument);
    }
    let nobody = FetchClientResourceUsageRecordsRequest {
        client_id: Bytes::new(),
        ..request
    };
    let found = bed.admin.fetch_client_resource_usage_records(nobody).await;
    assert!(found.unwrap().into_inner().records.is_empty());
}

// P-163.
#[tokio::test]
async fn files_are_stored_replaced_and_removed_by_both_names() {
    let mut bed = Bed::new().await;
    for (seconds, content) in [(1_000, "old"), (1_001, "new")] {
        bed.clock.set(seconds);
        let request = StoreFileRequest {
            service_name: "shell".to_owned(),
            file_name: "../tool".to_owned(),
            data: Bytes::from_static(content.as_bytes()),
        };
        bed.admin.store_file(request).await.unwrap();
        let file = bed.store.read_file("shell", "../tool").await.unwrap();
        assert_eq!(file.content, content);
        assert_eq!(file.modified, bed.clock.now());
    }
    for (service, name) in [("", "tool"), ("shell", "")] {
        let request = StoreFileRequest {
            service_name: service.to_owned(),
            file_name: name.to_owned(),
            data: Bytes::new(),
        };
        refused(bed.admin.store_file(request).await, Code::InvalidArgument);
        let request = DeleteFileRequest {
            service_name: service.to_owned(),
            file_name: name.to_owned(),
        };
        refused(bed.admin.delete_file(request).await, Code::InvalidArgument);
    }
    let request = DeleteFileRequest {
        service_name: "shell".to_owned(),
        file_name: "../tool".to_owned(),
    };
    for _ in 0..2 {
        bed.admin.delete_file(request.clone()).await.unwrap();
    }
    assert!(bed.store.stat_file("shell", "../tool").await.is_err());
}

// P-164.
#[tokio::test]
async fn broadcast_without_content_source_or_good_id_is_refused() {
    let mut bed = Bed::new().await;
    let wrong_id = Broadcast {
        broadcast_id: Bytes::from_static(b"short"),
        ..broadcast(1)
    };
    let no_source = Broadcast {
        source: None,
        ..broadcast(1)
    };
    for wrong in [None, Some(wrong_id), Some(no_source)] {
        let request = CreateBroadcastRequest {
            broadcast: wrong,
            limit: 1,
        };
        refused(
            bed.admin.create_broadcast(request).await,
            Code::InvalidArgument,
        );
    }
    let request = CreateBroadcastRequest {
        broadcast: Some(broadcast(1)),
        limit: 1,
    };
    bed.admin.create_broadcast(request.clone()).await.unwrap();
    refused(
        bed.admin.create_broadcast(request).await,
        Code::AlreadyExists,
    );
    assert_eq!(bed.active("").await, [broadcast(1)]);
}

#[tokio::test]
async fn broadcasts_are_active_until_they_are_disabled_or_replaced() {
    let mut bed = Bed::new().await;
    let grouped = |number| Broadcast {
        group_name: "nightly".to_owned(),
        ..broadcast(number)
    };
    let nameless = Broadcast {
        broadcast_id: Bytes::new(),
        source: address(None, "other"),
        ..broadcast(0)
    };
    for broadcast in [grouped(1), grouped(2), broadcast(3), nameless] {
        let request = CreateBroadcastRequest {
            broadcast: Some(broadcast),
            limit: 10,
        };
        bed.admin.create_broadcast(request).await.unwrap();
    }
    assert_eq!(bed.active("operator").await, [grouped(2), broadcast(3)]);
    assert_eq!(bed.active("other").await[0].broadcast_id.len(), 8);
    assert_eq!(bed.active("nobody").await, []);

    let mut disable = DisableBroadcastsRequest {
        broadcast_ids: vec![Bytes::from_static(b"short")],
    };
    refused(
        bed.admin.disable_broadcasts(disable.clone()).await,
        Code::InvalidArgument,
    );
    disable.broadcast_ids = Vec::new();
    bed.admin.disable_broadcasts(disable.clone()).await.unwrap();
    disable.broadcast_ids = vec![
        Bytes::new(),
        Bytes::from_static(&[3; 8]),
        Bytes::from_static(&[99; 8]),
    ];
    bed.admin.disable_broadcasts(disable).await.unwrap();
    assert_eq!(bed.active("operator").await, [grouped(2)]);
}

// P-165: the limit is 4 MiB for the whole request.
#[tokio::test]
async fn request_over_4_mib_is_refused_and_the_server_goes_on() {
    const LIMIT: usize = 4 * 1024 * 1024;
    let mut bed = Bed::new().await;
    let sized = |total: usize| {
        let sized = |bytes: usize| StoreFileRequest {
            service_name: "shell".to_owned(),
            file_name: "tool".to_owned(),
            data: vec![7; bytes].into(),
        };
        let overhead = sized(total).encoded_len() - total;
        sized(total - overhead)
    };
    let answer = bed.admin.store_file(sized(LIMIT + 1)).await;
    refused(answer, Code::ResourceExhausted);
    assert!(bed.store.stat_file("shell", "tool").await.is_err());
    bed.admin.store_file(sized(LIMIT)).await.unwrap();
    assert!(bed.store.stat_file("shell", "tool").await.is_ok());
}

// P-150: answers are not limited; here the caller's own limit is raised.
#[tokio::test]
async fn answer_may_be_larger_than_a_request() {
    let mut bed = Bed::new().await;
    for number in 1..=4 {
        let mut message = message(number, Some(CLIENT), "shell");
        message.data.as_mut().unwrap().value = vec![7; 2_000_000].into();
        bed.insert(message).await.unwrap();
    }
    let request = GetPendingMessagesRequest {
        client_ids: ids(&[CLIENT]),
        want_data: true,
        ..GetPendingMessagesRequest::default()
    };
    bed.admin = bed.admin.max_decoding_message_size(usize::MAX);
    assert_eq!(bed.pending(request).await.unwrap().len(), 4);
}

// P-166.
#[tokio::test]
async fn keep_alive_answers_while_other_calls_are_under_way() {
    let bed = Bed::new().await;
    let inserts = (0..200).map(|number| {
        let mut admin = bed.admin.clone();
        async move {
            let message = message(number, Some(CLIENT), "shell");
            admin.insert_message(message).await.map(drop)
        }
    });
    let inserts = futures::future::try_join_all(inserts);
    let mut admin = bed.admin.clone();
    let keep_alive =
        tokio::time::timeout(Duration::from_secs(1), admin.keep_alive(EmptyMessage {}));
    let (inserted, answer) = futures::join!(inserts, keep_alive);
    inserted.unwrap();
    answer.expect("an answer within 1 s").unwrap();
    let count = bed
        .store
        .get_pending_message_count(&[CLIENT])
        .await
        .unwrap();
    assert_eq!(count, 200);
}

#[tokio::test]
async fn stop_ends_the_interface_with_a_connection_open() {
    let mut bed = Bed::new().await;
    bed.admin.keep_alive(EmptyMessage {}).await.unwrap();
    let addr = bed.server.admin_addr().unwrap();
    tokio::time::timeout(Duration::from_secs(20), bed.server.stop())
        .await
        .expect("stopped in time");
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}
