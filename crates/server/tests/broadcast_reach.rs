//! Broadcasts to agents on open streams: all that may have one get it, once.
//!
//! The same with 10,000 agents, and how long it takes, is measured by
//! `scripts/measure-broadcast`.

mod agent;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use agent::{Authority, Fleet, soon};
use bytes::Bytes;
use fleethold_proto::fleethold::admin::v1::broadcasts_client::BroadcastsClient;
use fleethold_proto::fleethold::admin::v1::{BroadcastProgress, GetBroadcastProgressRequest};
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_proto::fleetspeak::server::{
    Broadcast, CreateBroadcastRequest, DisableBroadcastsRequest,
};
use fleethold_proto::fleetspeak::{Address, Label};
use fleethold_server::{AdminConfig, AgentsConfig, Config, Limits, Server};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{BROADCAST_UNLIMITED, Clock, Random, Store, SystemClock};
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

const AGENTS: usize = 300;

/// A server and its agents.
struct Bed {
    fleet: Fleet,
    channel: Channel,
    server: Server,
    store: Arc<SqliteStore>,
    _directory: TempDir,
}

impl Bed {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let random = Arc::new(Random::from_os());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(Arc::clone(&random)));
        let store = SqliteStore::open(
            directory.path().join("fleet.db"),
            SqliteOptions::default(),
            Arc::clone(&clock),
            Arc::clone(&random),
        );
        let store = Arc::new(store.unwrap());
        let authority = Authority::new();
        let config = Config {
            agents: Some(AgentsConfig {
                listen: "127.0.0.1:0".to_owned(),
                certificates_pem: authority.certificates_pem.clone(),
                key_pem: authority.key_pem.clone(),
                ..AgentsConfig::default()
            }),
            admin: Some(AdminConfig {
                listen: "127.0.0.1:0".to_owned(),
            }),
            limits: Limits {
                enrolments_per_second: 10_000,
                ..Limits::default()
            },
            ..Config::default()
        };
        let any_store: Arc<dyn Store> = Arc::<SqliteStore>::clone(&store);
        let server = Server::start(config, any_store, clock, random)
            .await
            .unwrap();
        let addr = server.admin_addr().unwrap();
        let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap();
        let fleet = Fleet::open(server.agents_addr().unwrap(), &authority, AGENTS);
        Self {
            fleet: fleet.await,
            channel: channel.connect().await.unwrap(),
            server,
            store,
            _directory: directory,
        }
    }

    async fn create(&self, number: u8, limit: u64, label: Option<&str>) {
        let label = label.map(|label| Label {
            service_name: "client".to_owned(),
            label: label.to_owned(),
        });
        let request = CreateBroadcastRequest {
            broadcast: Some(Broadcast {
                broadcast_id: id(number),
                source: Some(Address {
                    service_name: "hello".to_owned(),
                    ..Address::default()
                }),
                message_type: number.to_string(),
                required_labels: label.into_iter().collect(),
                ..Broadcast::default()
            }),
            limit,
        };
        let mut admin = AdminClient::new(self.channel.clone());
        admin.create_broadcast(request).await.unwrap();
    }

    async fn progress(&self, id: Bytes) -> Result<BroadcastProgress, tonic::Status> {
        let request = GetBroadcastProgressRequest { broadcast_id: id };
        let mut broadcasts = BroadcastsClient::new(self.channel.clone());
        let answer = broadcasts.get_broadcast_progress(request).await?;
        Ok(answer.into_inner())
    }

    /// Waits until so many agents have acknowledged a broadcast.
    async fn acknowledged(&self, number: u8, count: usize) {
        let expected = BroadcastProgress {
            sent: count as u64,
            acknowledged: count as u64,
            ..BroadcastProgress::default()
        };
        let acknowledged = async {
            let mut look = tokio::time::interval(Duration::from_millis(20));
            while self.progress(id(number)).await.unwrap() != expected {
                look.tick().await;
            }
        };
        soon("acknowledgements", Box::pin(acknowledged)).await;
    }

    /// Returns the numbers of the agents that got a broadcast.
    fn receivers(&self, number: u8) -> Vec<usize> {
        let arrivals = self.fleet.arrivals(&number.to_string());
        arrivals.into_iter().map(|(agent, _)| agent).collect()
    }

    async fn stop(self) {
        self.server.stop().await;
        self.store.close().await.unwrap();
    }
}

fn id(number: u8) -> Bytes {
    Bytes::copy_from_slice(&[number; 8])
}

fn distinct(agents: &[usize]) -> usize {
    agents.iter().collect::<BTreeSet<_>>().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn p_130_to_132_300_streaming_agents_get_what_they_are_eligible_for_once() {
    let bed = Bed::start().await;
    bed.create(1, BROADCAST_UNLIMITED, None).await;
    bed.create(2, 101, None).await;
    bed.create(3, BROADCAST_UNLIMITED, Some("odd")).await;
    for (number, count) in [(1, AGENTS), (2, 101), (3, AGENTS / 2)] {
        bed.acknowledged(number, count).await;
    }
    // The next one wakes all agents again; the limited one is used up.
    bed.create(4, BROADCAST_UNLIMITED, None).await;
    bed.acknowledged(4, AGENTS).await;

    for (number, count) in [(1, AGENTS), (2, 101), (3, AGENTS / 2), (4, AGENTS)] {
        let receivers = bed.receivers(number);
        assert_eq!((receivers.len(), distinct(&receivers)), (count, count));
    }
    assert!(bed.receivers(3).iter().all(|agent| agent % 2 == 1));
    assert_eq!(bed.fleet.ended(), 0);

    let mut admin = AdminClient::new(bed.channel.clone());
    let disable = DisableBroadcastsRequest {
        broadcast_ids: vec![id(1)],
    };
    admin.disable_broadcasts(disable).await.unwrap();
    bed.acknowledged(1, AGENTS).await;
    for (wrong, code) in [
        (id(9), Code::NotFound),
        (Bytes::new(), Code::InvalidArgument),
        (Bytes::from_static(b"short"), Code::InvalidArgument),
    ] {
        assert_eq!(bed.progress(wrong).await.unwrap_err().code(), code);
    }
    bed.stop().await;
}
