//! A server on a database of MySQL or MariaDB, named as users name it.

#[path = "support/database.rs"]
mod database;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use database::{database, sql};
use fleethold_proto::fleetspeak::server::GetPendingMessagesRequest;
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_proto::fleetspeak::{Address, Message};
use support::{Serving, command, finish, run};

#[test]
fn server_keeps_its_data_in_a_database_named_by_url() {
    let dir = tempfile::tempdir().unwrap();
    let database = database("url");
    let arguments = ["--store", &database.url];
    let server = Serving::start_with(&dir.path().join("data"), &arguments);
    server
        .run(&[
            "file",
            "put",
            "service",
            "name",
            file(dir.path()).to_str().unwrap(),
        ])
        .data();
    server.stop();
    let sizes = run(["store", "stats", "--store", &database.url, "--json"]).json();
    assert_eq!(sizes["tables"]["files"], 1, "{sizes}");
    let checked = run(["store", "check", "--store", &database.url, "--json"]);
    assert_eq!(checked.json(), serde_json::json!([]));
}

/// Inserts messages for a client until the server ends; returns how many were
/// answered with success. Tells when there are some.
#[tokio::main(flavor = "current_thread")]
async fn insert(admin: String, first: u64, some: Sender<()>) -> u64 {
    let admin = AdminClient::connect(format!("http://{admin}")).await;
    let mut admin = admin.expect("an admin interface");
    for number in 0..100_000 {
        let mut id = [7; 32];
        id[24..].copy_from_slice(&(first + number).to_be_bytes());
        let message = Message {
            message_id: id.to_vec().into(),
            source: Some(Address {
                service_name: "hello".into(),
                ..Address::default()
            }),
            destination: Some(Address {
                client_id: CLIENT.to_vec().into(),
                service_name: "hello".into(),
            }),
            ..Message::default()
        };
        if admin.insert_message(message).await.is_err() {
            return number;
        }
        if number == 50 {
            some.send(()).expect("somebody waits");
        }
    }
    panic!("the server does not end");
}

#[tokio::main(flavor = "current_thread")]
async fn pending(admin: &str) -> BTreeSet<u64> {
    let mut admin = AdminClient::connect(format!("http://{admin}"))
        .await
        .unwrap();
    let request = GetPendingMessagesRequest {
        client_ids: vec![CLIENT.to_vec().into()],
        ..GetPendingMessagesRequest::default()
    };
    let found = admin.get_pending_messages(request).await.unwrap();
    let numbers = found.into_inner().messages.into_iter().map(|message| {
        let end = message.message_id[24..].try_into().expect("eight bytes");
        u64::from_be_bytes(end)
    });
    numbers.collect()
}

const CLIENT: [u8; 8] = [1; 8];

#[test]
fn server_that_is_killed_again_and_again_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let database = database("killed");
    let start = || Serving::start_with(&data, &["--store", &database.url]);
    start().stop();
    sql(
        &database.url,
        &[
            "INSERT INTO clients (client_id, client_key, blacklisted, last_contact_time) \
           VALUES (x'0101010101010101', '', 0, 1)",
        ],
    );
    let mut acknowledged = BTreeSet::new();
    for round in 0..5 {
        let server = start();
        let first = round * 1_000_000;
        let (some, are_there) = channel();
        let admin = server.admin().to_owned();
        let inserting = std::thread::spawn(move || insert(admin, first, some));
        are_there
            .recv_timeout(Duration::from_secs(60))
            .expect("messages are acknowledged");
        server.signal("KILL");
        let count = inserting.join().unwrap();
        acknowledged.extend(first..first + count);
        drop(server);
    }
    let server = start();
    let found = pending(server.admin());
    server.stop();
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "{lost:?} of {}", acknowledged.len());
    // The one under way at each kill may be there or not.
    assert!(found.len() <= acknowledged.len() + 5, "{}", found.len());
}

#[test]
fn store_that_cannot_be_used_is_one_clear_message() {
    let dir = tempfile::tempdir().unwrap();
    let database = database("refused");
    for (url, status, problem) in [
        (
            database.url.replace(":fleethold@", ":sesame@"),
            1,
            "refuses user `fleethold`; check name, password",
        ),
        (format!("{}_none", database.url), 1, "CREATE DATABASE"),
        (
            database.url.replace("/fleethold_cli", "?x/fleethold_cli"),
            2,
            "write mysql://USER:PASSWORD@HOST:PORT/DATABASE",
        ),
        (
            "mysql://fleethold:sesame@127.0.0.1:1,127.0.0.1:2/fleet".to_owned(),
            75,
            "cannot reach the database server",
        ),
    ] {
        let data = dir.path().join("data");
        let mut command = command();
        command.args(["serve", "--listen", "127.0.0.1:0", "--store", &url]);
        command
            .args(["--admin-listen", "127.0.0.1:0", "--data-dir"])
            .arg(data);
        let text = finish(&mut command).failure(status);
        assert!(text.contains(problem), "{url}: {text}");
        assert!(!text.contains("sesame"), "{text}");
    }
}

fn file(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("content");
    fs::write(&path, "content").unwrap();
    path
}

#[test]
fn database_of_a_stock_server_is_taken_over_when_somebody_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let database = database("dsn");
    let data = dir.path().join("data");
    // The same tables without our additions, as a stock server leaves them.
    Serving::start_with(&data, &["--store", &database.url]).stop();
    sql(
        &database.url,
        &[
            "DROP TABLE fleethold_messages, fleethold_broadcast_groups, \
             fleethold_broadcast_messages, fleethold_copies, fleethold_leases, \
             fleethold_locks, fleethold_schema",
            "ALTER TABLE pending_messages DROP INDEX fleethold_queue, DROP COLUMN fleethold_queue",
        ],
    );
    let components = dir.path().join("components.config");
    fs::write(
        &components,
        format!(
            "mysql_data_source_name: \"{}\"\n\
             admin_config: < listen_address: \"localhost:0\" >\n",
            database.dsn
        ),
    )
    .unwrap();
    let serve = |more: &[&str]| {
        let mut command = command();
        command
            .arg("serve")
            .arg("--components-config")
            .arg(&components)
            .args(more);
        command
    };
    let refused = finish(&mut serve(&[])).failure(1);
    assert!(refused.contains("--takeover=check"), "{refused}");
    let report = finish(&mut serve(&["--takeover=check"])).data();
    for part in [
        "was made by a stock server",
        "to be added: column `pending_messages.fleethold_queue`",
        "cannot be promised: contacts after the 2147483647th",
    ] {
        assert!(report.contains(part), "{report}");
    }
    assert!(!report.contains("fleethold:fleethold"), "{report}");
    let server = Serving::spawn(&mut serve(&["--takeover=add"]));
    assert_eq!(server.run(&["client", "list", "--json"]).data(), "[]\n");
    server.stop();
    // Once is enough.
    Serving::spawn(&mut serve(&[])).stop();
}
