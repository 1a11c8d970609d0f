//! Whom a server tells, and what others that are slow, dead or of another kind
//! do to it.

use std::collections::BTreeSet;
use std::convert::Infallible;

use fleethold_store::{ClientData, ClientStore, ContactData};
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

use super::*;

/// A stand-in for another server: hands on what is posted to it.
struct Peer {
    address: SocketAddr,
    requests: mpsc::UnboundedReceiver<(String, Bytes)>,
    /// How many requests it answers.
    answers: Arc<Semaphore>,
    connections: mpsc::UnboundedReceiver<()>,
}

impl Peer {
    /// Starts one that answers `status` to requests whose path begins with `known`, else 404.
    async fn start(known: &'static str, status: StatusCode) -> Self {
        let listener = TcpListener::bind(ANY_PORT).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (received, requests) = mpsc::unbounded_channel();
        let (accepted, connections) = mpsc::unbounded_channel();
        let answers = Arc::new(Semaphore::new(0));
        let permits = Arc::clone(&answers);
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let _nobody_counts = accepted.send(());
                let (received, permits) = (received.clone(), Arc::clone(&permits));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (received, permits) = (received.clone(), Arc::clone(&permits));
                    async move {
                        let path = request.uri().path().to_owned();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let answer = match path.starts_with(known) {
                            true => status,
                            false => StatusCode::NOT_FOUND,
                        };
                        let _nobody_listens = received.send((path, body));
                        permits.acquire().await.unwrap().forget();
                        let mut response = http::Response::new(Full::<Bytes>::default());
                        *response.status_mut() = answer;
                        Ok::<_, Infallible>(response)
                    }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(tcp), service);
                tokio::spawn(async { drop(connection.await) });
            }
        });
        Self {
            address,
            requests,
            answers,
            connections,
        }
    }

    async fn request(&mut self) -> (String, Bytes) {
        let request = soon("a notification", self.requests.recv()).await;
        request.unwrap()
    }
}

impl Installation {
    /// Adds a client that is said to stream to an address.
    async fn client_at(&self, id: u64, address: &str) -> ClientId {
        let client = ClientId::new(id.to_be_bytes());
        let data = ClientData::default();
        self.store.add_client(client, &data).await.unwrap();
        let contact = ContactData {
            client_id: client,
            nonce_sent: 1,
            nonce_received: 0,
            addr: String::new(),
            client_clock: None,
            streaming_to: Some(address.to_owned()),
            labels: Vec::new(),
        };
        self.store.record_client_contact(&contact).await.unwrap();
        client
    }
}

const EVERYTHING: usize = Semaphore::MAX_PERMITS;

#[tokio::test]
async fn p_214_message_inserted_at_an_admin_only_server_reaches_the_stream_at_a_frontend() {
    let fleet = Installation::new();
    let admin_only = fleet.server(&[Part::Admin], |_| {}).await;
    let parts = [Part::Agents, Part::Notifications];
    let frontend = fleet.server(&parts, |_| {}).await;
    assert_eq!(admin_only.agents_addr(), None);
    assert_eq!(admin_only.notifications_addr(), None);
    assert_eq!(frontend.admin_addr(), None);
    let (agent, mut stream) = fleet.stream(&frontend).await;
    for number in 0..20 {
        fleet.insert(&admin_only, agent.id, number).await;
        assert_eq!(next_types(&mut stream).await, [number.to_string()]);
    }
    let client = fleet.store.list_clients(&[agent.id]).await.unwrap();
    assert_eq!(
        client[0].last_contact_streaming_to,
        frontend.notifications_addr().unwrap().to_string()
    );
    let sent = "fleethold_notifications_sent_total";
    until_metric(&admin_only, sent, "sent", 20.0).await;
    admin_only.stop().await;
    frontend.stop().await;
}

#[tokio::test]
async fn s19_servers_with_one_secret_tell_each_other_of_messages_and_of_blacklisting() {
    let fleet = Installation::new();
    let parts = [Part::Agents, Part::Admin, Part::Notifications];
    let with_secret =
        |config: &mut Config| config.notifications.secret = Some(secret("the servers' secret"));
    let servers = [
        fleet.server(&parts, with_secret).await,
        fleet.server(&parts, with_secret).await,
    ];
    let mut streams = Vec::new();
    for server in &servers {
        streams.push(fleet.stream(server).await);
    }
    for (number, server) in (0..).zip(&servers) {
        for (agent, stream) in &mut streams {
            fleet.insert(server, agent.id, number).await;
            assert_eq!(next_types(stream).await, [number.to_string()]);
        }
    }
    // The stream's server knows the client well, and is told to ask again.
    let (agent, stream) = &mut streams[1];
    let request = fleethold_proto::fleetspeak::server::BlacklistClientRequest {
        client_id: agent.id.to_bytes(),
    };
    let mut admin = admin(&servers[0]).await;
    admin.blacklist_client(request).await.unwrap();
    assert_eq!(next_types(stream).await, ["RekeyRequest"]);
    for server in servers {
        let refused = metric(&server, "fleethold_notifications_received_total", "refused");
        assert_eq!(refused.await, 0.0);
        server.stop().await;
    }
}

