//! Without transport, against a store in memory.

use fleethold_store::{ClientData, ClientStore, ManualClock, MemoryStore};

use super::*;
use crate::cache::ClientCache;

/// What several servers on one store send.
struct Bed {
    store: Arc<dyn Store>,
    clock: Arc<ManualClock>,
    servers: Vec<(Arc<Broadcasts>, ClientCache)>,
}

impl Bed {
    async fn new(servers: usize, clients: u8) -> Self {
        let manual = Arc::new(ManualClock::at(1_000));
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&manual);
        let random = Arc::new(Random::seeded(1));
        let store = MemoryStore::new(Arc::clone(&clock), Arc::clone(&random));
        for number in 0..clients {
            let data = ClientData::default();
            store.add_client(client(number), &data).await.unwrap();
        }
        let store: Arc<dyn Store> = Arc::new(store);
        let server = || {
            let broadcasts = Broadcasts::new(
                Arc::clone(&store),
                Arc::default(),
                Arc::clone(&clock),
                Arc::clone(&random),
                Duration::from_secs(60),
            );
            (Arc::new(broadcasts), ClientCache::new(Arc::clone(&store)))
        };
        let servers = (0..servers).map(|_| server()).collect();
        Self {
            store,
            clock: manual,
            servers,
        }
    }

    async fn create(&self, number: u8, limit: u64) {
        let broadcast = Broadcast {
            broadcast_id: BroadcastId::new([number; 8]).to_bytes(),
            source: Some(fleethold_proto::fleetspeak::Address {
                service_name: "hello".to_owned(),
                ..Default::default()
            }),
            message_type: number.to_string(),
            group_name: if number < 100 { "" } else { "nightly" }.to_owned(),
            ..Broadcast::default()
        };
        let created = self.store.create_broadcast(&broadcast, limit);
        created.await.unwrap();
    }

    async fn refresh(&self) {
        for (broadcasts, _) in &self.servers {
            broadcasts.refresh().await.unwrap();
        }
    }

    /// Lets a client take what a server has for it.
    async fn take(&self, server: usize, number: u8) -> (Vec<Message>, bool) {
        let (broadcasts, cache) = &self.servers[server];
        let cached = cache.load(client(number)).await.unwrap().unwrap();
        broadcasts.messages_for(client(number), &cached).await
    }

    async fn sent(&self, number: u8) -> u64 {
        let progress = self.store.broadcast_progress(BroadcastId::new([number; 8]));
        progress.await.unwrap().sent
    }
}

fn client(number: u8) -> ClientId {
    ClientId::new([number; 8])
}

#[tokio::test]
async fn p_131_limit_holds_exactly_over_several_servers() {
    for limit in [1, 2, 7, 59, 60] {
        let bed = Bed::new(3, 60).await;
        bed.create(1, limit).await;
        bed.refresh().await;
        let mut got = 0;
        // What a server has left when its clients have it goes back after a
        // while, and to the others.
        for round in 0..4 {
            let takes = (0..60).map(|number| bed.take(usize::from(number + round) % 3, number));
            for (messages, more) in futures::future::join_all(takes).await {
                got += messages.len();
                assert!(!more);
            }
            assert!(got as u64 <= limit);
            bed.clock.advance(ALLOCATION_LIFETIME);
            bed.refresh().await;
        }
        assert_eq!((got as u64, bed.sent(1).await), (limit, limit));
        for (broadcasts, _) in &bed.servers {
            broadcasts.close().await;
        }
        let active = bed.store.list_active_broadcasts().await.unwrap();
        assert_eq!(active, [], "all of {limit} are counted");
    }
}

