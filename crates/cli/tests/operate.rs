//! The commands of operators against a running server: their data, their messages, and the fields of their JSON.

mod support;

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use fleethold_sqlite::{SqliteOptions, SqliteStore};
use fleethold_store::{ClientData, ClientId, ClientStore, ManualClock, Random, Store};
use serde_json::{Value, json};
use support::Serving;
use tempfile::TempDir;

const CLIENT: &str = "0123456789abcdef";
const ABSENT: &str = "00000000000000ff";

/// A server with one client, seen at a known time.
struct Fleet {
    server: Serving,
    _dir: TempDir,
}

impl Fleet {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        enrol(&dir.path().join("fleethold.db"));
        Self {
            server: Serving::start(dir.path()),
            _dir: dir,
        }
    }

    fn run(&self, arguments: &[&str]) -> support::Finished {
        self.server.run(arguments)
    }

    fn send(&self) -> String {
        let send = [
            "message",
            "send",
            "--client",
            CLIENT,
            "--service",
            "echo",
            "--type",
            "Ping",
            "--data",
            "hi",
        ];
        self.run(&send).data().trim_end().to_owned()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn enrol(database: &Path) {
    let clock = Arc::new(ManualClock::at(1_700_000_000));
    let random = Arc::new(Random::seeded(1));
    let store = SqliteStore::open(database, SqliteOptions::default(), clock, random).unwrap();
    let data = ClientData {
        key: b"key".as_slice().into(),
        labels: vec![fleethold_proto::fleetspeak::Label {
            service_name: "client".to_owned(),
            label: "linux\x1b[2J".to_owned(),
        }],
        blacklisted: false,
    };
    store
        .add_client(CLIENT.parse::<ClientId>().unwrap(), &data)
        .await
        .unwrap();
    store.close().await.unwrap();
}

#[test]
fn an_empty_fleet_is_no_data_and_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let server = Serving::start(dir.path());
    for (arguments, message) in [
        (&["client", "list"] as &[&str], "no clients\n"),
        (
            &["message", "pending", "--client", ABSENT],
            "no pending messages\n",
        ),
        (&["broadcast", "list"], "no active broadcasts\n"),
    ] {
        let finished = server.run(arguments);
        assert_eq!(finished.stderr, message);
        assert_eq!(finished.data(), "");
        let json = [arguments, &["--json"]].concat();
        assert_eq!(server.run(&json).data(), "[]\n");
    }
}

#[test]
fn clients_are_listed_as_a_table_and_as_json() {
    let fleet = Fleet::new();
    let expected = "\
CLIENT            LAST SEEN             ADDRESS  LABELS                 STATE
0123456789abcdef  2023-11-14T22:13:20Z  -        client:linux\\u{1b}[2J
";
    assert_eq!(fleet.run(&["client", "list"]).data(), expected);
    let expected = json!([{
        "client_id": CLIENT,
        "labels": [{ "service_name": "client", "label": "linux\u{1b}[2J" }],
        "last_contact_time": "2023-11-14T22:13:20Z",
        "last_contact_address": null,
        "last_contact_streaming_to": null,
        "last_clock": null,
        "blacklisted": false,
    }]);
    assert_eq!(
        fleet.run(&["client", "list", CLIENT, "--json"]).json(),
        expected
    );
}

#[test]
fn clients_that_do_not_exist_are_named() {
    let fleet = Fleet::new();
    let messages = fleet.run(&["client", "list", CLIENT, ABSENT]).failure(1);
    let expected = format!(
        "error: there is no client `{ABSENT}`\n  hint: `fleethold client list` shows all clients\n"
    );
    assert_eq!(messages, expected);
    // Nothing happens unless all exist.
    fleet
        .run(&["client", "blacklist", CLIENT, ABSENT])
        .failure(1);
    assert_eq!(
        fleet.run(&["client", "list", "--json"]).json()[0]["blacklisted"],
        false
    );
}

#[test]
fn blacklisted_clients_are_shown_as_such() {
    let fleet = Fleet::new();
    let finished = fleet.run(&["client", "blacklist", CLIENT]);
    assert_eq!(finished.stderr, format!("client {CLIENT} is blacklisted\n"));
    assert_eq!(finished.data(), "");
    assert_eq!(
        fleet.run(&["client", "blacklist", CLIENT, "--json"]).json(),
        json!({ "client_ids": [CLIENT] })
    );
    assert_eq!(
        fleet.run(&["client", "list", "--json"]).json()[0]["blacklisted"],
        true
    );
    assert!(
        fleet
            .run(&["client", "list"])
            .data()
            .trim_end()
            .ends_with("blacklisted")
    );
}

#[test]
fn a_sent_message_is_pending_until_it_has_a_result() {
    let fleet = Fleet::new();
    let id = fleet.send();
    assert_eq!(id.len(), 64, "{id}");

    let status = fleet.run(&["message", "status", &id, "--json"]).json();
    let keys: Vec<_> = status
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys,
        [
            "creation_time",
            "failed_reason",
            "message_id",
            "processed_time",
            "state"
        ]
    );
    assert_eq!(status["message_id"], id);
    assert_eq!(status["state"], "pending");
    assert_eq!(status["processed_time"], Value::Null);
    let text = fleet.run(&["message", "status", &id]).data();
    assert!(
        text.starts_with(&format!("message    {id}\nstate      pending\ncreated    ")),
        "{text}"
    );

    let pending = fleet
        .run(&["message", "pending", "--client", CLIENT, "--json"])
        .json();
    let expected = json!([{
        "message_id": id,
        "client_id": CLIENT,
        "source_service": "fleethold",
        "destination_service": "echo",
        "message_type": "Ping",
        "creation_time": status["creation_time"],
    }]);
    assert_eq!(pending, expected);
    let table = fleet
        .run(&["message", "pending", "--client", CLIENT])
        .data();
    let titles: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        titles,
        ["MESSAGE", "CREATED", "CLIENT", "FROM", "TO", "TYPE"]
    );
    assert_eq!(table.lines().count(), 2);
}

