//! Clients, their labels and the lists of them (specification section 3.3).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::server::Client;
use fleethold_proto::fleetspeak::{Label, Message};
use fleethold_store::{ClientData, ClientId, Clock, ErrorKind, clock};
use futures::{StreamExt, TryStreamExt};

use crate::checks::{assert_messages, assert_refused, assert_same};
use crate::samples::{
    C1, C2, C3, client_id, contact, for_service, label, message_id, seconds, to_client, to_server,
};
use crate::{Bed, cases};

cases![
    b_049_to_052_client_comes_back_with_key_and_labels,
    b_060_061_blacklisting_keeps_key_and_labels,
    b_062_063_client_is_added_as_given,
    b_064_to_069_clients_are_listed_by_id,
    b_070_to_072_client_ids_are_streamed_by_last_contact,
    s_03_client_id_of_zeros_is_an_ordinary_id,
    s_04_labels_are_listed_by_service_and_label,
    s_05_epoch_as_filter_passes_all_clients,
    s_09_messages_of_a_blacklisted_client_stay_pending,
    s_14_labels_are_added_and_removed_one_by_one,
    existing_client_is_not_overwritten,
    f_17_repeated_label_is_stored_once,
    overlong_label_is_refused,
    f_17_labels_are_compared_byte_by_byte,
    label_of_an_unknown_client_is_not_found,
    unknown_client_cannot_be_blacklisted,
    unknown_and_repeated_ids_are_listed_at_most_once,
    last_contact_filter_is_strict_to_the_nanosecond,
    every_client_is_streamed_once_over_many_pages,
    f_20_slow_reader_of_client_ids_holds_up_nobody,
    invalid_filter_ends_the_stream,
];

async fn b_049_to_052_client_comes_back_with_key_and_labels(bed: Bed) {
    bed.clock.set(84);
    bed.clock.set_retry(Duration::from_secs(60));
    assert_refused(
        "`NotFound` for an unknown client",
        bed.store.get_client_data(C1).await,
        ErrorKind::NotFound,
    );
    let mut data = ClientData {
        key: Bytes::from_static(b"test key\x00\xff\x01\xfe"),
        labels: vec![label("client", "label1"), label("client", "label2")],
        blacklisted: false,
    };
    bed.store.add_client(C1, &data).await.unwrap();
    assert_client(&bed, C1, &data).await;

    let spaced = label("system", "test label");
    bed.store.add_client_label(C1, &spaced).await.unwrap();
    data.labels.push(spaced);
    assert_client(&bed, C1, &data).await;

    let removed = data.labels.remove(0);
    bed.store.remove_client_label(C1, &removed).await.unwrap();
    assert_client(&bed, C1, &data).await;
}

async fn b_060_061_blacklisting_keeps_key_and_labels(bed: Bed) {
    let data = ClientData {
        key: Bytes::from_static(b"key"),
        labels: vec![label("client", "label1")],
        blacklisted: false,
    };
    bed.store.add_client(C1, &data).await.unwrap();
    let blacklisted = ClientData {
        blacklisted: true,
        ..data
    };
    for _ in 0..2 {
        bed.store.blacklist_client(C1).await.unwrap();
        assert_client(&bed, C1, &blacklisted).await;
    }
}

async fn b_062_063_client_is_added_as_given(bed: Bed) {
    for (id, blacklisted) in [(C1, false), (C2, true)] {
        let data = ClientData {
            key: Bytes::from_static(b"test key"),
            labels: Vec::new(),
            blacklisted,
        };
        bed.store.add_client(id, &data).await.unwrap();
        assert_client(&bed, id, &data).await;
        assert_eq!(bed.client(id).await.blacklisted, blacklisted);
    }
}

async fn b_064_to_069_clients_are_listed_by_id(bed: Bed) {
    for id in [C3, C1, C2] {
        bed.add_client(id).await;
    }
    bed.store.blacklist_client(C3).await.unwrap();
    for (asked, expected) in [
        (&[][..], &[C1, C2, C3][..]),
        (&[C1], &[C1]),
        (&[C2, C1], &[C1, C2]),
    ] {
        let found = bed.store.list_clients(asked).await.unwrap();
        assert_same(
            "the clients with these ids, all if there are none, ordered by id",
            &ids_of(&found),
            &expected,
        );
        for client in found {
            assert_same(
                "the blacklist flag is that of the client",
                &client.blacklisted,
                &(client.client_id == C3.to_bytes()),
            );
            assert_same(
                "a new client's last contact is its addition",
                &client.last_contact_time,
                &Some(clock::timestamp(bed.clock.now())),
            );
        }
    }
}

