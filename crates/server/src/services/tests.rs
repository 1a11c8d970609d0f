//! Services that fail in every way, and what becomes of their messages.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use fleethold_proto::Any;
use fleethold_proto::fleetspeak::Address;
use fleethold_store::{ManualClock, MemoryStore, MessageProcessor, MessageStore, Random};
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
            "slow" => {
                tokio::time::sleep(Duration::from_millis(5)).await;
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
async fn service_that_hangs_does_not_hold_the_backlog_of_others() {
    let mut bed = bed(DEFAULT_PARALLELISM);
    let other = Arc::new(Obedient::default());
    let services = Arc::get_mut(&mut bed.services).unwrap();
    services.install("other", Arc::<Obedient>::clone(&other), DEFAULT_PARALLELISM);
    let backlog = Backlog(Arc::clone(&bed.services));
    let hanging = (0..=255).map(|number| message(number, "wait"));
    let mut others: Vec<_> = (0..50).map(|number| message(number, "succeed")).collect();
    for message in &mut others {
        message.destination.as_mut().unwrap().service_name = "other".into();
        let id = Bytes::from([&[9], &message.message_id[1..]].concat());
        message.message_id = id;
    }
    bed.store.store_messages(&others, None).await.unwrap();
    // As a store does it: one call after the other, and each returns.
    for claim in hanging.collect::<Vec<_>>().chunks(100) {
        backlog.process(claim.to_vec()).await;
    }
    backlog.process(others.clone()).await;
    while pending(&bed.store, &others).await > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(other.calls.load(Ordering::Relaxed), 50);
    let calls = || bed.service.calls.load(Ordering::Relaxed);
    assert_eq!(calls(), 100, "what does not fit waits for its retry");
    // When it works again it gets as much as before.
    while !bed.services.background.is_empty() {
        bed.service.go_on.notify_waiters();
        tokio::task::yield_now().await;
    }
    let more = (0..100).map(|number| message(number, "succeed")).collect();
    backlog.process(more).await;
    bed.services.finish(Duration::from_secs(10)).await;
    assert_eq!(calls(), 200);
}

#[tokio::test]
async fn backlog_of_a_service_that_is_slow_is_not_left_to_retries() {
    let bed = bed(2);
    let backlog = Backlog(Arc::clone(&bed.services));
    let claims = (0..5).map(|claim: u8| {
        let numbers = 0..10;
        let messages = numbers.map(|number| message(10 * claim + number, "slow"));
        messages.collect::<Vec<_>>()
    });
    let claims: Vec<_> = claims.collect();
    for claim in claims.clone() {
        bed.store.store_messages(&claim, None).await.unwrap();
        backlog.process(claim).await;
    }
    bed.services.finish(Duration::from_secs(10)).await;
    assert_eq!(pending(&bed.store, &claims.concat()).await, 0);
}

/// Returns how many of the messages have no result.
async fn pending(store: &MemoryStore, messages: &[Message]) -> usize {
    let ids = messages.iter().map(|message| &message.message_id[..]);
    let ids: Vec<_> = ids.map(|id| MessageId::try_from(id).unwrap()).collect();
    let stored = store.get_messages(&ids, false).await.unwrap();
    let pending = stored.iter().filter(|message| message.result.is_none());
    pending.count()
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
