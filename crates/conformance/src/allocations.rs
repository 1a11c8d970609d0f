//! Allocations: the shares of a broadcast's limit (specification section 5).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fleethold_store::{
    ALLOCATION_GRACE, AllocationInfo, BROADCAST_UNLIMITED, BroadcastId, ClientId, Clock, ErrorKind,
    Store, compute_broadcast_allocation,
};
use futures::future::join_all;

use crate::broadcasts::{active, five_broadcasts};
use crate::checks::{assert_refused, assert_same};
use crate::samples::{C1, at, broadcast, broadcast_id, client_id, to_client};
use crate::{Bed, cases};

const LIFETIME: Duration = Duration::from_secs(5 * 60);

cases![
    b_085_to_095_allocations_share_the_limit,
    fraction_decides_the_size,
    wrong_fraction_or_expiry_is_refused,
    allocations_of_unknown_broadcasts_are_not_found,
    allocation_that_is_gone_counts_nothing,
    final_count_of_the_owner_wins,
    f_23_concurrent_allocations_share_the_limit,
    f_23_concurrent_cleanups_are_counted_exactly,
    f_24_many_servers_send_exactly_the_limit,
    f_25_abandoned_allocation_is_reclaimed_after_a_grace,
];

impl Bed {
    /// Allocates a share that lives for five minutes.
    pub(crate) async fn allocate(&self, id: BroadcastId, fraction: f32) -> Option<AllocationInfo> {
        let expiry = self.clock.now() + LIFETIME;
        let allocation = self.store.create_allocation(id, fraction, expiry).await;
        let allocation = allocation.expect("a known broadcast");
        if let Some(allocation) = &allocation {
            assert_same(
                "an allocation expires when asked for",
                &allocation.expiry,
                &expiry,
            );
        }
        allocation
    }

    /// Returns how many messages of a broadcast are counted; lifts its limit to see it.
    pub(crate) async fn sent(&self, id: BroadcastId) -> u64 {
        let lifted = self
            .store
            .set_broadcast_limit(id, BROADCAST_UNLIMITED)
            .await;
        lifted.expect("a known broadcast");
        active(self)
            .await
            .into_iter()
            .find(|(found, ..)| *found == id)
            // Unlimited and inactive: it has sent all there is.
            .map_or(BROADCAST_UNLIMITED, |(_, sent, _)| sent)
    }
}

async fn b_085_to_095_allocations_share_the_limit(bed: Bed) {
    bed.clock.set(10_000);
    bed.add_client(C1).await;
    five_broadcasts(&bed).await;
    bed.clock.set(200_001);
    let [limited, unlimited] = [0, 4].map(broadcast_id);
    let mut allocations = Vec::new();
    for (fraction, limit) in [(0.5, 4), (0.5, 2), (0.1, 1), (2.0, 1)] {
        let allocation = bed.allocate(limited, fraction).await.expect("room");
        assert_same("a fraction of what is left", &allocation.limit, &limit);
        allocations.push((limited, allocation.id));
    }
    assert!(
        bed.allocate(limited, 2.0).await.is_none(),
        "nothing is left"
    );
    let allocation = bed.allocate(unlimited, 0.1).await.expect("no limit");
    assert_same("no limit", &allocation.limit, &BROADCAST_UNLIMITED);
    allocations.push((unlimited, allocation.id));

    for (number, (id, allocation)) in [(1, allocations[0]), (2, allocations[4])] {
        bed.store
            .save_broadcast_message(&to_client(number, C1), id, C1, Some(allocation))
            .await
            .unwrap();
    }
    for (number, (id, allocation)) in allocations.into_iter().enumerate() {
        let final_sent = u64::from(number == 0 || number == 4);
        bed.store
            .cleanup_allocation(id, Some(allocation), final_sent)
            .await
            .unwrap();
    }
    assert_same(
        "cleanups count what was sent",
        &active(&bed).await,
        &[(limited, 1, 8), (unlimited, 1, BROADCAST_UNLIMITED)],
    );
    let sent = bed.store.list_sent_broadcasts(C1).await.unwrap();
    assert_same("both were saved, by id", &sent, &[limited, unlimited]);
    let again = bed.allocate(limited, 0.5).await.expect("room again");
    assert_same("a fraction of what is left", &again.limit, &3);
}

async fn fraction_decides_the_size(bed: Bed) {
    for (number, (fraction, size)) in (0..).zip([
        (0.0, 1),
        (1e-30, 1),
        (0.29, 29),
        (1.0, 100),
        (7.5, 100),
        (f32::INFINITY, 100),
    ]) {
        bed.store
            .create_broadcast(&broadcast(number), 100)
            .await
            .unwrap();
        let allocation = bed.allocate(broadcast_id(number), fraction).await;
        let contract = format!("{fraction} of what is left, at least one message");
        assert_same(
            &contract,
            &allocation.map(|allocation| allocation.limit),
            &Some(size),
        );
    }
}

