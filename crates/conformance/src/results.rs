//! Results of messages: by storing, by setting and by removing (specification
//! sections 3.1 and 3.2).

use std::time::Duration;

use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::{Annotations, Message, MessageResult};
use fleethold_store::{ErrorKind, REMOVED_BY_ADMIN};

use crate::checks::{assert_messages, assert_refused, assert_same};
use crate::messages::five_pending;
use crate::samples::{
    C1, C2, WITH_DATA, client_id, contact, data, failure, id_of, ids_of, message_id, seconds,
    success, to_client, to_server, with_result,
};
use crate::{Bed, cases};

cases![
    b_013_to_021_success_replaces_every_result,
    b_040_to_043_removed_messages_have_failed,
    s_11_long_reason_is_kept,
    s_13_acknowledged_messages_succeed_and_reported_ones_fail,
    f_06_every_pair_of_stored_and_incoming_state_follows_the_table,
    message_twice_in_one_call_is_like_two_calls,
    f_07_08_result_is_set_whatever_was_there,
    set_result_needs_a_time,
    many_results_are_set_at_once_or_not_at_all,
];

async fn b_013_to_021_success_replaces_every_result(bed: Bed) {
    bed.clock.set(43);
    bed.add_client(C1).await;
    let contact = bed.store.record_client_contact(&contact(C1)).await.unwrap();
    let precise = MessageResult {
        processed_time: Some(Timestamp {
            seconds: 42,
            nanos: 20_000,
        }),
        ..MessageResult::default()
    };
    let messages = [
        to_server(1, C1),
        with_result(&to_server(2, C1), precise.clone()),
        with_result(&to_server(3, C1), failure(42, "broken test message")),
    ];
    bed.store
        .store_messages(&messages, Some(&contact))
        .await
        .unwrap();
    assert_results(
        &bed,
        "results are stored with their messages",
        &[
            None,
            Some(precise),
            Some(failure(42, "broken test message")),
        ],
    )
    .await;

    let processed = messages.map(|message| Message {
        creation_time: Some(seconds(52)),
        ..with_result(&message, success(52))
    });
    bed.store
        .store_messages(&processed, Some(&contact))
        .await
        .unwrap();
    assert_results(
        &bed,
        "a success result replaces any earlier result",
        &[Some(success(52)), Some(success(52)), Some(success(52))],
    )
    .await;
}

async fn b_040_to_043_removed_messages_have_failed(bed: Bed) {
    let messages = five_pending(&bed).await;
    bed.store.delete_pending_messages(&[C1]).await.unwrap();
    let claimed = bed.store.client_messages_for_processing(C1, 1, None).await;
    assert_messages(
        "a removed message is never handed out",
        &claimed.unwrap(),
        &[],
    );
    for message in &messages {
        let result = bed.store.get_message_result(id_of(message)).await.unwrap();
        assert_same(
            "a removed message failed now with this reason",
            &result,
            &Some(failure(43, "Removed by admin action.")),
        );
    }
    assert_eq!(REMOVED_BY_ADMIN, "Removed by admin action.");
    let count = bed.store.get_pending_message_count(&[C1]).await.unwrap();
    assert_same("a removed message is not pending", &count, &0);
    let found = bed.read(&ids_of(&messages)).await;
    let expected: Vec<_> = messages
        .iter()
        .map(|message| with_result(message, failure(43, REMOVED_BY_ADMIN)))
        .collect();
    assert_messages("a removed message stays without payload", &found, &expected);
    bed.store.delete_pending_messages(&[C1]).await.unwrap();
}

async fn s_11_long_reason_is_kept(bed: Bed) {
    let reason = "ä".repeat(450);
    bed.send(&[to_server(1, C1)]).await;
    bed.send(&[with_result(&to_server(1, C1), failure(42, &reason))])
        .await;
    let result = bed.store.get_message_result(message_id(1)).await.unwrap();
    assert_same(
        "a reason of 900 bytes is kept",
        &result,
        &Some(failure(42, &reason)),
    );
}

