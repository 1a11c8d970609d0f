//! What an agent needs to know, for each of its systems.

use fleethold_proto::fleetspeak::client::generic::config::PersistenceHandler;
use fleethold_proto::fleetspeak::client::generic::{Config, FilesystemHandler, RegistryHandler};

/// Where installed agents look for their configuration and services.
pub(crate) const DIRECTORY: &str = "/etc/fleetspeak-client";

/// A system that the stock agent runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    Linux,
    Darwin,
    Windows,
}

impl System {
    /// Returns where an installed agent keeps its configuration and state.
    pub(crate) fn persistence(self) -> PersistenceHandler {
        match self {
            Self::Linux => files(DIRECTORY, "/var/lib/misc/fleetspeak-client.state"),
            Self::Darwin => files(DIRECTORY, "/etc/fleetspeak-client/state"),
            Self::Windows => PersistenceHandler::RegistryHandler(RegistryHandler {
                configuration_key: r"HKEY_LOCAL_MACHINE\SOFTWARE\FleetspeakClient".to_owned(),
            }),
        }
    }
}

/// An agent that keeps its configuration and state in files.
pub(crate) fn files(configuration_directory: &str, state_file: &str) -> PersistenceHandler {
    PersistenceHandler::FilesystemHandler(FilesystemHandler {
        configuration_directory: configuration_directory.to_owned(),
        state_file: state_file.to_owned(),
    })
}

/// What is the same for all agents of a server.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AgentConfig<'a> {
    /// PEM certificates.
    pub(crate) trusted_certs: &'a str,
    /// Each `HOST:PORT`.
    pub(crate) servers: &'a [String],
    /// The name in the server's certificate, if it is not the host; or empty.
    pub(crate) server_name: &'a str,
    /// A label of all agents, or empty.
    pub(crate) label: &'a str,
    pub(crate) streaming: bool,
    /// A URL, or empty.
    pub(crate) proxy: &'a str,
}

impl AgentConfig<'_> {
    /// Returns the agent's main configuration.
    pub(crate) fn message(&self, persistence: PersistenceHandler) -> Config {
        let labels = Some(self.label).filter(|label| !label.is_empty());
        Config {
            trusted_certs: self.trusted_certs.to_owned(),
            server: self.servers.to_vec(),
            client_label: labels.into_iter().map(str::to_owned).collect(),
            persistence_handler: Some(persistence),
            streaming: self.streaming,
            proxy: self.proxy.to_owned(),
            server_name: self.server_name.to_owned(),
            ..Config::default()
        }
    }
}
