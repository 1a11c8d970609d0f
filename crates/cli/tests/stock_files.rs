//! The stock server's files and flags: started with, and checked.

mod support;

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use fleethold_proto::fleetspeak::components::{AdminConfig, Config, HttpsConfig};
use fleethold_proto::text;
use serde_json::json;
use support::{Serving, command, finish, run};
use tempfile::TempDir;

/// A directory with the files of a stock server.
struct Files {
    dir: TempDir,
    components: Config,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("made");
        Serving::start(&data).stop();
        let read = |name: &str| fs::read_to_string(data.join(name)).unwrap();
        let components = Config {
            https_config: Some(HttpsConfig {
                listen_address: "localhost:0".to_owned(),
                certificates: read("server.pem"),
                key: read("server-key.pem"),
                ..HttpsConfig::default()
            }),
            admin_config: Some(AdminConfig {
                listen_address: "localhost:0".to_owned(),
            }),
            ..Config::default()
        };
        let files = Self { dir, components };
        files.write();
        fs::write(
            files.path("services"),
            "services { name: \"sink\" factory: \"NOOP\" }",
        )
        .unwrap();
        files
    }

    fn write(&self) {
        fs::write(self.path("components"), text::print(&self.components)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command in this directory, without a data directory of its own.
    fn command(&self, program: Option<&Path>) -> Command {
        let mut made = match program {
            Some(program) => Command::new(program),
            None => command(),
        };
        made.current_dir(self.dir.path());
        made
    }

    fn check(&self, more: &[&str]) -> Command {
        self.check_with("sqlite:fleet.db", more)
    }

    fn check_with(&self, store: &str, more: &[&str]) -> Command {
        let mut made = self.command(None);
        made.args(["check-config", "--store", store]);
        made.args(["--components-config", "components"]).args(more);
        made
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn p_212_server_starts_with_the_command_lines_of_the_stock_one() {
    let files = Files::new();
    let installed = files.path("fleetspeak-server");
    symlink(env!("CARGO_BIN_EXE_fleethold"), &installed).unwrap();
    let stock = [
        "-components_config",
        "components",
        "-services_config=services",
    ];
    let logging = ["--alsologtostderr", "-v", "1000", "-logtostderr=true"];
    for program in [None, Some(installed.as_path())] {
        let mut command = files.command(program);
        command.args(stock).args(logging);
        command.args(["--store", "sqlite:fleet.db"]);
        let server = Serving::spawn(&mut command);
        TcpStream::connect(server.agents()).unwrap();
        server.stop();
    }
}

#[test]
fn good_configuration_is_called_good_and_nothing_is_made() {
    let files = Files::new();
    let before = files.names();
    let said = finish(&mut files.check(&["-services_config", "services"])).data();
    assert_eq!(said, "the configuration is good\n");
    let found = finish(&mut files.check(&["--json"])).json();
    assert_eq!(found, json!({ "ok": true, "problems": [], "warnings": [] }));
    assert_eq!(files.names(), before);
}

#[test]
fn everything_that_is_wrong_is_said_at_once_with_what_to_do() {
    let mut files = Files::new();
    let https = files.components.https_config.as_mut().unwrap();
    https.listen_address = "no.such.host.invalid:443".to_owned();
    files.write();
    fs::write(
        files.path("services"),
        "services { name: \"a\" factory: \"GRPC\" }\nservices { name: \"b\" factory: \"CPS\" }",
    )
    .unwrap();
    let services = ["--services-config", "services", "--json"];
    let finished = finish(&mut files.check_with("sqlite:missing/fleet.db", &services));
    assert_eq!(finished.status, Some(2), "{finished:#?}");
    let found: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(found["ok"], json!(false));
    for (wrong, hint) in [
        ("service", ""),
        ("no.such.host.invalid", "choose an address"),
        ("missing/fleet.db", "make its directory"),
    ] {
        let problems = found["problems"].as_array().unwrap();
        let about = problems
            .iter()
            .find(|problem| problem["error"].as_str().unwrap().contains(wrong));
        let about = about.unwrap_or_else(|| panic!("nothing about {wrong} in {found:#}"));
        assert!(
            about["hint"].as_str().unwrap_or("").contains(hint),
            "{about}"
        );
        assert!(finished.stderr.contains(wrong), "{}", finished.stderr);
    }
}

#[test]
fn factory_for_pub_sub_is_refused_with_what_to_use_instead() {
    let files = Files::new();
    fs::write(
        files.path("services"),
        "services { name: \"b\" factory: \"CPS\" }",
    )
    .unwrap();
    let refusal = finish(&mut files.check(&["--services-config", "services"])).failure(2);
    assert!(refusal.contains("not supported"), "{refusal}");
    assert!(refusal.contains("GRPC"), "{refusal}");
}

#[test]
fn certificate_without_its_key_is_found() {
    let mut files = Files::new();
    let other = Files::new();
    let key = &other.components.https_config.as_ref().unwrap().key;
    files
        .components
        .https_config
        .as_mut()
        .unwrap()
        .key
        .clone_from(key);
    files.write();
    let refusal = finish(&mut files.check(&[])).failure(2);
    assert!(refusal.contains("key"), "{refusal}");
}

#[test]
fn data_directory_is_checked_and_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let check = || run(["check-config", "--data-dir", data.to_str().unwrap()]);
    assert_eq!(check().data(), "the configuration is good\n");
    assert!(!data.exists());
    Serving::start(&data).stop();
    assert_eq!(check().data(), "the configuration is good\n");
    fs::write(data.join("services.config"), "services {").unwrap();
    let refusal = check().failure(2);
    assert!(refusal.contains("services.config"), "{refusal}");
}
