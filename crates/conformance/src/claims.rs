//! Claims of messages to a client (specification section 3.2.8).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::fleetspeak::Message;
use fleethold_store::limits::{MAX_CLAIM_BYTES, MOST_EARLY_CLAIMS, fills_claim};
use fleethold_store::{BROADCAST_UNLIMITED, Clock, MAX_PAYLOAD_BYTES, ServiceLimits, clock};
use futures::future::join_all;

use crate::checks::{assert_messages, assert_same};
use crate::samples::{
    C1, SERVICE, broadcast, broadcast_id, client_id, data, for_service, ids_of, message_id,
    success, tags, to_client, to_server,
};
use crate::{Bed, cases};

cases![
    b_022_023_claimed_message_equals_the_stored_one,
    b_024_to_030_claims_keep_service_limits_and_hand_out_nothing_twice,
    s_06_message_to_a_client_is_due_at_once,
    s_10_claim_with_tokens_leaves_messages_pending_until_acknowledged,
    f_05_claim_limits_mean_what_they_say,
    f_04_missing_service_accepts_nothing,
    skipped_messages_do_not_count_towards_the_limit,
    claims_are_ordered_by_due_time_then_id,
    claimed_message_is_due_again_after_the_retry_time,
    claim_ends_when_payloads_fill_it,
    released_messages_are_due_at_once,
    only_messages_that_the_client_was_handed_are_released,
    message_is_given_back_three_times_at_most,
    message_of_a_broadcast_can_be_given_back,
    f_01_concurrent_claims_never_share_a_message,
    f_03_concurrent_claims_keep_service_limits,
];

async fn b_022_023_claimed_message_equals_the_stored_one(bed: Bed) {
    bed.add_client(C1).await;
    let message = Message {
        source_message_id: Bytes::from_static(b"source"),
        message_type: String::new(),
        data: None,
        validation_info: Some(tags("Valid")),
        ..to_client(1, C1)
    };
    bed.send(std::slice::from_ref(&message)).await;
    bed.clock.set(300_000);
    let claimed = bed
        .store
        .client_messages_for_processing(C1, 10, None)
        .await
        .unwrap();
    assert_messages(
        "a claimed message equals the stored one",
        &claimed,
        &[message],
    );
}

async fn b_024_to_030_claims_keep_service_limits_and_hand_out_nothing_twice(bed: Bed) {
    bed.add_client(C1).await;
    let messages: Vec<_> = (0..200)
        .map(|number| {
            let service = if number % 2 == 0 {
                "service1"
            } else {
                "service2"
            };
            for_service(to_client(number, C1), service)
        })
        .collect();
    bed.send(&messages).await;

    let mut claimed = BTreeSet::new();
    for service in ["service1", "service2"] {
        let limits = ServiceLimits::from([(service.to_owned(), 5)]);
        let some = bed
            .store
            .client_messages_for_processing(C1, 10, Some(&limits))
            .await
            .unwrap();
        assert_eq!(
            services_of(&some),
            [service; 5],
            "a claim never has more messages for a service than its limit, and none for others"
        );
        claimed.extend(ids_of(&some));
    }
    for round in 0..21 {
        let some = bed
            .store
            .client_messages_for_processing(C1, 10, None)
            .await
            .unwrap();
        let expected = if round < 19 { 10 } else { 0 };
        assert_eq!(some.len(), expected, "claim number {round} without limits");
        claimed.extend(ids_of(&some));
    }
    assert_eq!(claimed.len(), 200, "every message is handed out once");
}

async fn s_06_message_to_a_client_is_due_at_once(bed: Bed) {
    bed.add_client(C1).await;
    let message = Message {
        creation_time: Some(clock::timestamp(bed.clock.now())),
        ..to_client(1, C1)
    };
    bed.send(std::slice::from_ref(&message)).await;
    let claimed = bed.claim(C1).await;
    assert_messages(
        "a new message is due at once for a client",
        &claimed,
        &[message],
    );
}

