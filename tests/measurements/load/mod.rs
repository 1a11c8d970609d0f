//! A server in a process of its own, and many agents that use or abuse it over
//! the loopback interface.

#![allow(dead_code, reason = "each program uses a part of it")]

#[path = "../../../crates/server/tests/agent/mod.rs"]
pub(crate) mod agent;
pub(crate) mod floods;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::{Agent, AgentStream, Authority, StreamOptions, message, post};
use fleethold_proto::fleetspeak::ContactData;
use fleethold_proto::fleetspeak::components::{AdminConfig, Config, HttpsConfig};
use fleethold_proto::text;
use futures::future::join_all;
use http::{StatusCode, Version};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// What abusers announce and never send.
const ANNOUNCED_BYTES: usize = 20 * 1024 * 1024;

/// How many agents connect at the same time.
const AT_ONCE: usize = 50;

/// What servers of one installation have in common.
pub(crate) struct Installation {
    authority: Authority,
    dir: TempDir,
}

/// A server that is ready; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) addr: SocketAddr,
    /// Where operators connect.
    pub(crate) admin: String,
    installation: Arc<Installation>,
}

impl Installation {
    /// Returns the store, once the server has ended.
    pub(crate) fn store(&self) -> String {
        format!("sqlite:{}", self.dir.path().join("db").display())
    }

    /// Writes a file beside the configuration and returns its path.
    pub(crate) fn write(&self, name: &str, content: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    pub(crate) fn new() -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let components = Config {
            https_config: Some(HttpsConfig {
                listen_address: "127.0.0.1:0".to_owned(),
                certificates: authority.certificates_pem.clone(),
                key: authority.key_pem.clone(),
                ..HttpsConfig::default()
            }),
            admin_config: Some(AdminConfig {
                listen_address: "127.0.0.1:0".to_owned(),
            }),
            ..Config::default()
        };
        let write = |name: &str, content: &str| fs::write(dir.path().join(name), content).unwrap();
        write("components.config", &text::print(&components));
        write(
            "services.config",
            "services { name: \"sink\" factory: \"NOOP\" }",
        );
        Arc::new(Self { authority, dir })
    }

    /// Starts the program with its usual limits, except that agents may enrol
    /// fast; with a socket as a service manager does it.
    pub(crate) fn serve(self: &Arc<Self>, socket: Option<&TcpListener>) -> Server {
        self.serve_with(socket, &["--max-enrolments-per-second", "10000"])
    }

    /// Starts the program with these flags besides.
    pub(crate) fn serve_with(
        self: &Arc<Self>,
        socket: Option<&TcpListener>,
        flags: &[&str],
    ) -> Server {
        let path = |name: &str| self.dir.path().join(name);
        let program = env!("CARGO_BIN_EXE_fleethold");
        let mut command = match socket {
            None => Command::new(program),
            Some(_) => {
                // The shell moves the socket to where it has to be, and becomes the server.
                let mut shell = Command::new("sh");
                shell
                    .args([
                        "-c",
                        "exec 3<&0 0</dev/null; LISTEN_PID=$$ exec \"$@\"",
                        "sh",
                    ])
                    .arg(program)
                    .env("LISTEN_FDS", "1")
                    .env("LISTEN_FDNAMES", "agents");
                shell
            }
        };
        command.stdin(match socket {
            None => Stdio::null(),
            Some(socket) => Stdio::from(OwnedFd::from(socket.try_clone().unwrap())),
        });
        let mut child = command
            .args(["serve", "--log", "warn"])
            .args(flags)
            .arg("--components-config")
            .arg(path("components.config"))
            .arg("--services-config")
            .arg(path("services.config"))
            .arg("--store")
            .arg(self.store())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program was built");
        let (mut addr, mut admin) = (None, None);
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            match line.split_once(' ') {
                Some(("agents", text)) => addr = Some(text.trim().parse().unwrap()),
                Some(("admin", text)) => admin = Some(text.trim().to_owned()),
                Some(("ready", _)) => break,
                _ => {}
            }
        }
        Server {
            child,
            addr: addr.expect("the server is ready and tells its address"),
            admin: admin.expect("the server tells its other address"),
            installation: Arc::clone(self),
        }
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        Installation::new().serve(None)
    }

    pub(crate) fn agent(&self) -> Agent {
        Agent::new(self.addr, &self.installation.authority)
    }

    /// Returns the server's resident memory.
    pub(crate) fn resident_kib(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// Returns the most resident memory the server ever had.
    pub(crate) fn peak_kib(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.unwrap().trim().trim_end_matches(" kB");
        number.parse().unwrap()
    }

    /// Returns how many connections and files the server has open.
    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .unwrap()
            .count()
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", "TERM", &id]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits until the process ends, at most half a minute.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        for _ in 0..3_000 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the server does not end");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _may_have_ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Allows this process to have so many connections.
pub(crate) fn allow_connections(count: u64) {
    let granted = rlimit::increase_nofile_limit(count + 200).unwrap();
    assert!(
        granted >= count + 200,
        "the system allows {granted} open files, and {} are needed: raise `ulimit -Hn`",
        count + 200
    );
}