#[tokio::test]
async fn what_one_server_does_not_need_goes_to_agents_of_others_after_two_looks() {
    let bed = Bed::new(2, 20).await;
    bed.create(1, 10).await;
    bed.servers[0].0.refresh().await.unwrap();
    // The first server has agents for two, and holds more; all others are elsewhere.
    let mut got = 0;
    for number in 0..20 {
        let server = usize::from(number >= 1);
        got += bed.take(server, number).await.0.len();
        if number == 0 {
            bed.servers[1].0.refresh().await.unwrap();
        }
    }
    assert!(got < 10, "the first server holds some: {got}");
    bed.refresh().await;
    bed.refresh().await;
    // It has nothing to give back any more; whoever looks next takes it.
    bed.refresh().await;
    for number in 1..20 {
        got += bed.take(1, number).await.0.len();
    }
    assert_eq!((got, bed.sent(1).await), (10, 10));
    let (messages, _) = bed.take(0, 19).await;
    assert_eq!(messages.len(), 0);
}

#[tokio::test]
async fn server_that_gave_its_share_back_takes_one_again_when_an_agent_is_due() {
    let bed = Bed::new(1, 20).await;
    bed.create(1, 10).await;
    for _ in 0..5 {
        bed.refresh().await;
    }
    let broadcasts = bed.store.list_active_broadcasts().await.unwrap();
    assert_eq!(broadcasts.len(), 1);
    let mut got = 0;
    for number in 0..20 {
        got += bed.take(0, number).await.0.len();
    }
    assert_eq!(got, 10);
}

#[tokio::test]
async fn p_133_message_goes_to_the_given_service_and_to_the_source_s_without() {
    let bed = Bed::new(1, 1).await;
    for (number, destination) in [(1, None), (2, Some("")), (3, Some("other"))] {
        let address = |service: &str| fleethold_proto::fleetspeak::Address {
            service_name: service.to_owned(),
            ..Default::default()
        };
        let broadcast = Broadcast {
            broadcast_id: BroadcastId::new([number; 8]).to_bytes(),
            source: Some(address("hello")),
            destination: destination.map(address),
            ..Broadcast::default()
        };
        bed.store.create_broadcast(&broadcast, 1).await.unwrap();
    }
    bed.refresh().await;
    let (messages, _) = bed.take(0, 0).await;
    let services = messages.into_iter().map(|message| {
        let destination = message.destination.unwrap();
        assert_eq!(destination.client_id, client(0).to_bytes());
        destination.service_name
    });
    let services: Vec<_> = services.collect();
    assert_eq!(services, ["hello", "hello", "other"]);
}

#[tokio::test]
async fn p_137_newer_broadcast_of_a_group_takes_the_place_of_an_older_one() {
    let bed = Bed::new(2, 3).await;
    let types = |(messages, _): (Vec<Message>, bool)| -> Vec<String> {
        let types = messages.into_iter().map(|message| message.message_type);
        types.collect()
    };
    bed.create(100, BROADCAST_UNLIMITED).await;
    bed.refresh().await;
    assert_eq!(types(bed.take(0, 0).await), ["100"]);
    bed.create(101, BROADCAST_UNLIMITED).await;
    // The other server has not heard of it yet, and the store refuses.
    bed.servers[0].0.refresh().await.unwrap();
    assert_eq!(types(bed.take(1, 1).await), [""; 0]);
    bed.refresh().await;
    for number in 0..3 {
        assert_eq!(types(bed.take(1, number).await), ["101"]);
    }
}

#[tokio::test]
async fn many_broadcasts_come_a_hundred_at_a_time() {
    let bed = Bed::new(1, 1).await;
    for number in 0..250 {
        let broadcast = Broadcast {
            broadcast_id: BroadcastId::new([number; 8]).to_bytes(),
            source: Some(fleethold_proto::fleetspeak::Address::default()),
            ..Broadcast::default()
        };
        let limit = BROADCAST_UNLIMITED;
        bed.store.create_broadcast(&broadcast, limit).await.unwrap();
    }
    bed.refresh().await;
    let mut sizes = Vec::new();
    loop {
        let (messages, more) = bed.take(0, 0).await;
        sizes.push(messages.len());
        if !more {
            break;
        }
    }
    assert_eq!(sizes, [100, 100, 50]);
    let pending = bed.store.get_pending_message_count(&[client(0)]).await;
    assert_eq!(pending.unwrap(), 250);
}
