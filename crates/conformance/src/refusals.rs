//! Refused calls leave no trace (specification section 3, all "InvalidArgument").

use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_proto::fleetspeak::{Address, Message, MessageResult};
use fleethold_store::{ClientData, ContactData, ContactId, ErrorKind, Result, Store};
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};

use crate::checks::{assert_refused, assert_same};
use crate::durability::{populate, see};
use crate::samples::{
    C1, C2, C3, SERVICE, WITH_DATA, at, broadcast, broadcast_id, contact, label, message_id,
    seconds, to_client, to_server, usage_report,
};
use crate::{Bed, cases};

cases![f_13_every_malformed_argument_is_refused_without_a_trace];

async fn f_13_every_malformed_argument_is_refused_without_a_trace(bed: Bed) {
    populate(&bed).await;
    let before = see(&bed).await;
    bed.clock.advance(std::time::Duration::from_secs(10));
    for (what, call) in calls(&*bed.store) {
        assert_refused(
            &format!("`InvalidArgument` for {what}"),
            call.await,
            ErrorKind::InvalidArgument,
        );
        assert_same(
            &format!("{what} changes nothing"),
            &see(&bed).await,
            &before,
        );
    }
    bed.add_client(C3).await;
    bed.send(&[to_client(9, C3)]).await;
    assert_eq!(bed.claim(C3).await.len(), 1, "later calls work");
}

type Call<'a> = BoxFuture<'a, Result<()>>;

/// Returns a call for each way in which an argument can be malformed.
fn calls(store: &dyn Store) -> Vec<(String, Call<'_>)> {
    let long = "ä".repeat(129);
    let invalid = Timestamp {
        seconds: 5,
        nanos: -1,
    };
    let malformed = ContactId::new("zz");
    let mut calls: Vec<(String, Call<'_>)> = Vec::new();
    macro_rules! call {
        ($what:expr, $call:expr) => {
            calls.push((
                $what.to_string(),
                async move { $call.await.map(drop) }.boxed(),
            ))
        };
    }
    for (what, bad) in malformed_messages() {
        let messages = [to_client(8, C1), bad.clone()];
        let again = messages.clone();
        call!(what, store.store_messages(&messages, None));
        call!(
            format!("{what}, in a contact"),
            store.store_contact(&contact(C1), &again)
        );
        call!(
            format!("{what}, of a broadcast"),
            store.save_broadcast_message(&bad, broadcast_id(0), C2, None)
        );
    }
    let contact_id = malformed.clone();
    call!(
        "a malformed contact",
        store.store_messages(&[to_server(8, C1)], Some(&contact_id))
    );
    call!(
        "a malformed contact to link",
        store.link_messages_to_contact(&malformed, &[message_id(1)])
    );
    let timeless = MessageResult::default();
    let results = [(message_id(1), timeless.clone())];
    call!(
        "a result without time",
        store.set_message_result(Some(C1), message_id(1), &timeless)
    );
    call!("results without time", store.set_message_results(&results));
    call!(
        "an offset without limit",
        store.get_pending_messages(&[C1], 1, 0, WITH_DATA)
    );
    for wrong in [label(&long, "a"), label("client", &long)] {
        let data = ClientData {
            labels: vec![wrong.clone()],
            ..ClientData::default()
        };
        call!("a client with a long label", store.add_client(C3, &data));
        call!("a long label", store.add_client_label(C1, &wrong));
    }
    let to_long = ContactData {
        streaming_to: Some("x".repeat(129)),
        ..contact(C1)
    };
    let again = to_long.clone();
    call!(
        "a long streaming target",
        store.record_client_contact(&to_long)
    );
    call!(
        "a long streaming target with messages",
        store.store_contact(&again, &[to_client(8, C1)])
    );
    for time in [None, Some(invalid), Some(seconds(253_402_300_800))] {
        let start = ResourceUsageData {
            process_start_time: time,
            ..usage_report()
        };
        let data = ResourceUsageData {
            data_timestamp: time,
            ..usage_report()
        };
        call!(
            "a wrong start time",
            store.record_resource_usage_data(C1, &start)
        );
        call!(
            "a wrong data time",
            store.record_resource_usage_data(C1, &data)
        );
    }
    call!(
        "a wrong start",
        store.fetch_resource_usage_records(C1, &invalid, &seconds(9))
    );
    call!(
        "a wrong end",
        store.fetch_resource_usage_records(C1, &seconds(1), &invalid)
    );
    call!(
        "a start after the end",
        store.fetch_resource_usage_records(C1, &seconds(2), &seconds(1))
    );
    for (what, wrong) in [
        (
            "no broadcast id",
            Broadcast {
                broadcast_id: Vec::new().into(),
                ..broadcast(7)
            },
        ),
        (
            "a broadcast id of 9 bytes",
            Broadcast {
                broadcast_id: vec![1; 9].into(),
                ..broadcast(7)
            },
        ),
        (
            "a broadcast without source",
            Broadcast {
                source: None,
                ..broadcast(7)
            },
        ),
        (
            "a long message type",
            Broadcast {
                message_type: long.clone(),
                ..broadcast(7)
            },
        ),
        (
            "a long group",
            Broadcast {
                group_name: long.clone(),
                ..broadcast(7)
            },
        ),
        (
            "a long label",
            Broadcast {
                required_labels: vec![label("", &long)],
                ..broadcast(7)
            },
        ),
    ] {
        call!(what, store.create_broadcast(&wrong, 8));
    }
    for fraction in [f32::NAN, -0.5, f32::NEG_INFINITY] {
        call!(
            format!("a fraction of {fraction}"),
            store.create_allocation(broadcast_id(0), fraction, at(200_000))
        );
    }
    call!(
        "an expiry after the year 9999",
        store.create_allocation(broadcast_id(0), 0.5, at(253_402_300_800))
    );
    let name = long.clone();
    call!(
        "a long file name",
        store.store_file("service", &name, &mut &b"x"[..])
    );
    call!(
        "a long file service",
        store.store_file(&long, "name", &mut &b"x"[..])
    );
    let streamed = async move {
        let mut ids = store.stream_client_ids(true, Some(invalid));
        ids.next().await.expect("an error").map(drop)
    };
    calls.push(("a wrong filter".to_owned(), streamed.boxed()));
    calls
}

/// Returns messages numbered 2 that no store accepts, and what is wrong with each.
pub(crate) fn malformed_messages() -> Vec<(&'static str, Message)> {
    let good = to_client(2, C1);
    let with_id = |length| Message {
        message_id: Bytes::from(vec![2; length]),
        ..good.clone()
    };
    let address_of = |length| {
        Some(Address {
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
