//! PostgreSQL, from Debian's packages or wherever `PATH` leads.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::server::{Kind, Server, Shared, User, connect, find, run};

/// What tests need to know of a PostgreSQL server.
#[derive(Debug)]
pub struct Postgres {
    /// A URL without database, of a user who may create databases.
    pub url: String,
    // Keeps a server of ours alive.
    _server: Option<Shared>,
}

/// Returns the server that tests share: the one `FLEETHOLD_TEST_POSTGRES`
/// names, or one of ours.
///
/// # Errors
/// If PostgreSQL is not installed or does not start.
pub fn shared() -> Result<Postgres> {
    if let Ok(url) = std::env::var("FLEETHOLD_TEST_POSTGRES") {
        return Ok(Postgres {
            url: url.trim_end_matches('/').to_owned(),
            _server: None,
        });
    }
    let server = Shared::start(&Program::find(FAST)?)?;
    Ok(Postgres {
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

/// Starts a server for one test, with PostgreSQL's durable defaults and these
/// settings (`name=value`) besides.
///
/// # Errors
/// If PostgreSQL is not installed or does not start.
pub fn private(settings: &[&str]) -> Result<Server> {
    Server::private(Box::new(Program::find(settings)?))
}

/// Returns the URL, without database, of a server of ours on this port.
pub fn url(port: u16) -> String {
    format!("postgres://fleethold@127.0.0.1:{port}")
}

/// Settings of a server whose data nobody needs after the tests.
const FAST: &[&str] = &["fsync=off", "full_page_writes=off", "max_connections=400"];

struct Program {
    binaries: PathBuf,
    settings: Vec<String>,
}

impl Program {
    fn find(settings: &[&str]) -> Result<Self> {
        // Debian keeps the programs of each version apart; the newest is last.
        let mut versions: Vec<_> = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .map(|version| version.path().join("bin"))
            .collect();
        versions.sort();
        versions.reverse();
        let initdb = find("initdb", &versions);
        ensure!(
            initdb.is_some(),
            "PostgreSQL is missing; on Debian, install it as root with: apt-get install postgresql"
        );
        let initdb = fs::canonicalize(initdb.expect("it was found"))?;
        Ok(Self {
            binaries: initdb.parent().expect("a file in a directory").to_owned(),
            settings: settings
                .iter()
                .map(|setting| (*setting).to_owned())
                .collect(),
        })
    }
}

impl Kind for Program {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn user(&self) -> Option<User> {
        User::instead_of_root(&["postgres", "nobody"])
    }

    fn stop_signal(&self) -> &'static str {
        "INT"
    }

    fn initialise(&self, data: &Path) -> Result<()> {
        let mut initdb = Command::new(self.binaries.join("initdb"));
        initdb
            .args(["--auth=trust", "--username=fleethold", "--encoding=UTF8"])
            .args(["--locale=C", "--no-sync", "--pgdata"])
            .arg(data)
            .current_dir("/");
        run(initdb, self.user())
    }

    fn serve(&self, directory: &Path, data: &Path, port: u16) -> Command {
        let mut server = Command::new(self.binaries.join("postgres"));
        server.arg("-D").arg(data).args(["-p", &port.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            &format!("unix_socket_directories={}", directory.display()),
        ]
        .into_iter()
        .chain(self.settings.iter().map(String::as_str))
        {
            server.args(["-c", setting]);
        }
        server
    }

    fn is_ready(&self, port: u16) -> bool {
        // While it recovers, the server takes connections and refuses what they ask.
        let answer = connect(port).and_then(|mut connection| {
            let limit = Some(Duration::from_secs(1));
            connection.set_read_timeout(limit).ok()?;
            let length = u32::try_from(STARTUP.len() + 4).expect("small");
            connection.write_all(&length.to_be_bytes()).ok()?;
            connection.write_all(STARTUP).ok()?;
            let mut kind = [0];
            connection.read_exact(&mut kind).ok()?;
            Some(kind)
        });
        answer == Some(*b"R")
    }
}

/// The first message of protocol 3.0, without its length; a server that is
/// ready answers how to authenticate.
const STARTUP: &[u8] = b"\0\x03\0\0user\0fleethold\0database\0postgres\0\0";
