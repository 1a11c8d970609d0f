//! Clients for whom nothing is pending, so that most polls need no read.
//!
//! Nobody else writes to the database. So what was true once holds until a
//! commit of this process brings such a client a message.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fleethold_store::ClientId;

const SHARDS: usize = 64;

/// How many clients a shard remembers; all together a million in some 20 MiB.
const MOST_CLIENTS: usize = 16_384;

#[derive(Debug)]
pub(crate) struct Quiet {
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    /// How often a message has come for one of its clients.
    arrivals: u64,
    clients: HashSet<ClientId>,
}

/// What has come for a client's shard before a read of the database began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen(u64);

impl Quiet {
    pub(crate) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Returns `None` if nothing is pending for a client, or else what the read
    /// that is needed has to hand to [`remember`](Self::remember).
    pub(crate) fn look(&self, client: ClientId) -> Option<Seen> {
        let shard = self.shard(client);
        let is_quiet = shard.clients.contains(&client);
        (!is_quiet).then_some(Seen(shard.arrivals))
    }

    /// Remembers that a read which began after [`look`](Self::look) found
    /// nothing pending, unless a message may have come since.
    pub(crate) fn remember(&self, client: ClientId, seen: Seen) {
        let mut shard = self.shard(client);
        if shard.arrivals != seen.0 {
            return;
        }
        if shard.clients.len() >= MOST_CLIENTS {
            // Each of them costs one more read.
            shard.clients.clear();
        }
        shard.clients.insert(client);
    }

    /// Forgets clients whose messages have been committed, or may have been;
    /// before anybody is told so.
    pub(crate) fn disturb(&self, clients: &[ClientId]) {
        for client in clients {
            let mut shard = self.shard(*client);
            shard.arrivals += 1;
            shard.clients.remove(client);
        }
    }

    fn shard(&self, client: ClientId) -> MutexGuard<'_, Shard> {
        let last = client.as_bytes().last().copied().unwrap_or_default();
        let shard = &self.shards[usize::from(last) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u64) -> ClientId {
        ClientId::new(number.to_be_bytes())
    }

    #[test]
    fn client_is_quiet_until_a_message_comes() {
        let quiet = Quiet::new();
        let seen = quiet.look(client(1)).unwrap();
        quiet.remember(client(1), seen);
        assert!(quiet.look(client(1)).is_none());
        assert!(quiet.look(client(2)).is_some());
        quiet.disturb(&[client(1)]);
        assert!(quiet.look(client(1)).is_some());
    }

    #[test]
    fn read_that_a_commit_overtook_is_not_remembered() {
        let quiet = Quiet::new();
        let seen = quiet.look(client(1)).unwrap();
        quiet.disturb(&[client(1)]);
        quiet.remember(client(1), seen);
        assert!(quiet.look(client(1)).is_some());
    }

    #[test]
    fn number_of_clients_is_bounded() {
        let quiet = Quiet::new();
        // All in one shard.
        for number in 0..=MOST_CLIENTS as u64 {
            let client = client(number * 256);
            let seen = quiet.look(client).unwrap();
            quiet.remember(client, seen);
        }
        assert!(quiet.look(client(0)).is_some());
        assert!(quiet.look(client(MOST_CLIENTS as u64 * 256)).is_none());
    }
}
