//! Contacts of clients and the messages that came and went with them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::server::{Client, ClientContact};
use fleethold_store::{ClientData, Clock, ContactData, ContactId, ErrorKind, clock};
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};

use crate::checks::{assert_messages, assert_refused, assert_same};
use crate::samples::{
    C1, C2, C3, client_id, contact, label, message_id, seconds, success, to_client, to_server,
    with_result,
};
use crate::{Bed, cases};

cases![
    b_053_to_059_contact_shows_in_client_and_contacts,
    s_08_contacts_at_the_same_instant_are_both_listed,
    contact_of_an_unknown_client_is_not_found,
    absent_values_clear_those_of_the_last_contact,
    f_18_wrong_client_clock_is_absent,
    f_18_long_address_is_cut,
    f_18_nonces_have_64_bits,
    overlong_streaming_target_is_refused,
    contacts_are_listed_by_time_then_order,
    every_contact_is_streamed_once_over_many_pages,
    f_20_slow_reader_of_contacts_holds_up_nobody,
    contact_and_messages_are_stored_together,
    failed_contact_stores_nothing,
    enrolment_adds_client_and_contact_at_once,
    failed_enrolment_stores_nothing,
    of_enrolments_at_once_one_succeeds,
    f_16_messages_are_linked_any_number_of_times,
    f_16_unknown_contact_cannot_be_linked,
];

async fn b_053_to_059_contact_shows_in_client_and_contacts(bed: Bed) {
    bed.clock.set(84);
    let data = ClientData {
        key: Bytes::from_static(b"key"),
        labels: vec![label("client", "label1"), label("client", "label2")],
        blacklisted: false,
    };
    bed.store.add_client(C1, &data).await.unwrap();
    let full = ContactData {
        nonce_sent: 42,
        nonce_received: 54,
        addr: "[2001:0db8:85a3:0000:0000:8a2e:0370:7334%enp0s3]:61234".into(),
        streaming_to: Some("streaming.server:1234".into()),
        ..contact(C1)
    };
    assert_eq!(full.addr.len(), 54);
    let recorded = bed.store.record_client_contact(&full).await.unwrap();
    bed.send(&[to_server(1, C1)]).await;
    bed.store
        .link_messages_to_contact(&recorded, &[message_id(1)])
        .await
        .unwrap();

    let found = bed.store.list_clients(&[]).await.unwrap();
    assert_eq!(found.len(), 1, "one client was added");
    let client = &found[0];
    assert_same("the id", &client.client_id, &C1.to_bytes());
    assert_same("the labels", &client.labels, &data.labels);
    assert_same("the address", &client.last_contact_address, &full.addr);
    assert_same(
        "the streaming target",
        &client.last_contact_streaming_to,
        &"streaming.server:1234",
    );
    assert_same("the client's clock", &client.last_clock, &Some(seconds(21)));
    assert_same(
        "the last contact is now",
        &client.last_contact_time,
        &Some(seconds(84)),
    );
    assert!(!client.blacklisted);

    let expected = [ClientContact {
        sent_nonce: 42,
        received_nonce: 54,
        observed_address: full.addr,
        timestamp: Some(seconds(84)),
    }];
    let found = bed.store.list_client_contacts(C1).await.unwrap();
    assert_same(
        "adding a client makes no contact, recording one does",
        &found,
        &expected,
    );
    assert_same(
        "the stream has what the list has",
        &streamed(&bed).await,
        &expected,
    );
}

async fn s_08_contacts_at_the_same_instant_are_both_listed(bed: Bed) {
    bed.add_client(C1).await;
    let mut ids = Vec::new();
    for nonce_sent in [1, 2] {
        let contact = ContactData {
            nonce_sent,
            ..contact(C1)
        };
        ids.push(bed.store.record_client_contact(&contact).await.unwrap());
    }
    assert_ne!(ids[0], ids[1], "every contact has its own id");
    assert_same("in order of recording", &nonces(&bed).await, &[1, 2]);
}

