//! The service that the documentation shows, as it stands there.

use std::fs;
use std::path::Path;

use crate::harness::{
    Agent, AgentOptions, PythonProgram, Server, free_address, run_python, text, wait_until,
};

const GUIDE: &str = include_str!("../../docs/services.md");

/// What the examples of the guide call their service, and where it listens.
const NAME: &str = "GRR";
const ADDRESS: &str = "localhost:11111";

#[test]
fn batches_reach_the_python_service_of_the_guide() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let dir = temporary.path();
    let (listen, admin, address) = (free_address(), free_address(), free_address());
    generate(dir);
    let service = block("python", "BatchProcessorServicer").replace(ADDRESS, &address);
    fs::write(dir.join("service.py"), service).expect("a program");
    let service = PythonProgram::start(dir, "service.py");

    let services = block("", "BatchConfig").replace(ADDRESS, &address);
    fs::write(dir.join("services.config"), services).expect("a services file");
    let arguments = [
        "--data-dir",
        &text(dir),
        "--listen",
        &listen,
        "--admin-listen",
        &admin,
    ];
    let arguments = arguments.map(str::to_owned).to_vec();
    let server = Server::start_with(dir, arguments, listen, admin);
    let options = AgentOptions {
        service: NAME,
        ..AgentOptions::STREAMING
    };
    let _agent = Agent::start(&dir.join("agent-one"), &server, "one", options);
    let client = wait_until("the agent's enrolment", || {
        let clients = server.client_ids();
        clients.first().cloned().ok_or(clients)
    });

    // The agent sends them on to the service.
    for data in ["hi", "there"] {
        let to = ["message", "send", "--client", &client, "--service", NAME];
        server.run(&[&to[..], &["--type", "Greeting", "--data", data]].concat());
    }
    let expected = format!("{client} Echo\n").repeat(2);
    wait_until("both messages at the service", || {
        let printed = service.printed();
        (printed == expected).then_some(()).ok_or(printed)
    });
}

/// Runs the command of the guide that makes the code beside the service.
fn generate(dir: &Path) {
    let start = GUIDE
        .find("python -m grpc_tools")
        .expect("the guide has it");
    let command = GUIDE[start..].split('`').next().unwrap_or_default();
    let directory = text(dir);
    let words: Vec<_> = command
        .split_whitespace()
        .skip(1)
        .map(|word| word.replace("DIR", &directory))
        .collect();
    run_python(Path::new("proto"), &words);
}

/// Returns the block of the guide in a language in which a word occurs.
fn block(language: &str, word: &str) -> String {
    let blocks = GUIDE.split("```").skip(1).step_by(2);
    let mut found = blocks.filter_map(|block| {
        let (first, text) = block.split_once('\n')?;
        (first == language && text.contains(word)).then(|| text.to_owned())
    });
    let block = found.next().expect("the guide has such a block");
    assert_eq!(found.next(), None, "{word} is in two blocks");
    block
}
