//! What went wrong in the database, in the words of the store's contract.

use deadpool::managed::TimeoutType;
use fleethold_store::{Error, ErrorKind, Outcome};
use tokio_postgres::error::{DbError, SqlState};

use crate::pool::PoolError;

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The options contradict each other or name an unreadable file.
    #[error(transparent)]
    Url(#[from] crate::UrlError),
    /// No connection: wrong host or port, or the server does not run.
    #[error(
        "cannot connect to PostgreSQL at {address}; check host and port, and that the server runs and accepts connections"
    )]
    Unreachable {
        /// Host and port.
        address: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No agreement on TLS, or the server asks for a password that the URL lacks.
    #[error(
        "cannot log in to PostgreSQL at {address}; check password, sslmode and sslrootcert in the store's URL"
    )]
    Handshake {
        /// Host and port.
        address: String,
        /// The cause.
        source: tokio_postgres::Error,
    },
    /// The server refuses user or password.
    #[error(
        "PostgreSQL at {address} refuses user `{user}`; check user and password in the store's URL, and the server's pg_hba.conf"
    )]
    Refused {
        /// Host and port.
        address: String,
        /// The user of the URL.
        user: String,
        /// The cause.
        source: tokio_postgres::Error,
    },
    /// The server has no such database.
    #[error(
        "database `{database}` does not exist; create it: CREATE DATABASE \"{database}\" ENCODING 'UTF8' TEMPLATE template0"
    )]
    NoDatabase {
        /// The database of the URL.
        database: String,
        /// The cause.
        source: tokio_postgres::Error,
    },
    /// The database is a replica, or the user's transactions are read-only.
    #[error(
        "database `{database}` is read-only; connect to the primary server, or unset default_transaction_read_only for this user"
    )]
    ReadOnly {
        /// The database of the URL.
        database: String,
    },
    /// The encoding of the database is not UTF8.
    #[error(
        "database `{database}` has encoding {found}; create one with UTF8: CREATE DATABASE \"{database}\" ENCODING 'UTF8' TEMPLATE template0"
    )]
    Encoding {
        /// The database of the URL.
        database: String,
        /// Its encoding.
        found: String,
    },
    /// The user lacks rights.
    #[error(
        "user `{user}` lacks rights in database `{database}`; make it the owner: ALTER DATABASE \"{database}\" OWNER TO \"{user}\", or grant it what is missing"
    )]
    Rights {
        /// The database of the URL.
        database: String,
        /// The user of the URL.
        user: String,
        /// The cause, if a statement was refused.
        source: Option<tokio_postgres::Error>,
    },
    /// The database holds something else.
    #[error(
        "database `{database}` holds table `{table}`, which is not fleethold's; create a database for fleethold alone"
    )]
    Foreign {
        /// The database of the URL.
        database: String,
        /// One of its tables.
        table: String,
    },
    /// A newer fleethold has written the database.
    #[error(
        "database `{database}` has schema version {found}, newer than the supported {supported}; install a newer fleethold, or restore the backup made before the upgrade"
    )]
    TooNew {
        /// The database of the URL.
        database: String,
        /// The version of the database.
        found: i32,
        /// The highest version that this program knows.
        supported: i32,
    },
    /// A migration that was applied is not the one that this program knows.
    #[error(
        "database `{database}` was made by another build of fleethold: migration {version} differs; install the release that made it"
    )]
    Altered {
        /// The database of the URL.
        database: String,
        /// The version that differs.
        version: i32,
    },
    /// Another server has been migrating for very long.
    #[error(
        "another server is migrating database `{database}`; wait for it, or end its connection"
    )]
    Locked {
        /// The database of the URL.
        database: String,
    },
    /// Another statement failed.
    #[error("failed to prepare database `{database}`")]
    Database {
        /// The database of the URL.
        database: String,
        /// The cause.
        source: tokio_postgres::Error,
    },
}

