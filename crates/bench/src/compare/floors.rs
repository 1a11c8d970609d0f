//! What the machine allows, whatever the server: syncs, handshakes, requests,
//! and inserts in each database.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use fleethold_store::{MessageId, Random};
use mysql_async::prelude::Queryable;
use rusqlite::params;
use serde_json::{Value, json};

use super::databases::{Database, Server, mysql, postgres_client};
use super::echo::Echo;
use super::systems::Programs;
use crate::embedded::{disk, store_rate};
use crate::load::{Bench, Http, Mode, Poll, Settings, Watched};

/// Bytes of a row besides its key: about a processed message.
const ROW_BYTES: usize = 120;
/// Rows of a large transaction.
const MANY: usize = 100;
/// How many agents use the echo.
const AGENTS: u32 = 64;

/// One figure of the machine.
#[derive(Clone, Debug)]
pub struct Floor {
    /// What it is.
    pub name: String,
    /// What it counts.
    pub unit: &'static str,
    /// How much of it.
    pub value: f64,
}

impl Floor {
    fn new(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self {
            name: name.into(),
            unit,
            value,
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "name": self.name, "unit": self.unit, "value": self.value })
    }
}

/// The name of the floor of idle polls.
pub(crate) const ECHO: &str = "HTTP requests over kept TLS connections, nothing behind";
/// The name of the floor of ingest to NOOP on SQLite.
pub(crate) const STORE: &str =
    "the SQLite store alone, 100 processed messages in each of 16 calls at once";

pub(crate) async fn measure(
    programs: &Programs,
    window: Duration,
    databases: &[Database],
) -> Result<Vec<Floor>> {
    let directory = tempfile::tempdir_in(&programs.directory)?;
    let directory = directory.path();
    let mut floors = syncs(directory)?;
    floors.extend(echo(programs, directory, window).await?);
    floors.extend(sqlite(directory, window)?);
    for database in databases {
        floors.extend(server(*database, programs, window).await?);
    }
    let rate = store_rate(directory).await?;
    floors.push(Floor::new(STORE, "messages/s", rate));
    Ok(floors)
}

fn syncs(directory: &Path) -> Result<Vec<Floor>> {
    const BLOCKS: u32 = 300;
    let mut file = tempfile::tempfile_in(directory)?;
    let appended = disk::append(&mut file, BLOCKS)?.as_secs_f64() / f64::from(BLOCKS);
    let overwritten = disk::overwrite(&mut file, BLOCKS)?.as_secs_f64() / f64::from(BLOCKS);
    Ok(vec![
        Floor::new("fdatasync after 4 KiB appended", "ms", appended * 1e3),
        Floor::new("fdatasync after 4 KiB overwritten", "ms", overwritten * 1e3),
    ])
}

async fn echo(programs: &Programs, directory: &Path, window: Duration) -> Result<Vec<Floor>> {
    let echo = Echo::start(&programs.fleethold, directory)?;
    let mut bench = Bench::connect(Settings {
        target: echo.address.to_string(),
        admin: None,
        ca_pem: echo.ca_pem.clone().into_bytes(),
        server_name: None,
        own_server: false,
        agents: AGENTS,
        duration: window,
        rate: None,
        http: Http::One,
        deflate: false,
        service_listen: None,
        watched: vec![Watched {
            name: "echo".to_owned(),
            pid: echo.pid(),
        }],
        directories: Vec::new(),
        progress: Arc::new(|_| {}),
    })
    .await?;
    let mut floors = Vec::new();
    for (name, handshake) in [(ECHO, false), ("the same with a TLS handshake each", true)] {
        let report = bench.run(&Mode::Poll(Poll { handshake })).await?;
        let rate = report.figure("polls_per_second").unwrap_or(0.0);
        floors.push(Floor::new(name, "requests/s", rate));
    }
    Ok(floors)
}

