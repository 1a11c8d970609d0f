//! Clients: lists, streams, contacts, blacklist and resource usage (P-158 to P-162).

use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::{
    BlacklistClientRequest, FetchClientResourceUsageRecordsRequest, ListClientContactsRequest,
    ListClientsRequest, StreamClientContactsRequest, StreamClientIdsRequest,
};
use fleethold_store::clock::timestamp;
use fleethold_store::{ClientData, ClientId, ClientStore, Clock, ContactData};
use futures::TryStreamExt;
use tonic::Code;

use super::{Bed, CLIENT, OTHER, UNKNOWN, ids, label, refused};

#[tokio::test]
async fn p_158_clients_are_listed_with_labels_and_last_contact() {
    let mut bed = Bed::new().await;
    for (asked, expected) in [
        (vec![], vec![CLIENT, OTHER]),
        (ids(&[OTHER]), vec![OTHER]),
        (ids(&[UNKNOWN, CLIENT]), vec![CLIENT]),
        (vec![Bytes::new()], vec![]),
    ] {
        let request = ListClientsRequest {
            client_ids: asked.clone(),
        };
        let found = bed.admin.list_clients(request).await.unwrap();
        let found = found.into_inner().clients;
        let found_ids: Vec<_> = found
            .iter()
            .map(|client| client.client_id.clone())
            .collect();
        assert_eq!(found_ids, ids(&expected), "{asked:?}");
        for client in found {
            assert_eq!(client.labels, [label("linux")]);
            assert_eq!(client.last_contact_time, Some(timestamp(bed.clock.now())));
        }
    }
    let request = ListClientsRequest {
        client_ids: vec![Bytes::from_static(b"short")],
    };
    refused(bed.admin.list_clients(request).await, Code::InvalidArgument);
}

#[tokio::test]
async fn p_159_and_161_blacklisted_and_old_clients_are_left_out_of_the_stream_of_ids() {
    let mut bed = Bed::new().await;
    for unknown in [Bytes::new(), UNKNOWN.to_bytes(), OTHER.to_bytes()] {
        let request = BlacklistClientRequest { client_id: unknown };
        bed.admin.blacklist_client(request).await.unwrap();
    }
    let wrong = BlacklistClientRequest {
        client_id: Bytes::from_static(b"x"),
    };
    refused(
        bed.admin.blacklist_client(wrong).await,
        Code::InvalidArgument,
    );
    assert!(bed.store.get_client_data(OTHER).await.unwrap().blacklisted);

    let all = StreamClientIdsRequest {
        include_blacklisted: true,
        last_contact_after: None,
    };
    assert_eq!(bed.streamed_ids(all).await, ids(&[CLIENT, OTHER]));
    assert_eq!(
        bed.streamed_ids(StreamClientIdsRequest::default()).await,
        ids(&[CLIENT])
    );
    for (seconds, expected) in [(999, &[CLIENT, OTHER][..]), (1_000, &[])] {
        let later = StreamClientIdsRequest {
            last_contact_after: Some(Timestamp { seconds, nanos: 0 }),
            ..all
        };
        assert_eq!(bed.streamed_ids(later).await, ids(expected), "{seconds}");
    }
    let wrong = StreamClientIdsRequest {
        last_contact_after: Some(Timestamp {
            seconds: 1,
            nanos: -1,
        }),
        ..all
    };
    refused(
        bed.admin.stream_client_ids(wrong).await,
        Code::InvalidArgument,
    );
}

// More clients than are read ahead or fit into one page.
#[tokio::test]
async fn p_159_every_one_of_many_clients_is_streamed_once() {
    let mut bed = Bed::new().await;
    let mut expected = vec![CLIENT, OTHER];
    for number in 0..3_000_u64 {
        let client = ClientId::new((number << 8).to_be_bytes());
        bed.store
            .add_client(client, &ClientData::default())
            .await
            .unwrap();
        expected.push(client);
    }
    expected.sort();
    let found = bed.streamed_ids(StreamClientIdsRequest::default()).await;
    assert_eq!(found, ids(&expected));
}

