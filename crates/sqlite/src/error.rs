//! What went wrong in SQLite, in the words of the store's contract.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use fleethold_store::{Error, ErrorKind, Outcome};
use rusqlite::ErrorCode;

/// Why a database could not be opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory of the database is missing.
    #[error("directory `{}` for the database does not exist; create it first", .directory.display())]
    NoDirectory {
        /// The missing directory.
        directory: PathBuf,
    },
    /// Another process, or another store of this one, has opened the database.
    #[error("database `{}` is in use; stop the other process or choose another path", .path.display())]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// The file is no database of fleethold.
    #[error(
        "`{}` is not a fleethold database; choose another path, or restore a backup if it should be one",
        .path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A newer fleethold has written the database.
    #[error(
        "database `{}` has schema version {found}, newer than the supported {supported}; \
         install a newer fleethold, or restore the backup made before the upgrade",
        .path.display()
    )]
    TooNew {
        /// The database.
        path: PathBuf,
        /// The version of the database.
        found: u32,
        /// The highest version that this program knows.
        supported: u32,
    },
    /// A file could not be read or made, or no thread could be started.
    #[error("failed to {action} `{}`; check its permissions and the space on its disk", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// SQLite refused.
    #[error(
        "failed to open database `{}`; check its permissions and the space on its disk, \
         or restore a backup if it is damaged",
        .path.display()
    )]
    Database {
        /// The database.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
}

/// How a piece of work on a connection ends badly.
///
/// Work does not know the name of its operation; whoever runs it adds that.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The store's own answer.
    Refused(Error),
    /// SQLite failed.
    Database(rusqlite::Error),
}

/// The result of a piece of work on a connection.
pub(crate) type Worked<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl From<rusqlite::types::FromSqlError> for Failure {
    fn from(error: rusqlite::types::FromSqlError) -> Self {
        Self::Database(error.into())
    }
}

impl Failure {
    /// Makes the error of an operation that was rolled back.
    pub(crate) fn rolled_back(self, operation: &'static str) -> Error {
        match self {
            Self::Refused(error) => error,
            Self::Database(error) => store_error(operation, Outcome::NotApplied, Arc::new(error)),
        }
    }
}

/// Makes the error of an operation from SQLite's, which several may share.
pub(crate) fn store_error(
    operation: &'static str,
    outcome: Outcome,
    source: Arc<rusqlite::Error>,
) -> Error {
    let (kind, detail) = classify(source.sqlite_error_code());
    Error::new(kind, operation, detail)
        .with_outcome(outcome)
        .with_source(source)
}

fn classify(code: Option<ErrorCode>) -> (ErrorKind, &'static str) {
    use ErrorKind::{Internal, TooLarge, Transient};
    match code {
        Some(ErrorCode::DiskFull) => (Transient, "the disk is full"),
        Some(ErrorCode::SystemIoFailure) => (Transient, "the disk cannot be read or written"),
        Some(ErrorCode::ReadOnly) => (Transient, "the database is read-only"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (Transient, "the database is locked")
        }
        Some(ErrorCode::OutOfMemory) => (Transient, "there is no memory left"),
        Some(ErrorCode::CannotOpen) => (Transient, "a file of the database cannot be opened"),
        Some(ErrorCode::OperationInterrupted | ErrorCode::OperationAborted) => {
            (Transient, "the operation was interrupted")
        }
        Some(ErrorCode::FileLockingProtocolFailed) => (Transient, "the database cannot be locked"),
        Some(ErrorCode::TooBig) => (TooLarge, "a value is too large for the database"),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            (Internal, "the database is damaged")
        }
        Some(_) => (Internal, "the database refused a statement"),
        None => (Internal, "a stored value cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn codes_say_whether_trying_again_may_help() {
        for (code, kind) in [
            (ffi::SQLITE_FULL, ErrorKind::Transient),
            (ffi::SQLITE_IOERR, ErrorKind::Transient),
            (ffi::SQLITE_IOERR_FSYNC, ErrorKind::Transient),
            (ffi::SQLITE_IOERR_WRITE, ErrorKind::Transient),
            (ffi::SQLITE_READONLY, ErrorKind::Transient),
            (ffi::SQLITE_BUSY, ErrorKind::Transient),
            (ffi::SQLITE_BUSY_SNAPSHOT, ErrorKind::Transient),
            (ffi::SQLITE_LOCKED, ErrorKind::Transient),
            (ffi::SQLITE_PROTOCOL, ErrorKind::Transient),
            (ffi::SQLITE_NOMEM, ErrorKind::Transient),
            (ffi::SQLITE_CANTOPEN, ErrorKind::Transient),
            (ffi::SQLITE_INTERRUPT, ErrorKind::Transient),
            (ffi::SQLITE_TOOBIG, ErrorKind::TooLarge),
            (ffi::SQLITE_CORRUPT, ErrorKind::Internal),
            (ffi::SQLITE_NOTADB, ErrorKind::Internal),
            (ffi::SQLITE_CONSTRAINT_UNIQUE, ErrorKind::Internal),
            (ffi::SQLITE_ERROR, ErrorKind::Internal),
        ] {
            let source = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            let error = Failure::from(source).rolled_back("x");
            assert_eq!(error.kind(), kind, "{code}");
            assert_eq!(error.outcome(), Outcome::NotApplied, "{code}");
        }
        let error = Failure::from(rusqlite::Error::QueryReturnedNoRows).rolled_back("x");
        assert_eq!(error.kind(), ErrorKind::Internal);
    }

    #[test]
    fn the_cause_is_kept_and_not_repeated() {
        let source = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_FULL), None);
        let error = Failure::from(source).rolled_back("store_messages");
        assert_eq!(error.to_string(), "store_messages: the disk is full");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("full"), "{cause}");
    }
}