/// Repeats transactions for a while; returns their rows per second.
fn rate(window: Duration, rows: usize, mut transaction: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < window {
        transaction()?;
        count += rows;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn ids(random: &Random, count: usize) -> Vec<Vec<u8>> {
    let id = || MessageId::random(random).as_bytes().to_vec();
    (0..count).map(|_| id()).collect()
}

fn title(database: &str, rows: usize) -> String {
    match rows {
        1 => format!("bare inserts in {database}, one per transaction, one connection"),
        rows => format!("bare inserts in {database}, {rows} per transaction, one connection"),
    }
}

fn sqlite(directory: &Path, window: Duration) -> Result<Vec<Floor>> {
    let random = Random::from_os();
    let mut connection = rusqlite::Connection::open(directory.join("floor.db"))?;
    connection.execute_batch(SQLITE_SCHEMA)?;
    let value = vec![9_u8; ROW_BYTES];
    let mut floors = Vec::new();
    for rows in [1, MANY] {
        let rate = rate(window / 2, rows, || {
            let transaction = connection.transaction()?;
            let mut insert = transaction.prepare_cached(SQLITE_INSERT)?;
            for id in ids(&random, rows) {
                insert.execute(params![id, value])?;
            }
            drop(insert);
            Ok(transaction.commit()?)
        })?;
        floors.push(Floor::new(title("SQLite", rows), "rows/s", rate));
    }
    Ok(floors)
}

async fn server(database: Database, programs: &Programs, window: Duration) -> Result<Vec<Floor>> {
    let server = Server::start(database, programs.cores.as_deref()).await?;
    let random = Random::from_os();
    let value = vec![9_u8; ROW_BYTES];
    let mut floors = Vec::new();
    match database {
        Database::MariaDb => {
            let mut connection = mysql(&server.url(server.port())).await?;
            connection.query_drop(MYSQL_SCHEMA).await?;
            for rows in [1, MANY] {
                // One statement for all rows, as good clients do.
                let places = vec!["(?, ?)"; rows].join(", ");
                let insert = connection.prep(format!("{MYSQL_INSERT} {places}")).await?;
                let start = Instant::now();
                let mut count = 0;
                while start.elapsed() < window / 2 {
                    let values = ids(&random, rows).into_iter();
                    let values: Vec<mysql_async::Value> = values
                        .flat_map(|id| [id.into(), value.clone().into()])
                        .collect();
                    connection.exec_drop(&insert, values).await?;
                    count += rows;
                }
                let rate = count as f64 / start.elapsed().as_secs_f64();
                floors.push(Floor::new(title("MariaDB", rows), "rows/s", rate));
            }
            connection.disconnect().await?;
        }
        Database::Postgres => {
            let client = postgres_client(&server.url(server.port())).await?;
            client.batch_execute(POSTGRES_SCHEMA).await?;
            let insert = client.prepare(POSTGRES_INSERT).await?;
            for rows in [1, MANY] {
                let start = Instant::now();
                let mut count = 0;
                while start.elapsed() < window / 2 {
                    let values = vec![value.clone(); rows];
                    client
                        .execute(&insert, &[&ids(&random, rows), &values])
                        .await?;
                    count += rows;
                }
                let rate = count as f64 / start.elapsed().as_secs_f64();
                floors.push(Floor::new(title("PostgreSQL", rows), "rows/s", rate));
            }
        }
    }
    Ok(floors)
}

const SQLITE_SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE floor (id BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID";
const SQLITE_INSERT: &str = "INSERT INTO floor (id, value) VALUES (?1, ?2)";
const MYSQL_SCHEMA: &str =
    "CREATE TABLE floor (id BINARY(32) PRIMARY KEY, value VARBINARY(200) NOT NULL)";
const MYSQL_INSERT: &str = "INSERT INTO floor (id, value) VALUES";
const POSTGRES_SCHEMA: &str = "CREATE TABLE floor (id bytea PRIMARY KEY, value bytea NOT NULL)";
const POSTGRES_INSERT: &str =
    "INSERT INTO floor (id, value) SELECT * FROM unnest($1::bytea[], $2::bytea[])";
