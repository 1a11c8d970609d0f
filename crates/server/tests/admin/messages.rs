//! Messages: insert, status, and what is pending (P-151 to P-157).

use bytes::Bytes;
use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::Message;
use fleethold_proto::fleetspeak::server::{
    DeletePendingMessagesRequest, GetMessageStatusRequest, GetMessageStatusResponse,
    GetPendingMessagesRequest,
};
use fleethold_store::clock::timestamp;
use fleethold_store::{Clock, REMOVED_BY_ADMIN};
use prost::Message as _;
use tonic::Code;

use super::{Bed, CLIENT, OTHER, UNKNOWN, address, id, ids, message, refused};

#[tokio::test]
async fn p_151_message_without_source_or_destination_service_is_refused() {
    let mut bed = Bed::new().await;
    let good = message(1, Some(CLIENT), "shell");
    for (wrong, field) in [
        (
            Message {
                source: None,
                ..good.clone()
            },
            "source",
        ),
        (
            Message {
                source: address(None, ""),
                ..good.clone()
            },
            "source",
        ),
        (
            Message {
                destination: None,
                ..good.clone()
            },
            "destination",
        ),
        (
            Message {
                destination: address(Some(CLIENT), ""),
                ..good.clone()
            },
            "destination",
        ),
    ] {
        let text = refused(bed.insert(wrong).await, Code::InvalidArgument);
        assert!(text.contains(field), "{text}");
    }
    for wrong_id in [&[1; 31][..], &[1; 33], &[1]] {
        let wrong = Message {
            message_id: Bytes::copy_from_slice(wrong_id),
            ..good.clone()
        };
        refused(bed.insert(wrong).await, Code::InvalidArgument);
    }
    let mut wrong = good.clone();
    wrong.destination.as_mut().unwrap().client_id = Bytes::from_static(&[1; 7]);
    refused(bed.insert(wrong).await, Code::InvalidArgument);
    assert_eq!(bed.count(&[CLIENT]).await, 0);
    bed.insert(good).await.unwrap();
    assert_eq!(bed.count(&[CLIENT]).await, 1);
}

#[tokio::test]
async fn inserted_message_is_kept_as_given_and_completed() {
    let mut bed = Bed::new().await;
    let given = Message {
        source: address(Some(OTHER), "operator"),
        source_message_id: Bytes::from_static(b"mine"),
        creation_time: Some(Timestamp {
            seconds: 5,
            nanos: 6,
        }),
        ..message(1, Some(CLIENT), "shell")
    };
    bed.insert(given.clone()).await.unwrap();
    let request = GetPendingMessagesRequest {
        client_ids: ids(&[CLIENT]),
        want_data: true,
        ..GetPendingMessagesRequest::default()
    };
    assert_eq!(bed.pending(request.clone()).await.unwrap(), [given]);

    bed.clock.set(2_000);
    let bare = Message {
        message_id: Bytes::new(),
        ..message(0, Some(OTHER), "shell")
    };
    bed.insert(bare).await.unwrap();
    let request = GetPendingMessagesRequest {
        client_ids: ids(&[OTHER]),
        ..request
    };
    let stored = bed.pending(request).await.unwrap().pop().unwrap();
    assert_eq!(stored.message_id.len(), 32);
    assert_eq!(stored.creation_time, Some(timestamp(bed.clock.now())));
}

// The limit is exact, after the missing fields are filled in.
#[tokio::test]
async fn p_151_message_to_a_client_has_at_most_2_mib_when_complete() {
    const LIMIT: usize = 2_097_152;
    let mut bed = Bed::new().await;
    let sized = |total: usize| {
        let mut message = message(0, Some(CLIENT), "shell");
        message.message_id = Bytes::new();
        let complete = |message: &Message| Message {
            message_id: id(1).to_bytes(),
            creation_time: Some(timestamp(bed.clock.now())),
            ..message.clone()
        };
        // The length of the lengths depends on the size, so the size is only nearly right first.
        let mut payload = total - 200;
        for _ in 0..2 {
            message.data.as_mut().unwrap().value = vec![7; payload].into();
            payload += total - complete(&message).encoded_len();
        }
        assert_eq!(complete(&message).encoded_len(), total);
        message
    };
    let (largest, too_large) = (sized(LIMIT), sized(LIMIT + 1));
    bed.insert(largest).await.unwrap();
    let text = refused(bed.insert(too_large).await, Code::ResourceExhausted);
    assert!(text.contains("exceeds the 2097152-byte limit"), "{text}");
    assert_eq!(bed.count(&[CLIENT]).await, 1);
}

#[tokio::test]
async fn p_152_message_inserted_twice_is_stored_once() {
    let mut bed = Bed::new().await;
    for _ in 0..2 {
        bed.insert(message(1, Some(CLIENT), "shell")).await.unwrap();
    }
    assert_eq!(bed.count(&[CLIENT]).await, 1);
}

