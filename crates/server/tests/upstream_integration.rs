//! What upstream's own integration suite shows with real agents: numbers B-120
//! to B-123 of the store semantics, section 7.1, on a store in memory and on SQLite.

mod agent;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agent::{Agent, Authority, acknowledgement, get, message, soon};
use bytes::Bytes;
use fleethold_proto::fleetspeak::grpcservice::processor_server::{Processor, ProcessorServer};
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_proto::fleetspeak::server::{
    BlacklistClientRequest, Broadcast, CreateBroadcastRequest, ServiceConfig,
};
use fleethold_proto::fleetspeak::{
    Address, ContactData, EmptyMessage, Label, Message, grpcservice,
};
use fleethold_proto::{Any, pack};
use fleethold_server::{AdminConfig, AgentsConfig, Config, Server};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{ClientId, Clock, MemoryStore, MessageId, Random, Store, SystemClock};
use futures::TryStreamExt;
use http::StatusCode;
use rcgen::KeyPair;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// As many agents as upstream runs, and as many messages as it asks each for.
const AGENTS: usize = 5;
const ANSWERS: u32 = 20;

/// The number of an agent's message about its download.
const DOWNLOADED: u32 = 1_000;

/// How many answers the service takes before agents have to wait for it.
const PROMPT: usize = 30;

/// More than any service takes here.
const ALL: usize = 10_000;

/// How often an agent polls, and how often a test looks.
const POLL_PERIOD: Duration = Duration::from_millis(20);

/// The machine's clock; server messages are retried after 1 s.
#[derive(Debug)]
struct QuickRetry(SystemClock);

impl Clock for QuickRetry {
    fn now(&self) -> SystemTime {
        self.0.now()
    }

    fn client_retry_time(&self) -> SystemTime {
        self.0.client_retry_time()
    }

    fn server_retry_time(&self, _retry_count: u32) -> SystemTime {
        self.now() + Duration::from_secs(1)
    }
}

/// A service called `hunt`, which takes as many messages as there are places.
#[derive(Clone)]
struct Hunt {
    places: Arc<Semaphore>,
    /// How often each message was taken.
    taken: watch::Sender<BTreeMap<Bytes, usize>>,
}

#[tonic::async_trait]
impl Processor for Hunt {
    async fn process(&self, request: Request<Message>) -> Result<Response<EmptyMessage>, Status> {
        self.places.acquire().await.unwrap().forget();
        let id = request.into_inner().message_id;
        self.taken
            .send_modify(|taken| *taken.entry(id).or_default() += 1);
        Ok(Response::new(EmptyMessage {}))
    }
}

impl Hunt {
    /// Waits until so many different messages were taken.
    async fn until(&self, count: usize) {
        let mut taken = self.taken.subscribe();
        let reached = taken.wait_for(|taken| taken.len() >= count);
        drop(soon("messages at the service", reached).await.unwrap());
    }
}

#[derive(Clone, Copy)]
enum Backend {
    Memory,
    Sqlite,
}

/// A server with the service `hunt`.
struct Fleet {
    store: Arc<dyn Store>,
    authority: Arc<Authority>,
    server: Server,
    hunt: Hunt,
    random: Arc<Random>,
    _directory: TempDir,
}

