//! What went wrong in the database, in the words of the store's contract.

use std::borrow::Cow;

use fleethold_store::{Error, ErrorKind, Outcome};

/// How a piece of work in a transaction ends badly.
///
/// Work does not know the name of its operation; whoever runs it adds that.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The store's own answer.
    Refused(Error),
    /// There is no connection to the database; nothing was sent.
    NoConnection(Option<mysql_async::Error>),
    /// All connections were in use for too long; nothing was sent.
    Busy,
    /// The driver or the server failed.
    Database(mysql_async::Error),
    /// No answer came in time.
    Late,
    /// There were fewer answers than statements.
    CutShort,
    /// A stored value is not what it should be.
    Unreadable(Cow<'static, str>),
    /// The store has been closed.
    Closed,
}

/// The result of a piece of work in a transaction.
pub(crate) type Worked<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<mysql_async::Error> for Failure {
    fn from(error: mysql_async::Error) -> Self {
        Self::Database(error)
    }
}

/// What a failure means for the transaction and for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It lost against another one and was rolled back: begin again.
    Conflict,
    /// The connection is gone: begin again on another one.
    Lost,
    /// The server takes no writes now: begin again elsewhere or later.
    Unwilling(&'static str),
    /// Trying again does not help.
    Final(ErrorKind, &'static str),
}

/// The server's answers that stores meet, by name.
pub(crate) mod code {
    pub(crate) const DUPLICATE_KEY: u16 = 1062;
    pub(crate) const LOCK_WAIT_TIMEOUT: u16 = 1205;
    pub(crate) const NO_PARENT_ROW: u16 = 1452;
    pub(crate) const SYNTAX: u16 = 1064;
    /// Galera's, also during a commit.
    pub(crate) const NODE_NOT_READY: u16 = 1047;
    pub(crate) const OUT_OF_RANGE: u16 = 1264;
    pub(crate) const NO_MORE_NUMBERS: u16 = 1467;
    /// MariaDB's own number for the same.
    pub(crate) const NUMBER_TOO_LARGE: u16 = 167;
}

impl Failure {
    /// Returns whether the server answered with this code.
    pub(crate) fn is_server(&self, code: u16) -> bool {
        matches!(self, Self::Database(mysql_async::Error::Server(error)) if error.code == code)
    }

    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Self::Database(mysql_async::Error::Server(error)) => classify(error.code),
            Self::NoConnection(Some(mysql_async::Error::Server(error))) => {
                match classify(error.code) {
                    // Whatever a server says before it lets us in, it may not say later.
                    Verdict::Final(_, detail) => Verdict::Unwilling(detail),
                    verdict => verdict,
                }
            }
            Self::Database(_) | Self::NoConnection(_) | Self::Late | Self::CutShort => {
                Verdict::Lost
            }
            Self::Unreadable(_) => {
                Verdict::Final(ErrorKind::Internal, "a stored value cannot be read")
            }
            // Whoever waits once more waits behind all who came meanwhile.
            Self::Busy => Verdict::Final(
                ErrorKind::Transient,
                "all connections to the database are busy",
            ),
            Self::Refused(error) => Verdict::Final(error.kind(), "refused"),
            Self::Closed => Verdict::Final(ErrorKind::Closed, "the store is closed"),
        }
    }

    /// Makes the error of an operation.
    pub(crate) fn into_error(self, operation: &'static str, outcome: Outcome) -> Error {
        let (kind, detail) = match self.verdict() {
            Verdict::Conflict => (ErrorKind::Transient, "the database has too many conflicts"),
            Verdict::Lost => (ErrorKind::Transient, "the database cannot be reached"),
            Verdict::Unwilling(detail) => (ErrorKind::Transient, detail),
            Verdict::Final(kind, detail) => (kind, detail),
        };
        match self {
            Self::Refused(error) => error,
            Self::Closed => Error::closed(operation),
            Self::Unreadable(what) => {
                Error::new(kind, operation, format!("{detail}: {what}")).with_outcome(outcome)
            }
            Self::Database(source) | Self::NoConnection(Some(source)) => {
                let error = Error::new(kind, operation, detail).with_outcome(outcome);
                error.with_source(Source::of(&source))
            }
            Self::NoConnection(None) | Self::Busy | Self::Late | Self::CutShort => {
                Error::new(kind, operation, detail).with_outcome(outcome)
            }
        }
    }
}

/// What the driver says, without statements or values: those may hold payloads.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Source(String);

