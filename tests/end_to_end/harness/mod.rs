//! Starts real processes, waits for what they do, and ends them.
//!
//! Whatever a case starts lives in a guard. When a case fails, each guard shows
//! the end of its process's log.

mod agent;
mod process;
mod server;
mod service;
pub(crate) mod stock_server;
mod upstream;
mod wait;

use std::path::Path;

use tempfile::TempDir;

pub(crate) use agent::{Agent, AgentOptions};
pub(crate) use server::{Server, fleethold_init, free_address, text};
pub(crate) use service::{Client, PythonProgram, ServerSideService, Status};
pub(crate) use upstream::{
    fleetspeak_admin, fleetspeak_config, fleetspeak_server_refusal, run_python, run_script,
};
pub(crate) use wait::{wait_until, wait_within};

/// The service on the server and on every agent.
pub(crate) const ECHO: &str = "echo";

/// A server with an echo service behind it.
pub(crate) struct Bed {
    pub(crate) service: ServerSideService,
    pub(crate) server: Server,
    dir: TempDir,
}

impl Bed {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with more arguments of `fleethold serve`.
    pub(crate) fn start_with(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listen = free_address();
        let admin = free_address();
        let service = ServerSideService::start(dir.path(), &listen, &admin);
        let server = Server::start(&dir.path().join("server"), &listen, &admin, more);
        Self {
            service,
            server,
            dir,
        }
    }

    /// Starts an agent that carries its `name` as a label.
    pub(crate) fn start_agent(&self, name: &str, options: AgentOptions) -> Agent {
        Agent::start(&self.dir.path().join(name), &self.server, name, options)
    }

    /// Ends the agent, for good or until it is started again.
    ///
    /// What the server puts into a dying connection is due again only after a
    /// quarter of an hour. So the server starts anew, without connections.
    pub(crate) fn take_away(&mut self, agent: &mut Agent) {
        agent.kill();
        self.server.kill();
        self.server.start_again();
    }

    /// Starts the agent anew and waits until it has reached the server.
    pub(crate) fn restart(&self, agent: &mut Agent, client: &Client) {
        agent.kill();
        let before = self.service.addresses_of(client);
        agent.start_again();
        wait_until("contact from a new address", || {
            let addresses = self.service.addresses_of(client);
            if addresses.is_subset(&before) {
                Err(addresses)
            } else {
                Ok(())
            }
        });
    }

    /// A directory for files of the case.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}
