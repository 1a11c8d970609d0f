//! Closing a store, and calls that their callers give up.

use std::sync::Arc;
use std::time::Duration;

use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_store::{
    BROADCAST_UNLIMITED, ClientData, ContactId, Error, ErrorKind, MessageId, Store,
};
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt, join_all};

use crate::broadcasts::active;
use crate::checks::{assert_refused, assert_same, cancel_after};
use crate::processor::Silent;
use crate::samples::{
    C1, C2, WITH_DATA, at, broadcast, broadcast_id, client_id, contact, ids_of, label, message_id,
    seconds, success, to_client, to_server, usage_report,
};
use crate::{Bed, cases};

/// Calls are given up after 1, 2, … polls.
const MOST_POLLS: usize = 12;

cases![
    f_35_store_is_closed_any_number_of_times,
    f_35_every_call_after_close_fails_with_closed,
    close_during_calls_lets_them_finish_or_fail,
    f_34_dropped_store_messages_stores_all_or_nothing,
    f_34_dropped_contact_is_stored_whole_or_not_at_all,
    f_34_dropped_claim_loses_no_message,
    f_34_dropped_results_are_set_all_or_none,
    f_34_dropped_save_is_counted_or_not_done,
    f_34_dropped_creation_leaves_one_of_a_group,
    f_34_dropped_allocation_never_exceeds_the_limit,
    f_34_dropped_readers_leave_the_store_usable,
];

async fn f_35_store_is_closed_any_number_of_times(bed: Bed) {
    bed.add_client(C1).await;
    for _ in 0..3 {
        bed.store.close().await.expect("a second call is no error");
    }
    let closes = (0..4).map(|_| bed.store.close());
    for closed in join_all(closes).await {
        closed.expect("a second call is no error");
    }
}

async fn f_35_every_call_after_close_fails_with_closed(bed: Bed) {
    bed.add_client(C1).await;
    bed.store.close().await.unwrap();
    for (name, call) in all_calls(&*bed.store) {
        assert_refused(
            &format!("{name} fails with `Closed` after close"),
            call.await,
            ErrorKind::Closed,
        );
    }
    bed.store.register_message_processor(Arc::new(Silent)).await;
    bed.store.stop_message_processor().await;
}

async fn close_during_calls_lets_them_finish_or_fail(bed: Bed) {
    let calls: Vec<_> = (0..200)
        .map(|number| {
            let store = Arc::clone(&bed.store);
            tokio::spawn(async move {
                let messages = [to_client(number, C1)];
                store.store_messages(&messages, None).await
            })
        })
        .collect();
    tokio::task::yield_now().await;
    bed.store.close().await.unwrap();
    for call in calls {
        let call = call.await.unwrap();
        if call.is_err() {
            assert_refused(
                "a call after close fails with `Closed`",
                call,
                ErrorKind::Closed,
            );
        }
    }
}

async fn f_34_dropped_store_messages_stores_all_or_nothing(bed: Bed) {
    for polls in 1..=MOST_POLLS {
        let ids = numbers(polls);
        let messages = ids.map(|number| to_client(number, C1));
        let call = bed.store.store_messages(&messages, None);
        let finished = cancel_after(polls, call).await.map(Result::unwrap);
        let next = to_client(1_000 + polls as u64, C2);
        bed.send(std::slice::from_ref(&next)).await;
        let ids = ids.map(message_id);
        let stored = match bed.store.get_messages(&ids, WITH_DATA).await {
            Ok(stored) => stored.len(),
            Err(error) if error.is_not_found() => 0,
            Err(error) => panic!("after {polls} polls: {error:?}"),
        };
        assert!(
            stored == 3 || (stored == 0 && finished.is_none()),
            "a dropped call is done or not done, never half: {stored} of 3 after {polls} polls"
        );
    }
}

async fn f_34_dropped_contact_is_stored_whole_or_not_at_all(bed: Bed) {
    for polls in 1..=MOST_POLLS {
        let client = client_id(polls as u64);
        bed.add_client(client).await;
        let ids = numbers(polls);
        let messages = ids.map(|number| to_client(number, client));
        let contact = contact(client);
        let call = bed.store.store_contact(&contact, &messages);
        cancel_after(polls, call).await;
        bed.add_client(client_id(1_000 + polls as u64)).await;
        let contacts = bed.store.list_client_contacts(client).await.unwrap().len();
        let stored = bed.claim(client).await.len();
        assert!(
            [(0, 0), (1, 3)].contains(&(contacts, stored)),
            "{contacts} contacts with {stored} of 3 messages after {polls} polls"
        );
    }
}

