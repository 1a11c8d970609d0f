//! What agents see of a store that fails for a while: nothing that was
//! answered with success is lost, all else is accepted when it is sent again.

#[path = "../agent/mod.rs"]
mod agent;
mod store;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use agent::{Agent, Authority, StreamOptions, acknowledgement, message, post, soon};
use fleethold_proto::fleetspeak::server::ServiceConfig;
use fleethold_proto::fleetspeak::{Address, ContactData, Message};
use fleethold_server::{AgentsConfig, Config, Server};
use fleethold_store::clock::timestamp;
use fleethold_store::{
    ClientId, ClientStore, Clock, ErrorKind, ManualClock, MemoryStore, MessageId, MessageStore,
    Random, Store,
};
use http::StatusCode;

use store::{FailingStore, Fault};

struct Bed {
    store: Arc<FailingStore>,
    clock: Arc<ManualClock>,
    authority: Authority,
    server: Server,
}

impl Bed {
    async fn start() -> Self {
        let clock = Arc::new(ManualClock::at(1_700_000_000));
        let random = Arc::new(Random::seeded(1));
        let memory = MemoryStore::new(Arc::<ManualClock>::clone(&clock), Arc::clone(&random));
        let store = Arc::new(FailingStore::new(memory));
        let authority = Authority::new();
        let config = Config {
            agents: Some(AgentsConfig {
                listen: "127.0.0.1:0".to_owned(),
                certificates_pem: authority.certificates_pem.clone(),
                key_pem: authority.key_pem.clone(),
                ..AgentsConfig::default()
            }),
            services: vec![ServiceConfig {
                name: "sink".to_owned(),
                factory: "NOOP".to_owned(),
                ..ServiceConfig::default()
            }],
            ..Config::default()
        };
        let any_store: Arc<dyn Store> = Arc::<FailingStore>::clone(&store);
        let any_clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let server = Server::start(config, any_store, any_clock, random)
            .await
            .unwrap();
        Self {
            store,
            clock,
            authority,
            server,
        }
    }

    fn agent(&self) -> Agent {
        Agent::new(self.server.agents_addr().unwrap(), &self.authority)
    }

    /// Lets calls fail, one for each fault.
    fn fail(&self, faults: &[Fault]) {
        for fault in faults {
            self.store.fail_once(*fault);
        }
    }

    /// Returns how many of an agent's messages are stored as processed.
    async fn processed(&self, agent: &Agent, numbers: Range<u32>) -> usize {
        let mut count = 0;
        for number in numbers {
            let result = self.store.inner.get_message_result(id(agent, number)).await;
            count += usize::from(result.unwrap().is_some_and(|result| !result.failed));
        }
        count
    }

    /// Stores a message for a client.
    async fn store_message_for(&self, client: ClientId) -> MessageId {
        let id = MessageId::new([9; 32]);
        let message = Message {
            message_id: id.to_bytes(),
            destination: Some(Address {
                client_id: client.to_bytes(),
                service_name: "hello".to_owned(),
            }),
            creation_time: Some(timestamp(self.clock.now())),
            ..message("hello", 0)
        };
        self.store
            .inner
            .store_messages(&[message], None)
            .await
            .unwrap();
        id
    }
}

fn fault(call: &'static str, kind: ErrorKind, applied: bool) -> Fault {
    Fault {
        call,
        kind,
        applied,
    }
}

/// Returns the server's id of an agent's message.
fn id(agent: &Agent, number: u32) -> MessageId {
    MessageId::for_source(Some(agent.id), "hello", &number.to_be_bytes())
}

fn contact(numbers: Range<u32>) -> ContactData {
    ContactData {
        messages: numbers.map(|number| message("sink", number)).collect(),
        ..ContactData::default()
    }
}

async fn poll_status(agent: &Agent, contact: &ContactData) -> StatusCode {
    agent.fetch(post("/message", agent.wrap(contact))).await.0
}

