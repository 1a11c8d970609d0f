//! What becomes of the messages that agents send to services.

mod agent;
#[path = "https/bed.rs"]
#[allow(dead_code, reason = "a part of it is enough here")]
mod bed;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::{Agent, Authority, message, soon};
use bed::Bed;
use bytes::Bytes;
use fleethold_proto::fleethold::service::v1::batch_processor_server::{
    BatchProcessor, BatchProcessorServer,
};
use fleethold_proto::fleethold::service::v1::{BatchConfig, BatchRequest, BatchResponse, Outcome};
use fleethold_proto::fleetspeak::grpcservice::processor_server::{Processor, ProcessorServer};
use fleethold_proto::fleetspeak::monitoring::KillNotification;
use fleethold_proto::fleetspeak::monitoring::kill_notification::Reason;
use fleethold_proto::fleetspeak::server::{
    BlacklistClientRequest, GetMessageStatusRequest, ServiceConfig,
};
use fleethold_proto::fleetspeak::{
    Annotations, ContactData, EmptyMessage, Message, MessageResult, annotations, grpcservice,
};
use fleethold_proto::{Any, pack};
use fleethold_store::clock::timestamp;
use fleethold_store::{Clock, MessageId, MessageStore};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A service that keeps what it gets; it refuses messages of type `refuse`, and
/// has no time for those of type `busy`.
#[derive(Clone, Default)]
struct Keeper {
    messages: Arc<Mutex<Vec<Message>>>,
    /// How many calls carried them.
    calls: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl BatchProcessor for Keeper {
    async fn process_batch(
        &self,
        request: Request<BatchRequest>,
    ) -> Result<Response<BatchResponse>, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let messages = request.into_inner().messages;
        let outcomes = messages.iter().map(|message| match &*message.message_type {
            "refuse" => Outcome {
                code: 3,
                text: "cannot read this".to_owned(),
            },
            _ => Outcome::default(),
        });
        let outcomes = outcomes.collect();
        self.messages.lock().unwrap().extend(messages);
        Ok(Response::new(BatchResponse { outcomes }))
    }
}

#[tonic::async_trait]
impl Processor for Keeper {
    async fn process(&self, request: Request<Message>) -> Result<Response<EmptyMessage>, Status> {
        let message = request.into_inner();
        let refused = message.message_type == "refuse";
        let busy = message.message_type == "busy";
        self.messages.lock().unwrap().push(message);
        self.calls.fetch_add(1, Ordering::Relaxed);
        if busy {
            return Err(Status::unavailable("busy"));
        }
        if refused {
            return Err(Status::invalid_argument("x".repeat(2_000)));
        }
        Ok(Response::new(EmptyMessage {}))
    }
}