impl Source {
    pub(crate) fn of(error: &mysql_async::Error) -> Self {
        Self(match error {
            // The server's text quotes the statement near an error of syntax,
            // and values that are out of range.
            mysql_async::Error::Server(error) => {
                format!("the server answered {} ({})", error.code, error.state)
            }
            mysql_async::Error::Io(error) => error.to_string(),
            mysql_async::Error::Driver(mysql_async::DriverError::ConnectionClosed) => {
                "the connection is closed".to_owned()
            }
            mysql_async::Error::Driver(mysql_async::DriverError::PacketTooLarge) => {
                "a packet is too large".to_owned()
            }
            mysql_async::Error::Driver(mysql_async::DriverError::NoClientSslFlagFromServer) => {
                "the server offers no TLS".to_owned()
            }
            mysql_async::Error::Driver(mysql_async::DriverError::UnknownAuthPlugin { name }) => {
                format!("the server wants authentication by `{name}`")
            }
            _ => "the driver failed".to_owned(),
        })
    }
}

fn classify(code: u16) -> Verdict {
    use ErrorKind::{Internal, InvalidArgument, TooLarge, Transient};
    match code {
        // Lock wait, deadlock (and Galera's certification), changed record, too
        // many transactions, interrupted; TiDB's own.
        code::LOCK_WAIT_TIMEOUT | 1213 | 1020 | 1637 | 1317 | 3572 | 8002 | 8022 | 9007 => {
            Verdict::Conflict
        }
        // Gone away, lost, shutting down, killed, and the network's errors.
        2006 | 2013 | 1053 | 1927 | 1152 | 1158..=1161 | 1184 | 1077 | 1079 | 3169 | 4031 => {
            Verdict::Lost
        }
        1047 => Verdict::Unwilling("the node of the cluster takes no statements"),
        1290 | 1792 | 1836 => Verdict::Unwilling("the database is read-only"),
        1040 | 1203 | 1226 => Verdict::Unwilling("the database has no connection left"),
        1021 | 1114 | 1030 => Verdict::Final(Transient, "the database has no space left"),
        1037 | 1038 | 1041 => Verdict::Final(Transient, "the database has no memory left"),
        // Of a commit: whether it happened is not known.
        1180 => Verdict::Lost,
        1153 | 1301 => Verdict::Final(
            TooLarge,
            "a value is larger than the server's max_allowed_packet; raise that",
        ),
        1044 | 1045 | 1142 | 1143 | 1227 | 1370 => {
            Verdict::Final(Internal, "the user has not the right for a statement")
        }
        1366 => Verdict::Final(InvalidArgument, "the database cannot hold a character"),
        1146 | 1054 => Verdict::Final(Internal, "a table or column is missing"),
        _ => Verdict::Final(Internal, "the database refused a statement"),
    }
}

#[cfg(test)]
mod tests {
    use mysql_async::{DriverError, ServerError};

    use super::*;

    fn server(code: u16) -> Failure {
        Failure::Database(mysql_async::Error::Server(ServerError {
            code,
            message: "near 'secret'".into(),
            state: "HY000".into(),
        }))
    }

    #[test]
    fn codes_say_what_to_do_next() {
        for code in [1205, 1213, 1020, 1637] {
            assert_eq!(server(code).verdict(), Verdict::Conflict, "{code}");
        }
        for code in [2006, 2013, 1053, 1927, 1180] {
            assert_eq!(server(code).verdict(), Verdict::Lost, "{code}");
        }
        for code in [1047, 1290, 1792, 1836, 1040] {
            assert!(
                matches!(server(code).verdict(), Verdict::Unwilling(_)),
                "{code}"
            );
        }
        for (code, kind) in [
            (1114, ErrorKind::Transient),
            (1153, ErrorKind::TooLarge),
            (1142, ErrorKind::Internal),
            (1064, ErrorKind::Internal),
        ] {
            let verdict = server(code).verdict();
            assert!(
                matches!(verdict, Verdict::Final(found, _) if found == kind),
                "{code}: {verdict:?}"
            );
        }
        let closed = Failure::Database(mysql_async::Error::Driver(DriverError::ConnectionClosed));
        assert_eq!(closed.verdict(), Verdict::Lost);
    }

    #[test]
    fn texts_of_the_server_stay_out_of_errors() {
        let error = server(1064).into_error("store_messages", Outcome::NotApplied);
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(
            cause.contains("1064") && !cause.contains("secret"),
            "{cause}"
        );
    }
}
