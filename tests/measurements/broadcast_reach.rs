//! How long a broadcast takes to all of 10,000 agents on open streams, and
//! whether each gets it once and a limited one reaches exactly its limit.
//!
//! Run it with `scripts/measure-broadcast`. The server runs in this process
//! with the SQLite store; the agents run in another, because each stream needs
//! a file at both ends. Times are from the call of the admin interface.

#[path = "../../crates/server/tests/agent/mod.rs"]
mod agent;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::{Authority, Fleet};
use bytes::Bytes;
use fleethold_proto::fleethold::admin::v1::broadcasts_client::BroadcastsClient;
use fleethold_proto::fleethold::admin::v1::{BroadcastProgress, GetBroadcastProgressRequest};
use fleethold_proto::fleetspeak::Address;
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_proto::fleetspeak::server::{Broadcast, CreateBroadcastRequest};
use fleethold_server::{AdminConfig, AgentsConfig, Config, Limits, Server};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{BROADCAST_UNLIMITED, Clock, Random, Store, SystemClock};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

const AGENTS: usize = 10_000;
const LIMIT: u64 = 3_000;

/// All agents must have a broadcast after this time.
const GOAL: Duration = Duration::from_secs(15);

/// The longest anything may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// Longer than a server takes to wake all agents.
const QUIET: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    match &arguments[1..] {
        [word, server, root] if word == "agents" => {
            agents(server.parse().expect("an address"), root).await;
        }
        _ => measure().await,
    }
}

/// Opens the streams, then answers lines with lines.
#[expect(clippy::print_stdout, reason = "speaks to the measuring process")]
async fn agents(server: SocketAddr, root: &str) {
    let root = std::fs::read(root).expect("the certificate");
    let authority = Authority::trusted(root.into());
    let fleet = Fleet::open(server, &authority, AGENTS).await;
    println!("open");
    while let Some(line) = next_request().await {
        let start = Instant::now();
        let (message_type, count) = line.split_once(' ').expect("two words");
        fleet
            .wait_for(message_type, count.parse().expect("a number"))
            .await;
        println!("complete");
        // What comes twice, or over the limit, comes until then.
        tokio::time::sleep(QUIET).await;
        let arrivals = fleet.arrivals(message_type);
        let agents: BTreeSet<_> = arrivals.iter().map(|(agent, _)| agent).collect();
        let time = |part: usize| {
            let index = (arrivals.len() * part / 100).min(arrivals.len() - 1);
            arrivals[index].1.duration_since(start).as_millis()
        };
        println!(
            "{} {} {} {} {} {}",
            arrivals.len(),
            agents.len(),
            fleet.ended(),
            time(50),
            time(99),
            time(100),
        );
        std::io::stdout().flush().expect("an open pipe");
    }
}

async fn next_request() -> Option<String> {
    let read = tokio::task::spawn_blocking(|| std::io::stdin().lines().next());
    let line = read.await.expect("no panic")?;
    Some(line.expect("a line"))
}