impl Fleet {
    async fn start(backend: Backend, places: usize) -> Self {
        let random = Arc::new(Random::seeded(1));
        let clock: Arc<dyn Clock> = Arc::new(QuickRetry(SystemClock::new(Arc::clone(&random))));
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = match backend {
            Backend::Memory => Arc::new(MemoryStore::new(Arc::clone(&clock), Arc::clone(&random))),
            Backend::Sqlite => {
                let (path, options) = (directory.path().join("fleet.db"), SqliteOptions::default());
                let (clock, random) = (Arc::clone(&clock), Arc::clone(&random));
                Arc::new(SqliteStore::open(path, options, clock, random).unwrap())
            }
        };
        let hunt = Hunt {
            places: Arc::new(Semaphore::new(places)),
            taken: watch::Sender::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let back_end = grpcservice::Config {
            target: listener.local_addr().unwrap().to_string(),
            insecure: true,
            ..grpcservice::Config::default()
        };
        let service = tonic::transport::Server::builder()
            .add_service(ProcessorServer::new(hunt.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(service);
        let authority = Arc::new(Authority::new());
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
            services: vec![ServiceConfig {
                name: "hunt".to_owned(),
                factory: "GRPC".to_owned(),
                config: Some(pack(&back_end)),
                max_parallelism: 5,
            }],
            ..Config::default()
        };
        let server = Server::start(config, Arc::clone(&store), clock, Arc::clone(&random));
        Self {
            store,
            authority,
            server: server.await.unwrap(),
            hunt,
            random,
            _directory: directory,
        }
    }

    fn agent(&self, key: &KeyPair) -> Agent {
        Agent::with_key(self.server.agents_addr().unwrap(), &self.authority, key)
    }

    async fn admin(&self) -> AdminClient<Channel> {
        let admin = self.server.admin_addr().unwrap();
        AdminClient::connect(format!("http://{admin}"))
            .await
            .unwrap()
    }

    /// Tells as many clients as there are agents to do something.
    async fn order(&self, what: &str) {
        let broadcast = Broadcast {
            source: Some(Address {
                service_name: "hunt".to_owned(),
                ..Address::default()
            }),
            message_type: what.to_owned(),
            required_labels: vec![Label {
                service_name: "client".to_owned(),
                label: "linux".to_owned(),
            }],
            ..Broadcast::default()
        };
        let request = CreateBroadcastRequest {
            broadcast: Some(broadcast),
            limit: u64::try_from(AGENTS).unwrap(),
        };
        let mut admin = self.admin().await;
        admin.create_broadcast(request).await.unwrap();
    }

    /// Returns how many of these messages of each agent are stored, and how
    /// many of them have succeeded.
    async fn stored(&self, agents: &[Agent], numbers: std::ops::Range<u32>) -> (usize, usize) {
        let mut ids = Vec::new();
        for agent in agents {
            for number in numbers.clone() {
                let id = MessageId::for_source(Some(agent.id), "hello", &number.to_be_bytes());
                ids.push(id);
            }
        }
        match self.store.get_messages(&ids, false).await {
            Ok(found) => {
                let results = found.iter().filter_map(|message| message.result.as_ref());
                let succeeded = results.filter(|result| !result.failed).count();
                (found.len(), succeeded)
            }
            Err(error) if error.is_not_found() => (0, 0),
            Err(error) => panic!("{error}"),
        }
    }

    async fn contact_count(&self, client: ClientId) -> usize {
        self.store.list_client_contacts(client).await.unwrap().len()
    }

    async fn client_ids(&self) -> BTreeSet<ClientId> {
        let ids = self.store.stream_client_ids(true, None);
        ids.try_collect().await.unwrap()
    }

    async fn stop(self) {
        self.server.stop().await;
        self.store.close().await.unwrap();
    }
}

/// Looks again and again until the condition holds.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let mut look = tokio::time::interval(POLL_PERIOD);
    let held = async {
        while !holds().await {
            look.tick().await;
        }
    };
    soon(what, held).await;
}

/// What agents have done, and how often.
#[derive(Default)]
struct Done {
    orders: usize,
    /// Polls that brought answers and have ended.
    answered: usize,
    downloads: Vec<Bytes>,
}

/// Agents that poll for as long as this lives.
struct Polling {
    agents: Vec<Agent>,
    done: watch::Sender<Done>,
    _tasks: JoinSet<()>,
}

impl Polling {
    fn start(fleet: &Fleet) -> Self {
        let done = watch::Sender::default();
        let keys = (0..AGENTS).map(|_| KeyPair::generate().unwrap());
        let agents: Vec<_> = keys.map(|key| fleet.agent(&key)).collect();
        let tasks = agents
            .iter()
            .map(|agent| poll_and_obey(agent.clone(), done.clone()))
            .collect();
        Self {
            agents,
            done,
            _tasks: tasks,
        }
    }

