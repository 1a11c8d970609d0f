//! Two stores on one database, as two servers have them.

use std::sync::Arc;

use fleethold_store::{Clock, MessageId};
use futures::future::join_all;

use crate::checks::assert_same;
use crate::processor::{OVERDUE, recorder};
use crate::samples::{C1, broadcast, broadcast_id, ids_of, message_id, to_client, to_server};
use crate::{Bed, cases};

cases![
    f_01_two_stores_never_claim_the_same_message if shares,
    f_23_two_stores_share_the_limit_of_a_broadcast if shares,
    f_31_two_processors_share_a_backlog if shares,
];

async fn f_01_two_stores_never_claim_the_same_message(bed: Bed) {
    let stores = [Arc::clone(&bed.store), bed.second().await];
    let messages: Vec<_> = (0..50).map(|number| to_client(number, C1)).collect();
    bed.send(&messages).await;
    let claims = (0..8).map(|number| {
        let store = Arc::clone(&stores[number % 2]);
        tokio::spawn(async move { store.client_messages_for_processing(C1, 20, None).await })
    });
    let mut claimed = Vec::new();
    for claim in join_all(claims).await {
        claimed.extend(ids_of(&claim.unwrap().unwrap()));
    }
    claimed.extend(ids_of(&bed.claim(C1).await));
    claimed.sort();
    assert_same(
        "each due message goes to exactly one of many callers",
        &claimed,
        &ids_of(&messages),
    );
}

async fn f_23_two_stores_share_the_limit_of_a_broadcast(bed: Bed) {
    const LIMIT: u64 = 100;
    let id = broadcast_id(0);
    bed.store
        .create_broadcast(&broadcast(0), LIMIT)
        .await
        .unwrap();
    let stores = [Arc::clone(&bed.store), bed.second().await];
    let expiry = bed.clock.now() + std::time::Duration::from_secs(60);
    let calls = (0..20).map(|number| {
        let store = Arc::clone(&stores[number % 2]);
        tokio::spawn(async move { store.create_allocation(id, 0.2, expiry).await })
    });
    let mut allocated = 0;
    for call in join_all(calls).await {
        allocated += call
            .unwrap()
            .unwrap()
            .map_or(0, |allocation| allocation.limit);
    }
    while let Some(rest) = bed.allocate(id, 1.0).await {
        allocated += rest.limit;
    }
    assert_same("the limit is kept and fully usable", &allocated, &LIMIT);
}

async fn f_31_two_processors_share_a_backlog(bed: Bed) {
    const BACKLOG: u64 = 5_000;
    let stores = [Arc::clone(&bed.store), bed.second().await];
    let messages: Vec<_> = (0..BACKLOG).map(|number| to_server(number, C1)).collect();
    bed.send(&messages).await;
    bed.clock.advance(OVERDUE);
    let (processor, mut calls) = recorder();
    for store in &stores {
        store
            .register_message_processor(Arc::clone(&processor) as _)
            .await;
    }
    let mut delivered: Vec<MessageId> = Vec::new();
    while delivered.len() < messages.len() {
        delivered.extend(ids_of(&calls.next().await));
    }
    delivered.sort();
    let expected: Vec<_> = (0..BACKLOG).map(message_id).collect();
    assert_same("each is delivered once", &delivered, &expected);
    calls.none("each is delivered once").await;
}
