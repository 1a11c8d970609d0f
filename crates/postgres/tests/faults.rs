//! Breaks the connection at every request in turn, and the answers to commits.

mod bed;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bed::{CLIENT, Proxied, contact, id, ids_of, success, to_client};
use fleethold_conformance::oracle::{Fate, Oracle};
use fleethold_postgres::PostgresStore;
use fleethold_proto::fleetspeak::Address;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_store::{
    BROADCAST_UNLIMITED, BroadcastId, BroadcastStore, ClientData, ClientId, ClientStore,
    ContactData, ErrorKind, FileStore, MessageStore, Outcome, Result, Store,
};
use fleethold_testdb::Cut;

const BROADCAST: BroadcastId = BroadcastId::new([9; 8]);

fn fate<T>(result: &Result<T>) -> Fate {
    match result {
        Ok(_) => Fate::Acknowledged,
        Err(error) if error.outcome() == Outcome::NotApplied => Fate::Refused,
        Err(_) => Fate::Unknown,
    }
}

/// Makes calls of many kinds; returns what is known of their writes, and the
/// contacts and claims that were acknowledged.
async fn history(store: &PostgresStore) -> (Oracle, usize, Vec<fleethold_store::MessageId>) {
    let mut oracle = Oracle::default();
    let (mut contacts, mut claimed) = (0, Vec::new());
    for write in 1..=6 {
        oracle.trying(write, 2);
        let messages = [to_client(10 * write), to_client(10 * write + 1)];
        let stored = if write % 2 == 0 {
            let stored = store.store_contact(&contact(), &messages).await;
            contacts += usize::from(stored.is_ok());
            stored.map(drop)
        } else {
            store.store_messages(&messages, None).await
        };
        oracle.learned(write, fate(&stored));
        if write == 3
            && let Ok(messages) = store.client_messages_for_processing(CLIENT, 3, None).await
        {
            claimed.extend(ids_of(&messages));
        }
    }
    let done = store.set_message_results(&[(id(10), success())]).await;
    assert!(done.is_ok(), "{done:?}");
    (oracle, contacts, claimed)
}

