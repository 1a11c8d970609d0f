//! Metrics over a real server and agent (protocol specification section 5.5).

use fleethold_proto::fleetspeak::monitoring::KillNotification;
use fleethold_proto::fleetspeak::monitoring::kill_notification::Reason;
use fleethold_proto::fleetspeak::{ContactData, Message};
use fleethold_proto::pack;
use fleethold_server::Config;
use http::StatusCode;

use super::{ask, watched};
use crate::agent::{Authority, StreamOptions, message, soon};
use crate::bed::Bed;

async fn bed() -> Bed {
    Bed::with(Authority::new(), |config: &mut Config| watched(config)).await
}

async fn scrape(bed: &Bed) -> String {
    let (status, text) = ask(bed.server.stats_addr().unwrap(), "GET", "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    text
}

/// Returns the value of the series that begins with `series`, label values included.
fn value(text: &str, series: &str) -> f64 {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with(series))
        .collect();
    let [line] = lines[..] else {
        panic!("{series}: {lines:?} in\n{text}")
    };
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn p_199_poll_of_an_agent_is_counted_under_upstreams_names() {
    let bed = bed().await;
    let agent = bed.agent();
    let contact = ContactData {
        messages: vec![message("sink", 1), message("nobody", 2)],
        ..ContactData::default()
    };
    agent.poll(&contact).await;
    bed.store_messages(agent.id, 0..3).await;
    assert_eq!(agent.poll(&ContactData::default()).await.messages.len(), 3);

    let text = scrape(&bed).await;
    let polls = "fleetspeak_server_client_polls_total{cache_hit=";
    let poll =
        |hit: &str| format!("{polls}\"{hit}\",http_status_code=\"200\",poll_type=\"POLL\"}}");
    assert_eq!(value(&text, &poll("false")), 1.0);
    assert_eq!(value(&text, &poll("true")), 1.0);
    let read =
        "fleetspeak_server_client_polls_read_megabytes_size_distribution_sum{cache_hit=\"false\"";
    assert!(value(&text, read) > 0.0);
    // Only for services there are, and stored whatever became of them.
    assert_eq!(value(&text, "fleetspeak_messages_ingested_total{"), 1.0);
    let saved = text
        .lines()
        .filter(|line| line.starts_with("fleetspeak_messages_saved_total{"));
    assert_eq!(saved.count(), 2, "{text}");
    assert_eq!(value(&text, "fleetspeak_messages_sent_total{"), 3.0);
    assert_eq!(
        value(&text, "fleetspeak_server_messages_processed_latency_count{"),
        1.0
    );
    let errored = "fleetspeak_server_messages_errored_latency_count{";
    assert_eq!(value(&text, errored), 1.0);
    assert!(text.contains("is_temp=\"true\""), "{text}");
    let store = "fleetspeak_server_datastore_operations_completed_latency_count{errored=\"false\",operation=";
    assert_eq!(value(&text, &format!("{store}\"StoreContact\"}}")), 2.0);
    assert_eq!(value(&text, &format!("{store}\"GetClientData\"}}")), 1.0);
    assert_eq!(value(&text, "fleethold_claim_latency_seconds_count"), 2.0);
    assert_eq!(value(&text, "fleethold_queue_depth{queue=\"server\"}"), 0.0);
    assert_eq!(
        value(&text, "fleethold_refusals_total{reason=\"connections\"}"),
        0.0
    );
}

#[tokio::test]
async fn p_112_kill_notification_is_counted_with_reason_and_service() {
    let bed = bed().await;
    let agent = bed.agent();
    let killed = KillNotification {
        service: "hello".to_owned(),
        reason: Reason::MemoryExceeded.into(),
        ..KillNotification::default()
    };
    for number in 0..2 {
        let contact = ContactData {
            messages: vec![Message {
                message_type: "KillNotification".to_owned(),
                data: Some(pack(&killed)),
                ..message("system", number)
            }],
            ..ContactData::default()
        };
        agent.poll(&contact).await;
    }
    let text = scrape(&bed).await;
    let kills = "fleetspeak_server_kill_notifications_received_total{";
    assert_eq!(value(&text, kills), 2.0);
    let line = text.lines().find(|line| line.starts_with(kills)).unwrap();
    for part in ["\"hello\"", "\"MEMORY_EXCEEDED\""] {
        assert!(line.contains(part), "{line}");
    }
}

#[tokio::test]
async fn p_199_stream_is_counted_with_its_start_records_and_frames_and_does_not_crash() {
    let bed = bed().await;
    let agent = bed.agent();
    let mut stream = agent.stream(StreamOptions::default()).await;
    assert_eq!(value(&scrape(&bed).await, "fleethold_streams"), 1.0);
    let record = ContactData {
        messages: vec![message("sink", 1)],
        ..ContactData::default()
    };
    stream.send(&agent.wrapped(&record));
    assert_eq!(stream.frame().await.unwrap().ack_index, 1);
    let mut admin = bed.admin().await;
    admin
        .insert_message(bed.message_for(agent.id, 1))
        .await
        .unwrap();
    assert_eq!(stream.frame().await.unwrap().messages.len(), 1);

    // A frame counts when it is written, a moment after the agent has it.
    let counted = async {
        loop {
            let text = scrape(&bed).await;
            if text.contains("poll_type=\"STREAM_TO_CLIENT\"") {
                return text;
            }
        }
    };
    let text = soon("the frame in the metrics", counted).await;
    for kind in ["STREAM_START", "STREAM_FROM_CLIENT", "STREAM_TO_CLIENT"] {
        let hit = kind != "STREAM_START";
        let labels =
            format!("{{cache_hit=\"{hit}\",http_status_code=\"200\",poll_type=\"{kind}\"}}");
        let polls = "fleetspeak_server_client_polls";
        assert_eq!(
            value(&text, &format!("{polls}_total{labels}")),
            1.0,
            "{kind}"
        );
        let time = value(
            &text,
            &format!("{polls}_operation_time_latency_sum{labels}"),
        );
        assert!(time >= 0.0, "{kind}: {time}");
    }
    drop(stream);
    let closed = async { while value(&scrape(&bed).await, "fleethold_streams") > 0.0 {} };
    soon("the end of the stream in the metrics", closed).await;
}

#[tokio::test]
async fn p_199_other_paths_and_methods_of_the_stats_port_are_refused() {
    let bed = bed().await;
    let addr = bed.server.stats_addr().unwrap();
    assert_eq!(ask(addr, "GET", "/").await.0, StatusCode::NOT_FOUND);
    assert_eq!(
        ask(addr, "GET", "/debug/pprof").await.0,
        StatusCode::NOT_FOUND
    );
    let (status, _) = ask(addr, "POST", "/metrics").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(ask(addr, "GET", "/metrics").await.0, StatusCode::OK);
}
