//! Starting and stopping a server.

mod support;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use fleethold_proto::fleetspeak::client::generic;
use fleethold_proto::fleetspeak::components::{AdminConfig, Config, HttpsConfig};
use fleethold_proto::text;
use serde_json::Value;
use support::{Serving, command, run};

#[test]
fn first_start_tells_what_it_made_and_how_to_connect() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Serving::start(&data);

    let keys: Vec<_> = server
        .lines
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(
        keys,
        ["data", "made", "agents", "admin", "connect", "ready"],
        "{:#?}",
        server.lines
    );
    assert_eq!(server.says("data"), data.to_str());
    assert!(server.says("made").unwrap().ends_with("fleethold.db"));
    let agent_config = data.join("agent/client.config");
    let connect = format!("fleetspeak-client -config {}", agent_config.display());
    assert_eq!(server.says("connect"), Some(connect.as_str()));
    let config: generic::Config = text::parse(&fs::read_to_string(agent_config).unwrap()).unwrap();
    assert_eq!(config.server, [server.agents()]);
    server.stop();
    assert!(data.join("fleethold.db").exists());
}

#[test]
fn second_start_makes_nothing_new() {
    let dir = tempfile::tempdir().unwrap();
    // The address has to be the same again.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let listen = format!("127.0.0.1:{port}");
    let start = || {
        let mut command = command();
        command.args([
            "serve",
            "--listen",
            &listen,
            "--admin-listen",
            "127.0.0.1:0",
        ]);
        Serving::spawn(command.arg("--data-dir").arg(dir.path()))
    };
    let first = start();
    assert!(first.says("made").is_some());
    first.stop();
    let second = start();
    assert_eq!(second.says("made"), None, "{:#?}", second.lines);
    second.stop();
}

#[test]
fn a_signal_stops_the_server_in_time_with_connections_open() {
    for signal in ["TERM", "INT"] {
        let dir = tempfile::tempdir().unwrap();
        let server = Serving::start(dir.path());
        let _silent = TcpStream::connect(server.agents()).unwrap();
        let _idle = TcpStream::connect(server.admin()).unwrap();
        let started = Instant::now();
        server.signal(signal);
        let (status, stderr) = server.end();
        assert_eq!(status.code(), Some(0), "SIG{signal}: {stderr}");
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "SIG{signal}: {:?}",
            started.elapsed()
        );
        assert!(
            stderr
                .lines()
                .last()
                .is_some_and(|line| line.ends_with("stopped")),
            "{stderr}"
        );
    }
}

#[test]
fn a_second_signal_cuts_off_a_stop() {
    for (first, second) in [("TERM", "INT"), ("INT", "TERM"), ("TERM", "TERM")] {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Serving::start(dir.path());
        // A stop waits some seconds for a connection without a call.
        let _idle = TcpStream::connect(server.admin()).unwrap();
        server.signal(first);
        server.wait_for_log("stopping");
        server.signal(second);
        let (status, stderr) = server.end();
        assert_eq!(status.code(), Some(1), "{stderr}");
        let message = format!("error: stopping was cut off by SIG{second}\n");
        assert!(stderr.ends_with(&message), "{stderr}");
    }
}

#[test]
fn log_lines_are_json_on_request_and_never_colored_in_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let server = Serving::start_with(dir.path(), &["--log-format", "json", "--log", "debug"]);
    server.signal("TERM");
    let (_, stderr) = server.end();
    let messages: Vec<Value> = stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    assert!(
        messages.iter().any(|line| line["message"] == "ready"),
        "{stderr}"
    );

    let server = Serving::start(dir.path());
    server.signal("TERM");
    let (_, stderr) = server.end();
    assert!(!stderr.contains('\x1b'), "{stderr}");
}

