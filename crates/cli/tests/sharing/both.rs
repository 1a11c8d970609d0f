//! Both servers at the same time, each with agents of its own.

use crate::bed::Bed;
use crate::harness::{Agent, AgentOptions, Client, wait_until};

const CANARY: AgentOptions = AgentOptions {
    label: Some("canary"),
    ..AgentOptions::POLLING
};
const STREAMING: AgentOptions = AgentOptions {
    streaming: true,
    ..CANARY
};
/// Only what is told to a stream wakes it, not the time.
const NO_LOOKS: [&str; 2] = ["--stream-look", "0"];

#[test]
fn messages_inserted_at_either_server_reach_agents_of_both_and_are_answered() {
    let bed = Bed::make("both");
    let (stock, own) = (bed.place("stock"), bed.place("own"));
    let _stock_server = stock.start_stock();
    let _own_server = own.start_own(&[&["--takeover=add"], &NO_LOOKS[..]].concat());
    let services = [stock.start_service(), own.start_service()];
    let start = |name, place, options| bed.start_agent(name, &[place], options);
    let agents = [
        (start("stock-polling", &stock, CANARY), 0),
        (start("stock-streaming", &stock, STREAMING), 0),
        (start("own-polling", &own, CANARY), 1),
        (start("own-streaming", &own, STREAMING), 1),
    ];
    // Either admin interface knows the agents of both servers.
    let [clients, same] = services
        .each_ref()
        .map(|service| agents.each_ref().map(|(agent, _)| service.client_of(agent)));
    let ids = |clients: &[Client]| -> Vec<_> { clients.iter().map(|c| c.id.clone()).collect() };
    assert_eq!(ids(&clients), ids(&same));

    let sent: Vec<_> = agents
        .iter()
        .zip(&clients)
        .flat_map(|((agent, server), client)| {
            ["stock", "own"]
                .iter()
                .zip(&services)
                .map(move |(from, service)| {
                    let text = format!("from {from} to {}", agent.name());
                    let id = service.send(&client.id, "Text", &text).id;
                    (agent, *server, client, text, id)
                })
        })
        .collect();
    for (agent, server, client, text, _) in &sent {
        // The server that an agent talks to hands on what it says.
        services[*server].wait_for_echo(&client.id, text);
        assert_eq!(agent.times_delivered(text), 1, "{text}");
    }
    let ids: Vec<_> = sent.into_iter().map(|(.., id)| id).collect();
    for service in &services {
        service.wait_until_done(&ids);
    }
    bed.assert_sound();
}

#[test]
fn broadcasts_of_either_server_reach_agents_of_both_once() {
    let bed = Bed::make("broadcasts");
    let (stock, own) = (bed.place("stock"), bed.place("own"));
    let _stock_server = stock.start_stock();
    let _own_server = own.start_own(&["--takeover=add"]);
    let services = [stock.start_service(), own.start_service()];
    // Streams of stock servers get new broadcasts when they are opened only.
    let mut agents = [
        bed.start_agent("stock-1", &[&stock], CANARY),
        bed.start_agent("stock-2", &[&stock], CANARY),
        bed.start_agent("own-polling", &[&own], CANARY),
        bed.start_agent("own-streaming", &[&own], STREAMING),
    ];
    let clients = agents.each_ref().map(|agent| services[0].client_of(agent));
    // Broadcasts reach agents that have not started their services yet, in vain.
    for (agent, client) in agents.iter().zip(&clients) {
        services[0].send(&client.id, "Text", "hello");
        agent.wait_for_delivery(|delivery| delivery.text == "hello");
    }
    let to_all = ["to all, from the stock server", "to all, from this one"];
    let to_one = ["to one, from the stock server", "to one, from this one"];
    for ((service, all), one) in services.iter().zip(to_all).zip(to_one) {
        service.broadcast(all, &["client:canary"], i64::MAX.unsigned_abs());
        service.broadcast(one, &["client:canary"], 1);
    }
    for text in to_all {
        for agent in &agents {
            agent.wait_for_delivery(|delivery| delivery.text == text);
        }
    }
    let reached = |agents: &[Agent], text: &str| -> usize {
        agents.iter().map(|agent| agent.times_delivered(text)).sum()
    };
    for text in to_one {
        wait_until("a broadcast to reach those it is for", || {
            let reached = reached(&agents, text);
            if reached >= 1 { Ok(()) } else { Err(reached) }
        });
    }
    // What servers still owe comes with the next contact.
    for client in &clients {
        services[0].wait_until_nothing_is_pending(&client.id);
    }
    for agent in &mut agents {
        agent.kill();
        agent.start_again();
    }
    for (agent, client) in agents.iter().zip(&clients) {
        services[1].send(&client.id, "Text", "one more");
        agent.wait_for_delivery(|delivery| delivery.text == "one more");
    }
    for text in to_all.iter().chain(&to_one) {
        for agent in &agents {
            let times = agent.times_delivered(text);
            assert!(times <= 1, "{}: {times} times {text}", agent.name());
        }
    }
    for text in to_one {
        // Both servers may have read that one is left before either took it:
        // the stock server takes it without a lock.
        let of_own = reached(&agents[2..], text);
        assert!(of_own <= 1, "{text}: {of_own} agents of this server");
    }
    bed.assert_sound();
}
