//! Server messages: the claims and the processor (specification section 4).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use fleethold_proto::fleetspeak::Message;
use fleethold_store::{Clock, ErrorKind, MessageProcessor, Store, server_retry_time};
use futures::future::join_all;
use futures::poll;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::checks::{assert_messages, assert_refused, assert_same, cancel_after};
use crate::samples::{
    C1, ids_of, message_id, success, to_client, to_server, with_result, without_data,
};
use crate::{Bed, cases};

/// Longer than any first retry.
pub(crate) const OVERDUE: Duration = Duration::from_secs(121);

cases![
    f_33_server_message_is_due_after_its_growing_retry_time,
    server_claims_are_ordered_and_limited,
    concurrent_server_claims_never_share_a_message,
    client_and_server_messages_are_claimed_apart,
    b_044_to_046_processor_gets_due_messages,
    b_047_048_result_is_set_while_the_processor_is_registered,
    s_12_backlog_of_a_blacklisted_client_is_processed,
    f_31_processor_is_never_called_with_nothing,
    f_31_processor_gets_a_backlog_once_in_order,
    processor_sees_a_message_again_until_it_has_a_result,
    stopped_processor_is_not_called_again,
    f_32_stop_waits_for_the_running_call_only,
    dropped_stop_does_not_forget_the_running_call,
    f_32_new_processor_starts_after_the_old_one_has_finished,
    f_32_panic_of_the_processor_ends_only_its_call,
    f_35_close_waits_for_the_processor,
];

async fn f_33_server_message_is_due_after_its_growing_retry_time(bed: Bed) {
    const TICK: Duration = Duration::from_micros(1);
    let message = to_server(1, C1);
    bed.send(std::slice::from_ref(&message)).await;
    for claims in 0..6 {
        let retry = server_retry_time(bed.clock.now(), claims, 0.0);
        // Due times are whole microseconds, rounded down.
        let wait = retry.duration_since(bed.clock.now()).unwrap();
        let wait = Duration::from_micros(u64::try_from(wait.as_micros()).unwrap());
        bed.clock.advance(wait - TICK);
        let contract =
            format!("a message claimed {claims} times is due at server_retry_time({claims})");
        assert_messages(&contract, &bed.claim_on_server().await, &[]);
        bed.clock.advance(TICK);
        let claimed = bed.claim_on_server().await;
        assert_messages(&contract, &claimed, std::slice::from_ref(&message));
    }
    bed.send(&[with_result(&message, success(50))]).await;
    bed.clock.advance(Duration::from_secs(1_000_000));
    assert_messages(
        "a message with result is never due",
        &bed.claim_on_server().await,
        &[],
    );
}

async fn server_claims_are_ordered_and_limited(bed: Bed) {
    for (number, second) in [(5, 10), (1, 12), (9, 11), (3, 11), (7, 10)] {
        bed.clock.set(second);
        bed.send(&[to_server(number, C1)]).await;
    }
    bed.clock.advance(OVERDUE);
    let mut expected = [5, 7, 3, 9, 1].map(|number| to_server(number, C1)).to_vec();
    for limit in [0, 1, 2, u64::MAX] {
        let claimed = bed
            .store
            .server_messages_for_processing(limit)
            .await
            .unwrap();
        let count = expected
            .len()
            .min(usize::try_from(limit).unwrap_or(usize::MAX));
        let first: Vec<_> = expected.drain(..count).collect();
        assert_messages(
            "at most `limit`, oldest due first, ties by message id",
            &claimed,
            &first,
        );
    }
}

async fn concurrent_server_claims_never_share_a_message(bed: Bed) {
    for round in 0..10 {
        let messages: Vec<_> = (0..50)
            .map(|number| to_server(100 * round + number, C1))
            .collect();
        bed.send(&messages).await;
        bed.clock.advance(OVERDUE);
        let claims = (0..8).map(|_| {
            let store = Arc::clone(&bed.store);
            tokio::spawn(async move { store.server_messages_for_processing(20).await })
        });
        let mut claimed = Vec::new();
        for claim in join_all(claims).await {
            claimed.extend(ids_of(&claim.unwrap().unwrap()));
        }
        claimed.sort();
        assert_same(
            "each due message goes to exactly one caller",
            &claimed,
            &ids_of(&messages),
        );
        let done: Vec<_> = claimed.into_iter().map(|id| (id, success(50))).collect();
        bed.store.set_message_results(&done).await.unwrap();
    }
}

