//! Upstream's own programs, from the virtual environment that
//! `scripts/interop-venv` makes.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::command;

/// The stock agent.
pub(crate) fn fleetspeak_client() -> Command {
    command(venv().join("fleetspeak-client-bin/usr/bin/fleetspeak-client"))
}

/// Runs the stock `fleetspeak-admin` and returns what it prints.
pub(crate) fn fleetspeak_admin<A: AsRef<OsStr>>(admin: &str, arguments: &[A]) -> String {
    let mut admin_command = command(venv().join("fleetspeak-server-bin/usr/bin/fleetspeak-admin"));
    output(
        admin_command
            .args(["-logtostderr", "-admin_addr", admin])
            .args(arguments),
    )
}

/// Runs the stock `fleetspeak-config` on a configuration file.
pub(crate) fn fleetspeak_config(config: &Path) {
    let mut config_command =
        command(venv().join("fleetspeak-server-bin/usr/bin/fleetspeak-config"));
    output(
        config_command
            .arg("-logtostderr")
            .arg("-config")
            .arg(config),
    );
}

/// The stock server with these files.
pub(crate) fn fleetspeak_server(components: &Path, services: &Path) -> Command {
    let mut server = command(venv().join("fleetspeak-server-bin/usr/bin/fleetspeak-server"));
    server.arg("-logtostderr");
    server.arg("-components_config").arg(components);
    server.arg("-services_config").arg(services);
    server
}

/// Starts the stock server with files that it cannot serve with, and returns why it ended.
pub(crate) fn fleetspeak_server_refusal(components: &Path, services: &Path) -> String {
    let mut server = fleetspeak_server(components, services);
    let output = server.output().expect("the stock server runs");
    assert_eq!(output.status.code(), Some(1), "{server:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The Python interpreter that finds the stock connectors.
pub(crate) fn python() -> PathBuf {
    venv().join("bin/python")
}

/// A script of ours in `tests/python`.
pub(crate) fn script(name: &str) -> PathBuf {
    workspace().join("tests/python").join(name)
}

/// Runs a script of ours in `tests/python` to its end.
pub(crate) fn run_script<A: AsRef<OsStr>>(name: &str, arguments: &[A]) {
    output(command(python()).arg(script(name)).args(arguments));
}

/// Runs Python with the given arguments in a directory of the workspace.
pub(crate) fn run_python<A: AsRef<OsStr>>(directory: &Path, arguments: &[A]) {
    let mut python = command(python());
    output(
        python
            .current_dir(workspace().join(directory))
            .args(arguments),
    );
}

/// Runs a command to its end and returns its stdout.
pub(crate) fn output(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

fn venv() -> PathBuf {
    let venv = workspace()
        .join(env::var_os("FLEETHOLD_INTEROP_VENV").unwrap_or("target/interop-venv".into()));
    let pinned = fs::read(workspace().join("tests/requirements.txt"))
        .expect("tests/requirements.txt is readable");
    let installed = fs::read(venv.join("installed-requirements.txt")).ok();
    assert!(
        installed == Some(pinned),
        "upstream's programs are missing or outdated in {}; run scripts/test, which obtains them",
        venv.display()
    );
    venv
}

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