async fn s_13_acknowledged_messages_succeed_and_reported_ones_fail(bed: Bed) {
    bed.send(&[to_client(1, C1), to_client(2, C1)]).await;
    bed.claim(C1).await;
    let results = [
        (message_id(1), success(50)),
        (message_id(2), failure(51, "no such file")),
    ];
    bed.store.set_message_results(&results[..1]).await.unwrap();
    let (id, result) = &results[1];
    bed.store
        .set_message_result(Some(C1), *id, result)
        .await
        .unwrap();
    assert_results(
        &bed,
        "acknowledged messages succeed, reported ones fail",
        &[Some(success(50)), Some(failure(51, "no such file"))],
    )
    .await;

    let unknown_service = with_result(&to_server(3, C1), failure(52, "unknown service"));
    bed.send(&[unknown_service]).await;
    let result = bed.store.get_message_result(message_id(3)).await.unwrap();
    assert_same(
        "a message may be stored as failed",
        &result,
        &Some(failure(52, "unknown service")),
    );
}

async fn f_06_every_pair_of_stored_and_incoming_state_follows_the_table(bed: Bed) {
    const STATES: usize = 4;
    const CONTRACT: &str = "specification section 3.2.1, table of states";
    let stored = [
        None,
        Some(None),
        Some(Some(success(50))),
        Some(Some(failure(51, "first"))),
    ];
    let incoming = [None, Some(success(60)), Some(failure(61, "second"))];
    let mut number = 0;
    for for_client in [true, false] {
        for (row, stored) in stored.iter().enumerate().take(STATES) {
            for incoming in &incoming {
                number += 1;
                // A client of its own, so that a claim shows just this message.
                let client = client_id(number);
                let message = if for_client {
                    to_client(number, client)
                } else {
                    to_server(number, client)
                };
                if let Some(result) = stored {
                    bed.send(&[with_optional_result(&message, result.clone())])
                        .await;
                }
                let again = Message {
                    message_type: "another type".into(),
                    creation_time: Some(seconds(77)),
                    data: Some(data("another payload")),
                    annotations: Some(Annotations::default()),
                    ..message.clone()
                };
                let incoming_message = with_optional_result(&again, incoming.clone());
                bed.send(std::slice::from_ref(&incoming_message)).await;

                let result = match (stored, incoming) {
                    (None | Some(None), new) => new.clone(),
                    (Some(old), None) => old.clone(),
                    (Some(Some(_)), Some(new)) if !new.failed => Some(new.clone()),
                    (Some(old), Some(_)) => old.clone(),
                };
                let fields = if stored.is_none() { &again } else { &message };
                let expected = Message {
                    annotations: None,
                    ..with_optional_result(fields, result.clone())
                };
                let context = format!("{CONTRACT}: row {row}, incoming {incoming:?}");
                let found = bed.read(&[message_id(number)]).await;
                assert_messages(&context, &found, std::slice::from_ref(&expected));

                bed.clock.advance(Duration::from_secs(3600));
                let claimed = if for_client {
                    bed.claim(client).await
                } else {
                    bed.claim_on_server().await
                };
                let expected = if result.is_none() {
                    vec![expected]
                } else {
                    Vec::new()
                };
                assert_messages(&context, &claimed, &expected);
                let done = [(message_id(number), success(99))];
                bed.store.set_message_results(&done).await.unwrap();
            }
        }
    }
    assert_eq!(number, 24);
}

async fn message_twice_in_one_call_is_like_two_calls(bed: Bed) {
    let message = to_client(1, C1);
    bed.send(&[
        message.clone(),
        with_result(&message, failure(50, "once")),
        with_result(&message, failure(51, "twice")),
        message.clone(),
    ])
    .await;
    let found = bed.read(&[message_id(1)]).await;
    assert_messages(
        "messages are handled in order; a failure replaces only a missing result",
        &found,
        &[with_result(&message, failure(50, "once"))],
    );
    assert_messages(
        "a message with result is never due",
        &bed.claim(C1).await,
        &[],
    );
}

