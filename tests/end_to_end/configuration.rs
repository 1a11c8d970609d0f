//! Configuration files that upstream's own tool wrote.

use std::fs;

use crate::harness::{
    Agent, AgentOptions, ECHO, Server, ServerSideService, fleetspeak_config, free_address, text,
};

#[test]
fn files_written_by_stock_config_start_the_server_and_connect_an_agent() {
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let dir = temporary.path();
    let listen = free_address();
    let admin = free_address();
    let service_address = free_address();
    let configurator = dir.join("configurator.config");
    fs::write(
        &configurator,
        format!(
            "configuration_name: \"end to end\"\n\
             components_config {{\n\
             mysql_data_source_name: \"nobody:nothing@tcp(127.0.0.1:1)/nowhere\"\n\
             https_config {{ listen_address: {listen:?} }}\n\
             admin_config {{ listen_address: {admin:?} }}\n\
             }}\n\
             public_host_port: {listen:?}\n\
             trusted_cert_file: {:?}\n\
             trusted_cert_key_file: {:?}\n\
             server_cert_file: {:?}\n\
             server_cert_key_file: {:?}\n\
             server_component_configuration_file: {:?}\n\
             linux_client_configuration_file: {:?}\n",
            dir.join("ca.pem"),
            dir.join("ca-key.pem"),
            dir.join("server.pem"),
            dir.join("server-key.pem"),
            dir.join("components.config"),
            dir.join("client.config"),
        ),
    )
    .expect("a configuration file");
    fleetspeak_config(&configurator);
    fs::write(
        dir.join("services.config"),
        format!(
            "services {{ name: {ECHO:?} factory: \"GRPC\"\n\
             config {{ [type.googleapis.com/fleetspeak.grpcservice.Config] {{\n\
             target: {service_address:?} insecure: true\n\
             }} }} }}\n"
        ),
    )
    .expect("a services file");

    let service = ServerSideService::start(dir, &service_address, &admin);
    let arguments = [
        [
            "--components-config".to_owned(),
            text(&dir.join("components.config")),
        ],
        [
            "--services-config".to_owned(),
            text(&dir.join("services.config")),
        ],
        [
            "--store".to_owned(),
            format!("sqlite:{}", text(&dir.join("fleet.db"))),
        ],
    ]
    .concat();
    let _server = Server::start_with(dir, arguments, listen, admin);

    let agent = Agent::start_configured(
        &dir.join("agent"),
        &dir.join("client.config"),
        "linux",
        AgentOptions::STREAMING,
    );
    let client = service.client_of(&agent);
    service.exchange(&client, "hello");
}
