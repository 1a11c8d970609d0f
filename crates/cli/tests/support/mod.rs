//! Runs the program as its users do.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use serde_json::Value;

/// What a finished command left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Asserts that it went well, and returns its data.
    #[track_caller]
    pub(crate) fn data(self) -> String {
        assert_eq!(self.status, Some(0), "{self:#?}");
        self.stdout
    }

    /// Asserts that it went well, and returns its data, which must be JSON.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let data = self.data();
        serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error} in {data}"))
    }

    /// Asserts that it failed with this status and printed no data, and returns what it says about that, without logs.
    #[track_caller]
    pub(crate) fn failure(self, status: i32) -> String {
        assert_eq!(self.status, Some(status), "{self:#?}");
        assert_eq!(self.stdout, "", "{self:#?}");
        match self.stderr.find("error:") {
            Some(start) => self.stderr[start..].to_owned(),
            None => self.stderr,
        }
    }
}

/// Kills a process that takes too long; no test waits for ever.
struct Watch {
    _ended: Sender<()>,
}

impl Watch {
    fn over(child: &Child) -> Self {
        const LIMIT: Duration = Duration::from_secs(60);
        let (sender, ended) = channel();
        let id = child.id();
        std::thread::spawn(move || {
            if ended.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                send_signal(id, "KILL");
            }
        });
        Self { _ended: sender }
    }
}

fn send_signal(id: u32, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &id.to_string()])
        .status()
        .expect("kill runs");
    assert!(sent.success());
}

/// The program, free of the environment of whoever runs the tests.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleethold"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FLEETHOLD_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub(crate) fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Finished {
    finish(command().args(arguments))
}

/// Runs a prepared command to its end.
pub(crate) fn finish(command: &mut Command) -> Finished {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program was built");
    let watch = Watch::over(&child);
    let output = child.wait_with_output().expect("its output is readable");
    drop(watch);
    Finished {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("output is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("messages are UTF-8"),
    }
}

/// A server that is ready; killed when dropped.
pub(crate) struct Serving {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
    /// Its messages as far as they were waited for.
    pub(crate) log: String,
    /// What it printed until it was ready.
    pub(crate) lines: Vec<String>,
}

impl Serving {
    /// Starts a server with a data directory, on ports the system chooses.
    pub(crate) fn start(data_dir: &Path) -> Self {
        Self::start_with(data_dir, &[])
    }

    /// As [`start`](Self::start), with more arguments.
    pub(crate) fn start_with(data_dir: &Path, more: &[&str]) -> Self {
        let mut command = command();
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
        ]);
        command.arg("--data-dir").arg(data_dir).args(more);
        Self::spawn(&mut command)
    }

    /// Starts a server with a prepared command.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program was built");
        let watch = Watch::over(&child);
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if stdout.read_line(&mut line).expect("its output is readable") == 0 {
                let mut messages = String::new();
                let _ = stderr.read_to_string(&mut messages);
                panic!(
                    "the server ended with {:?} after {lines:?}:\n{messages}",
                    child.wait()
                );
            }
            lines.push(line.trim_end().to_owned());
            if line.starts_with("ready") {
                break;
            }
        }
        drop(watch);
        Self {
            child,
            stdout,
            stderr,
            log: String::new(),
            lines,
        }
    }

    /// What the line that starts with `key` says.
    pub(crate) fn says(&self, key: &str) -> Option<&str> {
        self.lines
            .iter()
            .filter_map(|line| line.split_once(' '))
            .find(|(first, _)| *first == key)
            .map(|(_, rest)| rest.trim())
    }

    /// Where the admin interface listens.
    pub(crate) fn admin(&self) -> &str {
        self.says("admin").expect("it has an admin interface")
    }

    /// Where agents connect.
    pub(crate) fn agents(&self) -> &str {
        self.says("agents").expect("it serves agents")
    }

    /// Prepares a command for this server.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command();
        command.args(arguments).args(["--admin", self.admin()]);
        command
    }

    /// Runs a command for this server.
    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        finish(&mut self.command(arguments))
    }

    /// Sends a signal, for example `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        send_signal(self.child.id(), name);
    }

    /// Takes its messages off its hands: a server that nobody listens to stops
    /// when the pipe is full.
    pub(crate) fn drain(&self) {
        let messages = self.stderr.get_ref().as_fd().try_clone_to_owned();
        let mut messages = File::from(messages.expect("it is piped"));
        std::thread::spawn(move || std::io::copy(&mut messages, &mut std::io::sink()));
    }

    /// Waits for a line of its messages that contains `text`.
    pub(crate) fn wait_for_log(&mut self, text: &str) {
        let watch = Watch::over(&self.child);
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let read = self.stderr.read_line(&mut line);
            assert_ne!(read.expect("messages are UTF-8"), 0, "the server ended");
            self.log.push_str(&line);
        }
        drop(watch);
    }

    /// Waits for its end; returns the status and its messages.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let watch = Watch::over(&self.child);
        let mut stderr = String::new();
        self.stderr
            .read_to_string(&mut stderr)
            .expect("messages are UTF-8");
        let status = self.child.wait().expect("it can be awaited");
        drop(watch);
        (status, stderr)
    }

    /// Stops it in an orderly way.
    pub(crate) fn stop(self) {
        self.signal("TERM");
        let (status, stderr) = self.end();
        assert_eq!(status.code(), Some(0), "{stderr}");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
