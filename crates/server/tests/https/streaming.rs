//! Streams: how they begin, what they deliver, how they end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fleethold_proto::fleetspeak::server::BlacklistClientRequest;
use fleethold_proto::fleetspeak::{ContactData, WrappedContactData};
use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HeaderMap,
};
use http::{StatusCode, Version};
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agent::{
    Agent, AgentStream, Authority, MAGIC, StreamOptions, acknowledgement, message, post, request,
    soon,
};
use crate::bed::Bed;

/// The headers of the stock agent.
fn stock_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, "close".parse().unwrap());
    headers.insert(EXPECT, "100-continue".parse().unwrap());
    headers.insert(ACCEPT_ENCODING, "gzip".parse().unwrap());
    headers
}

/// Every way of opening a stream.
fn all_options() -> Vec<StreamOptions> {
    let mut all = Vec::new();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for deflate in [false, true] {
            for mut headers in [HeaderMap::new(), stock_headers()] {
                if version == Version::HTTP_2 {
                    headers.remove(CONNECTION);
                }
                all.push(StreamOptions {
                    version,
                    deflate,
                    headers,
                });
            }
        }
    }
    all
}

fn numbers(frame: &ContactData) -> Vec<u32> {
    let number = |bytes: &Bytes| u32::from_be_bytes(bytes[..].try_into().unwrap());
    frame
        .messages
        .iter()
        .map(|message| number(&message.source_message_id))
        .collect()
}

#[tokio::test]
async fn p_060_062_and_063_streams_of_every_kind_work_both_ways_at_once() {
    let bed = Bed::start().await;
    for options in all_options() {
        let agent = bed.agent();
        let about = format!("{options:?}");
        // The first frame comes while the request is still open.
        let mut stream = agent.stream(options).await;
        assert_ne!(stream.first.sequencing_nonce, 0, "{about}");
        assert_eq!(stream.headers()[CONTENT_TYPE], "application/octet-stream");
        for index in 1..=3 {
            stream.send_contact(&ContactData {
                messages: vec![message("sink", u32::try_from(index).unwrap())],
                ..ContactData::default()
            });
            assert_eq!(stream.acks(1).await, [index], "{about}");
        }
        let contacts = bed.contacts(agent.id).await;
        assert_eq!(contacts.len(), 1, "a stream is one contact");
    }
}

#[tokio::test]
async fn p_061_agent_is_told_to_continue_before_it_sends_its_body() {
    let bed = Bed::start().await;
    let mut tls = bed.agent().tls(&["http/1.1"]).await.unwrap();
    let head = "POST /streaming-message HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n";
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 25];
    soon("the continuation", tls.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
}

#[tokio::test]
async fn p_064_to_066_wrong_starts_get_an_error_for_an_answer() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let good = agent
        .wrapped(&ContactData::default())
        .encode_length_delimited_to_vec();
    let hundred_and_one = agent.wrapped(&ContactData {
        messages: (0..101).map(|number| message("sink", number)).collect(),
        ..ContactData::default()
    });
    let too_many = hundred_and_one.encode_length_delimited_to_vec();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for (start, expected) in [
            ([&[1, 2, 3, 4], &good[..]].concat(), StatusCode::BAD_REQUEST),
            (
                [&MAGIC, &[0x81, 0x80, 0x80, 0x0a][..]].concat(),
                StatusCode::BAD_REQUEST,
            ),
            ([&MAGIC, &[0x80; 11][..]].concat(), StatusCode::BAD_REQUEST),
            (
                [&MAGIC, &b"\x07garbage"[..]].concat(),
                StatusCode::BAD_REQUEST,
            ),
            (
                [&MAGIC, &too_many[..]].concat(),
                StatusCode::INTERNAL_SERVER_ERROR,
            ),
        ] {
            let options = StreamOptions {
                version,
                ..StreamOptions::default()
            };
            let opened = AgentStream::open_with(&agent, options, &start).await;
            assert_eq!(opened.err(), Some(expected));
        }
    }
    let stranger = Agent::without_certificate(bed.addr, &bed.authority);
    let first = WrappedContactData::default();
    let opened = stranger.try_stream(StreamOptions::default(), &first).await;
    assert_eq!(opened.err(), Some(StatusCode::BAD_REQUEST));
    assert_eq!(bed.client_count().await, 0);
    // The next stream of the same agent is served.
    agent.stream(StreamOptions::default()).await;
}

