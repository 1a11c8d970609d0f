//! MariaDB, from Debian's packages or wherever `PATH` leads.

use std::fs;
use std::io::Read;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::server::{Kind, Server, Shared, User, connect, find, run};

/// What tests need to know of a MariaDB or MySQL server.
#[derive(Debug)]
pub struct MariaDb {
    /// A URL without database, of a user who may create databases.
    pub url: String,
    // Keeps a server of ours alive.
    _server: Option<Shared>,
}

/// Returns the server that tests share: the one `FLEETHOLD_TEST_MYSQL` names,
/// or one of ours.
///
/// # Errors
/// If MariaDB is not installed or does not start.
pub fn shared() -> Result<MariaDb> {
    if let Ok(url) = std::env::var("FLEETHOLD_TEST_MYSQL") {
        return Ok(MariaDb {
            url: url.trim_end_matches('/').to_owned(),
            _server: None,
        });
    }
    let server = Shared::start(&Program::find(FAST)?)?;
    Ok(MariaDb {
        url: url(server.port()),
        _server: Some(server),
    })
}

/// Sees whether the database is installed.
///
/// # Errors
/// Says how to install it.
pub fn check() -> Result<()> {
    Program::find(&[]).map(drop)
}

/// Starts a server for one test, with MariaDB's durable defaults and these
/// options (`--name=value`) besides.
///
/// # Errors
/// If MariaDB is not installed or does not start.
pub fn private(options: &[&str]) -> Result<Server> {
    Server::private(Box::new(Program::find(options)?))
}

/// Returns the URL, without database, of a server of ours on this port.
pub fn url(port: u16) -> String {
    format!("mysql://fleethold:fleethold@127.0.0.1:{port}")
}

/// Options of a server whose data nobody needs after the tests.
pub(crate) const FAST: &[&str] = &[
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--innodb-buffer-pool-size=256M",
    "--max-connections=500",
    // The largest payload and its statement.
    "--max-allowed-packet=64M",
];

pub(crate) struct Program {
    server: PathBuf,
    installer: PathBuf,
    options: Vec<String>,
}

impl Program {
    /// Makes a directory for temporary files: a server that starts removes those
    /// of all others that share it.
    fn temporary(&self, data: &Path) -> Result<PathBuf> {
        let directory = data.with_file_name("tmp");
        fs::create_dir_all(&directory)?;
        if let Some(user) = self.user() {
            chown(&directory, Some(user.uid), Some(user.gid))?;
        }
        Ok(directory)
    }

    pub(crate) fn find(options: &[&str]) -> Result<Self> {
        const MISSING: &str = "MariaDB is missing; on Debian, install it as root with: apt-get install mariadb-server-core";
        Ok(Self {
            server: find("mariadbd", &[]).context(MISSING)?,
            installer: find("mariadb-install-db", &[]).context(MISSING)?,
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        })
    }
}

impl Kind for Program {
    fn name(&self) -> &'static str {
        "mariadb"
    }

    fn user(&self) -> Option<User> {
        User::instead_of_root(&["mysql", "nobody"])
    }

    fn stop_signal(&self) -> &'static str {
        "TERM"
    }

    fn initialise(&self, data: &Path) -> Result<()> {
        let mut installer = Command::new(&self.installer);
        installer
            .args(["--no-defaults", "--auth-root-authentication-method=normal"])
            .args(["--skip-test-db", "--skip-name-resolve"])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--tmpdir={}", self.temporary(data)?.display()));
        run(installer, self.user())
    }

    fn serve(&self, directory: &Path, data: &Path, port: u16) -> Command {
        // The password is written at every start: the tables of rights are private to the test.
        let accounts = directory.join("accounts.sql");
        fs::write(&accounts, ACCOUNTS).expect("the server's directory can be written");
        let mut server = Command::new(&self.server);
        server
            .args([
                "--no-defaults",
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
            ])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--tmpdir={}", directory.join("tmp").display()))
            .arg(format!("--port={port}"))
            .arg(format!("--socket={}", directory.join("socket").display()))
            .arg(format!("--init-file={}", accounts.display()))
            .args(&self.options);
        server
    }

    fn is_ready(&self, port: u16) -> bool {
        // The port is open long before anybody listens to it; then the server speaks first.
        let greeting = connect(port).and_then(|mut connection| {
            connection
                .set_read_timeout(Some(Duration::from_secs(1)))
                .ok()?;
            connection.read_exact(&mut [0]).ok()
        });
        greeting.is_some()
    }
}

const ACCOUNTS: &str = "\
CREATE USER IF NOT EXISTS fleethold@'127.0.0.1' IDENTIFIED BY 'fleethold';
GRANT ALL ON *.* TO fleethold@'127.0.0.1' WITH GRANT OPTION;
";