#[tokio::test]
async fn p_160_streamed_contacts_equal_listed_contacts() {
    let mut bed = Bed::new().await;
    for nonce in 1..=200 {
        bed.clock.advance(Duration::from_millis(1));
        let contact = ContactData {
            client_id: CLIENT,
            nonce_sent: nonce,
            nonce_received: nonce - 1,
            addr: "192.0.2.1:5".to_owned(),
            client_clock: None,
            streaming_to: None,
            labels: Vec::new(),
        };
        bed.store.record_client_contact(&contact).await.unwrap();
    }
    for (client, expected) in [
        (CLIENT.to_bytes(), 200),
        (UNKNOWN.to_bytes(), 0),
        (Bytes::new(), 0),
    ] {
        let request = ListClientContactsRequest {
            client_id: client.clone(),
        };
        let listed = bed.admin.list_client_contacts(request).await.unwrap();
        let listed = listed.into_inner().contacts;
        assert_eq!(listed.len(), expected);
        assert!(listed.iter().all(|contact| contact.timestamp.is_some()));
        let request = StreamClientContactsRequest { client_id: client };
        let streamed = bed.admin.stream_client_contacts(request).await.unwrap();
        let streamed: Vec<_> = streamed.into_inner().try_collect().await.unwrap();
        let streamed: Vec<_> = streamed
            .into_iter()
            .filter_map(|answer| answer.contact)
            .collect();
        assert_eq!(streamed, listed);
    }
    let wrong = Bytes::from_static(b"x");
    let request = ListClientContactsRequest {
        client_id: wrong.clone(),
    };
    refused(
        bed.admin.list_client_contacts(request).await,
        Code::InvalidArgument,
    );
    let request = StreamClientContactsRequest { client_id: wrong };
    refused(
        bed.admin.stream_client_contacts(request).await,
        Code::InvalidArgument,
    );
}

#[tokio::test]
async fn p_162_usage_records_need_a_range_which_excludes_its_end() {
    let mut bed = Bed::new().await;
    let at = |seconds| Some(Timestamp { seconds, nanos: 0 });
    for second in [1_000, 1_001, 1_002] {
        bed.clock.set(second);
        let usage = ResourceUsageData {
            scope: second.to_string(),
            process_start_time: at(1),
            data_timestamp: at(2),
            ..ResourceUsageData::default()
        };
        bed.store
            .record_resource_usage_data(CLIENT, &usage)
            .await
            .unwrap();
    }
    let request = FetchClientResourceUsageRecordsRequest {
        client_id: CLIENT.to_bytes(),
        start_timestamp: at(1_000),
        end_timestamp: at(1_002),
    };
    let found = bed
        .admin
        .fetch_client_resource_usage_records(request.clone())
        .await;
    let found = found.unwrap().into_inner().records;
    let scopes: Vec<_> = found.iter().map(|record| record.scope.as_str()).collect();
    assert_eq!(scopes, ["1000", "1001"]);

    for (client, start, end) in [
        (CLIENT.to_bytes(), None, at(1)),
        (CLIENT.to_bytes(), at(1), None),
        (CLIENT.to_bytes(), at(2), at(1)),
        (Bytes::new(), at(2), at(1)),
        (CLIENT.to_bytes(), at(i64::MIN), at(1)),
        (Bytes::from_static(b"x"), at(1), at(2)),
    ] {
        let wrong = FetchClientResourceUsageRecordsRequest {
            client_id: client,
            start_timestamp: start,
            end_timestamp: end,
        };
        let answer = bed.admin.fetch_client_resource_usage_records(wrong).await;
        refused(answer, Code::InvalidArgument);
    }
    let nobody = FetchClientResourceUsageRecordsRequest {
        client_id: Bytes::new(),
        ..request
    };
    let found = bed.admin.fetch_client_resource_usage_records(nobody).await;
    assert!(found.unwrap().into_inner().records.is_empty());
}
