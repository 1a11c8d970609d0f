//! Messages of broadcasts, saved for the clients that get them (specification
//! sections 3.4.4 and 3.4.6).

use std::sync::Arc;
use std::time::Duration;

use fleethold_proto::fleetspeak::Message;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_store::{BROADCAST_UNLIMITED, BroadcastProgress, ErrorKind, MAX_PAYLOAD_BYTES};

use crate::broadcasts::active;
use crate::checks::{assert_messages, assert_refused, assert_same};
use crate::refusals::malformed_messages;
use crate::samples::{
    C1, C2, C3, bare_message, broadcast, broadcast_id, client_id, data, failure, message_id,
    seconds, success, to_client, with_result,
};
use crate::{Bed, cases};

cases![
    b_096_to_099_disabled_broadcast_is_not_sent,
    b_107_to_110_unlimited_broadcast_needs_no_allocation,
    s_15_f_27_client_gets_a_broadcast_once,
    malformed_messages_of_a_broadcast_are_refused,
    refused_saves_store_nothing,
    known_message_is_kept_and_the_rest_proceeds,
    saved_message_is_due_after_the_retry_time,
    saving_without_allocation_counts_nothing,
    f_28_expired_broadcast_is_refused,
    sent_broadcasts_are_listed_by_id,
    progress_counts_the_messages_of_a_broadcast_by_their_result,
    f_26_save_racing_with_disable_is_counted_or_refused,
];

async fn b_096_to_099_disabled_broadcast_is_not_sent(bed: Bed) {
    bed.add_client(C1).await;
    let id = broadcast_id(0);
    bed.store.create_broadcast(&broadcast(0), 8).await.unwrap();
    let allocation = bed.allocate(id, 0.5).await.expect("room for four");
    bed.store.disable_broadcasts(&[id]).await.unwrap();
    for allocation in [Some(allocation.id), None] {
        assert_refused(
            "`BroadcastDisabled` if the broadcast has limit 0 or the allocation is gone",
            bed.store
                .save_broadcast_message(&bare_message(1, C1), id, C1, allocation)
                .await,
            ErrorKind::BroadcastDisabled,
        );
    }
    assert_same(
        "a disabled broadcast is not active",
        &active(&bed).await,
        &[],
    );
    assert_nothing_saved(&bed).await;
    let cleanup = bed
        .store
        .cleanup_allocation(id, Some(allocation.id), 0)
        .await;
    cleanup.expect("an allocation that is gone is no error");
    assert!(
        bed.allocate(id, 0.5).await.is_none(),
        "nothing is left of it"
    );
}

async fn b_107_to_110_unlimited_broadcast_needs_no_allocation(bed: Bed) {
    bed.add_client(C1).await;
    let id = broadcast_id(0);
    let created = bed
        .store
        .create_broadcast(&broadcast(0), BROADCAST_UNLIMITED)
        .await;
    created.unwrap();
    bed.store
        .save_broadcast_message(&to_client(1, C1), id, C1, None)
        .await
        .unwrap();
    assert_same(
        "without allocation nothing is counted when saving",
        &active(&bed).await,
        &[(id, 0, BROADCAST_UNLIMITED)],
    );
    bed.store.cleanup_allocation(id, None, 1).await.unwrap();
    assert_same(
        "a cleanup without allocation only counts",
        &active(&bed).await,
        &[(id, 1, BROADCAST_UNLIMITED)],
    );
    for _ in 0..2 {
        bed.store
            .cleanup_allocation(id, None, u64::MAX)
            .await
            .unwrap();
    }
    assert_same(
        "a count saturates, so that it never wraps",
        &bed.sent(id).await,
        &BROADCAST_UNLIMITED,
    );
}

async fn s_15_f_27_client_gets_a_broadcast_once(bed: Bed) {
    bed.add_client(C1).await;
    let id = broadcast_id(0);
    bed.store.create_broadcast(&broadcast(0), 8).await.unwrap();
    let allocation = bed.allocate(id, 0.5).await.expect("room for four");
    let save = |number| {
        let message = to_client(number, C1);
        let store = &bed.store;
        async move {
            let allocation = Some(allocation.id);
            store
                .save_broadcast_message(&message, id, C1, allocation)
                .await
        }
    };
    save(1).await.unwrap();
    assert_refused(
        "`AlreadyExists` if the client has the broadcast",
        save(2).await,
        ErrorKind::AlreadyExists,
    );
    assert_messages(
        "nothing is stored then",
        &bed.pending(&[C1]).await,
        &[to_client(1, C1)],
    );
    bed.store.disable_broadcasts(&[id]).await.unwrap();
    assert_same("nor counted", &bed.sent(id).await, &1);
    let cleanup = bed
        .store
        .cleanup_allocation(id, Some(allocation.id), 1)
        .await;
    cleanup.expect("closing cleans up without error");
    assert_same(
        "an allocation that is gone counts nothing",
        &bed.sent(id).await,
        &1,
    );
}

