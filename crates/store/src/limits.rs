//! Size limits, the same in every backend (specification section 2.2), and the
//! ways of keeping them.

use std::time::SystemTime;

use fleethold_proto::fleetspeak::Message;

use crate::clock::{timestamp, timestamp_epoch_nanos};
use crate::error::{Error, ErrorKind, Result};

/// The largest payload of a message or broadcast, and the largest file, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 16_777_215;

/// A claim ends with the message whose payload brings those of the claim to this
/// many bytes: what one call hands out stays in memory at once.
pub const MAX_CLAIM_BYTES: usize = 8 * 1024 * 1024;

/// A message can be given back after so many claims; after that, every claim lasts.
pub const MOST_EARLY_CLAIMS: u32 = 3;

/// The longest service name, label, message type or file name, in characters.
pub const MAX_NAME_CHARS: usize = 128;

/// The longest network address, in characters.
pub const MAX_ADDRESS_CHARS: usize = 64;

/// The longest streaming target, in bytes.
pub const MAX_STREAMING_TO_BYTES: usize = 128;

/// The longest failure reason, validation info and annotations, in bytes.
pub const MAX_TEXT_BYTES: usize = 65_535;

/// Returns whether a claim may have ended because of [`MAX_CLAIM_BYTES`], so
/// that more may be due.
pub fn fills_claim(claimed: &[Message]) -> bool {
    claimed.iter().map(payload_bytes).sum::<usize>() >= MAX_CLAIM_BYTES
}

/// Returns the bytes that count towards [`MAX_CLAIM_BYTES`].
pub fn payload_bytes(message: &Message) -> usize {
    message.data.as_ref().map_or(0, |data| data.value.len())
}

/// Returns the first `chars` characters of `text`.
pub fn cut_chars(text: &str, chars: usize) -> &str {
    match text.char_indices().nth(chars) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// Returns at most the first `bytes` bytes of `text`, cut between characters.
pub fn cut_bytes(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Refuses a key text over [`MAX_NAME_CHARS`].
///
/// # Errors
/// `InvalidArgument` that names `what`.
pub fn check_name(operation: &'static str, what: &'static str, text: &str) -> Result<()> {
    // Most names are short enough in bytes already.
    if text.len() > MAX_NAME_CHARS && text.chars().count() > MAX_NAME_CHARS {
        return Err(Error::invalid(
            operation,
            format!("{what} is longer than {MAX_NAME_CHARS} characters"),
        ));
    }
    Ok(())
}

/// Refuses a payload over [`MAX_PAYLOAD_BYTES`].
///
/// # Errors
/// `TooLarge` that names `what`.
pub fn check_payload(operation: &'static str, what: &'static str, bytes: usize) -> Result<()> {
    if bytes > MAX_PAYLOAD_BYTES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            operation,
            format!("{what} has {bytes} bytes, more than {MAX_PAYLOAD_BYTES}"),
        ));
    }
    Ok(())
}

/// Refuses a part of a limit that cannot be reserved.
///
/// # Errors
/// `InvalidArgument` for a fraction that is negative or no number, or an expiry
/// after year 9999.
pub fn check_allocation(operation: &'static str, fraction: f32, expiry: SystemTime) -> Result<()> {
    if fraction.is_nan() || fraction < 0.0 {
        let detail = format!("{fraction} is no fraction");
        return Err(Error::invalid(operation, detail));
    }
    if timestamp_epoch_nanos(&timestamp(expiry)).is_none() {
        return Err(Error::invalid(operation, "expiry is after the year 9999"));
    }
    Ok(())
}

/// Returns how many rows to pass over and how many to return at most, where a
/// `limit` of 0 means all.
///
/// # Errors
/// `InvalidArgument` for an offset without limit.
pub fn check_page(operation: &'static str, offset: u64, limit: u64) -> Result<[u64; 2]> {
    if offset > 0 && limit == 0 {
        return Err(Error::invalid(operation, "an offset needs a limit"));
    }
    Ok([offset, if limit == 0 { u64::MAX } else { limit }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut_chars("häß", 2), "hä");
        assert_eq!(cut_chars("hä", 2), "hä");
        assert_eq!(cut_bytes("hä", 2), "h");
        assert_eq!(cut_bytes("hä", 3), "hä");
        assert_eq!(cut_bytes("hä", 9), "hä");
    }

    #[test]
    fn names_are_counted_in_characters() {
        assert!(check_name("x", "label", &"ä".repeat(128)).is_ok());
        let error = check_name("x", "label", &"ä".repeat(129)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}
