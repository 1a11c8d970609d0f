//! Stores move between databases of all kinds, and servers on them remove what is old.

#[expect(dead_code, reason = "each test program uses its part")]
#[path = "support/database.rs"]
mod database;
mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::fleetspeak::monitoring::ResourceUsageData;
use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_proto::fleetspeak::{Address, Label, Message, MessageResult};
use fleethold_proto::{Any, Timestamp};
use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{
    BROADCAST_UNLIMITED, BroadcastId, BroadcastStore, ClientData, ClientId, ClientStore,
    ContactData, FileStore, ManualClock, MessageStore, Random, Store,
};
use fleethold_testdb::{Proxy, postgres};
use serde_json::Value;
use support::{Serving, command, run};

const CLIENTS: u64 = 1_200;
const MESSAGES: u64 = 1_300;

fn client(number: u64) -> ClientId {
    ClientId::new(number.to_be_bytes())
}

fn seconds(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

fn message(number: u64, from: Option<ClientId>, to: Option<ClientId>) -> Message {
    let address = |id: Option<ClientId>| {
        Some(Address {
            client_id: id.map(ClientId::to_bytes).unwrap_or_default(),
            service_name: "hello".into(),
        })
    };
    let mut id = [7; 32];
    // Spread, as real ids are.
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    Message {
        message_id: Bytes::copy_from_slice(&id),
        source: address(from),
        source_message_id: Bytes::from(vec![9; 20]),
        destination: address(to),
        message_type: "Greeting".into(),
        creation_time: seconds(40),
        data: Some(Any {
            type_url: "type.example/Ä".into(),
            value: Bytes::from(vec![5; usize::try_from(number % 300).unwrap()]),
        }),
        ..Message::default()
    }
}

/// Stores something in every table: in most of them more than one page.
#[tokio::main(flavor = "current_thread")]
async fn fill(path: &Path) {
    let clock = Arc::new(ManualClock::at(100_000));
    let random = Arc::new(Random::seeded(1));
    let store = SqliteStore::open(
        path,
        SqliteOptions::default(),
        Arc::<ManualClock>::clone(&clock),
        random,
    )
    .unwrap();
    for number in 1..=CLIENTS {
        let label = |service: &str, label: &str| Label {
            service_name: service.into(),
            label: label.into(),
        };
        let data = ClientData {
            key: Bytes::from_static(b"key"),
            labels: vec![label("client", "linux"), label("client", "Linux")],
            blacklisted: number % 7 == 0,
        };
        store.add_client(client(number), &data).await.unwrap();
    }
    let down: Vec<_> = (0..MESSAGES)
        .map(|number| message(number, None, Some(client(1 + number % CLIENTS))))
        .collect();
    store.store_messages(&down, None).await.unwrap();
    let claimed = store
        .client_messages_for_processing(client(1), 1, None)
        .await
        .unwrap();
    assert_eq!(claimed.len(), 1);
    for number in 0..40 {
        clock.advance(Duration::from_secs(1));
        let up: Vec<_> = (0..20)
            .map(|at| message(10_000 + 20 * number + at, Some(client(number + 1)), None))
            .collect();
        let contact = ContactData {
            client_id: client(number + 1),
            nonce_sent: u64::MAX - number,
            nonce_received: number,
            addr: "10.0.0.1:5".into(),
            labels: Vec::new(),
            client_clock: seconds(50),
            streaming_to: Some("host:1".into()).filter(|_| number % 2 == 0),
        };
        let contact = store.store_contact(&contact, &up).await.unwrap();
        let ids = [down[usize::try_from(number).unwrap()].message_id.clone()];
        let ids = ids.map(|id| id[..].try_into().unwrap());
        store
            .link_messages_to_contact(&contact, &ids)
            .await
            .unwrap();
        let result = MessageResult {
            processed_time: seconds(60),
            failed: number % 3 == 0,
            failed_reason: "no \0 way".into(),
        };
        let id = up[0].message_id[..].try_into().unwrap();
        store.set_message_result(None, id, &result).await.unwrap();
        let report = ResourceUsageData {
            process_start_time: seconds(70),
            data_timestamp: seconds(80),
            ..ResourceUsageData::default()
        };
        store
            .record_resource_usage_data(client(number + 1), &report)
            .await
            .unwrap();
    }
    for (number, limit) in [(1, 100), (2, BROADCAST_UNLIMITED)] {
        let broadcast = Broadcast {
            broadcast_id: Bytes::copy_from_slice(&u64::to_be_bytes(number)),
            source: Some(Address {
                service_name: "hello".into(),
                ..Address::default()
            }),
            message_type: "Greeting".into(),
            expiration_time: seconds(10_000_000),
            group_name: "group".into(),
            data: Some(Any {
                type_url: "type".into(),
                // Larger than what is written into a statement.
                value: Bytes::from(vec![1; 400_000]),
            }),
            ..Broadcast::default()
        };
        store.create_broadcast(&broadcast, limit).await.unwrap();
    }
    let id = BroadcastId::new(u64::to_be_bytes(2));
    let carried = message(20_000, None, Some(client(3)));
    store
        .save_broadcast_message(&carried, id, client(3), None)
        .await
        .unwrap();
    let content = vec![3; 700_000];
    for name in ["", "Ä", "ä", "a"] {
        store
            .store_file("hello", name, &mut &content[..])
            .await
            .unwrap();
    }
    store.close().await.unwrap();
}

/// Copies a store and returns how many rows each table has.
#[track_caller]
fn copy(from: &str, to: &str) -> Vec<(String, u64)> {
    let copied = run(["store", "copy", "--from", from, "--to", to, "--json"]).json();
    let tables = copied["tables"].as_array().unwrap();
    let rows = tables.iter().map(|table| {
        assert_eq!(table["equal"], true, "{table}");
        let name = table["table"].as_str().unwrap().to_owned();
        (name, table["rows"].as_u64().unwrap())
    });
    let checked = run(["store", "check", "--store", to, "--json"]).json();
    assert_eq!(checked, Value::Array(Vec::new()), "{to}");
    rows.collect()
}

/// Begins a copy that ends after some requests to the target's database: because
/// that is out of reach, or because the process is killed.
#[tokio::main]
async fn interrupted_copy(from: &str, to: &str, requests: u64, kill: bool) {
    let (server, database) = to.rsplit_once('/').unwrap();
    let (begin, port) = server.rsplit_once(':').unwrap();
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().unwrap()));
    let proxy = Proxy::start(target).await.unwrap();
    let through = format!("{begin}:{}/{database}", proxy.port());
    let mut copying = command();
    copying.args(["store", "copy", "--from", from, "--to", &through]);
    let mut copying = copying.stderr(Stdio::piped()).spawn().unwrap();
    while proxy.round_trips() < requests {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(copying.try_wait().unwrap(), None, "it is not done yet");
    }
    if kill {
        copying.kill().unwrap();
    } else {
        proxy.refuse(true);
    }
    let failed = tokio::task::spawn_blocking(|| copying.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let messages = String::from_utf8(failed.stderr).unwrap();
    assert!(!failed.status.success(), "{messages}");
    if !kill {
        assert!(messages.contains("goes on where it was"), "{messages}");
    }
}

