//! Two servers on one MariaDB, each with a store of its own.

use std::time::Instant;

use fleethold_mysql::{DataSource, MysqlOptions, MysqlStore};
use fleethold_store::SystemClock;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder};

use super::*;

/// Makes an empty database and returns its URL.
async fn database(server: &str) -> String {
    let name = format!("fleethold_servers_{}", std::process::id());
    let opts = Opts::from_url(&format!("{server}/")).unwrap();
    let opts = OptsBuilder::from_opts(opts).prefer_socket(false);
    let mut connection = Conn::new(opts).await.unwrap();
    for statement in ["DROP DATABASE IF EXISTS", "CREATE DATABASE"] {
        let statement = format!("{statement} {name}");
        connection.query_drop(statement).await.unwrap();
    }
    connection.disconnect().await.unwrap();
    format!("{server}/{name}")
}

async fn server(url: &str, change: impl FnOnce(&mut Config)) -> (Server, Arc<MysqlStore>) {
    let random = Arc::new(Random::from_os());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(Arc::clone(&random)));
    let source: DataSource = url.parse().unwrap();
    let options = MysqlOptions::default();
    let store = MysqlStore::open(&source, options, Arc::clone(&clock), Arc::clone(&random));
    let store = Arc::new(Box::pin(store).await.unwrap());
    let mut config = Config {
        stream_look: Duration::ZERO,
        stats_listen: Some(ANY_PORT.to_owned()),
        stop_limit: Duration::from_secs(1),
        ..Config::default()
    };
    change(&mut config);
    let any_store = Arc::<MysqlStore>::clone(&store);
    let server = Server::start(config, any_store, clock, random).await;
    (server.unwrap(), store)
}

#[tokio::test(flavor = "multi_thread")]
async fn p_214_admin_only_and_frontend_only_servers_work_together_on_mariadb() {
    const MESSAGES: u32 = 100;
    let mariadb = tokio::task::spawn_blocking(fleethold_testdb::mariadb::shared);
    let mariadb = mariadb.await.unwrap().expect("a MariaDB server");
    let url = database(&mariadb.url).await;
    let fleet = Installation::new();
    let (frontend, frontend_store) = server(&url, |config| {
        config.agents = Some(AgentsConfig {
            listen: ANY_PORT.to_owned(),
            certificates_pem: fleet.authority.certificates_pem.clone(),
            key_pem: fleet.authority.key_pem.clone(),
            ..AgentsConfig::default()
        });
        config.notifications.listen = Some(ANY_PORT.to_owned());
        config.notifications.secret = Some(secret("known to both servers"));
    })
    .await;
    let (admin_only, admin_store) = server(&url, |config| {
        config.admin = Some(AdminConfig {
            listen: ANY_PORT.to_owned(),
        });
        config.notifications.secret = Some(secret("known to both servers"));
    })
    .await;
    let (agent, mut stream) = fleet.stream(&frontend).await;
    let mut admin = admin(&admin_only).await;
    let mut times = Vec::new();
    for number in 0..MESSAGES {
        let message = fleet.message(Some(agent.id), "hello", number);
        let started = Instant::now();
        admin.insert_message(message).await.unwrap();
        assert_eq!(next_types(&mut stream).await, [number.to_string()]);
        times.push(started.elapsed());
    }
    times.sort_unstable();
    report(&times);
    drop(stream);
    for (server, store) in [(admin_only, admin_store), (frontend, frontend_store)] {
        server.stop().await;
        store.close().await.unwrap();
    }
}

/// Says how long it took from the call to the agent; nothing is asserted.
#[expect(clippy::print_stdout, reason = "for docs/operations.md")]
fn report(sorted: &[Duration]) {
    let at = |percent: usize| sorted[(sorted.len() - 1) * percent / 100];
    println!(
        "insert at one server, agent at the other: median {:?}, p95 {:?}, longest {:?}",
        at(50),
        at(95),
        at(100)
    );
}
