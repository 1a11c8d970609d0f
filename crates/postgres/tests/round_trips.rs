//! Counts round trips of what happens most.

mod bed;

use bed::{CLIENT, Proxied, contact, id, ids_of, processed, success, to_client};
use fleethold_postgres::PostgresStore;
use fleethold_store::{ClientData, ClientStore, MessageStore, ServiceLimits};

struct Counted {
    proxied: Proxied,
    store: PostgresStore,
}

impl Counted {
    async fn new() -> Self {
        let proxied = Proxied::new().await;
        let mut options = proxied.options();
        // One connection: all statements are prepared when they are used again.
        options.pool_size = 1.try_into().unwrap();
        let store = bed::open(options).await;
        store
            .add_client(CLIENT, &ClientData::default())
            .await
            .unwrap();
        Self { proxied, store }
    }

    async fn trips(&self, call: impl Future<Output = ()>) -> u64 {
        let before = self.proxied.proxy.round_trips();
        call.await;
        self.proxied.proxy.round_trips() - before
    }

    async fn idle_poll(&self) {
        self.store.store_contact(&contact(), &[]).await.unwrap();
        let limits = ServiceLimits::from([("there".into(), 10)]);
        let claim = self
            .store
            .client_messages_for_processing(CLIENT, 100, Some(&limits));
        assert_eq!(claim.await.unwrap(), []);
    }

    async fn poll_with(&self, first: u64) {
        let messages: Vec<_> = (first..first + 100).map(processed).collect();
        self.store
            .store_contact(&contact(), &messages)
            .await
            .unwrap();
        let claim = self.store.client_messages_for_processing(CLIENT, 100, None);
        assert_eq!(claim.await.unwrap(), []);
    }

    async fn acknowledge(&self, first: u64) {
        let ids: Vec<_> = (first..first + 100).map(id).collect();
        let found = self.store.get_messages(&ids, false).await.unwrap();
        assert_eq!(ids_of(&found), ids);
        let results: Vec<_> = ids.iter().map(|id| (*id, success())).collect();
        self.store.set_message_results(&results).await.unwrap();
        let ack = [processed(first + 1_000_000)];
        self.store.store_contact(&contact(), &ack).await.unwrap();
    }
}

#[tokio::test]
async fn an_idle_poll_takes_two_round_trips() {
    let counted = Counted::new().await;
    counted.idle_poll().await;
    assert_eq!(counted.trips(counted.idle_poll()).await, 2);
}

#[tokio::test]
async fn a_poll_with_a_hundred_processed_messages_takes_three_round_trips() {
    let counted = Counted::new().await;
    counted.poll_with(1_000).await;
    assert_eq!(counted.trips(counted.poll_with(2_000)).await, 3);
}

#[tokio::test]
async fn acknowledging_a_hundred_messages_takes_four_round_trips() {
    let counted = Counted::new().await;
    let messages: Vec<_> = (0..200).map(to_client).collect();
    counted.store.store_messages(&messages, None).await.unwrap();
    counted.acknowledge(0).await;
    assert_eq!(counted.trips(counted.acknowledge(100)).await, 4);
}

#[tokio::test]
async fn most_calls_take_one_round_trip() {
    let counted = Counted::new().await;
    let store = &counted.store;
    let ids: Vec<_> = (0..50).map(id).collect();
    let messages: Vec<_> = (0..100).map(to_client).collect();
    for round in 0..2 {
        let one = |trips| assert!(trips == 1 || round == 0, "{trips}");
        one(counted
            .trips(async { store.store_messages(&messages, None).await.unwrap() })
            .await);
        one(counted
            .trips(async {
                drop(
                    store
                        .client_messages_for_processing(CLIENT, 10, None)
                        .await
                        .unwrap(),
                )
            })
            .await);
        one(counted
            .trips(async { drop(store.server_messages_for_processing(10).await.unwrap()) })
            .await);
        one(counted
            .trips(async { store.release_messages(CLIENT, &ids).await.unwrap() })
            .await);
        one(counted
            .trips(async { drop(store.get_client_data(CLIENT).await.unwrap()) })
            .await);
        one(counted
            .trips(async { drop(store.record_client_contact(&contact()).await.unwrap()) })
            .await);
        one(counted
            .trips(async { store.delete_pending_messages(&[CLIENT]).await.unwrap() })
            .await);
    }
}

#[tokio::test]
async fn calls_without_work_do_not_touch_the_database() {
    let counted = Counted::new().await;
    let store = &counted.store;
    let trips = counted
        .trips(async {
            store.store_messages(&[], None).await.unwrap();
            store.set_message_results(&[]).await.unwrap();
            store.get_messages(&[], true).await.unwrap();
            store.delete_pending_messages(&[]).await.unwrap();
            let nothing = ServiceLimits::new();
            let claim = store.client_messages_for_processing(CLIENT, 9, Some(&nothing));
            assert_eq!(claim.await.unwrap(), []);
        })
        .await;
    assert_eq!(trips, 0);
}

#[tokio::test]
async fn without_prepared_statements_the_round_trips_are_the_same() {
    let proxied = Proxied::new().await;
    let mut options = proxied.options();
    options.prepared = false;
    let store = bed::open(options).await;
    store
        .add_client(CLIENT, &ClientData::default())
        .await
        .unwrap();
    let counted = Counted { proxied, store };
    assert_eq!(counted.trips(counted.idle_poll()).await, 2);
    assert_eq!(counted.trips(counted.poll_with(1_000)).await, 3);
}