/// How a piece of work on a connection ends badly.
///
/// Work does not know the name of its operation; whoever runs it adds that.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The store's own answer.
    Refused(Error),
    /// The database or the connection to it failed.
    Database {
        error: tokio_postgres::Error,
        /// Whether the transaction may be committed all the same.
        committed: Commit,
    },
    /// No connection was to be had.
    Pool(PoolError),
    /// A test made the commit fail.
    Injected,
    /// Somebody else was faster; what was read is no longer true.
    Overtaken,
}

/// What is known about a commit after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commit {
    No,
    Perhaps,
}

/// The result of a piece of work on a connection.
pub(crate) type Worked<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

// A column that cannot be read: nothing of the transaction is committed yet.
impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database {
            error,
            committed: Commit::No,
        }
    }
}

impl Failure {
    pub(crate) fn may_be_committed(&self) -> bool {
        matches!(
            self,
            Self::Database {
                committed: Commit::Perhaps,
                ..
            }
        )
    }

    /// Returns whether the same transaction may succeed at once or a little later.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::Injected | Self::Overtaken => true,
            Self::Database { error, .. } => passes(error),
            Self::Pool(error) => match error {
                PoolError::Backend(error) => passes(error),
                PoolError::Timeout(kind) => !matches!(kind, TimeoutType::Wait),
                _ => false,
            },
        }
    }

    /// Makes the error of an operation; `replayed` if an earlier attempt may have
    /// been committed.
    pub(crate) fn into_error(self, operation: &'static str, replayed: bool) -> Error {
        let outcome = if replayed || self.may_be_committed() {
            Outcome::Unknown
        } else {
            Outcome::NotApplied
        };
        match self {
            Self::Refused(error) => error,
            Self::Injected | Self::Overtaken => {
                Error::new(ErrorKind::Transient, operation, CONFLICT)
            }
            Self::Database { error, .. } => database_error(operation, error),
            Self::Pool(error) => match error {
                PoolError::Backend(error) => database_error(operation, error),
                PoolError::Closed => return Error::closed(operation),
                error => Error::new(
                    ErrorKind::Transient,
                    operation,
                    "all connections to the database are busy",
                )
                .with_source(error),
            },
        }
        .with_outcome(outcome)
    }
}

const CONFLICT: &str = "other transactions came in between";

fn database_error(operation: &'static str, error: tokio_postgres::Error) -> Error {
    let (kind, detail) = match error.as_db_error() {
        Some(refused) => classify(refused.code()),
        None if is_lost(&error) => (
            ErrorKind::Transient,
            "the connection to the database is lost",
        ),
        None => (ErrorKind::Internal, "a stored value cannot be read"),
    };
    Error::new(kind, operation, detail).with_source(error)
}

/// Returns whether the connection broke: every other error of the driver tells
/// of a value or a parameter.
pub(crate) fn is_lost(error: &tokio_postgres::Error) -> bool {
    let broken = std::iter::successors(std::error::Error::source(error), |cause| cause.source())
        .any(|cause| cause.is::<std::io::Error>());
    // An unexpected message is what a stream looks like that was cut in the middle.
    error.is_closed() || broken
}

fn passes(error: &tokio_postgres::Error) -> bool {
    match error.as_db_error().map(DbError::code) {
        None => is_lost(error),
        Some(code) => {
            CONFLICTS.contains(code) || RECONNECT.contains(code) || code.code().starts_with("08")
        }
    }
}

/// Returns whether the connection that said so must not be used again.
pub(crate) fn spoils(error: &tokio_postgres::Error) -> bool {
    match error.as_db_error().map(DbError::code) {
        None => true,
        Some(code) => RECONNECT.contains(code) || code.code().starts_with("08"),
    }
}

const CONFLICTS: &[SqlState] = &[
    SqlState::T_R_SERIALIZATION_FAILURE,
    SqlState::T_R_DEADLOCK_DETECTED,
    SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN,
    SqlState::LOCK_NOT_AVAILABLE,
];

