//! Opening connections: one lock for the whole store, the same settings on
//! every connection.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::SqliteOptions;
use crate::error::OpenError;
use crate::migrate;

/// What all connections of a store have in common.
///
/// * WAL with `synchronous = FULL`: a commit is one append and one sync.
/// * The log is written back in the commit that makes it longer than 4,000
///   pages (16 MiB), and starts anew as soon as no reader is in the old one.
///   Reads are short, so it stays near that size under load as well. With
///   1,000 pages, SQLite's default, random pages are written back more often.
/// * Temporary structures in memory: a savepoint that touches more than 16
///   pages would open a file otherwise, once per call in a batch.
/// * One process only: see [`Lock`]. The timeout covers the moments in which
///   SQLite itself needs exclusive access, as when the last connection closes.
const SETTINGS: &str = "\
-- settings
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA foreign_keys = ON;
PRAGMA temp_store = MEMORY;
PRAGMA wal_autocheckpoint = 4000;
PRAGMA journal_size_limit = 67108864;
";

const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// More than there are statements.
const CACHED_STATEMENTS: usize = 128;

/// In KiB. The writer's cache should hold the upper levels of all trees and
/// the leaves that a batch changes; readers profit from the system's cache.
const WRITER_CACHE: i64 = 64 * 1024;
const READER_CACHE: i64 = 8 * 1024;

/// Opens the connection of the writer, and creates or migrates the database.
pub(crate) fn open_writer(path: &Path, options: &SqliteOptions) -> Result<Connection, OpenError> {
    create_private(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = connect(path, flags, options).map_err(failed(path))?;
    connection
        .busy_timeout(BUSY_TIMEOUT)
        .map_err(failed(path))?;
    migrate::migrate(&connection, path)?;
    set_up(connection, WRITER_CACHE, options).map_err(failed(path))
}

/// Creates a missing file for its owner only; SQLite gives the files beside it
/// the same rights. It holds keys and messages of a whole fleet.
fn create_private(path: &Path) -> Result<(), OpenError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(OpenError::Io {
            action: "create database",
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Opens a connection that cannot write.
pub(crate) fn open_reader(path: &Path, options: &SqliteOptions) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = connect(path, flags, options).map_err(failed(path))?;
    set_up(connection, READER_CACHE, options).map_err(failed(path))
}

fn connect(path: &Path, flags: OpenFlags, options: &SqliteOptions) -> rusqlite::Result<Connection> {
    match &options.vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs.as_str()),
        None => Connection::open_with_flags(path, flags),
    }
}

fn set_up(
    mut connection: Connection,
    cache_kib: i64,
    options: &SqliteOptions,
) -> rusqlite::Result<Connection> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch(SETTINGS)?;
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    // Plans that depend on bound values would be made anew for each of them.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
    rusqlite::vtab::array::load_module(&connection)?;
    if let Some(on_connect) = &options.on_connect {
        on_connect(&mut connection);
    }
    Ok(connection)
}

fn failed(path: &Path) -> impl Fn(rusqlite::Error) -> OpenError {
    move |source| OpenError::Database {
        path: path.to_owned(),
        source,
    }
}

/// Keeps every other store away from a database as long as it lives, also
/// those of other processes.
///
/// SQLite's own exclusive mode would lock our readers out as well. The lock is
/// the system's and ends with the process; the file next to the database stays,
/// because removing it would race with the next one who opens it.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    pub(crate) fn take(database: &Path) -> Result<Self, OpenError> {
        let mut path = database.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |source| OpenError::Io {
            action: "lock",
            path: path.clone(),
            source,
        };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse {
                path: database.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}