async fn contact_of_an_unknown_client_is_not_found(bed: Bed) {
    assert_refused(
        "`NotFound` for an unknown client",
        bed.store.record_client_contact(&contact(C1)).await,
        ErrorKind::NotFound,
    );
    let found = bed.store.list_client_contacts(C1).await.unwrap();
    assert_same("an unknown client has no contacts", &found, &[]);
    assert_same(
        "an unknown client has no contacts",
        &streamed(&bed).await,
        &[],
    );
    bed.add_client(C1).await;
    assert_same(
        "a refused contact leaves nothing",
        &streamed(&bed).await,
        &[],
    );
}

async fn absent_values_clear_those_of_the_last_contact(bed: Bed) {
    bed.add_client(C1).await;
    let full = ContactData {
        streaming_to: Some("server:1".into()),
        ..contact(C1)
    };
    for streaming_to in [None, Some(String::new())] {
        bed.store.record_client_contact(&full).await.unwrap();
        assert_same("set", &bed.client(C1).await.last_clock, &Some(seconds(21)));
        bed.clock.advance(Duration::from_nanos(5));
        let empty = ContactData {
            addr: String::new(),
            client_clock: None,
            streaming_to,
            ..contact(C1)
        };
        bed.store.record_client_contact(&empty).await.unwrap();
        let client = bed.client(C1).await;
        assert_same(
            "what is absent is cleared",
            &client.last_contact_address,
            &"",
        );
        assert_same(
            "what is absent is cleared",
            &client.last_contact_streaming_to,
            &"",
        );
        assert_same("what is absent is cleared", &client.last_clock, &None);
        let now = clock::timestamp(bed.clock.now());
        assert_same(
            "the last contact is now",
            &client.last_contact_time,
            &Some(now),
        );
    }
}

async fn f_18_wrong_client_clock_is_absent(bed: Bed) {
    bed.add_client(C1).await;
    let time = |seconds, nanos| Timestamp { seconds, nanos };
    for (client_clock, kept) in [
        (time(-1, 0), false),
        (time(i64::MIN, 0), false),
        (time(21, -1), false),
        (time(21, 1_000_000_000), false),
        (time(0, 0), true),
        (time(315_360_000, 999_999_999), true),
    ] {
        let contact = ContactData {
            client_clock: Some(client_clock),
            ..contact(C1)
        };
        let recorded = bed.store.record_client_contact(&contact).await;
        recorded.expect("a wrong clock must not cut a client off");
        assert_same(
            "an invalid clock is stored as absent",
            &bed.client(C1).await.last_clock,
            &Some(client_clock).filter(|_| kept),
        );
    }
}

async fn f_18_long_address_is_cut(bed: Bed) {
    bed.add_client(C1).await;
    let contact = ContactData {
        addr: "ä".repeat(65),
        ..contact(C1)
    };
    bed.store.record_client_contact(&contact).await.unwrap();
    let cut = "ä".repeat(64);
    let client = bed.client(C1).await;
    assert_same(
        "an address is cut to 64 characters",
        &client.last_contact_address,
        &cut,
    );
    let contacts = streamed(&bed).await;
    assert_same(
        "an address is cut to 64 characters",
        &contacts[0].observed_address,
        &cut,
    );
}

async fn f_18_nonces_have_64_bits(bed: Bed) {
    bed.add_client(C1).await;
    let pairs = [(0, u64::MAX), (u64::MAX, 0), (1 << 63, (1 << 63) - 1)];
    for (nonce_sent, nonce_received) in pairs {
        let contact = ContactData {
            nonce_sent,
            nonce_received,
            ..contact(C1)
        };
        bed.store.record_client_contact(&contact).await.unwrap();
    }
    let found: Vec<_> = streamed(&bed)
        .await
        .iter()
        .map(|contact| (contact.sent_nonce, contact.received_nonce))
        .collect();
    assert_same("nonces use the full range", &found, &pairs);
}