async fn malformed_messages_of_a_broadcast_are_refused(bed: Bed) {
    bed.add_client(C1).await;
    let id = broadcast_id(0);
    bed.store.create_broadcast(&broadcast(0), 8).await.unwrap();
    let allocation = bed.allocate(id, 1.0).await.expect("room for all");
    for (what, message) in malformed_messages() {
        // An unknown broadcast shows that the message is checked first.
        for broadcast in [id, broadcast_id(9)] {
            assert_refused(
                &format!("`InvalidArgument` for {what}"),
                bed.store
                    .save_broadcast_message(&message, broadcast, C1, Some(allocation.id))
                    .await,
                ErrorKind::InvalidArgument,
            );
        }
    }
    let oversized = Message {
        data: Some(data(vec![7; MAX_PAYLOAD_BYTES + 1])),
        ..to_client(1, C1)
    };
    assert_refused(
        "`TooLarge` for a payload that must wait",
        bed.store
            .save_broadcast_message(&oversized, id, C1, Some(allocation.id))
            .await,
        ErrorKind::TooLarge,
    );
    assert_nothing_saved(&bed).await;
    bed.store.disable_broadcasts(&[id]).await.unwrap();
    assert_same("nothing is counted then", &bed.sent(id).await, &0);
}

async fn refused_saves_store_nothing(bed: Bed) {
    for client in [C1, C2, C3] {
        bed.add_client(client).await;
    }
    let id = broadcast_id(0);
    bed.store.create_broadcast(&broadcast(0), 2).await.unwrap();
    bed.store.create_broadcast(&broadcast(1), 2).await.unwrap();
    let first = bed.allocate(id, 0.5).await.expect("room for one").id;
    let second = bed.allocate(id, 1.0).await.expect("room for one").id;
    let save = |number, broadcast, client, allocation| {
        let message = to_client(number, client);
        let store = &bed.store;
        async move {
            store
                .save_broadcast_message(&message, broadcast, client, allocation)
                .await
        }
    };
    for (broadcast, allocation) in [
        (broadcast_id(9), None),
        (broadcast_id(9), Some(first)),
        (broadcast_id(1), Some(first)),
    ] {
        assert_refused(
            "`BroadcastDisabled` if the broadcast is unknown or the allocation not its own",
            save(1, broadcast, C1, allocation).await,
            ErrorKind::BroadcastDisabled,
        );
    }
    assert_refused(
        "`NotFound` for an unknown client",
        save(1, id, client_id(9), Some(first)).await,
        ErrorKind::NotFound,
    );
    assert_nothing_saved(&bed).await;

    save(2, id, C2, Some(first)).await.unwrap();
    for client in [C1, C2, client_id(9)] {
        assert_refused(
            "`AllocationFull` comes before what is wrong with the client",
            save(1, id, client, Some(first)).await,
            ErrorKind::AllocationFull,
        );
    }
    bed.clock.advance(Duration::from_secs(300));
    save(3, id, C3, Some(second))
        .await
        .expect("the moment of expiry is still valid");
    bed.clock.advance(Duration::from_nanos(1));
    assert_refused(
        "`AllocationFull` comes before `AllocationExpired`",
        save(1, id, C1, Some(second)).await,
        ErrorKind::AllocationFull,
    );
    let third = bed
        .allocate(broadcast_id(1), 1.0)
        .await
        .expect("room for two")
        .id;
    bed.clock.advance(Duration::from_secs(301));
    for client in [C1, client_id(9)] {
        assert_refused(
            "`AllocationExpired` comes before what is wrong with the client",
            save(1, broadcast_id(1), client, Some(third)).await,
            ErrorKind::AllocationExpired,
        );
    }
    assert_nothing_saved(&bed).await;
    bed.store
        .disable_broadcasts(&[id, broadcast_id(1)])
        .await
        .unwrap();
    assert_same("only what is saved is counted", &bed.sent(id).await, &2);
    assert_same(
        "only what is saved is counted",
        &bed.sent(broadcast_id(1)).await,
        &0,
    );
}