async fn f_07_08_result_is_set_whatever_was_there(bed: Bed) {
    let message = to_client(1, C1);
    bed.send(std::slice::from_ref(&message)).await;
    let reason_without_failure = MessageResult {
        failed_reason: "dropped".into(),
        ..success(53)
    };
    for (destination, result, expected) in [
        // A wrong destination comes first: it must still end the pending state.
        (None, failure(50, "first"), failure(50, "first")),
        (Some(C2), success(51), success(51)),
        (Some(C1), failure(52, "second"), failure(52, "second")),
        (Some(C1), reason_without_failure, success(53)),
        (Some(C1), failure(54, ""), failure(54, "")),
    ] {
        bed.store
            .set_message_result(destination, message_id(1), &result)
            .await
            .unwrap();
        let found = bed.read(&[message_id(1)]).await;
        assert_messages(
            "the result is set whatever it was before, and the payload dropped",
            &found,
            &[with_result(&message, expected)],
        );
        assert_messages(
            "`destination` never changes the effect",
            &bed.claim(C1).await,
            &[],
        );
        let count = bed.store.get_pending_message_count(&[C1]).await.unwrap();
        assert_same("a message with result is not pending", &count, &0);
    }
    bed.store
        .set_message_result(Some(C1), message_id(9), &success(50))
        .await
        .expect("an unknown message is no error");
    assert_refused(
        "setting a result creates no message",
        bed.store.get_messages(&[message_id(9)], WITH_DATA).await,
        ErrorKind::NotFound,
    );
}

async fn set_result_needs_a_time(bed: Bed) {
    let message = to_client(1, C1);
    bed.send(std::slice::from_ref(&message)).await;
    for timeless in [true, false].map(|failed| MessageResult {
        failed,
        ..MessageResult::default()
    }) {
        assert_refused(
            "`InvalidArgument` without processed time",
            bed.store
                .set_message_result(Some(C1), message_id(1), &timeless)
                .await,
            ErrorKind::InvalidArgument,
        );
        assert_refused(
            "`InvalidArgument` if any result has no processed time",
            bed.store
                .set_message_results(&[(message_id(1), success(50)), (message_id(2), timeless)])
                .await,
            ErrorKind::InvalidArgument,
        );
    }
    assert_messages("no result is set then", &bed.claim(C1).await, &[message]);
}

async fn many_results_are_set_at_once_or_not_at_all(bed: Bed) {
    bed.send(&[to_client(1, C1), to_server(2, C1), to_client(3, C2)])
        .await;
    bed.store
        .set_message_results(&[
            (message_id(1), failure(50, "replaced")),
            (message_id(9), success(51)),
            (message_id(2), failure(52, "kept")),
            (message_id(1), success(53)),
        ])
        .await
        .unwrap();
    assert_results(
        &bed,
        "results are set in order; unknown messages are no error",
        &[Some(success(53)), Some(failure(52, "kept")), None],
    )
    .await;
    bed.store.set_message_results(&[]).await.unwrap();
    bed.clock.advance(Duration::from_secs(3600));
    assert_messages(
        "a message with result is never due",
        &bed.claim_on_server().await,
        &[],
    );
    assert_messages("the others are", &bed.claim(C2).await, &[to_client(3, C2)]);
}

fn with_optional_result(message: &Message, result: Option<MessageResult>) -> Message {
    match result {
        Some(result) => with_result(message, result),
        None => message.clone(),
    }
}

/// Checks the results of the messages numbered from 1 on.
pub(crate) async fn assert_results(bed: &Bed, contract: &str, expected: &[Option<MessageResult>]) {
    for (number, expected) in (1..).zip(expected) {
        let result = bed
            .store
            .get_message_result(message_id(number))
            .await
            .unwrap();
        assert_same(&format!("{contract}: message {number}"), &result, expected);
    }
}