#[tokio::test]
async fn s17_servers_whose_secrets_differ_do_not_believe_each_other() {
    let fleet = Installation::new();
    let admin_only = fleet
        .server(&[Part::Admin], |config| {
            config.notifications.secret = Some(secret("the one secret..."));
        })
        .await;
    let parts = [Part::Agents, Part::Admin, Part::Notifications];
    let frontend = fleet
        .server(&parts, |config| {
            config.notifications.secret = Some(secret("the other secret."));
        })
        .await;
    let (agent, mut stream) = fleet.stream(&frontend).await;
    fleet.insert(&admin_only, agent.id, 1).await;
    until_metric(
        &admin_only,
        "fleethold_notifications_sent_total",
        "failed",
        1.0,
    )
    .await;
    let received = "fleethold_notifications_received_total";
    assert_eq!(metric(&frontend, received, "refused").await, 1.0);
    // The message itself is not lost.
    fleet.insert(&frontend, agent.id, 2).await;
    let types: BTreeSet<_> = next_types(&mut stream).await.into_iter().collect();
    assert_eq!(types, BTreeSet::from(["1".to_owned(), "2".to_owned()]));
    admin_only.stop().await;
    frontend.stop().await;
}

#[tokio::test]
async fn p_167_dead_server_delays_neither_inserts_nor_news_for_others() {
    let fleet = Installation::new();
    let mut dead = Peer::start("/", StatusCode::OK).await;
    let frontend = fleet
        .server(&[Part::Agents, Part::Notifications], |_| {})
        .await;
    let admin_only = fleet.server(&[Part::Admin], |_| {}).await;
    let lost = fleet.client_at(1, &dead.address.to_string()).await;
    let (agent, mut stream) = fleet.stream(&frontend).await;

    fleet.insert(&admin_only, lost, 0).await;
    dead.request().await;
    // From here on it has a call that it never answers.
    for number in 0..50 {
        fleet.insert(&admin_only, lost, 1 + number).await;
        fleet.insert(&admin_only, agent.id, number).await;
        assert_eq!(next_types(&mut stream).await, [number.to_string()]);
    }
    let sent = "fleethold_notifications_sent_total";
    until_metric(&admin_only, sent, "sent", 50.0).await;
    until_metric(&admin_only, sent, "failed", 1.0).await;
    admin_only.stop().await;
    frontend.stop().await;
}

#[tokio::test]
async fn stock_server_is_told_in_its_own_form() {
    let fleet = Installation::new();
    let mut stock = Peer::start("/client/", StatusCode::OK).await;
    stock.answers.add_permits(EVERYTHING / 2);
    let admin_only = fleet
        .server(&[Part::Admin], |config| {
            config.notifications.secret = Some(secret("stock servers have none"));
        })
        .await;
    let client = fleet.client_at(7, &stock.address.to_string()).await;
    fleet.insert(&admin_only, client, 1).await;
    let (path, _) = stock.request().await;
    assert_eq!(path, "/fleethold/v1/notifications");
    for number in 2..5 {
        let (path, body) = stock.request().await;
        assert_eq!((path, body.len()), (format!("/client/{client}"), 0));
        // It is not asked for our form any more.
        fleet.insert(&admin_only, client, number).await;
    }
    stock.request().await;
    let mut connections = 0;
    while stock.connections.try_recv().is_ok() {
        connections += 1;
    }
    assert!(connections < 5, "connections are used again");
    admin_only.stop().await;
}

#[tokio::test]
async fn nobody_is_told_of_clients_that_stream_nowhere() {
    let fleet = Installation::new();
    let mut peer = Peer::start("/", StatusCode::OK).await;
    peer.answers.add_permits(EVERYTHING / 2);
    let admin_only = fleet.server(&[Part::Admin], |_| {}).await;
    let address = peer.address.to_string();
    let gone = fleet.client_at(1, &address).await;
    fleet.clock.advance(Duration::from_secs(600));
    let polling = fleet.client_at(2, "").await;
    let local = fleet.client_at(3, "local").await;
    let nonsense = fleet.client_at(4, "no address").await;
    let here = fleet.client_at(5, &address).await;
    for client in [gone, polling, local, nonsense, here] {
        fleet.insert(&admin_only, client, 1).await;
    }
    // Those before it were looked up before it.
    let (_, body) = peer.request().await;
    assert_eq!(body, [&[0], &here.as_bytes()[..]].concat());
    admin_only.stop().await;
}