async fn b_070_to_072_client_ids_are_streamed_by_last_contact(bed: Bed) {
    bed.add_client(C1).await;
    bed.clock.advance(Duration::from_millis(500));
    let before_second = clock::timestamp(bed.clock.now());
    bed.clock.advance(Duration::from_millis(500));
    bed.add_client(C2).await;
    bed.store.blacklist_client(C2).await.unwrap();
    bed.clock.advance(Duration::from_secs(1));
    bed.add_client(C3).await;
    for (include_blacklisted, after, expected) in [
        (true, None, &[C1, C2, C3][..]),
        (false, None, &[C1, C3]),
        (true, Some(before_second), &[C2, C3]),
        (false, Some(before_second), &[C3]),
    ] {
        let found: Vec<_> = bed
            .store
            .stream_client_ids(include_blacklisted, after)
            .try_collect()
            .await
            .unwrap();
        assert_same(
            "client ids in ascending order, those with a later last contact only",
            &found,
            &expected,
        );
    }
}

async fn s_03_client_id_of_zeros_is_an_ordinary_id(bed: Bed) {
    let zeros = client_id(0);
    bed.add_client(zeros).await;
    let data = bed.store.get_client_data(zeros).await.unwrap();
    assert_same("a key may be empty", &data, &ClientData::default());
    for _ in 0..2 {
        let recorded = bed.store.record_client_contact(&contact(zeros)).await;
        recorded.unwrap();
    }
    let contacts = bed.store.list_client_contacts(zeros).await.unwrap();
    assert_eq!(contacts.len(), 2, "a client id of zeros makes contacts");
}

async fn s_04_labels_are_listed_by_service_and_label(bed: Bed) {
    let sorted = [("", "z"), ("a", ""), ("a", "B"), ("a", "b"), ("b", "a")]
        .map(|(service, text)| label(service, text));
    let mut data = ClientData::default();
    data.labels.extend(sorted.iter().rev().cloned());
    bed.store.add_client(C1, &data).await.unwrap();
    bed.add_client(C2).await;
    bed.store.add_client_label(C2, &sorted[0]).await.unwrap();
    for asked in [&[][..], &[C1, C2]] {
        let found = bed.store.list_clients(asked).await.unwrap();
        assert_same(
            "labels come by (service name, label), also those of named clients",
            &found[0].labels,
            &sorted,
        );
        assert_same(
            "each client has its own labels",
            &found[1].labels,
            &&sorted[..1],
        );
    }
}

async fn s_05_epoch_as_filter_passes_all_clients(bed: Bed) {
    for id in [C1, C2] {
        bed.add_client(id).await;
    }
    for after in [seconds(0), seconds(-62_135_596_800)] {
        let found: Vec<_> = bed
            .store
            .stream_client_ids(true, Some(after))
            .try_collect()
            .await
            .unwrap();
        assert_same("all clients made contact later", &found, &[C1, C2]);
    }
    let never = seconds(253_402_300_799);
    let found: Vec<_> = bed
        .store
        .stream_client_ids(true, Some(never))
        .try_collect()
        .await
        .unwrap();
    assert_same("no client makes contact after the year 9999", &found, &[]);
}

async fn s_09_messages_of_a_blacklisted_client_stay_pending(bed: Bed) {
    bed.add_client(C1).await;
    let waiting = to_client(1, C1);
    bed.send(std::slice::from_ref(&waiting)).await;
    bed.store.blacklist_client(C1).await.unwrap();
    let rekey = Message {
        message_type: "RekeyRequest".into(),
        ..for_service(to_client(2, C1), "system")
    };
    let recorded = bed.store.record_client_contact(&contact(C1)).await.unwrap();
    bed.store
        .store_messages(std::slice::from_ref(&rekey), Some(&recorded))
        .await
        .unwrap();
    let found = bed.read(&[message_id(2)]).await;
    assert_messages(
        "messages to a blacklisted client are stored",
        &found,
        std::slice::from_ref(&rekey),
    );
    let found = bed.pending(&[C1]).await;
    assert_messages("pending messages stay", &found, &[waiting, rekey]);
}

async fn s_14_labels_are_added_and_removed_one_by_one(bed: Bed) {
    bed.add_client(C1).await;
    let [first, second] = ["one", "two"].map(|text| label("client", text));
    let mut expected = ClientData::default();
    for label in [&second, &first, &first] {
        bed.store.add_client_label(C1, label).await.unwrap();
    }
    expected.labels = vec![first.clone(), second.clone()];
    assert_client(&bed, C1, &expected).await;
    for _ in 0..2 {
        bed.store.remove_client_label(C1, &first).await.unwrap();
        expected.labels = vec![second.clone()];
        assert_client(&bed, C1, &expected).await;
    }
}

