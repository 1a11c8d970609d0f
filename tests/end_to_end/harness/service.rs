//! A service behind the server, in Python, with upstream's connector.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::process::{Process, append_to, command};
use super::upstream::{python, script};
use super::{Agent, ECHO, wait_until};

/// Longer than the connector tries.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A running echo service on the server's side, which also has the server's
/// admin interface at hand.
pub(crate) struct ServerSideService {
    // Before the process: its end of stdin asks the process to end.
    channel: Mutex<Channel>,
    received: Arc<Mutex<Vec<Received>>>,
    _process: Process,
}

/// A running Python program that prints.
pub(crate) struct PythonProgram {
    printed: PathBuf,
    _process: Process,
}

impl PythonProgram {
    /// Starts a program that lies in `dir`.
    pub(crate) fn start(dir: &Path, name: &str) -> Self {
        let printed = dir.join("printed");
        let process = Process::spawn(
            command(python())
                .current_dir(dir)
                .args(["-u", name])
                .stdout(append_to(&printed)),
            dir.join("program.log"),
        );
        Self {
            printed,
            _process: process,
        }
    }

    /// What it has printed so far.
    pub(crate) fn printed(&self) -> String {
        fs::read_to_string(&self.printed).expect("its output is text")
    }
}

/// A client as the admin interface lists it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) id: String,
    /// As `service:label`.
    pub(crate) labels: Vec<String>,
    pub(crate) blacklisted: bool,
}

/// A message that the server accepted.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) id: String,
    /// Just before the call, on the clock of all processes of this machine.
    pub(crate) called_ns: u64,
}

/// What the server knows about a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Unknown,
    Pending,
    Done,
    Failed(String),
}

/// A message that the server passed on to the service.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) client: String,
    pub(crate) text: String,
}

struct Channel {
    requests: ChildStdin,
    answers: Receiver<Value>,
}

impl ServerSideService {
    /// Starts the service at address `listen`, for the server with the given
    /// admin interface. `dir` takes its log.
    pub(crate) fn start(dir: &Path, listen: &str, admin: &str) -> Self {
        let mut process = Process::spawn(
            command(python())
                .arg(script("server_side_service.py"))
                .args(["--name", ECHO, "--listen", listen, "--admin", admin])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
            dir.join("service.log"),
        );
        let requests = process.child().stdin.take().expect("stdin is a pipe");
        let stdout = process.child().stdout.take().expect("stdout is a pipe");
        let received = Arc::default();
        let (sender, answers) = mpsc::channel();
        thread::spawn({
            let received = Arc::clone(&received);
            move || read(stdout, &received, &sender)
        });
        answers
            .recv_timeout(ANSWER_LIMIT)
            .expect("the service becomes ready");
        Self {
            channel: Mutex::new(Channel { requests, answers }),
            received,
            _process: process,
        }
    }

    /// Sends a message to the echo service of a client.
    pub(crate) fn send(&self, client: &str, kind: &str, text: &str) -> Sent {
        let answer =
            self.ask(&json!({ "do": "send", "client": client, "type": kind, "text": text }));
        Sent {
            id: string(&answer["id"]),
            called_ns: answer["called_ns"].as_u64().expect("a time"),
        }
    }

    pub(crate) fn statuses(&self, ids: &[String]) -> Vec<Status> {
        let answer = self.ask(&json!({ "do": "statuses", "ids": ids }));
        array(&answer).iter().map(status).collect()
    }

    /// Waits until all these messages are done.
    pub(crate) fn wait_until_done(&self, ids: &[String]) {
        wait_until(&format!("{} messages to be done", ids.len()), || {
            let statuses = self.statuses(ids);
            if statuses.iter().all(|status| *status == Status::Done) {
                Ok(())
            } else {
                Err(statuses)
            }
        });
    }

    /// Waits until the client has acknowledged all it was sent.
    pub(crate) fn wait_until_nothing_is_pending(&self, client: &str) {
        wait_until("the acknowledgement of all messages", || {
            let pending = self.ask(&json!({ "do": "pending", "client": client }));
            if pending == 0 { Ok(()) } else { Err(pending) }
        });
    }

    pub(crate) fn clients(&self) -> Vec<Client> {
        let answer = self.ask(&json!({ "do": "clients" }));
        array(&answer).iter().map(client).collect()
    }

