//! Which store a server opens: `--store`, and what upstream's files name instead.

mod commands;
mod url;

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use fleethold_postgres::{PostgresOptions, PostgresStore};
use fleethold_sqlite::{OpenError, SqliteOptions, SqliteStore};
use fleethold_store::maintenance::Retention;
use fleethold_store::{Clock, Maintenance, Random};

pub(crate) use self::commands::StoreCommand;
pub(crate) use self::url::{ServerUrl, StoreUrl};
use crate::output::{Exit, Failure};

impl StoreUrl {
    /// Opens the store, and creates it if there is none.
    pub(crate) async fn open(
        &self,
        clock: Arc<dyn Clock>,
        random: Arc<Random>,
    ) -> Result<Arc<dyn Maintenance>, Failure> {
        match self {
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

    /// Returns how long a store of this kind keeps what grows with time; `None`
    /// if it removes nothing by itself.
    pub(crate) fn retention(&self) -> Option<Retention> {
        matches!(self, Self::Sqlite(_)).then(Retention::default)
    }

    /// Refuses a store that is certainly not there; opening it would make it.
    fn check_exists(&self) -> Result<(), Failure> {
        match self {
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

fn unopened(path: &Path, error: OpenError) -> Failure {
    let exit = match error {
        // A server that is stopping lets go of it soon.
        OpenError::InUse { .. } => Exit::Temporary,
        _ => Exit::Failed,
    };
    Failure::new(exit, error).context(format!("cannot open database `{}`", path.display()))
}