#[test]
fn waiting_ends_with_the_result() {
    let fleet = Fleet::new();
    let send = [
        "message",
        "send",
        "--client",
        CLIENT,
        "--service",
        "echo",
        "--type",
        "Ping",
        "--wait",
        "--json",
    ];
    let waiting = fleet
        .server
        .command(&send)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    delete_pending(fleet.server.admin());
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["state"], "failed");
    assert_eq!(status["failed_reason"], "Removed by admin action.");
    let messages = String::from_utf8(output.stderr).unwrap();
    let id = status["message_id"].as_str().unwrap();
    let expected = format!("error: message `{id}` failed\n  cause: Removed by admin action.\n");
    assert_eq!(messages, expected);
}

/// Waits for a pending message of the client and removes it.
#[tokio::main(flavor = "current_thread")]
async fn delete_pending(admin: &str) {
    use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
    use fleethold_proto::fleetspeak::server::{
        DeletePendingMessagesRequest, GetPendingMessageCountRequest,
    };

    let mut admin = AdminClient::connect(format!("http://{admin}"))
        .await
        .unwrap();
    let client_ids = vec![CLIENT.parse::<ClientId>().unwrap().to_bytes()];
    loop {
        let request = GetPendingMessageCountRequest {
            client_ids: client_ids.clone(),
        };
        if admin
            .get_pending_message_count(request)
            .await
            .unwrap()
            .into_inner()
            .count
            > 0
        {
            break;
        }
    }
    let request = DeletePendingMessagesRequest { client_ids };
    admin.delete_pending_messages(request).await.unwrap();
}

#[test]
fn messages_nobody_can_receive_are_refused() {
    let fleet = Fleet::new();
    let send = [
        "message",
        "send",
        "--client",
        ABSENT,
        "--service",
        "echo",
        "--type",
        "Ping",
    ];
    let messages = fleet.run(&send).failure(1);
    let start = format!("error: cannot send a message to client `{ABSENT}`\n  cause: ");
    assert!(messages.starts_with(&start), "{messages}");

    let absent = "00".repeat(32);
    let messages = fleet.run(&["message", "status", &absent]).failure(1);
    assert_eq!(messages, format!("error: there is no message `{absent}`\n"));
}

#[test]
fn payloads_come_from_files_too() {
    let fleet = Fleet::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("payload");
    std::fs::write(&file, b"\x08\x01").unwrap();
    let send = [
        "message",
        "send",
        "--client",
        CLIENT,
        "--service",
        "system",
        "--type",
        "Die",
        "--data-file",
    ];
    let url = [
        "--data-type-url",
        "type.googleapis.com/fleetspeak.DieRequest",
    ];
    let arguments = [&send[..], &[file.to_str().unwrap()], &url].concat();
    assert_eq!(fleet.run(&arguments).data().len(), 65);

    let absent = dir.path().join("absent");
    let arguments = [&send[..], &[absent.to_str().unwrap()]].concat();
    let messages = fleet.run(&arguments).failure(1);
    assert!(
        messages.starts_with(&format!("error: cannot read `{}`", absent.display())),
        "{messages}"
    );
}

