//! How servers that share a secret recognize each other's notifications.
//!
//! The sender signs the time and the body; the secret itself never leaves a
//! server. A copy of a notification only wakes streams once more, so a little
//! difference between clocks may be allowed.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;

/// The header with the time and the signature.
pub(super) const HEADER: &str = "x-fleethold-signature";

/// How far the clocks of two servers may be apart.
const MOST_SKEW: Duration = Duration::from_secs(5 * 60);

/// The shortest secret in bytes.
const LEAST_BYTES: usize = 16;

/// The longest secret in bytes: more is another file by mistake.
const MOST_BYTES: usize = 4096;

/// What the servers of an installation know and nobody else.
#[derive(Clone)]
pub struct NotificationSecret(hmac::Key);

/// A text that is no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a secret has from {LEAST_BYTES} to {MOST_BYTES} bytes, and this has {bytes}")]
pub struct SecretError {
    bytes: usize,
}

/// Why a signature is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it is not signed")]
    Unsigned,
    #[error("its signature is wrong; the secrets of the servers differ")]
    Wrong,
    #[error("it is signed at a time that is not now; the clocks of the servers differ")]
    Time,
}

impl NotificationSecret {
    /// Takes the content of a secret file; white space around it does not count.
    ///
    /// # Errors
    /// It is too short to be a secret, or much too long.
    pub fn new(content: &[u8]) -> Result<Self, SecretError> {
        let secret = content.trim_ascii();
        if !(LEAST_BYTES..=MOST_BYTES).contains(&secret.len()) {
            return Err(SecretError {
                bytes: secret.len(),
            });
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }

    /// Returns the header's value for a body that is sent now.
    pub(super) fn sign(&self, now: SystemTime, body: &[u8]) -> String {
        let seconds = since_epoch(now).as_secs();
        let mut text = format!("{seconds}.");
        for byte in hmac::sign(&self.0, &signed(seconds, body)).as_ref() {
            text.push_str(&format!("{byte:02x}"));
        }
        text
    }

    /// Checks the header's value of a body that came now, in constant time.
    pub(super) fn check(
        &self,
        now: SystemTime,
        header: Option<&[u8]>,
        body: &[u8],
    ) -> Result<(), Refusal> {
        let header = header.ok_or(Refusal::Unsigned)?;
        let (seconds, signature) = read(header).ok_or(Refusal::Wrong)?;
        hmac::verify(&self.0, &signed(seconds, body), &signature).map_err(|_| Refusal::Wrong)?;
        // Only who knows the secret hears of clocks.
        let skew = since_epoch(now).abs_diff(Duration::from_secs(seconds));
        if skew > MOST_SKEW {
            return Err(Refusal::Time);
        }
        Ok(())
    }
}

impl fmt::Debug for NotificationSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NotificationSecret")
    }
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn signed(seconds: u64, body: &[u8]) -> Vec<u8> {
    let mut text = format!("fleethold notification 1\n{seconds}\n").into_bytes();
    text.extend_from_slice(body);
    text
}

fn read(header: &[u8]) -> Option<(u64, Vec<u8>)> {
    let text = std::str::from_utf8(header).ok()?;
    let (seconds, digits) = text.split_once('.')?;
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let pairs = (0..digits.len()).step_by(2);
    let signature = pairs.map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok());
    Some((seconds.parse().ok()?, signature.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn signature_holds_for_its_body_its_secret_and_a_short_time() {
        let secret = NotificationSecret::new(b"0123456789abcdef\n").unwrap();
        let header = secret.sign(at(1_000), b"body");
        let check = |secret: &NotificationSecret, now, body| {
            secret.check(at(now), Some(header.as_bytes()), body)
        };
        assert_eq!(check(&secret, 1_000, b"body"), Ok(()));
        assert_eq!(check(&secret, 700, b"body"), Ok(()));
        assert_eq!(check(&secret, 1_300, b"body"), Ok(()));
        assert_eq!(check(&secret, 699, b"body"), Err(Refusal::Time));
        assert_eq!(check(&secret, 1_301, b"body"), Err(Refusal::Time));
        assert_eq!(check(&secret, 1_000, b"Body"), Err(Refusal::Wrong));
        let same = NotificationSecret::new(b" 0123456789abcdef").unwrap();
        assert_eq!(check(&same, 1_000, b"body"), Ok(()));
        let other = NotificationSecret::new(b"0123456789abcdeF").unwrap();
        assert_eq!(check(&other, 1_000, b"body"), Err(Refusal::Wrong));
        assert_eq!(
            secret.check(at(1_000), None, b"body"),
            Err(Refusal::Unsigned)
        );
        let later = header.replacen("1000", "1001", 1);
        for wrong in ["", "1000", "1000.", "1000.zz", &later, &header[1..]] {
            let refusal = secret.check(at(1_000), Some(wrong.as_bytes()), b"body");
            assert_eq!(refusal, Err(Refusal::Wrong), "{wrong}");
        }
    }

    #[test]
    fn secret_has_a_reasonable_length_and_shows_in_no_log() {
        assert!(NotificationSecret::new(b"0123456789abcde\n").is_err());
        assert!(NotificationSecret::new(&[b'x'; 4097]).is_err());
        let secret = NotificationSecret::new(b"0123456789abcdef").unwrap();
        assert_eq!(format!("{secret:?}"), "NotificationSecret");
    }
}
