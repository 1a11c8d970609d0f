//! Broadcasts: creating, listing, limiting and disabling (specification
//! section 3.4).

use bytes::Bytes;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_store::clock::timestamp;
use fleethold_store::{
    BROADCAST_DISABLED, BROADCAST_UNLIMITED, BroadcastId, BroadcastInfo, Clock, ErrorKind,
    MAX_PAYLOAD_BYTES,
};

use crate::checks::{assert_refused, assert_same};
use crate::samples::{C1, C2, address, broadcast, broadcast_id, data, label, seconds, to_client};
use crate::{Bed, cases};

cases![
    b_079_to_084_active_broadcasts_have_room_and_time,
    malformed_broadcasts_are_refused,
    f_30_existing_broadcast_is_not_overwritten,
    limit_above_the_largest_means_unlimited,
    client_ids_and_repeated_labels_are_dropped,
    absent_parts_stay_absent,
    f_29_limit_is_set_up_and_down,
    f_29_limit_of_zero_disables,
    disabling_many_passes_over_unknown_ones,
];

async fn b_079_to_084_active_broadcasts_have_room_and_time(bed: Bed) {
    bed.clock.set(10_000);
    let broadcasts = five_broadcasts(&bed).await;
    let found = active(&bed).await;
    assert_same(
        "active: room under the limit and not expired, ordered by id",
        &found,
        &[
            (broadcast_id(0), 0, 8),
            (broadcast_id(1), 0, 8),
            (broadcast_id(4), 0, BROADCAST_UNLIMITED),
        ],
    );
    bed.clock.set(200_001);
    let found = bed.store.list_active_broadcasts().await.unwrap();
    let expected = [(0, 8), (4, BROADCAST_UNLIMITED)].map(|(number, limit)| BroadcastInfo {
        broadcast: broadcasts[number].clone(),
        sent: 0,
        limit,
    });
    assert_same(
        "a broadcast comes back as it was created",
        &found,
        &expected,
    );
}

async fn malformed_broadcasts_are_refused(bed: Bed) {
    bed.store.create_broadcast(&grouped(9), 8).await.unwrap();
    let good = grouped(0);
    let longest = "ä".repeat(128);
    let longer = "ä".repeat(129);
    let invalid = [
        Broadcast {
            broadcast_id: Bytes::new(),
            ..good.clone()
        },
        Broadcast {
            broadcast_id: Bytes::from_static(&[1; 7]),
            ..good.clone()
        },
        Broadcast {
            broadcast_id: Bytes::from_static(&[1; 9]),
            ..good.clone()
        },
        Broadcast {
            source: None,
            ..good.clone()
        },
        Broadcast {
            source: Some(address(None, &longer)),
            ..good.clone()
        },
        Broadcast {
            destination: Some(address(None, &longer)),
            ..good.clone()
        },
        Broadcast {
            message_type: longer.clone(),
            ..good.clone()
        },
        Broadcast {
            group_name: longer.clone(),
            ..good.clone()
        },
        Broadcast {
            required_labels: vec![label("client", "short"), label("client", &longer)],
            ..good.clone()
        },
        Broadcast {
            required_labels: vec![label(&longer, "short")],
            ..good.clone()
        },
    ];
    for broadcast in &invalid {
        assert_refused(
            "`InvalidArgument` for a missing or wrong id, a missing source or a text over 128 characters",
            bed.store.create_broadcast(broadcast, 8).await,
            ErrorKind::InvalidArgument,
        );
    }
    let oversized = Broadcast {
        data: Some(data(vec![7; MAX_PAYLOAD_BYTES + 1])),
        ..good
    };
    assert_refused(
        "`TooLarge` for data over the limit",
        bed.store.create_broadcast(&oversized, 8).await,
        ErrorKind::TooLarge,
    );
    assert_same(
        "nothing is created, nor disabled in its group",
        &active(&bed).await,
        &[(broadcast_id(9), 0, 8)],
    );

    let longest = Broadcast {
        source: Some(address(None, &longest)),
        destination: Some(address(None, &longest)),
        message_type: longest.clone(),
        group_name: longest.clone(),
        required_labels: vec![label(&longest, &longest)],
        ..broadcast(1)
    };
    bed.store.create_broadcast(&longest, 8).await.unwrap();
    let found = bed.store.list_active_broadcasts().await.unwrap();
    assert_same(
        "texts of 128 characters are kept",
        &found[0].broadcast,
        &longest,
    );
}

