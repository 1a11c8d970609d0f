//! What is too much is refused, counted, and disturbs nobody else. S-numbers:
//! the list of threats.

use fleethold_proto::fleetspeak::WrappedContactData;
use http::Response;
use http::header::RETRY_AFTER;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use prost::Message as _;
use tokio::io::AsyncWriteExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::agent::{RequestBody, message, request};
use super::*;

/// Waits until something was refused for this reason so many times.
async fn until_refused(bed: &Bed, reason: Refused, times: u64) {
    let refused = async {
        while bed.gate.refusals.of(reason) < times {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(reason.name(), refused).await;
}

/// Returns after how many seconds to try again.
fn retry_after(response: &Response<Incoming>) -> u64 {
    let value = response.headers().get(RETRY_AFTER).expect("Retry-After");
    value.to_str().unwrap().parse().unwrap()
}

fn contact_with(messages: u32) -> ContactData {
    ContactData {
        messages: (0..messages)
            .map(|number| message("sink", number))
            .collect(),
        ..ContactData::default()
    }
}

fn contact_of(bytes: usize) -> Vec<u8> {
    let contact = WrappedContactData {
        client_labels: vec!["x".repeat(bytes)],
        ..WrappedContactData::default()
    };
    contact.encode_to_vec()
}

/// Makes a poll whose body never ends, and what feeds it.
fn endless() -> (
    http::Request<RequestBody>,
    tokio::sync::mpsc::UnboundedSender<Bytes>,
) {
    let (sender, parts) = tokio::sync::mpsc::unbounded_channel();
    let parts = futures::StreamExt::map(UnboundedReceiverStream::new(parts), |bytes: Bytes| {
        Ok::<_, io::Error>(http_body::Frame::data(bytes))
    });
    let request = post("/message", "").map(|_| StreamBody::new(parts).boxed_unsync());
    (request, sender)
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_before_their_handshake() {
    let bed = Bed::with(|_, limits| limits.connections = 1).await;
    let agent = bed.agent();
    let first = agent.tls(&[]).await.unwrap();
    assert!(agent.tls(&[]).await.is_err());
    assert_eq!(bed.gate.refusals.of(Refused::Connections), 1);
    drop(first);
    bed.until_nothing_runs().await;
    agent.poll(&ContactData::default()).await;
}

#[tokio::test]
async fn connections_of_one_address_beyond_its_limit_are_closed_and_other_addresses_served() {
    let bed = Bed::with(|_, limits| limits.connections_per_address = 1).await;
    let agent = bed.agent();
    let first = agent.tls(&[]).await.unwrap();
    assert!(agent.tls(&[]).await.is_err());
    assert_eq!(bed.gate.refusals.of(Refused::AddressConnections), 1);
    drop(first);
    bed.until_nothing_runs().await;
    agent.poll(&ContactData::default()).await;

    // Behind a proxy, the address counts that it names.
    let bed = Bed::with(|options, limits| {
        options.proxy_protocol = true;
        limits.connections_per_address = 1;
    })
    .await;
    let from = |address: &str| {
        let header = format!("PROXY TCP4 {address} 192.0.2.9 1000 443\r\n");
        bed.agent().behind(header)
    };
    let _first = from("192.0.2.1").tls(&[]).await.unwrap();
    assert!(from("192.0.2.1").tls(&[]).await.is_err());
    assert_eq!(bed.gate.refusals.of(Refused::AddressConnections), 1);
    let _second = from("192.0.2.2").tls(&[]).await.unwrap();
}

#[tokio::test]
async fn s5_connections_that_come_too_fast_are_closed_and_later_ones_served() {
    let bed = Bed::with(|_, limits| limits.connections_per_second = 1).await;
    let agent = bed.agent();
    let mut served = 0;
    while agent.tls(&[]).await.is_ok() {
        served += 1;
        assert!(served < 1_000, "there is no limit");
    }
    assert!(served >= 10, "only {served} at once");
    assert!(bed.gate.refusals.of(Refused::ConnectionRate) >= 1);
    let again = async {
        while agent.tls(&[]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("a second's worth", again).await;
}

#[tokio::test]
async fn s5_handshakes_beyond_the_limit_are_cut_off_and_requests_go_on() {
    let bed = Bed::with(|_, limits| {
        limits.handshakes = 2;
        limits.handshake_timeout = Duration::from_millis(500);
        // On a busy machine, requests may take a while to begin.
        limits.idle_timeout = Duration::from_secs(30);
    })
    .await;
    let agent = bed.agent();
    let mut open = agent.connect(Version::HTTP_11).await;
    let path = "/files/system/RevokedCertificates";
    assert_eq!(open.send(get(path)).await.unwrap().status(), StatusCode::OK);

    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(bed.addr).await.unwrap());
    }
    until_refused(&bed, Refused::Handshakes, 48).await;
    assert_eq!(open.send(get(path)).await.unwrap().status(), StatusCode::OK);
    // The two that took the places lose them.
    until_refused(&bed, Refused::HandshakeTime, 2).await;
    agent.poll(&ContactData::default()).await;
}

#[tokio::test]
async fn s4_connection_without_a_request_is_counted() {
    let bed = Bed::with(|_, limits| limits.header_timeout = Duration::from_millis(200)).await;
    let mut tls = bed.agent().tls(&["http/1.1"]).await.unwrap();
    tls.write_all(b"POST /mess").await.unwrap();
    until_refused(&bed, Refused::HeaderTime, 1).await;
    bed.until_nothing_runs().await;
}

#[tokio::test]
async fn s1_request_without_certificate_is_answered_without_reading_its_body() {
    let bed = Bed::with(|_, _| {}).await;
    let stranger = Agent::without_certificate(bed.addr, &bed.authority);
    for (path, expected) in [
        ("/message", StatusCode::BAD_REQUEST),
        ("/streaming-message", StatusCode::BAD_REQUEST),
        ("/files/system/x", StatusCode::METHOD_NOT_ALLOWED),
        ("/", StatusCode::NOT_FOUND),
    ] {
        let (mut request, body) = endless();
        *request.uri_mut() = path.parse().unwrap();
        let mut connection = stranger.connect(Version::HTTP_11).await;
        let answer = soon("an answer", connection.send(request)).await.unwrap();
        assert_eq!(answer.status(), expected, "{path}");
        // What still comes is not taken: the connection ends with the answer.
        let feed = async {
            while body.send(Bytes::from_static(&[0; 16 * 1024])).is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            () = feed => {}
            () = connection.closed() => {}
        }
    }
    bed.until_nothing_runs().await;
}

#[tokio::test]
async fn s6_new_clients_beyond_the_rate_are_told_to_come_later_and_known_ones_served() {
    let bed = Bed::with(|_, limits| limits.enrolments_per_second = 1).await;
    let known = bed.agent();
    known.poll(&ContactData::default()).await;
    let poll = |agent: &Agent| post("/message", agent.wrap(&ContactData::default()));

    let mut enrolled = 1;
    let refused = loop {
        let agent = bed.agent();
        let answer = agent.request(poll(&agent)).await;
        if answer.status() != StatusCode::OK {
            break answer;
        }
        enrolled += 1;
        assert!(enrolled < 1_000, "there is no limit");
    };
    assert!(enrolled >= 10, "only {enrolled} at once");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!((1..=2).contains(&retry_after(&refused)));
    assert_eq!(bed.gate.refusals.of(Refused::Enrolments), 1);
    known.poll(&ContactData::default()).await;

    let late = bed.agent();
    let enrolment = async {
        while late.request(poll(&late)).await.status() != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("the next enrolment", Box::pin(enrolment)).await;
}

#[tokio::test]
async fn s20_polls_with_too_many_messages_get_429_and_other_agents_200() {
    let bed = Bed::with(|_, limits| limits.messages_per_second_per_agent = 1).await;
    let (noisy, other) = (bed.agent(), bed.agent());
    noisy.poll(&contact_with(100)).await;
    let body = noisy.wrap(&contact_with(1));
    let answer = noisy.request(post("/message", body)).await;
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!((80..=93).contains(&retry_after(&answer)));
    assert_eq!(bed.gate.refusals.of(Refused::AgentMessages), 1);
    // A poll without messages costs nothing.
    noisy.poll(&ContactData::default()).await;
    other.poll(&contact_with(100)).await;
}

#[tokio::test]
async fn s20_stream_with_too_many_messages_is_slowed_down_and_loses_nothing() {
    let bed = Bed::with(|_, limits| limits.messages_per_second_per_agent = 50).await;
    let mut stream = bed.agent().stream(StreamOptions::default()).await;
    // 600 messages, with a reserve of 500: the last two records wait.
    for _ in 0..6 {
        stream.send_contact(&contact_with(100));
    }
    assert_eq!(stream.acks(6).await, [1, 2, 3, 4, 5, 6]);
    stream.send_contact(&contact_with(1));
    assert!(bed.gate.refusals.of(Refused::AgentMessages) >= 1);
    assert_eq!(stream.acks(1).await, [7]);
}

#[tokio::test]
async fn requests_beyond_the_memory_budget_are_refused() {
    let bed = Bed::with(|_, limits| limits.bytes_in_flight = 100_000).await;
    let agent = bed.agent();
    let answer = agent.request(post("/message", contact_of(100_001))).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(retry_after(&answer) >= 60);
    assert_eq!(bed.gate.refusals.of(Refused::Bytes), 1);
    agent.poll(&ContactData::default()).await;
}

#[tokio::test]
async fn s2_oldest_of_too_many_unfinished_requests_is_given_up_and_others_are_served() {
    let bed = Bed::with(|_, limits| limits.unfinished_requests = 1).await;
    let agent = bed.agent();
    let (poll, _body) = endless();
    let mut connection = agent.connect(Version::HTTP_11).await;
    let others = async {
        loop {
            let body = agent.wrap(&ContactData::default());
            bed.agent().request(post("/message", body)).await;
        }
    };
    let answer = tokio::select! {
        answer = connection.send(poll) => answer.unwrap(),
        () = others => unreachable!(),
    };
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(retry_after(&answer) >= 60);
    assert!(bed.gate.refusals.of(Refused::Unfinished) >= 1);
    bed.agent().poll(&ContactData::default()).await;
}

#[tokio::test]
async fn one_agent_cannot_have_more_in_flight_than_its_share() {
    let bed = Bed::with(|_, limits| limits.bytes_in_flight_per_agent = 1).await;
    let agent = bed.agent();
    // The least share is one contact of the largest size.
    let (first, first_body) = endless();
    let mut connection = agent.connect(Version::HTTP_11).await;
    let first = connection.send(first);
    tokio::pin!(first);
    first_body.send(contact_of(15 << 20).into()).unwrap();
    let (second, body) = endless();
    let mut other_connection = agent.connect(Version::HTTP_11).await;
    let second = other_connection.send(second);
    tokio::pin!(second);
    body.send(contact_of(15 << 20).into()).unwrap();
    // Which of the two is refused depends on how they arrive.
    let answer = tokio::select! {
        answer = &mut first => answer,
        answer = &mut second => answer,
        () = tokio::time::sleep(agent::PATIENCE) => panic!("both are read"),
    };
    let answer = answer.unwrap();
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(bed.gate.refusals.of(Refused::AgentBytes), 1);
    bed.agent().poll(&ContactData::default()).await;
}

#[tokio::test]
async fn s4_body_that_trickles_is_given_up() {
    let bed = Bed::with(|_, limits| {
        limits.slow_body_timeout = Duration::from_millis(300);
        limits.least_body_bytes_per_second = 1 << 20;
    })
    .await;
    let (poll, body) = endless();
    let feed = async {
        while body.send(Bytes::from_static(&[0])).is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    let agent = bed.agent();
    let answer = tokio::select! {
        answer = agent.request(poll) => answer,
        () = feed => unreachable!(),
    };
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(bed.gate.refusals.of(Refused::SlowBody), 1);

    let mut stream = bed.agent().stream(StreamOptions::default()).await;
    stream.send_bytes(&[100]);
    assert!(stream.frame().await.is_none());
    until_refused(&bed, Refused::SlowBody, 2).await;
}

#[tokio::test]
async fn s13_malformed_requests_leave_the_server_as_it_was() {
    let bed = Bed::with(|_, _| {}).await;
    let agent = bed.agent();
    for garbage in [
        &b"\x16\x03\x01\xff\xff"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\0",
    ] {
        let mut tcp = TcpStream::connect(bed.addr).await.unwrap();
        tcp.write_all(garbage).await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _may_be_reset = soon("the end", tcp.read_to_end(&mut answer)).await;
    }
    for garbage in [
        "BREW /message HTTP/1.1\r\nhost: x\r\n\r\n",
        "POST /message HTTP/9.9\r\n\r\n",
        "POST /message HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        "POST /message HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
        "POST /message HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "POST /message HTTP/1.1\r\ncontent-length: 3\r\n\r\n\u{1}\u{2}\u{3}",
        "\r\n\r\n\r\n\r\n\u{7f}",
    ] {
        let mut tls = agent.tls(&["http/1.1"]).await.unwrap();
        tls.write_all(garbage.as_bytes()).await.unwrap();
        tls.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _may_be_reset = soon("an answer", tls.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{garbage:?}: {answer}"
        );
    }
    let (status, _) = agent
        .fetch(request("POST", "/message", contact_of(1)))
        .await;
    assert_eq!(status, StatusCode::OK);
    bed.until_nothing_runs().await;
}
