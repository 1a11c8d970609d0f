//! A server that is guarded, watched, and given other files while it runs.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleethold_proto::fleetspeak::components::{Config as Components, HttpsConfig};
use fleethold_proto::text;
use rcgen::{CertificateParams, KeyPair};
use support::{Serving, command, run};

// SHA-256 of `secret` and `other`.
const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
const OTHER: &str = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

/// Starts a server that `alice` may read from, with a token in a file; returns both files, too.
fn start_for_alice(dir: &Path) -> (Serving, PathBuf, PathBuf) {
    let (access, token) = (dir.join("access"), dir.join("token"));
    fs::write(&access, format!("token alice {SECRET} read\n")).unwrap();
    fs::write(&token, "secret\n").unwrap();
    let access_arg = access.to_str().unwrap();
    let server = Serving::start_with(&dir.join("data"), &["--admin-access", access_arg]);
    (server, access, token)
}

#[test]
fn access_file_is_asked_and_read_again_on_sighup() {
    let dir = tempfile::tempdir().unwrap();
    let (mut server, access, token) = start_for_alice(dir.path());
    let token_arg = token.to_str().unwrap();

    let refused = server.run(&["client", "list"]).failure(1);
    assert!(refused.contains("token"), "{refused}");
    let list = ["client", "list", "--admin-token-file", token_arg];
    server.run(&list).data();
    let store = ["file", "rm", "a", "b", "--admin-token-file", token_arg];
    let refused = server.run(&store).failure(1);
    assert!(refused.contains("`alice` has no role `files`"), "{refused}");

    fs::write(&access, format!("token bob {OTHER} files\n")).unwrap();
    server.signal("HUP");
    server.wait_for_log("reloaded");
    server.run(&list).failure(1);
    fs::write(&token, "other").unwrap();
    server.run(&store).data();
    // S18: the log says who did what, and no secret.
    server.signal("TERM");
    let (status, log) = server.end();
    assert_eq!(status.code(), Some(0), "{log}");
    let audit = log.lines().find(|line| line.contains(" audit: ")).unwrap();
    assert!(
        audit.contains("bob") && audit.contains("DeleteFile"),
        "{audit}"
    );
    for secret in ["secret", SECRET, OTHER] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn s12_calls_do_not_read_the_access_file() {
    let dir = tempfile::tempdir().unwrap();
    let (server, access, token) = start_for_alice(dir.path());
    let token_arg = token.to_str().unwrap();
    fs::remove_file(&access).unwrap();
    let list = ["client", "list", "--admin-token-file", token_arg];
    server.run(&list).data();
    fs::write(&token, "other").unwrap();
    server.run(&list).failure(1);
    fs::write(&token, "secret").unwrap();
    server.run(&list).data();
    server.stop();
}

#[test]
fn access_file_that_cannot_be_used_stops_the_start_but_not_a_running_server() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let access = dir.path().join("access");
    let start = || {
        let (data, access) = (data.to_str().unwrap(), access.to_str().unwrap());
        run(["serve", "--data-dir", data, "--admin-access", access])
    };
    fs::write(&access, "token alice nonsense read").unwrap();
    let refused = start().failure(2);
    assert!(refused.contains("line 1: the SHA-256"), "{refused}");
    assert!(!refused.contains("nonsense"), "{refused}");
    fs::write(&access, "").unwrap();
    fs::set_permissions(&access, fs::Permissions::from_mode(0o666)).unwrap();
    let refused = start().failure(2);
    assert!(refused.contains("chmod go-w"), "{refused}");

    fs::set_permissions(&access, fs::Permissions::from_mode(0o600)).unwrap();
    let mut server = Serving::start_with(&data, &["--admin-access", access.to_str().unwrap()]);
    fs::write(&access, "token").unwrap();
    server.signal("HUP");
    server.wait_for_log("cannot reload");
    server.stop();
}

