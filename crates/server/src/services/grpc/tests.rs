//! Against small services in this process.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use fleethold_proto::Any;
use fleethold_proto::fleetspeak::grpcservice::processor_server::{Processor, ProcessorServer};
use fleethold_proto::fleetspeak::{Address, Annotations, EmptyMessage, ValidationInfo};
use futures::FutureExt;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::Response;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use super::*;

/// More than any call in these tests needs.
const PLENTY: Duration = Duration::from_secs(20);

/// Enough for a few calls, far from upstream's 30 s.
const SHORT: Duration = Duration::from_millis(400);

/// Long enough for some handshakes on a busy machine.
const HANDSHAKES: Duration = Duration::from_secs(3);

/// Answers with some codes, then with success, and remembers what it got.
#[derive(Clone, Default)]
struct Scripted {
    codes: Arc<Mutex<Vec<Code>>>,
    calls: Arc<Mutex<Vec<Request<Message>>>>,
    /// Answers with this code whenever the script is over.
    afterwards: Option<Code>,
    hangs: bool,
}

#[tonic::async_trait]
impl Processor for Scripted {
    async fn process(&self, request: Request<Message>) -> Result<Response<EmptyMessage>, Status> {
        self.calls.lock().unwrap().push(request);
        if self.hangs {
            std::future::pending().await
        }
        let code = self.codes.lock().unwrap().pop().or(self.afterwards);
        match code {
            Some(code) => Err(Status::new(code, "as scripted")),
            None => Ok(Response::new(EmptyMessage {})),
        }
    }
}

impl Scripted {
    fn always(code: Code) -> Self {
        Self {
            afterwards: Some(code),
            ..Self::default()
        }
    }

    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// Serves on a free port.
    async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = Server::builder().add_service(ProcessorServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        addr
    }