#[test]
fn broadcasts_are_listed_until_they_are_disabled() {
    let fleet = Fleet::new();
    let create = [
        "broadcast",
        "create",
        "--service",
        "echo",
        "--type",
        "Ping",
        "--data",
        "hi",
    ];
    let unlimited = fleet.run(&create).data().trim_end().to_owned();
    assert_eq!(unlimited.len(), 16, "{unlimited}");
    let more = [
        "--limit",
        "5",
        "--label",
        "client:linux",
        "--label",
        "blue:x:y",
        "--expires-in",
        "3600",
        "--json",
    ];
    let limited = fleet.run(&[&create[..], &more].concat()).json();
    let limited = limited["broadcast_id"].as_str().unwrap();

    let list = fleet.run(&["broadcast", "list", "--json"]).json();
    let find = |id: &str| {
        let found = list
            .as_array()
            .unwrap()
            .iter()
            .find(|broadcast| broadcast["broadcast_id"] == id);
        found
            .cloned()
            .unwrap_or_else(|| panic!("no {id} in {list}"))
    };
    let expected = json!({
        "broadcast_id": unlimited,
        "source_service": "fleethold",
        "destination_service": "echo",
        "message_type": "Ping",
        "required_labels": [],
        "group_name": null,
        "expiration_time": null,
    });
    assert_eq!(find(&unlimited), expected);
    let labels = json!([
        { "service_name": "blue", "label": "x:y" },
        { "service_name": "client", "label": "linux" },
    ]);
    let mut found = find(limited)["required_labels"].as_array().unwrap().clone();
    found.sort_by_key(ToString::to_string);
    found.sort_by_key(|label| label["service_name"].to_string());
    assert_eq!(Value::Array(found), labels);
    assert!(find(limited)["expiration_time"].is_string());
    let table = fleet.run(&["broadcast", "list"]).data();
    let row = table
        .lines()
        .find(|line| line.starts_with(&unlimited))
        .unwrap();
    assert!(row.ends_with("never"), "{table}");

    // Nothing happens unless all are active.
    let messages = fleet
        .run(&["broadcast", "disable", &unlimited, ABSENT])
        .failure(1);
    let expected = format!(
        "error: there is no active broadcast `{ABSENT}`\n  \
         hint: `fleethold broadcast list` shows all active broadcasts\n"
    );
    assert_eq!(messages, expected);
    assert_eq!(fleet.run(&["broadcast", "list", "--json"]).json(), list);

    let finished = fleet.run(&["broadcast", "disable", &unlimited]);
    assert_eq!(
        finished.stderr,
        format!("broadcast {unlimited} is disabled\n")
    );
    assert_eq!(finished.data(), "");
    fleet.run(&["broadcast", "disable", &unlimited]).failure(1);
    let finished = fleet.run(&["broadcast", "disable", limited, "--json"]);
    assert_eq!(
        finished.stderr,
        format!("broadcast {limited} is disabled\n")
    );
    assert_eq!(finished.json(), json!({ "broadcast_ids": [limited] }));
    assert_eq!(fleet.run(&["broadcast", "list", "--json"]).data(), "[]\n");
}

#[test]
fn files_are_stored_and_removed() {
    let fleet = Fleet::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "content").unwrap();
    let finished = fleet.run(&["file", "put", "echo", "a/b", file.to_str().unwrap()]);
    assert_eq!(
        finished.stderr,
        "stored file a/b of service echo, 7 bytes\n"
    );
    assert_eq!(finished.data(), "");
    for _ in 0..2 {
        let finished = fleet.run(&["file", "rm", "echo", "a/b"]);
        assert_eq!(finished.stderr, "removed file a/b of service echo\n");
        assert_eq!(finished.data(), "");
    }
    let put = [
        "file",
        "put",
        "echo",
        "a/b",
        file.to_str().unwrap(),
        "--json",
    ];
    assert_eq!(
        fleet.run(&put).json(),
        json!({ "service": "echo", "name": "a/b", "bytes": 7 })
    );
    assert_eq!(
        fleet.run(&["file", "rm", "echo", "a/b", "--json"]).json(),
        json!({ "service": "echo", "name": "a/b" })
    );
    let absent = dir.path().join("absent");
    let messages = fleet
        .run(&["file", "put", "echo", "a", absent.to_str().unwrap()])
        .failure(1);
    let start = format!(
        "error: cannot read `{}`\n  cause: No such file",
        absent.display()
    );
    assert!(messages.starts_with(&start), "{messages}");
}

#[test]
fn files_over_the_limit_of_a_request_are_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; 4 * 1024 * 1024]).unwrap();
    let path = path.to_str().unwrap();
    let expected = format!(
        "error: `{path}` has 4194304 bytes, with it the request exceeds the 4194304-byte limit\n  \
         hint: compress the file or split it into smaller ones\n"
    );
    let send = ["message", "send", "--client", CLIENT];
    let create = ["broadcast", "create"];
    let what = ["--service", "echo", "--type", "Ping", "--data-file", path];
    for arguments in [
        &["file", "put", "echo", "a", path] as &[&str],
        &[&send[..], &what].concat(),
        &[&create[..], &what].concat(),
    ] {
        // Nobody listens on port 1.
        let arguments = [arguments, &["--admin", "localhost:1"]].concat();
        assert_eq!(support::run(&arguments).failure(1), expected);
    }
}

#[test]
fn the_address_of_the_server_may_come_from_the_environment() {
    let fleet = Fleet::new();
    let mut command = support::command();
    command
        .args(["client", "list", "--json"])
        .env("FLEETHOLD_ADMIN", fleet.server.admin());
    assert_eq!(
        support::finish(&mut command)
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );
}