async fn client_and_server_messages_are_claimed_apart(bed: Bed) {
    bed.add_client(C1).await;
    let messages = [to_client(1, C1), to_server(2, C1)];
    bed.send(&messages).await;
    bed.clock.advance(OVERDUE);
    assert_messages(
        "only server messages",
        &bed.claim_on_server().await,
        &messages[1..],
    );
    assert_messages(
        "only messages to the client",
        &bed.claim(C1).await,
        &messages[..1],
    );
}

async fn b_044_to_046_processor_gets_due_messages(bed: Bed) {
    bed.add_client(C1).await;
    let (recorder, mut calls) = recorder();
    bed.store.register_message_processor(recorder).await;
    let message = to_server(1, C1);
    bed.send(std::slice::from_ref(&message)).await;
    bed.clock.advance(OVERDUE);
    let delivered = calls.next().await;
    assert_messages("the message equals the stored one", &delivered, &[message]);
}

async fn b_047_048_result_is_set_while_the_processor_is_registered(bed: Bed) {
    let (recorder, mut calls) = recorder();
    bed.store.register_message_processor(recorder).await;
    let message = to_server(1, C1);
    bed.send(std::slice::from_ref(&message)).await;
    bed.clock.advance(OVERDUE);
    calls.next().await;
    bed.store
        .set_message_result(None, message_id(1), &success(50))
        .await
        .unwrap();
    for _ in 0..2 {
        bed.store.stop_message_processor().await;
    }
    let found = bed.read(&[message_id(1)]).await;
    assert_messages(
        "the result is set",
        &found,
        &[with_result(&message, success(50))],
    );
}

async fn s_12_backlog_of_a_blacklisted_client_is_processed(bed: Bed) {
    bed.clock.set_retry(Duration::from_secs(1));
    bed.add_client(C1).await;
    bed.store.blacklist_client(C1).await.unwrap();
    let message = to_server(1, C1);
    bed.send(std::slice::from_ref(&message)).await;
    let (calls, mut called) = mpsc::unbounded_channel();
    let processor = Storing {
        store: Arc::downgrade(&bed.store),
        calls,
    };
    bed.store
        .register_message_processor(Arc::new(processor))
        .await;
    bed.clock.advance(Duration::from_secs(1));
    let stored = timeout(LIMIT, called.recv()).await.expect("a call in time");
    assert_eq!(stored, Some(true), "the processor may call the store");
    let found = bed.read(&[message_id(1)]).await;
    assert_messages(
        "the result shows",
        &found,
        &[with_result(&message, success(50))],
    );
}

async fn f_31_processor_is_never_called_with_nothing(bed: Bed) {
    let (recorder, mut calls) = recorder();
    bed.store.register_message_processor(recorder).await;
    calls
        .none("the processor is never called with no messages")
        .await;
    bed.send(&[to_client(1, C1), to_server(2, C1)]).await;
    calls
        .none("nor with messages that are not due, or to a client")
        .await;
    bed.clock.advance(OVERDUE);
    let delivered = calls.next().await;
    assert_messages("a due one is delivered", &delivered, &[to_server(2, C1)]);
    calls.none("once for each time it is due").await;
}

async fn f_31_processor_gets_a_backlog_once_in_order(bed: Bed) {
    let messages: Vec<_> = (0..350).map(|number| to_server(number, C1)).collect();
    // The later half is due earlier.
    bed.clock.advance(Duration::from_secs(5));
    bed.send(&messages[..150]).await;
    bed.clock.set(100_000);
    bed.send(&messages[150..]).await;
    bed.clock.advance(OVERDUE);
    let (recorder, mut calls) = recorder();
    bed.store.register_message_processor(recorder).await;
    let mut delivered = Vec::new();
    while delivered.len() < messages.len() {
        delivered.extend(calls.next().await);
    }
    let expected = [&messages[150..], &messages[..150]].concat();
    assert_messages(
        "oldest due first, ties by message id",
        &delivered,
        &expected,
    );
}

async fn processor_sees_a_message_again_until_it_has_a_result(bed: Bed) {
    let (recorder, mut calls) = recorder();
    bed.store.register_message_processor(recorder).await;
    let message = to_server(1, C1);
    bed.send(std::slice::from_ref(&message)).await;
    let mut wait = Duration::from_secs(60);
    for _ in 0..3 {
        bed.clock.advance(wait);
        let delivered = calls.next().await;
        assert_messages(
            "a message left without result is due again",
            &delivered,
            std::slice::from_ref(&message),
        );
        wait = wait.mul_f64(1.1);
    }
    bed.send(&[with_result(&message, success(50))]).await;
    bed.clock.advance(10 * OVERDUE);
    calls.none("a message with result is never delivered").await;
}

