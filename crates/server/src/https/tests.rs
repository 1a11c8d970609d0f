//! Limits of time, connections and memory, with shorter ones than in use.

#[path = "../../tests/agent/mod.rs"]
mod agent;
mod limits;

use std::net::SocketAddr;

use bytes::Bytes;
use fleethold_proto::fleetspeak::{Address, ContactData, Message};
use fleethold_proto::{Any, Timestamp};
use fleethold_store::{
    ClientId, Clock, ManualClock, MemoryStore, MessageId, MessageStore, Random, Store,
};
use http::{StatusCode, Version};
use tokio::io::AsyncReadExt;

use self::agent::{Agent, Authority, StreamOptions, get, over_http2, post, soon};
use super::*;
use crate::config::Config;
use crate::engine::Engine;
use crate::streams::Streams;
use crate::tls;

struct Bed {
    server: AgentServer,
    addr: SocketAddr,
    authority: Authority,
    store: Arc<MemoryStore>,
    streams: Arc<Streams>,
    gate: Arc<Gate>,
}

impl Bed {
    async fn with(change: impl FnOnce(&mut Options, &mut Limits)) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(1_000_000));
        let random = Arc::new(Random::seeded(1));
        let memory = Arc::new(MemoryStore::new(Arc::clone(&clock), Arc::clone(&random)));
        let store = Arc::clone(&memory) as Arc<dyn Store>;
        let authority = Authority::new();
        let tls = tls::server_config(&authority.certificates_pem, &authority.key_pem);
        let (tls, _) = tls.unwrap();
        let mut options = Options::new(Some(Arc::new(tls)));
        let mut limits = Limits::default();
        change(&mut options, &mut limits);
        let config = Config {
            limits,
            ..Config::default()
        };
        let engine = Engine::new(&config, store, clock, random);
        let engine = Arc::new(engine.unwrap_or_else(|error| panic!("{error}")));
        let streams = Arc::clone(&engine.streams);
        let gate = Arc::clone(&engine.gate);
        let contacts = Arc::new(Contacts {
            engine,
            required_label: None,
            streaming_to: "here".to_owned(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = AgentServer::start(listener, options, contacts);
        Self {
            server,
            addr,
            authority,
            store: memory,
            streams,
            gate,
        }
    }

    fn agent(&self) -> Agent {
        Agent::new(self.addr, &self.authority)
    }

    /// Stores messages for a client and wakes its stream.
    async fn send(&self, client: ClientId, count: u32, bytes: usize) {
        let value = Bytes::from(vec![7; bytes]);
        let messages: Vec<_> = (0..count)
            .map(|number| Message {
                message_id: MessageId::for_source(Some(client), "", &number.to_be_bytes())
                    .to_bytes(),
                creation_time: Some(Timestamp {
                    seconds: 1,
                    nanos: 0,
                }),
                source: Some(Address {
                    service_name: "greeter".to_owned(),
                    ..Address::default()
                }),
                destination: Some(Address {
                    client_id: client.to_bytes(),
                    service_name: "hello".to_owned(),
                }),
                data: Some(Any {
                    value: value.clone(),
                    ..Any::default()
                }),
                ..Message::default()
            })
            .collect();
        self.store.store_messages(&messages, None).await.unwrap();
        self.streams.wake(client);
    }

    /// Waits until only the task that accepts connections is left.
    async fn until_nothing_runs(&self) {
        let idle = async {
            while self.server.tasks.len() > 1 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the end of all connections", idle).await;
    }
}

fn both_versions() -> [StreamOptions; 2] {
    [Version::HTTP_11, Version::HTTP_2].map(|version| StreamOptions {
        version,
        ..StreamOptions::default()
    })
}

#[tokio::test]
async fn p_076_and_077_stream_winds_down_and_ends_when_its_time_is_over() {
    let bed = Bed::with(|options, _| {
        options.stream_lifetime = Duration::from_millis(1000)..Duration::from_millis(1200);
        options.done_sending_before_end = Duration::from_millis(600);
    })
    .await;
    for options in both_versions() {
        let agent = bed.agent();
        let mut stream = agent.stream(options).await;
        assert!(stream.frame().await.unwrap().done_sending);
        bed.send(agent.id, 1, 0).await;
        stream.send_contact(&ContactData::default());
        stream.send_contact(&ContactData::default());
        assert_eq!(stream.frame().await.unwrap().ack_index, 1);
        assert_eq!(stream.frame().await.unwrap().ack_index, 2);
        assert!(
            stream.frame().await.is_none(),
            "no message comes after done_sending"
        );
    }
    bed.until_nothing_runs().await;
    assert!(bed.streams.clients().is_empty());
}

// What comes on top of it is 15 s at most, for records that are on their way.
#[test]
fn p_077_no_stream_is_meant_to_live_longer_than_agents_bear() {
    let options = Options::new(None);
    assert!(options.stream_lifetime.end <= Duration::from_secs(11 * 60));
    assert!(options.stream_lifetime.start < options.stream_lifetime.end);
    assert!(options.done_sending_before_end < options.stream_lifetime.start);
}

#[tokio::test]
async fn stream_that_is_left_when_asked_keeps_its_messages_and_one_that_is_not_gives_them_back() {
    let bed = Bed::with(|options, _| {
        options.stream_lifetime = Duration::from_millis(600)..Duration::from_millis(600);
        options.done_sending_before_end = Duration::from_millis(400);
    })
    .await;
    for options in both_versions() {
        for leaves in [true, false] {
            let agent = bed.agent();
            let mut stream = agent.stream(options.clone()).await;
            bed.send(agent.id, 1, 0).await;
            assert_eq!(stream.frame().await.unwrap().messages.len(), 1);
            assert!(stream.frame().await.unwrap().done_sending);
            if !leaves {
                assert!(stream.frame().await.is_none(), "its time is over");
            }
            drop(stream);
            bed.until_nothing_runs().await;
            let due = bed
                .store
                .client_messages_for_processing(agent.id, 10, None)
                .await
                .unwrap();
            assert_eq!(due.len(), usize::from(!leaves));
        }
    }
}

#[tokio::test]
async fn p_012_silent_connections_are_closed_and_delay_nobody() {
    let bed = Bed::with(|_, limits| {
        limits.handshake_timeout = Duration::from_secs(1);
        limits.header_timeout = Duration::from_secs(1);
    })
    .await;
    let mut silent = TcpStream::connect(bed.addr).await.unwrap();
    let mut without_request = bed.agent().tls(&["http/1.1"]).await.unwrap();
    let mut http2 = bed.agent().connect(Version::HTTP_2).await;
    bed.agent().poll(&ContactData::default()).await;
    let read = soon("the end of a silent connection", silent.read_u8()).await;
    assert!(read.is_err());
    let read = soon("the end of a connection", without_request.read_u8()).await;
    assert!(read.is_err());
    http2.closed().await;
    bed.until_nothing_runs().await;
}

#[tokio::test]
async fn connection_is_closed_when_no_further_request_comes() {
    let bed = Bed::with(|_, limits| {
        limits.header_timeout = Duration::from_millis(500);
        limits.idle_timeout = Duration::from_millis(100);
    })
    .await;
    let path = "/files/system/RevokedCertificates";
    let mut http1 = bed.agent().connect(Version::HTTP_11).await;
    let mut http2 = bed.agent().connect(Version::HTTP_2).await;
    assert_eq!(
        http1.send(get(path)).await.unwrap().status(),
        StatusCode::OK
    );
    let request = over_http2(get(path));
    assert_eq!(http2.send(request).await.unwrap().status(), StatusCode::OK);
    http1.closed().await;
    http2.closed().await;
}

#[tokio::test]
async fn streams_outlive_the_idle_limits() {
    let bed = Bed::with(|options, limits| {
        limits.header_timeout = Duration::from_millis(400);
        limits.idle_timeout = Duration::from_millis(50);
        options.stream_lifetime = Duration::from_millis(1_500)..Duration::from_millis(1_500);
        options.done_sending_before_end = Duration::from_millis(500);
    })
    .await;
    for options in both_versions() {
        let mut stream = bed.agent().stream(options).await;
        assert!(stream.frame().await.unwrap().done_sending);
        stream.send_contact(&ContactData::default());
        assert_eq!(stream.acks(1).await, [1]);
    }
}

#[tokio::test]
async fn p_079_stream_of_an_agent_that_vanishes_leaves_nothing() {
    let bed = Bed::with(|_, _| {}).await;
    for options in both_versions() {
        let mut stream = bed.agent().stream(options).await;
        // In the middle of a record.
        stream.send_bytes(&[100, 1, 2, 3]);
        assert_eq!(bed.streams.clients().len(), 1);
        drop(stream);
        bed.until_nothing_runs().await;
        assert!(bed.streams.clients().is_empty());
    }
}

#[tokio::test]
async fn p_235_stream_of_an_agent_that_does_not_read_ends() {
    let bed = Bed::with(|_, limits| limits.write_timeout = Duration::from_millis(300)).await;
    for options in both_versions() {
        let agent = bed.agent();
        let stream = agent.stream(options).await;
        bed.send(agent.id, 100, 500_000).await;
        let gone = async {
            while !bed.streams.clients().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the end of the stream", gone).await;
        drop(stream);
        bed.until_nothing_runs().await;
    }
}

#[tokio::test]
async fn dropped_server_serves_nobody() {
    let bed = Bed::with(|_, _| {}).await;
    let mut stream = bed.agent().stream(StreamOptions::default()).await;
    drop(bed);
    assert!(stream.frame().await.is_none());
}
