//! Storing, reading, claiming and removing messages (specification section 3.2).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::message::Priority;
use fleethold_proto::fleetspeak::{
    Annotations, Message, MessageResult, ValidationInfo, annotations,
};
use fleethold_store::limits::{MAX_NAME_CHARS, MAX_TEXT_BYTES};
use fleethold_store::{
    ClientId, Clock, ContactId, ErrorKind, MAX_PAYLOAD_BYTES, REMOVED_BY_ADMIN, ServiceLimits,
    clock,
};

use crate::checks::{assert_messages, assert_refused, assert_same};
use crate::samples::{
    C1, C2, SERVICE, WITH_DATA, WITHOUT_DATA, address, client_id, contact, data, failure,
    for_service, id_of, ids_of, message_id, seconds, success, to_client, to_server, with_result,
    without_data,
};
use crate::{Bed, cases};

cases![
    b_001_to_012_stored_messages_come_back_until_processed,
    b_013_to_021_success_replaces_every_result,
    b_022_023_claimed_message_equals_the_stored_one,
    b_024_to_030_claims_keep_service_limits_and_hand_out_nothing_twice,
    b_031_to_039_pending_messages_are_listed_in_pages_by_id,
    b_040_to_043_removed_messages_have_failed,
    s_01_only_unknown_messages_are_not_found,
    s_02_id_of_zeros_is_an_ordinary_id,
    s_06_message_to_a_client_is_due_at_once,
    s_07_pending_messages_are_those_of_the_clients_asked_for,
    s_10_claim_with_tokens_leaves_messages_pending_until_acknowledged,
    s_11_long_reason_is_kept,
    s_13_acknowledged_messages_succeed_and_reported_ones_fail,
    every_pair_of_stored_and_incoming_state_follows_the_table,
    message_twice_in_one_call_is_like_two_calls,
    malformed_messages_are_refused_with_their_whole_call,
    malformed_contact_is_refused_with_its_whole_call,
    unknown_contact_is_skipped,
    unusual_messages_are_stored_as_they_are,
    oversized_parts_are_cut_or_left_out,
    payload_over_the_limit_is_too_large,
    unusual_text_survives,
    result_is_set_whatever_was_there,
    set_result_needs_a_time,
    many_results_are_set_at_once_or_not_at_all,
    messages_are_read_in_the_order_asked_for,
    priority_background_and_blocklist_flag_are_not_stored,
    claim_limits_mean_what_they_say,
    missing_service_accepts_nothing,
    skipped_messages_do_not_count_towards_the_limit,
    claims_are_ordered_by_due_time_then_id,
    claimed_message_is_due_again_after_the_retry_time,
    concurrent_claims_never_share_a_message,
    concurrent_claims_keep_service_limits,
    more_messages_than_a_statement_has_parameters,
];

async fn b_001_to_012_stored_messages_come_back_until_processed(bed: Bed) {
    bed.add_client(C1).await;
    let messages = [annotated(to_client(1, C1)), to_client(2, C1)];
    let ids = ids_of(&messages);
    for _ in 0..2 {
        bed.send(&messages).await;
    }
    let found = bed.read(&ids).await;
    assert_messages(
        "a known message keeps its first fields, payload and annotations included",
        &found,
        &messages,
    );
    for id in &ids {
        let result = bed.store.get_message_result(*id).await.unwrap();
        assert_same(
            "there is no result while a message is pending",
            &result,
            &None,
        );
    }

    bed.clock.set(84);
    for id in &ids {
        bed.store
            .set_message_result(Some(C1), *id, &success(84))
            .await
            .unwrap();
    }
    let found = bed.read(&ids).await;
    assert_messages(
        "a result drops the payload and changes no other field",
        &found,
        &messages.map(|message| with_result(&message, success(84))),
    );
    for id in ids {
        let result = bed.store.get_message_result(id).await.unwrap();
        assert_same("a result comes back complete", &result, &Some(success(84)));
    }
}

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

