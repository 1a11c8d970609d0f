//! The records of a stream and their acknowledgements.

use std::collections::BTreeMap;

use fleethold_proto::fleetspeak::grpcservice::processor_server::{Processor, ProcessorServer};
use fleethold_proto::fleetspeak::server::ServiceConfig;
use fleethold_proto::fleetspeak::{ContactData, EmptyMessage, Message, grpcservice};
use fleethold_proto::pack;
use http::Version;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::agent::{Authority, StreamOptions, message, soon};
use crate::bed::Bed;

fn contact(to: &str, numbers: std::ops::Range<u32>) -> ContactData {
    ContactData {
        messages: numbers.map(|number| message(to, number)).collect(),
        ..ContactData::default()
    }
}

/// A service that keeps every message until the test lets it go.
#[derive(Clone)]
struct Gate(watch::Sender<BTreeMap<u32, Call>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// The test lets it go before it has come.
    Free,
    Waiting,
    Done,
}

impl Gate {
    /// Starts the service; returns it and how a server is configured for it.
    async fn start() -> (Self, ServiceConfig) {
        let gate = Self(watch::Sender::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let back_end = grpcservice::Config {
            target: listener.local_addr().unwrap().to_string(),
            insecure: true,
            ..grpcservice::Config::default()
        };
        let server = tonic::transport::Server::builder()
            .add_service(ProcessorServer::new(gate.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        let config = ServiceConfig {
            name: "gate".to_owned(),
            factory: "GRPC".to_owned(),
            config: Some(pack(&back_end)),
            ..ServiceConfig::default()
        };
        (gate, config)
    }

    /// Lets messages pass, now or when they come.
    fn open(&self, numbers: impl IntoIterator<Item = u32>) {
        self.0.send_modify(|calls| {
            for number in numbers {
                calls.insert(number, Call::Free);
            }
        });
    }

    fn count(calls: &BTreeMap<u32, Call>, state: Call) -> usize {
        calls.values().filter(|call| **call == state).count()
    }

    /// Waits until so many messages are kept or through.
    async fn until(&self, state: Call, count: usize) {
        let mut calls = self.0.subscribe();
        let reached = calls.wait_for(|calls| Self::count(calls, state) >= count);
        soon("messages at a service", reached).await.unwrap();
    }

    fn waiting(&self) -> usize {
        Self::count(&self.0.borrow(), Call::Waiting)
    }
}

#[tonic::async_trait]
impl Processor for Gate {
    async fn process(&self, request: Request<Message>) -> Result<Response<EmptyMessage>, Status> {
        let id = request.into_inner().source_message_id;
        let number = u32::from_be_bytes(id[..].try_into().unwrap());
        let mut calls = self.0.subscribe();
        self.0.send_modify(|calls| {
            calls.entry(number).or_insert(Call::Waiting);
        });
        let free = calls.wait_for(|calls| calls[&number] == Call::Free).await;
        drop(free.unwrap());
        self.0.send_modify(|calls| {
            calls.insert(number, Call::Done);
        });
        Ok(Response::new(EmptyMessage {}))
    }
}

async fn gated_bed() -> (Bed, Gate) {
    let (gate, config) = Gate::start().await;
    let bed = Bed::with(Authority::new(), |server| server.services.push(config)).await;
    (bed, gate)
}

#[tokio::test]
async fn p_068_acks_keep_the_order_of_records_that_finish_in_another() {
    let (bed, gate) = gated_bed().await;
    let mut stream = bed.agent().stream(StreamOptions::default()).await;
    for number in 1..=4 {
        stream.send_contact(&contact("gate", number..number + 1));
    }
    gate.until(Call::Waiting, 4).await;
    gate.open([4, 3, 2]);
    gate.until(Call::Done, 3).await;
    gate.open([1]);
    assert_eq!(stream.acks(4).await, [1, 2, 3, 4]);
}

#[tokio::test]
async fn p_071_no_ack_follows_a_record_that_fails() {
    let too_many = contact("sink", 0..101);
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let (bed, gate) = gated_bed().await;
        for failing in [
            b"\x07garbage".to_vec(),
            b"\x81\x80\x80\x0a".to_vec(),
            [0x80; 11].to_vec(),
            bed.agent()
                .wrapped(&too_many)
                .encode_length_delimited_to_vec(),
        ] {
            let options = StreamOptions {
                version,
                ..StreamOptions::default()
            };
            let mut stream = bed.agent().stream(options).await;
            stream.send_contact(&contact("gate", 1..2));
            gate.until(Call::Waiting, 1).await;
            stream.send_bytes(&failing);
            stream.send_contact(&contact("sink", 3..4));
            gate.open([1]);
            // The record before it is acknowledged, those after it are not.
            assert_eq!(stream.acks(9).await, [1]);
            gate.0.send_modify(BTreeMap::clear);
        }
    }
}

#[tokio::test]
async fn p_069_and_070_records_without_messages_are_acknowledged() {
    let bed = Bed::start().await;
    let mut stream = bed.agent().stream(StreamOptions::default()).await;
    stream.send_contact(&ContactData {
        allowed_messages: [("hello".to_owned(), 3)].into(),
        ..ContactData::default()
    });
    stream.send_bytes(&[0]);
    stream.send_bytes(&[0, 0]);
    stream.send_contact(&ContactData::default());
    assert_eq!(stream.acks(5).await, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn p_072_records_may_be_split_and_joined_at_will() {
    let bed = Bed::start().await;
    for deflate in [false, true] {
        let options = StreamOptions {
            deflate,
            ..StreamOptions::default()
        };
        let agent = bed.agent();
        let mut stream = agent.stream(options).await;
        let records: Vec<u8> = (0..6)
            .flat_map(|n| {
                let record = agent.wrapped(&contact("sink", 20 * n..20 * n + 20));
                record.encode_length_delimited_to_vec()
            })
            .collect();
        let (joined, split) = records.split_at(records.len() / 2);
        stream.send_bytes(joined);
        for piece in split.chunks(5) {
            stream.send_bytes(piece);
        }
        assert_eq!(stream.acks(6).await, [1, 2, 3, 4, 5, 6]);
    }
}

#[tokio::test]
async fn large_records_are_accepted() {
    let bed = Bed::start().await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let options = StreamOptions {
            version,
            ..StreamOptions::default()
        };
        let mut agent = bed.agent();
        let mut stream = agent.stream(options).await;
        agent.labels = vec!["x".repeat(7 << 20)];
        for _ in 0..3 {
            stream.send(&agent.wrapped(&contact("sink", 0..1)));
        }
        assert_eq!(stream.acks(3).await, [1, 2, 3]);
    }
}

#[tokio::test]
async fn p_233_agent_has_to_wait_when_too_many_of_its_records_are_in_work() {
    let (bed, gate) = gated_bed().await;
    let mut stream = bed.agent().stream(StreamOptions::default()).await;
    for number in 0..20 {
        stream.send_contact(&contact("gate", number..number + 1));
    }
    gate.until(Call::Waiting, 8).await;
    // Others are served meanwhile; that gives a ninth the time to come, too.
    for _ in 0..5 {
        bed.agent().poll(&contact("sink", 0..1)).await;
    }
    assert_eq!(gate.waiting(), 8);
    gate.open(0..20);
    assert_eq!(stream.acks(20).await, (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn records_sent_before_the_end_of_the_body_are_acknowledged() {
    let bed = Bed::start().await;
    let mut stream = bed.agent().stream(StreamOptions::default()).await;
    stream.send_contact(&contact("sink", 0..10));
    stream.send_contact(&contact("sink", 10..20));
    stream.close_upload();
    assert_eq!(stream.acks(9).await, [1, 2]);
}
