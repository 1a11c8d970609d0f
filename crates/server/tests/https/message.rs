//! Polls.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use fleethold_proto::fleetspeak::{ContactData, Signature, WrappedContactData};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{Request, StatusCode};
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agent::{
    Agent, Authority, RequestBody, chunked, message, over_http2, post, request, soon,
};
use crate::bed::Bed;

const MOST_BYTES: usize = 20 * 1024 * 1024;

fn zlib(plain: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn encoded(mut request: Request<RequestBody>, encoding: &str) -> Request<RequestBody> {
    request
        .headers_mut()
        .insert(CONTENT_ENCODING, encoding.parse().unwrap());
    request
}

/// A contact with some messages.
fn contact() -> ContactData {
    ContactData {
        sequencing_nonce: 5,
        messages: (0..20).map(|number| message("sink", number)).collect(),
        ..ContactData::default()
    }
}

#[tokio::test]
async fn p_020_empty_poll_enrols_and_returns_a_nonce() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let response = agent.request(post("/message", "")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/octet-stream");
    assert!(response.headers().contains_key(CONTENT_LENGTH));
    let body = http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap();
    let answer = ContactData::decode(body.to_bytes()).unwrap();
    assert_ne!(answer.sequencing_nonce, 0);
    assert!(bed.client(agent.id).await.is_some());
}

#[tokio::test]
async fn p_021_history_links_nonces_of_successive_polls() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let first = agent.poll(&ContactData::default()).await;
    let second = agent
        .poll(&ContactData {
            sequencing_nonce: first.sequencing_nonce,
            ..ContactData::default()
        })
        .await;
    assert_ne!(first.sequencing_nonce, second.sequencing_nonce);
    let mut nonces: Vec<_> = bed
        .contacts(agent.id)
        .await
        .iter()
        .map(|contact| (contact.received_nonce, contact.sent_nonce))
        .collect();
    nonces.sort_by_key(|(received, _)| *received);
    let expected = [
        (0, first.sequencing_nonce),
        (first.sequencing_nonce, second.sequencing_nonce),
    ];
    assert_eq!(nonces, expected);
}