async fn b_031_to_039_pending_messages_are_listed_in_pages_by_id(bed: Bed) {
    let messages = five_pending(&bed).await;
    let bare: Vec<_> = messages.iter().map(without_data).collect();
    let found = bed
        .store
        .get_messages(&ids_of(&messages), WITHOUT_DATA)
        .await
        .unwrap();
    assert_messages("the payload comes only if wanted", &found, &bare);

    let count = bed.store.get_pending_message_count(&[C1]).await.unwrap();
    assert_same("pending messages are counted", &count, &5);
    for (offset, limit, expected) in [
        (0, 0, &messages[..]),
        (1, 2, &messages[1..3]),
        (0, 1, &messages[..1]),
    ] {
        let found = bed
            .store
            .get_pending_messages(&[C1], offset, limit, WITH_DATA)
            .await
            .unwrap();
        assert_messages(
            "pending messages come by ascending message id: `limit` of them from `offset` on",
            &found,
            expected,
        );
    }
    let found = bed
        .store
        .get_pending_messages(&[C1], 0, 0, WITHOUT_DATA)
        .await
        .unwrap();
    assert_messages("the payload comes only if wanted", &found, &bare);
    assert_refused(
        "an offset without limit is refused",
        bed.store.get_pending_messages(&[C1], 1, 0, WITH_DATA).await,
        ErrorKind::InvalidArgument,
    );
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

async fn s_01_only_unknown_messages_are_not_found(bed: Bed) {
    let unknown = message_id(0);
    assert_refused(
        "`NotFound` if none of the messages exists",
        bed.store.get_messages(&[unknown], WITHOUT_DATA).await,
        ErrorKind::NotFound,
    );
    assert_refused(
        "`NotFound` if none of the messages exists",
        bed.store
            .get_messages(&[unknown, message_id(1)], WITH_DATA)
            .await,
        ErrorKind::NotFound,
    );
    let message = to_client(2, C1);
    bed.send(std::slice::from_ref(&message)).await;
    let found = bed.read(&[unknown, message_id(2), message_id(1)]).await;
    assert_messages("unknown ids are left out", &found, &[message]);
    let found = bed.read(&[]).await;
    assert_messages("no ids: no messages", &found, &[]);
    let result = bed.store.get_message_result(unknown).await.unwrap();
    assert_same("the result of an unknown message is absent", &result, &None);
}

async fn s_02_id_of_zeros_is_an_ordinary_id(bed: Bed) {
    let message = to_client(0, client_id(0));
    bed.send(std::slice::from_ref(&message)).await;
    let found = bed.read(&[message_id(0)]).await;
    assert_messages(
        "an id of all zero bytes is an ordinary id",
        &found,
        std::slice::from_ref(&message),
    );
    let claimed = bed.claim(client_id(0)).await;
    assert_messages(
        "a client id of zeros is not the server",
        &claimed,
        &[message],
    );
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

async fn s_07_pending_messages_are_those_of_the_clients_asked_for(bed: Bed) {
    let messages = [
        to_client(4, C1),
        to_client(3, C2),
        to_client(2, C1),
        to_server(1, C1),
        with_result(&to_client(5, C1), success(42)),
    ];
    bed.send(&messages).await;
    let [first, other, second, ..] = &messages;
    let both = [second.clone(), other.clone(), first.clone()];
    for (clients, expected) in [
        (&[][..], &[][..]),
        (&[client_id(9)], &[]),
        (&[C2], std::slice::from_ref(other)),
        (&[C1, C2], &both),
        (&[C2, C1, C2, client_id(9), C1], &both),
    ] {
        let found = bed.pending(clients).await;
        assert_messages(
            "pending messages of these clients come once each, by message id, without server messages",
            &found,
            expected,
        );
        let count = bed.store.get_pending_message_count(clients).await.unwrap();
        assert_same(
            "the count is that of the list",
            &count,
            &(expected.len() as u64),
        );
    }
    for (offset, limit, expected) in [
        (3, 1, &[][..]),
        (u64::MAX, u64::MAX, &[]),
        (0, u64::MAX, &both),
        (1, u64::MAX, &both[1..]),
    ] {
        let found = bed
            .store
            .get_pending_messages(&[C1, C2], offset, limit, WITH_DATA)
            .await
            .unwrap();
        assert_messages("offsets and limits may be of any size", &found, expected);
    }

    bed.claim(C1).await;
    let count = bed.store.get_pending_message_count(&[C1]).await.unwrap();
    assert_same("claimed messages are pending", &count, &2);

    bed.store.delete_pending_messages(&[]).await.unwrap();
    bed.store
        .delete_pending_messages(&[client_id(9)])
        .await
        .unwrap();
    bed.store.delete_pending_messages(&[C1, C1]).await.unwrap();
    let found = bed.pending(&[C1, C2]).await;
    assert_messages(
        "only messages of the clients given are removed",
        &found,
        std::slice::from_ref(other),
    );
    let result = bed.store.get_message_result(message_id(1)).await.unwrap();
    assert_same("a server message is never removed", &result, &None);
    let result = bed.store.get_message_result(message_id(5)).await.unwrap();
    assert_same("a result stays", &result, &Some(success(42)));
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

async fn every_pair_of_stored_and_incoming_state_follows_the_table(bed: Bed) {
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

async fn malformed_messages_are_refused_with_their_whole_call(bed: Bed) {
    bed.add_client(C1).await;
    let contact_id = bed.store.record_client_contact(&contact(C1)).await.unwrap();
    let before = bed.store.list_clients(&[C1]).await.unwrap();
    let pending = to_client(7, C1);
    bed.send(std::slice::from_ref(&pending)).await;
    bed.clock.advance(Duration::from_secs(10));
    for (what, bad) in malformed_messages() {
        let call = [to_client(1, C1), bad, to_server(3, C1)];
        for contact in [None, Some(&contact_id)] {
            assert_refused(
                &format!("`InvalidArgument` for {what}"),
                bed.store.store_messages(&call, contact).await,
                ErrorKind::InvalidArgument,
            );
        }
        assert_refused(
            &format!("`InvalidArgument` for {what} in a contact"),
            bed.store.store_contact(&contact(C1), &call).await,
            ErrorKind::InvalidArgument,
        );
        let ids = [message_id(1), message_id(2), message_id(3)];
        assert_refused(
            &format!("nothing of a call with {what} is stored"),
            bed.store.get_messages(&ids, WITH_DATA).await,
            ErrorKind::NotFound,
        );
    }
    let found = bed.read(&[message_id(7)]).await;
    assert_messages(
        "a refused call changes no known message",
        &found,
        std::slice::from_ref(&pending),
    );
    assert_same(
        "a refused contact changes nothing in the client",
        &bed.store.list_clients(&[C1]).await.unwrap(),
        &before,
    );
    assert_eq!(bed.store.list_client_contacts(C1).await.unwrap().len(), 1);
    assert_messages("later calls work", &bed.claim(C1).await, &[pending]);
}

async fn malformed_contact_is_refused_with_its_whole_call(bed: Bed) {
    let contact = ContactId::new("zz");
    let message = to_client(1, C1);
    for messages in [std::slice::from_ref(&message), &[]] {
        assert_refused(
            "`InvalidArgument` for a malformed contact, whatever the messages",
            bed.store.store_messages(messages, Some(&contact)).await,
            ErrorKind::InvalidArgument,
        );
    }
    assert_messages("nothing of the call is stored", &bed.claim(C1).await, &[]);
}

async fn unknown_contact_is_skipped(bed: Bed) {
    let message = to_client(1, C1);
    let unknown = ContactId::from_number(0x7fff_fff0);
    bed.store
        .store_messages(std::slice::from_ref(&message), Some(&unknown))
        .await
        .expect("a well-formed contact that does not exist is skipped");
    assert_messages("the messages are stored", &bed.claim(C1).await, &[message]);
}

async fn unusual_messages_are_stored_as_they_are(bed: Bed) {
    let plain = to_client(1, C1);
    let messages = [
        Message {
            creation_time: Some(Timestamp {
                seconds: -5,
                nanos: 7,
            }),
            ..plain.clone()
        },
        Message {
            message_id: message_id(2).to_bytes(),
            data: Some(data("")),
            ..plain.clone()
        },
        Message {
            message_id: message_id(3).to_bytes(),
            source: None,
            source_message_id: Bytes::from(vec![0xff; 300]),
            ..plain.clone()
        },
        Message {
            message_id: message_id(4).to_bytes(),
            source: Some(address(Some(C2), "")),
            destination: Some(address(Some(C1), "")),
            message_type: String::new(),
            data: None,
            ..plain.clone()
        },
        Message {
            message_id: message_id(5).to_bytes(),
            validation_info: Some(ValidationInfo::default()),
            annotations: Some(Annotations::default()),
            ..plain
        },
    ];
    bed.send(&messages).await;
    let expected = messages.map(|message| Message {
        source: Some(message.source.unwrap_or_default()),
        validation_info: None,
        annotations: None,
        ..message
    });
    let found = bed.read(&ids_of(&expected)).await;
    assert_messages(
        "source and destination are always set, empty parts absent, everything else as stored",
        &found,
        &expected,
    );
    assert_messages("the client need not exist", &bed.claim(C1).await, &expected);
}

async fn oversized_parts_are_cut_or_left_out(bed: Bed) {
    let long = "ä".repeat(MAX_NAME_CHARS + 1);
    let short = "ä".repeat(MAX_NAME_CHARS);
    let message = Message {
        source: Some(address(None, &long)),
        message_type: long.clone(),
        validation_info: Some(tags(&"v".repeat(MAX_TEXT_BYTES))),
        annotations: Some(Annotations {
            entries: vec![annotations::Entry {
                key: "long".into(),
                value: "v".repeat(MAX_TEXT_BYTES),
            }],
        }),
        ..for_service(to_client(1, C1), &long)
    };
    let expected = Message {
        source: Some(address(None, &short)),
        message_type: short.clone(),
        validation_info: None,
        annotations: None,
        ..for_service(to_client(1, C1), &short)
    };
    bed.send(&[message, to_client(2, C1)]).await;
    assert_messages(
        "names are cut to 128 characters, over-long validation info and annotations dropped",
        &bed.claim(C1).await,
        &[expected, to_client(2, C1)],
    );

    // One byte before the limit a character of two bytes begins.
    let reason = format!("x{}", "ä".repeat(MAX_TEXT_BYTES));
    let cut = format!("x{}", "ä".repeat((MAX_TEXT_BYTES - 1) / 2));
    bed.send(&[with_result(&to_server(3, C1), failure(50, &reason))])
        .await;
    let results = [(message_id(1), failure(50, &reason))];
    bed.store.set_message_results(&results).await.unwrap();
    bed.store
        .set_message_result(Some(C1), message_id(2), &results[0].1)
        .await
        .unwrap();
    let expected = Some(failure(50, &cut));
    assert_results(
        &bed,
        "a reason is cut to 65,535 bytes between characters",
        &[expected.clone(), expected.clone(), expected],
    )
    .await;
}

async fn payload_over_the_limit_is_too_large(bed: Bed) {
    let payload = Bytes::from(vec![7; MAX_PAYLOAD_BYTES + 1]);
    let with_payload = |number, payload| Message {
        data: Some(data(payload)),
        ..to_client(number, C1)
    };
    let oversized = with_payload(2, payload.clone());
    assert_refused(
        "`TooLarge` for a payload that must wait",
        bed.store
            .store_messages(&[to_client(1, C1), oversized.clone()], None)
            .await,
        ErrorKind::TooLarge,
    );
    assert_messages("nothing of the call is stored", &bed.claim(C1).await, &[]);

    let done = Message {
        result: Some(success(50)),
        ..oversized
    };
    let largest = with_payload(3, payload.slice(1..));
    bed.send(&[done.clone(), largest.clone()]).await;
    let found = bed.read(&[message_id(2)]).await;
    assert_messages(
        "a payload that need not wait has no limit",
        &found,
        &[without_data(&done)],
    );
    let claimed = bed.claim(C1).await;
    assert!(
        claimed == [largest],
        "a payload of the largest size comes back"
    );
}

async fn unusual_text_survives(bed: Bed) {
    let astral = "\u{1F980}\u{10FFFF} é é \u{202E}'\"\\%_;--";
    let message = Message {
        message_type: astral.into(),
        annotations: Some(Annotations {
            entries: vec![annotations::Entry {
                key: astral.into(),
                value: "a\u{0}b".into(),
            }],
        }),
        ..for_service(to_client(1, C1), astral)
    };
    bed.send(std::slice::from_ref(&message)).await;
    let limits = ServiceLimits::from([(astral.to_owned(), 1)]);
    let claimed = bed
        .store
        .client_messages_for_processing(C1, 10, Some(&limits))
        .await
        .unwrap();
    assert_messages("text of all planes comes back", &claimed, &[message]);

    let nul = "a\u{0}b";
    bed.send(&[Message {
        message_type: nul.into(),
        ..with_result(&to_client(2, C1), failure(50, nul))
    }])
    .await;
    let found = bed
        .store
        .get_messages(&[message_id(2)], WITHOUT_DATA)
        .await
        .unwrap();
    let reason = &found[0].result.as_ref().unwrap().failed_reason;
    for text in [&found[0].message_type, reason] {
        assert!(
            [nul, "a\u{FFFD}b"].contains(&text.as_str()),
            "U+0000 in free text is kept, or replaced where the database cannot hold it: {text:?}"
        );
    }
}

async fn result_is_set_whatever_was_there(bed: Bed) {
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

async fn messages_are_read_in_the_order_asked_for(bed: Bed) {
    let messages = [
        to_client(1, C1),
        with_result(&to_client(2, C1), failure(50, "broken")),
        to_server(3, C1),
    ];
    bed.send(&messages).await;
    let [first, failed, third] = messages;
    let ids = [3, 1, 9, 3, 2].map(message_id);
    let found = bed.read(&ids).await;
    assert_messages(
        "messages come in the order of `ids`, one for each occurrence, results complete",
        &found,
        &[third.clone(), first, third, failed],
    );
}

async fn priority_background_and_blocklist_flag_are_not_stored(bed: Bed) {
    let message = Message {
        priority: Priority::High.into(),
        background: true,
        is_blocklisted_source: true,
        ..to_client(1, C1)
    };
    bed.send(&[message]).await;
    assert_messages(
        "priority, background and blocklist flag are never set",
        &bed.claim(C1).await,
        &[to_client(1, C1)],
    );
}

async fn claim_limits_mean_what_they_say(bed: Bed) {
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

async fn missing_service_accepts_nothing(bed: Bed) {
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

async fn concurrent_claims_never_share_a_message(bed: Bed) {
    for round in 0..10 {
        let messages: Vec<_> = (0..50)
            .map(|number| to_client(100 * round + number, C1))
            .collect();
        bed.send(&messages).await;
        let claims = (0..8).map(|_| {
            let store = std::sync::Arc::clone(&bed.store);
            tokio::spawn(async move { store.client_messages_for_processing(C1, 20, None).await })
        });
        let mut claimed = Vec::new();
        for claim in futures::future::join_all(claims).await {
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

async fn concurrent_claims_keep_service_limits(bed: Bed) {
    let messages: Vec<_> = (0..50).map(|number| to_client(number, C1)).collect();
    bed.send(&messages).await;
    let claims = (0..8).map(|_| {
        let store = std::sync::Arc::clone(&bed.store);
        tokio::spawn(async move {
            let limits = ServiceLimits::from([(SERVICE.to_owned(), 5)]);
            store
                .client_messages_for_processing(C1, 100, Some(&limits))
                .await
        })
    });
    for claim in futures::future::join_all(claims).await {
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

async fn more_messages_than_a_statement_has_parameters(bed: Bed) {
    const MANY: u64 = 33_000;
    let messages: Vec<_> = (0..MANY).map(|number| to_client(number, C1)).collect();
    let ids = ids_of(&messages);
    bed.send(&messages).await;
    let found = bed.read(&ids).await;
    assert_messages("any number of messages can be read", &found, &messages);
    let clients: Vec<ClientId> = (0..MANY).map(client_id).collect();
    let found = bed
        .store
        .get_pending_messages(&clients, 32_998, 5, WITH_DATA)
        .await
        .unwrap();
    assert_messages(
        "any number of clients can be asked for",
        &found,
        &messages[32_998..],
    );
    let count = bed.store.get_pending_message_count(&clients).await.unwrap();
    assert_same("any number of clients can be asked for", &count, &MANY);
    assert_eq!(
        bed.claim(C1).await.len(),
        messages.len(),
        "any number can be claimed"
    );

    let results: Vec<_> = ids.iter().take(100).map(|id| (*id, success(50))).collect();
    bed.store.set_message_results(&results).await.unwrap();
    bed.store.delete_pending_messages(&clients).await.unwrap();
    let count = bed.store.get_pending_message_count(&[C1]).await.unwrap();
    assert_same("any number of messages can be removed", &count, &0);
    let results: Vec<_> = ids.iter().map(|id| (*id, success(51))).collect();
    bed.store.set_message_results(&results).await.unwrap();
    let result = bed
        .store
        .get_message_result(ids[ids.len() - 1])
        .await
        .unwrap();
    assert_same(
        "any number of results can be set",
        &result,
        &Some(success(51)),
    );
}

/// Checks the results of the messages numbered from 1 on.
async fn assert_results(bed: &Bed, contract: &str, expected: &[Option<MessageResult>]) {
    for (number, expected) in (1..).zip(expected) {
        let result = bed
            .store
            .get_message_result(message_id(number))
            .await
            .unwrap();
        assert_same(&format!("{contract}: message {number}"), &result, expected);
    }
}

async fn five_pending(bed: &Bed) -> Vec<Message> {
    bed.clock.set(43);
    bed.add_client(C1).await;
    let contact = bed.store.record_client_contact(&contact(C1)).await.unwrap();
    let messages: Vec<_> = (1..)
        .zip([42, 1, 2, 3, 4])
        .map(|(number, created)| Message {
            creation_time: Some(seconds(created)),
            ..to_client(number, C1)
        })
        .collect();
    bed.store
        .store_messages(&messages, Some(&contact))
        .await
        .unwrap();
    messages
}

/// Returns messages numbered 2 that no store accepts, and what is wrong with each.
pub(crate) fn malformed_messages() -> Vec<(&'static str, Message)> {
    let good = to_client(2, C1);
    let with_id = |length| Message {
        message_id: Bytes::from(vec![2; length]),
        ..good.clone()
    };
    let address_of = |length| {
        Some(fleethold_proto::fleetspeak::Address {
            client_id: Bytes::from(vec![1; length]),
            service_name: SERVICE.into(),
        })
    };
    let from = |length| Message {
        source: address_of(length),
        ..good.clone()
    };
    let to = |length| Message {
        destination: address_of(length),
        ..good.clone()
    };
    let created = |creation_time| Message {
        creation_time,
        ..good.clone()
    };
    let timeless = |failed| Message {
        result: Some(MessageResult {
            failed,
            ..MessageResult::default()
        }),
        ..good.clone()
    };
    vec![
        ("no message id", with_id(0)),
        ("a message id of 31 bytes", with_id(31)),
        ("a message id of 33 bytes", with_id(33)),
        ("no creation time", created(None)),
        (
            "a creation time in second 0",
            created(Some(Timestamp {
                seconds: 0,
                nanos: 5,
            })),
        ),
        (
            "no destination",
            Message {
                destination: None,
                ..good.clone()
            },
        ),
        ("a destination client id of 7 bytes", to(7)),
        ("a destination client id of 9 bytes", to(9)),
        ("a source client id of 7 bytes", from(7)),
        ("a source client id of 9 bytes", from(9)),
        ("a success without time", timeless(false)),
        ("a failure without time", timeless(true)),
        (
            "a result without time for a known message",
            Message {
                message_id: message_id(7).to_bytes(),
                ..timeless(true)
            },
        ),
    ]
}

fn with_optional_result(message: &Message, result: Option<MessageResult>) -> Message {
    match result {
        Some(result) => with_result(message, result),
        None => message.clone(),
    }
}

fn services_of(messages: &[Message]) -> Vec<&str> {
    messages
        .iter()
        .filter_map(|message| message.destination.as_ref())
        .map(|to| to.service_name.as_str())
        .collect()
}

fn annotated(message: Message) -> Message {
    Message {
        annotations: Some(Annotations {
            entries: [("session", "one"), ("another", "two")]
                .map(|(key, value)| annotations::Entry {
                    key: key.into(),
                    value: value.into(),
                })
                .into(),
        }),
        ..message
    }
}

fn tags(value: &str) -> ValidationInfo {
    ValidationInfo {
        tags: [("result".to_owned(), value.to_owned())].into(),
    }
}
