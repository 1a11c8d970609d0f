//! A server on a store in memory, and what tests ask of it.

use std::net::SocketAddr;
use std::sync::Arc;

use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_proto::fleetspeak::server::{ClientContact, ServiceConfig};
use fleethold_proto::fleetspeak::{Address, Message};
use fleethold_server::{AdminConfig, AgentsConfig, Config, Server};
use fleethold_store::clock::timestamp;
use fleethold_store::{
    ClientData, ClientId, ClientStore, Clock, ManualClock, MemoryStore, MessageId, MessageStore,
    Random, Store,
};
use futures::TryStreamExt;
use tonic::transport::Channel;

use crate::agent::{Agent, Authority};

/// Where the clock of a bed stands.
pub(crate) const NOW: u64 = 1_700_000_000;

pub(crate) struct Bed {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) authority: Authority,
    pub(crate) addr: SocketAddr,
    pub(crate) server: Server,
}

impl Bed {
    pub(crate) async fn start() -> Self {
        Self::with(Authority::new(), |_| {}).await
    }

    /// Starts a server whose configuration `change` may change.
    pub(crate) async fn with(authority: Authority, change: impl FnOnce(&mut Config)) -> Self {
        let sink = ServiceConfig {
            name: "sink".to_owned(),
            factory: "NOOP".to_owned(),
            ..ServiceConfig::default()
        };
        let mut config = Config {
            agents: Some(AgentsConfig {
                listen: "127.0.0.1:0".to_owned(),
                certificates_pem: authority.certificates_pem.clone(),
                key_pem: authority.key_pem.clone(),
                ..AgentsConfig::default()
            }),
            admin: Some(AdminConfig {
                listen: "127.0.0.1:0".to_owned(),
            }),
            services: vec![sink],
            ..Config::default()
        };
        change(&mut config);
        let clock = Arc::new(ManualClock::at(NOW));
        let random = Arc::new(Random::seeded(1));
        let store = Arc::new(MemoryStore::new(
            Arc::clone(&clock) as Arc<dyn Clock>,
            Arc::clone(&random),
        ));
        let server = Server::start(
            config,
            Arc::clone(&store) as Arc<dyn Store>,
            Arc::clone(&clock) as Arc<dyn Clock>,
            random,
        )
        .await
        .unwrap();
        Self {
            addr: server.agents_addr().unwrap(),
            store,
            clock,
            authority,
            server,
        }
    }

    pub(crate) fn agent(&self) -> Agent {
        Agent::new(self.addr, &self.authority)
    }

    pub(crate) async fn admin(&self) -> AdminClient<Channel> {
        let admin = self.server.admin_addr().unwrap();
        AdminClient::connect(format!("http://{admin}"))
            .await
            .unwrap()
    }

    pub(crate) async fn client(&self, id: ClientId) -> Option<ClientData> {
        match self.store.get_client_data(id).await {
            Ok(data) => Some(data),
            Err(error) if error.is_not_found() => None,
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) async fn contacts(&self, id: ClientId) -> Vec<ClientContact> {
        self.store.list_client_contacts(id).await.unwrap()
    }

    pub(crate) async fn client_count(&self) -> usize {
        let ids: Vec<_> = self
            .store
            .stream_client_ids(true, None)
            .try_collect()
            .await
            .unwrap();
        ids.len()
    }

    /// Stores messages for a client, without telling its stream.
    pub(crate) async fn store_messages(&self, client: ClientId, numbers: std::ops::Range<u32>) {
        let messages: Vec<_> = numbers
            .map(|number| self.message_for(client, number))
            .collect();
        self.store.store_messages(&messages, None).await.unwrap();
    }

    /// Makes a message from a service of the server to `hello` of a client.
    pub(crate) fn message_for(&self, client: ClientId, number: u32) -> Message {
        let source_id = number.to_be_bytes();
        Message {
            message_id: MessageId::for_source(Some(client), "greeter", &source_id).to_bytes(),
            source: Some(Address {
                service_name: "greeter".to_owned(),
                ..Address::default()
            }),
            source_message_id: source_id.to_vec().into(),
            destination: Some(Address {
                client_id: client.to_bytes(),
                service_name: "hello".to_owned(),
            }),
            message_type: "greeting".to_owned(),
            creation_time: Some(timestamp(self.clock.now())),
            ..Message::default()
        }
    }
}
