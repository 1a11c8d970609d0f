//! A server that is guarded, watched, and given other files while it runs.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;

use support::{Serving, run};

// SHA-256 of `secret` and `other`.
const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
const OTHER: &str = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

#[test]
fn access_file_is_asked_and_read_again_on_sighup() {
    let dir = tempfile::tempdir().unwrap();
    let access = dir.path().join("access");
    let token = dir.path().join("token");
    fs::write(&access, format!("token alice {SECRET} read\n")).unwrap();
    fs::write(&token, "secret\n").unwrap();
    let (access_arg, token_arg) = (access.to_str().unwrap(), token.to_str().unwrap());
    let mut server = Serving::start_with(&dir.path().join("data"), &["--admin-access", access_arg]);

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
fn metrics_tell_when_the_certificate_expires() {
    let dir = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let stats = free.local_addr().unwrap().to_string();
    drop(free);
    let server = Serving::start_with(&dir.path().join("data"), &["--stats-listen", &stats]);
    let mut connection = TcpStream::connect(&stats).unwrap();
    connection
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let name = "fleethold_certificate_expiry_timestamp_seconds{listener=\"agents\"} ";
    let line = answer.lines().find_map(|line| line.strip_prefix(name));
    assert!(
        line.unwrap().parse::<u64>().unwrap() > 1_700_000_000,
        "{answer}"
    );
    server.stop();
}
