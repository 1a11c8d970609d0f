//! What abusers send by the thousand, and what becomes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::ZlibEncoder;
use fleethold_proto::fleetspeak::ContactData;
use http::header::CONTENT_ENCODING;
use http::{StatusCode, Version};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::agent::{Agent, post};
use super::{ANNOUNCED_BYTES, Server};

/// How often each answer came; `None` is a connection that was closed.
pub(crate) type Answers = BTreeMap<Option<StatusCode>, usize>;

/// Sends so many small bodies that become more than a server takes, all at once.
pub(crate) async fn bombs(server: &Server, count: usize) -> Answers {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    let zeros = vec![0; 1 << 20];
    for _ in 0..=ANNOUNCED_BYTES >> 20 {
        std::io::Write::write_all(&mut encoder, &zeros).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 64 * 1024);
    let agents: Vec<_> = (0..count).map(|_| server.agent()).collect();
    let connected = Arc::new(Semaphore::new(100));
    let mut tasks = JoinSet::new();
    for agent in agents {
        let (bomb, connected) = (bomb.clone(), Arc::clone(&connected));
        tasks.spawn(async move {
            let place = connected.acquire().await.unwrap();
            let Ok(mut connection) = agent.try_connect(Version::HTTP_11).await else {
                return None;
            };
            drop(place);
            let mut request = post("/message", bomb);
            let encoding = "deflate".parse().unwrap();
            request.headers_mut().insert(CONTENT_ENCODING, encoding);
            Some(connection.send(request).await.ok()?.status())
        });
    }
    counted(tasks).await
}

/// Opens connections that send a byte a second: half of them in the TLS
/// handshake, half in the header of a request. Returns how many were opened
/// and how long it took until the server had closed all.
pub(crate) async fn slow_connections(server: &Server, count: usize) -> (usize, Duration) {
    let mut tasks = JoinSet::new();
    let (mut opened, mut last) = (0, Duration::ZERO);
    let finished = |ended: Option<Result<Option<Duration>, _>>, last: &mut Duration| {
        let open = ended.and_then(|ended| ended.unwrap());
        *last = open.map_or(*last, |open| open.max(*last));
        usize::from(open.is_some())
    };
    for number in 0..count {
        let agent = server.agent();
        let address = server.addr;
        tasks.spawn(async move {
            if number.is_multiple_of(2) {
                let tcp = TcpStream::connect(address).await.ok()?;
                Some(trickle(tcp, b"\x16\x03\x01\x02\x00\x01").await)
            } else {
                let tls = agent.tls(&["http/1.1"]).await.ok()?;
                Some(trickle(tls, b"POST /message HTTP/1.1\r\n").await)
            }
        });
        // The server takes 500 new connections a second.
        tokio::time::sleep(Duration::from_micros(2_500)).await;
        while let Some(ended) = tasks.try_join_next() {
            opened += finished(Some(ended), &mut last);
        }
    }
    while let Some(ended) = tasks.join_next().await {
        opened += finished(Some(ended), &mut last);
    }
    (opened, last)
}

/// Writes a byte a second, the last one again and again, until the peer closes;
/// returns how long it bore that.
async fn trickle<T>(mut connection: T, bytes: &[u8]) -> Duration
where
    T: AsyncReadExt + AsyncWriteExt + Unpin,
{
    const LIMIT: Duration = Duration::from_secs(90);
    let started = Instant::now();
    let mut answer = [0; 1_024];
    for byte in bytes.iter().chain(std::iter::repeat(&b'a')) {
        if connection.write_all(&[*byte]).await.is_err() || connection.flush().await.is_err() {
            break;
        }
        let read = connection.read(&mut answer);
        match tokio::time::timeout(Duration::from_secs(1), read).await {
            Ok(Ok(0) | Err(_)) => break,
            _ if started.elapsed() > LIMIT => break,
            _ => {}
        }
    }
    started.elapsed()
}

/// Begins so many TLS handshakes a second and leaves after the server's answer;
/// returns how many were answered and how many were closed without.
pub(crate) async fn handshakes(
    server: &Server,
    per_second: u32,
    duration: Duration,
) -> (usize, usize) {
    let hello: Arc<[u8]> = server.agent().client_hello().into();
    let address = server.addr;
    let end = Instant::now() + duration;
    let mut pace = tokio::time::interval(Duration::from_secs(1) / per_second);
    let mut tasks = JoinSet::new();
    while Instant::now() < end {
        pace.tick().await;
        let hello = Arc::clone(&hello);
        tasks.spawn(async move {
            let mut tcp = TcpStream::connect(address).await.ok()?;
            tcp.write_all(&hello).await.ok()?;
            let mut answer = [0; 4_096];
            let read = tokio::time::timeout(Duration::from_secs(20), tcp.read(&mut answer));
            matches!(read.await, Ok(Ok(1..))).then_some(())
        });
    }
    let (mut answered, mut closed) = (0, 0);
    while let Some(ended) = tasks.join_next().await {
        match ended.unwrap() {
            Some(()) => answered += 1,
            None => closed += 1,
        }
    }
    (answered, closed)
}

/// Polls with a new key each time, as fast as the server answers.
pub(crate) async fn enrolments(server: &Server, duration: Duration, at_once: usize) -> Answers {
    let end = Instant::now() + duration;
    let mut tasks = JoinSet::new();
    let places = Arc::new(Semaphore::new(at_once));
    let mut answers = Answers::new();
    while Instant::now() < end {
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        let agent = server.agent();
        tasks.spawn(async move {
            let answer = poll(&agent).await;
            drop(place);
            answer
        });
        while let Some(ended) = tasks.try_join_next() {
            *answers.entry(ended.unwrap()).or_default() += 1;
        }
    }
    for (answer, count) in counted(tasks).await {
        *answers.entry(answer).or_default() += count;
    }
    answers
}

/// Polls over a connection of its own.
pub(crate) async fn poll(agent: &Agent) -> Option<StatusCode> {
    let mut connection = agent.try_connect(Version::HTTP_11).await.ok()?;
    let body = agent.wrap(&ContactData::default());
    let answer = connection.send(post("/message", body)).await.ok()?;
    let status = answer.status();
    drop(answer.into_body().collect().await);
    Some(status)
}

async fn counted(mut tasks: JoinSet<Option<StatusCode>>) -> Answers {
    let mut answers = Answers::new();
    while let Some(ended) = tasks.join_next().await {
        *answers.entry(ended.unwrap()).or_default() += 1;
    }
    answers
}

/// Says how often each answer came.
pub(crate) fn in_words(answers: &Answers) -> String {
    let parts: Vec<_> = answers
        .iter()
        .map(|(status, count)| match status {
            Some(status) => format!("{count} × {}", status.as_u16()),
            None => format!("{count} closed"),
        })
        .collect();
    parts.join(", ")
}