async fn overlong_streaming_target_is_refused(bed: Bed) {
    bed.add_client(C1).await;
    let before = bed.client(C1).await;
    bed.clock.advance(Duration::from_secs(1));
    let to = |bytes| ContactData {
        streaming_to: Some("x".repeat(bytes)),
        ..contact(C1)
    };
    assert_refused(
        "`InvalidArgument` for a streaming target over 128 bytes",
        bed.store.record_client_contact(&to(129)).await,
        ErrorKind::InvalidArgument,
    );
    assert_refused(
        "`InvalidArgument` for a streaming target over 128 bytes",
        bed.store.store_contact(&to(129), &[to_server(1, C1)]).await,
        ErrorKind::InvalidArgument,
    );
    assert_same("nothing is stored then", &bed.client(C1).await, &before);
    assert_same("nothing is stored then", &streamed(&bed).await, &[]);
    bed.store.record_client_contact(&to(128)).await.unwrap();
}

async fn contacts_are_listed_by_time_then_order(bed: Bed) {
    bed.add_client(C1).await;
    bed.add_client(C2).await;
    for (second, nonce_sent) in [(500, 1), (300, 2), (500, 3), (300, 4), (400, 5)] {
        bed.clock.set(second);
        for client in [C1, C2] {
            let contact = ContactData {
                nonce_sent,
                ..contact(client)
            };
            bed.store.record_client_contact(&contact).await.unwrap();
        }
    }
    assert_same(
        "by (time, order of recording)",
        &nonces(&bed).await,
        &[2, 4, 5, 1, 3],
    );
}

async fn every_contact_is_streamed_once_over_many_pages(bed: Bed) {
    record_contacts(&bed, 0..1_200).await;
    let mut found = nonces(&bed).await;
    let listed = bed.store.list_client_contacts(C1).await.unwrap();
    assert_same(
        "the stream has what the list has",
        &streamed(&bed).await,
        &listed,
    );
    found.sort_unstable();
    assert!(
        found.into_iter().eq(0..1_200),
        "every contact appears exactly once"
    );
}

async fn f_20_slow_reader_of_contacts_holds_up_nobody(bed: Bed) {
    record_contacts(&bed, 0..600).await;
    let mut streams: Vec<_> = (0..20)
        .map(|_| bed.store.stream_client_contacts(C1))
        .collect();
    for stream in &mut streams {
        stream.next().await.unwrap().unwrap();
    }
    bed.clock.advance(Duration::from_secs(1));
    bed.store.record_client_contact(&contact(C1)).await.unwrap();
    bed.store.list_client_contacts(C1).await.unwrap();
    let rest: Vec<_> = streams.swap_remove(0).try_collect().await.unwrap();
    assert!(
        [599, 600].contains(&rest.len()),
        "every contact that exists during the whole stream appears once, not {} times",
        rest.len()
    );
}

async fn contact_and_messages_are_stored_together(bed: Bed) {
    bed.clock.set(84);
    bed.add_client(C1).await;
    bed.clock.set(85);
    let messages = [
        with_result(&to_server(1, C1), success(80)),
        to_server(2, C1),
        to_client(3, C1),
    ];
    let recorded = bed
        .store
        .store_contact(&contact(C1), &messages)
        .await
        .unwrap();
    let found = bed.read(&[1, 2, 3].map(message_id)).await;
    assert_messages("messages of a contact are stored", &found, &messages);
    assert_same("the contact is recorded", &nonces(&bed).await, &[42]);
    let client = bed.client(C1).await;
    assert_same(
        "the last contact is now",
        &client.last_contact_time,
        &Some(seconds(85)),
    );
    assert_messages(
        "messages to a client are due at once",
        &bed.claim(C1).await,
        &messages[2..],
    );

    bed.clock.set(86);
    bed.store
        .store_messages(&[to_server(4, C1)], Some(&recorded))
        .await
        .expect("the contact is known");
    bed.store
        .link_messages_to_contact(&recorded, &[message_id(1), message_id(3)])
        .await
        .expect("the contact is known");
    let second = bed.store.store_contact(&contact(C1), &[]).await.unwrap();
    assert_ne!(recorded, second, "every contact has its own id");
    assert_eq!(streamed(&bed).await.len(), 2, "a contact needs no messages");

    let known = with_result(&to_server(2, C1), success(87));
    bed.store
        .store_contact(&contact(C1), std::slice::from_ref(&known))
        .await
        .unwrap();
    let found = bed.read(&[message_id(2)]).await;
    assert_messages("known messages get their results", &found, &[known]);
}

