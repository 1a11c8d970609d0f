//! The version of a database: what it is, whether we may touch it, and how an
//! older one becomes a current one.
//!
//! Two fields of the file's header carry all of it: `application_id` says that
//! the database is ours, `user_version` how many migrations it has seen. Both
//! change in the transaction that changes the schema.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use crate::error::OpenError;

/// "FLHD".
const APPLICATION_ID: i32 = 0x464c_4844;

/// All migrations, oldest first. A published one never changes.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_initial.sql"),
    include_str!("../migrations/0002_maintenance.sql"),
];

/// Refuses a file that is no database of ours or newer, without touching it.
///
/// The header is read by hand: SQLite already changes a file, or those beside
/// it, by opening it when its last user crashed. A missing or empty file is new.
///
/// A power cut may damage the header itself, while a database is made or its
/// log is written back. Then a journal or log is beside it that repairs it, and
/// SQLite has to look first.
pub(crate) fn check_file(path: &Path) -> Result<(), OpenError> {
    const HEADER_BYTES: usize = 100;
    let failed = |source| OpenError::Io {
        action: "read database",
        path: path.to_owned(),
        source,
    };
    let mut header = [0; HEADER_BYTES];
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    if file.metadata().map_err(failed)?.len() == 0 {
        return Ok(());
    }
    let foreign = || OpenError::Foreign {
        path: path.to_owned(),
    };
    match (&file).read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        read => read.map_err(failed)?,
    }
    let is_database = header.starts_with(b"SQLite format 3\0");
    if !is_database
        && ["-journal", "-wal"]
            .iter()
            .any(|suffix| has_beside(path, suffix))
    {
        return Ok(());
    }
    let number = |at: usize| {
        i32::from_be_bytes(
            header[at..at + 4]
                .try_into()
                .expect("four bytes of a header"),
        )
    };
    if !is_database || number(68) != APPLICATION_ID {
        return Err(foreign());
    }
    check_version(path, number(60)).map(drop)
}

fn has_beside(path: &Path, suffix: &str) -> bool {
    let mut beside = path.as_os_str().to_owned();
    beside.push(suffix);
    fs::metadata(beside).is_ok_and(|file| file.len() > 0)
}

/// Brings the database to the current version, all missing migrations at once
/// or none.
pub(crate) fn migrate(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    apply(connection, path, MIGRATIONS)
}

fn apply(connection: &Connection, path: &Path, migrations: &[&str]) -> Result<(), OpenError> {
    let failed = |source| OpenError::Database {
        path: path.to_owned(),
        source,
    };
    // The header may be older than the log of a newer program that crashed;
    // closing the database after refusing it must not bring that log in.
    let keep_log = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    connection.set_db_config(keep_log, true).map_err(failed)?;
    let found = pragma(connection, "user_version").map_err(failed)?;
    let known = check_version(path, found)?;
    let is_new: bool = connection
        .query_row(IS_EMPTY, (), |row| row.get(0))
        .map_err(failed)?;
    let application = pragma(connection, "application_id").map_err(failed)?;
    if application != APPLICATION_ID && !is_new {
        return Err(OpenError::Foreign {
            path: path.to_owned(),
        });
    }
    connection.set_db_config(keep_log, false).map_err(failed)?;
    if known == migrations.len() {
        return Ok(());
    }
    let run = || -> rusqlite::Result<()> {
        connection.execute_batch("BEGIN EXCLUSIVE")?;
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        for migration in &migrations[known..] {
            connection.execute_batch(migration)?;
        }
        connection.pragma_update(None, "user_version", version(migrations))?;
        connection.execute_batch("COMMIT")
    };
    run().map_err(failed)?;
    tracing::info!(
        path = %path.display(),
        from = known,
        to = migrations.len(),
        "migrated the database"
    );
    Ok(())
}

const IS_EMPTY: &str = "\
-- is_empty
SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)";

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i32> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

/// Returns how many migrations the database has seen.
fn check_version(path: &Path, found: i32) -> Result<usize, OpenError> {
    let supported = MIGRATIONS.len();
    usize::try_from(found)
        .ok()
        .filter(|found| *found <= supported)
        .ok_or_else(|| OpenError::TooNew {
            path: path.to_owned(),
            found: found.cast_unsigned(),
            supported: version(MIGRATIONS),
        })
}

fn version(migrations: &[&str]) -> u32 {
    u32::try_from(migrations.len()).expect("a short list")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(connection: &Connection) -> Vec<(String, String)> {
        connection
            .prepare("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
            .unwrap()
            .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap()
    }

    #[test]
    fn step_by_step_gives_the_schema_of_a_new_database() {
        let path = Path::new("memory");
        let fresh = Connection::open_in_memory().unwrap();
        migrate(&fresh, path).unwrap();
        let stepwise = Connection::open_in_memory().unwrap();
        for count in 1..=MIGRATIONS.len() {
            apply(&stepwise, path, &MIGRATIONS[..count]).unwrap();
        }
        assert_eq!(schema(&stepwise), schema(&fresh));
        assert!(!schema(&fresh).is_empty());
    }

    #[test]
    fn a_second_run_changes_nothing() {
        let path = Path::new("memory");
        let connection = Connection::open_in_memory().unwrap();
        migrate(&connection, path).unwrap();
        let before = schema(&connection);
        migrate(&connection, path).unwrap();
        assert_eq!(schema(&connection), before);
    }

    #[test]
    fn a_migration_that_fails_leaves_nothing_behind() {
        let path = Path::new("memory");
        let connection = Connection::open_in_memory().unwrap();
        let broken = ["CREATE TABLE one (a) STRICT;"];
        assert!(apply(&connection, path, &broken).is_err());
        drop(connection.execute_batch("ROLLBACK"));
        assert_eq!(schema(&connection), []);
        assert_eq!(pragma(&connection, "application_id").unwrap(), 0);
        migrate(&connection, path).unwrap();
    }
}