#[test]
fn stores_are_copied_between_all_kinds_of_databases_and_copies_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first.db");
    fill(&first);
    let first = format!("sqlite:{}", first.display());
    let mysql = database::database("moving");
    let server = postgres::private(&[]).expect("PostgreSQL is installed");
    let postgres = format!("{}/postgres", postgres::url(server.port()));
    let last = format!("sqlite:{}", dir.path().join("last.db").display());

    // Makes the tables, so that requests are those of the copy.
    for store in [&postgres, &mysql.url] {
        Serving::start_with(&dir.path().join("data"), &["--store", store]).stop();
    }
    interrupted_copy(&first, &mysql.url, 40, false);
    let come = run(["store", "stats", "--store", &mysql.url, "--json"]).json();
    let come = come["tables"]["clients"].as_u64().unwrap();
    assert!(come > 0, "{come} clients have come");

    let rows = copy(&first, &mysql.url);
    assert!(rows.iter().all(|(_, rows)| *rows > 0), "{rows:?}");
    assert!(rows.contains(&("clients".to_owned(), CLIENTS)), "{rows:?}");
    interrupted_copy(&mysql.url, &postgres, 60, true);
    assert_eq!(copy(&mysql.url, &postgres), rows);
    assert_eq!(copy(&postgres, &last), rows);
    // What has gone round is what it was.
    let again = run(["store", "copy", "--from", &first, "--to", &last]).failure(1);
    assert!(again.contains("part of a copy of postgres://"), "{again}");
    let back = format!("sqlite:{}", dir.path().join("back.db").display());
    assert_eq!(copy(&last, &back), rows);
}

#[test]
fn the_database_of_a_stock_server_is_copied_when_somebody_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mysql = database::database("stock");
    Serving::start_with(&dir.path().join("data"), &["--store", &mysql.url]).stop();
    // As a stock server leaves it, with a client that it has stored.
    database::sql(
        &mysql.url,
        &[
            "DROP TABLE fleethold_messages, fleethold_broadcast_groups, \
             fleethold_broadcast_messages, fleethold_copies, fleethold_leases, \
             fleethold_locks, fleethold_schema",
            "ALTER TABLE pending_messages DROP INDEX fleethold_queue, DROP COLUMN fleethold_queue",
            "INSERT INTO clients VALUES (x'0000000000000001', NULL, 0, 7, NULL, NULL, NULL, NULL)",
        ],
    );
    let to = format!("sqlite:{}", dir.path().join("to.db").display());
    let copy = ["store", "copy", "--from", &mysql.url, "--to", &to];
    let refused = run(copy).failure(1);
    assert!(refused.contains("--takeover=check"), "{refused}");
    let report = run([&copy[..], &["--takeover=check"]].concat()).data();
    assert!(report.contains("was made by a stock server"), "{report}");
    run([&copy[..], &["--takeover=add"]].concat()).data();
    let stats = run(["store", "stats", "--store", &to, "--json"]).json();
    assert_eq!(stats["tables"]["clients"], 1);
}

#[test]
fn servers_on_each_kind_of_database_remove_what_they_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mysql = database::database("keep");
    let server = postgres::private(&[]).expect("PostgreSQL is installed");
    let postgres = format!("{}/postgres", postgres::url(server.port()));
    let kept = |store: &str, more: &[&str]| {
        let arguments = [&["--store", store], more].concat();
        let mut server = Serving::start_with(&dir.path().join("data"), &arguments);
        server.wait_for_log("what is older is removed");
        let line = server.log.lines().last().unwrap().to_owned();
        server.stop();
        line
    };
    let line = kept(&postgres, &["--keep-usage", "3"]);
    for part in [
        "contacts=\"14 days\"",
        "usage=\"3 days\"",
        "messages=\"15 days\"",
    ] {
        assert!(line.contains(part), "{line}");
    }
    // A stock server on the same database removes nothing.
    let line = kept(&mysql.url, &[]);
    assert_eq!(line.matches("for ever").count(), 4, "{line}");
    let line = kept(&mysql.url, &["--keep-messages", "2"]);
    assert!(line.contains("messages=\"2 days\""), "{line}");
    assert_eq!(line.matches("for ever").count(), 3, "{line}");
}