async fn stopped_processor_is_not_called_again(bed: Bed) {
    bed.store.stop_message_processor().await;
    let (recorder, mut calls) = recorder();
    bed.store
        .register_message_processor(Arc::<Recorder>::clone(&recorder))
        .await;
    bed.store.stop_message_processor().await;
    let message = to_server(1, C1);
    bed.send(std::slice::from_ref(&message)).await;
    bed.clock.advance(OVERDUE);
    calls.none("no call starts after the stop").await;
    bed.store.register_message_processor(recorder).await;
    let delivered = calls.next().await;
    assert_messages("it may be registered again", &delivered, &[message]);
}

async fn f_32_stop_waits_for_the_running_call_only(bed: Bed) {
    let (gate, mut calls) = gate();
    backlog(&bed).await;
    bed.store
        .register_message_processor(Arc::<Gate>::clone(&gate))
        .await;
    let claimed = calls.next().await.len();
    let mut stop = bed.store.stop_message_processor();
    assert!(poll!(&mut stop).is_pending(), "the call is still running");
    // Enough for all calls that might follow.
    gate.permits.add_permits(1_000);
    stop.await;
    assert!(
        gate.finished.load(Ordering::SeqCst),
        "stop returns after the running call"
    );
    calls.none("no further call starts, whatever is due").await;
    let left = bed.claim_on_server().await.len();
    assert_eq!(
        left,
        BACKLOG - claimed,
        "only what was delivered has been claimed"
    );
}

async fn dropped_stop_does_not_forget_the_running_call(bed: Bed) {
    let (gate, mut calls) = gate();
    backlog(&bed).await;
    bed.store
        .register_message_processor(Arc::<Gate>::clone(&gate))
        .await;
    calls.next().await;
    let stopped = cancel_after(1, bed.store.stop_message_processor()).await;
    assert!(stopped.is_none(), "the call is still running");
    let mut stop = bed.store.stop_message_processor();
    assert!(poll!(&mut stop).is_pending(), "the call is still running");
    gate.permits.add_permits(1_000);
    stop.await;
    assert!(
        gate.finished.load(Ordering::SeqCst),
        "stop returns after the running call"
    );
    calls.none("no further call starts").await;
}

async fn f_32_new_processor_starts_after_the_old_one_has_finished(bed: Bed) {
    let (old, mut old_calls) = gate();
    let (new, mut new_calls) = recorder();
    backlog(&bed).await;
    bed.store
        .register_message_processor(Arc::<Gate>::clone(&old))
        .await;
    let mut delivered = old_calls.next().await;
    let mut register = bed.store.register_message_processor(new);
    assert!(
        poll!(&mut register).is_pending(),
        "the old one is still running"
    );
    new_calls.none("the new one waits for the old one").await;
    old.permits.add_permits(1_000);
    register.await;
    assert!(
        old.finished.load(Ordering::SeqCst),
        "the old one has finished"
    );
    while delivered.len() < BACKLOG {
        delivered.extend(new_calls.next().await);
    }
    old_calls.none("the old one gets nothing any more").await;
    let ids: BTreeSet<_> = ids_of(&delivered).into_iter().collect();
    assert_eq!(ids.len(), BACKLOG, "every message is delivered once");
}

async fn f_32_panic_of_the_processor_ends_only_its_call(bed: Bed) {
    let (calls, mut called) = mpsc::unbounded_channel();
    let processor = Panicking {
        calls,
        count: AtomicU64::new(0),
    };
    bed.store
        .register_message_processor(Arc::new(processor))
        .await;
    for number in 1..=3 {
        bed.send(&[to_server(number, C1)]).await;
        bed.clock.advance(OVERDUE);
        let call = timeout(LIMIT, called.recv()).await;
        let contract = "a call comes, whatever the one before did";
        assert_same(contract, &call, &Ok(Some(())));
    }
    bed.store.stop_message_processor().await;
}

