//! GRR's way of using a server: the files it writes, and the calls it makes.

use std::path::Path;

use crate::harness::{
    Agent, AgentOptions, Server, fleethold_init, fleetspeak_config, free_address, run_script, text,
    wait_until,
};

#[test]
fn p_218_grr_sets_the_server_up_and_makes_its_calls() {
    set_up_with(fleetspeak_config);
}

#[test]
fn p_218_grr_sets_the_server_up_with_init_in_the_place_of_the_stock_tool() {
    set_up_with(fleethold_init);
}

fn set_up_with(tool: fn(&Path)) {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let dir = temporary.path();
    let (listen, admin, service) = (free_address(), free_address(), free_address());
    let addresses = ["--admin", &admin, "--service", &service];
    let configure = ["configure", &text(dir), "--agents", &listen];
    run_script("grr.py", &[&configure[..], &addresses].concat());
    tool(&dir.join("configurator.config"));

    let file = |name: &str| text(&dir.join(name));
    let arguments = [
        ("--components-config", file("server.components.config")),
        ("--services-config", file("server.services.config")),
        ("--store", format!("sqlite:{}", file("fleet.db"))),
    ];
    let arguments = arguments
        .into_iter()
        .flat_map(|(option, value)| [option.to_owned(), value])
        .collect();
    let server = Server::start_with(dir, arguments, listen, admin.clone());
    let mut agent = Agent::start_configured(
        &dir.join("agent"),
        &dir.join("linux_client.config"),
        "linux",
        AgentOptions {
            service: "GRR",
            ..AgentOptions::STREAMING
        },
    );
    let client = wait_until("the agent's enrolment", || {
        let clients = server.client_ids();
        clients.first().cloned().ok_or(clients)
    });
    let calls = ["call", &client, "--label", "linux"];
    run_script("grr.py", &[&calls[..], &addresses].concat());
    wait_until("the end of the agent, which was told to die", || {
        agent.has_ended().then_some(()).ok_or("it still runs")
    });
}