async fn s_10_claim_with_tokens_leaves_messages_pending_until_acknowledged(bed: Bed) {
    let die = for_service(to_client(1, C1), "system");
    let other = for_service(to_client(2, C1), "foo");
    bed.send(&[die.clone(), other.clone()]).await;
    let tokens = ServiceLimits::from([("foo".to_owned(), 20), ("system".to_owned(), 20)]);
    let claimed = bed
        .store
        .client_messages_for_processing(C1, 100, Some(&tokens))
        .await
        .unwrap();
    assert_messages(
        "tokens for both services let both messages pass",
        &claimed,
        &[die, other.clone()],
    );
    bed.store
        .set_message_result(Some(C1), message_id(1), &success(42))
        .await
        .unwrap();
    let found = bed.pending(&[C1]).await;
    assert_messages(
        "a message stays pending until it has a result",
        &found,
        &[other],
    );
}

async fn f_05_claim_limits_mean_what_they_say(bed: Bed) {
    let messages = [to_client(1, C1), to_client(2, C1), to_client(3, C1)];
    bed.send(&messages).await;
    for (limit, expected) in [
        (0, &messages[..0]),
        (1, &messages[..1]),
        (u64::MAX, &messages[1..]),
    ] {
        let claimed = bed.store.client_messages_for_processing(C1, limit, None);
        assert_messages(
            "at most `limit` messages are claimed",
            &claimed.await.unwrap(),
            expected,
        );
    }
    assert_messages(
        "an unknown client has no messages",
        &bed.claim(client_id(9)).await,
        &[],
    );
}

async fn f_04_missing_service_accepts_nothing(bed: Bed) {
    let messages: Vec<_> = (0..6)
        .map(|number| for_service(to_client(number, C1), ["a", "b"][usize::from(number >= 3)]))
        .collect();
    bed.send(&messages).await;
    let limits = |limits: &[(&str, u64)]| -> ServiceLimits {
        limits
            .iter()
            .map(|(service, limit)| ((*service).to_owned(), *limit))
            .collect()
    };
    for (limits, expected) in [
        (limits(&[]), &messages[..0]),
        (limits(&[("c", 5), ("A", 5)]), &messages[..0]),
        (limits(&[("a", 0), ("b", 0)]), &messages[..0]),
        (limits(&[("a", 2), ("b", 0)]), &messages[..2]),
        (limits(&[("b", u64::MAX), ("c", u64::MAX)]), &messages[3..]),
        (limits(&[("a", u64::MAX), ("b", u64::MAX)]), &messages[2..3]),
    ] {
        let claimed = bed
            .store
            .client_messages_for_processing(C1, 10, Some(&limits))
            .await
            .unwrap();
        assert_messages(
            "never more messages per destination service than the limits say; a missing service accepts none",
            &claimed,
            expected,
        );
    }
}

async fn skipped_messages_do_not_count_towards_the_limit(bed: Bed) {
    let mut messages: Vec<_> = (0..300).map(|number| to_client(number, C1)).collect();
    messages.push(for_service(to_client(300, C1), "late"));
    messages.push(for_service(to_client(301, C1), "late"));
    bed.send(&messages).await;
    let limits = ServiceLimits::from([("late".to_owned(), 9), (SERVICE.to_owned(), 1)]);
    let claimed = bed
        .store
        .client_messages_for_processing(C1, 2, Some(&limits))
        .await
        .unwrap();
    assert_messages(
        "messages skipped for their service do not count towards `limit`",
        &claimed,
        &[messages[0].clone(), messages[300].clone()],
    );
    assert_eq!(bed.claim(C1).await.len(), 300, "skipped messages stay due");
}

async fn claims_are_ordered_by_due_time_then_id(bed: Bed) {
    for (number, second) in [
        (5, 200_000),
        (1, 200_002),
        (9, 200_001),
        (3, 200_001),
        (7, 200_000),
    ] {
        bed.clock.set(second);
        bed.send(&[to_client(number, C1)]).await;
    }
    let claimed = bed
        .store
        .client_messages_for_processing(C1, 3, None)
        .await
        .unwrap();
    assert_messages(
        "oldest due first, ties by message id",
        &claimed,
        &[5, 7].map(|number| to_client(number, C1)),
    );
    bed.clock.set(200_002);
    let claimed = bed
        .store
        .client_messages_for_processing(C1, 2, None)
        .await
        .unwrap();
    assert_messages(
        "oldest due first, ties by message id",
        &claimed,
        &[3, 9].map(|number| to_client(number, C1)),
    );
    let claimed = bed.claim(C1).await;
    assert_messages(
        "oldest due first, ties by message id",
        &claimed,
        &[to_client(1, C1)],
    );
}

