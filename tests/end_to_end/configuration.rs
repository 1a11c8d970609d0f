//! Configuration files that upstream's own tool wrote, and those that ours wrote in its place.

use std::fs;
use std::path::{Path, PathBuf};

use fleethold_proto::fleetspeak::client::generic::Config as AgentConfig;
use fleethold_proto::fleetspeak::components::Config as Components;
use tempfile::TempDir;

use crate::harness::{
    Agent, AgentOptions, ECHO, Server, ServerSideService, fleethold_init, fleetspeak_config,
    fleetspeak_server_refusal, free_address, text,
};

/// Makes all files that a configurator file names.
type Tool = fn(&Path);

/// A directory with a configurator file, which both tools understand.
struct Installation {
    dir: TempDir,
    listen: String,
    admin: String,
}

impl Installation {
    fn new() -> Self {
        let installation = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            listen: free_address(),
            admin: free_address(),
        };
        let path = |name: &str| installation.path(name);
        let (listen, admin) = (&installation.listen, &installation.admin);
        fs::write(
            path("configurator.config"),
            format!(
                "configuration_name: \"end to end\"\n\
                 components_config {{\n\
                 mysql_data_source_name: \"nobody:nothing@tcp(127.0.0.1:1)/nowhere\"\n\
                 required_label: \"linux\"\n\
                 https_config {{ listen_address: {listen:?} }}\n\
                 admin_config {{ listen_address: {admin:?} }}\n\
                 }}\n\
                 public_host_port: {listen:?}\n\
                 public_host_port: \"fleet.example:443\"\n\
                 trusted_cert_file: {:?}\n\
                 trusted_cert_key_file: {:?}\n\
                 server_cert_file: {:?}\n\
                 server_cert_key_file: {:?}\n\
                 server_component_configuration_file: {:?}\n\
                 linux_client_configuration_file: {:?}\n\
                 darwin_client_configuration_file: {:?}\n\
                 windows_client_configuration_file: {:?}\n",
                path("ca.pem"),
                path("ca-key.pem"),
                path("server.pem"),
                path("server-key.pem"),
                path("components.config"),
                path("linux.config"),
                path("darwin.config"),
                path("windows.config"),
            ),
        )
        .expect("a configuration file");
        installation
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("the tool wrote this file")
    }

    fn make(&self, tool: Tool) {
        tool(&self.path("configurator.config"));
    }

    /// What the tool has written for agents.
    fn agent_configs(&self) -> [AgentConfig; 3] {
        ["linux", "darwin", "windows"].map(|system| {
            let config = self.read(&format!("{system}.config"));
            fleethold_proto::text::parse(&config).expect("a configuration")
        })
    }

    fn components(&self) -> Components {
        fleethold_proto::text::parse(&self.read("components.config")).expect("a configuration")
    }

    /// Starts our server and a stock agent with the files, and exchanges a message.
    fn connect_an_agent(&self) {
        let dir = self.dir.path();
        let service_address = free_address();
        fs::write(
            self.path("services.config"),
            format!(
                "services {{ name: {ECHO:?} factory: \"GRPC\"\n\
                 config {{ [type.googleapis.com/fleetspeak.grpcservice.Config] {{\n\
                 target: {service_address:?} insecure: true\n\
                 }} }} }}\n"
            ),
        )
        .expect("a services file");
        let service = ServerSideService::start(dir, &service_address, &self.admin);
        let file = |name: &str| text(&self.path(name));
        let arguments = [
            ["--components-config".to_owned(), file("components.config")],
            ["--services-config".to_owned(), file("services.config")],
            ["--store".to_owned(), format!("sqlite:{}", file("fleet.db"))],
        ]
        .concat();
        let _server = Server::start_with(dir, arguments, self.listen.clone(), self.admin.clone());
        let agent = Agent::start_configured(
            &self.path("agent"),
            &self.path("linux.config"),
            "linux",
            AgentOptions::STREAMING,
        );
        let client = service.client_of(&agent);
        service.exchange(&client, "hello");
    }
}

#[test]
fn files_written_by_stock_config_start_the_server_and_connect_an_agent() {
    let installation = Installation::new();
    installation.make(fleetspeak_config);
    installation.connect_an_agent();
}

#[test]
fn p_215_files_written_by_init_start_the_server_and_connect_an_agent() {
    let installation = Installation::new();
    installation.make(fleethold_init);
    installation.connect_an_agent();
}

#[test]
fn p_215_files_written_by_init_are_those_of_stock_config() {
    let installation = Installation::new();
    installation.make(fleethold_init);
    let names = ["ca.pem", "ca-key.pem", "server.pem", "server-key.pem"];
    let ours = (
        names.map(|name| installation.read(name)),
        installation.components(),
        installation.agent_configs(),
    );
    // The stock tool takes over what is there, and writes the rest anew.
    for name in ["components", "linux", "darwin", "windows"] {
        fs::remove_file(installation.path(&format!("{name}.config"))).expect("init wrote it");
    }
    installation.make(fleetspeak_config);
    let theirs = (
        names.map(|name| installation.read(name)),
        installation.components(),
        installation.agent_configs(),
    );
    assert_eq!(ours, theirs);
}

#[test]
fn p_215_stock_server_reads_what_init_wrote() {
    let installation = Installation::new();
    installation.make(fleethold_init);
    fs::write(installation.path("services.config"), "").expect("a services file");
    let refusal = fleetspeak_server_refusal(
        &installation.path("components.config"),
        &installation.path("services.config"),
    );
    // Nothing is wrong but that its database is nowhere.
    assert!(refusal.contains("dial tcp 127.0.0.1:1"), "{refusal}");
}

#[test]
fn p_216_each_tool_renews_the_certificate_under_the_ca_that_the_other_has_made() {
    for (first, second) in [
        (fleethold_init as Tool, fleetspeak_config as Tool),
        (fleetspeak_config, fleethold_init),
    ] {
        let installation = Installation::new();
        installation.make(first);
        let (ca, before) = (installation.read("ca.pem"), installation.read("server.pem"));
        installation.make(second);
        assert_eq!(installation.read("server.pem"), before);
        for name in ["server.pem", "server-key.pem"] {
            fs::remove_file(installation.path(name)).expect("the first tool wrote it");
        }
        installation.make(second);
        assert_eq!(installation.read("ca.pem"), ca);
        assert_ne!(installation.read("server.pem"), before);
        installation.connect_an_agent();
    }
}
