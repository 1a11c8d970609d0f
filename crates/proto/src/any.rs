use std::error::Error;
use std::fmt;

use prost::{DecodeError, Message, Name};

use crate::Any;

/// Goes before the full name of a message in the type URLs that stock programs write.
pub(crate) const PREFIX: &str = "type.googleapis.com/";

/// Serializes a message into an [`Any`] that carries its type.
///
/// ```
/// let any = fleethold_proto::pack(&fleethold_proto::fleetspeak::DieRequest { force: true });
/// assert_eq!(any.type_url, "type.googleapis.com/fleetspeak.DieRequest");
/// assert_eq!(&any.value[..], b"\x08\x01");
/// ```
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: format!("{PREFIX}{}", M::full_name()),
        value: message.encode_to_vec().into(),
    }
}

/// Reads the message that an [`Any`] carries.
///
/// Only what follows the last `/` of the type URL has to be the full name of the message.
///
/// # Errors
///
/// The type is another one, or the value is not a serialized message of this type.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, UnpackError> {
    let expected = M::full_name();
    let name = any
        .type_url
        .rsplit_once('/')
        .map_or(any.type_url.as_str(), |(_, name)| name);
    if name != expected {
        return Err(UnpackError::WrongType {
            expected,
            found: any.type_url.clone(),
        });
    }
    // A clone of Bytes shares its memory, and so do the bytes fields of the result.
    M::decode(any.value.clone()).map_err(|source| UnpackError::Malformed { expected, source })
}

/// Says why an [`Any`] does not carry the expected message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnpackError {
    /// It carries a message of another type.
    WrongType {
        /// Full name of the expected message.
        expected: String,
        /// The type URL as it was given.
        found: String,
    },
    /// Its value cannot be decoded.
    Malformed {
        /// Full name of the expected message.
        expected: String,
        /// What is wrong with the value.
        source: DecodeError,
    },
}

impl fmt::Display for UnpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongType { expected, found } => {
                write!(f, "expected {expected}, but found type URL {found:?}")
            }
            Self::Malformed { expected, .. } => write!(f, "value is not a valid {expected}"),
        }
    }
}

impl Error for UnpackError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::WrongType { .. } => None,
            Self::Malformed { source, .. } => Some(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleetspeak::{DieRequest, MessageAckData, RestartServiceRequest};

    #[test]
    fn unpacking_returns_what_was_packed() {
        let message = RestartServiceRequest { name: "GRR".into() };
        assert_eq!(unpack(&pack(&message)), Ok(message));
    }

    #[test]
    fn only_the_part_after_the_last_slash_counts() {
        for type_url in [
            "fleetspeak.DieRequest",
            "/fleetspeak.DieRequest",
            "a.example/b/c/fleetspeak.DieRequest",
        ] {
            let any = Any {
                type_url: type_url.into(),
                value: b"\x08\x01".as_slice().into(),
            };
            assert_eq!(unpack(&any), Ok(DieRequest { force: true }), "{type_url}");
        }
    }

    #[test]
    fn another_type_is_refused() {
        for type_url in [
            "",
            "type.googleapis.com/fleetspeak.DieRequest/",
            "DieRequest",
        ] {
            let any = Any {
                type_url: type_url.into(),
                value: Default::default(),
            };
            let expected = UnpackError::WrongType {
                expected: "fleetspeak.DieRequest".into(),
                found: type_url.into(),
            };
            assert_eq!(unpack::<DieRequest>(&any), Err(expected));
        }
    }

    #[test]
    fn a_malformed_value_is_refused_with_its_cause() {
        let any = Any {
            value: b"\x08".as_slice().into(),
            ..pack(&DieRequest::default())
        };
        let error = unpack::<DieRequest>(&any).unwrap_err();
        assert!(matches!(error, UnpackError::Malformed { .. }), "{error:?}");
        assert!(error.source().is_some());
    }

    #[test]
    fn unpacked_bytes_share_the_memory_of_the_any() {
        let any = pack(&MessageAckData {
            message_ids: vec![vec![7; 32].into()],
        });
        let message: MessageAckData = unpack(&any).unwrap();
        assert!(
            any.value
                .as_ptr_range()
                .contains(&message.message_ids[0].as_ptr())
        );
    }
}