#[tokio::test]
async fn wrong_methods_and_encodings_are_refused() {
    let bed = Bed::start().await;
    let (status, _) = bed
        .agent()
        .fetch(request("GET", "/streaming-message", ""))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let mut gzip = post("/streaming-message", "");
    gzip.headers_mut()
        .insert(CONTENT_ENCODING, "gzip".parse().unwrap());
    let (status, _) = bed.agent().fetch(gzip).await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    // A body without a record is no stream.
    let (status, _) = bed
        .agent()
        .fetch(post("/streaming-message", MAGIC.to_vec()))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    bed.agent().stream(StreamOptions::default()).await;
}

#[tokio::test]
async fn p_067_agent_without_the_required_label_is_refused() {
    let bed = Bed::with(Authority::new(), |config| {
        config.required_label = Some("alpha".into())
    })
    .await;
    let mut agent = bed.agent();
    let first = agent.wrapped(&ContactData::default());
    let opened = agent.try_stream(StreamOptions::default(), &first).await;
    assert_eq!(opened.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    assert!(bed.client(agent.id).await.is_none());
    agent.labels.push("alpha".to_owned());
    agent.stream(StreamOptions::default()).await;
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "the measured figure is worth reading")]
async fn p_074_message_for_a_connected_agent_arrives_at_once() {
    let bed = Bed::start().await;
    let mut admin = bed.admin().await;
    let agent = bed.agent();
    let mut stream = agent.stream(StreamOptions::default()).await;
    let mut delays = Vec::new();
    for number in 0..21 {
        let message = bed.message_for(agent.id, number);
        let started = Instant::now();
        admin.insert_message(message).await.unwrap();
        let frame = stream.frame().await.unwrap();
        delays.push(started.elapsed());
        assert_eq!(numbers(&frame), [number]);
        assert_eq!(frame.sequencing_nonce, stream.first.sequencing_nonce);
    }
    delays.sort();
    println!("median {:?}, slowest {:?}", delays[10], delays[20]);
    assert!(
        delays[10] < Duration::from_millis(50),
        "median {:?}",
        delays[10]
    );
}

#[tokio::test]
async fn p_075_backlog_comes_in_frames_of_hundred_messages() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    agent.poll(&ContactData::default()).await;
    bed.store_messages(agent.id, 0..250).await;
    let mut stream = agent.stream(StreamOptions::default()).await;
    let mut frames = vec![stream.first.clone()];
    for _ in 1..3 {
        frames.push(stream.frame().await.unwrap());
    }
    let counts: Vec<_> = frames.iter().map(|frame| frame.messages.len()).collect();
    assert_eq!(counts, [100, 100, 50]);
    let mut all: Vec<_> = frames.iter().flat_map(numbers).collect();
    all.sort_unstable();
    assert_eq!(all, (0..250).collect::<Vec<_>>());
}

#[tokio::test]
async fn p_078_newer_stream_of_a_client_gets_the_messages_and_both_get_acks() {
    let bed = Bed::start().await;
    let mut admin = bed.admin().await;
    let agent = bed.agent();
    let mut older = agent.stream(StreamOptions::default()).await;
    let mut newer = agent.stream(StreamOptions::default()).await;
    admin
        .insert_message(bed.message_for(agent.id, 7))
        .await
        .unwrap();
    assert_eq!(numbers(&newer.frame().await.unwrap()), [7]);
    for stream in [&mut older, &mut newer] {
        stream.send_contact(&ContactData::default());
        // The next frame of the older stream is this, no message before it.
        assert_eq!(stream.frame().await.unwrap().ack_index, 1);
    }
}

#[tokio::test]
async fn p_080_stop_asks_agents_to_leave_and_waits_for_them() {
    let bed = Bed::with(Authority::new(), |config| {
        config.stop_limit = Duration::from_secs(60)
    })
    .await;
    let mut streams = Vec::new();
    for options in all_options() {
        streams.push(bed.agent().stream(options).await);
    }
    let idle = bed.agent().connect(Version::HTTP_11).await;
    let agents = async {
        for stream in &mut streams {
            assert!(stream.frame().await.unwrap().done_sending);
            // What was on its way is still acknowledged.
            stream.send_contact(&ContactData::default());
            assert_eq!(stream.acks(1).await, [1]);
        }
        drop(streams);
    };
    soon("the stop", async {
        tokio::join!(bed.server.stop(), agents)
    })
    .await;
    drop(idle);
}