/// The process of the agents.
struct Agents {
    process: Child,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Agents {
    fn start(server: SocketAddr, root: &std::path::Path) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut process = Command::new(program)
            .args(["agents", &server.to_string()])
            .arg(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a process");
        let answers = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        Self {
            requests: process.stdin.take().expect("a pipe"),
            process,
            answers,
        }
    }

    async fn answer(&mut self) -> String {
        let line = timeout(PATIENCE, self.answers.next_line()).await;
        let line = line.expect("an answer in time").expect("an answer");
        line.expect("the agents' process has ended")
    }
}

struct Bed {
    agents: Agents,
    channel: Channel,
}

async fn measure() {
    let directory = tempfile::tempdir().expect("a directory");
    let random = Arc::new(Random::from_os());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(Arc::clone(&random)));
    let store = SqliteStore::open(
        directory.path().join("fleet.db"),
        SqliteOptions::default(),
        Arc::clone(&clock),
        Arc::clone(&random),
    );
    let store = Arc::new(store.expect("a store"));
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
        // All are new and all come at once.
        limits: Limits {
            connections_per_second: 10_000,
            enrolments_per_second: 10_000,
            ..Limits::for_clients(10_000)
        },
        ..Config::default()
    };
    let any_store: Arc<dyn Store> = Arc::<SqliteStore>::clone(&store);
    let server = Server::start(config, any_store, clock, random)
        .await
        .expect("a server");
    let root = directory.path().join("root.der");
    std::fs::write(&root, authority.root()).expect("a file");

    let start = Instant::now();
    let mut agents = Agents::start(server.agents_addr().expect("an address"), &root);
    assert_eq!(agents.answer().await, "open");
    report(&format!(
        "{AGENTS} agents opened their streams in {:.1} s",
        start.elapsed().as_secs_f64()
    ));
    let admin = server.admin_addr().expect("an address");
    let channel = Endpoint::from_shared(format!("http://{admin}")).expect("an address");
    let channel = channel.connect().await.expect("the admin interface");
    let mut bed = Bed { agents, channel };

    bed.broadcast(1, BROADCAST_UNLIMITED, AGENTS).await;
    let limit = usize::try_from(LIMIT).expect("small");
    bed.broadcast(2, LIMIT, limit).await;
    bed.agents.process.kill().await.expect("ended");
    server.stop().await;
    store.close().await.expect("closed");
}

impl Bed {
    /// Sends a broadcast, waits until all have it, and checks what they have.
    async fn broadcast(&mut self, number: u8, limit: u64, expected: usize) {
        let request = CreateBroadcastRequest {
            broadcast: Some(Broadcast {
                broadcast_id: id(number),
                source: Some(Address {
                    service_name: "hello".to_owned(),
                    ..Address::default()
                }),
                message_type: number.to_string(),
                ..Broadcast::default()
            }),
            limit,
        };
        let line = format!("{number} {expected}\n");
        self.agents
            .requests
            .write_all(line.as_bytes())
            .await
            .expect("a line");
        let start = Instant::now();
        let mut admin = AdminClient::new(self.channel.clone());
        admin.create_broadcast(request).await.expect("a broadcast");
        assert_eq!(self.agents.answer().await, "complete");
        let elapsed = start.elapsed();

        let acknowledged = self.acknowledged(number, expected as u64);
        timeout(PATIENCE, acknowledged).await.expect("in time");
        let all_acknowledged = start.elapsed();
        let answer = self.agents.answer().await;
        let numbers: Vec<u64> = answer
            .split(' ')
            .map(|number| number.parse().expect("a number"))
            .collect();
        let [messages, agents, ended, median, most, last] = numbers[..] else {
            panic!("{answer}");
        };
        report(&format!(
            "broadcast {} reached {agents} of {AGENTS} streaming agents: half after {median} ms, \
             99 % after {most} ms, all after {last} ms; all acknowledged after {} ms; \
             {messages} messages, {ended} streams ended",
            match limit {
                BROADCAST_UNLIMITED => "without limit".to_owned(),
                limit => format!("with limit {limit}"),
            },
            all_acknowledged.as_millis(),
        ));
        let expected = expected as u64;
        assert_eq!((messages, agents, ended), (expected, expected, 0));
        assert_eq!(self.progress(number).await.sent, expected);
        assert!(elapsed < GOAL, "it took {elapsed:?}");
    }

    /// Returns when so many agents have acknowledged a broadcast.
    async fn acknowledged(&self, number: u8, count: u64) {
        while self.progress(number).await.acknowledged < count {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn progress(&self, number: u8) -> BroadcastProgress {
        let request = GetBroadcastProgressRequest {
            broadcast_id: id(number),
        };
        let mut broadcasts = BroadcastsClient::new(self.channel.clone());
        let answer = broadcasts.get_broadcast_progress(request).await;
        answer.expect("an answer").into_inner()
    }
}

fn id(number: u8) -> Bytes {
    Bytes::copy_from_slice(&[number; 8])
}

#[expect(clippy::print_stdout, reason = "the figures are the result")]
fn report(text: &str) {
    println!("{text}");
}
