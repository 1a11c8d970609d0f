//! A process for operators and one for agents on one database, as GRR runs
//! them (P-214).

#[path = "../../server/tests/agent/mod.rs"]
mod agent;
#[path = "support/database.rs"]
mod database;
mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use agent::{Agent, Authority, StreamOptions, acknowledgement, message};
use fleethold_proto::fleetspeak::components::{AdminConfig, Config, HttpsConfig};
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_proto::fleetspeak::{Address, ContactData, Message};
use fleethold_proto::{pack, text};
use fleethold_testdb::postgres;
use support::{Serving, command};

/// How many messages go from one process to an agent of the other.
const MESSAGES: u32 = 20;

/// Starts a process with this components file.
fn serve(dir: &Path, name: &str, components: &Config, more: &[&str]) -> Serving {
    let file = dir.join(format!("{name}.config"));
    fs::write(&file, text::print(components)).unwrap();
    let services = dir.join("services.config");
    fs::write(&services, "").unwrap();
    let mut command = command();
    command.arg("serve").args(more);
    command.arg("--components-config").arg(file);
    command.arg("--services-config").arg(services);
    Serving::spawn(&mut command)
}

/// Sends messages through a process for operators to an agent that is connected
/// to one for agents; returns how long each took, the shortest first.
fn send_through(store: Config, more: &[&str]) -> Vec<Duration> {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let notifications = free.local_addr().unwrap();
    drop(free);
    let for_agents = Config {
        https_config: Some(HttpsConfig {
            listen_address: "127.0.0.1:0".to_owned(),
            certificates: authority.certificates_pem.clone(),
            key: authority.key_pem.clone(),
            ..HttpsConfig::default()
        }),
        notification_listen_address: notifications.to_string(),
        notification_public_address: notifications.to_string(),
        ..store.clone()
    };
    let for_operators = Config {
        admin_config: Some(AdminConfig {
            listen_address: "127.0.0.1:0".to_owned(),
        }),
        notification_use_http_notifier: true,
        ..store
    };
    let frontend = serve(dir.path(), "frontend", &for_agents, more);
    let admin = serve(dir.path(), "admin", &for_operators, more);
    assert_eq!(frontend.says("admin"), None, "no operators here");
    assert_eq!(admin.says("agents"), None, "no agents here");
    let times = exchange(frontend.agents(), admin.admin(), &authority);
    admin.stop();
    frontend.stop();
    times
}

#[tokio::main(flavor = "current_thread")]
async fn exchange(agents: &str, admin: &str, authority: &Authority) -> Vec<Duration> {
    let agent = Agent::new(agents.parse().unwrap(), authority);
    let mut stream = agent.stream(StreamOptions::default()).await;
    stream.send_contact(&ContactData::default());
    assert_eq!(stream.acks(1).await, [1]);
    let mut admin = AdminClient::connect(format!("http://{admin}"))
        .await
        .unwrap();
    let mut times = Vec::new();
    for number in 0..MESSAGES {
        let to_agent = Message {
            source: Some(Address {
                service_name: "hello".into(),
                ..Address::default()
            }),
            destination: Some(Address {
                client_id: agent.id.to_bytes(),
                service_name: "hello".into(),
            }),
            data: Some(pack(&Address::default())),
            ..message("hello", number)
        };
        let started = Instant::now();
        admin.insert_message(to_agent).await.unwrap();
        // Without being told, the stream would look after half a minute or more.
        let frame = stream.frame().await.expect("the stream goes on");
        times.push(started.elapsed());
        assert_eq!(frame.messages.len(), 1, "{frame:?}");
        let id = &frame.messages[0].message_id;
        stream.send_contact(&ContactData {
            messages: vec![acknowledgement(id)],
            ..ContactData::default()
        });
        stream.acks(1).await;
    }
    times.sort_unstable();
    times
}

#[expect(clippy::print_stdout, reason = "the figures are worth reading")]
fn report(database: &str, times: &[Duration]) {
    println!(
        "from one process to an agent of the other, {database}: median {:?}, longest {:?}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
}

#[test]
fn p_214_processes_for_operators_and_for_agents_share_a_mariadb_database() {
    let database = database::database("split");
    let store = Config {
        mysql_data_source_name: database.dsn.clone(),
        ..Config::default()
    };
    report("MariaDB", &send_through(store, &[]));
}

#[test]
fn p_214_processes_for_operators_and_for_agents_share_a_postgresql_database() {
    let server = postgres::private(&[]).expect("PostgreSQL is installed");
    let url = format!("{}/postgres", postgres::url(server.port()));
    report(
        "PostgreSQL",
        &send_through(Config::default(), &["--store", &url]),
    );
}
