//! The stock agent.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::process::{Process, append_to};
use super::server::{Server, text};
use super::upstream::{fleetspeak_client, python, script};
use super::{ECHO, wait_until};

/// How an agent talks to the server.
#[derive(Clone, Copy)]
pub(crate) struct AgentOptions {
    /// One long request in place of a poll every second.
    pub(crate) streaming: bool,
    pub(crate) deflate: bool,
    pub(crate) http2: bool,
    /// A second label, beside the agent's name.
    pub(crate) label: Option<&'static str>,
    /// What its echo service is called.
    pub(crate) service: &'static str,
}

impl AgentOptions {
    pub(crate) const POLLING: Self = Self {
        streaming: false,
        deflate: false,
        http2: false,
        label: None,
        service: ECHO,
    };
    pub(crate) const STREAMING: Self = Self {
        streaming: true,
        ..Self::POLLING
    };
}

/// A running agent with an echo service.
pub(crate) struct Agent {
    process: Process,
    name: String,
    dir: PathBuf,
    config: PathBuf,
}

/// A message that the echo service on the agent was given.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// On the clock of all processes of this machine.
    pub(crate) arrived_ns: u64,
    /// The message's type.
    pub(crate) kind: String,
    pub(crate) text: String,
}

impl Agent {
    /// Starts an agent for `server`, with its files in `dir`.
    pub(crate) fn start(dir: &Path, server: &Server, name: &str, options: AgentOptions) -> Self {
        Self::start_at(dir, &server.ca(), &[server.listen()], name, options)
    }

    /// Starts an agent that trusts a CA and tries these servers in turn, with
    /// its files in `dir`.
    pub(crate) fn start_at(
        dir: &Path,
        ca: &Path,
        servers: &[&str],
        name: &str,
        options: AgentOptions,
    ) -> Self {
        fs::create_dir_all(dir).expect("a directory for the agent");
        let config = dir.join("client.config");
        let ca = fs::read_to_string(ca).expect("the server's CA certificate is readable");
        let labels = [Some(name), options.label].into_iter().flatten();
        fs::write(
            &config,
            format!(
                "trusted_certs: {ca:?}\n{servers}{labels}\
                 filesystem_handler {{ configuration_directory: {dir:?} state_file: {state:?} }}\n\
                 streaming: {streaming}\n",
                servers = servers
                    .iter()
                    .map(|server| format!("server: {server:?}\n"))
                    .collect::<String>(),
                labels = labels
                    .map(|label| format!("client_label: {label:?}\n"))
                    .collect::<String>(),
                state = dir.join("state"),
                streaming = options.streaming,
            ),
        )
        .expect("a configuration file");
        Self::start_with(dir, config, name, options)
    }

    /// Starts an agent with a configuration that the stock tool made and that
    /// gives it `name` as a label.
    ///
    /// Only the paths change: the tool writes those of an installed package.
    pub(crate) fn start_configured(
        dir: &Path,
        made: &Path,
        name: &str,
        options: AgentOptions,
    ) -> Self {
        fs::create_dir_all(dir).expect("a directory for the agent");
        let config = fs::read_to_string(made).expect("the tool wrote this file");
        let state = text(&dir.join("state"));
        let config = config
            .replace("/etc/fleetspeak-client", &text(dir))
            .replace("/var/lib/misc/fleetspeak-client.state", &state);
        let config_file = dir.join("client.config");
        fs::write(&config_file, config).expect("a configuration file");
        Self::start_with(dir, config_file, name, options)
    }

    /// Starts an agent with a configuration file that names `dir` as its
    /// configuration directory and `name` as a label.
    pub(crate) fn start_with(
        dir: &Path,
        config: PathBuf,
        name: &str,
        options: AgentOptions,
    ) -> Self {
        let services = dir.join("textservices");
        fs::create_dir_all(&services).expect("a directory for the agent's services");
        fs::write(dir.join("communicator.txt"), communicator(options))
            .expect("a communicator file");
        fs::write(
            services.join("echo.service"),
            echo_service(options.service, &dir.join("journal")),
        )
        .expect("a service file");
        Self {
            process: run(dir, &config),
            name: name.to_owned(),
            dir: dir.to_owned(),
            config,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The file in which the agent keeps its key and its revocation list.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// What the agent has logged so far.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(self.dir.join("agent.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Whether the agent has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.ended().is_some()
    }

    /// Stops the agent where it is, until it is killed.
    pub(crate) fn freeze(&self) {
        self.process.freeze();
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the agent again after its end, with the same identity.
    pub(crate) fn start_again(&mut self) {
        self.process = run(&self.dir, &self.config);
    }

    /// Returns what the echo service on the agent was given so far, in the
    /// order of arrival.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        let journal = fs::read_to_string(self.dir.join("journal")).unwrap_or_default();
        // The last line may be half written.
        let lines = journal
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        lines
            .map(|line| delivery(&serde_json::from_str(line).expect("the journal is JSON")))
            .collect()
    }

    /// How often the echo service on the agent was given `text`.
    pub(crate) fn times_delivered(&self, text: &str) -> usize {
        self.deliveries()
            .iter()
            .filter(|delivery| delivery.text == text)
            .count()
    }

    /// Waits until the echo service on the agent was given a message that is
    /// `wanted`.
    pub(crate) fn wait_for_delivery(&self, wanted: impl Fn(&Delivery) -> bool) -> Delivery {
        wait_until(&format!("a delivery to agent {}", self.name), || {
            let mut deliveries = self.deliveries();
            match deliveries.iter().position(&wanted) {
                Some(found) => Ok(deliveries.swap_remove(found)),
                None => Err(deliveries),
            }
        })
    }
}

/// The agent's pace: with its defaults, it would take minutes to reconnect.
fn communicator(options: AgentOptions) -> String {
    let compression = if options.deflate {
        "COMPRESSION_DEFLATE"
    } else {
        "COMPRESSION_NONE"
    };
    format!(
        "max_poll_delay_seconds: 1\nmax_buffer_delay_seconds: 1\nmin_failure_delay_seconds: 1\n\
         compression: {compression}\nprefer_http2: {}\n",
        options.http2
    )
}

fn echo_service(name: &str, journal: &Path) -> String {
    format!(
        "name: {name:?}\nfactory: \"Daemon\"\n\
         config {{ [type.googleapis.com/fleetspeak.daemonservice.Config] {{\n\
         argv: {:?} argv: {:?} argv: {journal:?}\n\
         disable_resource_monitoring: true\n\
         }} }}\n",
        python(),
        script("echo_daemon.py"),
    )
}

fn run(dir: &Path, config: &Path) -> Process {
    let log = dir.join("agent.log");
    let stdout = append_to(&log);
    Process::spawn(
        fleetspeak_client()
            .args(["-logtostderr", "-config", &text(config)])
            .stdout(stdout),
        log,
    )
}

fn delivery(note: &Value) -> Delivery {
    Delivery {
        arrived_ns: note["arrived_ns"].as_u64().expect("a note has a time"),
        kind: note["type"].as_str().expect("a note has a type").to_owned(),
        text: note["text"].as_str().unwrap_or_default().to_owned(),
    }
}