    /// Returns the client that the agent enrolled as, once it has.
    pub(crate) fn client_of(&self, agent: &Agent) -> Client {
        self.clients_of(agent, 1).remove(0)
    }

    /// Returns the clients with the agent's name as a label, once there are
    /// `count` of them.
    pub(crate) fn clients_of(&self, agent: &Agent, count: usize) -> Vec<Client> {
        let label = format!("client:{}", agent.name());
        wait_until(&format!("{count} clients with label {label}"), || {
            let clients = self.clients();
            let own: Vec<_> = clients
                .iter()
                .filter(|client| client.labels.contains(&label))
                .cloned()
                .collect();
            if own.len() == count {
                Ok(own)
            } else {
                Err(clients)
            }
        })
    }

    /// Returns the addresses from which the client has made contact.
    pub(crate) fn addresses_of(&self, client: &Client) -> HashSet<String> {
        let answer = self.ask(&json!({ "do": "addresses", "client": client.id }));
        array(&answer).iter().map(string).collect()
    }

    /// Sends `text` to the client's echo service and returns the message's id
    /// once the echo is here.
    pub(crate) fn exchange(&self, client: &Client, text: &str) -> String {
        let id = self.send(&client.id, "Text", text).id;
        self.wait_for_echo(&client.id, text);
        id
    }

    /// Creates a broadcast of at most `limit` messages to clients with all of
    /// these labels.
    pub(crate) fn broadcast(&self, text: &str, labels: &[&str], limit: u64) {
        self.ask(&json!({ "do": "broadcast", "text": text, "labels": labels, "limit": limit }));
    }

    /// Returns what the service has received so far.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().expect("no reader panics").clone()
    }

    /// Waits until the service has received `text` from the client.
    pub(crate) fn wait_for_echo(&self, client: &str, text: &str) {
        self.wait_for_echoes(client, &HashSet::from([text.to_owned()]));
    }

    /// Waits until the service has received all these texts from the client.
    pub(crate) fn wait_for_echoes(&self, client: &str, texts: &HashSet<String>) {
        wait_until(
            &format!(
                "{} messages from client {client} to the service",
                texts.len()
            ),
            || {
                let received = self.received();
                let own = received.iter().filter(|message| message.client == client);
                let own: HashSet<_> = own.map(|message| message.text.clone()).collect();
                let missing: Vec<_> = texts.difference(&own).take(10).collect();
                if missing.is_empty() {
                    Ok(())
                } else {
                    Err(format!(
                        "{} messages are here; missing, for example: {missing:?}",
                        received.len()
                    ))
                }
            },
        );
    }

    fn ask(&self, request: &Value) -> Value {
        let mut channel = self.channel.lock().expect("no earlier request failed");
        writeln!(channel.requests, "{request}").expect("the service takes requests");
        let mut answer = channel
            .answers
            .recv_timeout(ANSWER_LIMIT)
            .unwrap_or_else(|error| panic!("{request}: no answer: {error}"));
        assert!(answer.get("error").is_none(), "{request}: {answer}");
        answer["answer"].take()
    }
}

/// Sorts the lines of the service into received messages and answers.
fn read(stdout: ChildStdout, received: &Mutex<Vec<Received>>, answers: &Sender<Value>) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { return };
        let line: Value = serde_json::from_str(&line).expect("the service writes JSON");
        if let Some(message) = line.get("received") {
            let message = Received {
                client: string(&message["client"]),
                text: message["text"].as_str().unwrap_or_default().to_owned(),
            };
            received.lock().expect("no reader panics").push(message);
        } else if answers.send(line).is_err() {
            return;
        }
    }
}

fn client(value: &Value) -> Client {
    Client {
        id: string(&value["id"]),
        labels: array(&value["labels"]).iter().map(string).collect(),
        blacklisted: value["blacklisted"].as_bool().expect("a flag"),
    }
}

fn status(value: &Value) -> Status {
    match (
        value["known"].as_bool(),
        value["done"].as_bool(),
        value["failure"].as_str(),
    ) {
        (Some(false), ..) => Status::Unknown,
        (_, Some(false), _) => Status::Pending,
        (.., Some(failure)) => Status::Failed(failure.to_owned()),
        _ => Status::Done,
    }
}

fn string(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
        .to_owned()
}

fn array(value: &Value) -> &[Value] {
    value
        .as_array()
        .unwrap_or_else(|| panic!("{value} is no list"))
}
