//! Against a small service in this process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use bytes::Bytes;
use fleethold_proto::fleethold::service::v1::BatchResponse;
use fleethold_proto::fleethold::service::v1::batch_processor_server::{
    BatchProcessor, BatchProcessorServer,
};
use fleethold_proto::fleetspeak::grpcservice::Config;
use fleethold_proto::fleetspeak::grpcservice::processor_server::{Processor, ProcessorServer};
use fleethold_proto::fleetspeak::{Address, EmptyMessage};
use futures::future::join_all;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Response;
use tonic::transport::Server;

use super::super::GrpcService;
use super::*;
use crate::services::{Service, ServiceError};

const PLENTY: Duration = Duration::from_secs(20);

/// Does with each message what its type says, once it may begin.
#[derive(Clone)]
struct Obedient {
    /// The messages of each call.
    calls: Arc<Mutex<Vec<Vec<Message>>>>,
    may_begin: Arc<Semaphore>,
    running: Arc<Mutex<(usize, usize)>>,
}

#[tonic::async_trait]
impl BatchProcessor for Obedient {
    async fn process_batch(
        &self,
        request: Request<BatchRequest>,
    ) -> Result<Response<BatchResponse>, Status> {
        let messages = request.into_inner().messages;
        self.calls.lock().unwrap().push(messages.clone());
        {
            let mut running = self.running.lock().unwrap();
            running.0 += 1;
            running.1 = running.1.max(running.0);
        }
        let _place = self.may_begin.acquire().await.unwrap();
        self.running.lock().unwrap().0 -= 1;
        let mut outcomes = Vec::new();
        for message in &messages {
            let code = match message.message_type.as_str() {
                "refuse" => Code::InvalidArgument,
                "retry" => Code::Unavailable,
                "crash" => return Err(Status::unknown("an exception")),
                "poison" => return Err(Status::invalid_argument("cannot read this")),
                "forget" => continue,
                _ => Code::Ok,
            };
            outcomes.push(Outcome {
                code: u32::try_from(i32::from(code)).unwrap(),
                text: "as told".to_owned(),
            });
        }
        Ok(Response::new(BatchResponse { outcomes }))
    }
}

impl Obedient {
    fn new() -> Self {
        Self {
            calls: Arc::default(),
            may_begin: Arc::new(Semaphore::new(1_000)),
            running: Arc::default(),
        }
    }

    async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = Server::builder().add_service(BatchProcessorServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        addr
    }

    /// Returns the sizes of the calls so far.
    fn sizes(&self) -> Vec<usize> {
        self.calls.lock().unwrap().iter().map(Vec::len).collect()
    }
}

fn config(addr: SocketAddr) -> BatchConfig {
    BatchConfig {
        connection: Some(Config {
            target: addr.to_string(),
            insecure: true,
            ..Config::default()
        }),
        ..BatchConfig::default()
    }
}

fn service(config: &BatchConfig) -> GrpcService {
    GrpcService::from_batch_config("GRR", config).unwrap().0
}

fn message(number: usize, message_type: &str) -> Message {
    Message {
        message_id: Bytes::from(vec![u8::try_from(number % 256).unwrap(); 32]),
        source_message_id: Bytes::copy_from_slice(&number.to_be_bytes()),
        destination: Some(Address {
            service_name: "GRR".to_owned(),
            ..Address::default()
        }),
        message_type: message_type.to_owned(),
        is_blocklisted_source: true,
        ..Message::default()
    }
}

async fn process_all(
    service: &GrpcService,
    messages: &[Message],
    budget: Duration,
) -> Vec<Result<(), ServiceError>> {
    let deadline = Instant::now() + budget;
    join_all(
        messages
            .iter()
            .map(|message| service.process(message, deadline)),
    )
    .await
}

#[tokio::test]
async fn messages_that_come_while_calls_are_made_share_the_next_ones() {
    let back_end = Obedient::new();
    back_end.may_begin.forget_permits(1_000);
    let service = service(&BatchConfig {
        max_calls: 1,
        ..config(back_end.serve().await)
    });
    let messages: Vec<_> = (0..250).map(|number| message(number, "take")).collect();
    let (results, ()) = tokio::join!(process_all(&service, &messages, PLENTY), async {
        while back_end.sizes().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        back_end.may_begin.add_permits(1_000);
    });
    assert!(results.iter().all(Result::is_ok));
    let sizes = back_end.sizes();
    assert!(sizes.len() <= 4, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 100), "{sizes:?}");
    // Each arrives once and whole.
    let mut received = back_end.calls.lock().unwrap().concat();
    received.sort_by(|a, b| a.source_message_id.cmp(&b.source_message_id));
    assert_eq!(received, messages);
}

