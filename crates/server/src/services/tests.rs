//! Services that fail in every way, and what becomes of their messages.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use fleethold_proto::Any;
use fleethold_proto::fleetspeak::Address;
use fleethold_store::{ManualClock, MemoryStore, MessageStore, Random};
use tokio::sync::Notify;

use super::*;
use crate::streams::Streams;

/// Does what a message's type says.
#[derive(Default)]
struct Obedient {
    calls: AtomicUsize,
    go_on: Notify,
}

#[async_trait]
impl Service for Obedient {
    async fn process(&self, message: &Message, _deadline: Instant) -> Result<(), ServiceError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        match message.message_type.as_str() {
            "succeed" => Ok(()),
            "fail" => Err(ServiceError::Permanent("x".repeat(1000))),
            "retry" => Err(ServiceError::Temporary("later".into())),
            "panic" => panic!("as told"),
            "wait" => {
                self.go_on.notified().await;
                Ok(())
            }
            other => unreachable!("{other}"),
        }
    }
}

struct Bed {
    services: Arc<Services>,
    service: Arc<Obedient>,
    store: Arc<MemoryStore>,
}

fn bed(max_parallelism: u32) -> Bed {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(1000));
    let memory = Arc::new(MemoryStore::new(
        Arc::clone(&clock),
        Arc::new(Random::seeded(1)),
    ));
    let store: Arc<dyn Store> = Arc::<MemoryStore>::clone(&memory);
    let cache = Arc::new(ClientCache::new(Arc::clone(&store)));
    let metrics = Arc::new(Metrics::new(true));
    let system = system::SystemService {
        store: Arc::clone(&store),
        cache: Arc::clone(&cache),
        streams: Arc::new(Streams::default()),
        clock: Arc::clone(&clock),
        metrics: Arc::clone(&metrics),
    };
    let mut services = Services::new(&[], system, store, cache, clock, metrics)
        .unwrap_or_else(|error| panic!("{error}"));
    let service = Arc::new(Obedient::default());
    services.install(
        "obedient",
        Arc::<Obedient>::clone(&service),
        max_parallelism,
    );
    Bed {
        services: Arc::new(services),
        service,
        store: memory,
    }
}

fn message(number: u8, kind: &str) -> Message {
    Message {
        message_id: Bytes::from(vec![number; 32]),
        destination: Some(Address {
            service_name: "obedient".into(),
            ..Address::default()
        }),
        creation_time: Some(fleethold_proto::Timestamp {
            seconds: 1,
            nanos: 0,
        }),
        message_type: kind.into(),
        data: Some(Any::default()),
        ..Message::default()
    }
}

#[tokio::test]
async fn each_outcome_becomes_its_result() {
    let kinds = ["succeed", "fail", "retry", "panic"];
    let messages = kinds.iter().map(|kind| message(1, kind)).collect();
    let processed = bed(DEFAULT_PARALLELISM)
        .services
        .process(messages, Try::First)
        .await;
    let results: Vec<_> = processed
        .iter()
        .map(|message| (message.result.as_ref(), message.data.is_some()))
        .collect();
    assert!(matches!(results[0], (Some(result), false) if !result.failed));
    // P-047: a long reason is cut to 897 bytes and dots.
    assert!(
        matches!(results[1], (Some(result), false) if result.failed && result.failed_reason.len() == 900)
    );
    assert_eq!(results[2], (None, true));
    assert_eq!(results[3], (None, true));
}

#[tokio::test]
async fn p_049_no_more_calls_run_than_the_service_allows() {
    let bed = bed(2);
    let messages = (0..5).map(|number| message(number, "wait")).collect();
    let services = Arc::clone(&bed.services);
    let all = tokio::spawn(async move { services.process(messages, Try::First).await });
    for finished in 0..5 {
        while bed.service.calls.load(Ordering::Relaxed) < (finished + 2).min(5) {
            tokio::task::yield_now().await;
        }
        assert!(bed.service.calls.load(Ordering::Relaxed) <= finished + 2);
        bed.service.go_on.notify_one();
    }
    assert!(
        all.await
            .unwrap()
            .iter()
            .all(|message| message.result.is_some())
    );
}

/// Lets a service with one place process the messages; returns how many it
/// processed and how many stayed pending.
async fn one_after_the_other(messages: Vec<Message>, enough: usize) -> (usize, usize) {
    let bed = bed(1);
    let services = Arc::clone(&bed.services);
    let all = tokio::spawn(async move { services.process(messages, Try::First).await });
    for call in 1..=enough {
        while bed.service.calls.load(Ordering::Relaxed) < call {
            tokio::task::yield_now().await;
        }
        bed.service.go_on.notify_one();
    }
    let processed = all.await.unwrap();
    let is_done = |message: &&Message| message.result.is_some() && message.data.is_none();
    let is_kept = |message: &&Message| message.result.is_none() && message.data.is_some();
    (
        processed.iter().filter(is_done).count(),
        processed.iter().filter(is_kept).count(),
    )
}

#[tokio::test]
async fn p_049_ten_messages_wait_for_each_place_and_the_rest_for_its_retry() {
    let messages = (0..20).map(|number| message(number, "wait")).collect();
    assert_eq!(one_after_the_other(messages, 11).await, (11, 9));
}

#[tokio::test]
async fn messages_that_wait_for_a_service_have_at_most_64_mib() {
    let payload = Bytes::from(vec![7; 40 << 20]);
    let large = |number| Message {
        data: Some(Any {
            value: payload.clone(),
            ..Any::default()
        }),
        ..message(number, "wait")
    };
    let messages = (0..4).map(large).collect();
    assert_eq!(one_after_the_other(messages, 2).await, (2, 2));
}

#[tokio::test]
async fn p_050_message_whose_service_misses_the_deadline_stays_pending() {
    let deadline = Instant::now() + Duration::from_millis(5);
    let processed = bed(DEFAULT_PARALLELISM)
        .services
        .process_one(message(1, "wait"), deadline, Try::Again)
        .await;
    assert_eq!(
        (processed.result, processed.data),
        (None, Some(Any::default()))
    );
}

#[tokio::test]
async fn p_154_stored_message_is_processed_at_once() {
    let bed = bed(DEFAULT_PARALLELISM);
    let message = message(1, "succeed");
    bed.store
        .store_messages(std::slice::from_ref(&message), None)
        .await
        .unwrap();
    bed.services.process_stored(message);
    bed.services.finish(Duration::from_secs(10)).await;
    let result = bed
        .store
        .get_message_result(MessageId::new([1; 32]))
        .await
        .unwrap();
    assert!(!result.unwrap().failed);
}

#[test]
fn long_failure_reason_ends_with_dots_after_897_bytes() {
    assert_eq!(shorten(&"x".repeat(900)), "x".repeat(900));
    assert_eq!(shorten(&"x".repeat(901)), format!("{}...", "x".repeat(897)));
}
