//! The admin interface over a real connection (protocol specification section 4.2, P-150 to P-167).

mod access;
mod broadcasts;
mod clients;
mod files;
mod messages;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::Any;
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_proto::fleetspeak::server::{
    Broadcast, GetMessageStatusRequest, GetMessageStatusResponse, GetPendingMessageCountRequest,
    GetPendingMessagesRequest, ListActiveBroadcastsRequest, ServiceConfig, StoreFileRequest,
    StreamClientIdsRequest,
};
use fleethold_proto::fleetspeak::{Address, EmptyMessage, Label, Message};
use fleethold_server::{AdminConfig, Config, Server};
use fleethold_store::{
    ClientData, ClientId, ClientStore, FileStore, ManualClock, MemoryStore, MessageId,
    MessageStore, Random,
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
        let store = Arc::new(MemoryStore::new(
            Arc::<ManualClock>::clone(&clock),
            Arc::clone(&random),
        ));
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
        let server = Server::start(
            config,
            Arc::<MemoryStore>::clone(&store),
            Arc::<ManualClock>::clone(&clock),
            random,
        )
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

// The limit is 4 MiB for the whole request.
#[tokio::test]
async fn p_165_request_over_4_mib_is_refused_and_the_server_goes_on() {
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

// Answers are not limited; here the caller's own limit is raised.
#[tokio::test]
async fn p_150_answer_may_be_larger_than_a_request() {
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

#[tokio::test]
async fn p_166_keep_alive_answers_while_other_calls_are_under_way() {
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
