//! What can go wrong between an agent and its server, as it is counted.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

/// Why one contact failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// The server answered with this status.
    Refused(u16),
    /// The connection failed, at this layer.
    Connection(&'static str, String),
    /// Nothing came.
    TooLong(&'static str),
    /// What came cannot be read.
    Nonsense(&'static str),
    /// The server ended a stream.
    Ended,
    /// The admin interface answered with this code.
    Admin(String),
}

impl Failure {
    pub(crate) fn connection(layer: &'static str, error: &dyn Error) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            // Some errors repeat their source in their own text.
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        Self::Connection(layer, text)
    }

    /// Waits for `future`, but not for longer than `limit`.
    pub(crate) async fn within<T>(
        limit: Duration,
        what: &'static str,
        future: impl Future<Output = Result<T, Self>>,
    ) -> Result<T, Self> {
        tokio::time::timeout(limit, future)
            .await
            .unwrap_or(Err(Self::TooLong(what)))
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(status) => write!(f, "the server answered with status {status}"),
            Self::Connection(layer, error) => write!(f, "{layer}: {error}"),
            Self::TooLong(what) => write!(f, "waited too long for {what}"),
            Self::Nonsense(what) => write!(f, "{what} cannot be read"),
            Self::Ended => write!(f, "the server ended a stream"),
            Self::Admin(status) => write!(f, "admin interface: {status}"),
        }
    }
}

impl Error for Failure {}