async fn known_message_is_kept_and_the_rest_proceeds(bed: Bed) {
    bed.add_client(C1).await;
    let known = to_client(1, C1);
    bed.send(std::slice::from_ref(&known)).await;
    let id = broadcast_id(0);
    bed.store.create_broadcast(&broadcast(0), 8).await.unwrap();
    let allocation = bed.allocate(id, 0.5).await.expect("room for four").id;
    let other = with_result(&to_client(1, C2), failure(50, "other"));
    bed.store
        .save_broadcast_message(&other, id, C1, Some(allocation))
        .await
        .unwrap();
    assert_messages("a known message is kept", &bed.claim(C1).await, &[known]);
    let sent = bed.store.list_sent_broadcasts(C1).await.unwrap();
    assert_same("the client got the broadcast", &sent, &[id]);
    bed.store.disable_broadcasts(&[id]).await.unwrap();
    assert_same("the message is counted", &bed.sent(id).await, &1);
}

async fn saved_message_is_due_after_the_retry_time(bed: Bed) {
    bed.add_client(C1).await;
    bed.store.create_broadcast(&broadcast(0), 8).await.unwrap();
    let message = to_client(1, C1);
    bed.store
        .save_broadcast_message(&message, broadcast_id(0), C1, None)
        .await
        .unwrap();
    let pending = bed.pending(&[C1]).await;
    assert_messages(
        "a saved message is pending",
        &pending,
        std::slice::from_ref(&message),
    );
    assert_messages(
        "the caller sends it itself first",
        &bed.claim(C1).await,
        &[],
    );
    bed.clock
        .advance(Duration::from_secs(15 * 60) - Duration::from_micros(1));
    assert_messages("not due before the retry time", &bed.claim(C1).await, &[]);
    bed.clock.advance(Duration::from_micros(1));
    assert_messages("due at the retry time", &bed.claim(C1).await, &[message]);
}

async fn saving_without_allocation_counts_nothing(bed: Bed) {
    bed.add_client(C1).await;
    let id = broadcast_id(0);
    bed.store.create_broadcast(&broadcast(0), 8).await.unwrap();
    bed.store
        .save_broadcast_message(&to_client(1, C1), id, C1, None)
        .await
        .expect("allowed on a limited broadcast too");
    bed.store.disable_broadcasts(&[id]).await.unwrap();
    assert_same("nothing is counted", &bed.sent(id).await, &0);
}

async fn f_28_expired_broadcast_is_refused(bed: Bed) {
    for client in [C1, C2] {
        bed.add_client(client).await;
    }
    let id = broadcast_id(0);
    let expiring = Broadcast {
        expiration_time: Some(seconds(100_010)),
        ..broadcast(0)
    };
    bed.store.create_broadcast(&expiring, 8).await.unwrap();
    let allocation = bed.allocate(id, 0.5).await.expect("room for four").id;
    bed.clock.set(100_010);
    assert_same("expired at its expiration time", &active(&bed).await, &[]);
    for allocation in [None, Some(allocation)] {
        assert_refused(
            "`BroadcastDisabled` if the broadcast has expired",
            bed.store
                .save_broadcast_message(&to_client(1, C1), id, C1, allocation)
                .await,
            ErrorKind::BroadcastDisabled,
        );
    }
    assert!(
        bed.allocate(id, 1.0).await.is_none(),
        "nothing is left of an expired broadcast"
    );
    assert_nothing_saved(&bed).await;
    let cleanup = bed.store.cleanup_allocation(id, Some(allocation), 0).await;
    cleanup.expect("an expired broadcast can be cleaned up");
}

async fn sent_broadcasts_are_listed_by_id(bed: Bed) {
    bed.add_client(C1).await;
    let found = bed.store.list_sent_broadcasts(C1).await.unwrap();
    assert_same("none yet", &found, &[]);
    for number in [3, 1, 2] {
        bed.store
            .create_broadcast(&broadcast(number), BROADCAST_UNLIMITED)
            .await
            .unwrap();
        bed.store
            .save_broadcast_message(&to_client(number, C1), broadcast_id(number), C1, None)
            .await
            .unwrap();
    }
    bed.store
        .disable_broadcasts(&[broadcast_id(1)])
        .await
        .unwrap();
    let found = bed.store.list_sent_broadcasts(C1).await.unwrap();
    assert_same(
        "all broadcasts ever saved, disabled ones too, ascending",
        &found,
        &[1, 2, 3].map(broadcast_id),
    );
    let found = bed.store.list_sent_broadcasts(C2).await.unwrap();
    assert_same("none for an unknown client", &found, &[]);
}