#[tokio::test]
async fn p_080_stop_ends_streams_of_agents_that_stay() {
    let bed = Bed::with(Authority::new(), |config| {
        config.stop_limit = Duration::from_secs(2)
    })
    .await;
    let mut stream = bed.agent().stream(StreamOptions::default()).await;
    let started = Instant::now();
    let agent = async {
        assert!(stream.frame().await.unwrap().done_sending);
        assert!(stream.frame().await.is_none());
    };
    soon("the stop", async { tokio::join!(bed.server.stop(), agent) }).await;
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn p_081_streams_can_be_disabled() {
    let bed = Bed::with(Authority::new(), |config| {
        config.agents.as_mut().unwrap().streaming = false;
    })
    .await;
    let agent = bed.agent();
    let (status, _) = agent.fetch(post("/streaming-message", "")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    agent.poll(&ContactData::default()).await;
}

#[tokio::test]
async fn p_083_streams_are_never_compressed() {
    let bed = Bed::start().await;
    let headers = stock_headers();
    let stream = bed
        .agent()
        .stream(StreamOptions {
            headers,
            ..StreamOptions::default()
        })
        .await;
    assert!(!stream.headers().contains_key(CONTENT_ENCODING));
}

#[tokio::test]
async fn p_091_and_093_new_tokens_bring_the_messages_that_waited_for_them() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    agent.poll(&ContactData::default()).await;
    bed.store_messages(agent.id, 0..5).await;
    let tokens = |service: &str, count| ContactData {
        allowed_messages: [(service.to_owned(), count)].into(),
        ..ContactData::default()
    };
    let first = agent.wrapped(&tokens("system", 100));
    let mut stream = agent
        .try_stream(StreamOptions::default(), &first)
        .await
        .unwrap();
    assert!(stream.first.messages.is_empty());
    let mut received = Vec::new();
    for count in [2, 1, 2] {
        stream.send_contact(&tokens("hello", count));
        let mut acked = false;
        let goal = received.len() + usize::try_from(count).unwrap();
        while !acked || received.len() < goal {
            let frame = stream.frame().await.unwrap();
            acked |= frame.ack_index > 0;
            received.extend(numbers(&frame));
        }
        assert_eq!(received.len(), goal);
    }
}

#[tokio::test]
async fn p_123_and_s19_stream_of_a_blacklisted_client_is_wound_down() {
    let bed = Bed::start().await;
    let agent = bed.agent();
    let mut stream = agent.stream(StreamOptions::default()).await;
    let request = BlacklistClientRequest {
        client_id: agent.id.to_bytes(),
    };
    bed.admin().await.blacklist_client(request).await.unwrap();
    let frame = stream.frame().await.unwrap();
    let types: Vec<_> = frame
        .messages
        .iter()
        .map(|message| &message.message_type[..])
        .collect();
    assert_eq!(types, ["RekeyRequest"]);
    assert!(stream.frame().await.unwrap().done_sending);
}

#[tokio::test]
async fn messages_of_a_broken_stream_go_to_the_next_one_unless_they_are_acknowledged() {
    let bed = Bed::start().await;
    let mut admin = bed.admin().await;
    for options in all_options() {
        let about = format!("{options:?}");
        let agent = bed.agent();
        let mut stream = agent.stream(options).await;
        let mut given = Vec::new();
        for number in 1..=3 {
            let message = bed.message_for(agent.id, number);
            given.push(message.message_id.clone());
            admin.insert_message(message).await.unwrap();
            assert_eq!(numbers(&stream.frame().await.unwrap()), [number]);
        }
        stream.send_contact(&ContactData {
            messages: vec![acknowledgement(&given[1])],
            ..ContactData::default()
        });
        assert_eq!(stream.acks(1).await, [1], "{about}");
        let mut next = agent.stream(StreamOptions::default()).await;
        assert!(
            next.first.messages.is_empty(),
            "the messages are the older stream's: {about}"
        );
        drop(stream);
        let mut found = numbers(&next.frame().await.unwrap());
        found.sort_unstable();
        assert_eq!(found, [1, 3], "{about}");
    }
}