#[tokio::test]
async fn p_022_other_methods_are_refused() {
    let bed = Bed::start().await;
    for method in ["GET", "PUT", "HEAD", "DELETE"] {
        let (status, _) = bed.agent().fetch(request(method, "/message", "")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{method}");
    }
    bed.agent().poll(&contact()).await;
}

#[tokio::test]
async fn unknown_paths_are_not_found() {
    let bed = Bed::start().await;
    for path in [
        "/",
        "/message/",
        "/messages",
        "/Message",
        "/files",
        "/streaming-message/",
        "/a",
    ] {
        let (status, _) = bed.agent().fetch(post(path, "")).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
    bed.agent().poll(&contact()).await;
}

#[tokio::test]
async fn p_023_announced_length_over_the_limit_is_refused_unread() {
    let bed = Bed::start().await;
    let mut tls = bed.agent().tls(&[]).await.unwrap();
    let head = format!(
        "POST /message HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        MOST_BYTES + 1
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 24];
    soon("an answer before the body", tls.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400 Bad Request");
    bed.agent().poll(&contact()).await;
}

#[tokio::test]
async fn p_023_body_of_the_largest_size_is_read() {
    let bed = Bed::start().await;
    let padding = |size| {
        let padded = WrappedContactData {
            client_labels: vec!["x".repeat(size)],
            ..WrappedContactData::default()
        };
        padded.encode_to_vec()
    };
    let overhead = padding(MOST_BYTES).len() - MOST_BYTES;
    let (status, _) = bed
        .agent()
        .fetch(post("/message", padding(MOST_BYTES - overhead)))
        .await;
    assert_eq!(status, StatusCode::OK);
    let over = chunked(
        post("/message", ""),
        vec![padding(MOST_BYTES - overhead + 1).into()],
    );
    let (status, _) = bed.agent().fetch(over).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    bed.agent().poll(&contact()).await;
}

#[tokio::test]
async fn p_024_garbage_is_refused_and_leaves_nothing() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let (status, _) = agent.fetch(post("/message", "garbage")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let garbage = WrappedContactData {
        contact_data: Bytes::from_static(b"garbage"),
        ..WrappedContactData::default()
    };
    let (status, body) = agent.fetch(post("/message", garbage.encode_to_vec())).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(body, "internal error\n");
    assert_eq!(bed.client_count().await, 0);
    agent.poll(&contact()).await;
}

#[tokio::test]
async fn p_025_hundred_messages_are_accepted_and_no_more() {
    let bed = Bed::start().await;
    let with = |count| ContactData {
        messages: (0..count).map(|number| message("sink", number)).collect(),
        ..ContactData::default()
    };
    let agent = bed.agent();
    agent.poll(&with(100)).await;
    let (status, _) = agent.fetch(post("/message", agent.wrap(&with(101)))).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    agent.poll(&contact()).await;
}

#[tokio::test]
async fn p_026_to_028_and_035_bodies_of_every_kind_are_read() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let plain = agent.wrap(&contact());
    let deflated = zlib(&plain);
    let pieces = |body: &[u8]| body.chunks(7).map(Bytes::copy_from_slice).collect();
    let requests = [
        post("/message", plain.clone()),
        encoded(post("/message", plain.clone()), ""),
        encoded(post("/message", deflated.clone()), "deflate"),
        chunked(post("/message", ""), pieces(&plain)),
        encoded(chunked(post("/message", ""), pieces(&deflated)), "deflate"),
        over_http2(post("/message", plain.clone())),
        over_http2(chunked(post("/message", ""), pieces(&plain))),
        over_http2(encoded(
            chunked(post("/message", ""), pieces(&deflated)),
            "deflate",
        )),
    ];
    let count = requests.len();
    for request in requests {
        let about = format!("{:?} {:?}", request.version(), request.headers());
        let (status, _) = agent.fetch(request).await;
        assert_eq!(status, StatusCode::OK, "{about}");
    }
    let contacts = bed.contacts(agent.id).await;
    assert_eq!(contacts.len(), count);
    assert!(contacts.iter().all(|contact| contact.received_nonce == 5));
}

#[tokio::test]
async fn p_029_other_encodings_are_refused() {
    let bed = Bed::start().await;
    for encoding in ["gzip", "br", "identity", "Deflate", "deflate, gzip"] {
        let (status, _) = bed
            .agent()
            .fetch(encoded(post("/message", ""), encoding))
            .await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{encoding}");
    }
    bed.agent().poll(&contact()).await;
}

#[tokio::test]
async fn p_030_broken_zlib_streams_are_refused() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let good = zlib(&agent.wrap(&contact()));
    for body in [
        b"no zlib".to_vec(),
        good[..good.len() / 2].to_vec(),
        Vec::new(),
    ] {
        let (status, _) = agent
            .fetch(encoded(post("/message", body), "deflate"))
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(bed.client_count().await, 0);
    agent.poll(&contact()).await;
}

#[tokio::test]
async fn p_031_bomb_is_refused() {
    let bed = Bed::start().await;
    let bomb = zlib(&vec![0; MOST_BYTES + 1]);
    assert!(bomb.len() < 64 * 1024);
    let (status, _) = bed
        .agent()
        .fetch(encoded(post("/message", bomb), "deflate"))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    bed.agent().poll(&contact()).await;
}

#[tokio::test]
async fn p_032_agent_without_the_required_label_is_refused() {
    let bed = Bed::with(Authority::new(), |config| {
        config.required_label = Some("alpha".into())
    })
    .await;
    let mut agent = bed.agent();
    let (status, _) = agent.fetch(post("/message", agent.wrap(&contact()))).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(bed.client(agent.id).await.is_none());
    agent.labels.push("alpha".to_owned());
    agent.poll(&contact()).await;
    assert!(bed.client(agent.id).await.is_some());
}

#[tokio::test]
async fn p_034_observed_address_is_the_agents() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let tls = agent.tls(&["http/1.1"]).await.unwrap();
    drop(tls);
    agent.poll(&ContactData::default()).await;
    let contacts = bed.contacts(agent.id).await;
    let [contact] = &contacts[..] else {
        panic!("{contacts:?}")
    };
    assert!(
        contact.observed_address.starts_with("127.0.0.1:"),
        "{contact:?}"
    );
}

#[tokio::test]
async fn p_036_simultaneous_first_polls_of_a_key_all_succeed() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let contact = ContactData::default();
    let polls = (0..8).map(|_| agent.poll(&contact));
    futures::future::join_all(polls).await;
    assert_eq!(bed.contacts(agent.id).await.len(), 8);
}

#[tokio::test]
async fn poll_delivers_at_most_hundred_messages() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    agent.poll(&ContactData::default()).await;
    bed.store_messages(agent.id, 0..130).await;
    for expected in [100, 30, 0] {
        let answer = agent.poll(&ContactData::default()).await;
        assert_eq!(answer.messages.len(), expected);
    }
}

#[tokio::test]
async fn p_230_signature_without_certificate_is_no_trouble() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let mut record = agent.wrapped(&contact());
    record.signatures.push(Signature::default());
    let (status, _) = agent.fetch(post("/message", record.encode_to_vec())).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn p_231_signature_with_an_unreadable_certificate_fails_the_contact_only() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let mut record = agent.wrapped(&contact());
    record.signatures.push(Signature {
        certificate: vec![Bytes::from_static(b"no certificate")],
        ..Signature::default()
    });
    let (status, _) = agent.fetch(post("/message", record.encode_to_vec())).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    agent.poll(&contact()).await;
}

#[tokio::test]
async fn body_of_a_stranger_is_not_read() {
    let bed = Bed::start().await;
    let stranger = Agent::without_certificate(bed.addr, &bed.authority);
    let mut tls = stranger.tls(&[]).await.unwrap();
    let head = "POST /message HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n";
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // It ends by itself, although the body never comes.
    let _reset = soon("the end of the connection", tls.read_to_end(&mut answer)).await;
    assert!(answer.starts_with(b"HTTP/1.1 400 "));
    bed.agent().poll(&contact()).await;
}
