//! The body of our own notifications: many clients in one call.
//!
//! One entry is nine bytes: what is new, and the client's id.

use fleethold_store::ClientId;

/// Where our own notifications are posted.
pub(super) const PATH: &str = "/fleethold/v1/notifications";

/// The most clients in one call.
pub(super) const MOST_ENTRIES: usize = 1_000;

/// The most bytes of a body.
pub(super) const MOST_BYTES: usize = MOST_ENTRIES * ENTRY_BYTES;

const ENTRY_BYTES: usize = 1 + ClientId::BYTES;

/// What a server is told about a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum News {
    /// There may be messages for it.
    Messages,
    /// What is known of it has changed: labels or the blacklist.
    Client,
}

/// Writes a body.
pub(super) fn write(entries: &[(ClientId, News)]) -> Vec<u8> {
    let mut body = Vec::with_capacity(entries.len() * ENTRY_BYTES);
    for (client, news) in entries {
        body.push(match news {
            News::Messages => 0,
            News::Client => 1,
        });
        body.extend_from_slice(client.as_bytes());
    }
    body
}

/// Reads a body; what a later version may add counts as news of the client.
pub(super) fn read(body: &[u8]) -> Option<Vec<(ClientId, News)>> {
    let entries = body.chunks(ENTRY_BYTES);
    entries
        .map(|entry| {
            let (kind, id) = entry.split_first()?;
            let client = ClientId::try_from(id).ok()?;
            let news = match kind {
                0 => News::Messages,
                _ => News::Client,
            };
            Some((client, news))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read_as_they_were_written() {
        let entries = [
            (ClientId::new([1; 8]), News::Messages),
            (ClientId::new([2; 8]), News::Client),
        ];
        let body = write(&entries);
        assert_eq!(body.len(), 18);
        assert_eq!(read(&body).unwrap(), entries);
        assert_eq!(read(b"").unwrap(), []);
        assert_eq!(read(&body[..17]), None);
        assert_eq!(read(&body[..1]), None);
    }
}
