//! What a store on disk must find again after it was closed and opened.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::fleetspeak::server::{
    Broadcast, Client, ClientContact, ClientResourceUsageRecord,
};
use fleethold_proto::fleetspeak::{Message, MessageResult};
use fleethold_store::{
    BroadcastId, BroadcastInfo, ClientData, ContactData, ErrorKind, StoredFile, clock,
};

use crate::checks::{assert_messages, assert_refused, assert_same};
use crate::samples::{
    C1, C2, broadcast, broadcast_id, contact, data, failure, ids_of, label, message_id, seconds,
    success, to_client, to_server, usage_report, with_result,
};
use crate::{Bed, cases};

cases![
    everything_is_found_again if reopens,
    due_times_and_claims_are_kept if reopens,
    allocations_are_kept if reopens,
    contacts_go_on_counting if reopens,
    every_acknowledged_call_before_close_is_kept if reopens,
    empty_store_opens_again if reopens,
];

/// All that can be seen of the store that [`populate`] makes.
#[derive(Debug, PartialEq)]
pub(crate) struct Seen {
    messages: Vec<Message>,
    pending: Vec<Message>,
    results: Vec<Option<MessageResult>>,
    clients: Vec<Client>,
    keys: Vec<ClientData>,
    contacts: Vec<ClientContact>,
    usage: Vec<ClientResourceUsageRecord>,
    active: Vec<BroadcastInfo>,
    sent: Vec<BroadcastId>,
    file: StoredFile,
}

async fn everything_is_found_again(mut bed: Bed) {
    populate(&bed).await;
    let before = see(&bed).await;
    for _ in 0..2 {
        bed.reopen().await;
        assert_same("a success is kept for ever", &see(&bed).await, &before);
    }
}

async fn due_times_and_claims_are_kept(mut bed: Bed) {
    bed.add_client(C1).await;
    let messages = [to_client(1, C1), to_client(2, C1)];
    let on_server = to_server(3, C1);
    bed.send(&messages).await;
    bed.send(std::slice::from_ref(&on_server)).await;
    let claimed = bed.store.client_messages_for_processing(C1, 1, None);
    assert_messages("the first", &claimed.await.unwrap(), &messages[..1]);
    bed.clock.advance(Duration::from_secs(60));
    assert_eq!(bed.claim_on_server().await.len(), 1);

    bed.reopen().await;
    assert_messages("a claim is kept", &bed.claim(C1).await, &messages[1..]);
    assert_messages("a claim is kept", &bed.claim_on_server().await, &[]);
    bed.clock.advance(Duration::from_secs(66));
    bed.reopen().await;
    let claimed = bed.claim_on_server().await;
    assert_messages(
        "the retry time is kept",
        &claimed,
        std::slice::from_ref(&on_server),
    );
    bed.reopen().await;
    // 60 s × 1.1² = 72.6 s: the number of claims is kept.
    bed.clock.advance(Duration::from_millis(72_599));
    assert_messages(
        "the number of claims is kept",
        &bed.claim_on_server().await,
        &[],
    );
    bed.clock.advance(Duration::from_millis(1));
    assert_messages(
        "the number of claims is kept",
        &bed.claim_on_server().await,
        &[on_server],
    );
    bed.clock.advance(Duration::from_secs(15 * 60));
    assert_messages("the retry time is kept", &bed.claim(C1).await, &messages);
}

async fn allocations_are_kept(mut bed: Bed) {
    bed.add_client(C1).await;
    bed.add_client(C2).await;
    let id = broadcast_id(0);
    bed.store.create_broadcast(&broadcast(0), 4).await.unwrap();
    let allocation = bed.allocate(id, 0.5).await.expect("two").id;
    bed.store
        .save_broadcast_message(&to_client(1, C1), id, C1, Some(allocation))
        .await
        .unwrap();
    bed.reopen().await;
    bed.store
        .save_broadcast_message(&to_client(2, C2), id, C2, Some(allocation))
        .await
        .expect("an allocation is kept");
    assert_refused(
        "its count is kept",
        bed.store
            .save_broadcast_message(&to_client(3, C1), id, C1, Some(allocation))
            .await,
        ErrorKind::AllocationFull,
    );
    bed.reopen().await;
    let rest = bed.allocate(id, 1.0).await.expect("the rest");
    assert_eq!(rest.limit, 2, "what is allocated is kept");
    bed.store.disable_broadcasts(&[id]).await.unwrap();
    bed.reopen().await;
    assert_same("what was sent is counted", &bed.sent(id).await, &2);
}

