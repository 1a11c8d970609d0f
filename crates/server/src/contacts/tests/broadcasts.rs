//! Broadcasts to the clients of one server.

use super::*;

#[tokio::test]
async fn p_130_and_134_broadcast_reaches_every_client_once_also_on_an_open_contact() {
    let bed = bed();
    let contact = bed.contact(1, Vec::new()).await;
    assert!(contact.take_messages().await.unwrap().messages.is_empty());
    bed.broadcast(1, BROADCAST_UNLIMITED, None).await;
    let delivery = contact.take_messages().await.unwrap();
    let sent = &delivery.messages[0];
    assert_eq!(sent.message_type, "broadcast");
    assert_eq!(
        sent.destination,
        Some(address(Some(contact.client()), "greeter")),
        "P-133"
    );
    for again in [contact, bed.contact(1, Vec::new()).await] {
        assert!(again.take_messages().await.unwrap().messages.is_empty());
    }
    bed.contacts.engine.broadcasts.close().await;
    assert_eq!(
        bed.contacts
            .engine
            .store
            .list_active_broadcasts()
            .await
            .unwrap()[0]
            .sent,
        1
    );
}

#[tokio::test]
async fn p_131_limited_broadcast_reaches_exactly_its_limit() {
    let bed = bed();
    bed.broadcast(1, 7, None).await;
    let deliveries = join_all((1..=20).map(|name| {
        let bed = &bed;
        async move {
            bed.contact(name, Vec::new())
                .await
                .take_messages()
                .await
                .unwrap()
                .messages
                .len()
        }
    }));
    assert_eq!(deliveries.await.iter().sum::<usize>(), 7);
    bed.contacts.engine.broadcasts.refresh().await.unwrap();
    assert!(
        bed.contacts
            .engine
            .store
            .list_active_broadcasts()
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn p_132_and_138_broadcast_needs_all_labels_and_notices_new_ones() {
    let bed = bed();
    bed.broadcast(1, BROADCAST_UNLIMITED, Some("vip")).await;
    let contact = bed.contact(1, Vec::new()).await;
    assert!(contact.take_messages().await.unwrap().messages.is_empty());
    let info = ClientInfoData {
        labels: vec![client_label("vip")],
        ..ClientInfoData::default()
    };
    contact
        .accept_record(record(vec![to_system(b"i", "ClientInfo", &info)]))
        .await
        .unwrap();
    assert_eq!(contact.take_messages().await.unwrap().messages.len(), 1);
}

#[tokio::test]
async fn p_135_disabled_and_expired_broadcasts_are_not_sent() {
    let bed = bed();
    bed.broadcast(1, BROADCAST_UNLIMITED, None).await;
    bed.contacts
        .engine
        .store
        .disable_broadcasts(&[BroadcastId::new([1; 8])])
        .await
        .unwrap();
    assert!(
        bed.contact(1, Vec::new())
            .await
            .take_messages()
            .await
            .unwrap()
            .messages
            .is_empty()
    );

    let expiring = Broadcast {
        broadcast_id: BroadcastId::new([2; 8]).to_bytes(),
        source: Some(address(None, "greeter")),
        expiration_time: Some(Timestamp {
            seconds: i64::try_from(NOW).unwrap() + 10,
            nanos: 0,
        }),
        ..Broadcast::default()
    };
    bed.contacts
        .engine
        .store
        .create_broadcast(&expiring, 5)
        .await
        .unwrap();
    bed.contacts.engine.broadcasts.refresh().await.unwrap();
    bed.clock.set(NOW + 10);
    assert!(
        bed.contact(2, Vec::new())
            .await
            .take_messages()
            .await
            .unwrap()
            .messages
            .is_empty()
    );
}

#[tokio::test]
async fn p_095_broadcasts_need_no_tokens() {
    let bed = bed();
    bed.contact(1, Vec::new()).await;
    bed.broadcast(1, BROADCAST_UNLIMITED, None).await;
    let contact = bed
        .begin(peer(1), tokens(&[("other", 0)]), ContactKind::Stream)
        .await
        .ok()
        .unwrap();
    let delivery = contact.take_messages().await.unwrap();
    assert_eq!(delivery.messages[0].message_type, "broadcast");
}

#[tokio::test]
async fn p_137_broadcast_replaces_older_ones_of_its_group() {
    let bed = bed();
    for number in 1..=3 {
        let broadcast = Broadcast {
            broadcast_id: BroadcastId::new([number; 8]).to_bytes(),
            source: Some(address(None, "greeter")),
            message_type: format!("broadcast {number}"),
            group_name: if number < 3 { "group" } else { "other" }.into(),
            ..Broadcast::default()
        };
        let store = &bed.contacts.engine.store;
        store
            .create_broadcast(&broadcast, BROADCAST_UNLIMITED)
            .await
            .unwrap();
        bed.contacts.engine.broadcasts.refresh().await.unwrap();
    }
    let contact = bed.contact(1, Vec::new()).await;
    let messages = contact.take_messages().await.unwrap().messages;
    let mut kinds: Vec<_> = messages
        .iter()
        .map(|message| &message.message_type)
        .collect();
    kinds.sort();
    assert_eq!(kinds, ["broadcast 2", "broadcast 3"]);
}
