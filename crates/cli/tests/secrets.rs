//! What a server that is used, refused and abused writes to its log: no
//! payloads, no tokens, no keys (S18).

#[path = "../../server/tests/agent/mod.rs"]
mod agent;
mod support;

use std::fs;
use std::path::Path;

use agent::{Agent, Authority, StreamOptions, message, post};
use bytes::Bytes;
use fleethold_proto::fleetspeak::monitoring::KillNotification;
use fleethold_proto::fleetspeak::{ContactData, Message, MessageErrorData, WrappedContactData};
use fleethold_proto::{Any, pack};
use http::StatusCode;
use prost::Message as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use support::Serving;

const TOKEN: &str = "hidden-token-4711";
/// Its SHA-256.
const TOKEN_SHA256: &str = "cda5580f591eb56ec5ce65b88ca40f286a1925307384d8886408dcbdf56d0868";
const WRONG_TOKEN: &str = "hidden-stranger-0815";

/// In everything that passes through and nobody but its receiver may read.
const PAYLOAD: &str = "hidden-payload";

fn with_payload(message: Message) -> Message {
    Message {
        data: Some(Any {
            type_url: "type.googleapis.com/x".to_owned(),
            value: Bytes::from_static(PAYLOAD.as_bytes()),
        }),
        ..message
    }
}

/// What agents do, and what they should not.
#[tokio::main(flavor = "current_thread")]
async fn use_and_abuse(server: &str, root: CertificateDer<'static>) -> String {
    let authority = Authority::trusted(root);
    let agent = Agent::new(server.parse().unwrap(), &authority);
    let killed = KillNotification {
        service: "hello\nINFO forged line".to_owned() + &"x".repeat(10_000),
        ..KillNotification::default()
    };
    let report = MessageErrorData {
        message_id: Bytes::from_static(&[7; 32]),
        error: PAYLOAD.to_owned(),
    };
    let to_system = |number, kind: &str, data| Message {
        message_type: kind.to_owned(),
        data: Some(data),
        ..message("system", number)
    };
    let contact = ContactData {
        messages: vec![
            // A service that does not answer, one that does not exist, and `system`.
            with_payload(message("absent", 1)),
            with_payload(message("nobody", 2)),
            with_payload(message("system", 3)),
            to_system(4, "KillNotification", pack(&killed)),
            to_system(5, "MessageError", pack(&report)),
        ],
        ..ContactData::default()
    };
    agent.poll(&contact).await;
    let garbage = WrappedContactData {
        contact_data: Bytes::from_static(PAYLOAD.as_bytes()),
        ..WrappedContactData::default()
    };
    let (status, _) = agent.fetch(post("/message", garbage.encode_to_vec())).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let (status, _) = agent.fetch(post("/message", PAYLOAD)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let mut stream = agent.stream(StreamOptions::default()).await;
    stream.send_contact(&contact);
    assert_eq!(stream.acks(1).await, [1]);
    let length = u8::try_from(PAYLOAD.len()).unwrap();
    stream.send_bytes(&[&[length], PAYLOAD.as_bytes()].concat());
    while stream.frame().await.is_some() {}
    agent.id.to_string()
}

fn file(dir: &Path, name: &str, content: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn s18_log_of_a_server_holds_no_payloads_tokens_and_keys() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let access = format!("token alice {TOKEN_SHA256} all\n");
    let access = file(dir.path(), "access", &access);
    let token = file(dir.path(), "token", TOKEN);
    let wrong_token = file(dir.path(), "wrong", WRONG_TOKEN);
    let payload = file(dir.path(), "payload", PAYLOAD);
    // Nobody listens on port 1.
    let server = Serving::start_with(
        &data,
        &["--admin-access", &access, "--service", "absent=127.0.0.1:1"],
    );
    let root = CertificateDer::from_pem_file(data.join("ca.pem")).unwrap();
    let client = use_and_abuse(server.agents(), root);

    let operator = |arguments: &[&str], token: &str| {
        server.run(&[arguments, &["--admin-token-file", token]].concat())
    };
    let send = ["message", "send", "--service", "hello", "--type", "Order"];
    let order = ["--client", &client, "--data", PAYLOAD];
    operator(&[&send[..], &order].concat(), &token).data();
    let unknown = ["--client", "00000000000000ff", "--data", PAYLOAD];
    operator(&[&send[..], &unknown].concat(), &token).failure(1);
    operator(&[&send[..], &order].concat(), &wrong_token).failure(1);
    operator(&["file", "put", "hello", "tool", &payload], &token).data();

    server.signal("TERM");
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(0), "{log}");
    for expected in [
        "agent killed a service",
        "alice",
        "InsertMessage",
        "cannot serve",
    ] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    let mut secrets = vec![
        PAYLOAD.to_owned(),
        "hidden-".to_owned(),
        TOKEN_SHA256.to_owned(),
    ];
    for key in ["ca-key.pem", "server-key.pem"] {
        let pem = fs::read_to_string(data.join(key)).unwrap();
        secrets.extend(pem.lines().map(str::to_owned));
    }
    for secret in secrets {
        assert!(!log.contains(&secret), "{secret} in {log}");
    }
    assert!(!log.lines().any(|line| line.starts_with("INFO forged")));
    let longest = log.lines().map(str::len).max();
    assert!(longest < Some(2_000), "{log}");
}
