//! Many callers at once: their work is committed together and stays their own.

mod bed;

use std::collections::HashSet;
use std::sync::Arc;

use bed::{Bed, CLIENT, contact, processed, to_client};
use fleethold_store::{ClientStore, ErrorKind, MessageId, MessageStore, Store};
use futures::future::join_all;
use futures::{FutureExt, StreamExt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_at_the_same_time_share_commits() {
    const CALLERS: u64 = 16;
    const CALLS: u64 = 50;
    let bed = Bed::new().await;
    join_all((0..CALLERS).map(|caller| {
        let store = bed.store.clone();
        tokio::spawn(async move {
            for call in 0..CALLS {
                let message = processed(caller * CALLS + call);
                store.store_messages(&[message], None).await.unwrap();
            }
        })
    }))
    .await
    .into_iter()
    .for_each(|ended| ended.unwrap());

    let commits = bed.log.commits();
    assert!(commits <= CALLERS * CALLS / 3, "{commits}");
    for number in 0..CALLERS * CALLS {
        let id = MessageId::new(bed::id(number));
        let result = bed.store.get_message_result(id).await.unwrap();
        assert!(result.is_some(), "{number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_fail_leave_their_neighbours_alone() {
    let bed = Bed::new().await;
    let calls = (0..200).map(|number| {
        let store = bed.store.clone();
        async move {
            let mut contact = contact();
            if number % 3 == 0 {
                contact.client_id = fleethold_store::ClientId::new([9; 8]);
            }
            store.store_contact(&contact, &[processed(number)]).await
        }
    });
    for (number, result) in (0..).zip(join_all(calls).await) {
        let id = MessageId::new(bed::id(number));
        let stored = bed.store.get_message_result(id).await.unwrap();
        match result {
            Ok(_) => assert!(number % 3 != 0 && stored.is_some()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound);
                assert!(number % 3 == 0 && stored.is_none());
            }
        }
    }
    let contacts = bed.store.list_client_contacts(CLIENT).await.unwrap();
    assert_eq!(contacts.len(), 133);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_claimed_by_exactly_one_caller() {
    let bed = Bed::new().await;
    let messages: Vec<_> = (0..500)
        .map(|number| to_client(number, CLIENT, ["a", "b", "c"][number as usize % 3]))
        .collect();
    bed.store.store_messages(&messages, None).await.unwrap();
    let claims = (0..100).map(|_| bed.store.client_messages_for_processing(CLIENT, 7, None));
    let claimed: Vec<_> = join_all(claims)
        .await
        .into_iter()
        .flat_map(|claimed| claimed.unwrap())
        .map(|message| message.message_id)
        .collect();
    assert_eq!(claimed.len(), 500);
    assert_eq!(claimed.iter().collect::<HashSet<_>>().len(), 500);
}

#[tokio::test]
async fn a_call_that_is_dropped_is_done_or_not_done() {
    let bed = Bed::new().await;
    for number in 0..50 {
        let messages = [processed(2 * number), processed(2 * number + 1)];
        let call = bed.store.store_messages(&messages, None);
        // Polled once, the work is handed over but nobody waits for it.
        assert!(call.now_or_never().is_none());
    }
    // Jobs are done in order, so those that were handed over are done now.
    bed.store
        .store_messages(&[processed(1_000)], None)
        .await
        .unwrap();
    for number in 0..50 {
        let mut stored = [false; 2];
        for (at, stored) in stored.iter_mut().enumerate() {
            let id = MessageId::new(bed::id(2 * number + at as u64));
            *stored = bed.store.get_message_result(id).await.unwrap().is_some();
        }
        assert_eq!(stored[0], stored[1], "{number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_finishes_what_was_begun() {
    let bed = Bed::new().await;
    let calls: Vec<_> = (0..300)
        .map(|number| {
            let store = bed.store.clone();
            tokio::spawn(async move {
                let read = store.get_client_data(CLIENT).await;
                let written = store.store_messages(&[processed(number)], None).await;
                (number, read.map(drop), written)
            })
        })
        .collect();
    tokio::task::yield_now().await;
    bed.store.close().await.unwrap();
    let ended = join_all(calls).await;

    let store = bed.open();
    for ended in ended {
        let (number, read, written) = ended.unwrap();
        if let Err(error) = read {
            assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
        }
        let id = MessageId::new(bed::id(number));
        let stored = store.get_message_result(id).await.unwrap().is_some();
        match written {
            Ok(()) => assert!(stored, "{number}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
                assert!(!stored, "{number}");
            }
        }
    }
}

#[tokio::test]
async fn a_slow_reader_of_a_stream_holds_nothing() {
    let bed = Bed::new().await;
    let calls = (0..3_000).map(|_| async { bed.store.record_client_contact(&contact()).await });
    for result in join_all(calls).await {
        result.unwrap();
    }
    let mut contacts = bed.store.stream_client_contacts(CLIENT);
    let first = contacts.next().await.unwrap().unwrap();
    assert_eq!(first.sent_nonce, u64::MAX);
    // With a transaction open the log could not be emptied.
    bed.store.list_clients(&[]).await.unwrap();
    bed.store.record_client_contact(&contact()).await.unwrap();
    let other = rusqlite::Connection::open(bed.path()).unwrap();
    let busy: i64 = other
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get(0))
        .unwrap();
    assert_eq!(busy, 0);
    let rest = contacts.count().await;
    assert_eq!(rest, 3_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_shared_by_its_clones() {
    let bed = Arc::new(Bed::new().await);
    let clone = bed.store.clone();
    clone.store_messages(&[processed(1)], None).await.unwrap();
    let id = MessageId::new(bed::id(1));
    assert!(bed.store.get_message_result(id).await.unwrap().is_some());
}