#[test]
fn s10_admin_interface_for_others_needs_tls_and_access_or_a_clear_word() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let refused = run([
        "serve",
        "--data-dir",
        data.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "0.0.0.0:0",
    ]);
    let refused = refused.failure(2);
    assert!(refused.contains("open to everybody"), "{refused}");
    let data_arg = data.to_str().unwrap();
    let open = ["--data-dir", data_arg, "--admin-listen", "0.0.0.0:0"];
    let checked = run(["check-config"].iter().chain(&open)).failure(2);
    assert!(checked.contains("open to everybody"), "{checked}");
    assert!(refused.contains("--admin-insecure"), "{refused}");
    let server = Serving::start_with(&data, &["--admin-insecure"]);
    server.stop();
}

#[test]
fn certificate_of_agents_is_renewed_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = Serving::start(&data);
    let before = fs::read_to_string(data.join("server.pem")).unwrap();
    fs::remove_file(data.join("server.pem")).unwrap();
    server.signal("HUP");
    server.wait_for_log("agents see another certificate");
    let after = fs::read_to_string(data.join("server.pem")).unwrap();
    assert_ne!(before, after);
    server.stop();
}

#[test]
fn empty_access_file_is_warned_of_once_until_it_changes() {
    const WARNING: &str = "the access file is empty";
    let dir = tempfile::tempdir().unwrap();
    let access = dir.path().join("access");
    let reload = |server: &mut Serving, text: &str| {
        fs::write(&access, text).unwrap();
        server.signal("HUP");
        server.wait_for_log("reloaded");
    };
    fs::write(&access, "").unwrap();
    let access_arg = access.to_str().unwrap();
    let data = dir.path().join("data");
    let mut server = Serving::start_with(&data, &["--admin-access", access_arg]);
    reload(&mut server, "");
    reload(&mut server, "# Nobody.\n");
    assert_eq!(server.log.matches(WARNING).count(), 1, "{}", server.log);
    reload(&mut server, &format!("token alice {SECRET} read\n"));
    reload(&mut server, "");
    assert_eq!(server.log.matches(WARNING).count(), 2, "{}", server.log);
    server.stop();
}

#[test]
fn metrics_tell_when_the_certificate_expires_and_the_log_warns_before() {
    let dir = tempfile::tempdir().unwrap();
    let components = dir.path().join("components");
    let write = |days_left: u64| {
        let expiry = now() + Duration::from_secs(days_left * 86_400 + 3600);
        let (certificates, key) = certificate(expiry);
        let https = HttpsConfig {
            listen_address: "127.0.0.1:0".to_owned(),
            certificates,
            key,
            ..HttpsConfig::default()
        };
        let config = Components {
            https_config: Some(https),
            ..Components::default()
        };
        fs::write(&components, text::print(&config)).unwrap();
        expiry.duration_since(UNIX_EPOCH).unwrap().as_secs()
    };
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let stats = free.local_addr().unwrap().to_string();
    drop(free);

    let first = write(100);
    let store = format!("sqlite:{}", dir.path().join("fleet.db").display());
    let mut serve = command();
    serve.args(["serve", "--stats-listen", &stats, "--store", &store]);
    serve.arg("--components-config").arg(&components);
    let mut server = Serving::spawn(&mut serve);
    assert_eq!(certificate_expiry(&stats), first);

    let second = write(12);
    server.signal("HUP");
    server.wait_for_log("agents see another certificate");
    server.wait_for_log("a certificate expires soon");
    let warning = server.log.lines().last().unwrap();
    assert!(warning.contains("days_left=12"), "{warning}");
    assert!(warning.contains("listener=\"agents\""), "{warning}");
    assert!(!server.log.contains("days_left=100"), "{}", server.log);
    assert_eq!(certificate_expiry(&stats), second);
    server.stop();
}

/// Asks a server's metrics when the certificate for agents expires, in seconds since 1970.
fn certificate_expiry(stats: &str) -> u64 {
    let mut connection = TcpStream::connect(stats).unwrap();
    connection
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let name = "fleethold_certificate_expiry_timestamp_seconds{listener=\"agents\"} ";
    let line = answer.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("{answer}")).parse().unwrap()
}

/// A certificate that expires then, and its key.
fn certificate(expiry: SystemTime) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = expiry.into();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the program has the time of the system"
)]
fn now() -> SystemTime {
    SystemTime::now()
}
