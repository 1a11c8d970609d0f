//! Messages for the service `system`, and what blacklisting does.

use super::*;

#[tokio::test]
async fn p_110_client_info_replaces_exactly_the_agents_own_labels() {
    let bed = bed();
    let contact = bed.contact(1, Vec::new()).await;
    let operator = Label {
        service_name: "ops".into(),
        label: "vip".into(),
    };
    bed.store
        .add_client_label(contact.client(), &operator)
        .await
        .unwrap();
    let info = ClientInfoData {
        labels: vec![
            client_label("amd64"),
            client_label("amd64"),
            Label {
                service_name: "ops".into(),
                label: "forged".into(),
            },
        ],
        ..ClientInfoData::default()
    };
    let handle = bed.streams.register(contact.client());
    contact
        .accept_record(record(vec![to_system(b"i", "ClientInfo", &info)]))
        .await
        .unwrap();
    handle.woken().await;
    let data = bed.store.get_client_data(contact.client()).await.unwrap();
    assert_eq!(data.labels, [client_label("amd64"), operator]);
}

#[tokio::test]
async fn p_111_and_113_usage_is_recorded_and_odd_system_messages_fail_alone() {
    let bed = bed();
    let time = Some(Timestamp {
        seconds: 50,
        nanos: 0,
    });
    let usage = ResourceUsageData {
        scope: "agent".into(),
        process_start_time: time,
        data_timestamp: time,
        ..ResourceUsageData::default()
    };
    let without_data = Message {
        data: None,
        ..to_system(b"2", "MessageAck", &usage)
    };
    let contact = bed
        .contact(
            1,
            vec![
                to_system(b"1", "ResourceUsage", &usage),
                without_data,
                to_system(b"3", "Unheard", &usage),
                to_system(b"4", "MessageAck", &usage),
            ],
        )
        .await;
    for (id, failed) in [(b"1", false), (b"2", true), (b"3", true), (b"4", true)] {
        assert_eq!(
            bed.stored(contact.client(), id)
                .await
                .result
                .unwrap()
                .failed,
            failed,
            "{id:?}"
        );
    }
    let start = Timestamp {
        seconds: 0,
        nanos: 0,
    };
    let end = Timestamp {
        seconds: 2_000_000,
        nanos: 0,
    };
    let records = bed
        .store
        .fetch_resource_usage_records(contact.client(), &start, &end)
        .await
        .unwrap();
    assert_eq!(records[0].scope, "agent");
}

#[tokio::test]
async fn p_120_blacklisted_client_gets_one_rekey_request_and_keeps_its_messages() {
    let bed = bed();
    let contact = bed.contact(1, Vec::new()).await;
    let client = contact.client();
    bed.send(client, "a", 1).await;
    bed.store.blacklist_client(client).await.unwrap();
    bed.contacts.engine.cache.forget(client);
    for _ in 0..2 {
        let again = bed.contact(1, vec![message(b"1", "sink")]).await;
        let delivery = again.take_messages().await.unwrap();
        assert_eq!(delivery.messages.len(), 1);
        assert_eq!(delivery.messages[0].message_type, REKEY_REQUEST);
        assert!(delivery.wind_down);
        assert!(again.take_messages().await.unwrap().messages.is_empty());
    }
    let pending = bed
        .store
        .get_pending_message_count(&[client])
        .await
        .unwrap();
    assert_eq!(
        pending, 2,
        "the waiting message and one rekey request, not two"
    );
}

#[tokio::test]
async fn p_103_rekey_request_is_acknowledged_under_the_new_id() {
    let bed = bed();
    let old = bed.contact(1, Vec::new()).await;
    bed.store.blacklist_client(old.client()).await.unwrap();
    bed.contacts.engine.cache.forget(old.client());
    let request = bed
        .contact(1, Vec::new())
        .await
        .take_messages()
        .await
        .unwrap()
        .messages
        .remove(0);
    let id = MessageId::try_from(&request.message_id[..]).unwrap();
    bed.contact(2, vec![ack(&[id])]).await;
    assert!(
        !bed.store
            .get_message_result(id)
            .await
            .unwrap()
            .unwrap()
            .failed
    );
}
