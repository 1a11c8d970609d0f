//! The version of a database: whether we may touch it, and how an older one
//! becomes a current one.
//!
//! A migration is a list of statements, each of which can run again. They run
//! one by one, not in a transaction: not every engine can change a schema in
//! one. Servers that start at the same time wait for each other on one row.
//! Nothing is prepared: a pooler may lend each statement another connection.

use std::time::Duration;

use aws_lc_rs::digest;
use fleethold_store::Random;
use fleethold_store::retry::Backoff;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;

use crate::error::{OpenError, is_lost};
use crate::pool::{Connections, PoolError};
use crate::query::{INT, TEXT};

struct Migration {
    version: i32,
    sql: &'static str,
}

/// All migrations, oldest first. A published one never changes.
const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        sql: include_str!("../migrations/0001_initial.sql"),
    },
    Migration {
        version: 2,
        sql: include_str!("../migrations/0002_leases.sql"),
    },
];

/// How long a start waits for another server that migrates.
const MIGRATION_LIMIT: Duration = Duration::from_secs(600);
/// How long servers that make the first table at the same time step aside.
const RACE_LIMIT: Duration = Duration::from_secs(5);

/// Brings the database to the current version; refuses one that is not ours.
pub(crate) async fn migrate(connections: &Connections, random: &Random) -> Result<(), OpenError> {
    let place = Place::of(connections);
    let client = connections
        .connect(|_| {})
        .await
        .map_err(|error| place.unreachable(error))?;
    place.check(&client).await?;
    let applied = place.applied(&client).await?;
    place.check_versions(&applied)?;
    if applied.len() < MIGRATIONS.len() {
        place.prepare(&client, random).await?;
        let lock = connections
            .connect(|_| {})
            .await
            .map_err(|error| place.unreachable(error))?;
        let locked = timeout(MIGRATION_LIMIT, lock.batch_execute(LOCK));
        match locked.await {
            Ok(locked) => locked.map_err(|error| place.failed(error))?,
            Err(_) => return Err(place.failed_to_wait()),
        }
        // Another server may have done it meanwhile.
        let applied = place.applied(&client).await?;
        place.check_versions(&applied)?;
        for migration in MIGRATIONS.iter().skip(applied.len()) {
            place.apply(&client, migration).await?;
        }
        // Ends the lock with its connection if this fails.
        drop(lock.batch_execute("ROLLBACK").await);
    }
    let connection = connections.get().await.map_err(|error| match error {
        PoolError::Backend(error) => place.unreachable(error),
        error => OpenError::Unreachable {
            address: place.address.clone(),
            source: Box::new(error),
        },
    })?;
    place.check_rights(&connection).await
}