async fn f_34_dropped_claim_loses_no_message(bed: Bed) {
    let messages: Vec<_> = (0..100).map(|number| to_client(number, C1)).collect();
    bed.send(&messages).await;
    for polls in 1..=MOST_POLLS {
        let call = bed.store.client_messages_for_processing(C1, 5, None);
        cancel_after(polls, call).await;
    }
    bed.clock.advance(Duration::from_secs(15 * 60));
    let mut claimed = ids_of(&bed.claim(C1).await);
    claimed.sort();
    assert_same(
        "what a dropped claim took is due again after the retry time",
        &claimed,
        &ids_of(&messages),
    );
    for polls in 1..=MOST_POLLS {
        let call = bed.store.server_messages_for_processing(5);
        cancel_after(polls, call).await;
    }
    bed.send(&[to_server(1_000, C1)]).await;
    bed.clock.advance(Duration::from_secs(60));
    assert_eq!(bed.claim_on_server().await.len(), 1, "the next claim works");
}

async fn f_34_dropped_results_are_set_all_or_none(bed: Bed) {
    for polls in 1..=MOST_POLLS {
        let ids = numbers(polls);
        bed.send(&ids.map(|number| to_client(number, C1))).await;
        let results = ids.map(|number| (message_id(number), success(50)));
        let call = bed.store.set_message_results(&results);
        cancel_after(polls, call).await;
        bed.send(&[to_client(1_000, C2)]).await;
        let pending = bed.store.get_pending_message_count(&[C1]).await.unwrap();
        assert!(
            [0, 3].contains(&pending),
            "{pending} of 3 pending after {polls} polls"
        );

        let clients = [C1];
        let call = bed.store.delete_pending_messages(&clients);
        cancel_after(polls, call).await;
        let deleted = bed.store.delete_pending_messages(&clients).await;
        deleted.expect("the next call works");
        let pending = bed.store.get_pending_message_count(&clients).await.unwrap();
        assert_same("nothing is pending then", &pending, &0);
    }
}

async fn f_34_dropped_save_is_counted_or_not_done(bed: Bed) {
    let id = broadcast_id(0);
    bed.store
        .create_broadcast(&broadcast(0), 1_000)
        .await
        .unwrap();
    let allocation = bed.allocate(id, 1.0).await.expect("all").id;
    let mut saved = 0;
    for polls in 1..=MOST_POLLS {
        let client = client_id(polls as u64);
        bed.add_client(client).await;
        let message = to_client(polls as u64, client);
        let call = bed
            .store
            .save_broadcast_message(&message, id, client, Some(allocation));
        cancel_after(polls, call).await;
        bed.add_client(client_id(1_000 + polls as u64)).await;
        let sent = bed.store.list_sent_broadcasts(client).await.unwrap().len();
        assert_same(
            "a broadcast is noted with its message",
            &bed.pending(&[client]).await.len(),
            &sent,
        );
        saved += sent as u64;
    }
    bed.store.disable_broadcasts(&[id]).await.unwrap();
    assert_same("what was saved is counted", &bed.sent(id).await, &saved);
}

async fn f_34_dropped_creation_leaves_one_of_a_group(bed: Bed) {
    let grouped = |number| Broadcast {
        group_name: "group".into(),
        ..broadcast(number)
    };
    bed.store.create_broadcast(&grouped(0), 8).await.unwrap();
    for polls in 1..=MOST_POLLS {
        let new = grouped(polls as u64);
        cancel_after(polls, bed.store.create_broadcast(&new, 8)).await;
        bed.add_client(client_id(polls as u64)).await;
        let found = active(&bed).await;
        assert_eq!(found.len(), 1, "one of a group is active: {found:?}");
    }
}