async fn claimed_message_is_due_again_after_the_retry_time(bed: Bed) {
    const QUARTER: Duration = Duration::from_secs(15 * 60);
    const TICK: Duration = Duration::from_micros(1);
    let messages = [to_client(1, C1), to_client(2, C1)];
    bed.send(&messages).await;
    let claimed = bed
        .store
        .client_messages_for_processing(C1, 1, None)
        .await
        .unwrap();
    assert_messages("a limit of 1", &claimed, &messages[..1]);
    assert_messages(
        "a message not returned stays due",
        &bed.claim(C1).await,
        &messages[1..],
    );
    for _ in 0..3 {
        bed.clock.advance(QUARTER - TICK);
        assert_messages(
            "a claimed message is not due before its retry time",
            &bed.claim(C1).await,
            &[],
        );
        bed.clock.advance(TICK);
        assert_messages(
            "a message is due when its time is now",
            &bed.claim(C1).await,
            &messages,
        );
    }
}

async fn claim_ends_when_payloads_fill_it(bed: Bed) {
    const THIRD: usize = MAX_CLAIM_BYTES / 3;
    let sized = |message: Message, bytes: usize| Message {
        data: Some(data(vec![7; bytes])),
        ..message
    };
    let to_client: Vec<_> = [
        THIRD,
        THIRD,
        MAX_CLAIM_BYTES - 2 * THIRD - 1,
        1,
        THIRD,
        MAX_PAYLOAD_BYTES,
        1,
    ]
    .into_iter()
    .zip(1..)
    .map(|(bytes, number)| sized(to_client(number, C1), bytes))
    .collect();
    bed.send(&to_client).await;
    for expected in [4, 2, 1, 0] {
        let claimed = bed.claim(C1).await;
        assert_eq!(
            claimed.len(),
            expected,
            "a claim ends with the message that brings its payloads to `MAX_CLAIM_BYTES`"
        );
        assert_eq!(
            fills_claim(&claimed),
            expected > 1,
            "`fills_claim` tells whether there may be more"
        );
    }
    let to_server: Vec<_> = (10..13)
        .map(|number| sized(to_server(number, C1), MAX_CLAIM_BYTES / 2))
        .collect();
    bed.send(&to_server).await;
    bed.clock.set(200_000);
    for expected in [2, 1, 0] {
        let claimed = bed.store.server_messages_for_processing(10).await.unwrap();
        assert_eq!(
            claimed.len(),
            expected,
            "the same holds for server messages"
        );
    }
}

async fn released_messages_are_due_at_once(bed: Bed) {
    let messages = [1, 2, 3].map(|number| to_client(number, C1));
    bed.send(&messages).await;
    assert_eq!(bed.claim(C1).await.len(), 3, "all are claimed");
    bed.clock.advance(Duration::from_secs(60));
    bed.store
        .release_messages(C1, &ids_of(&messages[1..]))
        .await
        .unwrap();
    assert_messages(
        "released messages are due at once, and claimed again",
        &bed.claim(C1).await,
        &messages[1..],
    );
    assert_messages("and only once", &bed.claim(C1).await, &[]);
    bed.clock.advance(Duration::from_secs(14 * 60));
    assert_messages(
        "the others when their own claim ends",
        &bed.claim(C1).await,
        &messages[..1],
    );
}