async fn failed_contact_stores_nothing(bed: Bed) {
    bed.add_client(C2).await;
    assert_refused(
        "`NotFound` for an unknown client",
        bed.store
            .store_contact(&contact(C1), &[to_server(1, C1), to_client(2, C2)])
            .await,
        ErrorKind::NotFound,
    );
    assert_messages("nothing is stored then", &bed.claim(C2).await, &[]);
    assert_refused(
        "nothing is stored then",
        bed.store
            .get_messages(&[message_id(1), message_id(2)], true)
            .await,
        ErrorKind::NotFound,
    );
}

async fn enrolment_adds_client_and_contact_at_once(bed: Bed) {
    bed.clock.set(84);
    let data = ClientData {
        key: Bytes::from_static(b"key"),
        labels: vec![label("client", "label1"), label("client", "label2")],
        blacklisted: false,
    };
    let full = ContactData {
        streaming_to: Some("streaming.server:1234".into()),
        ..contact(C1)
    };
    let enrolled = bed.store.enrol(&data, &full).await.unwrap();
    bed.clock.set(85);
    bed.add_client(C2).await;
    let second = ContactData {
        nonce_sent: 43,
        ..contact(C1)
    };
    bed.store.record_client_contact(&second).await.unwrap();
    let again = ContactData {
        streaming_to: full.streaming_to.clone(),
        ..contact(C2)
    };
    bed.clock.set(84);
    bed.store.record_client_contact(&again).await.unwrap();
    assert_same(
        "the client has its key and labels",
        &bed.store.get_client_data(C1).await.unwrap(),
        &data,
    );
    assert_same("contacts of the client", &nonces(&bed).await, &[42, 43]);
    bed.send(&[to_server(1, C1)]).await;
    bed.store
        .link_messages_to_contact(&enrolled, &[message_id(1)])
        .await
        .expect("the contact is known");

    bed.clock.set(84);
    let enrolled = ContactData {
        client_id: C3,
        ..full
    };
    bed.store.enrol(&data, &enrolled).await.unwrap();
    let like = bed.client(C2).await;
    let found = bed.client(C3).await;
    assert_same(
        "the last contact is that of a contact after the client was added",
        &found,
        &Client {
            client_id: C3.to_bytes(),
            labels: data.labels,
            ..like
        },
    );
}

async fn failed_enrolment_stores_nothing(bed: Bed) {
    let data = ClientData {
        key: Bytes::from_static(b"key"),
        ..ClientData::default()
    };
    let overlong = ContactData {
        streaming_to: Some("x".repeat(129)),
        ..contact(C1)
    };
    assert_refused(
        "`InvalidArgument` for a streaming target over 128 bytes",
        bed.store.enrol(&data, &overlong).await,
        ErrorKind::InvalidArgument,
    );
    let wrong = ClientData {
        labels: vec![label("client", &"x".repeat(129))],
        ..data.clone()
    };
    assert_refused(
        "`InvalidArgument` for a label over 128 characters",
        bed.store.enrol(&wrong, &contact(C1)).await,
        ErrorKind::InvalidArgument,
    );
    assert_refused(
        "nothing is stored then",
        bed.store.get_client_data(C1).await,
        ErrorKind::NotFound,
    );

    bed.store.enrol(&data, &contact(C1)).await.unwrap();
    let before = bed.client(C1).await;
    bed.clock.advance(Duration::from_secs(1));
    let other = ClientData {
        key: Bytes::from_static(b"other"),
        labels: vec![label("client", "new")],
        blacklisted: true,
    };
    let second = ContactData {
        nonce_sent: 43,
        ..contact(C1)
    };
    assert_refused(
        "`AlreadyExists` for a client that exists",
        bed.store.enrol(&other, &second).await,
        ErrorKind::AlreadyExists,
    );
    assert_same("nothing is stored then", &bed.client(C1).await, &before);
    assert_same("nothing is stored then", &nonces(&bed).await, &[42]);
    assert_same(
        "the stored client is unchanged",
        &bed.store.get_client_data(C1).await.unwrap(),
        &data,
    );
}

