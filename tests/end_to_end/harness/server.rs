//! The server under test.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use super::process::{Process, append_to, command};
use super::upstream::{fleetspeak_admin, output, python, script};
use super::{ECHO, wait_until, wait_within};

/// A running `fleethold serve`.
pub(crate) struct Server {
    process: Process,
    dir: PathBuf,
    arguments: Vec<String>,
    listen: String,
    admin: String,
}

impl Server {
    /// Starts a server whose data lies in `dir`, with an echo service at
    /// `service` and the admin interface at `admin`.
    pub(crate) fn start(dir: &Path, service: &str, admin: &str, more: &[&str]) -> Self {
        fs::create_dir_all(dir).expect("a directory for the server");
        // Other servers would look for new broadcasts once or twice a minute.
        fs::write(
            dir.join("services.config"),
            "broadcast_poll_time { seconds: 1 }\n",
        )
        .expect("a services file");
        let listen = free_address();
        let arguments = [
            ["--data-dir".to_owned(), text(dir)],
            ["--listen".to_owned(), listen.clone()],
            ["--admin-listen".to_owned(), admin.to_owned()],
            ["--service".to_owned(), format!("{ECHO}={service}")],
        ]
        .into_iter()
        .flatten()
        .chain(more.iter().map(|argument| (*argument).to_owned()))
        .collect();
        Self::start_with(dir, arguments, listen, admin.to_owned())
    }

    /// Starts a server with the given arguments of `fleethold serve`, which
    /// must make it listen as stated. `dir` takes its logs.
    pub(crate) fn start_with(
        dir: &Path,
        arguments: Vec<String>,
        listen: String,
        admin: String,
    ) -> Self {
        Self {
            process: serve(dir, &arguments),
            dir: dir.to_owned(),
            arguments,
            listen,
            admin,
        }
    }

    /// Where agents connect.
    pub(crate) fn listen(&self) -> &str {
        &self.listen
    }

    /// Where the admin interface is.
    pub(crate) fn admin(&self) -> &str {
        &self.admin
    }

    /// The directory with the server's data.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The certificate that agents have to trust.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// The server's own certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.join("server.pem")
    }

    /// Returns the ids of all clients that have an agent's label.
    pub(crate) fn client_ids(&self) -> Vec<String> {
        let list = fleetspeak_admin::<&str>(&self.admin, &["listclients"]);
        list.lines()
            .filter(|line| line.contains("[client:"))
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect()
    }

    /// Kills the server without a warning.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the server again after its end.
    pub(crate) fn start_again(&mut self) {
        self.process = serve(&self.dir, &self.arguments);
    }

    /// Asks the server to stop; it must have done so within `limit`.
    pub(crate) fn stop(&mut self, limit: Duration) {
        self.process.terminate();
        let status = wait_within(limit, "the end of the server after SIGTERM", || {
            self.process.ended().ok_or("it still runs")
        });
        assert!(status.success(), "the server ended with {status}");
    }

    /// Downloads a file from the server, if it has it.
    pub(crate) fn download(&self, service: &str, name: &str) -> Option<Vec<u8>> {
        const NO_SUCH_FILE: i32 = 44;
        let mut download = command(python());
        download
            .arg(script("download.py"))
            .args([&self.listen, service, name])
            .arg(self.ca());
        let output = download.output().expect("python runs");
        if output.status.code() == Some(NO_SUCH_FILE) {
            return None;
        }
        assert!(
            output.status.success(),
            "{download:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(output.stdout)
    }

    /// Runs a command of fleethold against this server and returns its stdout.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        output(fleethold().args(arguments).args(["--admin", &self.admin]))
    }
}

/// The program under test.
fn fleethold() -> Command {
    command(env!("CARGO_BIN_EXE_fleethold"))
}

/// Runs `fleethold init` on a configuration file, as the stock tool is run: by its name, with its flags.
pub(crate) fn fleethold_init(config: &Path) {
    let stock_name = config.with_file_name("fleetspeak-config");
    if !stock_name.exists() {
        symlink(env!("CARGO_BIN_EXE_fleethold"), &stock_name).expect("links can be made");
    }
    output(
        command(stock_name)
            .args(["-logtostderr", "-config"])
            .arg(config),
    );
}

/// Returns an address of the loopback interface where nobody listens.
///
/// The port is below those the kernel gives to outgoing connections, so it
/// stays free while a server is down. Test processes begin far apart.
pub(crate) fn free_address() -> String {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + (process::id().wrapping_mul(37).wrapping_add(step)) % COUNT;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

fn serve(dir: &Path, arguments: &[String]) -> Process {
    let stdout = dir.join("stdout");
    // Only the lines of this start count.
    let _ = fs::remove_file(&stdout);
    let mut process = Process::spawn(
        fleethold()
            .arg("serve")
            .args(arguments)
            .stdout(append_to(&stdout)),
        dir.join("server.log"),
    );
    wait_until("the server to be ready", || {
        if let Some(status) = process.ended() {
            panic!("the server ended with {status}");
        }
        let lines = fs::read_to_string(&stdout).expect("the server's output is readable");
        if lines.lines().any(|line| line.starts_with("ready")) {
            Ok(())
        } else {
            Err(lines)
        }
    });
    process
}

/// A path as an argument or a value in a configuration file.
pub(crate) fn text(path: &Path) -> String {
    path.to_str()
        .expect("temporary directories have plain names")
        .to_owned()
}
