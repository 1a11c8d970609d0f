//! Decoding what strangers send, after counting what it would take in memory.
//!
//! An empty element costs two bytes on the wire and hundreds once decoded. So
//! the elements of all lists are counted first, and a list that no honest
//! agent sends is refused while it is still bytes. What is decoded takes at
//! most 8 times its bytes and a constant; `crates/fuzz-targets` asserts it.

use bytes::{Buf, Bytes};
use fleethold_proto::fleetspeak::{ContactData, WrappedContactData};
use prost::encoding::{WireType, decode_key, decode_varint};
use prost::{DecodeError, Message};

/// The most messages in one contact or record, in either direction.
pub(crate) const MOST_MESSAGES: usize = 100;

/// The most elements of any other list: labels, services, annotations.
pub(crate) const MOST_ELEMENTS: usize = 1_000;

/// The most signatures of a contact, and the most certificates of each.
const MOST_SIGNATURES: usize = 16;

/// How many bytes each element beyond the first [`MOST_ELEMENTS`] must bring
/// along on average: in memory it takes four times as many.
const BYTES_PER_ELEMENT: usize = 32;

/// Bytes that are no message, or one with a list that is too long.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error(transparent)]
    Unreadable(#[from] DecodeError),
    #[error("the message ends early or has fields of an unknown kind")]
    Malformed,
    #[error("more than {most} {what}")]
    TooMany { what: &'static str, most: usize },
}

/// Decodes what an agent puts around its contact data.
pub(crate) fn decode_record(bytes: Bytes) -> Result<WrappedContactData, WireError> {
    let (mut signatures, mut labels) = (0, 0);
    each_field(&bytes, |number, value| match number {
        2 => {
            count(&mut signatures, "signatures", MOST_SIGNATURES)?;
            check_lists(value, &[1], "certificates", MOST_SIGNATURES)
        }
        3 => count(&mut labels, "labels", MOST_ELEMENTS),
        _ => Ok(()),
    })?;
    Ok(WrappedContactData::decode(bytes)?)
}

/// Decodes contact data.
pub(crate) fn decode_contact(bytes: Bytes) -> Result<ContactData, WireError> {
    let (mut messages, mut services, mut annotations) = (0, 0, 0);
    let most_annotations = most_in(&bytes);
    each_field(&bytes, |number, value| match number {
        2 => {
            count(&mut messages, "messages in one contact", MOST_MESSAGES)?;
            annotations += annotations_of(value)?;
            if annotations > most_annotations {
                return Err(WireError::TooMany {
                    what: "annotations in a contact of this size",
                    most: most_annotations,
                });
            }
            Ok(())
        }
        6 => count(&mut services, "services with tokens", MOST_ELEMENTS),
        _ => Ok(()),
    })?;
    Ok(ContactData::decode(bytes)?)
}

/// Returns how many elements a message of these bytes may hold in all.
fn most_in(bytes: &[u8]) -> usize {
    MOST_ELEMENTS + bytes.len() / BYTES_PER_ELEMENT
}

/// Counts the elements of the lists `fields` of a serialized message.
pub(crate) fn check_lists(
    bytes: &[u8],
    fields: &[u32],
    what: &'static str,
    most: usize,
) -> Result<(), WireError> {
    let most = most.min(most_in(bytes));
    let mut elements = 0;
    each_field(bytes, |number, _| {
        if fields.contains(&number) {
            count(&mut elements, what, most)?;
        }
        Ok(())
    })
}

/// Counts the annotations and tags of one message.
fn annotations_of(bytes: &[u8]) -> Result<usize, WireError> {
    // A part that is given twice is merged, so its elements add up.
    let mut elements = 0;
    each_field(bytes, |number, value| match number {
        8 | 12 => each_field(value, |_, _| {
            count(&mut elements, "annotations of one message", MOST_ELEMENTS)
        }),
        _ => Ok(()),
    })?;
    Ok(elements)
}

fn count(elements: &mut usize, what: &'static str, most: usize) -> Result<(), WireError> {
    *elements += 1;
    if *elements > most {
        return Err(WireError::TooMany { what, most });
    }
    Ok(())
}

/// Calls `field` with the number and the bytes of each field; numbers have none.
fn each_field<'a>(
    mut bytes: &'a [u8],
    mut field: impl FnMut(u32, &'a [u8]) -> Result<(), WireError>,
) -> Result<(), WireError> {
    while bytes.has_remaining() {
        let (number, wire_type) = decode_key(&mut bytes)?;
        let length = match wire_type {
            WireType::Varint => {
                decode_varint(&mut bytes)?;
                0
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => decode_varint(&mut bytes)?,
            // Groups are not part of proto3.
            WireType::StartGroup | WireType::EndGroup => return Err(WireError::Malformed),
        };
        let value = usize::try_from(length)
            .ok()
            .and_then(|length| bytes.split_at_checked(length));
        let Some((value, rest)) = value else {
            return Err(WireError::Malformed);
        };
        bytes = rest;
        field(number, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use fleethold_proto::fleetspeak::annotations::Entry;
    use fleethold_proto::fleetspeak::{Annotations, Message as AgentMessage, Signature};

    use super::*;

    fn repeat(element: &[u8], times: usize) -> Bytes {
        element.repeat(times).into()
    }

    #[test]
    fn lists_of_empty_elements_are_refused_before_they_are_decoded() {
        for (element, most) in [(b"\x12\0", MOST_MESSAGES), (b"\x32\0", MOST_ELEMENTS)] {
            assert!(decode_contact(repeat(element, most)).is_ok());
            let error = decode_contact(repeat(element, most + 1)).unwrap_err();
            assert!(matches!(error, WireError::TooMany { .. }), "{error}");
            assert!(decode_contact(repeat(element, 10_000_000)).is_err());
        }
        for (element, most) in [(b"\x12\0", MOST_SIGNATURES), (b"\x1a\0", MOST_ELEMENTS)] {
            assert!(decode_record(repeat(element, most)).is_ok());
            assert!(decode_record(repeat(element, most + 1)).is_err());
        }
    }

    #[test]
    fn lists_inside_of_elements_are_counted_too() {
        let signed = |certificates| WrappedContactData {
            signatures: vec![Signature {
                certificate: vec![Bytes::new(); certificates],
                ..Signature::default()
            }],
            ..WrappedContactData::default()
        };
        assert!(decode_record(signed(16).encode_to_vec().into()).is_ok());
        assert!(decode_record(signed(17).encode_to_vec().into()).is_err());
        let annotated = |entries| ContactData {
            messages: vec![AgentMessage {
                annotations: Some(Annotations {
                    entries: vec![Entry::default(); entries],
                }),
                ..AgentMessage::default()
            }],
            ..ContactData::default()
        };
        assert!(decode_contact(annotated(1_000).encode_to_vec().into()).is_ok());
        assert!(decode_contact(annotated(1_001).encode_to_vec().into()).is_err());
    }

    #[test]
    fn elements_beyond_the_first_thousand_must_have_some_bytes() {
        let annotated = |value: &str| ContactData {
            messages: vec![
                AgentMessage {
                    annotations: Some(Annotations {
                        entries: vec![
                            Entry {
                                value: value.to_owned(),
                                ..Entry::default()
                            };
                            1_000
                        ],
                    }),
                    ..AgentMessage::default()
                };
                50
            ],
            ..ContactData::default()
        };
        assert!(decode_contact(annotated("").encode_to_vec().into()).is_err());
        assert!(decode_contact(annotated(&"x".repeat(40)).encode_to_vec().into()).is_ok());

        let ids = |id: &[u8]| check_lists(&id.repeat(9_000), &[1], "ids", 10_000);
        assert!(ids(b"\x0a\0").is_err());
        assert!(ids(&[&b"\x0a\x20"[..], &[7; 32]].concat()).is_ok());
    }

    #[test]
    fn cut_and_odd_bytes_are_errors() {
        for bytes in [
            &b"\x12\x05ab"[..],
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x13",
            b"\x0f",
            b"\xff",
        ] {
            assert!(
                decode_contact(Bytes::from_static(bytes)).is_err(),
                "{bytes:?}"
            );
        }
        assert!(decode_contact(Bytes::new()).is_ok());
    }
}
