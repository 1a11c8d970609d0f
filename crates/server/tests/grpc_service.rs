//! Messages that reach a service behind factory `GRPC` (protocol specification
//! section 4.3, P-170 to P-175), from the admin interface to the result.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::fleetspeak::grpcservice::processor_server::{Processor, ProcessorServer};
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_proto::fleetspeak::server::{GetMessageStatusRequest, ServiceConfig};
use fleethold_proto::fleetspeak::{
    Address, Annotations, EmptyMessage, Message, MessageResult, annotations, grpcservice,
};
use fleethold_proto::{Any, Timestamp, pack};
use fleethold_server::{AdminConfig, Config, Server};
use fleethold_store::{ManualClock, MemoryStore, MessageId, Random};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// Hands on what it gets and always answers the same.
struct BackEnd {
    received: mpsc::UnboundedSender<Message>,
    code: Code,
}

#[tonic::async_trait]
impl Processor for BackEnd {
    async fn process(&self, request: Request<Message>) -> Result<Response<EmptyMessage>, Status> {
        self.received.send(request.into_inner()).unwrap();
        match self.code {
            Code::Ok => Ok(Response::new(EmptyMessage {})),
            code => Err(Status::new(code, "cannot read this")),
        }
    }
}

/// Starts a service that answers with `code`.
fn start_back_end(path: &Path, code: Code) -> mpsc::UnboundedReceiver<Message> {
    let (received, messages) = mpsc::unbounded_channel();
    let listener = UnixListener::bind(path).unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(ProcessorServer::new(BackEnd { received, code }));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    messages
}

async fn start_server(config: &grpcservice::Config) -> Result<Server, String> {
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
            name: "GRR".to_owned(),
            factory: "GRPC".to_owned(),
            config: Some(pack(config)),
            ..ServiceConfig::default()
        }],
        ..Config::default()
    };
    Server::start(config, store, clock, random)
        .await
        .map_err(|error| error.to_string())
}

async fn start_with_back_end_at(path: &Path) -> (Server, AdminClient<Channel>) {
    let config = grpcservice::Config {
        target: format!("unix:{}", path.display()),
        insecure: true,
        ..grpcservice::Config::default()
    };
    let server = start_server(&config).await.unwrap();
    let addr = server.admin_addr().unwrap();
    let admin = AdminClient::connect(format!("http://{addr}"))
        .await
        .unwrap();
    (server, admin)
}

fn message() -> Message {
    Message {
        message_id: MessageId::new([7; 32]).to_bytes(),
        source: Some(Address {
            client_id: Bytes::from_static(&[1; 8]),
            service_name: "agent".to_owned(),
        }),
        source_message_id: Bytes::from_static(b"mine"),
        destination: Some(Address {
            client_id: Bytes::new(),
            service_name: "GRR".to_owned(),
        }),
        message_type: "GrrMessage".to_owned(),
        creation_time: Some(Timestamp {
            seconds: 5,
            nanos: 0,
        }),
        data: Some(Any {
            type_url: "type.googleapis.com/grr.Message".to_owned(),
            value: Bytes::from_static(b"payload"),
        }),
        annotations: Some(Annotations {
            entries: vec![annotations::Entry {
                key: "flow_id".to_owned(),
                value: "F:1".to_owned(),
            }],
        }),
        ..Message::default()
    }
}

/// Waits for the result of [`message`].
async fn result(admin: &mut AdminClient<Channel>) -> MessageResult {
    let finished = async {
        let mut look = tokio::time::interval(Duration::from_millis(5));
        loop {
            look.tick().await;
            let request = GetMessageStatusRequest {
                message_id: message().message_id,
            };
            let status = admin.get_message_status(request).await.unwrap();
            if let Some(result) = status.into_inner().result {
                return result;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), finished)
        .await
        .expect("no result in 20 s")
}

#[tokio::test]
async fn p_170_service_gets_the_whole_message_and_its_success_is_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("service");
    let mut received = start_back_end(&path, Code::Ok);
    let (_server, mut admin) = start_with_back_end_at(&path).await;
    admin.insert_message(message()).await.unwrap();
    assert!(!result(&mut admin).await.failed);
    assert_eq!(received.recv().await.unwrap(), message());

    // A caller that got no answer inserts again; the service is not bothered twice.
    admin.insert_message(message()).await.unwrap();
    let other = Message {
        message_id: MessageId::new([8; 32]).to_bytes(),
        ..message()
    };
    admin.insert_message(other.clone()).await.unwrap();
    assert_eq!(received.recv().await.unwrap(), other);
}

#[tokio::test]
async fn p_171_message_is_delivered_when_the_service_starts_after_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("service");
    let (_server, mut admin) = start_with_back_end_at(&path).await;
    admin.insert_message(message()).await.unwrap();
    let mut received = start_back_end(&path, Code::Ok);
    assert!(!result(&mut admin).await.failed);
    assert_eq!(received.recv().await.unwrap(), message());
}

// One call, and the result is there long before upstream's 30 s.
#[tokio::test]
async fn p_172_and_173_refused_message_has_failed_at_once_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("service");
    let mut received = start_back_end(&path, Code::InvalidArgument);
    let (_server, mut admin) = start_with_back_end_at(&path).await;
    admin.insert_message(message()).await.unwrap();
    let result = result(&mut admin).await;
    assert!(result.failed);
    let reason = result.failed_reason;
    assert!(
        reason.contains("InvalidArgument: cannot read this"),
        "{reason}"
    );
    assert_eq!(received.recv().await.unwrap(), message());
    assert!(received.is_empty());
}

#[tokio::test]
async fn p_174_server_does_not_start_with_neither_insecure_nor_certificates() {
    let config = grpcservice::Config {
        target: "localhost:1".to_owned(),
        ..grpcservice::Config::default()
    };
    let Err(text) = start_server(&config).await else {
        panic!("the server started");
    };
    assert!(text.contains("GRR") && text.contains("cert_file"), "{text}");
}
