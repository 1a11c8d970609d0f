//! Two servers, each at its own node of a MariaDB Galera cluster, of which one
//! node dies and another is cut off while operators and agents go on.
#![expect(
    clippy::print_stdout,
    reason = "the measured figures are worth reading"
)]

#[path = "../../server/tests/agent/mod.rs"]
mod agent;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent::{Agent, Authority, acknowledgement, message, post};
use fleethold_proto::fleetspeak::components::{AdminConfig, Config, HttpsConfig};
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_proto::fleetspeak::{Address, ContactData, Message};
use fleethold_proto::{pack, text};
use fleethold_store::ClientId;
use fleethold_testdb::galera;
use http::{StatusCode, Version};
use http_body_util::BodyExt;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts};
use prost::Message as _;
use support::{Serving, command};
use tokio::task::block_in_place;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};

const LIMIT: Duration = Duration::from_secs(60);
/// How long after the rest of the cluster a server may need to work again.
const RECOVERY: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    /// Inserts that were answered with success.
    inserted: AtomicU64,
    received: AtomicU64,
}

impl Progress {
    /// Waits until messages go through both servers.
    async fn goes_on(&self) {
        let counts = || [&self.inserted, &self.received].map(|count| count.load(Ordering::SeqCst));
        let before = counts();
        let began = Instant::now();
        while counts()
            .iter()
            .zip(before)
            .any(|(now, before)| now - before < 50)
        {
            assert!(began.elapsed() < LIMIT, "{before:?}, now {:?}", counts());
            sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn operator(address: &str) -> AdminClient<Channel> {
    let endpoint = Endpoint::try_from(format!("http://{address}")).unwrap();
    AdminClient::new(endpoint.timeout(LIMIT).connect().await.unwrap())
}

fn to_agent(client: ClientId, number: u64) -> Message {
    let mut id = [9; 32];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id[24..].copy_from_slice(&number.to_be_bytes());
    Message {
        message_id: id.to_vec().into(),
        source: Some(Address {
            service_name: "hello".into(),
            ..Address::default()
        }),
        destination: Some(Address {
            client_id: client.to_bytes(),
            service_name: "hello".into(),
        }),
        data: Some(pack(&Address::default())),
        ..message("hello", 1)
    }
}

/// Inserts messages until it is told to stop; returns those that were answered
/// with success.
async fn insert(
    mut admin: AdminClient<Channel>,
    clients: Vec<ClientId>,
    first: u64,
    progress: Arc<Progress>,
) -> Vec<Vec<u8>> {
    let mut inserted = Vec::new();
    for number in first..first + 100_000 {
        if progress.stop.load(Ordering::SeqCst) {
            break;
        }
        let client = clients[usize::try_from(number).unwrap() % clients.len()];
        let message = to_agent(client, number);
        let id = message.message_id.to_vec();
        if admin.insert_message(message).await.is_ok() {
            progress.inserted.fetch_add(1, Ordering::SeqCst);
            inserted.push(id);
        }
        sleep(Duration::from_millis(10)).await;
    }
    inserted
}

/// Polls at the servers in turn until it is told to stop and nothing is left;
/// returns how often each message came.
async fn poll(mut ways: Vec<Agent>, progress: Arc<Progress>) -> BTreeMap<Vec<u8>, u32> {
    let mut received = BTreeMap::new();
    let mut to_acknowledge = Vec::new();
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < 5 * LIMIT, "an agent comes to an end");
        let is_last = progress.stop.load(Ordering::SeqCst);
        ways.rotate_left(1);
        let contact = ContactData {
            messages: to_acknowledge.clone(),
            allowed_messages: [("hello".to_owned(), 50)].into(),
            ..ContactData::default()
        };
        let Some(answer) = try_poll(&ways[0], &contact).await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        to_acknowledge.clear();
        for message in &answer.messages {
            progress.received.fetch_add(1, Ordering::SeqCst);
            *received.entry(message.message_id.to_vec()).or_default() += 1;
            to_acknowledge.push(acknowledgement(&message.message_id));
        }
        if is_last && answer.messages.is_empty() {
            return received;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn try_poll(agent: &Agent, contact: &ContactData) -> Option<ContactData> {
    let answer = async {
        let mut connection = agent.try_connect(Version::HTTP_11).await.ok()?;
        let request = post("/message", agent.wrap(contact));
        let response = connection.send(request).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let body = response.into_body().collect().await.ok()?;
        Some(ContactData::decode(body.to_bytes()).expect("contact data"))
    };
    timeout(LIMIT, answer).await.ok().flatten()
}

/// Waits until a server stores messages again.
async fn recovery(mut admin: AdminClient<Channel>, client: ClientId, first: u64) -> Duration {
    let began = Instant::now();
    for number in first.. {
        match admin.insert_message(to_agent(client, number)).await {
            Ok(_) => break,
            Err(status) => assert!(began.elapsed() < LIMIT, "{number}: {status:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

/// Waits until a node belongs to a cluster of so many nodes and takes statements.
async fn joined(node: &str, size: &str) -> Duration {
    let began = Instant::now();
    // A node that is joining may refuse everything.
    while !matches!(is_member(node, size).await, Ok(true)) {
        assert!(began.elapsed() < LIMIT, "{node}");
        sleep(Duration::from_millis(50)).await;
    }
    began.elapsed()
}

async fn is_member(node: &str, size: &str) -> mysql_async::Result<bool> {
    let mut connection = Conn::new(Opts::from_url(&format!("{node}/"))?).await?;
    let mut is = true;
    for (name, value) in [
        ("wsrep_cluster_status", "Primary"),
        ("wsrep_cluster_size", size),
        ("wsrep_ready", "ON"),
        ("wsrep_local_state_comment", "Synced"),
    ] {
        let show = format!("SHOW GLOBAL STATUS LIKE '{name}'");
        let row: Option<(String, String)> = connection.query_first(show).await?;
        is &= row.is_some_and(|(_, found)| found == value);
    }
    connection.disconnect().await?;
    Ok(is)
}

async fn run(node: &str, sql: &str) {
    let opts = Opts::from_url(&format!("{node}/")).unwrap();
    let mut connection = Conn::new(opts).await.unwrap();
    connection.query_drop(sql).await.unwrap();
    connection.disconnect().await.unwrap();
}

async fn isolate(node: &str, is_cut: u8) {
    let set = format!("SET GLOBAL wsrep_provider_options = 'gmcast.isolate={is_cut}'");
    run(node, &set).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_lose_nothing_and_repeat_nothing_when_nodes_die_and_are_cut_off() {
    let mut cluster = block_in_place(|| galera::start(3)).expect("a cluster that starts");
    let nodes = cluster.urls();
    let [_, second, third] = &nodes[..] else {
        panic!("three nodes");
    };
    // They take connections before they take statements.
    for node in &nodes {
        joined(node, "3").await;
    }
    run(third, "CREATE DATABASE fleet CHARACTER SET utf8mb4").await;
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let serve = |name: &str, own: usize| {
        let config = Config {
            https_config: Some(HttpsConfig {
                listen_address: "127.0.0.1:0".to_owned(),
                certificates: authority.certificates_pem.clone(),
                key: authority.key_pem.clone(),
                ..HttpsConfig::default()
            }),
            admin_config: Some(AdminConfig {
                listen_address: "127.0.0.1:0".to_owned(),
            }),
            ..Config::default()
        };
        let components = dir.path().join(format!("{name}.config"));
        fs::write(&components, text::print(&config)).unwrap();
        let services = dir.path().join("services.config");
        fs::write(&services, "").unwrap();
        let [own, other] = [own, 2].map(|node| cluster.nodes[node].port());
        let store = format!("mysql://fleethold:fleethold@127.0.0.1:{own},127.0.0.1:{other}/fleet");
        let mut command = command();
        command.args(["serve", "--store", &store]);
        command.arg("--components-config").arg(components);
        command.arg("--services-config").arg(services);
        block_in_place(|| Serving::spawn(&mut command))
    };
    let servers = [serve("one", 0), serve("other", 1)];
    for server in &servers {
        server.drain();
    }
    let [one, other] = [
        operator(servers[0].admin()).await,
        operator(servers[1].admin()).await,
    ];
    let agents: Vec<Vec<Agent>> = (0..4)
        .map(|_| {
            let key = rcgen::KeyPair::generate().unwrap();
            let ways = servers.iter();
            ways.map(|server| Agent::with_key(server.agents().parse().unwrap(), &authority, &key))
                .collect()
        })
        .collect();
    let clients: Vec<_> = agents.iter().map(|ways| ways[0].id).collect();
    for ways in &agents {
        ways[0].poll(&ContactData::default()).await;
    }
    let progress = Arc::new(Progress::default());
    let polling: Vec<_> = agents
        .iter()
        .map(|ways| tokio::spawn(poll(ways.clone(), Arc::clone(&progress))))
        .collect();
    let inserting = [(&one, 0), (&other, 1_000_000)].map(|(admin, number)| {
        tokio::spawn(insert(
            admin.clone(),
            clients.clone(),
            number,
            Arc::clone(&progress),
        ))
    });
    progress.goes_on().await;

    block_in_place(|| cluster.nodes[0].kill()).unwrap();
    let after_kill = tokio::join!(
        joined(third, "2"),
        recovery(one.clone(), clients[0], 2_000_000),
        recovery(other.clone(), clients[0], 3_000_000),
    );
    println!("a node was killed; cluster, its server, the other: {after_kill:?}");
    progress.goes_on().await;
    block_in_place(|| cluster.nodes[0].start()).unwrap();
    for node in &nodes {
        joined(node, "3").await;
    }
    progress.goes_on().await;
    isolate(second, 1).await;
    let after_cut = tokio::join!(
        joined(third, "2"),
        recovery(one.clone(), clients[0], 4_000_000),
        recovery(other.clone(), clients[0], 5_000_000),
    );
    println!("a node was cut off; cluster, the other server, its server: {after_cut:?}");
    progress.goes_on().await;
    isolate(second, 0).await;
    joined(second, "3").await;
    progress.goes_on().await;
    progress.stop.store(true, Ordering::SeqCst);

    let mut inserted = Vec::new();
    for inserting in inserting {
        inserted.extend(inserting.await.unwrap());
    }
    let mut received = BTreeMap::new();
    for polling in polling {
        received.extend(polling.await.unwrap());
    }
    // An answer that an agent did not get: its messages come again after the lease.
    let mut connection = Conn::new(Opts::from_url(&format!("{third}/fleet")).unwrap())
        .await
        .unwrap();
    let wait = "SET SESSION wsrep_sync_wait = 1";
    connection.query_drop(wait).await.unwrap();
    let handed_out =
        "SELECT message_id FROM pending_messages WHERE NOT for_server AND retry_count > 0";
    let leased: Vec<Vec<u8>> = connection.query(handed_out).await.unwrap();
    connection.disconnect().await.unwrap();
    println!(
        "{} messages acknowledged, {} received, {} leased",
        inserted.len(),
        received.len(),
        leased.len()
    );
    let lost: Vec<_> = inserted
        .iter()
        .filter(|id| !received.contains_key(*id) && !leased.contains(id))
        .collect();
    assert!(
        lost.is_empty(),
        "{} of {} are lost",
        lost.len(),
        inserted.len()
    );
    let twice = received.values().filter(|times| **times > 1).count();
    assert_eq!(twice, 0, "handed out again within the lease");
    for (cluster, servers) in [
        (after_kill.0, [after_kill.1, after_kill.2]),
        (after_cut.0, [after_cut.1, after_cut.2]),
    ] {
        for server in servers {
            assert!(server < cluster + RECOVERY, "{server:?}, {cluster:?}");
        }
    }
    for server in servers {
        block_in_place(|| server.stop());
    }
}
