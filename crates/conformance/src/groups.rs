//! Broadcasts that take each other's place (specification section 5.5).

use std::sync::Arc;
use std::time::Duration;

use fleethold_proto::fleetspeak::Label;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_store::{BroadcastId, ErrorKind};
use futures::future::join_all;

use crate::broadcasts::active;
use crate::checks::{assert_refused, assert_same};
use crate::samples::{C1, address, broadcast, broadcast_id, label, seconds, to_client};
use crate::{Bed, cases};

cases![
    b_100_to_106_new_broadcast_of_a_group_replaces_the_active_one,
    broadcasts_without_group_live_side_by_side,
    absent_destination_is_that_of_the_source,
    labels_are_compared_as_sets,
    replaced_broadcast_is_disabled_in_full,
    broadcast_with_limit_zero_replaces_too,
    f_30_inactive_broadcasts_of_the_group_are_left_alone,
    f_30_concurrent_creations_leave_one_active,
];

async fn b_100_to_106_new_broadcast_of_a_group_replaces_the_active_one(bed: Bed) {
    create(&bed, grouped(0)).await;
    assert_active(&bed, "a new broadcast is active", &[0]).await;
    create(&bed, grouped(1)).await;
    assert_active(
        &bed,
        "equal group, source, destination and labels replace",
        &[1],
    )
    .await;

    let other_source = Broadcast {
        source: Some(address(None, "other source")),
        ..grouped(2)
    };
    let other_labels = Broadcast {
        required_labels: vec![label("client", "other")],
        ..grouped(3)
    };
    let other_destination = Broadcast {
        destination: Some(address(None, "other destination")),
        ..grouped(4)
    };
    let other_group = Broadcast {
        group_name: "Group".into(),
        ..grouped(5)
    };
    let mut expected = vec![1];
    for (number, other) in (2..).zip([other_source, other_labels, other_destination, other_group]) {
        create(&bed, other).await;
        expected.push(number);
        assert_active(
            &bed,
            "one that differs in any of them leaves both active",
            &expected,
        )
        .await;
    }
    let found = bed.store.list_active_broadcasts().await.unwrap();
    assert_same("the group comes back", &found[0].broadcast, &grouped(1));
}

async fn broadcasts_without_group_live_side_by_side(bed: Bed) {
    for number in 0..2 {
        create(&bed, broadcast(number)).await;
    }
    assert_active(&bed, "an empty group name is no group", &[0, 1]).await;
}

async fn absent_destination_is_that_of_the_source(bed: Bed) {
    let to = |number, service: Option<&str>| Broadcast {
        destination: service.map(|service| address(Some(C1), service)),
        ..grouped(number)
    };
    let source = grouped(0).source.expect("a source").service_name;
    create(&bed, to(0, None)).await;
    create(&bed, to(1, Some(&source))).await;
    assert_active(
        &bed,
        "an absent destination means the source's service",
        &[1],
    )
    .await;
    create(&bed, to(2, None)).await;
    assert_active(
        &bed,
        "an absent destination means the source's service",
        &[2],
    )
    .await;
    create(&bed, to(3, Some(""))).await;
    assert_active(&bed, "an empty destination is another one", &[2, 3]).await;
}

async fn labels_are_compared_as_sets(bed: Bed) {
    let [a, b] = ["a", "b"].map(|text| label("client", text));
    let with_labels = |number, required_labels: Vec<Label>| Broadcast {
        required_labels,
        ..grouped(number)
    };
    create(&bed, with_labels(0, vec![a.clone(), b.clone()])).await;
    create(&bed, with_labels(1, vec![b.clone(), a.clone()])).await;
    assert_active(&bed, "the order of labels is ignored", &[1]).await;
    create(&bed, with_labels(2, vec![a])).await;
    assert_active(&bed, "fewer labels are others", &[1, 2]).await;
}

async fn replaced_broadcast_is_disabled_in_full(bed: Bed) {
    bed.add_client(C1).await;
    let id = broadcast_id(0);
    create(&bed, grouped(0)).await;
    let allocation = bed.allocate(id, 0.5).await.expect("room").id;
    bed.store
        .save_broadcast_message(&to_client(1, C1), id, C1, Some(allocation))
        .await
        .unwrap();
    create(&bed, grouped(1)).await;
    assert_refused(
        "the allocations of a replaced broadcast are gone",
        bed.store
            .save_broadcast_message(&to_client(2, C1), id, C1, Some(allocation))
            .await,
        ErrorKind::BroadcastDisabled,
    );
    assert_same("what it has sent stays counted", &bed.sent(id).await, &1);
}

async fn broadcast_with_limit_zero_replaces_too(bed: Bed) {
    create(&bed, grouped(0)).await;
    bed.store.create_broadcast(&grouped(1), 0).await.unwrap();
    assert_active(&bed, "a new broadcast with limit 0 still replaces", &[]).await;
}

async fn f_30_inactive_broadcasts_of_the_group_are_left_alone(bed: Bed) {
    let expiring = Broadcast {
        expiration_time: Some(seconds(100_010)),
        ..grouped(0)
    };
    create(&bed, expiring).await;
    bed.clock.advance(Duration::from_secs(10));
    create(&bed, grouped(1)).await;
    // Before its expiration it shows whether it was disabled.
    bed.clock.set(100_000);
    assert_active(&bed, "an inactive broadcast is left alone", &[0, 1]).await;
}

async fn f_30_concurrent_creations_leave_one_active(bed: Bed) {
    for round in 0..10 {
        let creations = (0..8).map(|number| {
            let store = Arc::clone(&bed.store);
            let broadcast = grouped(8 * round + number);
            tokio::spawn(async move { store.create_broadcast(&broadcast, 10).await })
        });
        for created in join_all(creations).await {
            created.unwrap().unwrap();
        }
        let found = active(&bed).await;
        assert_eq!(
            found.len(),
            1,
            "exactly one of a group is active: {found:?}"
        );
    }
}

async fn create(bed: &Bed, broadcast: Broadcast) {
    let created = bed.store.create_broadcast(&broadcast, 10).await;
    created.expect("a new broadcast");
}

async fn assert_active(bed: &Bed, contract: &str, numbers: &[u64]) {
    let found: Vec<BroadcastId> = active(bed).await.into_iter().map(|(id, ..)| id).collect();
    let expected: Vec<_> = numbers.iter().copied().map(broadcast_id).collect();
    assert_same(contract, &found, &expected);
}

fn grouped(number: u64) -> Broadcast {
    Broadcast {
        group_name: "group".into(),
        destination: Some(address(None, "destination service")),
        required_labels: vec![label("client", "label")],
        ..broadcast(number)
    }
}
