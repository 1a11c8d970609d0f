//! Several servers on one store: messages reach agents wherever they are, and
//! nothing happens twice (protocol specification section 3.9, P-167, P-214).
//!
//! All servers are parts of one process and share a store in memory, except in `mariadb`.

#[path = "../agent/mod.rs"]
mod agent;
mod listener;
mod mariadb;
mod peers;
mod sharing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agent::{Agent, AgentStream, Authority, StreamOptions, soon};
use bytes::Bytes;
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_proto::fleetspeak::{Address, Message};
use fleethold_server::config::NotificationConfig;
use fleethold_server::{AdminConfig, AgentsConfig, Config, NotificationSecret, Server};
use fleethold_store::clock::timestamp;
use fleethold_store::{
    ClientId, Clock, ManualClock, MemoryStore, MessageId, MessageStore, Random, Store,
};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::Channel;

const ANY_PORT: &str = "127.0.0.1:0";

/// One store, and what the servers on it have in common.
struct Installation {
    store: Arc<MemoryStore>,
    clock: Arc<ManualClock>,
    authority: Authority,
}

impl Installation {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::at(1_700_000_000));
        let any_clock = Arc::<ManualClock>::clone(&clock);
        let store = MemoryStore::new(any_clock, Arc::new(Random::seeded(1)));
        Self {
            store: Arc::new(store),
            clock,
            authority: Authority::new(),
        }
    }

    /// Starts a server on the store; its streams look at it only when they are told to.
    async fn server(&self, parts: &[Part], change: impl FnOnce(&mut Config)) -> Server {
        let mut config = Config {
            stream_look: Duration::ZERO,
            stats_listen: Some(ANY_PORT.to_owned()),
            broadcast_poll: Duration::from_secs(1),
            stop_limit: Duration::from_secs(1),
            ..Config::default()
        };
        for part in parts {
            match part {
                Part::Agents => {
                    config.agents = Some(AgentsConfig {
                        listen: ANY_PORT.to_owned(),
                        certificates_pem: self.authority.certificates_pem.clone(),
                        key_pem: self.authority.key_pem.clone(),
                        ..AgentsConfig::default()
                    });
                }
                Part::Admin => {
                    config.admin = Some(AdminConfig {
                        listen: ANY_PORT.to_owned(),
                    });
                }
                Part::Notifications => {
                    config.notifications = NotificationConfig {
                        listen: Some(ANY_PORT.to_owned()),
                        ..NotificationConfig::default()
                    };
                }
            }
        }
        change(&mut config);
        let store: Arc<dyn Store> = Arc::new(self.store.share());
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&self.clock);
        let random = Arc::new(Random::from_os());
        Server::start(config, store, clock, random).await.unwrap()
    }

    /// Opens the stream of a new agent.
    async fn stream(&self, server: &Server) -> (Agent, AgentStream) {
        let agent = Agent::new(server.agents_addr().unwrap(), &self.authority);
        let stream = agent.stream(StreamOptions::default()).await;
        (agent, stream)
    }

    fn message(&self, to: Option<ClientId>, service: &str, number: u32) -> Message {
        let source_id = number.to_be_bytes();
        Message {
            message_id: MessageId::for_source(to, service, &source_id).to_bytes(),
            source: Some(Address {
                service_name: "greeter".to_owned(),
                ..Address::default()
            }),
            destination: Some(Address {
                client_id: to.map(ClientId::to_bytes).unwrap_or_default(),
                service_name: service.to_owned(),
            }),
            message_type: number.to_string(),
            creation_time: Some(timestamp(self.clock.now())),
            ..Message::default()
        }
    }

    /// Inserts a message for a client at a server.
    async fn insert(&self, server: &Server, client: ClientId, number: u32) {
        let message = self.message(Some(client), "hello", number);
        let inserted = admin(server).await.insert_message(message).await;
        inserted.unwrap();
    }
}

/// What a server is for.
#[derive(Clone, Copy)]
enum Part {
    Agents,
    Admin,
    Notifications,
}

async fn admin(server: &Server) -> AdminClient<Channel> {
    let addr = server.admin_addr().unwrap();
    AdminClient::connect(format!("http://{addr}"))
        .await
        .unwrap()
}

/// Returns the types of the messages in the next frame.
async fn next_types(stream: &mut AgentStream) -> Vec<String> {
    let frame = stream.frame().await.expect("the stream is open");
    let types = frame.messages.into_iter();
    types.map(|message| message.message_type).collect()
}

fn secret(text: &str) -> NotificationSecret {
    NotificationSecret::new(text.as_bytes()).unwrap()
}

/// Returns the sum of the series of a metric whose text contains `part`.
async fn metric(server: &Server, name: &str, part: &str) -> f64 {
    let stats = server.stats_addr().unwrap();
    let (status, text) = send(stats, "GET", "/metrics", &[], b"").await;
    assert_eq!(status, StatusCode::OK);
    let lines = text.lines();
    lines
        .filter(|line| line.starts_with(name) && line.contains(part))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// Waits until a metric has reached a value.
async fn until_metric(server: &Server, name: &str, part: &str, least: f64) {
    let reached = async {
        while metric(server, name, part).await < least {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(&format!("{name} {part}"), Box::pin(reached)).await;
}

/// Sends a request over a connection of its own.
async fn send(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (StatusCode, String) {
    let tcp = TcpStream::connect(to).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in [("host", "server")].iter().chain(headers) {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::copy_from_slice(body)));
    let answer = soon("an answer", sender.send_request(request.unwrap())).await;
    let answer = answer.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}
