//! What a server remembers after a restart.

mod agent;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::{Agent, Authority, soon};
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_proto::fleetspeak::{Address, ContactData};
use fleethold_server::{AgentsConfig, Config, Server};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{
    BROADCAST_UNLIMITED, BroadcastId, BroadcastStore, ClientId, Clock, ManualClock, Random, Store,
};
use rcgen::KeyPair;

/// A run of the server on a database.
struct Run {
    server: Server,
    store: Arc<SqliteStore>,
}

impl Run {
    async fn start(path: &Path, authority: &Authority, seed: u64) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(1_700_000_000 + seed));
        let random = Arc::new(Random::seeded(seed));
        let options = SqliteOptions::default();
        let store = SqliteStore::open(path, options, Arc::clone(&clock), Arc::clone(&random));
        let store = Arc::new(store.unwrap());
        let config = Config {
            agents: Some(AgentsConfig {
                listen: "127.0.0.1:0".to_owned(),
                certificates_pem: authority.certificates_pem.clone(),
                key_pem: authority.key_pem.clone(),
                ..AgentsConfig::default()
            }),
            broadcast_poll: Duration::from_secs(1),
            ..Config::default()
        };
        let any_store: Arc<dyn Store> = Arc::<SqliteStore>::clone(&store);
        let server = Server::start(config, any_store, clock, random)
            .await
            .unwrap();
        Self { server, store }
    }

    fn agent(&self, authority: &Authority, key: &KeyPair) -> Agent {
        Agent::with_key(self.server.agents_addr().unwrap(), authority, key)
    }

    async fn stop(self) {
        self.server.stop().await;
        self.store.close().await.unwrap();
    }
}

/// Polls until as many broadcasts have come as are expected, of these types.
async fn expect(agent: &Agent, expected: &[&str]) {
    let mut pause = tokio::time::interval(Duration::from_millis(5));
    let mut types = Vec::new();
    let polls = async {
        while types.len() < expected.len() {
            pause.tick().await;
            types.extend(poll(agent).await);
        }
    };
    soon("broadcasts", Box::pin(polls)).await;
    types.sort();
    assert_eq!(types, expected);
}

async fn poll(agent: &Agent) -> Vec<String> {
    let messages = agent.poll(&ContactData::default()).await.messages;
    let types = messages.into_iter().map(|message| message.message_type);
    types.collect()
}

async fn sent_to(store: &SqliteStore, client: ClientId) -> usize {
    store.list_sent_broadcasts(client).await.unwrap().len()
}

#[tokio::test]
async fn p_136_no_client_gets_a_broadcast_twice_though_the_server_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fleet.db");
    let authority = Authority::new();
    let keys: Vec<_> = (0..5).map(|_| KeyPair::generate().unwrap()).collect();
    let agents_of = |run: &Run| -> Vec<Agent> {
        let agents = keys.iter().map(|key| run.agent(&authority, key));
        agents.collect()
    };

    let run = Run::start(&path, &authority, 1).await;
    for (number, name, limit) in [(1, "all", BROADCAST_UNLIMITED), (2, "three", 3)] {
        let broadcast = Broadcast {
            broadcast_id: BroadcastId::new([number; 8]).to_bytes(),
            source: Some(Address {
                service_name: "hello".to_owned(),
                ..Address::default()
            }),
            message_type: name.to_owned(),
            ..Broadcast::default()
        };
        run.store.create_broadcast(&broadcast, limit).await.unwrap();
    }
    run.stop().await;

    let run = Run::start(&path, &authority, 2).await;
    let agents = agents_of(&run);
    for agent in &agents[..2] {
        expect(agent, &["all", "three"]).await;
        assert_eq!(poll(agent).await, [""; 0]);
    }
    run.stop().await;

    let run = Run::start(&path, &authority, 3).await;
    let agents = agents_of(&run);
    // The limit holds too: of three, two were sent before.
    expect(&agents[2], &["all", "three"]).await;
    expect(&agents[3], &["all"]).await;
    for agent in &agents[..4] {
        assert_eq!(poll(agent).await, [""; 0]);
    }
    run.stop().await;

    let run = Run::start(&path, &authority, 4).await;
    let agents = agents_of(&run);
    expect(&agents[4], &["all"]).await;
    for (agent, expected) in agents.iter().zip([2, 2, 2, 1, 1]) {
        assert_eq!(poll(agent).await, [""; 0]);
        assert_eq!(sent_to(&run.store, agent.id).await, expected);
    }
    run.stop().await;
}
