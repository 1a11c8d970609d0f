//! Eight stores on one database, as eight servers have them.

mod bed;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bed::{CLIENT, Database, id, ids_of, processed, to_client};
use fleethold_postgres::{Isolation, PostgresStore};
use fleethold_proto::fleetspeak::Address;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_store::{
    BroadcastId, BroadcastStore, ClientData, ClientId, ClientStore, Clock, MessageStore, Random,
    Store, SystemClock,
};
use futures::StreamExt;
use futures::future::join_all;
use tokio::time::timeout;

const SERVERS: usize = 8;
const LIMIT: Duration = Duration::from_secs(50);

async fn servers(database: &Database, isolation: Isolation) -> Vec<PostgresStore> {
    let stores = (0..SERVERS).map(|_| {
        let mut options = database.options();
        options.isolation = isolation;
        options.pool_size = 3.try_into().expect("not zero");
        options.call_limit = Duration::from_secs(30);
        bed::open(options)
    });
    join_all(stores).await
}

async fn claims_are_disjoint(isolation: Isolation) {
    const MESSAGES: u64 = 400;
    let database = Database::new().await;
    let stores = servers(&database, isolation).await;
    let messages: Vec<_> = (0..MESSAGES).map(to_client).collect();
    stores[0].store_messages(&messages, None).await.unwrap();
    let mut claimed = Vec::new();
    let claim_all = async {
        while claimed.len() < messages.len() {
            let claims = stores
                .iter()
                .map(|store| store.client_messages_for_processing(CLIENT, 7, None));
            for claim in join_all(claims).await {
                claimed.extend(ids_of(&claim.unwrap()));
            }
        }
    };
    timeout(LIMIT, claim_all).await.expect("all are handed out");
    let unique: BTreeSet<_> = claimed.iter().copied().collect();
    assert_eq!(unique.len(), claimed.len(), "nothing is handed out twice");
    // All acknowledge the same messages, and store more at the same time.
    let results: Vec<_> = claimed.iter().map(|id| (*id, bed::success())).collect();
    let work = stores.iter().map(|store| {
        let results = &results;
        async move {
            store.set_message_results(results).await.unwrap();
            let again: Vec<_> = (MESSAGES..MESSAGES + 50).map(processed).collect();
            store.store_messages(&again, None).await.unwrap();
        }
    });
    timeout(LIMIT, join_all(work)).await.expect("conflicts end");
    assert_eq!(
        stores[0]
            .get_pending_message_count(&[CLIENT])
            .await
            .unwrap(),
        0
    );
    let all: Vec<_> = (0..MESSAGES + 50).map(id).collect();
    let found = stores[1].get_messages(&all, true).await.unwrap();
    assert_eq!(found.len(), all.len());
    assert!(
        found
            .iter()
            .all(|message| message.result.is_some() && message.data.is_none())
    );
    for store in stores {
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_servers_claim_each_message_once_at_read_committed() {
    claims_are_disjoint(Isolation::ReadCommitted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_servers_claim_each_message_once_at_repeatable_read() {
    claims_are_disjoint(Isolation::RepeatableRead).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_servers_claim_each_message_once_at_serializable() {
    claims_are_disjoint(Isolation::Serializable).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_servers_send_exactly_the_limit_of_a_broadcast() {
    const MESSAGES: u64 = 100;
    let database = Database::new().await;
    let stores = servers(&database, Isolation::ReadCommitted).await;
    let broadcast = BroadcastId::new([9; 8]);
    let described = Broadcast {
        broadcast_id: broadcast.to_bytes(),
        source: Some(Address::default()),
        ..Broadcast::default()
    };
    stores[0]
        .create_broadcast(&described, MESSAGES)
        .await
        .unwrap();
    for number in 0..2 * MESSAGES {
        let client = ClientId::new(number.to_be_bytes());
        stores[0]
            .add_client(client, &ClientData::default())
            .await
            .unwrap();
    }
    let random = Arc::new(Random::from_os());
    let expiry = SystemClock::new(random).now() + Duration::from_secs(600);
    let work = stores.iter().enumerate().map(|(server, store)| async move {
        let (mut sent, mut allocation) = (0, None);
        for number in (server as u64..2 * MESSAGES).step_by(SERVERS) {
            if allocation.is_none() {
                let made = store
                    .create_allocation(broadcast, 0.1, expiry)
                    .await
                    .unwrap();
                allocation = made.map(|made| (made.id, made.limit));
            }
            let Some((id, left)) = &mut allocation else {
                break;
            };
            let client = ClientId::new(number.to_be_bytes());
            let message = to_client(number);
            let saved = store.save_broadcast_message(&message, broadcast, client, Some(*id));
            saved.await.unwrap();
            sent += 1;
            *left -= 1;
            if *left == 0 {
                allocation = None;
            }
        }
        sent
    });
    let sent: u64 = timeout(LIMIT, join_all(work))
        .await
        .unwrap()
        .into_iter()
        .sum();
    assert!(sent <= MESSAGES, "{sent}");
    let progress = stores[3].broadcast_progress(broadcast).await.unwrap();
    assert_eq!(progress.sent, sent, "every message is counted");
    let rest = stores[4]
        .create_allocation(broadcast, 1.0, expiry)
        .await
        .unwrap();
    assert!(sent + rest.map_or(0, |rest| rest.limit) <= MESSAGES);
    for store in stores {
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_hears_of_messages_that_another_stores() {
    let database = Database::new().await;
    let (here, there) = (database.open().await, database.open().await);
    let mut heard = there.wakeups();
    let mut own = here.wakeups();
    let mut number = 0;
    // A hint may be missing: it is sent before the other listens, for instance.
    let hear = async {
        loop {
            number += 1;
            here.store_messages(&[to_client(number)], None)
                .await
                .unwrap();
            if let Ok(client) = timeout(Duration::from_millis(500), heard.next()).await {
                break client;
            }
        }
    };
    assert_eq!(timeout(LIMIT, hear).await.unwrap(), Some(CLIENT));
    here.close().await.unwrap();
    assert_eq!(
        own.next().await,
        None,
        "nobody hears oneself, and a closed store ends its hints"
    );
    there.close().await.unwrap();
}
