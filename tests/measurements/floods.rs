//! How a server bears floods: bombs, slow connections, handshakes, new keys and
//! wrong tokens (S3 to S6 and S12 of docs/security.md).
//!
//! Run it with `scripts/measure-limits floods`; more arguments choose: bombs,
//! slow, handshakes, enrolments, tokens. The server runs in a process of its
//! own; everything stays on loopback and ends by itself.

mod load;

use std::time::{Duration, Instant};

use fleethold_proto::fleetspeak::server::ListClientsRequest;
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use load::floods::{bombs, enrolments, handshakes, in_words, poll, slow_connections};
use load::{Installation, Server, allow_connections, p99, poll_times};
use tonic::transport::Endpoint;

const BOMBS: usize = 1_000;
const SLOW: usize = 15_000;
const HANDSHAKES_PER_SECOND: u32 = 2_000;
const TOKENS_PER_SECOND: u32 = 5_000;
const OTHERS: usize = 100;

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|name| !name.starts_with('-'))
        .collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        if runs("bombs") {
            allow_connections(2 * BOMBS as u64);
            Box::pin(measure_bombs()).await;
        }
        if runs("slow") {
            allow_connections(SLOW as u64 + 500);
            Box::pin(measure_slow()).await;
        }
        if runs("handshakes") {
            Box::pin(measure_handshakes()).await;
        }
        if runs("enrolments") {
            Box::pin(measure_enrolments()).await;
        }
        if runs("tokens") {
            Box::pin(measure_tokens()).await;
        }
    });
}