async fn f_35_close_waits_for_the_processor(bed: Bed) {
    let (gate, mut calls) = gate();
    backlog(&bed).await;
    bed.store
        .register_message_processor(Arc::<Gate>::clone(&gate))
        .await;
    let delivered = calls.next().await;
    let mut close = bed.store.close();
    assert!(poll!(&mut close).is_pending(), "the call is still running");
    let results: Vec<_> = delivered
        .iter()
        .map(|message| with_result(&without_data(message), success(50)))
        .collect();
    bed.store
        .store_messages(&results, None)
        .await
        .expect("the running call can still store its results");
    gate.permits.add_permits(1_000);
    close.await.unwrap();
    assert!(
        gate.finished.load(Ordering::SeqCst),
        "close returns after the running call"
    );
    calls.none("no further call starts").await;
    assert_refused(
        "other calls fail with `Closed` afterwards",
        bed.store.server_messages_for_processing(1).await,
        ErrorKind::Closed,
    );
}

/// More server messages than any batch.
const BACKLOG: usize = 350;

/// How long a call of the processor may take to come.
const LIMIT: Duration = Duration::from_secs(20);

/// More than two periods of the loop.
const PERIODS: Duration = Duration::from_millis(700);

async fn backlog(bed: &Bed) {
    let messages: Vec<_> = (0..)
        .map(|number| to_server(number, C1))
        .take(BACKLOG)
        .collect();
    bed.send(&messages).await;
    bed.clock.advance(OVERDUE);
}

/// What a processor was called with.
pub(crate) struct Calls(mpsc::UnboundedReceiver<Vec<Message>>);

impl Calls {
    pub(crate) async fn next(&mut self) -> Vec<Message> {
        let call = timeout(LIMIT, self.0.recv()).await;
        let call = call.unwrap_or_else(|_| panic!("the processor is called within {LIMIT:?}"));
        let messages = call.expect("the processor is registered");
        assert!(
            !messages.is_empty(),
            "the processor is never called with no messages"
        );
        messages
    }

    /// Checks that no call comes for a while; the end of all calls is none.
    pub(crate) async fn none(&mut self, contract: &str) {
        if let Ok(Some(messages)) = timeout(PERIODS, self.0.recv()).await {
            panic!(
                "{contract}\n  found a call with {} messages",
                messages.len()
            );
        }
    }
}

/// Ignores its calls.
pub(crate) struct Silent;

#[async_trait]
impl MessageProcessor for Silent {
    async fn process(&self, _messages: Vec<Message>) {}
}

/// Reports its calls.
pub(crate) struct Recorder(mpsc::UnboundedSender<Vec<Message>>);

pub(crate) fn recorder() -> (Arc<Recorder>, Calls) {
    let (calls, called) = mpsc::unbounded_channel();
    (Arc::new(Recorder(calls)), Calls(called))
}

#[async_trait]
impl MessageProcessor for Recorder {
    async fn process(&self, messages: Vec<Message>) {
        // Nobody listens any more when a case has ended.
        let _ = self.0.send(messages);
    }
}

/// Reports its calls and does not return from them without a permit.
struct Gate {
    calls: mpsc::UnboundedSender<Vec<Message>>,
    permits: Semaphore,
    finished: AtomicBool,
}

fn gate() -> (Arc<Gate>, Calls) {
    let (calls, called) = mpsc::unbounded_channel();
    let gate = Gate {
        calls,
        permits: Semaphore::new(0),
        finished: AtomicBool::new(false),
    };
    (Arc::new(gate), Calls(called))
}

#[async_trait]
impl MessageProcessor for Gate {
    async fn process(&self, messages: Vec<Message>) {
        let _ = self.calls.send(messages);
        self.permits.acquire().await.expect("never closed").forget();
        self.finished.store(true, Ordering::SeqCst);
    }
}

/// Stores a success for each message, as a server does.
struct Storing {
    store: Weak<dyn Store>,
    /// Whether storing worked.
    calls: mpsc::UnboundedSender<bool>,
}

#[async_trait]
impl MessageProcessor for Storing {
    async fn process(&self, messages: Vec<Message>) {
        let results: Vec<_> = messages
            .iter()
            .map(|message| with_result(message, success(50)))
            .collect();
        let store = self.store.upgrade().expect("the case keeps the store");
        let stored = store.store_messages(&results, None).await.is_ok();
        let _ = self.calls.send(stored);
    }
}

/// Panics at once in its first call, and after an await in the second.
struct Panicking {
    calls: mpsc::UnboundedSender<()>,
    count: AtomicU64,
}

#[async_trait]
impl MessageProcessor for Panicking {
    async fn process(&self, _messages: Vec<Message>) {
        let _ = self.calls.send(());
        match self.count.fetch_add(1, Ordering::SeqCst) {
            0 => panic!("the first call panics, as it should"),
            1 => {
                tokio::task::yield_now().await;
                panic!("the second call panics later, as it should");
            }
            _ => {}
        }
    }
}
