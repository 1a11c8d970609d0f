//! What the flood programs measure, shortened: counts instead of times. The
//! full size is in tests/measurements, the results are in docs/limits.md.

#[path = "../../../tests/measurements/load/mod.rs"]
mod load;

use std::time::Duration;

use http::StatusCode;
use load::floods::{Answers, bombs, enrolments, handshakes, slow_connections};
use load::{Installation, Server, poll_times};

fn total(answers: &Answers) -> usize {
    answers.values().sum()
}

/// Asserts that everybody else is served.
async fn others_are_served(server: &Server) {
    let agents: Vec<_> = (0..5).map(|_| server.agent()).collect();
    let polls = poll_times(&agents, Duration::from_millis(500)).await;
    assert!(polls.len() >= 5, "{} polls", polls.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_bombs_are_refused_within_the_bytes_in_flight() {
    let server = Server::start();
    others_are_served(&server).await;
    let before = server.resident_kib();
    let answers = bombs(&server, 20).await;
    assert_eq!(total(&answers), 20);
    let refused = [StatusCode::BAD_REQUEST, StatusCode::SERVICE_UNAVAILABLE];
    for status in answers.keys() {
        let expected = status.is_some_and(|status| refused.contains(&status));
        assert!(expected, "{answers:?}");
    }
    assert!(
        answers.contains_key(&Some(StatusCode::BAD_REQUEST)),
        "{answers:?}"
    );
    // The budget of all agents is 568 MiB; the rest is what the allocator keeps.
    let grown = server.peak_kib().saturating_sub(before);
    assert!(grown < 700 * 1024, "{grown} KiB");
    others_are_served(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_connections_that_trickle_are_closed() {
    let installation = Installation::new();
    let flags = ["--handshake-timeout", "2", "--header-timeout", "2"];
    let server = installation.serve_with(None, &flags);
    let (slow, ()) = tokio::join!(slow_connections(&server, 100), async {
        others_are_served(&server).await;
    });
    let (opened, longest) = slow;
    assert_eq!(opened, 100);
    assert!(longest < Duration::from_secs(60), "{longest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s5_handshakes_beyond_the_rate_are_closed_and_counted() {
    let installation = Installation::new();
    let flags = ["--max-connections-per-second", "20"];
    let server = installation.serve_with(None, &flags);
    let (answered, closed) = handshakes(&server, 500, Duration::from_secs(2)).await;
    // Ten seconds' worth at once, and what two seconds bring; a slow machine takes longer.
    assert!(answered >= 200, "{answered} answered, {closed} closed");
    assert!(closed > 0, "{answered} answered, {closed} closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn s6_new_keys_beyond_the_rate_are_told_to_come_back() {
    let installation = Installation::new();
    let flags = ["--max-enrolments-per-second", "2"];
    let mut server = installation.serve_with(None, &flags);
    let known = server.agent();
    known.poll(&Default::default()).await;
    let answers = enrolments(&server, Duration::from_secs(2), 10).await;
    assert!(total(&answers) > 30, "{answers:?}");
    let refused = answers.get(&Some(StatusCode::SERVICE_UNAVAILABLE));
    assert!(refused.is_some(), "{answers:?}");
    known.poll(&Default::default()).await;
    let enrolled = answers.get(&Some(StatusCode::OK)).copied().unwrap_or(0);
    server.terminate();
    server.end().await;
    let stats = std::process::Command::new(env!("CARGO_BIN_EXE_fleethold"))
        .args(["store", "stats", "--json", "--store", &installation.store()])
        .output()
        .unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).unwrap();
    assert_eq!(
        stats["tables"]["clients"],
        enrolled + 1,
        "only who was let in"
    );
}
