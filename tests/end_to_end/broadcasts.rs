//! Broadcasts.

use crate::harness::{AgentOptions, Bed};

const LABELLED: AgentOptions = AgentOptions {
    label: Some("canary"),
    ..AgentOptions::STREAMING
};

#[test]
fn a_broadcast_reaches_each_agent_with_its_label_once() {
    let bed = Bed::start();
    let streaming = bed.start_agent("streaming", LABELLED);
    let polling = bed.start_agent(
        "polling",
        AgentOptions {
            streaming: false,
            ..LABELLED
        },
    );
    let other = bed.start_agent("other", AgentOptions::STREAMING);
    let mut agents = [streaming, polling, other];
    let clients = agents.each_ref().map(|agent| bed.service.client_of(agent));

    bed.service
        .broadcast("to all canaries", &["client:canary"], 5);
    for agent in &agents[..2] {
        agent.wait_for_delivery(|delivery| delivery.text == "to all canaries");
    }
    for client in &clients[..2] {
        bed.service.wait_for_echo(&client.id, "to all canaries");
        // Agents collect acknowledgements; what one that ends has not sent comes again.
        bed.service.wait_until_nothing_is_pending(&client.id);
    }

    // Whatever else the server owes the agents comes with a new contact.
    for (agent, client) in agents.iter_mut().zip(&clients) {
        bed.restart(agent, client);
        bed.service.exchange(client, "one more");
    }
    let times = agents
        .each_ref()
        .map(|agent| agent.times_delivered("to all canaries"));
    assert_eq!(times, [1, 1, 0]);
}

#[test]
fn a_broadcast_waits_for_agents_that_enrol_later() {
    let bed = Bed::start();
    bed.service.broadcast("welcome", &["client:canary"], 1);
    let agent = bed.start_agent("one", LABELLED);
    agent.wait_for_delivery(|delivery| delivery.text == "welcome");
    let client = bed.service.client_of(&agent);
    bed.service.wait_for_echo(&client.id, "welcome");

    // The limit is one.
    let late = bed.start_agent("late", LABELLED);
    let late_client = bed.service.client_of(&late);
    bed.service.exchange(&late_client, "hello");
    assert_eq!(
        (
            agent.times_delivered("welcome"),
            late.times_delivered("welcome")
        ),
        (1, 0)
    );
}