    async fn until(&self, what: &str, reached: impl FnMut(&Done) -> bool) {
        let mut done = self.done.subscribe();
        drop(soon(what, done.wait_for(reached)).await.unwrap());
    }
}

/// Polls for ever, and does what messages say.
async fn poll_and_obey(agent: Agent, done: watch::Sender<Done>) {
    let mut pause = tokio::time::interval(POLL_PERIOD);
    let mut outbox = Vec::new();
    loop {
        pause.tick().await;
        let contact = ContactData {
            messages: std::mem::take(&mut outbox),
            ..ContactData::default()
        };
        let orders = agent.poll(&contact).await.messages;
        if !contact.messages.is_empty() {
            done.send_modify(|done| done.answered += 1);
        }
        for order in orders {
            match order.message_type.as_str() {
                "Answer" => {
                    let data = Some(Any {
                        type_url: "type.googleapis.com/x".to_owned(),
                        value: vec![7; 1_000].into(),
                    });
                    outbox.extend((0..ANSWERS).map(|number| Message {
                        data: data.clone(),
                        ..message("hunt", number)
                    }));
                }
                "Download" => {
                    let (status, content) = agent.fetch(get("/files/hunt/tool")).await;
                    assert_eq!(status, StatusCode::OK);
                    done.send_modify(|done| done.downloads.push(content));
                    outbox.push(message("hunt", DOWNLOADED));
                }
                other => panic!("unexpected {other}"),
            }
            outbox.push(acknowledgement(&order.message_id));
            done.send_modify(|done| done.orders += 1);
        }
    }
}

/// Polls with one key until told to make a new one, then with that.
async fn poll_and_rekey(mut agent: Agent, new: Agent, rekeyed: watch::Sender<BTreeSet<ClientId>>) {
    let mut pause = tokio::time::interval(POLL_PERIOD);
    let mut outbox = Vec::new();
    loop {
        pause.tick().await;
        let contact = ContactData {
            messages: std::mem::take(&mut outbox),
            ..ContactData::default()
        };
        let received = agent.poll(&contact).await.messages;
        if !contact.messages.is_empty() {
            rekeyed.send_modify(|ids| {
                ids.insert(agent.id);
            });
        }
        for request in received {
            assert_eq!(request.message_type, "RekeyRequest");
            agent = new.clone();
            outbox.push(acknowledgement(&request.message_id));
        }
    }
}

async fn b_120_and_122_broadcast_reaches_all_and_their_answers_pass_through_the_backlog(
    backend: Backend,
) {
    let fleet = Fleet::start(backend, PROMPT).await;
    let polling = Polling::start(&fleet);
    fleet.order("Answer").await;
    let answers = AGENTS * usize::try_from(ANSWERS).unwrap();

    // The agents' polls end before the service has taken all they bring.
    polling
        .until("polls with answers", |done| done.answered >= AGENTS)
        .await;
    let (stored, succeeded) = fleet.stored(&polling.agents, 0..ANSWERS).await;
    assert_eq!(stored, answers);
    assert!(succeeded <= PROMPT, "{succeeded}");
    assert!(fleet.hunt.taken.borrow().len() <= PROMPT);

    fleet.hunt.places.add_permits(ALL);
    fleet.hunt.until(answers).await;
    eventually("all results", async || {
        fleet.stored(&polling.agents, 0..ANSWERS).await == (answers, answers)
    })
    .await;

    // B-122.
    for agent in &polling.agents {
        eventually("five contacts", async || {
            fleet.contact_count(agent.id).await >= 5
        })
        .await;
    }
    let taken: usize = fleet.hunt.taken.borrow().values().sum();
    assert!((100..=200).contains(&taken), "{taken}");
    assert_eq!(polling.done.borrow().orders, AGENTS);
    let clients: Vec<_> = polling.agents.iter().map(|agent| agent.id).collect();
    eventually("acknowledgements", async || {
        fleet
            .store
            .get_pending_message_count(&clients)
            .await
            .unwrap()
            == 0
    })
    .await;
    drop(polling);
    fleet.stop().await;
}

async fn b_121_stored_file_is_downloaded_by_all_after_a_second_broadcast(backend: Backend) {
    let fleet = Fleet::start(backend, ALL).await;
    let polling = Polling::start(&fleet);
    fleet.order("Answer").await;
    fleet
        .hunt
        .until(AGENTS * usize::try_from(ANSWERS).unwrap())
        .await;

    let mut content = vec![0; 300_000];
    for part in content.chunks_mut(8) {
        let random = fleet.random.next_u64().to_be_bytes();
        part.copy_from_slice(&random[..part.len()]);
    }
    let mut reader = &content[..];
    let stored = fleet.store.store_file("hunt", "tool", &mut reader);
    stored.await.unwrap();
    fleet.order("Download").await;
    polling
        .until("downloads", |done| done.downloads.len() >= AGENTS)
        .await;
    eventually("all reports", async || {
        let reports = fleet.stored(&polling.agents, DOWNLOADED..DOWNLOADED + 1);
        reports.await == (AGENTS, AGENTS)
    })
    .await;
    let done = polling.done.borrow();
    assert_eq!(done.downloads, vec![Bytes::from(content); AGENTS]);
    // B-122: each broadcast once for each agent.
    assert_eq!(done.orders, 2 * AGENTS);
    drop(done);
    drop(polling);
    fleet.stop().await;
}

async fn b_123_and_p_122_agents_with_one_key_are_one_client_until_it_is_blacklisted(
    backend: Backend,
) {
    let fleet = Fleet::start(backend, ALL).await;
    let old = fleet.agent(&KeyPair::generate().unwrap());
    let rekeyed = watch::Sender::default();
    let mut tasks = JoinSet::new();
    let mut expected = BTreeSet::new();
    for _ in 0..AGENTS {
        let new = fleet.agent(&KeyPair::generate().unwrap());
        expected.insert(new.id);
        tasks.spawn(poll_and_rekey(old.clone(), new, rekeyed.clone()));
    }
    eventually("20 contacts", async || {
        fleet.contact_count(old.id).await >= 20
    })
    .await;
    assert_eq!(fleet.client_ids().await, BTreeSet::from([old.id]));

    let request = BlacklistClientRequest {
        client_id: old.id.to_bytes(),
    };
    let mut admin = fleet.admin().await;
    admin.blacklist_client(request).await.unwrap();
    let mut rekeyed = rekeyed.subscribe();
    let all_rekeyed = rekeyed.wait_for(|ids| ids.len() == AGENTS);
    drop(soon("new keys", all_rekeyed).await.unwrap());
    for id in &expected {
        let data = fleet.store.get_client_data(*id).await.unwrap();
        assert!(!data.blacklisted);
    }
    expected.insert(old.id);
    assert_eq!(fleet.client_ids().await, expected);
    let old = fleet.store.get_client_data(old.id).await.unwrap();
    assert!(old.blacklisted);
    drop(tasks);
    fleet.stop().await;
}

macro_rules! on_every_backend {
    ($($name:ident)*) => {
        mod in_memory {
            $(
                #[tokio::test]
                async fn $name() {
                    Box::pin(super::$name(super::Backend::Memory)).await;
                }
            )*
        }

        mod on_sqlite {
            $(
                #[tokio::test]
                async fn $name() {
                    Box::pin(super::$name(super::Backend::Sqlite)).await;
                }
            )*
        }
    };
}

on_every_backend! {
    b_120_and_122_broadcast_reaches_all_and_their_answers_pass_through_the_backlog
    b_121_stored_file_is_downloaded_by_all_after_a_second_broadcast
    b_123_and_p_122_agents_with_one_key_are_one_client_until_it_is_blacklisted
}