    async fn serve_tls(&self, certificates: &str, key: &str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let identity = Identity::from_pem(certificates, key);
        let server = Server::builder()
            .tls_config(ServerTlsConfig::new().identity(identity))
            .unwrap()
            .add_service(ProcessorServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        addr
    }

    /// Serves on a socket until the sender is used, then closes all connections.
    fn serve_unix(&self, path: &Path) -> (oneshot::Sender<()>, JoinHandle<()>) {
        let listener = UnixListenerStream::new(UnixListener::bind(path).unwrap());
        let server = Server::builder().add_service(ProcessorServer::new(self.clone()));
        let (stop, stopped) = oneshot::channel();
        let serving = server.serve_with_incoming_shutdown(listener, stopped.map(drop));
        (stop, tokio::spawn(serving.map(Result::unwrap)))
    }
}

fn plain(target: impl ToString) -> GrpcService {
    let config = Config {
        target: target.to_string(),
        insecure: true,
        ..Config::default()
    };
    GrpcService::from_config("GRR", &config).unwrap()
}

fn message() -> Message {
    let address = |service: &str| {
        Some(Address {
            client_id: Bytes::new(),
            service_name: service.to_owned(),
        })
    };
    Message {
        message_id: Bytes::from_static(&[7; 32]),
        source: address("agent"),
        destination: address("GRR"),
        message_type: "GrrMessage".to_owned(),
        data: Some(Any {
            type_url: "type.googleapis.com/x".to_owned(),
            value: Bytes::from_static(b"payload"),
        }),
        validation_info: Some(ValidationInfo {
            tags: [("key".to_owned(), "value".to_owned())].into(),
        }),
        annotations: Some(Annotations::default()),
        is_blocklisted_source: true,
        background: true,
        ..Message::default()
    }
}

async fn process(service: &GrpcService, budget: Duration) -> Result<(), ServiceError> {
    service.process(&message(), Instant::now() + budget).await
}

#[test]
fn p_172_codes_have_the_classes_of_the_table() {
    for (code, expected) in [
        (Code::Ok, Class::Unclear),
        (Code::Cancelled, Class::Temporary),
        (Code::Unknown, Class::Unclear),
        (Code::InvalidArgument, Class::Permanent),
        (Code::DeadlineExceeded, Class::Temporary),
        (Code::NotFound, Class::Permanent),
        (Code::AlreadyExists, Class::Permanent),
        (Code::PermissionDenied, Class::Temporary),
        (Code::ResourceExhausted, Class::Unclear),
        (Code::FailedPrecondition, Class::Permanent),
        (Code::Aborted, Class::Temporary),
        (Code::OutOfRange, Class::Permanent),
        (Code::Unimplemented, Class::Permanent),
        (Code::Internal, Class::Unclear),
        (Code::Unavailable, Class::Temporary),
        (Code::DataLoss, Class::Permanent),
        (Code::Unauthenticated, Class::Temporary),
    ] {
        assert_eq!(class(code), expected, "{code:?}");
    }
}

#[test]
fn p_172_unclear_error_is_final_only_after_as_long_as_upstream_tries() {
    for (class, seconds, expected) in [
        (Class::Permanent, 0, true),
        (Class::Permanent, 30, true),
        (Class::Temporary, 5, false),
        (Class::Temporary, 3600, false),
        (Class::Unclear, 5, false),
        (Class::Unclear, 24, false),
        (Class::Unclear, 25, true),
        (Class::Unclear, 30, true),
    ] {
        let found = is_final(class, Duration::from_secs(seconds));
        assert_eq!(found, expected, "{class:?} after {seconds} s");
    }
}

#[tokio::test]
async fn p_170_service_gets_the_whole_message_and_the_time_left() {
    let back_end = Scripted::default();
    let service = plain(back_end.serve().await);
    process(&service, PLENTY).await.unwrap();
    let request = back_end.calls.lock().unwrap().pop().unwrap();
    assert_eq!(request.get_ref(), &message());
    let timeout = request.metadata().get("grpc-timeout").unwrap();
    let timeout = timeout.to_str().unwrap();
    let micros: u64 = timeout.strip_suffix('u').unwrap().parse().unwrap();
    assert!((1..=20_000_000).contains(&micros), "{timeout}");
}

#[tokio::test]
async fn p_173_permanent_code_ends_the_tries_at_once() {
    let back_end = Scripted::always(Code::InvalidArgument);
    let addr = back_end.serve().await;
    let error = process(&plain(addr), PLENTY).await.unwrap_err();
    let expected = format!("{addr}: InvalidArgument: as scripted");
    assert_eq!(error, ServiceError::Permanent(expected));
    assert_eq!(back_end.calls(), 1);
}

#[tokio::test]
async fn other_codes_are_tried_again_until_success() {
    for code in [Code::Unknown, Code::Unavailable, Code::Internal] {
        let back_end = Scripted::default();
        *back_end.codes.lock().unwrap() = vec![code; 3];
        let service = plain(back_end.serve().await);
        process(&service, PLENTY).await.unwrap();
        assert_eq!(back_end.calls(), 4, "{code:?}");
    }
}

#[tokio::test]
async fn short_try_leaves_unclear_and_temporary_errors_to_a_retry() {
    for code in [Code::Unknown, Code::ResourceExhausted, Code::Aborted] {
        let back_end = Scripted::always(code);
        let service = plain(back_end.serve().await);
        let error = process(&service, SHORT).await.unwrap_err();
        assert!(matches!(error, ServiceError::Temporary(_)), "{error:?}");
        assert!(back_end.calls() > 1, "{code:?}");
    }
}

#[tokio::test]
async fn silent_service_holds_a_message_until_the_deadline_only() {
    let back_end = Scripted {
        hangs: true,
        ..Scripted::default()
    };
    let service = plain(back_end.serve().await);
    let error = process(&service, SHORT).await.unwrap_err();
    assert!(matches!(error, ServiceError::Temporary(_)), "{error:?}");
}

#[tokio::test]
async fn broken_connection_is_no_answer_of_the_service() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let service = plain(listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            drop(connection);
        }
    });
    let status = service.call(&message(), Instant::now() + PLENTY).await;
    assert_eq!(code(&status.unwrap_err()), Code::Unavailable);
}