async fn progress_counts_the_messages_of_a_broadcast_by_their_result(bed: Bed) {
    let clients: Vec<_> = (1..=6).map(client_id).collect();
    bed.add_clients(clients.iter().copied()).await;
    let (id, other) = (broadcast_id(0), broadcast_id(1));
    bed.store.create_broadcast(&broadcast(0), 8).await.unwrap();
    bed.store.create_broadcast(&broadcast(1), 8).await.unwrap();
    let none = BroadcastProgress::default();
    let found = bed.store.broadcast_progress(id).await.unwrap();
    assert_same("nothing is sent of a new broadcast", &found, &none);

    let allocation = bed.allocate(id, 1.0).await.expect("all").id;
    for (number, &client) in (1..).zip(&clients) {
        let message = to_client(number, client);
        let allocation = (number % 2 == 0).then_some(allocation);
        let saved = bed
            .store
            .save_broadcast_message(&message, id, client, allocation);
        saved.await.unwrap();
    }
    bed.store
        .save_broadcast_message(&to_client(9, clients[0]), other, clients[0], None)
        .await
        .unwrap();
    let results = [
        (message_id(1), success(50)),
        (message_id(2), success(50)),
        (message_id(3), failure(50, "broken")),
        (message_id(4), failure(50, "")),
    ];
    bed.store.set_message_results(&results).await.unwrap();
    bed.store
        .delete_pending_messages(&[clients[4]])
        .await
        .unwrap();
    let expected = BroadcastProgress {
        sent: 6,
        acknowledged: 2,
        failed: 3,
        pending: 1,
    };
    let found = bed.store.broadcast_progress(id).await.unwrap();
    assert_same(
        "messages count by their result, with and without allocation",
        &found,
        &expected,
    );
    let pending = BroadcastProgress {
        sent: 1,
        pending: 1,
        ..none
    };
    let found = bed.store.broadcast_progress(other).await.unwrap();
    assert_same("each broadcast has its own progress", &found, &pending);

    bed.store.disable_broadcasts(&[id]).await.unwrap();
    let found = bed.store.broadcast_progress(id).await.unwrap();
    assert_same("a disabled broadcast keeps its progress", &found, &expected);
    assert_refused(
        "`NotFound` for an unknown broadcast",
        bed.store.broadcast_progress(broadcast_id(7)).await,
        ErrorKind::NotFound,
    );
}

async fn f_26_save_racing_with_disable_is_counted_or_refused(bed: Bed) {
    const CLIENTS: u64 = 40;
    bed.add_clients((0..CLIENTS).map(client_id)).await;
    for round in 0..5 {
        let id = broadcast_id(round);
        bed.store
            .create_broadcast(&broadcast(round), 1_000)
            .await
            .unwrap();
        let allocation = bed.allocate(id, 1.0).await.expect("all").id;
        let saves: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let store = Arc::clone(&bed.store);
                let client = client_id(number);
                let message = to_client(CLIENTS * round + number, client);
                tokio::spawn(async move {
                    store
                        .save_broadcast_message(&message, id, client, Some(allocation))
                        .await
                })
            })
            .collect();
        bed.store.disable_broadcasts(&[id]).await.unwrap();
        let mut saved = 0;
        for (number, save) in (0..).zip(saves) {
            let sent = bed.store.list_sent_broadcasts(client_id(number));
            match save.await.unwrap() {
                Ok(()) => {
                    saved += 1;
                    assert!(
                        sent.await.unwrap().contains(&id),
                        "a saved message is noted"
                    );
                }
                refused => assert_refused(
                    "a save after the disabling is refused",
                    refused,
                    ErrorKind::BroadcastDisabled,
                ),
            }
        }
        assert_same("what was saved stays counted", &bed.sent(id).await, &saved);
    }
}

/// Checks that message 1 is not stored and the first client got no broadcast.
async fn assert_nothing_saved(bed: &Bed) {
    let result = bed.store.get_messages(&[message_id(1)], true).await;
    assert_refused("nothing is stored then", result, ErrorKind::NotFound);
    let sent = bed.store.list_sent_broadcasts(C1).await.unwrap();
    assert_same("nothing is noted then", &sent, &[]);
}