async fn existing_client_is_not_overwritten(bed: Bed) {
    let data = ClientData {
        key: Bytes::from_static(b"old"),
        labels: vec![label("client", "old")],
        blacklisted: true,
    };
    bed.store.add_client(C1, &data).await.unwrap();
    let before = bed.client(C1).await;
    bed.clock.advance(Duration::from_secs(1));
    let other = ClientData {
        key: Bytes::from_static(b"new"),
        labels: vec![label("client", "new")],
        blacklisted: false,
    };
    assert_refused(
        "`AlreadyExists`, the stored client is unchanged then",
        bed.store.add_client(C1, &other).await,
        ErrorKind::AlreadyExists,
    );
    assert_client(&bed, C1, &data).await;
    assert_same(
        "the stored client is unchanged",
        &bed.client(C1).await,
        &before,
    );
}

async fn f_17_repeated_label_is_stored_once(bed: Bed) {
    let twice = label("client", "twice");
    let mut data = ClientData {
        labels: vec![twice.clone(), label("client", "once"), twice.clone()],
        ..ClientData::default()
    };
    bed.store.add_client(C1, &data).await.unwrap();
    bed.store.add_client_label(C1, &twice).await.unwrap();
    data.labels = vec![label("client", "once"), twice];
    assert_client(&bed, C1, &data).await;
}

async fn overlong_label_is_refused(bed: Bed) {
    let longest = "ä".repeat(128);
    let longer = "ä".repeat(129);
    let mut data = ClientData {
        labels: vec![label(&longest, &longest)],
        ..ClientData::default()
    };
    bed.store.add_client(C1, &data).await.unwrap();
    assert_client(&bed, C1, &data).await;
    for wrong in [label("client", &longer), label(&longer, "label")] {
        assert_refused(
            "`InvalidArgument` for a service name or label over 128 characters",
            bed.store.add_client_label(C1, &wrong).await,
            ErrorKind::InvalidArgument,
        );
        assert_client(&bed, C1, &data).await;
        let new = ClientData {
            labels: vec![label("client", "short"), wrong],
            ..ClientData::default()
        };
        assert_refused(
            "`InvalidArgument` for a label over 128 characters",
            bed.store.add_client(C2, &new).await,
            ErrorKind::InvalidArgument,
        );
    }
    assert_refused(
        "a refused client is not added",
        bed.store.get_client_data(C2).await,
        ErrorKind::NotFound,
    );
    data.labels.clear();
    bed.store.add_client(C2, &data).await.unwrap();
}

async fn f_17_labels_are_compared_byte_by_byte(bed: Bed) {
    bed.add_client(C1).await;
    let mut labels: Vec<Label> = [
        "",
        " ",
        "Linux",
        "LINUX",
        "linux",
        "linux ",
        "l\u{131}nux",
        "li\u{301}nux",
        "lınux ",
        "l\u{ed}nux",
        "\u{1F980}",
        "\u{1F981}",
        "%",
        "_",
        "'; --",
    ]
    .map(|text| label("client", text))
    .into();
    labels.push(label("Client", "linux"));
    for label in &labels {
        bed.store.add_client_label(C1, label).await.unwrap();
    }
    labels.sort_by(|a, b| (&a.service_name, &a.label).cmp(&(&b.service_name, &b.label)));
    let mut expected = ClientData {
        labels,
        ..ClientData::default()
    };
    assert_client(&bed, C1, &expected).await;

    bed.store
        .remove_client_label(C1, &label("client", "LINUX"))
        .await
        .unwrap();
    expected.labels.retain(|label| label.label != "LINUX");
    assert_client(&bed, C1, &expected).await;

    let nul = label("client", "a\u{0}b");
    match bed.store.add_client_label(C1, &nul).await {
        Ok(()) => {
            let found = bed.store.get_client_data(C1).await.unwrap().labels;
            assert!(found.contains(&nul), "U+0000 in a label is kept or refused");
        }
        refused => assert_refused(
            "U+0000 in a label is kept or refused",
            refused,
            ErrorKind::InvalidArgument,
        ),
    }
}

async fn label_of_an_unknown_client_is_not_found(bed: Bed) {
    let label = label("client", "label");
    assert_refused(
        "`NotFound` for an unknown client",
        bed.store.add_client_label(C1, &label).await,
        ErrorKind::NotFound,
    );
    let removed = bed.store.remove_client_label(C1, &label).await;
    removed.expect("a missing label or client is no error");
}

async fn unknown_client_cannot_be_blacklisted(bed: Bed) {
    assert_refused(
        "`NotFound` for an unknown client",
        bed.store.blacklist_client(C1).await,
        ErrorKind::NotFound,
    );
    bed.add_client(C1).await;
    assert!(!bed.client(C1).await.blacklisted, "nothing is kept of it");
}