async fn wrong_fraction_or_expiry_is_refused(bed: Bed) {
    let id = broadcast_id(0);
    bed.store.create_broadcast(&broadcast(0), 8).await.unwrap();
    let soon = bed.clock.now() + LIFETIME;
    for fraction in [-0.1, f32::NAN, f32::NEG_INFINITY] {
        assert_refused(
            "`InvalidArgument` for a fraction that is negative or no number",
            bed.store.create_allocation(id, fraction, soon).await,
            ErrorKind::InvalidArgument,
        );
    }
    let year_10000 = at(253_402_300_800);
    assert_refused(
        "`InvalidArgument` for an expiry after the year 9999",
        bed.store.create_allocation(id, 0.5, year_10000).await,
        ErrorKind::InvalidArgument,
    );
    let all = bed.allocate(id, 1.0).await.expect("nothing was allocated");
    assert_eq!(all.limit, 8, "nothing is allocated then");
}

async fn allocations_of_unknown_broadcasts_are_not_found(bed: Bed) {
    let id = broadcast_id(0);
    assert_refused(
        "`NotFound` for an unknown broadcast",
        bed.store.create_allocation(id, 0.5, bed.clock.now()).await,
        ErrorKind::NotFound,
    );
    bed.store.create_broadcast(&broadcast(1), 8).await.unwrap();
    let allocation = bed.allocate(broadcast_id(1), 0.5).await.expect("room").id;
    for allocation in [None, Some(allocation)] {
        assert_refused(
            "`NotFound` for an unknown broadcast",
            bed.store.cleanup_allocation(id, allocation, 1).await,
            ErrorKind::NotFound,
        );
    }
    bed.store
        .disable_broadcasts(&[broadcast_id(1)])
        .await
        .unwrap();
    assert!(
        bed.allocate(broadcast_id(1), 1.0).await.is_none(),
        "nothing is left of a disabled one"
    );
}

async fn allocation_that_is_gone_counts_nothing(bed: Bed) {
    let [id, other] = [0, 1].map(broadcast_id);
    for number in [0, 1] {
        bed.store
            .create_broadcast(&broadcast(number), 8)
            .await
            .unwrap();
    }
    let allocation = bed.allocate(id, 0.5).await.expect("room").id;
    let kept = bed.allocate(other, 0.5).await.expect("room").id;
    for (broadcast, allocation) in [(id, allocation), (id, allocation), (id, kept)] {
        let cleanup = bed.store.cleanup_allocation(broadcast, Some(allocation), 3);
        cleanup
            .await
            .expect("an allocation that is gone is no error");
    }
    assert_same(
        "each is counted once, in its own broadcast",
        &active(&bed).await,
        &[(id, 3, 8), (other, 0, 8)],
    );
    bed.store
        .cleanup_allocation(other, Some(kept), 1)
        .await
        .unwrap();
    assert_same(
        "each is counted once, in its own broadcast",
        &active(&bed).await,
        &[(id, 3, 8), (other, 1, 8)],
    );
    for (id, left) in [(id, 5), (other, 7)] {
        let rest = bed.allocate(id, 1.0).await.expect("the rest");
        assert_same(
            "the rest of an ended allocation is free again",
            &rest.limit,
            &left,
        );
    }
}

async fn final_count_of_the_owner_wins(bed: Bed) {
    bed.add_client(C1).await;
    let id = broadcast_id(0);
    bed.store.create_broadcast(&broadcast(0), 8).await.unwrap();
    let allocation = bed.allocate(id, 0.5).await.expect("room").id;
    bed.store
        .save_broadcast_message(&to_client(1, C1), id, C1, Some(allocation))
        .await
        .unwrap();
    bed.store
        .cleanup_allocation(id, Some(allocation), 2)
        .await
        .unwrap();
    assert_same(
        "`final_sent` is counted",
        &active(&bed).await,
        &[(id, 2, 8)],
    );
}

async fn f_23_concurrent_allocations_share_the_limit(bed: Bed) {
    const CALLS: usize = 20;
    let id = broadcast_id(0);
    bed.store
        .create_broadcast(&broadcast(0), 100)
        .await
        .unwrap();
    let calls = (0..CALLS).map(|_| {
        let store = Arc::clone(&bed.store);
        let expiry = bed.clock.now() + LIFETIME;
        tokio::spawn(async move { store.create_allocation(id, 0.2, expiry).await })
    });
    let mut sizes: Vec<u64> = join_all(calls)
        .await
        .into_iter()
        .filter_map(|call| call.unwrap().unwrap())
        .map(|allocation| allocation.limit)
        .collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));

    let mut allocated = 0;
    let expected: Vec<u64> = (0..CALLS)
        .map(|_| {
            let (size, sum) = compute_broadcast_allocation(100, allocated, 0, 0.2);
            allocated = sum;
            size
        })
        .filter(|size| *size > 0)
        .collect();
    assert_same(
        "calls at the same time are as calls one by one",
        &sizes,
        &expected,
    );
}