/// Runs `make` so many times, some at once.
pub(crate) async fn many<T, F: Future<Output = T>>(count: usize, make: impl Fn() -> F) -> Vec<T> {
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let batch = (0..AT_ONCE.min(count - all.len())).map(|_| make());
        all.extend(join_all(batch).await);
    }
    all
}

/// The streams agents keep open.
pub(crate) async fn open_streams(
    server: &Server,
    count: usize,
    version: Version,
    deflate: bool,
) -> Vec<AgentStream> {
    many(count, || async {
        let options = StreamOptions {
            version,
            deflate,
            ..StreamOptions::default()
        };
        let mut stream = server.agent().stream(options).await;
        stream.send_contact(&ContactData::default());
        assert_eq!(stream.acks(1).await, [1]);
        stream
    })
    .await
}

/// Connects and sends the header of a large request and eight bytes of it.
pub(crate) async fn announce(server: &Server, stream: bool) -> TlsStream<TcpStream> {
    let mut tls = server.agent().tls(&["http/1.1"]).await.unwrap();
    let request = match stream {
        // The size of a record of 20 MiB takes four bytes.
        true => [
            &b"POST /streaming-message HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n8\r\n"[..],
            &agent::MAGIC,
            b"\x80\x80\x80\x0a\r\n",
        ]
        .concat(),
        false => format!(
            "POST /message HTTP/1.1\r\nhost: localhost\r\ncontent-length: {ANNOUNCED_BYTES}\r\n\r\n12345678"
        )
        .into_bytes(),
    };
    tls.write_all(&request).await.unwrap();
    tls.flush().await.unwrap();
    tls
}

/// Lets agents poll over open connections for a while, each ten times a
/// second; returns how long the answers took, the shortest first.
pub(crate) async fn poll_times(agents: &[Agent], duration: Duration) -> Vec<Duration> {
    let polls = agents.iter().map(|agent| {
        let agent = agent.clone();
        tokio::spawn(async move {
            let mut connection = agent.connect(Version::HTTP_11).await;
            let body = agent.wrap(&ContactData::default());
            let end = Instant::now() + duration;
            let mut times = Vec::new();
            while Instant::now() < end {
                let started = Instant::now();
                let answer = connection.send(post("/message", body.clone())).await;
                let answer = answer.expect("an answer");
                assert_eq!(answer.status(), StatusCode::OK);
                drop(http_body_util::BodyExt::collect(answer.into_body()).await);
                times.push(started.elapsed());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            times
        })
    });
    let mut times: Vec<_> = join_all(polls)
        .await
        .into_iter()
        .flat_map(Result::unwrap)
        .collect();
    times.sort_unstable();
    times
}

/// Returns the time that 99 of 100 stay below.
pub(crate) fn p99(times: &[Duration]) -> Duration {
    times[times.len() * 99 / 100]
}

/// Sends records of a hundred messages as fast as the server takes them, until
/// it is dropped; returns the acknowledged ones.
pub(crate) async fn send_without_pause(server: &Server, records: usize) -> usize {
    let mut stream = server.agent().stream(StreamOptions::default()).await;
    let mut acknowledged = 0;
    let contact = |record: u32| ContactData {
        messages: (0..100)
            .map(|number| message("sink", record * 100 + number))
            .collect(),
        ..ContactData::default()
    };
    const AHEAD: usize = 16;
    let mut sent = 0;
    while acknowledged < records {
        while sent < records && sent < acknowledged + AHEAD {
            stream.send_contact(&contact(u32::try_from(sent).unwrap()));
            sent += 1;
        }
        let Some(frame) = stream.frame().await else {
            break;
        };
        acknowledged += usize::from(frame.ack_index > 0);
    }
    acknowledged
}
