//! The four kinds of identifiers (specification section 1.3).
//!
//! Upstream's "empty id" is `None` here: a client id that is absent means "on
//! the server" or "no client". An id of all zero bytes is an ordinary id.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;

use crate::random::Random;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// The length of this id in bytes.
            pub const BYTES: usize = $bytes;

            /// Wraps the bytes of an id.
            pub const fn new(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            /// Draws a random id.
            pub fn random(random: &Random) -> Self {
                let mut bytes = [0; $bytes];
                random.fill(&mut bytes);
                Self(bytes)
            }

            /// Reads an id from its bytes; no bytes at all are `None`.
            ///
            /// # Errors
            /// Fails if there are bytes, but not exactly as many as the id has.
            pub fn from_optional_bytes(bytes: &[u8]) -> Result<Option<Self>, IdError> {
                if bytes.is_empty() {
                    return Ok(None);
                }
                Self::try_from(bytes).map(Some)
            }

            /// Returns the bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// Returns the bytes of the id as a shared buffer.
            pub fn to_bytes(self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;

            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                bytes.try_into().map(Self).map_err(|_| IdError {
                    what: $what,
                    problem: Problem::Bytes {
                        expected: $bytes,
                        found: bytes.len(),
                    },
                })
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0; $bytes];
                read_hex(text.as_bytes(), &mut bytes).map(|()| Self(bytes)).ok_or(IdError {
                    what: $what,
                    problem: Problem::Hex { digits: 2 * $bytes },
                })
            }
        }
    };
}

id!(
    /// Identifies a client: the first 8 bytes of the SHA-256 of its public key.
    ClientId, 8, "client id"
);
id!(
    /// Identifies a message.
    MessageId, 32, "message id"
);
id!(
    /// Identifies a broadcast.
    BroadcastId, 8, "broadcast id"
);
id!(
    /// Identifies one server's share of a broadcast's limit.
    AllocationId, 8, "allocation id"
);

impl ClientId {
    /// Returns the id of the client that holds the key with this DER SubjectPublicKeyInfo.
    pub fn from_public_key(spki_der: &[u8]) -> Self {
        let hash = digest::digest(&digest::SHA256, spki_der);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hash.as_ref()[..8]);
        Self(bytes)
    }

    /// Reads a client id as operators write it; an empty text and `nil` are `None`.
    ///
    /// # Errors
    /// Fails unless the text is empty, `nil` or exactly 16 hex digits.
    pub fn parse_optional(text: &str) -> Result<Option<Self>, IdError> {
        match text {
            "" | "nil" => Ok(None),
            _ => text.parse().map(Some),
        }
    }
}

impl MessageId {
    /// Returns the id of a message that `service` of `client` calls `source_message_id`.
    ///
    /// The hash input has no length prefixes, and names may contain U+0000, so
    /// two messages of one client can collide; those of two clients cannot.
    pub fn for_source(client: Option<ClientId>, service: &str, source_message_id: &[u8]) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        if let Some(client) = client {
            hash.update(client.as_bytes());
        }
        hash.update(&[0]);
        hash.update(service.as_bytes());
        hash.update(&[0]);
        hash.update(source_message_id);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(hash.finish().as_ref());
        Self(bytes)
    }
}

/// A text or byte string that is not an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdError {
    what: &'static str,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    Bytes { expected: usize, found: usize },
    Hex { digits: usize },
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problem {
            Problem::Bytes { expected, found } => {
                write!(f, "a {} has {expected} bytes, not {found}", self.what)
            }
            Problem::Hex { digits } => {
                write!(
                    f,
                    "a {} is written as exactly {digits} hex digits",
                    self.what
                )
            }
        }
    }
}

impl std::error::Error for IdError {}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn read_hex(text: &[u8], bytes: &mut [u8]) -> Option<()> {
    if text.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Vectors: specification section 11.
    #[test]
    fn client_id_is_the_start_of_the_key_hash() {
        let mut key = [0; 91];
        read_hex(
            b"3059301306072a8648ce3d020106082a8648ce3d030107034200041d9cdf0f23040d185d10cfbaf9a33d3f\
              cf14279c1262d5c58d00623327fb62fd01baece633ceb2de008c80bdb8f99d69e455ceb3d19af9c326fd07\
              7c4f7af264",
            &mut key,
        )
        .unwrap();
        assert_eq!(
            ClientId::from_public_key(&key).to_string(),
            "4db813c4e9022061"
        );
    }

    #[test]
    fn message_id_hashes_client_service_and_source_id() {
        let source_id: Vec<u8> = (0..16).collect();
        for (client, service, source, expected) in [
            (
                "0000000000000001",
                "TestServiceName",
                b"omid 2".as_slice(),
                "2083c96205129081d592ed3b1ba4957e4abdb1e2a5044bec2a35a17aa08978ae",
            ),
            (
                "",
                "system",
                b"1",
                "96d3f8b482865db36ba6894be371cf23a89f81aa40cf089113fbc06d9889d4f7",
            ),
            (
                "0102030405060708",
                "FRR",
                &source_id,
                "40926f822e7ab7340fa2cefdc10d83ebb3d62ea4cfa5908c6c078b7fc07937cb",
            ),
        ] {
            let client = ClientId::parse_optional(client).unwrap();
            assert_eq!(
                MessageId::for_source(client, service, source).to_string(),
                expected
            );
        }
    }

    #[test]
    fn text_form_is_lower_case_hex() {
        let id: ClientId = "00000000000000AB".parse().unwrap();
        assert_eq!(id.to_string(), "00000000000000ab");
        assert_eq!(ClientId::parse_optional("nil"), Ok(None));
        assert_eq!(ClientId::parse_optional(""), Ok(None));
        for wrong in [
            "nil",
            "",
            "00",
            "00000000000000zz",
            "00000000000000ab0",
            "+000000000000001",
        ] {
            assert!(wrong.parse::<BroadcastId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_of_a_wrong_length_are_refused_with_both_lengths() {
        assert_eq!(ClientId::from_optional_bytes(&[]), Ok(None));
        assert_eq!(
            ClientId::from_optional_bytes(&[0; 8]),
            Ok(Some(ClientId::new([0; 8])))
        );
        let error = ClientId::from_optional_bytes(&[0; 7]).unwrap_err();
        assert_eq!(error.to_string(), "a client id has 8 bytes, not 7");
    }
}
