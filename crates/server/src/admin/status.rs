//! How errors of the store look to a caller.

use fleethold_store::{Error, ErrorKind};
use tonic::{Code, Status};

/// Tells a caller about an error, causes included; what an operator should see is logged.
pub(super) fn status(error: Error) -> Status {
    let code = code(error.kind());
    let text = crate::chain(&error);
    match code {
        Code::Internal => tracing::error!(error = text, "admin call failed"),
        Code::Unavailable => tracing::warn!(error = text, "admin call failed"),
        _ => {}
    }
    Status::new(code, text)
}

fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::TooLarge => Code::ResourceExhausted,
        ErrorKind::BroadcastDisabled | ErrorKind::AllocationFull | ErrorKind::AllocationExpired => {
            Code::FailedPrecondition
        }
        ErrorKind::NotSupported => Code::Unimplemented,
        ErrorKind::Transient | ErrorKind::Closed => Code::Unavailable,
        // Internal, and kinds of a newer store.
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_its_code() {
        for (kind, expected) in [
            (ErrorKind::NotFound, Code::NotFound),
            (ErrorKind::AlreadyExists, Code::AlreadyExists),
            (ErrorKind::InvalidArgument, Code::InvalidArgument),
            (ErrorKind::TooLarge, Code::ResourceExhausted),
            (ErrorKind::BroadcastDisabled, Code::FailedPrecondition),
            (ErrorKind::AllocationFull, Code::FailedPrecondition),
            (ErrorKind::AllocationExpired, Code::FailedPrecondition),
            (ErrorKind::NotSupported, Code::Unimplemented),
            (ErrorKind::Transient, Code::Unavailable),
            (ErrorKind::Closed, Code::Unavailable),
            (ErrorKind::Internal, Code::Internal),
        ] {
            assert_eq!(code(kind), expected, "{kind:?}");
        }
    }

    #[test]
    fn text_contains_the_cause() {
        let error = Error::new(ErrorKind::Transient, "store_file", "database is full")
            .with_source("no space left on device");
        let status = status(error);
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(
            status.message(),
            "store_file: database is full: no space left on device"
        );
    }
}