async fn f_30_existing_broadcast_is_not_overwritten(bed: Bed) {
    bed.store.create_broadcast(&grouped(0), 8).await.unwrap();
    bed.store.create_broadcast(&broadcast(1), 9).await.unwrap();
    let other = Broadcast {
        message_type: "other".into(),
        ..grouped(1)
    };
    assert_refused(
        "`AlreadyExists` for a known id",
        bed.store.create_broadcast(&other, 10).await,
        ErrorKind::AlreadyExists,
    );
    let found = bed.store.list_active_broadcasts().await.unwrap();
    let expected = [(grouped(0), 8), (broadcast(1), 9)].map(|(broadcast, limit)| BroadcastInfo {
        broadcast,
        sent: 0,
        limit,
    });
    assert_same(
        "the old one is unchanged, its group not disabled",
        &found,
        &expected,
    );
}

async fn limit_above_the_largest_means_unlimited(bed: Bed) {
    let limits = [
        u64::MAX,
        BROADCAST_UNLIMITED + 1,
        BROADCAST_UNLIMITED,
        BROADCAST_UNLIMITED - 1,
    ];
    for (number, limit) in (0..).zip(limits) {
        bed.store
            .create_broadcast(&broadcast(number), limit)
            .await
            .unwrap();
    }
    let found = active(&bed).await;
    let found: Vec<_> = found.into_iter().map(|(_, _, limit)| limit).collect();
    assert_same(
        "a limit above BROADCAST_UNLIMITED means that",
        &found,
        &limits.map(|limit| limit.min(BROADCAST_UNLIMITED)),
    );
    let allocation = bed
        .allocate(broadcast_id(0), 0.1)
        .await
        .expect("an allocation");
    assert_eq!(allocation.limit, BROADCAST_UNLIMITED);
}

async fn client_ids_and_repeated_labels_are_dropped(bed: Bed) {
    let [first, second] = [label("a", "z"), label("b", "a")];
    let created = Broadcast {
        source: Some(address(Some(C1), "source")),
        destination: Some(address(Some(C2), "destination")),
        required_labels: vec![second.clone(), first.clone(), second.clone()],
        ..broadcast(0)
    };
    bed.store.create_broadcast(&created, 8).await.unwrap();
    let found = bed.store.list_active_broadcasts().await.unwrap();
    let expected = Broadcast {
        source: Some(address(None, "source")),
        destination: Some(address(None, "destination")),
        required_labels: vec![first, second],
        ..broadcast(0)
    };
    assert_same(
        "client ids are dropped; labels come once each by (service name, label)",
        &found[0].broadcast,
        &expected,
    );
}

async fn absent_parts_stay_absent(bed: Bed) {
    let empty = Broadcast {
        broadcast_id: broadcast_id(0).to_bytes(),
        source: Some(address(None, "")),
        ..Broadcast::default()
    };
    let explicit = Broadcast {
        destination: Some(address(None, "")),
        data: Some(data("")),
        ..broadcast(1)
    };
    for created in [&empty, &explicit] {
        bed.store.create_broadcast(created, 8).await.unwrap();
    }
    let found = bed.store.list_active_broadcasts().await.unwrap();
    let found: Vec<_> = found.into_iter().map(|info| info.broadcast).collect();
    assert_same(
        "an absent part differs from an empty one",
        &found,
        &[empty, explicit],
    );
}