async fn f_34_dropped_allocation_never_exceeds_the_limit(bed: Bed) {
    let id = broadcast_id(0);
    bed.store
        .create_broadcast(&broadcast(0), 100)
        .await
        .unwrap();
    let mut held = 0;
    for polls in 1..=MOST_POLLS {
        let call = bed.allocate(id, 0.01);
        if let Some(allocation) = cancel_after(polls, call).await.flatten() {
            held += allocation.limit;
        }
    }
    let rest = bed
        .allocate(id, 1.0)
        .await
        .expect("the next call works")
        .limit;
    assert!(held + rest <= 100, "{held} and {rest} are over the limit");
    assert!(
        held + rest >= 100 - MOST_POLLS as u64,
        "dropped calls took more than they asked for: {held} and {rest} are left"
    );
    for polls in 1..=MOST_POLLS {
        let call = bed.store.cleanup_allocation(id, None, 1);
        cancel_after(polls, call).await;
    }
    bed.store.cleanup_allocation(id, None, 1).await.unwrap();
    let sent = bed.sent(id).await;
    assert!(
        (1..=1 + MOST_POLLS as u64).contains(&sent),
        "counted {sent} times"
    );
}

async fn f_34_dropped_readers_leave_the_store_usable(bed: Bed) {
    bed.add_clients((0..300).map(client_id)).await;
    for polls in 1..=MOST_POLLS {
        for (_, call) in all_calls(&*bed.store) {
            cancel_after(polls, call).await;
        }
    }
    for polls in 1..=MOST_POLLS as u64 {
        bed.add_client(client_id(1_000 + polls)).await;
        let listed = bed.store.list_clients(&[client_id(1_000 + polls)]).await;
        assert_eq!(listed.unwrap().len(), 1, "the next call works");
    }
}

type Call<'a> = BoxFuture<'a, Result<(), Error>>;

/// Returns one call of every method that can fail.
fn all_calls(store: &dyn Store) -> Vec<(&'static str, Call<'_>)> {
    macro_rules! calls {
        ($($name:ident($($argument:expr),*)),* $(,)?) => {
            vec![$((stringify!($name), async move {
                store.$name($($argument),*).await.map(drop)
            }.boxed())),*]
        };
    }
    let known: [MessageId; 1] = [message_id(1)];
    let mut calls: Vec<(&'static str, Call<'_>)> = calls![
        store_messages(&[to_client(1, C1)], None),
        set_message_result(Some(C1), message_id(1), &success(50)),
        set_message_results(&[(message_id(1), success(50))]),
        get_message_result(message_id(1)),
        get_messages(&known, WITH_DATA),
        get_pending_messages(&[C1], 0, 0, WITH_DATA),
        get_pending_message_count(&[C1]),
        delete_pending_messages(&[C1]),
        client_messages_for_processing(C1, 1, None),
        server_messages_for_processing(1),
        release_messages(C1, &known),
        list_clients(&[]),
        get_client_data(C1),
        add_client(C2, &ClientData::default()),
        add_client_label(C1, &label("client", "label")),
        remove_client_label(C1, &label("client", "label")),
        blacklist_client(C1),
        record_client_contact(&contact(C1)),
        store_contact(&contact(C1), &[to_server(1, C1)]),
        enrol(&ClientData::default(), &contact(C2)),
        list_client_contacts(C1),
        link_messages_to_contact(&ContactId::from_number(1), &known),
        record_resource_usage_data(C1, &usage_report()),
        fetch_resource_usage_records(C1, &seconds(0), &seconds(9)),
        create_broadcast(&broadcast(0), BROADCAST_UNLIMITED),
        set_broadcast_limit(broadcast_id(0), 1),
        disable_broadcasts(&[broadcast_id(0)]),
        save_broadcast_message(&to_client(1, C1), broadcast_id(0), C1, None),
        list_active_broadcasts(),
        list_sent_broadcasts(C1),
        broadcast_progress(broadcast_id(0)),
        create_allocation(broadcast_id(0), 0.5, at(200_000)),
        cleanup_allocation(broadcast_id(0), None, 1),
        store_file("service", "name", &mut &b"content"[..]),
        delete_file("service", "name"),
        stat_file("service", "name"),
        read_file("service", "name"),
    ];
    calls.push((
        "stream_client_ids",
        async move {
            let first = store.stream_client_ids(true, None).next().await;
            first.map_or(Ok(()), |first| first.map(drop))
        }
        .boxed(),
    ));
    calls.push((
        "stream_client_contacts",
        async move {
            let first = store.stream_client_contacts(C1).next().await;
            first.map_or(Ok(()), |first| first.map(drop))
        }
        .boxed(),
    ));
    calls
}

/// Returns three numbers of messages that belong to this count of polls.
fn numbers(polls: usize) -> [u64; 3] {
    [0, 1, 2].map(|number| 10 * polls as u64 + number)
}