/// What another connection may not say: the server goes or comes, is a standby
/// after a failover, is full, or does not know the connection's statements.
const RECONNECT: &[SqlState] = &[
    SqlState::ADMIN_SHUTDOWN,
    SqlState::CRASH_SHUTDOWN,
    SqlState::CANNOT_CONNECT_NOW,
    SqlState::READ_ONLY_SQL_TRANSACTION,
    SqlState::TOO_MANY_CONNECTIONS,
    SqlState::INVALID_SQL_STATEMENT_NAME,
    SqlState::FEATURE_NOT_SUPPORTED,
];

fn classify(code: &SqlState) -> (ErrorKind, &'static str) {
    use ErrorKind::{Internal, TooLarge, Transient};
    if CONFLICTS.contains(code) {
        return (Transient, CONFLICT);
    }
    match &code.code()[..2] {
        "08" => return (Transient, "the connection to the database is lost"),
        "28" => return (Transient, "the database refuses user or password"),
        _ => {}
    }
    match *code {
        SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN | SqlState::CANNOT_CONNECT_NOW => {
            (Transient, "the database is stopping or starting")
        }
        SqlState::READ_ONLY_SQL_TRANSACTION => (Transient, "the database is read-only"),
        SqlState::TOO_MANY_CONNECTIONS => (Transient, "the database has no connection left"),
        SqlState::DISK_FULL => (Transient, "the database's disk is full"),
        SqlState::OUT_OF_MEMORY | SqlState::CONFIGURATION_LIMIT_EXCEEDED => {
            (Transient, "the database is out of memory")
        }
        SqlState::QUERY_CANCELED => (Transient, "the database cancelled the statement"),
        SqlState::INVALID_CATALOG_NAME => (Transient, "the database is gone"),
        SqlState::PROGRAM_LIMIT_EXCEEDED => (TooLarge, "a value is too large for the database"),
        SqlState::INSUFFICIENT_PRIVILEGE => (Internal, "the user lacks rights in the database"),
        SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_COLUMN => {
            (Internal, "the database's schema was changed")
        }
        SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED => {
            (Internal, "the database is damaged")
        }
        _ => (Internal, "the database refused a statement"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_whether_trying_again_may_help() {
        for (code, kind) in [
            ("40001", ErrorKind::Transient),
            ("40P01", ErrorKind::Transient),
            ("40003", ErrorKind::Transient),
            ("55P03", ErrorKind::Transient),
            ("57P01", ErrorKind::Transient),
            ("57P02", ErrorKind::Transient),
            ("57P03", ErrorKind::Transient),
            ("57014", ErrorKind::Transient),
            ("08006", ErrorKind::Transient),
            ("25006", ErrorKind::Transient),
            ("53100", ErrorKind::Transient),
            ("53300", ErrorKind::Transient),
            ("28P01", ErrorKind::Transient),
            ("54000", ErrorKind::TooLarge),
            ("23505", ErrorKind::Internal),
            ("42501", ErrorKind::Internal),
            ("XX001", ErrorKind::Internal),
        ] {
            assert_eq!(classify(&SqlState::from_code(code)).0, kind, "{code}");
        }
    }

    #[test]
    fn a_lost_answer_to_a_commit_is_unknown_and_a_conflict_is_not() {
        let lost = || Failure::Database {
            error: tokio_postgres::Error::__private_api_timeout(),
            committed: Commit::Perhaps,
        };
        assert_eq!(lost().into_error("x", false).outcome(), Outcome::Unknown);
        let conflict = Failure::Injected.into_error("x", false);
        assert_eq!(conflict.kind(), ErrorKind::Transient);
        assert_eq!(conflict.outcome(), Outcome::NotApplied);
        let replayed = Failure::Injected.into_error("x", true);
        assert_eq!(replayed.outcome(), Outcome::Unknown);
    }
}