#[tokio::test]
async fn calls_keep_to_the_limits_of_messages_bytes_and_calls() {
    let back_end = Obedient::new();
    let service = service(&BatchConfig {
        max_messages: 7,
        max_bytes: 1_000,
        max_calls: 3,
        ..config(back_end.serve().await)
    });
    let messages: Vec<_> = (0..200)
        .map(|number| Message {
            source_message_id: vec![7; if number % 50 == 0 { 2_000 } else { number }].into(),
            ..message(number, "take")
        })
        .collect();
    let results = process_all(&service, &messages, PLENTY).await;
    assert!(results.iter().all(Result::is_ok));
    for call in &*back_end.calls.lock().unwrap() {
        let bytes: usize = call.iter().map(|message| message.encoded_len()).sum();
        assert!(call.len() <= 7);
        assert!(bytes <= 1_000 || call.len() == 1, "{bytes}");
    }
    let most = back_end.running.lock().unwrap().1;
    assert!(most <= 3, "{most} calls at the same time");
}

#[tokio::test]
async fn each_message_has_its_own_outcome() {
    let back_end = Obedient::new();
    let service = service(&config(back_end.serve().await));
    let messages = ["take", "refuse", "retry", "take"];
    let messages: Vec<_> = (0..)
        .zip(messages)
        .map(|(number, kind)| message(number, kind))
        .collect();
    let results = process_all(&service, &messages, Duration::from_millis(300)).await;
    assert!(results[0].is_ok() && results[3].is_ok());
    assert!(
        matches!(&results[1], Err(ServiceError::Permanent(text)) if text.contains("InvalidArgument: as told")),
        "{results:?}"
    );
    assert!(matches!(&results[2], Err(ServiceError::Temporary(_))));
}

#[tokio::test]
async fn message_that_breaks_its_call_costs_no_other_its_delivery() {
    for (bad, is_permanent) in [("crash", false), ("poison", true), ("forget", false)] {
        let back_end = Obedient::new();
        let service = service(&config(back_end.serve().await));
        let messages: Vec<_> = (0..20)
            .map(|number| message(number, if number == 5 { bad } else { "take" }))
            .collect();
        let results = process_all(&service, &messages, Duration::from_secs(2)).await;
        for (number, result) in results.iter().enumerate() {
            match result {
                Ok(()) => assert_ne!(number, 5, "{bad}"),
                Err(error) => {
                    assert_eq!(number, 5, "{bad}: {error:?}");
                    let permanent = matches!(error, ServiceError::Permanent(_));
                    assert_eq!(permanent, is_permanent, "{bad}: {error:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn process_without_the_method_or_without_life_costs_no_message() {
    struct Single;

    #[tonic::async_trait]
    impl Processor for Single {
        async fn process(&self, _: Request<Message>) -> Result<Response<EmptyMessage>, Status> {
            Ok(Response::new(EmptyMessage {}))
        }
    }

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let single = listener.local_addr().unwrap();
    let server = Server::builder().add_service(ProcessorServer::new(Single));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    for (addr, expected) in [(single, "BatchProcessor"), (nobody, "Unavailable")] {
        let service = service(&config(addr));
        let messages = [message(1, "take"), message(2, "take")];
        for result in process_all(&service, &messages, Duration::from_millis(300)).await {
            assert!(
                matches!(&result, Err(ServiceError::Temporary(text)) if text.contains(expected)),
                "{result:?}"
            );
        }
    }
}

#[tokio::test]
async fn message_is_not_sent_after_its_sender_has_given_up() {
    let back_end = Obedient::new();
    back_end.may_begin.forget_permits(1_000);
    let service = service(&BatchConfig {
        max_calls: 1,
        max_messages: 1,
        ..config(back_end.serve().await)
    });
    let messages: Vec<_> = (0..5).map(|number| message(number, "take")).collect();
    for result in process_all(&service, &messages, Duration::from_millis(100)).await {
        assert!(matches!(result, Err(ServiceError::Temporary(_))));
    }
    back_end.may_begin.add_permits(1_000);
    let results = process_all(&service, &[message(9, "take")], PLENTY).await;
    assert!(results[0].is_ok());
    let kinds: BTreeMap<_, usize> = back_end.calls.lock().unwrap().concat().into_iter().fold(
        BTreeMap::new(),
        |mut counts, message| {
            *counts.entry(message.message_id[0]).or_default() += 1;
            counts
        },
    );
    assert_eq!(kinds, BTreeMap::from([(0, 1), (9, 1)]));
}

#[test]
fn numbers_beyond_the_limits_are_refused_and_absent_ones_have_defaults() {
    let defaults = BatchLimits {
        messages: 100,
        bytes: 2 << 20,
        wait: Duration::from_millis(5),
        calls: 4,
    };
    assert_eq!(BatchLimits::read(&BatchConfig::default()), Ok(defaults));
    for (config, name) in [
        (
            BatchConfig {
                max_messages: 10_001,
                ..BatchConfig::default()
            },
            "max_messages",
        ),
        (
            BatchConfig {
                max_bytes: u64::MAX,
                ..BatchConfig::default()
            },
            "max_bytes",
        ),
        (
            BatchConfig {
                max_wait_milliseconds: 1_001,
                ..BatchConfig::default()
            },
            "max_wait_milliseconds",
        ),
        (
            BatchConfig {
                max_calls: 101,
                ..BatchConfig::default()
            },
            "max_calls",
        ),
    ] {
        let problem = BatchLimits::read(&config).unwrap_err();
        assert!(
            problem.contains(name) && problem.contains("at most"),
            "{problem}"
        );
    }
}
