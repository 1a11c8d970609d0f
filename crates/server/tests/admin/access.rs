//! Callers that show who they are, over real connections (S10, S12, S16).

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use fleethold_proto::fleetspeak::server::{
    BlacklistClientRequest, CreateBroadcastRequest, ListClientsRequest,
};
use fleethold_server::{AccessList, StartError};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use tonic::Request;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::*;

fn sha256(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn certificate(key: &KeyPair) -> String {
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.self_signed(key).unwrap().pem()
}

/// A server that wants to know its callers, and the certificate it shows.
async fn guarded(access: &str) -> (Server, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = certificate(&key);
    let mut config = Config {
        admin: Some(AdminConfig {
            listen: "127.0.0.1:0".to_owned(),
        }),
        ..Config::default()
    };
    config.admin_security.certificate_and_key_pem =
        Some((certificate.clone(), key.serialize_pem()));
    config.admin_security.access = Some(AccessList::parse(access).unwrap());
    (start(config).await.unwrap(), certificate)
}

async fn start(config: Config) -> Result<Server, StartError> {
    let clock = Arc::new(ManualClock::at(1_000));
    let random = Arc::new(Random::seeded(1));
    let store = MemoryStore::new(Arc::<ManualClock>::clone(&clock), Arc::clone(&random));
    Server::start(config, Arc::new(store), clock, random).await
}

async fn connect(server: &Server, root: &str, identity: Option<Identity>) -> Channel {
    let mut tls = ClientTlsConfig::new()
        .domain_name("localhost")
        .ca_certificate(Certificate::from_pem(root));
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    Endpoint::from_shared(format!("https://{}", server.admin_addr().unwrap()))
        .unwrap()
        .tls_config(tls)
        .unwrap()
        .connect()
        .await
        .unwrap()
}

fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

#[tokio::test]
async fn s10_token_opens_what_its_roles_allow_over_tls() {
    let access = format!("token alice {} read", sha256(b"secret"));
    let (server, root) = guarded(&access).await;
    let mut admin = AdminClient::new(connect(&server, &root, None).await);
    let list = ListClientsRequest::default;
    let answer = admin.list_clients(with_token("secret", list())).await;
    assert!(answer.unwrap().into_inner().clients.is_empty());
    refused(admin.list_clients(list()).await, Code::Unauthenticated);
    let guess = admin.list_clients(with_token("guess", list())).await;
    refused(guess, Code::Unauthenticated);
    let blacklist = BlacklistClientRequest::default();
    let text = refused(
        admin
            .blacklist_client(with_token("secret", blacklist))
            .await,
        Code::PermissionDenied,
    );
    assert_eq!(text, "`alice` has no role `revoke`");
    let payloads = GetPendingMessagesRequest {
        want_data: true,
        ..GetPendingMessagesRequest::default()
    };
    let answer = admin
        .get_pending_messages(with_token("secret", payloads))
        .await;
    assert!(refused(answer, Code::PermissionDenied).contains("payload"));

    // Another list, and the old token is worth nothing.
    let access = format!("token bob {} all", sha256(b"other"));
    server.set_admin_access(AccessList::parse(&access).unwrap());
    let old = admin.list_clients(with_token("secret", list())).await;
    refused(old, Code::Unauthenticated);
    admin
        .list_clients(with_token("other", list()))
        .await
        .unwrap();
}

#[tokio::test]
async fn s10_payloads_of_broadcasts_are_for_the_role_payload() {
    let access = format!(
        "token alice {} read,broadcast\ntoken bob {} read,payload",
        sha256(b"alice's"),
        sha256(b"bob's")
    );
    let (server, root) = guarded(&access).await;
    let mut admin = AdminClient::new(connect(&server, &root, None).await);
    let create = CreateBroadcastRequest {
        broadcast: Some(Broadcast {
            broadcast_id: Bytes::from_static(&[1; 8]),
            source: Some(Address {
                service_name: "hello".to_owned(),
                ..Address::default()
            }),
            data: Some(Any {
                value: Bytes::from_static(b"payload"),
                ..Any::default()
            }),
            ..Broadcast::default()
        }),
        limit: 10,
    };
    let created = admin.create_broadcast(with_token("alice's", create));
    created.await.unwrap();
    for (token, expected) in [("alice's", None), ("bob's", Some(&b"payload"[..]))] {
        let list = ListActiveBroadcastsRequest {
            service_name: "hello".to_owned(),
        };
        let listed = admin.list_active_broadcasts(with_token(token, list)).await;
        let listed = listed.unwrap().into_inner().broadcasts;
        assert_eq!(listed.len(), 1, "{token}");
        let data = listed[0].data.as_ref().map(|data| &data.value[..]);
        assert_eq!(data, expected, "{token}");
    }
}

#[tokio::test]
async fn s10_client_certificate_is_known_by_its_key() {
    let key = KeyPair::generate().unwrap();
    let access = format!(
        "certificate backup {} read",
        sha256(&key.subject_public_key_info())
    );
    let (server, root) = guarded(&access).await;
    let identity = |key: &KeyPair| Identity::from_pem(certificate(key), key.serialize_pem());
    let channel = connect(&server, &root, Some(identity(&key))).await;
    let list = ListClientsRequest::default();
    AdminClient::new(channel)
        .list_clients(list.clone())
        .await
        .unwrap();

    let stranger = identity(&KeyPair::generate().unwrap());
    let channel = connect(&server, &root, Some(stranger)).await;
    let answer = AdminClient::new(channel).list_clients(list).await;
    refused(answer, Code::Unauthenticated);
}

#[tokio::test]
async fn s10_interface_that_others_reach_does_not_start_without_tls_and_access_list() {
    let open = || Config {
        admin: Some(AdminConfig {
            listen: "0.0.0.0:0".to_owned(),
        }),
        ..Config::default()
    };
    let refused = start(open()).await;
    assert!(matches!(refused.err(), Some(StartError::OpenAdmin { .. })));
    let mut with_access_only = open();
    with_access_only.admin_security.access = Some(AccessList::default());
    let refused = start(with_access_only).await;
    assert!(matches!(refused.err(), Some(StartError::OpenAdmin { .. })));
    let mut insecure = open();
    insecure.admin_security.insecure = true;
    start(insecure).await.unwrap().stop().await;
}

#[tokio::test]
async fn connection_that_never_finishes_its_handshake_delays_no_other() {
    let access = format!("token alice {} read", sha256(b"secret"));
    let (server, root) = guarded(&access).await;
    let mut silent = Vec::new();
    for _ in 0..10 {
        let addr = server.admin_addr().unwrap();
        silent.push(tokio::net::TcpStream::connect(addr).await.unwrap());
    }
    let mut admin = AdminClient::new(connect(&server, &root, None).await);
    let call = admin.keep_alive(with_token("secret", EmptyMessage {}));
    call.await.unwrap();
}

#[tokio::test]
async fn health_and_reflection_answer_beside_the_admin_interface() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let bed = Bed::new().await;
    let url = format!("http://{}", bed.server.admin_addr().unwrap());
    let endpoint = Endpoint::from_shared(url).unwrap();
    let channel = endpoint.connect().await.unwrap();
    for service in ["", "fleetspeak.server.Admin"] {
        let mut health = HealthClient::new(channel.clone());
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let mut reflection = ServerReflectionClient::new(channel);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let requests = tokio_stream::once(request);
    let mut answers = reflection
        .server_reflection_info(requests)
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<_> = services.service.into_iter().map(|s| s.name).collect();
    assert!(
        names.contains(&"fleetspeak.server.Admin".to_owned()),
        "{names:?}"
    );
}