#[expect(clippy::print_stdout, reason = "the figures are the result")]
fn report(text: &str) {
    println!("{text}");
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A server with agents that poll ten times a second, and their usual p99.
struct Normal {
    server: Server,
    agents: Vec<load::agent::Agent>,
    p99: Duration,
}

impl Normal {
    async fn start(server: Server) -> Self {
        let agents: Vec<_> = (0..OTHERS).map(|_| server.agent()).collect();
        poll_times(&agents, Duration::from_secs(2)).await;
        let normal = poll_times(&agents, Duration::from_secs(10)).await;
        Self {
            p99: p99(&normal),
            server,
            agents,
        }
    }

    async fn polls(&self, duration: Duration) -> String {
        let with = poll_times(&self.agents, duration).await;
        format!(
            "p99 of the polls of {OTHERS} others {:.1} ms, normally {:.1} ms, {:.2} times (wanted: less than 2)",
            ms(p99(&with)),
            ms(self.p99),
            ms(p99(&with)) / ms(self.p99)
        )
    }
}

async fn measure_bombs() {
    let normal = Normal::start(Server::start()).await;
    let before = normal.server.resident_kib();
    let started = Instant::now();
    let (answers, polls) = tokio::join!(
        bombs(&normal.server, BOMBS),
        normal.polls(Duration::from_secs(10))
    );
    report(&format!(
        "{BOMBS} bombs at once, 20 KiB that become 21 MiB: {} in {:.1} s; {:.0} MB more resident afterwards, at most {:.0} MB at any time; {polls}",
        in_words(&answers),
        started.elapsed().as_secs_f64(),
        (normal.server.resident_kib().saturating_sub(before)) as f64 * 1024.0 / 1e6,
        (normal.server.peak_kib().saturating_sub(before)) as f64 * 1024.0 / 1e6,
    ));
}

async fn measure_slow() {
    let normal = Normal::start(Server::start()).await;
    let ((opened, longest), polls) = tokio::join!(
        slow_connections(&normal.server, SLOW),
        normal.polls(Duration::from_secs(30))
    );
    report(&format!(
        "{opened} of {SLOW} connections sent a byte a second, half in the handshake, half in a header: the longest was open for {:.0} s (wanted: at most 60); {polls}",
        longest.as_secs_f64()
    ));
}

async fn measure_handshakes() {
    let normal = Normal::start(Server::start()).await;
    let duration = Duration::from_secs(20);
    // Agents that connect anew have to get in, too.
    let agent = normal.server.agent();
    let newcomers = async {
        let end = Instant::now() + duration;
        let (mut polls, mut refused) = (0, 0);
        while Instant::now() < end {
            match poll(&agent).await {
                Some(status) if status.is_success() => polls += 1,
                _ => refused += 1,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        (polls, refused)
    };
    let ((answered, closed), (polls_in, refused), polls) = tokio::join!(
        handshakes(&normal.server, HANDSHAKES_PER_SECOND, duration),
        newcomers,
        normal.polls(duration)
    );
    report(&format!(
        "{} handshakes begun in {:.0} s (tried: {HANDSHAKES_PER_SECOND} a second): {answered} answered, {closed} closed at once; an agent that connects anew each time: {polls_in} polls, {refused} refused; {polls}",
        answered + closed,
        duration.as_secs_f64(),
    ));
}

async fn measure_enrolments() {
    let installation = Installation::new();
    let mut normal = Normal::start(installation.serve_with(None, &[])).await;
    let duration = Duration::from_secs(30);
    let (answers, polls) = tokio::join!(
        enrolments(&normal.server, duration, 50),
        normal.polls(duration)
    );
    normal.server.terminate();
    normal.server.end().await;
    let stats = std::process::Command::new(env!("CARGO_BIN_EXE_fleethold"))
        .args(["store", "stats", "--store", &installation.store()])
        .output()
        .unwrap();
    let stats = String::from_utf8(stats.stdout).unwrap();
    let clients = stats
        .lines()
        .find_map(|line| line.strip_prefix("clients"))
        .unwrap_or_default()
        .trim();
    let most = 100.0 * duration.as_secs_f64() + 1_000.0 + OTHERS as f64;
    report(&format!(
        "new keys as fast as the server answers, for {:.0} s: {}; {clients} clients stored (wanted: at most {most:.0}, which is 100 a second and a reserve of ten seconds); {polls}",
        duration.as_secs_f64(),
        in_words(&answers),
    ));
}

async fn measure_tokens() {
    // SHA-256 of `right`.
    const ACCESS: &str =
        "token operator 27042f4e6eca7d0b2a7ee4026df2ecfa51d3339e6d122aa099118ecd8563bad9 read\n";
    let installation = Installation::new();
    let access = installation.write("access", ACCESS);
    let server = installation.serve_with(None, &["--admin-access", &access]);
    let endpoint = Endpoint::from_shared(format!("http://{}", server.admin)).unwrap();
    let client = AdminClient::new(endpoint.connect().await.unwrap());
    let call = |token: &'static str| {
        let mut client = client.clone();
        async move {
            let mut request = tonic::Request::new(ListClientsRequest {
                client_ids: vec![bytes::Bytes::from_static(&[1; 8])],
            });
            let token = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", token);
            let started = Instant::now();
            let answer = client.list_clients(request).await;
            (answer.is_ok(), started.elapsed())
        }
    };
    assert!(call("right").await.0);
    assert!(!call("wrong").await.0);
    let duration = Duration::from_secs(20);
    let end = Instant::now() + duration;
    let wrong = async {
        let mut pace = tokio::time::interval(Duration::from_secs(1) / TOKENS_PER_SECOND);
        let mut tasks = tokio::task::JoinSet::new();
        while Instant::now() < end {
            pace.tick().await;
            tasks.spawn(call("wrong"));
            while tasks.try_join_next().is_some() {}
        }
        let mut count = 0;
        while let Some(ended) = tasks.join_next().await {
            count += usize::from(!ended.unwrap().0);
        }
        count
    };
    let right = async {
        let mut times = Vec::new();
        while Instant::now() < end {
            let (accepted, time) = call("right").await;
            assert!(accepted);
            times.push(time);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        times.sort_unstable();
        times
    };
    let (_, times) = tokio::join!(wrong, right);
    report(&format!(
        "{TOKENS_PER_SECOND} wrong tokens a second over one connection, for {:.0} s: p99 of {} calls with the right one {:.1} ms (wanted: less than 50)",
        duration.as_secs_f64(),
        times.len(),
        ms(p99(&times))
    ));
}