async fn only_messages_that_the_client_was_handed_are_released(bed: Bed) {
    let other = client_id(9);
    let (done, foreign, waiting) = (to_client(1, C1), to_client(2, other), to_client(4, C1));
    let on_server = to_server(3, C1);
    bed.send(&[done.clone(), foreign.clone(), on_server.clone()])
        .await;
    bed.claim(C1).await;
    bed.claim(other).await;
    bed.store
        .set_message_result(None, message_id(1), &success(1))
        .await
        .unwrap();
    bed.clock.advance(Duration::from_secs(1));
    bed.send(std::slice::from_ref(&waiting)).await;
    bed.clock.advance(Duration::from_secs(1));
    let newest = to_client(0, C1);
    bed.send(std::slice::from_ref(&newest)).await;
    let ids = [1, 2, 3, 4, 77].map(message_id);
    bed.store.release_messages(C1, &ids).await.unwrap();
    bed.store.release_messages(C1, &[]).await.unwrap();
    bed.store
        .release_messages(client_id(77), &ids)
        .await
        .unwrap();
    assert_messages(
        "what is done stays done, and what was due keeps its place",
        &bed.claim(C1).await,
        &[waiting, newest],
    );
    assert_messages(
        "a message of another client stays claimed",
        &bed.claim(other).await,
        &[],
    );
    assert_messages(
        "and one for the server is not due earlier",
        &bed.store.server_messages_for_processing(10).await.unwrap(),
        &[],
    );
}

async fn message_is_given_back_three_times_at_most(bed: Bed) {
    bed.send(&[to_client(1, C1)]).await;
    for given_back in 0..5 {
        let expected = usize::from(given_back <= MOST_EARLY_CLAIMS);
        assert_eq!(
            bed.claim(C1).await.len(),
            expected,
            "a message that was given back {given_back} times"
        );
        let ids = [message_id(1)];
        bed.store.release_messages(C1, &ids).await.unwrap();
    }
    bed.clock.advance(Duration::from_secs(15 * 60));
    assert_eq!(bed.claim(C1).await.len(), 1, "it comes when its claim ends");
}

async fn message_of_a_broadcast_can_be_given_back(bed: Bed) {
    let message = to_client(1, C1);
    bed.add_client(C1).await;
    let store = &bed.store;
    let unlimited = BROADCAST_UNLIMITED;
    store
        .create_broadcast(&broadcast(0), unlimited)
        .await
        .unwrap();
    store
        .save_broadcast_message(&message, broadcast_id(0), C1, None)
        .await
        .unwrap();
    assert_messages(
        "it was handed out when it was saved",
        &bed.claim(C1).await,
        &[],
    );
    store.release_messages(C1, &[message_id(1)]).await.unwrap();
    assert_messages("given back, it is due", &bed.claim(C1).await, &[message]);
}

async fn f_01_concurrent_claims_never_share_a_message(bed: Bed) {
    for round in 0..10 {
        let messages: Vec<_> = (0..50)
            .map(|number| to_client(100 * round + number, C1))
            .collect();
        bed.send(&messages).await;
        let claims = (0..8).map(|_| {
            let store = Arc::clone(&bed.store);
            tokio::spawn(async move { store.client_messages_for_processing(C1, 20, None).await })
        });
        let mut claimed = Vec::new();
        for claim in join_all(claims).await {
            claimed.extend(ids_of(&claim.unwrap().unwrap()));
        }
        claimed.sort();
        assert_same(
            "each due message goes to exactly one of many callers",
            &claimed,
            &ids_of(&messages),
        );
    }
}

async fn f_03_concurrent_claims_keep_service_limits(bed: Bed) {
    let messages: Vec<_> = (0..50).map(|number| to_client(number, C1)).collect();
    bed.send(&messages).await;
    let claims = (0..8).map(|_| {
        let store = Arc::clone(&bed.store);
        tokio::spawn(async move {
            let limits = ServiceLimits::from([(SERVICE.to_owned(), 5)]);
            store
                .client_messages_for_processing(C1, 100, Some(&limits))
                .await
        })
    });
    for claim in join_all(claims).await {
        let claimed = claim.unwrap().unwrap();
        assert_eq!(
            claimed.len(),
            5,
            "never more messages per service than its limit, nor fewer"
        );
    }
    assert_eq!(
        bed.claim(C1).await.len(),
        10,
        "what was not returned stays due"
    );
}

fn services_of(messages: &[Message]) -> Vec<&str> {
    messages
        .iter()
        .filter_map(|message| message.destination.as_ref())
        .map(|to| to.service_name.as_str())
        .collect()
}