async fn cut_everywhere(cut: Cut) {
    for number in 1.. {
        assert!(number < 200, "a history has an end");
        let proxied = Proxied::new().await;
        let store = bed::open(proxied.options()).await;
        store
            .add_client(CLIENT, &ClientData::default())
            .await
            .unwrap();
        proxied.proxy.cut_at(number, cut);
        let (mut oracle, contacts, claimed) = history(&store).await;
        let finished = proxied.proxy.take_back();
        store.close().await.unwrap();

        let store = proxied.database.open().await;
        let all: Vec<_> = (1..=6).flat_map(|write| [(write, 0), (write, 1)]).collect();
        let ids: Vec<_> = all
            .iter()
            .map(|(write, part)| id(10 * write + u64::from(*part)))
            .collect();
        let found = ids_of(&store.get_messages(&ids, false).await.unwrap());
        let found: Vec<(u64, u32)> = all
            .iter()
            .zip(&ids)
            .filter(|(_, id)| found.contains(id))
            .map(|(part, _)| *part)
            .collect();
        let judged = oracle.judge(found);
        assert!(judged.is_ok(), "request {number}, {cut:?}: {judged:?}");
        let listed = store.list_client_contacts(CLIENT).await.unwrap();
        assert_eq!(
            listed.len(),
            contacts,
            "request {number}, {cut:?}: each contact is there once"
        );
        assert!(store.get_message_result(id(10)).await.unwrap().is_some());
        let rest = store
            .client_messages_for_processing(CLIENT, 100, None)
            .await
            .unwrap();
        for id in ids_of(&rest) {
            assert!(
                !claimed.contains(&id),
                "request {number}, {cut:?}: handed out twice"
            );
        }
        // What the store was not told to have claimed does not get lost either.
        assert_eq!(claimed.len(), 3, "request {number}, {cut:?}");
        store.close().await.unwrap();
        if finished {
            assert!(number > 10, "every request of a history was cut");
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_does_not_arrive_loses_and_repeats_nothing() {
    cut_everywhere(Cut::BeforeRequest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_does_not_arrive_loses_and_repeats_nothing() {
    cut_everywhere(Cut::AfterAnswer).await;
}

fn broadcast(id: BroadcastId) -> Broadcast {
    Broadcast {
        broadcast_id: id.to_bytes(),
        source: Some(Address {
            service_name: "here".into(),
            ..Address::default()
        }),
        message_type: "test".into(),
        ..Broadcast::default()
    }
}

fn in_an_hour() -> SystemTime {
    use fleethold_store::Clock;
    let random = Arc::new(fleethold_store::Random::from_os());
    fleethold_store::SystemClock::new(random).now() + Duration::from_secs(3600)
}

/// Every call is made once, with the answer to its commit cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_happens_once() {
    let proxied = Proxied::new().await;
    let store = bed::open(proxied.options()).await;
    let lose = || proxied.proxy.cut_on("COMMIT", Cut::AfterAnswer);
    let lost = || assert!(!proxied.proxy.take_back(), "the commit was cut");
    let data = ClientData {
        key: vec![1, 2, 3].into(),
        ..ClientData::default()
    };

    lose();
    store.add_client(CLIENT, &data).await.unwrap();
    lost();
    let error = store.add_client(CLIENT, &data).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);

    let second = ContactData {
        client_id: ClientId::new([2; 8]),
        ..contact()
    };
    lose();
    store.enrol(&data, &second).await.unwrap();
    lost();
    let error = store.enrol(&data, &second).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    let contacts = store.list_client_contacts(second.client_id).await.unwrap();
    assert_eq!(contacts.len(), 1);

    lose();
    store
        .store_messages(&[to_client(1), to_client(2)], None)
        .await
        .unwrap();
    lost();

    lose();
    let recorded = store.record_client_contact(&contact()).await.unwrap();
    lost();
    lose();
    store
        .store_contact(&contact(), &[to_client(3)])
        .await
        .unwrap();
    lost();
    assert_eq!(store.list_client_contacts(CLIENT).await.unwrap().len(), 2);
    store
        .link_messages_to_contact(&recorded, &[id(1)])
        .await
        .unwrap();

    lose();
    let claimed = store
        .client_messages_for_processing(CLIENT, 2, None)
        .await
        .unwrap();
    lost();
    assert_eq!(claimed.len(), 2, "a claim finds what it claimed");
    assert!(claimed.iter().all(|message| message.data.is_some()));
    let rest = store
        .client_messages_for_processing(CLIENT, 9, None)
        .await
        .unwrap();
    assert_eq!(rest.len(), 1);
    assert!(!ids_of(&claimed).contains(&ids_of(&rest)[0]));

    lose();
    store
        .create_broadcast(&broadcast(BROADCAST), 10)
        .await
        .unwrap();
    lost();
    let error = store
        .create_broadcast(&broadcast(BROADCAST), 10)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);

    lose();
    let allocation = store
        .create_allocation(BROADCAST, 0.5, in_an_hour())
        .await
        .unwrap()
        .expect("there is room");
    lost();
    assert_eq!(allocation.limit, 5);
    lose();
    store
        .save_broadcast_message(&to_client(4), BROADCAST, CLIENT, Some(allocation.id))
        .await
        .unwrap();
    lost();
    let again = store
        .save_broadcast_message(&to_client(5), BROADCAST, CLIENT, Some(allocation.id))
        .await
        .unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    lose();
    store
        .cleanup_allocation(BROADCAST, Some(allocation.id), 1)
        .await
        .unwrap();
    lost();
    let rest = store
        .create_allocation(BROADCAST, 1.0, in_an_hour())
        .await
        .unwrap();
    assert_eq!(
        rest.map(|rest| rest.limit),
        Some(9),
        "sent and allocated are exact"
    );

    let unlimited = BroadcastId::new([8; 8]);
    store
        .create_broadcast(&broadcast(unlimited), BROADCAST_UNLIMITED)
        .await
        .unwrap();
    lose();
    let error = store
        .cleanup_allocation(unlimited, None, 7)
        .await
        .unwrap_err();
    lost();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert_eq!(error.outcome(), Outcome::Unknown, "it cannot be repeated");
    // What the commit was sent with is answered first, so the connection may
    // have ended before the commit ran; it has run or never will when nothing does.
    let client = proxied.database.connect().await;
    let running = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()
        AND backend_type = 'client backend' AND state <> 'idle' AND pid <> pg_backend_pid()";
    let mut looks = 0;
    while !client.query(running, &[]).await.unwrap().is_empty() {
        looks += 1;
        assert!(looks < 10_000, "the commit still runs");
    }
    let active = store.list_active_broadcasts().await.unwrap();
    let unlimited = active.iter().find(|info| info.limit == BROADCAST_UNLIMITED);
    let sent = unlimited.unwrap().sent;
    assert!(sent == 0 || sent == 7, "it happened once or not: {sent}");

    lose();
    store
        .store_file("s", "n", &mut &b"content"[..])
        .await
        .unwrap();
    lost();
    assert_eq!(
        &store.read_file("s", "n").await.unwrap().content[..],
        b"content"
    );
    lose();
    store.delete_pending_messages(&[CLIENT]).await.unwrap();
    lost();
    assert_eq!(store.get_pending_message_count(&[CLIENT]).await.unwrap(), 0);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_still_runs_when_its_connection_breaks_happens_once() {
    let proxied = Proxied::new().await;
    let store = bed::open(proxied.options()).await;
    let client = proxied.database.connect().await;
    for table in ["clients", "client_pending"] {
        let slow = format!(
            "CREATE FUNCTION slow_{table}() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER slow AFTER INSERT OR UPDATE ON {table}
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow_{table}()"
        );
        client.batch_execute(&slow).await.unwrap();
    }
    let lose = || proxied.proxy.cut_on("COMMIT", Cut::AfterAnswer);
    let lost = || assert!(!proxied.proxy.take_back(), "the commit was cut");

    lose();
    let data = ClientData::default();
    store.add_client(CLIENT, &data).await.unwrap();
    lost();
    store.store_messages(&[to_client(1)], None).await.unwrap();
    lose();
    let claimed = store
        .client_messages_for_processing(CLIENT, 2, None)
        .await
        .unwrap();
    lost();
    assert_eq!(claimed.len(), 1, "a claim finds what it claimed");
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_hangs_ends_the_call_and_not_the_store() {
    let proxied = Proxied::new().await;
    let mut options = proxied.options();
    options.call_limit = Duration::from_secs(2);
    let store = bed::open(options).await;
    store
        .add_client(CLIENT, &ClientData::default())
        .await
        .unwrap();
    let holder = proxied.database.connect().await;
    holder
        .batch_execute("BEGIN; LOCK TABLE clients IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let error = store.record_client_contact(&contact()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    let error = store
        .add_client(ClientId::new([2; 8]), &ClientData::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    holder.batch_execute("COMMIT").await.unwrap();
    store.record_client_contact(&contact()).await.unwrap();
    store.close().await.unwrap();
}