#[tokio::test]
async fn p_053_poll_that_the_store_fails_is_refused_and_accepted_when_sent_again() {
    let bed = Bed::start().await;
    for call in ["get_client_data", "add_client", "store_contact"] {
        for kind in [ErrorKind::Transient, ErrorKind::Internal] {
            for applied in [false, true] {
                let agent = bed.agent();
                bed.fail(&[fault(call, kind, applied)]);
                let status = poll_status(&agent, &contact(0..3)).await;
                let expected = match kind {
                    ErrorKind::Transient => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                assert_eq!(status, expected, "{call}");
                let early = bed.processed(&agent, 0..3).await;
                let answer_was_lost = call == "store_contact" && applied;
                assert_eq!(early, if answer_was_lost { 3 } else { 0 }, "{call}");

                agent.poll(&contact(0..3)).await;
                assert_eq!(bed.processed(&agent, 0..3).await, 3, "{call}");
                let contacts = bed.store.inner.list_client_contacts(agent.id).await;
                assert_eq!(contacts.unwrap().len(), 1 + usize::from(answer_was_lost));
                assert_eq!(bed.store.faults_left(), []);
            }
        }
    }
}

#[tokio::test]
async fn p_053_enrolment_that_the_store_fails_is_refused_and_accepted_when_sent_again() {
    let bed = Bed::start().await;
    for applied in [false, true] {
        let agent = bed.agent();
        bed.fail(&[fault("enrol", ErrorKind::Transient, applied)]);
        let status = poll_status(&agent, &ContactData::default()).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        agent.poll(&ContactData::default()).await;
        let contacts = bed.store.inner.list_client_contacts(agent.id).await;
        assert_eq!(contacts.unwrap().len(), 1 + usize::from(applied));
        assert_eq!(bed.store.faults_left(), []);
    }
}

#[tokio::test]
async fn p_053_message_for_an_agent_outlasts_a_store_that_cannot_hand_it_out() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    agent.poll(&ContactData::default()).await;
    let sent = bed.store_message_for(agent.id).await;

    // What the agent brought is stored, so its contact is a success.
    bed.fail(&[fault(
        "client_messages_for_processing",
        ErrorKind::Transient,
        false,
    )]);
    assert_eq!(agent.poll(&contact(0..3)).await.messages, []);
    assert_eq!(bed.processed(&agent, 0..3).await, 3);

    // Handed out, but on a way that is not recorded.
    bed.fail(&[fault(
        "link_messages_to_contact",
        ErrorKind::Transient,
        false,
    )]);
    let received = agent.poll(&ContactData::default()).await.messages;
    assert_eq!(received[0].message_id, sent.to_bytes());
    assert_eq!(bed.store.faults_left(), []);
}

#[tokio::test]
async fn p_053_message_whose_hand_out_was_not_answered_comes_after_15_minutes() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    agent.poll(&ContactData::default()).await;
    let sent = bed.store_message_for(agent.id).await;
    bed.fail(&[fault(
        "client_messages_for_processing",
        ErrorKind::Transient,
        true,
    )]);
    for _ in 0..2 {
        assert_eq!(agent.poll(&ContactData::default()).await.messages, []);
    }
    bed.clock.advance(Duration::from_secs(15 * 60));
    let received = agent.poll(&ContactData::default()).await.messages;
    assert_eq!(received[0].message_id, sent.to_bytes());
}

#[tokio::test]
async fn p_053_stream_that_the_store_fails_is_refused_with_503_and_can_be_opened_again() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    for call in ["get_client_data", "add_client", "store_contact"] {
        bed.fail(&[fault(call, ErrorKind::Transient, false)]);
        let first = agent.wrapped(&contact(0..3));
        let refused = agent.try_stream(StreamOptions::default(), &first).await;
        assert_eq!(refused.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
        assert_eq!(bed.processed(&agent, 0..3).await, 0);
    }
    let first = agent.wrapped(&contact(0..3));
    let stream = agent.try_stream(StreamOptions::default(), &first).await;
    assert!(stream.is_ok());
    assert_eq!(bed.processed(&agent, 0..3).await, 3);
    assert_eq!(bed.store.faults_left(), []);
}

#[tokio::test]
async fn p_053_record_that_the_store_fails_ends_the_stream_and_is_accepted_when_sent_again() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    for applied in [false, true] {
        let mut stream = agent.stream(StreamOptions::default()).await;
        bed.fail(&[fault("store_messages", ErrorKind::Internal, applied)]);
        stream.send_contact(&contact(0..3));
        assert_eq!(stream.acks(1).await, []);
        let mut stream = agent.stream(StreamOptions::default()).await;
        stream.send_contact(&contact(0..3));
        assert_eq!(stream.acks(1).await, [1]);
        assert_eq!(bed.processed(&agent, 0..3).await, 3);
    }
    assert_eq!(bed.store.faults_left(), []);
}

