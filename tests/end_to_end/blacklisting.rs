//! Blacklisted clients, whose agents have to take a new identity.

use crate::harness::{AgentOptions, Bed, fleetspeak_admin};

#[test]
fn p_121_blacklisted_polling_agent_comes_back_with_a_new_id() {
    blacklisted_agent_comes_back_with_a_new_id(AgentOptions::POLLING);
}

#[test]
fn p_121_blacklisted_streaming_agent_comes_back_with_a_new_id() {
    blacklisted_agent_comes_back_with_a_new_id(AgentOptions::STREAMING);
}

fn blacklisted_agent_comes_back_with_a_new_id(options: AgentOptions) {
    let bed = Bed::start();
    let agent = bed.start_agent("one", options);
    let old = bed.service.client_of(&agent);
    bed.service.exchange(&old, "before");
    fleetspeak_admin(bed.server.admin(), &["blacklistclients", &old.id]);

    let clients = bed.service.clients_of(&agent, 2);
    let (old_again, new): (Vec<_>, Vec<_>) = clients.iter().partition(|client| client.id == old.id);
    assert!(
        old_again[0].blacklisted && !new[0].blacklisted,
        "{clients:?}"
    );
    bed.service.exchange(new[0], "after");

    let list = fleetspeak_admin(bed.server.admin(), &["listclients"]);
    let marked: Vec<_> = list
        .lines()
        .filter(|line| line.contains("*blacklisted*"))
        .collect();
    assert!(
        marked.len() == 1 && marked[0].starts_with(&old.id),
        "{list}"
    );
}