async fn contacts_go_on_counting(mut bed: Bed) {
    bed.add_client(C1).await;
    let first = bed.store.record_client_contact(&contact(C1)).await.unwrap();
    bed.reopen().await;
    let second = bed.store.record_client_contact(&contact(C1)).await.unwrap();
    assert_ne!(first, second, "every contact has its own id");
    bed.store
        .store_messages(&[to_server(1, C1)], Some(&first))
        .await
        .unwrap();
    bed.store
        .link_messages_to_contact(&first, &[message_id(1)])
        .await
        .expect("a contact is kept");
}

async fn every_acknowledged_call_before_close_is_kept(mut bed: Bed) {
    let calls: Vec<_> = (0..200)
        .map(|number| {
            let store = Arc::clone(&bed.store);
            tokio::spawn(async move {
                let message = to_client(number, C1);
                let stored = store
                    .store_messages(std::slice::from_ref(&message), None)
                    .await;
                stored.map(|()| message)
            })
        })
        .collect();
    tokio::task::yield_now().await;
    bed.reopen().await;
    let mut acknowledged = Vec::new();
    for call in calls {
        match call.await.unwrap() {
            Ok(message) => acknowledged.push(message),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Closed, "{error:?}"),
        }
    }
    assert_messages(
        "a success is kept for ever",
        &bed.pending(&[C1]).await,
        &acknowledged,
    );
}

async fn empty_store_opens_again(mut bed: Bed) {
    bed.reopen().await;
    assert_same(
        "nothing was stored",
        &bed.store.list_clients(&[]).await.unwrap(),
        &[],
    );
    bed.add_client(C1).await;
}

pub(crate) async fn populate(bed: &Bed) {
    bed.clock.advance(Duration::from_nanos(123_456_789));
    let first = ClientData {
        key: Bytes::from_static(b"\x00key\xff"),
        labels: vec![label("client", "a"), label("client", "b")],
        blacklisted: false,
    };
    bed.store.add_client(C1, &first).await.unwrap();
    bed.add_client(C2).await;
    bed.store.blacklist_client(C2).await.unwrap();
    let full = ContactData {
        nonce_sent: u64::MAX,
        streaming_to: Some("server:1".into()),
        ..contact(C1)
    };
    let messages = [
        to_client(1, C1),
        to_server(2, C1),
        with_result(&to_client(3, C1), success(50)),
        with_result(&to_server(4, C1), failure(51, "broken")),
    ];
    bed.store.store_contact(&full, &messages).await.unwrap();
    bed.store
        .record_resource_usage_data(C1, &usage_report())
        .await
        .unwrap();
    let expiring = Broadcast {
        expiration_time: Some(seconds(300_000)),
        required_labels: vec![label("client", "a")],
        group_name: "group".into(),
        data: Some(data("")),
        ..broadcast(1)
    };
    bed.store.create_broadcast(&broadcast(0), 8).await.unwrap();
    bed.store.create_broadcast(&expiring, 9).await.unwrap();
    bed.store
        .save_broadcast_message(&to_client(5, C1), broadcast_id(0), C1, None)
        .await
        .unwrap();
    bed.store
        .cleanup_allocation(broadcast_id(0), None, 3)
        .await
        .unwrap();
    let mut content = &b"content"[..];
    bed.store
        .store_file("service", "name", &mut content)
        .await
        .unwrap();
}

pub(crate) async fn see(bed: &Bed) -> Seen {
    let store = &bed.store;
    let messages = bed.read(&[1, 2, 3, 4, 5].map(message_id)).await;
    assert_eq!(messages.len(), 5, "all messages are there");
    let mut results = Vec::new();
    for id in ids_of(&messages) {
        results.push(store.get_message_result(id).await.unwrap());
    }
    let mut keys = Vec::new();
    for client in [C1, C2] {
        keys.push(store.get_client_data(client).await.unwrap());
    }
    let far = clock::timestamp_from_epoch_nanos(i64::MAX);
    let start = seconds(0);
    let usage = store.fetch_resource_usage_records(C1, &start, &far);
    Seen {
        pending: bed.pending(&[C1, C2]).await,
        results,
        clients: store.list_clients(&[]).await.unwrap(),
        keys,
        contacts: store.list_client_contacts(C1).await.unwrap(),
        usage: usage.await.unwrap(),
        active: store.list_active_broadcasts().await.unwrap(),
        sent: store.list_sent_broadcasts(C1).await.unwrap(),
        file: store.read_file("service", "name").await.unwrap(),
        messages,
    }
}