async fn f_23_concurrent_cleanups_are_counted_exactly(bed: Bed) {
    const CALLS: usize = 400;
    let [limited, unlimited] = [0, 1].map(broadcast_id);
    bed.store
        .create_broadcast(&broadcast(0), 400)
        .await
        .unwrap();
    bed.store
        .create_broadcast(&broadcast(1), BROADCAST_UNLIMITED)
        .await
        .unwrap();
    let mut allocations = Vec::new();
    for _ in 0..50 {
        allocations.push(bed.allocate(limited, 0.0).await.expect("one message").id);
    }
    let calls = (0..CALLS).map(|number| {
        let store = Arc::clone(&bed.store);
        // Every allocation is cleaned up twice, by two servers.
        let ended = allocations.get(number / 2).copied();
        tokio::spawn(async move {
            if let Some(allocation) = ended {
                store
                    .cleanup_allocation(limited, Some(allocation), 1)
                    .await?;
            }
            store.cleanup_allocation(unlimited, None, 1).await
        })
    });
    for call in join_all(calls).await {
        call.unwrap().unwrap();
    }
    assert_same(
        "no count is lost and none counted twice",
        &active(&bed).await,
        &[(limited, 50, 400), (unlimited, 400, BROADCAST_UNLIMITED)],
    );
}

async fn f_24_many_servers_send_exactly_the_limit(bed: Bed) {
    const LIMIT: u64 = 10_000;
    const CLIENTS: u64 = 10_100;
    let id = broadcast_id(0);
    bed.add_clients((0..CLIENTS).map(client_id)).await;
    bed.store
        .create_broadcast(&broadcast(0), LIMIT)
        .await
        .unwrap();
    let waiting: VecDeque<_> = (0..CLIENTS).map(client_id).collect();
    let waiting = Arc::new(Mutex::new(waiting));
    let servers = (0..10).map(|_| {
        let expiry = bed.clock.now() + LIFETIME;
        tokio::spawn(serve(
            Arc::clone(&bed.store),
            id,
            expiry,
            Arc::clone(&waiting),
        ))
    });
    let mut sent = 0;
    for server in join_all(servers).await {
        sent += server.unwrap();
    }
    assert_same("the servers send exactly the limit together", &sent, &LIMIT);
    assert_same(
        "a broadcast that has sent its limit is not active",
        &active(&bed).await,
        &[],
    );
    let clients: Vec<_> = (0..CLIENTS).map(client_id).collect();
    let saved = bed.store.get_pending_message_count(&clients).await.unwrap();
    assert_same("as many messages are stored", &saved, &LIMIT);
    assert_same("and counted", &bed.sent(id).await, &LIMIT);
}

/// Sends as a server does, until nothing is left; returns how much it sent.
async fn serve(
    store: Arc<dyn Store>,
    id: BroadcastId,
    expiry: SystemTime,
    waiting: Arc<Mutex<VecDeque<ClientId>>>,
) -> u64 {
    let mut total = 0;
    let mut held: Option<(AllocationInfo, u64)> = None;
    loop {
        // The new allocation is made before the old one is cleaned up.
        let new = store.create_allocation(id, 0.2, expiry).await.unwrap();
        if let Some((old, sent)) = held.take() {
            store
                .cleanup_allocation(id, Some(old.id), sent)
                .await
                .unwrap();
            total += sent;
        }
        let Some(allocation) = new else {
            return total;
        };
        let mut sent = 0;
        loop {
            let client = waiting.lock().unwrap().pop_front();
            let client = client.expect("more clients than messages");
            let number = u64::from_be_bytes(*client.as_bytes());
            let saved = store
                .save_broadcast_message(&to_client(number, client), id, client, Some(allocation.id))
                .await;
            match saved {
                Ok(()) => sent += 1,
                full => {
                    let contract = "an allocation is refused when it is full only";
                    assert_refused(contract, full, ErrorKind::AllocationFull);
                    waiting.lock().unwrap().push_front(client);
                    break;
                }
            }
        }
        assert_same(
            "an allocation lets its limit pass",
            &sent,
            &allocation.limit,
        );
        held = Some((allocation, sent));
    }
}

async fn f_25_abandoned_allocation_is_reclaimed_after_a_grace(bed: Bed) {
    bed.add_client(C1).await;
    let id = broadcast_id(0);
    bed.store.create_broadcast(&broadcast(0), 8).await.unwrap();
    let abandoned = bed.allocate(id, 1.0).await.expect("all").id;
    bed.store
        .save_broadcast_message(&to_client(1, C1), id, C1, Some(abandoned))
        .await
        .unwrap();
    bed.clock.advance(LIFETIME + ALLOCATION_GRACE);
    assert!(
        bed.allocate(id, 1.0).await.is_none(),
        "its owner may still clean up"
    );
    bed.clock.advance(Duration::from_micros(1));
    let rest = bed.allocate(id, 1.0).await.expect("the rest");
    assert_same("what it has not sent is free again", &rest.limit, &7);
    assert_same(
        "what it has sent is counted",
        &active(&bed).await,
        &[(id, 1, 8)],
    );
    let late = bed.store.cleanup_allocation(id, Some(abandoned), 1).await;
    late.expect("a late cleanup is no error");
    assert_same("and counts nothing", &active(&bed).await, &[(id, 1, 8)]);
}