impl Keeper {
    /// Returns the next message that comes.
    async fn next(&self) -> Message {
        loop {
            if let Some(message) = self.take().pop() {
                return message;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Returns what has come since the last time.
    fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.messages.lock().unwrap())
    }
}

/// Starts a server with a service called `keeper`.
async fn bed_with_keeper() -> (Bed, Keeper) {
    bed_with(|back_end| pack(&back_end)).await
}

/// The same with a configuration made of the address.
async fn bed_with(config: impl FnOnce(grpcservice::Config) -> Any) -> (Bed, Keeper) {
    let keeper = Keeper::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let back_end = grpcservice::Config {
        target: listener.local_addr().unwrap().to_string(),
        insecure: true,
        ..grpcservice::Config::default()
    };
    let server = tonic::transport::Server::builder()
        .add_service(ProcessorServer::new(keeper.clone()))
        .add_service(BatchProcessorServer::new(keeper.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    let service = ServiceConfig {
        name: "keeper".to_owned(),
        factory: "GRPC".to_owned(),
        config: Some(config(back_end)),
        ..ServiceConfig::default()
    };
    let bed = Bed::with(Authority::new(), |config| config.services.push(service)).await;
    (bed, keeper)
}

fn with_payload(message: Message) -> Message {
    Message {
        data: Some(Any {
            type_url: "type.googleapis.com/x".to_owned(),
            value: Bytes::from_static(b"payload"),
        }),
        ..message
    }
}

async fn poll(agent: &Agent, messages: Vec<Message>) {
    let contact = ContactData {
        messages,
        ..ContactData::default()
    };
    agent.poll(&contact).await;
}

fn id(agent: &Agent, source_message_id: &[u8]) -> MessageId {
    MessageId::for_source(Some(agent.id), "hello", source_message_id)
}

/// Asks the admin API what became of a message.
async fn result(bed: &Bed, id: MessageId) -> Option<MessageResult> {
    let request = GetMessageStatusRequest {
        message_id: id.to_bytes(),
    };
    let status = bed.admin().await.get_message_status(request).await;
    status.unwrap().into_inner().result
}

#[tokio::test]
async fn p_046_processed_message_has_its_time_and_no_payload() {
    let (bed, keeper) = bed_with_keeper().await;
    let agent = bed.agent();
    poll(&agent, vec![with_payload(message("keeper", 1))]).await;
    assert!(keeper.take()[0].data.is_some());
    let id = id(&agent, &1_u32.to_be_bytes());
    let expected = MessageResult {
        processed_time: Some(timestamp(bed.clock.now())),
        ..MessageResult::default()
    };
    assert_eq!(result(&bed, id).await, Some(expected));
    let stored = bed.store.get_messages(&[id], true).await.unwrap();
    assert_eq!(stored[0].data, None);
}

#[tokio::test]
async fn p_051_service_gets_the_message_unchanged_at_first_and_when_it_is_tried_again() {
    let (bed, keeper) = bed_with_keeper().await;
    let agent = bed.agent();
    let sent = Message {
        message_type: "busy".to_owned(),
        annotations: Some(Annotations {
            entries: ["one", "two", "one"]
                .map(|key| annotations::Entry {
                    key: key.to_owned(),
                    value: format!("value of {key}"),
                })
                .to_vec(),
        }),
        ..with_payload(message("keeper", 1))
    };
    poll(&agent, vec![sent.clone()]).await;
    let tries = keeper.take();
    bed.clock.advance(Duration::from_secs(120));
    let again = soon("another try, from the store", keeper.next()).await;
    for got in [&tries[0], &again] {
        assert_eq!(got.data, sent.data);
        assert_eq!(got.annotations, sent.annotations);
        assert_eq!(got.message_type, sent.message_type);
        assert_eq!(got.source_message_id, sent.source_message_id);
    }
    assert_eq!(again.message_id, tries[0].message_id);
}

// The poll is answered as soon as the service has refused the message, once.
#[tokio::test]
async fn p_047_and_173_refused_message_has_failed_with_a_reason_of_at_most_900_bytes() {
    let (bed, keeper) = bed_with_keeper().await;
    let agent = bed.agent();
    let refused = Message {
        message_type: "refuse".to_owned(),
        ..message("keeper", 1)
    };
    poll(&agent, vec![with_payload(refused)]).await;
    assert_eq!(keeper.take().len(), 1);
    let id = id(&agent, &1_u32.to_be_bytes());
    let result = result(&bed, id).await.expect("a result");
    assert!(result.failed);
    assert_eq!(result.failed_reason.len(), 900);
    let (reason, dots) = result.failed_reason.split_at(897);
    assert!(reason.contains("InvalidArgument: xxx"), "{reason}");
    assert_eq!(dots, "...");
    let stored = bed.store.get_messages(&[id], true).await.unwrap();
    assert_eq!(stored[0].data, None);
}

#[tokio::test]
async fn contact_with_100_messages_for_a_service_with_batches_is_one_call() {
    let (bed, keeper) = bed_with(|back_end| {
        pack(&BatchConfig {
            connection: Some(back_end),
            max_messages: 100,
            max_wait_milliseconds: 1_000,
            ..BatchConfig::default()
        })
    })
    .await;
    let agent = bed.agent();
    let messages = (0..100).map(|number| {
        let message = with_payload(message("keeper", number));
        match number {
            42 => Message {
                message_type: "refuse".to_owned(),
                ..message
            },
            _ => message,
        }
    });
    poll(&agent, messages.collect()).await;
    assert_eq!(keeper.calls.load(Ordering::Relaxed), 1);
    assert_eq!(keeper.take().len(), 100);
    for number in 0..100_u32 {
        let result = result(&bed, id(&agent, &number.to_be_bytes())).await;
        let result = result.expect("a result");
        assert_eq!(result.failed, number == 42, "{result:?}");
    }
}

#[tokio::test]
async fn p_052_service_is_told_that_a_message_comes_from_a_blacklisted_client() {
    let (bed, keeper) = bed_with_keeper().await;
    let (good, bad) = (bed.agent(), bed.agent());
    // What the agent itself says does not count.
    let send = |numbers: Range<u32>| {
        let messages = numbers.map(|number| Message {
            is_blocklisted_source: number % 2 == 0,
            ..message("keeper", number)
        });
        messages.collect::<Vec<_>>()
    };
    let marks = || {
        let messages = keeper.take().into_iter();
        let marks = messages.map(|message| message.is_blocklisted_source);
        marks.collect::<Vec<_>>()
    };
    for agent in [&good, &bad] {
        poll(agent, send(0..2)).await;
        assert_eq!(marks(), [false, false]);
    }
    let request = BlacklistClientRequest {
        client_id: bad.id.to_bytes(),
    };
    bed.admin().await.blacklist_client(request).await.unwrap();
    for (agent, expected) in [(&good, false), (&bad, true)] {
        poll(agent, send(2..4)).await;
        assert_eq!(marks(), [expected, expected]);
    }
}

#[tokio::test]
async fn p_054_source_message_ids_of_any_length_are_accepted() {
    let (bed, keeper) = bed_with_keeper().await;
    let agent = bed.agent();
    for length in [1, 16, 17, 32, 64, 1_000] {
        let source_message_id = Bytes::from(vec![7; length]);
        let message = Message {
            source_message_id: source_message_id.clone(),
            ..message("keeper", 0)
        };
        poll(&agent, vec![message]).await;
        let id = id(&agent, &source_message_id);
        let received = keeper.take();
        assert_eq!(received.len(), 1, "{length}");
        assert_eq!(received[0].source_message_id, source_message_id);
        assert_eq!(received[0].message_id, id.to_bytes());
        let result = result(&bed, id).await.expect("a result");
        assert!(!result.failed, "{length}");
        let stored = bed.store.get_messages(&[id], true).await.unwrap();
        assert_eq!(stored[0].source_message_id, source_message_id);
    }
}

#[tokio::test]
async fn p_112_kill_notification_without_content_fails() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let notification = KillNotification {
        service: "hello".to_owned(),
        pid: 42,
        version: "1.0".to_owned(),
        process_start_time: Some(timestamp(bed.clock.now())),
        killed_when: Some(timestamp(bed.clock.now())),
        reason: Reason::MemoryExceeded.into(),
    };
    let messages = [(1, Some(pack(&notification))), (2, None)].map(|(number, data)| Message {
        message_type: "KillNotification".to_owned(),
        data,
        ..message("system", number)
    });
    poll(&agent, messages.to_vec()).await;
    for (number, failed) in [(1_u32, false), (2, true)] {
        let id = id(&agent, &number.to_be_bytes());
        let result = result(&bed, id).await.expect("a result");
        assert_eq!(result.failed, failed, "{result:?}");
    }
}
