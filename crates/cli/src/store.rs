//! Which store a server opens: `--store`, and what upstream's files name instead.

mod commands;
mod url;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use fleethold_mysql::{DataSource, DatabaseState, MysqlOptions, MysqlStore};
use fleethold_postgres::{PostgresOptions, PostgresStore};
use fleethold_sqlite::{OpenError, SqliteOptions, SqliteStore};
use fleethold_store::maintenance::Retention;
use fleethold_store::{Clock, Maintenance, Random};

pub(crate) use self::commands::StoreCommand;
pub(crate) use self::url::{DataSourceName, ServerUrl, StoreUrl};
use crate::output::{self, Exit, Failure};

/// What may be done to a database that a stock server has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Takeover {
    /// Say what it is, what would be added and what cannot be promised; change nothing and end
    Check,
    /// Add what is missing; stock servers go on working
    Add,
    /// As add, and make room for more than 2147483647 contacts
    Widen,
}

impl StoreUrl {
    /// Opens the store, and creates it if there is none.
    pub(crate) async fn open(
        &self,
        clock: Arc<dyn Clock>,
        random: Arc<Random>,
    ) -> Result<Arc<dyn Maintenance>, Failure> {
        self.open_with(None, clock, random).await
    }

    /// As [`open`](Self::open); a database of a stock server may be altered.
    pub(crate) async fn open_with(
        &self,
        takeover: Option<Takeover>,
        clock: Arc<dyn Clock>,
        random: Arc<Random>,
    ) -> Result<Arc<dyn Maintenance>, Failure> {
        match self {
            Self::Mysql(name) => {
                let takeover = match takeover {
                    Some(Takeover::Add) => fleethold_mysql::Takeover::Add,
                    Some(Takeover::Widen) => fleethold_mysql::Takeover::Widen,
                    Some(Takeover::Check) | None => fleethold_mysql::Takeover::No,
                };
                let options = MysqlOptions {
                    takeover,
                    ..MysqlOptions::default()
                };
                let source = parse(name)?;
                let opening = MysqlStore::open(&source, options, clock, random);
                let store = Box::pin(opening).await.map_err(unopened_mysql)?;
                Ok(Arc::new(store))
            }
            Self::Sqlite(path) => {
                let database = path.clone();
                let open =
                    move || SqliteStore::open(database, SqliteOptions::default(), clock, random);
                let store = tokio::task::spawn_blocking(open)
                    .await
                    .context("the store was not opened")?
                    .map_err(|error| unopened(path, error))?;
                Ok(Arc::new(store))
            }
            Self::Postgres(url) => {
                let options = postgres_options(url)?;
                let store = PostgresStore::open(options, clock, random).await;
                Ok(Arc::new(store.map_err(postgres_unopened)?))
            }
        }
    }

    /// Returns how long a store of this kind keeps what grows with time, unless
    /// somebody says so. A stock server, which may share a MySQL database, keeps
    /// everything.
    pub(crate) fn retention(&self) -> Retention {
        match self {
            Self::Sqlite(_) | Self::Postgres(_) => Retention::default(),
            Self::Mysql(_) => Retention::NONE,
        }
    }

    /// Names the store so that nobody takes it for another one: a relative path
    /// means another file in another directory.
    fn whereabouts(&self) -> String {
        match self {
            Self::Sqlite(path) => {
                let absolute = path.canonicalize().or_else(|_| std::path::absolute(path));
                Self::Sqlite(absolute.unwrap_or_else(|_| path.clone())).to_string()
            }
            Self::Postgres(_) | Self::Mysql(_) => self.to_string(),
        }
    }

    /// Refuses a store that is certainly not there; opening it would make it.
    async fn check_exists(&self) -> Result<(), Failure> {
        match self {
            Self::Mysql(name) => {
                let found = inspect(name).await?;
                if found.state == DatabaseState::Empty {
                    let message = format!("database `{name}` has no tables of a server");
                    return Err(Failure::failed(message).hint("check its name; nothing was made"));
                }
                Ok(())
            }
            Self::Sqlite(path) if !path.exists() => {
                let message = format!("there is no database `{}`", path.display());
                Err(Failure::failed(message).hint("check the path; nothing was made"))
            }
            Self::Sqlite(_) | Self::Postgres(_) => Ok(()),
        }
    }
}

/// Reads what a URL of a PostgreSQL database says.
pub(crate) fn postgres_options(url: &ServerUrl) -> Result<PostgresOptions, Failure> {
    PostgresOptions::from_url(&url.0)
        .map_err(|error| Failure::new(Exit::Usage, error).context("cannot use --store"))
}

fn postgres_unopened(error: fleethold_postgres::OpenError) -> Failure {
    let exit = match error {
        // A database server that starts together with this one is there soon.
        fleethold_postgres::OpenError::Unreachable { .. } => Exit::Temporary,
        _ => Exit::Failed,
    };
    Failure::new(exit, error).context("cannot open the store")
}

/// Says what taking over a database means, and changes nothing.
pub(crate) async fn check_takeover(store: &StoreUrl) -> Result<(), Failure> {
    let StoreUrl::Mysql(name) = store else {
        return Err(Failure::usage(
            "--takeover is for databases of MySQL or MariaDB",
        ));
    };
    let found = inspect(name).await?;
    let state = match found.state {
        DatabaseState::Empty => "has no tables yet",
        DatabaseState::Stock => "was made by a stock server",
        DatabaseState::Own => "is in use by fleethold",
    };
    let mut text = format!("database {name} on {} {state}\n", found.server.trim());
    for (title, lines) in [
        ("in the way", &found.obstacles),
        ("to be added", &found.additions),
        ("cannot be promised", &found.reservations),
    ] {
        for line in lines {
            text += &format!("{title}: {line}\n");
        }
    }
    output::print(&text)?;
    if found.obstacles.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(
        "the database cannot be taken over as it is",
    ))
}

async fn inspect(name: &DataSourceName) -> Result<fleethold_mysql::Inspection, Failure> {
    let limit = MysqlOptions::default().connect_timeout;
    let source = parse(name)?;
    Box::pin(fleethold_mysql::inspect(&source, limit))
        .await
        .map_err(unopened_mysql)
}

/// Reads a data source name; the error does not repeat it.
pub(crate) fn parse(name: &DataSourceName) -> Result<DataSource, Failure> {
    name.expose().parse().map_err(|problem| {
        Failure::usage(format!("the data source name is wrong: {problem}"))
            .hint("write mysql://USER:PASSWORD@HOST:PORT/DATABASE, or USER:PASSWORD@tcp(HOST:PORT)/DATABASE")
    })
}

fn unopened_mysql(error: fleethold_mysql::OpenError) -> Failure {
    let exit = if error.is_temporary() {
        Exit::Temporary
    } else {
        Exit::Failed
    };
    Failure::new(exit, error)
}

fn unopened(path: &Path, error: OpenError) -> Failure {
    let exit = match error {
        // A server that is stopping lets go of it soon.
        OpenError::InUse { .. } => Exit::Temporary,
        _ => Exit::Failed,
    };
    Failure::new(exit, error).context(format!("cannot open database `{}`", path.display()))
}
