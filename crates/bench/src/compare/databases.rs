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

    /// Returns what the server has done so far.
    pub(crate) async fn counters(&self) -> Result<Counters> {
        match self.kind {
            Database::MariaDb => {
                let mut connection = mysql(&self.url(self.port())).await?;
                let rows: Vec<(String, String)> = connection.query(MYSQL_STATUS).await?;
                connection.disconnect().await?;
                let sum = |names: &[&str]| {
                    let found = rows.iter().filter(|(name, _)| names.contains(&&**name));
                    found
                        .filter_map(|(_, value)| value.parse::<f64>().ok())
                        .sum()
                };
                Ok(Counters {
                    statements: Some(sum(&["Questions"])),
                    log_bytes: sum(&["Innodb_os_log_written"]),
                    syncs: sum(&["Innodb_os_log_fsyncs", "Innodb_data_fsyncs"]),
                })
            }
            Database::Postgres => {
                let client = postgres_client(&self.url(self.port())).await?;
                // What other connections have counted is shown a little later.
                let row = client.query_one(POSTGRES_STATUS, &[]).await?;
                Ok(Counters {
                    statements: None,
                    log_bytes: row.get(0),
                    syncs: row.get(1),
                })
            }
        }
    }

    /// Returns the URL of the database for this program, through this port of loopback.
    pub(crate) fn url(&self, port: u16) -> String {
        let url = match self.kind {
            Database::MariaDb => mariadb::url(port),
            Database::Postgres => postgres::url(port),
        };
        format!("{url}/{NAME}")
    }

    /// Returns the data source name for the stock server, through this port.
    pub(crate) fn data_source(&self, port: u16) -> String {
        match self.kind {
            Database::MariaDb => format!("fleethold:fleethold@tcp(127.0.0.1:{port})/{NAME}"),
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

/// What a database server counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// Statements, if they are counted.
    pub(crate) statements: Option<f64>,
    pub(crate) log_bytes: f64,
    pub(crate) syncs: f64,
}

const MYSQL_STATUS: &str = "
    SHOW GLOBAL STATUS WHERE variable_name IN
        ('Questions', 'Innodb_os_log_written', 'Innodb_os_log_fsyncs', 'Innodb_data_fsyncs')";
const POSTGRES_STATUS: &str = "
    SELECT wal_bytes::float8, wal_sync::float8
    FROM pg_stat_wal";
const CREATE_DATABASE: &str = "CREATE DATABASE fleet";