/// Returns whether the server was reached and its certificate, or the way to
/// talk, is not accepted.
fn is_distrusted(error: &tokio_postgres::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if error.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The words of errors.
struct Place {
    address: String,
    database: String,
    user: String,
}

impl Place {
    fn of(connections: &Connections) -> Self {
        let config = connections.config();
        let host = match config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            #[cfg(unix)]
            Some(Host::Unix(path)) => path.display().to_string(),
            None => "localhost".to_owned(),
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        Self {
            address: format!("{host}:{port}"),
            database: config.get_dbname().unwrap_or_default().to_owned(),
            user: config.get_user().unwrap_or_default().to_owned(),
        }
    }

    /// Makes the error of a connection that was not to be had.
    fn unreachable(&self, error: tokio_postgres::Error) -> OpenError {
        let address = self.address.clone();
        let Some(code) = error.code() else {
            return if is_lost(&error) && !is_distrusted(&error) {
                OpenError::Unreachable {
                    address,
                    source: Box::new(error),
                }
            } else {
                OpenError::Handshake {
                    address,
                    source: error,
                }
            };
        };
        if *code == SqlState::INVALID_CATALOG_NAME {
            return OpenError::NoDatabase {
                database: self.database.clone(),
                source: error,
            };
        }
        if code.code().starts_with("28") {
            return OpenError::Refused {
                address,
                user: self.user.clone(),
                source: error,
            };
        }
        self.failed(error)
    }

    /// Makes the error of a statement.
    fn failed(&self, error: tokio_postgres::Error) -> OpenError {
        let database = self.database.clone();
        match error.code() {
            Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => OpenError::ReadOnly { database },
            Some(&SqlState::INSUFFICIENT_PRIVILEGE) => OpenError::Rights {
                database,
                user: self.user.clone(),
                source: Some(error),
            },
            _ => OpenError::Database {
                database,
                source: error,
            },
        }
    }

    fn failed_to_wait(&self) -> OpenError {
        OpenError::Locked {
            database: self.database.clone(),
        }
    }

    /// Refuses a database that cannot be used, before anything is changed.
    async fn check(&self, client: &Client) -> Result<(), OpenError> {
        let row = client
            .query_typed_one(CHECK, &[])
            .await
            .map_err(|error| self.failed(error))?;
        let database = self.database.clone();
        let (encoding, read_only): (String, String) = (row.get(0), row.get(1));
        if !encoding.eq_ignore_ascii_case("utf8") {
            return Err(OpenError::Encoding {
                database,
                found: encoding,
            });
        }
        if read_only == "on" {
            return Err(OpenError::ReadOnly { database });
        }
        if row.get::<_, bool>(2) {
            return Ok(());
        }
        let table = client
            .query_typed_opt(ANY_TABLE, &[])
            .await
            .map_err(|error| self.failed(error))?;
        match table {
            // Another server may have made it since we have looked for ours.
            Some(row) if !self.is_ours(client).await? => Err(OpenError::Foreign {
                database,
                table: row.get(0),
            }),
            _ => Ok(()),
        }
    }

    /// Returns whether a server of ours has begun with the schema.
    async fn is_ours(&self, client: &Client) -> Result<bool, OpenError> {
        let row = client.query_typed_one(CHECK, &[]).await;
        Ok(row.map_err(|error| self.failed(error))?.get(2))
    }

    /// Returns versions and checksums of what was applied.
    async fn applied(&self, client: &Client) -> Result<Vec<(i32, String)>, OpenError> {
        if !self.is_ours(client).await? {
            return Ok(Vec::new());
        }
        let rows = client
            .query_typed(APPLIED, &[])
            .await
            .map_err(|error| self.failed(error))?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    fn check_versions(&self, applied: &[(i32, String)]) -> Result<(), OpenError> {
        let supported = MIGRATIONS.last().map_or(0, |last| last.version);
        if let Some((found, _)) = applied.last().filter(|(found, _)| *found > supported) {
            return Err(OpenError::TooNew {
                database: self.database.clone(),
                found: *found,
                supported,
            });
        }
        for (migration, (version, found)) in MIGRATIONS.iter().zip(applied) {
            if migration.version != *version || checksum(migration.sql) != *found {
                return Err(OpenError::Altered {
                    database: self.database.clone(),
                    version: *version,
                });
            }
        }
        Ok(())
    }

    /// Makes the table of versions, whose first row is the lock.
    async fn prepare(&self, client: &Client, random: &Random) -> Result<(), OpenError> {
        let mut backoff = Backoff::new(random, RACE_LIMIT);
        loop {
            let Err(error) = client.batch_execute(PREPARE).await else {
                return Ok(());
            };
            // "If not exists" does not hold between two who make it at once: the
            // table, its type or its row may turn up between look and making, and
            // engines that always are serializable say that as a conflict.
            let raced = matches!(
                error.code(),
                Some(
                    &SqlState::UNIQUE_VIOLATION
                        | &SqlState::DUPLICATE_TABLE
                        | &SqlState::DUPLICATE_OBJECT
                        | &SqlState::T_R_SERIALIZATION_FAILURE
                )
            );
            match backoff.next_delay().filter(|_| raced) {
                Some(delay) => sleep(delay).await,
                None => return Err(self.failed(error)),
            }
        }
    }

    async fn apply(&self, client: &Client, migration: &Migration) -> Result<(), OpenError> {
        for statement in statements(migration.sql) {
            client
                .batch_execute(statement)
                .await
                .map_err(|error| self.failed(error))?;
        }
        let checksum = checksum(migration.sql);
        client
            .execute_typed(
                NOTE_APPLIED,
                &[(&migration.version, INT), (&checksum, TEXT)],
            )
            .await
            .map_err(|error| self.failed(error))?;
        tracing::info!(version = migration.version, "migrated the database");
        Ok(())
    }

    async fn check_rights(&self, client: &Client) -> Result<(), OpenError> {
        let row = client
            .query_typed_one(MAY_ALL, &[])
            .await
            .map_err(|error| self.failed(error))?;
        if row.get(0) {
            return Ok(());
        }
        Err(OpenError::Rights {
            database: self.database.clone(),
            user: self.user.clone(),
            source: None,
        })
    }
}

/// Cuts a migration into its statements.
pub(crate) fn statements(sql: &str) -> impl Iterator<Item = &str> {
    sql.split(";\n")
        .map(str::trim)
        .filter(|statement| !statement.is_empty())
}

fn checksum(sql: &str) -> String {
    let hash = digest::digest(&digest::SHA256, sql.as_bytes());
    hash.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

const CHECK: &str = "\
-- open (check)
SELECT current_setting('server_encoding'), current_setting('transaction_read_only'),
    to_regclass('fleethold_migrations') IS NOT NULL";

const ANY_TABLE: &str = "\
-- open (other tables)
SELECT table_name::text FROM information_schema.tables
WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'
ORDER BY table_name LIMIT 1";

const PREPARE: &str = "\
-- open (prepare)
CREATE TABLE IF NOT EXISTS fleethold_migrations (
    version integer PRIMARY KEY,
    checksum text NOT NULL
);
INSERT INTO fleethold_migrations (version, checksum) VALUES (0, 'lock') ON CONFLICT DO NOTHING";

const LOCK: &str = "\
-- open (lock)
BEGIN;
SELECT version FROM fleethold_migrations WHERE version = 0 FOR UPDATE";

const APPLIED: &str = "\
-- open (applied)
SELECT version, checksum FROM fleethold_migrations WHERE version > 0 ORDER BY version";

const NOTE_APPLIED: &str = "\
-- open (note)
INSERT INTO fleethold_migrations (version, checksum) VALUES ($1, $2) ON CONFLICT DO NOTHING";

const MAY_ALL: &str = "\
-- open (rights)
SELECT count(*) FILTER (WHERE NOT (
    has_table_privilege(name, 'SELECT') AND has_table_privilege(name, 'INSERT')
    AND has_table_privilege(name, 'UPDATE') AND has_table_privilege(name, 'DELETE')
)) = 0
FROM unnest(ARRAY[
    'clients', 'client_labels', 'contacts', 'usage_records', 'messages', 'client_pending',
    'server_pending', 'payload_chunks', 'contact_messages', 'broadcasts', 'broadcast_chunks',
    'broadcast_labels', 'broadcast_groups', 'allocations', 'broadcasts_sent', 'files', 'file_chunks',
    'copies', 'leases'
]) AS tables (name)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_is_cut_into_statements_that_can_run_again() {
        for migration in MIGRATIONS {
            let mut count = 0;
            for statement in statements(migration.sql) {
                let sql: Vec<_> = statement
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("--") && !line.is_empty())
                    .collect();
                assert!(sql[0].contains("IF NOT EXISTS"), "{statement}");
                assert!(sql[0].starts_with("CREATE"), "{statement}");
                count += 1;
            }
            assert!(count > 0);
        }
    }

    #[test]
    fn rights_are_asked_for_all_tables() {
        let created: Vec<_> = MIGRATIONS
            .iter()
            .flat_map(|migration| migration.sql.lines())
            .filter_map(|line| line.strip_prefix("CREATE TABLE IF NOT EXISTS "))
            .filter_map(|rest| rest.split_whitespace().next())
            .collect();
        for table in &created {
            assert!(MAY_ALL.contains(&format!("'{table}'")), "{table}");
        }
        assert_eq!(created.len(), MAY_ALL.matches('\'').count() / 2 - 4);
    }
}