#[tokio::test]
async fn p_053_record_is_kept_while_the_store_has_a_passing_trouble() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let mut stream = agent.stream(StreamOptions::default()).await;
    bed.fail(&[
        fault("store_messages", ErrorKind::Transient, false),
        fault("store_messages", ErrorKind::Transient, true),
    ]);
    stream.send_contact(&contact(0..3));
    stream.send_contact(&contact(3..6));
    assert_eq!(stream.acks(2).await, [1, 2]);
    assert_eq!(bed.processed(&agent, 0..6).await, 6);
    assert_eq!(bed.store.faults_left(), []);
}

#[tokio::test]
async fn p_053_stream_gets_its_message_though_the_store_fails_to_hand_it_out_first() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    agent.poll(&ContactData::default()).await;
    let sent = bed.store_message_for(agent.id).await;
    bed.fail(&[fault(
        "client_messages_for_processing",
        ErrorKind::Transient,
        false,
    )]);
    // The stream goes on or ends; an agent whose stream has ended comes back.
    let mut stream = agent.stream(StreamOptions::default()).await;
    let received = loop {
        match stream.frame().await {
            Some(frame) if !frame.messages.is_empty() => break frame.messages,
            Some(_) => {}
            None => stream = agent.stream(StreamOptions::default()).await,
        }
    };
    assert_eq!(received[0].message_id, sent.to_bytes());
    assert_eq!(bed.store.faults_left(), []);
}

// The service whose trouble passes is `system`: it needs the store.
#[tokio::test]
async fn p_048_message_with_a_temporary_error_is_tried_again_after_60_and_66_seconds() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    agent.poll(&ContactData::default()).await;
    let sent = bed.store_message_for(agent.id).await;
    agent.poll(&ContactData::default()).await;
    let ack = Message {
        source_message_id: message("system", 1).source_message_id,
        ..acknowledgement(&sent.to_bytes())
    };
    bed.fail(&[fault("get_messages", ErrorKind::Transient, false); 2]);
    agent
        .poll(&ContactData {
            messages: vec![ack],
            ..ContactData::default()
        })
        .await;

    let ack = id(&agent, 1);
    for seconds in [60, 66] {
        let kept = bed.store.inner.get_messages(&[ack], true).await.unwrap();
        assert!(kept[0].result.is_none() && kept[0].data.is_some());
        bed.clock.advance(Duration::from_secs(seconds - 1));
        assert_eq!(bed.store.retry_due_messages().await, 0, "{seconds}");
        bed.clock.advance(Duration::from_secs(1));
        assert_eq!(bed.store.retry_due_messages().await, 1, "{seconds}");
        // It goes on in the background: the first one meets the second fault.
        let met = async {
            while !bed.store.faults_left().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        soon("the fault", met).await;
    }
    for id in [ack, sent] {
        let finished = async {
            loop {
                let result = bed.store.inner.get_message_result(id).await.unwrap();
                match result {
                    Some(result) => return result,
                    None => tokio::task::yield_now().await,
                }
            }
        };
        assert!(!soon("a result", finished).await.failed);
    }
}

#[tokio::test]
async fn stream_is_woken_by_the_hints_of_its_store() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let mut stream = agent.stream(StreamOptions::default()).await;
    let sent = bed.store_message_for(agent.id).await;
    // One for somebody who is not here does no harm.
    bed.store.hint.send(ClientId::new([8; 8])).unwrap();
    bed.store.hint.send(agent.id).unwrap();
    let frame = stream.frame().await.unwrap();
    assert_eq!(frame.messages[0].message_id, sent.to_bytes());
}

#[tokio::test]
async fn messages_of_a_stream_that_breaks_before_it_begins_are_due_at_once() {
    for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
        let bed = Bed::start().await;
        let agent = bed.agent();
        agent.poll(&ContactData::default()).await;
        let sent = bed.store_message_for(agent.id).await;
        // The store has claimed it, and does not say so before the agent is gone.
        let answers = bed.store.hold("client_messages_for_processing");
        let options = StreamOptions {
            version,
            ..StreamOptions::default()
        };
        let first = agent.wrapped(&ContactData::default());
        let stream = agent.try_stream(options, &first);
        let is_claimed = async {
            while bed.store.waiting() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = stream => panic!("the stream began"),
            () = soon("the claim", is_claimed) => {}
        }
        answers.add_permits(100);
        // Nobody else gets it before its claim has ended, unless it is given back.
        let received = async {
            loop {
                let answer = agent.poll(&ContactData::default()).await;
                if let [message] = &answer.messages[..] {
                    return message.message_id.clone();
                }
            }
        };
        let received = soon("the message", Box::pin(received)).await;
        assert_eq!(received, sent.to_bytes(), "{version:?}");
    }
}