async fn unknown_and_repeated_ids_are_listed_at_most_once(bed: Bed) {
    let found = bed.store.list_clients(&[]).await.unwrap();
    assert_same("an empty store has no clients", &found, &[]);
    let data = ClientData {
        labels: vec![label("client", "one"), label("client", "two")],
        ..ClientData::default()
    };
    bed.store.add_client(C2, &data).await.unwrap();
    bed.add_client(C1).await;
    let found = bed.store.list_clients(&[C3]).await.unwrap();
    assert_same("unknown ids are left out", &found, &[]);
    let found = bed.store.list_clients(&[C2, C3, C1, C2]).await.unwrap();
    assert_same("repeated ids are returned once", &ids_of(&found), &[C1, C2]);
    assert_same("and their labels once", &found[1].labels, &data.labels);
    let many: Vec<_> = (0..33_000).map(client_id).collect();
    let found = bed.store.list_clients(&many).await.unwrap();
    assert_same(
        "any number of ids may be asked for",
        &ids_of(&found),
        &[C1, C2],
    );
}

async fn last_contact_filter_is_strict_to_the_nanosecond(bed: Bed) {
    bed.clock.advance(Duration::from_nanos(123_456_789));
    bed.add_client(C1).await;
    let added = bed.clock.now();
    for (after, expected) in [
        (added - Duration::from_nanos(1), &[C1][..]),
        (added, &[]),
        (added + Duration::from_nanos(1), &[]),
    ] {
        let found: Vec<_> = bed
            .store
            .stream_client_ids(true, Some(clock::timestamp(after)))
            .try_collect()
            .await
            .unwrap();
        assert_same(
            "only those whose last contact is strictly later",
            &found,
            &expected,
        );
    }
    let found = bed.client(C1).await.last_contact_time;
    assert_same(
        "times keep their nanoseconds",
        &found,
        &Some(clock::timestamp(added)),
    );
}

async fn every_client_is_streamed_once_over_many_pages(bed: Bed) {
    bed.add_clients((0..1_500).map(client_id)).await;
    let found: Vec<_> = bed
        .store
        .stream_client_ids(true, None)
        .try_collect()
        .await
        .unwrap();
    assert!(
        found.iter().copied().eq((0..1_500).map(client_id)),
        "every client appears exactly once, in ascending order; found {}",
        found.len()
    );
}

async fn f_20_slow_reader_of_client_ids_holds_up_nobody(bed: Bed) {
    let even = || (0..800).map(|number| client_id(2 * number));
    bed.add_clients(even()).await;
    // Many readers at once: none may keep a connection for itself.
    let mut streams: Vec<_> = (0..20)
        .map(|_| bed.store.stream_client_ids(true, None))
        .collect();
    for stream in &mut streams {
        let first = stream.next().await.unwrap().unwrap();
        assert_same("streams are in ascending order", &first, &client_id(0));
    }
    for number in 0..200 {
        bed.add_client(client_id(8 * number + 1)).await;
    }
    bed.send(&[to_client(1, client_id(0)), to_server(2, C1)])
        .await;
    assert_eq!(
        bed.claim(client_id(0)).await.len(),
        1,
        "a reader blocks no call"
    );
    let mut stream = streams.swap_remove(0);
    drop(streams);
    let mut found = vec![client_id(0)];
    while let Some(id) = stream.next().await {
        found.push(id.unwrap());
        if found.len() % 100 == 0 {
            bed.store.get_client_data(client_id(0)).await.unwrap();
        }
    }
    assert!(found.is_sorted(), "streams are in ascending order");
    let unique: BTreeSet<_> = found.iter().copied().collect();
    assert_eq!(unique.len(), found.len(), "no client appears twice");
    assert!(
        even().all(|id| unique.contains(&id)),
        "every client that exists during the whole stream appears"
    );
}

async fn invalid_filter_ends_the_stream(bed: Bed) {
    bed.add_client(C1).await;
    for after in [
        Timestamp {
            seconds: 5,
            nanos: -1,
        },
        seconds(253_402_300_800),
    ] {
        let mut stream = bed.store.stream_client_ids(true, Some(after));
        assert_refused(
            "an invalid time is refused",
            stream.next().await.expect("an error"),
            ErrorKind::InvalidArgument,
        );
        assert!(
            stream.next().await.is_none(),
            "the stream ends after an error"
        );
    }
}

async fn assert_client(bed: &Bed, id: ClientId, expected: &ClientData) {
    let found = bed.store.get_client_data(id).await.unwrap();
    assert_same(
        "key, labels and blacklist flag are as set",
        &found,
        expected,
    );
}

fn ids_of(clients: &[Client]) -> Vec<ClientId> {
    clients
        .iter()
        .map(|client| ClientId::try_from(&client.client_id[..]).expect("8 bytes"))
        .collect()
}
