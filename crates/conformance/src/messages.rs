//! Storing, reading and listing messages (specification section 3.2).

use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::message::Priority;
use fleethold_proto::fleetspeak::{Annotations, Message, ValidationInfo, annotations};
use fleethold_store::limits::{MAX_NAME_CHARS, MAX_TEXT_BYTES};
use fleethold_store::{ContactId, ErrorKind, MAX_PAYLOAD_BYTES, ServiceLimits};

use crate::checks::{assert_messages, assert_refused, assert_same};
use crate::refusals::malformed_messages;
use crate::results::assert_results;
use crate::samples::{
    C1, C2, WITH_DATA, WITHOUT_DATA, address, client_id, contact, data, failure, for_service,
    ids_of, message_id, seconds, success, tags, to_client, to_server, with_result, without_data,
};
use crate::{Bed, cases};

cases![
    b_001_to_012_stored_messages_come_back_until_processed,
    b_031_to_039_pending_messages_are_listed_in_pages_by_id,
    s_01_f_09_only_unknown_messages_are_not_found,
    s_02_id_of_zeros_is_an_ordinary_id,
    s_07_f_10_pending_messages_are_those_of_the_clients_asked_for,
    f_13_malformed_messages_are_refused_with_their_whole_call,
    malformed_contact_is_refused_with_its_whole_call,
    unknown_contact_is_skipped,
    unusual_messages_are_stored_as_they_are,
    f_14_oversized_parts_are_cut_or_left_out,
    payload_over_the_limit_is_too_large,
    unusual_text_survives,
    f_09_messages_are_read_in_the_order_asked_for,
    priority_background_and_blocklist_flag_are_not_stored,
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

async fn s_01_f_09_only_unknown_messages_are_not_found(bed: Bed) {
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

async fn s_07_f_10_pending_messages_are_those_of_the_clients_asked_for(bed: Bed) {
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

async fn f_13_malformed_messages_are_refused_with_their_whole_call(bed: Bed) {
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

async fn f_14_oversized_parts_are_cut_or_left_out(bed: Bed) {
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

async fn f_09_messages_are_read_in_the_order_asked_for(bed: Bed) {
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

/// Stores the pending messages of B-031.
pub(crate) async fn five_pending(bed: &Bed) -> Vec<Message> {
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
