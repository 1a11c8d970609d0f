//! Liveness, readiness and deep health (protocol specification section 5.4;
//! reliability R13).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleethold_faultfs::{Fault, FaultFs, FaultPlan};
use fleethold_proto::fleetspeak::ContactData;
use fleethold_server::{AgentsConfig, Config, Server};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{ClientId, Clock, ManualClock, MessageStore, Random, Store};
use http::StatusCode;
use http::header::RETRY_AFTER;

use super::{ask, watched};
use crate::agent::{Agent, Authority, post, soon};
use crate::bed::Bed;

#[tokio::test]
async fn p_198_health_port_answers_200_on_any_path_and_method() {
    let bed = Bed::with(Authority::new(), watched).await;
    let addr = bed.server.health_check_addr().unwrap();
    for (method, path) in [("GET", "/"), ("POST", "/some/where"), ("HEAD", "/?x")] {
        let answer = ask(addr, method, path).await;
        assert_eq!(answer, (StatusCode::OK, String::new()), "{path}");
    }
}

#[tokio::test]
async fn both_ports_tell_that_a_server_lives_is_ready_and_what_it_looked_at() {
    let bed = Bed::with(Authority::new(), watched).await;
    for addr in [bed.server.health_check_addr(), bed.server.stats_addr()] {
        let addr = addr.unwrap();
        assert_eq!(ask(addr, "GET", "/livez").await.0, StatusCode::OK);
        assert_eq!(ask(addr, "GET", "/readyz").await.0, StatusCode::OK);
        let (status, report) = ask(addr, "GET", "/healthz").await;
        assert_eq!(status, StatusCode::OK, "{report}");
        for part in [
            "\"healthy\":true",
            "\"store_write\":\"ok\"",
            "\"backlog\":\"ok\"",
            "\"streams\":0",
        ] {
            assert!(report.contains(part), "{part} in {report}");
        }
    }
}

#[tokio::test]
async fn messages_that_nobody_processes_make_a_server_unhealthy_but_not_unready() {
    let bed = Bed::with(Authority::new(), watched).await;
    bed.store.stop_message_processor().await;
    let mut message = bed.message_for(ClientId::new([1; 8]), 1);
    message.destination.as_mut().unwrap().client_id = Bytes::new();
    bed.store.store_messages(&[message], None).await.unwrap();
    bed.clock.advance(Duration::from_secs(60 * 60));
    let addr = bed.server.stats_addr().unwrap();
    let (status, report) = ask(addr, "GET", "/healthz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        report.contains("\"backlog\":\"messages for services"),
        "{report}"
    );
    assert_eq!(ask(addr, "GET", "/readyz").await.0, StatusCode::OK);
}

/// Asks until the answer is `status`: readiness is good for a second.
async fn until(addr: SocketAddr, path: &str, status: StatusCode) -> String {
    let asked = async {
        loop {
            let (answer, text) = ask(addr, "GET", path).await;
            if answer == status {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the expected health", asked).await
}

async fn disk_fails_for_a_while(fault: Fault) {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultFs::register();
    let clock = Arc::new(ManualClock::at(1_700_000_000));
    let random = Arc::new(Random::seeded(1));
    let options = SqliteOptions {
        vfs: Some(disk.name().to_owned()),
        ..SqliteOptions::default()
    };
    let store = SqliteStore::open(
        directory.path().join("fleet.db"),
        options,
        Arc::clone(&clock) as Arc<dyn Clock>,
        Arc::clone(&random),
    )
    .unwrap();
    let authority = Authority::new();
    let mut config = Config {
        agents: Some(AgentsConfig {
            listen: "127.0.0.1:0".to_owned(),
            certificates_pem: authority.certificates_pem.clone(),
            key_pem: authority.key_pem.clone(),
            ..AgentsConfig::default()
        }),
        ..Config::default()
    };
    watched(&mut config);
    let server = Server::start(config, Arc::new(store.clone()), clock, random)
        .await
        .unwrap();
    let stats = server.stats_addr().unwrap();
    let agent = Agent::new(server.agents_addr().unwrap(), &authority);
    agent.poll(&ContactData::default()).await;
    until(stats, "/readyz", StatusCode::OK).await;

    disk.set_plan(FaultPlan::new(fault).lasting());
    let reason = until(stats, "/readyz", StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(
        reason,
        "the store fails to write; the server's log says why\n"
    );
    let health = until(stats, "/healthz", StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(health.contains("\"store_read\":\"ok\""), "{health}");
    assert_eq!(ask(stats, "GET", "/livez").await.0, StatusCode::OK);
    let poll = || post("/message", agent.wrap(&ContactData::default()));
    let refused = agent.request(poll()).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let wait: u32 = refused.headers()[RETRY_AFTER]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(wait > 0);
    drop(refused);

    // No restart is needed.
    disk.clear();
    until(stats, "/readyz", StatusCode::OK).await;
    agent.poll(&ContactData::default()).await;
    server.stop().await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r13_full_disk_makes_a_server_unready_and_its_end_ready_again() {
    Box::pin(disk_fails_for_a_while(Fault::Full)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r13_read_only_disk_makes_a_server_unready_and_its_end_ready_again() {
    Box::pin(disk_fails_for_a_while(Fault::ReadOnly)).await;
}
