//! What the load programs measure, shortened: counts instead of times. The
//! full size is in tests/measurements, the results are in docs/limits.md.

#[path = "../../../tests/measurements/load/mod.rs"]
mod load;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Version;
use load::{Installation, Server, announce, many, open_streams, poll_times, send_without_pause};

#[tokio::test(flavor = "multi_thread")]
async fn p_232_idle_streams_cost_little_memory() {
    for (version, deflate) in [
        (Version::HTTP_11, false),
        (Version::HTTP_11, true),
        (Version::HTTP_2, false),
        (Version::HTTP_2, true),
    ] {
        let server = Server::start();
        drop(open_streams(&server, 50, version, deflate).await);
        let before = server.resident_kib();
        let streams = open_streams(&server, 200, version, deflate).await;
        let grown = server.resident_kib().saturating_sub(before);
        // Few streams: what the allocator rounds up counts for more of each.
        assert!(
            grown < 200 * 60,
            "{grown} KiB over {version:?}, deflate: {deflate}"
        );
        drop(streams);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s2_and_p_234_announced_bytes_cost_no_memory_and_delay_nobody() {
    let server = Server::start();
    let agents: Vec<_> = (0..10).map(|_| server.agent()).collect();
    poll_times(&agents, Duration::from_secs(1)).await;
    let before = server.resident_kib();
    let number = AtomicUsize::new(0);
    let open = many(500, || {
        let number = number.fetch_add(1, Ordering::Relaxed);
        announce(&server, number.is_multiple_of(2))
    })
    .await;
    // All of them are answered.
    let polls = poll_times(&agents, Duration::from_secs(2)).await;
    assert!(polls.len() >= 20, "{} polls", polls.len());
    let grown = server.resident_kib().saturating_sub(before);
    assert!(grown < 500 * 40, "{grown} KiB");
    assert!(server.open_files() > open.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn p_233_and_s20_agent_that_sends_without_pause_is_slowed_down_alone() {
    let server = Server::start();
    let agents: Vec<_> = (0..10).map(|_| server.agent()).collect();
    let (acknowledged, polls) = tokio::join!(
        send_without_pause(&server, 25),
        poll_times(&agents, Duration::from_secs(2)),
    );
    // Its reserve of 2,000 messages is used up by then, and nothing is lost.
    assert_eq!(acknowledged, 25);
    assert!(polls.len() >= 20, "{} polls", polls.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn p_080_many_streams_are_drained_before_the_server_ends() {
    let mut server = Server::start();
    let streams = open_streams(&server, 100, Version::HTTP_11, false).await;
    let waiting: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            tokio::spawn(async move {
                while let Some(frame) = stream.frame().await {
                    if frame.done_sending {
                        return true;
                    }
                }
                false
            })
        })
        .collect();
    server.terminate();
    for stream in waiting {
        assert!(stream.await.unwrap(), "a stream ended without a word");
    }
    assert_eq!(server.end().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_behind_socket_activation_refuses_no_agent() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let installation = Installation::new();
    let mut server = installation.serve(Some(&socket));
    assert_eq!(server.addr, socket.local_addr().unwrap());

    let over = Arc::new(AtomicBool::new(false));
    let polled = Arc::new(AtomicUsize::new(0));
    let agents: Vec<_> = (0..8)
        .map(|_| {
            let agent = server.agent();
            let (over, polled) = (Arc::clone(&over), Arc::clone(&polled));
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    // A connection for each; panics if it or the poll fails.
                    agent.poll(&Default::default()).await;
                    polled.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for _ in 0..3 {
        let before = polled.load(Ordering::Relaxed);
        while polled.load(Ordering::Relaxed) < before + 40 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(agents.iter().all(|agent| !agent.is_finished()));
        }
        server.terminate();
        assert_eq!(server.end().await.code(), Some(0));
        server = installation.serve(Some(&socket));
    }
    over.store(true, Ordering::Relaxed);
    for agent in agents {
        agent.await.expect("no connection and no poll failed");
    }
}
