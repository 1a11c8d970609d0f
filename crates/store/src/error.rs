//! The one error type of every store: what failed, what the caller may do,
//! and whether the operation may have happened.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// The result of every store operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed store operation.
///
/// `Display` is one clause that names the operation and the thing; it never
/// repeats [`source`](StdError::source). Print the chain to see the cause.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    outcome: Outcome,
    operation: &'static str,
    detail: Cow<'static, str>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The addressed client, message, broadcast, file or contact does not exist.
    NotFound,
    /// The key is taken: client, broadcast, or a broadcast already sent to the client.
    AlreadyExists,
    /// The input is malformed; correct it before trying again.
    InvalidArgument,
    /// A payload or a file is over the size limit.
    TooLarge,
    /// The broadcast's limit is 0, it has expired, or it or its allocation is gone.
    BroadcastDisabled,
    /// The allocation has sent all it may send.
    AllocationFull,
    /// The allocation's expiry has passed.
    AllocationExpired,
    /// The backend lacks this feature.
    NotSupported,
    /// A conflict, a full disk or a lost connection; the same call may succeed later.
    Transient,
    /// The store has been closed.
    Closed,
    /// Anything else, including a row that cannot be decoded.
    Internal,
}

/// Whether a failed operation may have taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Certainly nothing was changed.
    NotApplied,
    /// The operation may have happened, wholly or not at all.
    Unknown,
}

impl Error {
    /// Makes an error of `kind` for `operation`; `detail` names the thing.
    ///
    /// The outcome is [`Outcome::NotApplied`], except for
    /// [`ErrorKind::Transient`] and [`ErrorKind::Internal`], which are
    /// [`Outcome::Unknown`] until [`with_outcome`](Self::with_outcome) says otherwise.
    pub fn new(
        kind: ErrorKind,
        operation: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        let outcome = match kind {
            ErrorKind::Transient | ErrorKind::Internal => Outcome::Unknown,
            _ => Outcome::NotApplied,
        };
        Self {
            kind,
            outcome,
            operation,
            detail: detail.into(),
            source: None,
        }
    }

    /// Makes an [`ErrorKind::InvalidArgument`] error.
    pub fn invalid(operation: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidArgument, operation, detail)
    }

    /// Makes an [`ErrorKind::NotFound`] error.
    pub fn not_found(operation: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::NotFound, operation, detail)
    }

    /// Makes an [`ErrorKind::Closed`] error.
    pub fn closed(operation: &'static str) -> Self {
        Self::new(ErrorKind::Closed, operation, "the store is closed")
    }

    /// Replaces the outcome.
    #[must_use]
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds what is known of an earlier attempt that did the same.
    #[must_use]
    pub fn after(mut self, earlier: Outcome) -> Self {
        if earlier == Outcome::Unknown {
            self.outcome = Outcome::Unknown;
        }
        self
    }

    /// Returns what the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Returns whether the operation may have taken effect.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Returns the name of the failed operation.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// Returns whether the addressed object does not exist (upstream's `IsNotFound`).
    pub fn is_not_found(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }

    /// Returns whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.kind == ErrorKind::Transient
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, self.detail)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_operation_and_thing_without_the_cause() {
        let error = Error::new(ErrorKind::Transient, "store_messages", "database is full")
            .with_source("no space left on device");
        assert_eq!(error.to_string(), "store_messages: database is full");
        assert_eq!(
            error.source().unwrap().to_string(),
            "no space left on device"
        );
    }

    #[test]
    fn outcome_is_unknown_unless_the_kind_proves_otherwise() {
        for (kind, outcome) in [
            (ErrorKind::NotFound, Outcome::NotApplied),
            (ErrorKind::InvalidArgument, Outcome::NotApplied),
            (ErrorKind::Closed, Outcome::NotApplied),
            (ErrorKind::Transient, Outcome::Unknown),
            (ErrorKind::Internal, Outcome::Unknown),
        ] {
            assert_eq!(Error::new(kind, "x", "y").outcome(), outcome, "{kind:?}");
        }
    }
}
