//! The open streams of this server, and how to wake them.
//!
//! A wake-up carries no data: the stream looks at the store, the client cache
//! and the broadcasts again. So wake-ups may collapse, and one too many is harmless.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use fleethold_store::ClientId;
use tokio::sync::Notify;

/// The newest open stream of each client.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    newest: Mutex<HashMap<ClientId, Arc<Notify>>>,
}

/// One open stream; dropping it ends its registration.
#[derive(Debug)]
pub(crate) struct StreamHandle {
    client: ClientId,
    wake_up: Arc<Notify>,
    streams: Arc<Streams>,
}

impl Streams {
    /// Registers a stream; it takes the wake-ups over from an older stream of
    /// the same client, which stays open.
    pub(crate) fn register(self: &Arc<Self>, client: ClientId) -> StreamHandle {
        let wake_up = Arc::new(Notify::new());
        self.with(|newest| newest.insert(client, Arc::clone(&wake_up)));
        StreamHandle {
            client,
            wake_up,
            streams: Arc::clone(self),
        }
    }

    /// Wakes the newest stream of `client`; returns whether there is one.
    pub(crate) fn wake(&self, client: ClientId) -> bool {
        self.with(|newest| match newest.get(&client) {
            Some(wake_up) => {
                wake_up.notify_one();
                true
            }
            None => false,
        })
    }

    /// Returns the clients with an open stream.
    pub(crate) fn clients(&self) -> Vec<ClientId> {
        self.with(|newest| newest.keys().copied().collect())
    }

    fn with<T>(&self, use_newest: impl FnOnce(&mut HashMap<ClientId, Arc<Notify>>) -> T) -> T {
        use_newest(&mut self.newest.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl StreamHandle {
    /// Returns when the stream was woken since the last return.
    pub(crate) async fn woken(&self) {
        self.wake_up.notified().await;
    }
}

impl Drop for StreamHandle {
    fn drop(&mut self) {
        self.streams.with(|newest| {
            // A newer stream of the client may have taken the place.
            if newest
                .get(&self.client)
                .is_some_and(|wake_up| Arc::ptr_eq(wake_up, &self.wake_up))
            {
                newest.remove(&self.client);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn newest_stream_gets_the_wake_ups_until_it_ends() {
        let streams = Arc::new(Streams::default());
        let client = ClientId::new([1; 8]);
        let older = streams.register(client);
        let newer = streams.register(client);

        assert!(streams.wake(client));
        assert!(streams.wake(client));
        assert!(newer.woken().now_or_never().is_some());
        assert!(newer.woken().now_or_never().is_none(), "wake-ups collapse");
        assert!(older.woken().now_or_never().is_none());

        drop(older);
        assert_eq!(streams.clients(), [client]);
        drop(newer);
        assert!(streams.clients().is_empty());
        assert!(!streams.wake(client));
    }
}
