//! The program's own commands, with an agent at the other end.

use std::fs;

use crate::harness::{AgentOptions, Bed, ECHO, text};

#[test]
fn the_command_line_lists_the_agent_and_sends_it_a_message() {
    let bed = Bed::start();
    let agent = bed.start_agent("one", AgentOptions::STREAMING);
    let client = bed.service.client_of(&agent);

    for list in [
        bed.server.run(&["client", "list"]),
        bed.server.run(&["client", "list", "--json"]),
    ] {
        assert!(list.contains(&client.id) && list.contains("one"), "{list}");
    }

    let send = [
        "message",
        "send",
        "--client",
        &client.id,
        "--service",
        ECHO,
        "--type",
        "Text",
    ];
    let id = bed.server.run(
        &[
            &send[..],
            &["--source-service", ECHO, "--data", "from the command line"],
        ]
        .concat(),
    );
    bed.service.wait_until_done(&[id.trim().to_owned()]);
    bed.server.run(&["message", "status", id.trim()]);
}

#[test]
fn the_command_line_creates_and_ends_a_broadcast() {
    let bed = Bed::start();
    let agent = bed.start_agent(
        "one",
        AgentOptions {
            label: Some("canary"),
            ..AgentOptions::STREAMING
        },
    );
    let client = bed.service.client_of(&agent);
    bed.service.exchange(&client, "hello");

    let create = [
        "broadcast",
        "create",
        "--service",
        ECHO,
        "--type",
        "Note",
        "--label",
        "client:canary",
    ];
    let id = bed.server.run(&create).trim().to_owned();
    agent.wait_for_delivery(|delivery| delivery.kind == "Note");

    let list = bed.server.run(&["broadcast", "list"]);
    assert!(list.contains(&id), "{list}");
    bed.server.run(&["broadcast", "disable", &id]);
    let progress = bed.server.run(&["broadcast", "progress", "--json", &id]);
    assert!(progress.contains("\"sent\": 1"), "{progress}");
    let list = bed.server.run(&["broadcast", "list"]);
    assert!(!list.contains(&id), "{list}");
}

#[test]
fn the_command_line_stores_and_removes_a_file() {
    let bed = Bed::start();
    let path = bed.path().join("content");
    fs::write(&path, "content").expect("a file");
    bed.server.run(&["file", "put", ECHO, "name", &text(&path)]);
    assert_eq!(
        bed.server.download(ECHO, "name").as_deref(),
        Some(&b"content"[..])
    );
    bed.server.run(&["file", "rm", ECHO, "name"]);
    assert_eq!(bed.server.download(ECHO, "name"), None);
}