async fn f_29_limit_is_set_up_and_down(bed: Bed) {
    bed.add_client(C1).await;
    bed.add_client(C2).await;
    let id = broadcast_id(0);
    assert_refused(
        "`NotFound` for an unknown broadcast",
        bed.store.set_broadcast_limit(id, 8).await,
        ErrorKind::NotFound,
    );
    bed.store.create_broadcast(&broadcast(0), 4).await.unwrap();
    let allocation = bed.allocate(id, 1.0).await.expect("all four");
    bed.store.set_broadcast_limit(id, 6).await.unwrap();
    let more = bed.allocate(id, 1.0).await.expect("two more");
    assert_eq!((allocation.limit, more.limit), (4, 2));
    bed.store.set_broadcast_limit(id, 1).await.unwrap();
    assert!(
        bed.allocate(id, 1.0).await.is_none(),
        "nothing is left under a lower limit"
    );
    for (number, client, allocation) in [(1, C1, allocation.id), (2, C2, more.id)] {
        bed.store
            .save_broadcast_message(&to_client(number, client), id, client, Some(allocation))
            .await
            .expect("existing allocations keep their limits");
        bed.store
            .cleanup_allocation(id, Some(allocation), 1)
            .await
            .unwrap();
    }
    assert_same(
        "a broadcast over its limit is not active",
        &active(&bed).await,
        &[],
    );
    for (limit, expected) in [(3, 3), (u64::MAX, BROADCAST_UNLIMITED)] {
        bed.store.set_broadcast_limit(id, limit).await.unwrap();
        assert_same("active again", &active(&bed).await, &[(id, 2, expected)]);
    }
}

async fn f_29_limit_of_zero_disables(bed: Bed) {
    bed.add_client(C1).await;
    let id = broadcast_id(0);
    bed.store.create_broadcast(&broadcast(0), 4).await.unwrap();
    let allocation = bed.allocate(id, 1.0).await.expect("all four").id;
    bed.store
        .save_broadcast_message(&to_client(1, C1), id, C1, Some(allocation))
        .await
        .unwrap();
    bed.store
        .set_broadcast_limit(id, BROADCAST_DISABLED)
        .await
        .unwrap();
    assert_refused(
        "a limit of 0 removes the allocations",
        bed.store
            .save_broadcast_message(&to_client(2, C1), id, C1, Some(allocation))
            .await,
        ErrorKind::BroadcastDisabled,
    );
    bed.store.set_broadcast_limit(id, 4).await.unwrap();
    assert_same(
        "what they have sent stays counted",
        &active(&bed).await,
        &[(id, 1, 4)],
    );
    let rest = bed.allocate(id, 1.0).await.expect("the rest");
    assert_eq!(rest.limit, 3, "what they have not sent is free again");
}

async fn disabling_many_passes_over_unknown_ones(bed: Bed) {
    five_broadcasts(&bed).await;
    bed.store.disable_broadcasts(&[]).await.unwrap();
    let ids = [0, 9, 4, 0, 2].map(broadcast_id);
    bed.store.disable_broadcasts(&ids).await.unwrap();
    assert_same(
        "unknown and repeated ids are no error",
        &active(&bed).await,
        &[(broadcast_id(1), 0, 8)],
    );
    let many: Vec<_> = (0..33_000).map(broadcast_id).collect();
    bed.store.disable_broadcasts(&many).await.unwrap();
    assert_same("any number of ids may be given", &active(&bed).await, &[]);
    bed.store.disable_broadcasts(&many[..5]).await.unwrap();
}

/// Creates the broadcasts of B-079 and returns them.
pub(crate) async fn five_broadcasts(bed: &Bed) -> [Broadcast; 5] {
    let now = timestamp(bed.clock.now());
    let mut broadcasts = [0, 1, 2, 3, 4].map(broadcast);
    broadcasts[0].destination = Some(address(None, "destination service"));
    broadcasts[1].expiration_time = Some(seconds(200_000));
    broadcasts[3].expiration_time = Some(now);
    let limits = [8, 8, BROADCAST_DISABLED, 100, BROADCAST_UNLIMITED];
    for (broadcast, limit) in broadcasts.iter().zip(limits) {
        bed.store.create_broadcast(broadcast, limit).await.unwrap();
    }
    broadcasts
}

/// Lists the active broadcasts as (id, sent, limit).
pub(crate) async fn active(bed: &Bed) -> Vec<(BroadcastId, u64, u64)> {
    let found = bed.store.list_active_broadcasts().await;
    found
        .expect("a list")
        .into_iter()
        .map(|info| {
            let id = BroadcastId::try_from(&info.broadcast.broadcast_id[..]).expect("8 bytes");
            (id, info.sent, info.limit)
        })
        .collect()
}

/// Returns a broadcast in a group.
fn grouped(number: u64) -> Broadcast {
    Broadcast {
        group_name: "group".into(),
        ..broadcast(number)
    }
}
