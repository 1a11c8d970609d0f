//! The databases of the servers that are compared, with durable defaults.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use fleethold_testdb::{mariadb, postgres};
use mysql_async::prelude::Queryable;

/// The name of the database that a server uses.
const NAME: &str = "fleet";

/// What kind of database server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Database {
    MariaDb,
    Postgres,
}

impl Database {
    /// Sees whether it is installed.
    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::MariaDb => mariadb::check(),
            Self::Postgres => postgres::check(),
        }
    }
}

/// A private database server; it ends when it is dropped.
pub(crate) struct Server {
    kind: Database,
    server: fleethold_testdb::Server,
}

impl Server {
    /// Starts a server with an empty database, pinned to these cores.
    pub(crate) async fn start(kind: Database, cores: Option<&str>) -> Result<Self> {
        let server = match kind {
            Database::MariaDb => mariadb::private(&[])?,
            Database::Postgres => postgres::private(&[])?,
        };
        let server = Self { kind, server };
        if let Some(cores) = cores {
            let pid = server.pid()?.to_string();
            let pinned = Command::new("taskset")
                .args(["--all-tasks", "--cpu-list", "--pid", cores, &pid])
                .output()
                .context("cannot start taskset; install util-linux, or leave out the cores")?;
            ensure!(
                pinned.status.success(),
                "cannot pin the database: {}",
                String::from_utf8_lossy(&pinned.stderr)
            );
        }
        match kind {
            Database::MariaDb => {
                let mut connection = mysql(&mariadb::url(server.port())).await?;
                connection.query_drop(CREATE_DATABASE).await?;
                connection.disconnect().await?;
            }
            Database::Postgres => {
                let client =
                    postgres_client(&format!("{}/postgres", postgres::url(server.port()))).await?;
                client.batch_execute(CREATE_DATABASE).await?;
            }
        }
        Ok(server)
    }

    pub(crate) fn port(&self) -> u16 {
        self.server.port()
    }

    /// Returns the process of the server.
    pub(crate) fn pid(&self) -> Result<u32> {
        let text = fs::read_to_string(self.server.directory().join("pid"))?;
        text.trim()
            .parse()
            .context("the database's process is unknown")
    }

    /// Returns the URL of the database for this program.
    pub(crate) fn url(&self) -> String {
        let url = match self.kind {
            Database::MariaDb => mariadb::url(self.port()),
            Database::Postgres => postgres::url(self.port()),
        };
        format!("{url}/{NAME}")
    }

    /// Returns the data source name for the stock server.
    pub(crate) fn data_source(&self) -> String {
        match self.kind {
            Database::MariaDb => {
                format!("fleethold:fleethold@tcp(127.0.0.1:{})/{NAME}", self.port())
            }
            Database::Postgres => String::new(),
        }
    }

    /// Stops the database, returns the bytes of its tables, and starts it again.
    pub(crate) async fn data_bytes(&mut self) -> Result<u64> {
        self.server.stop()?;
        let data = self.server.directory().join("data");
        let tables: PathBuf = match self.kind {
            Database::MariaDb => data.join(NAME),
            Database::Postgres => data.join("base"),
        };
        let bytes = crate::load::bytes_in(&[tables]);
        self.server.start()?;
        Ok(bytes)
    }
}

/// Connects to MariaDB.
pub(crate) async fn mysql(url: &str) -> Result<mysql_async::Conn> {
    let options = mysql_async::Opts::from_url(url)?;
    let connected = mysql_async::Conn::new(options).await;
    connected.context("cannot connect to MariaDB")
}

/// Connects to PostgreSQL; the connection ends with its client.
pub(crate) async fn postgres_client(url: &str) -> Result<tokio_postgres::Client> {
    let connected = tokio_postgres::connect(url, tokio_postgres::NoTls).await;
    let (client, connection) = connected.context("cannot connect to PostgreSQL")?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// Returns whether a program is installed.
pub(crate) fn find(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

const CREATE_DATABASE: &str = "CREATE DATABASE fleet";
