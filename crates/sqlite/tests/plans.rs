//! Explains every statement that the store runs.

mod bed;

use std::collections::BTreeSet;

use bed::{Bed, CLIENT, contact, processed, success, to_client};
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_proto::fleetspeak::{Address, Label};
use fleethold_store::{
    AllocationId, BroadcastId, BroadcastStore, ClientStore, Clock, FileStore, MessageId,
    MessageStore, ServiceLimits, Store,
};
use futures::TryStreamExt;
use rusqlite::Connection;

/// Calls every method with something to do.
async fn use_everything(bed: &Bed) {
    let store = &bed.store;
    let id = |number| MessageId::new(bed::id(number));
    let label = Label {
        service_name: "client".into(),
        label: "linux".into(),
    };
    let time = Timestamp {
        seconds: 1,
        nanos: 0,
    };

    let messages = [processed(1), to_client(2, CLIENT, "a")];
    let contact = store.store_contact(&contact(), &messages).await.unwrap();
    for _ in 0..2 {
        let messages = [processed(1), to_client(3, CLIENT, "b")];
        store
            .store_messages(&messages, Some(&contact))
            .await
            .unwrap();
    }
    let mut to_server = processed(4);
    to_server.result = None;
    store.store_messages(&[to_server], None).await.unwrap();
    store
        .link_messages_to_contact(&contact, &[id(2)])
        .await
        .unwrap();
    store.get_messages(&[id(1), id(99)], true).await.unwrap();
    store.get_message_result(id(1)).await.unwrap();
    store
        .get_pending_messages(&[CLIENT], 0, 5, true)
        .await
        .unwrap();
    store.get_pending_message_count(&[CLIENT]).await.unwrap();
    let limits = ServiceLimits::from([("a".into(), 1)]);
    store
        .client_messages_for_processing(CLIENT, 10, Some(&limits))
        .await
        .unwrap();
    store.release_messages(CLIENT, &[id(2)]).await.unwrap();
    bed.clock.set(200_000);
    assert_eq!(
        store.stats().await.unwrap().overdue_server_messages,
        Some(1)
    );
    store.server_messages_for_processing(10).await.unwrap();
    store
        .set_message_result(None, id(4), &success())
        .await
        .unwrap();
    store.delete_pending_messages(&[CLIENT]).await.unwrap();

    store.add_client_label(CLIENT, &label).await.unwrap();
    store.remove_client_label(CLIENT, &label).await.unwrap();
    store.list_clients(&[]).await.unwrap();
    store.list_clients(&[CLIENT]).await.unwrap();
    store.get_client_data(CLIENT).await.unwrap();
    let _: Vec<_> = store
        .stream_client_ids(true, None)
        .try_collect()
        .await
        .unwrap();
    store.list_client_contacts(CLIENT).await.unwrap();
    let usage = ResourceUsageData {
        process_start_time: Some(time),
        data_timestamp: Some(time),
        ..ResourceUsageData::default()
    };
    store
        .record_resource_usage_data(CLIENT, &usage)
        .await
        .unwrap();
    store
        .fetch_resource_usage_records(CLIENT, &time, &time)
        .await
        .unwrap();
    store.blacklist_client(CLIENT).await.unwrap();

    let broadcast = |number: u8| Broadcast {
        broadcast_id: vec![number; 8].into(),
        source: Some(Address::default()),
        required_labels: vec![label.clone()],
        group_name: "group".into(),
        ..Broadcast::default()
    };
    let id = BroadcastId::new([2; 8]);
    store.create_broadcast(&broadcast(1), 10).await.unwrap();
    store.create_broadcast(&broadcast(2), 10).await.unwrap();
    store.list_active_broadcasts().await.unwrap();
    let allocation = store
        .create_allocation(id, 0.5, bed.clock.client_retry_time())
        .await
        .unwrap()
        .unwrap();
    store
        .save_broadcast_message(&to_client(5, CLIENT, "a"), id, CLIENT, Some(allocation.id))
        .await
        .unwrap();
    store.list_sent_broadcasts(CLIENT).await.unwrap();
    store.broadcast_progress(id).await.unwrap();
    store
        .cleanup_allocation(id, Some(AllocationId::new([0; 8])), 1)
        .await
        .unwrap();
    store.set_broadcast_limit(id, 20).await.unwrap();
    store.disable_broadcasts(&[id]).await.unwrap();

    store
        .store_file("service", "name", &mut &b"content"[..])
        .await
        .unwrap();
    store.stat_file("service", "name").await.unwrap();
    store.read_file("service", "name").await.unwrap();
    store.delete_file("service", "name").await.unwrap();
}

#[tokio::test]
async fn statements_keep_their_plans() {
    let bed = Bed::new().await;
    use_everything(&bed).await;
    for number in 10..20 {
        let messages = [processed(number), to_client(100 + number, CLIENT, "a")];
        bed.store
            .store_contact(&contact(), &messages)
            .await
            .unwrap();
        bed.store
            .client_messages_for_processing(CLIENT, number, None)
            .await
            .unwrap();
    }
    assert_eq!(bed.log.prepared_again(), 0);
}

#[tokio::test]
async fn no_statement_but_the_list_of_all_clients_scans_a_table() {
    let bed = Bed::new().await;
    use_everything(&bed).await;
    let statements: BTreeSet<_> = bed.log.statements().into_iter().collect();
    assert!(statements.len() > 40, "{}", statements.len());

    let connection = Connection::open(bed.path()).unwrap();
    rusqlite::vtab::array::load_module(&connection).unwrap();
    let mut scans = BTreeSet::new();
    for sql in &statements {
        let mut explain = connection
            .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
            .unwrap();
        let steps: Vec<String> = explain
            .raw_query()
            .mapped(|row| row.get("detail"))
            .collect::<Result<_, _>>()
            .unwrap();
        // Arrays are parameters, "services" is what a recursive step has found,
        // "overdue" a part of an index that ends at a limit, and the index of broadcasts holds only what has room.
        let harmless = [
            "SCAN wanted",
            "SCAN rarray",
            "SCAN services",
            "SCAN overdue",
            "SCAN CONSTANT ROW",
            "SCAN broadcasts USING INDEX broadcasts_with_room",
        ];
        let name = sql.lines().next().unwrap();
        for step in steps {
            if step.starts_with("SCAN") && !harmless.iter().any(|start| step.starts_with(start)) {
                scans.insert(format!("{name}: {step}"));
            }
        }
    }
    let expected = BTreeSet::from([String::from("-- list_clients: SCAN clients")]);
    assert_eq!(scans, expected);
}