#[test]
fn a_port_in_use_is_named_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = dir.path().to_str().unwrap();
    for arguments in [
        ["--listen", &address, "--admin-listen", "127.0.0.1:0"],
        ["--listen", "127.0.0.1:0", "--admin-listen", &address],
    ] {
        let messages = run(["serve", "--data-dir", data].iter().chain(&arguments)).failure(1);
        let lines: Vec<_> = messages.lines().collect();
        assert!(
            lines[0].starts_with(&format!("error: cannot listen on `{address}`")),
            "{messages}"
        );
        assert!(
            lines[1].starts_with("  cause: Address already in use"),
            "{messages}"
        );
        assert!(
            lines[2].starts_with("  hint: stop the program that listens there"),
            "{messages}"
        );
    }
}

#[test]
fn two_servers_cannot_use_one_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Serving::start(dir.path());
    let data = dir.path().to_str().unwrap();
    let messages = run(["serve", "--data-dir", data]).failure(75);
    assert!(
        messages.contains("is in use by another server\n  hint: "),
        "{messages}"
    );
    server.stop();
}

#[test]
fn a_file_that_is_no_database_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("fleethold.db");
    let content = b"Dear diary, this is no database at all. ".repeat(200);
    fs::write(&database, &content).unwrap();
    refuses(dir.path(), &database);
    assert_eq!(fs::read(&database).unwrap(), content);
}

#[test]
fn a_database_of_a_later_version_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    Serving::start(dir.path()).stop();
    let database = dir.path().join("fleethold.db");
    // SQLite keeps the number that applications count versions with at this place.
    let mut content = fs::read(&database).unwrap();
    content[60..64].copy_from_slice(&1_000_000_u32.to_be_bytes());
    fs::write(&database, &content).unwrap();
    let messages = refuses(dir.path(), &database);
    assert!(messages.contains("1000000"), "{messages}");
    assert_eq!(fs::read(&database).unwrap(), content);
}

/// Asserts that a server does not start with its database, and returns what it says.
fn refuses(data: &Path, database: &Path) -> String {
    let arguments = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--data-dir",
    ];
    let messages = run(arguments.iter().copied().chain(data.to_str())).failure(1);
    let start = format!(
        "error: cannot open database `{}`\n  cause: ",
        database.display()
    );
    assert!(messages.starts_with(&start), "{messages}");
    messages
}

#[test]
fn upstream_files_decide_about_listeners_and_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    Serving::start(&data).stop();
    let read = |name: &str| fs::read_to_string(data.join(name)).unwrap();
    let components = Config {
        mysql_data_source_name: "user:pw@tcp(127.0.0.1:3306)/fleetspeak".to_owned(),
        https_config: Some(HttpsConfig {
            listen_address: "localhost:0".to_owned(),
            certificates: read("server.pem"),
            key: read("server-key.pem"),
            ..HttpsConfig::default()
        }),
        admin_config: Some(AdminConfig {
            listen_address: "localhost:0".to_owned(),
        }),
        notification_use_http_notifier: true,
        ..Config::default()
    };
    let components_file = dir.path().join("components.config");
    fs::write(&components_file, text::print(&components)).unwrap();
    let services_file = dir.path().join("services.config");
    fs::write(
        &services_file,
        "services { name: \"sink\" factory: \"NOOP\" }",
    )
    .unwrap();
    let database = dir.path().join("fleet.db");

    let mut command = command();
    command.current_dir(dir.path());
    command
        .args(["serve", "--components-config"])
        .arg(&components_file);
    command.arg("--services-config").arg(&services_file);
    command.args(["--store", "sqlite:fleet.db"]);
    let server = Serving::spawn(&mut command);
    assert_eq!(server.run(&["client", "list", "--json"]).data(), "[]\n");
    TcpStream::connect(server.agents()).unwrap();
    server.signal("TERM");
    let (status, stderr) = server.end();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let warning = "`mysql_data_source_name` is ignored";
    assert!(stderr.contains(warning), "{stderr}");
    assert!(!stderr.contains("notification"), "{stderr}");
    assert!(!stderr.contains("user:pw"), "{stderr}");
    assert!(database.exists());
    assert!(!dir.path().join("fleethold-data").exists());
}
