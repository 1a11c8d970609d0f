//! Agents that come for the first time.

use crate::harness::{Agent, AgentOptions, Bed, fleetspeak_admin};

#[test]
fn an_agent_with_the_configuration_the_server_made_is_enrolled() {
    let bed = Bed::start();
    let dir = bed.server.dir().join("agent");
    let config = dir.join("client.config");
    // It carries no label, so it goes by one that every agent on this system has.
    let agent = Agent::start_with(&dir, config, "linux", AgentOptions::STREAMING);
    let client = bed.service.client_of(&agent);
    assert!(!client.blacklisted);
    bed.service.exchange(&client, "hello");
}

#[test]
fn stock_admin_lists_an_agent_with_its_labels() {
    let bed = Bed::start();
    let agent = bed.start_agent(
        "one",
        AgentOptions {
            label: Some("rack 7"),
            ..AgentOptions::POLLING
        },
    );
    let client = bed.service.client_of(&agent);

    let list = fleetspeak_admin::<&str>(bed.server.admin(), &["listclients"]);
    let line = list
        .lines()
        .find(|line| line.starts_with(&client.id))
        .unwrap_or_else(|| panic!("no {client:?}: {list}"));
    for label in ["client:linux", "client:one", "client:rack 7"] {
        assert!(line.contains(label), "no {label}: {line}");
    }

    let contacts = fleetspeak_admin(bed.server.admin(), &["listcontacts", &client.id]);
    assert!(contacts.contains("127.0.0.1"), "{contacts}");
}

#[test]
fn an_agent_keeps_its_identity_over_a_restart() {
    let bed = Bed::start();
    let mut agent = bed.start_agent("one", AgentOptions::STREAMING);
    let client = bed.service.client_of(&agent);
    bed.service.exchange(&client, "before");
    bed.restart(&mut agent, &client);
    bed.service.exchange(&client, "after");
    assert_eq!(bed.service.client_of(&agent).id, client.id);
}