async fn of_enrolments_at_once_one_succeeds(bed: Bed) {
    const CLIENTS: u64 = 20;
    let data = ClientData::default();
    let calls = (0..3 * CLIENTS).map(|number| {
        let (store, data) = (&bed.store, &data);
        let contact = ContactData {
            nonce_sent: number,
            ..contact(client_id(number % CLIENTS))
        };
        async move { (number, store.enrol(data, &contact).await) }
    });
    let mut enrolled = BTreeMap::new();
    for (number, answer) in join_all(calls).await {
        match answer {
            Ok(_) => assert_same(
                "a client is enrolled once",
                &enrolled.insert(number % CLIENTS, number),
                &None,
            ),
            Err(error) => assert_same("the others", &error.kind(), &ErrorKind::AlreadyExists),
        }
    }
    assert_eq!(enrolled.len() as u64, CLIENTS, "every client is enrolled");
    for (client, number) in enrolled {
        let contacts = bed.store.list_client_contacts(client_id(client)).await;
        let nonces: Vec<_> = contacts
            .unwrap()
            .iter()
            .map(|contact| contact.sent_nonce)
            .collect();
        assert_same("the contact of who succeeded", &nonces, &[number]);
    }
}

async fn f_16_messages_are_linked_any_number_of_times(bed: Bed) {
    bed.add_client(C1).await;
    let recorded = bed.store.record_client_contact(&contact(C1)).await.unwrap();
    bed.send(&[to_client(1, C1), to_client(2, C1)]).await;
    for ids in [&[1][..], &[1, 2, 2, 1], &[9, 1, 9], &[]] {
        let ids: Vec<_> = ids.iter().copied().map(message_id).collect();
        bed.store
            .link_messages_to_contact(&recorded, &ids)
            .await
            .expect("a message linked already, repeated or unknown is no error");
    }
    bed.store
        .store_messages(&[to_client(1, C1)], Some(&recorded))
        .await
        .expect("a message linked already is no error");
}

async fn f_16_unknown_contact_cannot_be_linked(bed: Bed) {
    bed.send(&[to_client(1, C1)]).await;
    for (text, kind) in [
        ("7ffffff0", ErrorKind::NotFound),
        ("zz", ErrorKind::InvalidArgument),
    ] {
        let contact = ContactId::new(text);
        assert_refused(
            "`NotFound` for an unknown contact, `InvalidArgument` for a malformed one",
            bed.store
                .link_messages_to_contact(&contact, &[message_id(1)])
                .await,
            kind,
        );
        let linked = bed.store.link_messages_to_contact(&contact, &[]).await;
        linked.expect("without ids nobody looks at the contact");
    }
}

async fn record_contacts(bed: &Bed, nonces: Range<u64>) {
    bed.add_client(C1).await;
    let contacts: Vec<_> = nonces
        .map(|nonce_sent| ContactData {
            nonce_sent,
            ..contact(C1)
        })
        .collect();
    for recorded in join_all(
        contacts
            .iter()
            .map(|contact| bed.store.record_client_contact(contact)),
    )
    .await
    {
        recorded.unwrap();
    }
}

/// Reads the stream of contacts of the first client.
async fn streamed(bed: &Bed) -> Vec<ClientContact> {
    let contacts = bed.store.stream_client_contacts(C1).try_collect().await;
    contacts.expect("a stream without error")
}

/// Returns the nonces sent to the first client.
async fn nonces(bed: &Bed) -> Vec<u64> {
    let contacts = streamed(bed).await;
    contacts.iter().map(|contact| contact.sent_nonce).collect()
}
