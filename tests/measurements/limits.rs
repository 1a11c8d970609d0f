//! How the agents' side of a server bears many agents, and abuse.
//!
//! Run it with `scripts/measure-limits`. The server runs in a process of its
//! own, with its usual limits and a SQLite file; its agents are simulated over
//! loopback, on the same machine. The results are in docs/limits.md.

mod load;

use std::time::{Duration, Instant};

use http::Version;
use load::{
    Server, allow_connections, announce, many, open_streams, p99, poll_times, send_without_pause,
};

const STREAMS: usize = 1_000;
const ANNOUNCERS: usize = 5_000;
const OTHERS: usize = 100;

fn main() {
    allow_connections(6_000);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let runs = |name: &str| {
        let names: Vec<_> = wanted
            .iter()
            .filter(|name| !name.starts_with('-'))
            .collect();
        names.is_empty() || names.iter().any(|wanted| *wanted == name)
    };
    runtime.block_on(async {
        if runs("streams") {
            Box::pin(idle_streams()).await;
        }
        if runs("announcers") {
            Box::pin(announcers()).await;
        }
        if runs("noisy") {
            Box::pin(noisy_agent()).await;
        }
        if runs("stop") {
            Box::pin(stop()).await;
        }
    });
}

#[expect(clippy::print_stdout, reason = "the figures are the result")]
fn report(text: &str) {
    println!("{text}");
}

/// What an idle stream costs.
async fn idle_streams() {
    for (name, version, deflate) in [
        ("HTTP/1.1", Version::HTTP_11, false),
        ("HTTP/1.1, deflate", Version::HTTP_11, true),
        ("HTTP/2", Version::HTTP_2, false),
        ("HTTP/2, deflate", Version::HTTP_2, true),
    ] {
        let server = Server::start();
        // The first ones make the server start its threads and caches.
        drop(open_streams(&server, 50, version, deflate).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = server.resident_kib();
        let streams = open_streams(&server, STREAMS, version, deflate).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let grown = server.resident_kib().saturating_sub(before);
        report(&format!(
            "{STREAMS} idle streams over {name}: {:.1} KiB each (wanted: at most 40)",
            grown as f64 / STREAMS as f64
        ));
        drop(streams);
    }
}

/// What many large announcements cost.
async fn announcers() {
    let server = Server::start();
    let agents: Vec<_> = (0..OTHERS).map(|_| server.agent()).collect();
    poll_times(&agents, Duration::from_secs(2)).await;
    let normal = poll_times(&agents, Duration::from_secs(15)).await;
    let before = server.resident_kib();
    let number = std::sync::atomic::AtomicUsize::new(0);
    let started = Instant::now();
    let open = many(ANNOUNCERS, || {
        let number = number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        announce(&server, number.is_multiple_of(2))
    })
    .await;
    let took = started.elapsed();
    let with = poll_times(&agents, Duration::from_secs(15)).await;
    let grown = server.resident_kib().saturating_sub(before);
    let left = server.open_files();
    report(&format!(
        "{} connections that announce 20 MiB and send 8 bytes (opened in {:.0} s, {left} files open afterwards): {:.1} MB more (wanted: less than 100)",
        open.len(),
        took.as_secs_f64(),
        grown as f64 * 1024.0 / 1e6,
    ));
    report_times("  polls of others meanwhile", &normal, &with, 2.0);
}

/// What one agent that sends without pause does to others.
async fn noisy_agent() {
    let server = Server::start();
    let agents: Vec<_> = (0..OTHERS).map(|_| server.agent()).collect();
    poll_times(&agents, Duration::from_secs(2)).await;
    let normal = poll_times(&agents, Duration::from_secs(20)).await;
    let sending = async {
        tokio::select! {
            _ = send_without_pause(&server, usize::MAX) => panic!("it does not end"),
            () = tokio::time::sleep(Duration::from_secs(60)) => panic!("too slow"),
        }
    };
    let with = tokio::select! {
        times = async {
            // Its reserve is part of what others have to bear.
            poll_times(&agents, Duration::from_secs(20)).await
        } => times,
        () = sending => unreachable!(),
    };
    report(&format!(
        "one agent sends as fast as it can, {OTHERS} others poll ten times a second:"
    ));
    report_times("  polls of others", &normal, &with, 1.5);
}

fn report_times(what: &str, normal: &[Duration], with: &[Duration], wanted: f64) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let median = |times: &[Duration]| ms(times[times.len() / 2]);
    report(&format!(
        "{what}: p99 {:.1} ms, normally {:.1} ms, {:.2} times (wanted: less than {wanted}); median {:.1} ms, normally {:.1} ms",
        ms(p99(with)),
        ms(p99(normal)),
        ms(p99(with)) / ms(p99(normal)),
        median(with),
        median(normal),
    ));
}

/// How long a stop takes.
async fn stop() {
    let mut server = Server::start();
    let streams = open_streams(&server, STREAMS, Version::HTTP_11, false).await;
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
    let started = Instant::now();
    server.terminate();
    let mut drained = 0;
    for stream in waiting {
        drained += usize::from(stream.await.unwrap());
    }
    let told = started.elapsed();
    let status = server.end().await;
    report(&format!(
        "SIGTERM with {STREAMS} streams: {drained} drained in {:.1} s, {status} after {:.1} s (wanted: all, exit status 0, within 10 s)",
        told.as_secs_f64(),
        started.elapsed().as_secs_f64(),
    ));
}
