//! Broadcasts (P-164).

use bytes::Bytes;
use fleethold_proto::fleetspeak::server::{
    Broadcast, CreateBroadcastRequest, DisableBroadcastsRequest,
};
use tonic::Code;

use super::{Bed, address, broadcast, refused};

#[tokio::test]
async fn p_164_broadcast_without_content_source_or_good_id_is_refused() {
    let mut bed = Bed::new().await;
    let wrong_id = Broadcast {
        broadcast_id: Bytes::from_static(b"short"),
        ..broadcast(1)
    };
    let no_source = Broadcast {
        source: None,
        ..broadcast(1)
    };
    for wrong in [None, Some(wrong_id), Some(no_source)] {
        let request = CreateBroadcastRequest {
            broadcast: wrong,
            limit: 1,
        };
        refused(
            bed.admin.create_broadcast(request).await,
            Code::InvalidArgument,
        );
    }
    let request = CreateBroadcastRequest {
        broadcast: Some(broadcast(1)),
        limit: 1,
    };
    bed.admin.create_broadcast(request.clone()).await.unwrap();
    refused(
        bed.admin.create_broadcast(request).await,
        Code::AlreadyExists,
    );
    assert_eq!(bed.active("").await, [broadcast(1)]);
}

#[tokio::test]
async fn broadcasts_are_active_until_they_are_disabled_or_replaced() {
    let mut bed = Bed::new().await;
    let grouped = |number| Broadcast {
        group_name: "nightly".to_owned(),
        ..broadcast(number)
    };
    let nameless = Broadcast {
        broadcast_id: Bytes::new(),
        source: address(None, "other"),
        ..broadcast(0)
    };
    for broadcast in [grouped(1), grouped(2), broadcast(3), nameless] {
        let request = CreateBroadcastRequest {
            broadcast: Some(broadcast),
            limit: 10,
        };
        bed.admin.create_broadcast(request).await.unwrap();
    }
    assert_eq!(bed.active("operator").await, [grouped(2), broadcast(3)]);
    assert_eq!(bed.active("other").await[0].broadcast_id.len(), 8);
    assert_eq!(bed.active("nobody").await, []);

    let mut disable = DisableBroadcastsRequest {
        broadcast_ids: vec![Bytes::from_static(b"short")],
    };
    refused(
        bed.admin.disable_broadcasts(disable.clone()).await,
        Code::InvalidArgument,
    );
    disable.broadcast_ids = Vec::new();
    bed.admin.disable_broadcasts(disable.clone()).await.unwrap();
    disable.broadcast_ids = vec![
        Bytes::new(),
        Bytes::from_static(&[3; 8]),
        Bytes::from_static(&[99; 8]),
    ];
    bed.admin.disable_broadcasts(disable).await.unwrap();
    assert_eq!(bed.active("operator").await, [grouped(2)]);
}