#[tokio::test]
async fn p_153_message_to_an_unknown_client_is_refused_and_not_stored() {
    let mut bed = Bed::new().await;
    let text = refused(
        bed.insert(message(1, Some(UNKNOWN), "shell")).await,
        Code::NotFound,
    );
    assert!(text.contains(&UNKNOWN.to_string()), "{text}");
    assert_eq!(
        bed.message_status(id(1)).await,
        GetMessageStatusResponse::default()
    );
    assert_eq!(bed.count(&[UNKNOWN]).await, 0);
}

// The clock stands still, so the store's own retry is never due.
#[tokio::test]
async fn p_154_message_to_a_service_on_the_server_is_processed_at_once() {
    let mut bed = Bed::new().await;
    bed.insert(message(1, None, "sink")).await.unwrap();
    let status = bed.finished(id(1)).await;
    assert!(!status.result.unwrap().failed);
    assert_eq!(status.creation_time, Some(timestamp(bed.clock.now())));

    bed.insert(message(2, None, "nobody")).await.unwrap();
    let result = bed.finished(id(2)).await.result.unwrap();
    assert!(result.failed);
    assert!(
        result.failed_reason.contains("nobody"),
        "{}",
        result.failed_reason
    );
}

#[tokio::test]
async fn p_155_status_of_an_unknown_message_is_empty() {
    let mut bed = Bed::new().await;
    for unknown in [&[][..], &[9; 32]] {
        let status = bed.message_status(unknown).await;
        assert_eq!(status, GetMessageStatusResponse::default());
    }
    let wrong = GetMessageStatusRequest {
        message_id: Bytes::from_static(&[9; 31]),
    };
    refused(
        bed.admin.get_message_status(wrong).await,
        Code::InvalidArgument,
    );
}

#[tokio::test]
async fn p_156_pending_messages_come_by_id_and_in_pages() {
    let mut bed = Bed::new().await;
    for (number, client) in [(3, CLIENT), (1, OTHER), (2, CLIENT), (4, OTHER)] {
        bed.insert(message(number, Some(client), "shell"))
            .await
            .unwrap();
    }
    let all = GetPendingMessagesRequest {
        client_ids: ids(&[CLIENT, OTHER]),
        ..GetPendingMessagesRequest::default()
    };
    let numbers = |messages: &[Message]| {
        let numbers = messages.iter().map(|message| message.message_id[0]);
        numbers.collect::<Vec<_>>()
    };
    let found = bed.pending(all.clone()).await.unwrap();
    assert_eq!(numbers(&found), [1, 2, 3, 4]);
    assert!(found.iter().all(|message| message.data.is_none()));

    let page = GetPendingMessagesRequest {
        offset: 1,
        limit: 2,
        want_data: true,
        ..all.clone()
    };
    let found = bed.pending(page).await.unwrap();
    assert_eq!(numbers(&found), [2, 3]);
    assert!(found.iter().all(|message| message.data.is_some()));

    let one_client = GetPendingMessagesRequest {
        client_ids: ids(&[CLIENT]),
        ..all.clone()
    };
    assert_eq!(numbers(&bed.pending(one_client).await.unwrap()), [2, 3]);
    assert_eq!(bed.count(&[CLIENT, OTHER]).await, 4);
    assert_eq!(bed.count(&[UNKNOWN]).await, 0);
    assert_eq!(bed.count(&[]).await, 0);

    let offset_alone = GetPendingMessagesRequest {
        offset: 1,
        ..all.clone()
    };
    refused(bed.pending(offset_alone).await, Code::InvalidArgument);
    assert_eq!(bed.pending(all).await.unwrap().len(), 4);
}

#[tokio::test]
async fn p_155_and_157_status_of_deleted_pending_messages_says_they_failed() {
    let mut bed = Bed::new().await;
    bed.insert(message(1, Some(CLIENT), "shell")).await.unwrap();
    bed.insert(message(2, Some(OTHER), "shell")).await.unwrap();
    for nobody in [vec![], vec![Bytes::new()]] {
        let request = DeletePendingMessagesRequest { client_ids: nobody };
        bed.admin.delete_pending_messages(request).await.unwrap();
        assert_eq!(bed.count(&[CLIENT, OTHER]).await, 2);
    }
    let request = DeletePendingMessagesRequest {
        client_ids: ids(&[CLIENT]),
    };
    bed.admin.delete_pending_messages(request).await.unwrap();
    assert_eq!(bed.count(&[CLIENT]).await, 0);
    assert_eq!(bed.count(&[OTHER]).await, 1);
    let result = bed.message_status(id(1)).await.result.unwrap();
    assert!(result.failed);
    assert_eq!(result.failed_reason, REMOVED_BY_ADMIN);
    assert_eq!(result.processed_time, Some(timestamp(bed.clock.now())));
}