#[tokio::test]
async fn p_171_service_may_start_after_the_server_and_may_be_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("service");
    let service = plain(format!("unix:{}", path.display()));
    let error = process(&service, SHORT).await.unwrap_err();
    let ServiceError::Temporary(text) = error else {
        panic!("{error:?}");
    };
    assert!(text.contains("Unavailable"), "{text}");

    let back_end = Scripted::default();
    let (stop, stopped) = back_end.serve_unix(&path);
    process(&service, PLENTY).await.unwrap();
    assert_eq!(back_end.calls(), 1);

    stop.send(()).unwrap();
    stopped.await.unwrap();
    let error = process(&service, SHORT).await.unwrap_err();
    assert!(matches!(error, ServiceError::Temporary(_)), "{error:?}");
    std::fs::remove_file(&path).unwrap();
    let _running = back_end.serve_unix(&path);
    process(&service, PLENTY).await.unwrap();
    assert_eq!(back_end.calls(), 2);
}

#[tokio::test]
async fn p_175_self_signed_certificate_is_trusted_when_it_is_configured() {
    for is_ca in [
        IsCa::Ca(BasicConstraints::Unconstrained),
        IsCa::ExplicitNoCa,
        IsCa::NoCa,
    ] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.is_ca = is_ca;
        let certificate = params.self_signed(&key).unwrap().pem();
        let back_end = Scripted::default();
        let addr = back_end.serve_tls(&certificate, &key.serialize_pem()).await;
        let service = encrypted("localhost", addr, &certificate);
        process(&service, PLENTY)
            .await
            .unwrap_or_else(|error| panic!("{is_ca:?}: {error:?}"));
    }
}

#[tokio::test]
async fn p_175_certificate_must_be_signed_by_a_configured_one_and_name_the_host() {
    let (issuer, certificate, key) = signed("127.0.0.1");
    let back_end = Scripted::default();
    let addr = back_end.serve_tls(&certificate, &key).await;
    let service = encrypted("127.0.0.1", addr, &issuer);
    process(&service, PLENTY).await.unwrap();

    let (stranger, ..) = signed("127.0.0.1");
    for (host, trusted) in [
        ("127.0.0.1", &stranger),
        ("localhost", &issuer),
        ("localhost", &certificate),
    ] {
        let service = encrypted(host, addr, trusted);
        let error = process(&service, HANDSHAKES).await.unwrap_err();
        let ServiceError::Temporary(text) = error else {
            panic!("{error:?}");
        };
        assert!(text.contains("certificate"), "{text}");
    }
    assert_eq!(back_end.calls(), 1);
}

#[tokio::test]
async fn p_175_expired_certificate_is_refused_though_it_is_configured() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2001, 1, 1);
    params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    let certificate = params.self_signed(&key).unwrap().pem();
    let back_end = Scripted::default();
    let addr = back_end.serve_tls(&certificate, &key.serialize_pem()).await;
    let service = encrypted("localhost", addr, &certificate);
    let error = process(&service, HANDSHAKES).await.unwrap_err();
    assert!(matches!(error, ServiceError::Temporary(_)), "{error:?}");
    assert_eq!(back_end.calls(), 0);
}

#[tokio::test]
async fn p_174_wrong_configuration_is_refused_with_service_and_field() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let empty = file("empty", "");
    let damaged = file(
        "damaged",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let missing = dir.path().join("missing").display().to_string();
    let target = "localhost:1";
    for (target, insecure, cert_file, expected) in [
        (target, false, "", "`insecure: true`"),
        (target, false, &*missing, "`cert_file`"),
        (target, false, &*empty, "`cert_file`"),
        (target, false, &*damaged, "`cert_file`"),
        ("", true, "", "`target`"),
        ("localhost", true, "", "`target`"),
        ("a host:1", true, "", "`target`"),
    ] {
        let config = Config {
            target: target.to_owned(),
            insecure,
            cert_file: cert_file.to_owned(),
        };
        let Err(error) = GrpcService::from_config("GRR", &config) else {
            panic!("{config:?}");
        };
        let text = error.to_string();
        assert!(text.contains("service `GRR`"), "{text}");
        assert!(text.contains(expected), "{text}");
    }
}

/// Returns a CA's certificate, and certificate and key of a service under it.
fn signed(host: &str) -> (String, String, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([host.to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    (issuer.pem(), certificate.pem(), key.serialize_pem())
}

fn encrypted(host: &str, addr: SocketAddr, trusted: &str) -> GrpcService {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trusted.pem");
    std::fs::write(&path, trusted).unwrap();
    let config = Config {
        target: format!("{host}:{}", addr.port()),
        cert_file: path.display().to_string(),
        ..Config::default()
    };
    GrpcService::from_config("GRR", &config).unwrap()
}
