//! Notifications between servers that share a store (protocol specification
//! section 3.9): whoever stores a message for a client wakes the stream that
//! the client has at another server.
//!
//! Upstream's form, one request for each client without proof of who asks, is
//! accepted and sent; between servers like this one, one signed request carries
//! many clients. Nothing depends on a notification: it has no data, and a lost
//! one only delays a message until the stream looks at the store by itself.

mod address;
mod call;
mod listener;
mod peer;
mod secret;
mod sender;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

pub(crate) use self::call::News;
use self::listener::Listener;
use self::peer::{Caller, Peer};
pub use self::secret::{NotificationSecret, SecretError};
pub(crate) use self::sender::{Notifier, PRESENCE};
use crate::config::NotificationConfig;
use crate::engine::Engine;
use crate::limits::{Notice, Rate};
use crate::side_port::SidePort;

/// The listener for notifications, and what this server is called by others.
pub(crate) struct Notifications {
    /// Where streams of this server are said to end.
    pub(crate) streaming_to: String,
    pub(crate) listener: Option<(SocketAddr, SidePort)>,
}

impl Notifications {
    /// Begins to listen, if there is a listener, and to send, if there may be other servers.
    pub(crate) async fn start(
        config: &NotificationConfig,
        listener: Option<(SocketAddr, TcpListener)>,
        engine: &Arc<Engine>,
        has_agents: bool,
    ) -> Self {
        let has_listener = listener.is_some();
        let is_shared = engine.store.is_shared();
        let bound = listener.as_ref().map(|(address, _)| *address);
        let streaming_to = streaming_to(config, bound, is_shared);
        if has_agents {
            warn(config, &streaming_to, has_listener, is_shared).await;
        }
        if config.send || has_listener || config.secret.is_some() || is_shared {
            let caller = Caller::new(Arc::clone(&engine.clock), config.secret.clone());
            let notifier = Notifier::start(
                Arc::clone(&engine.store),
                Arc::clone(&engine.clock),
                Arc::clone(&engine.metrics),
                move |address| Peer::new(address, caller.clone()),
                has_listener.then(|| streaming_to.clone()),
            );
            engine.set_notifier(notifier);
        }
        let listener = listener.map(|(address, listener)| {
            let port = Listener {
                streams: Arc::clone(&engine.streams),
                cache: Arc::clone(&engine.cache),
                clock: Arc::clone(&engine.clock),
                metrics: Arc::clone(&engine.metrics),
                secret: config.secret.clone(),
                accept_unsigned: config.accept_unsigned,
                unsigned: Rate::new(listener::MOST_UNSIGNED_PER_SECOND),
                refused: Notice::default(),
            };
            (address, port.start(listener))
        });
        Self {
            streaming_to,
            listener,
        }
    }
}

fn streaming_to(config: &NotificationConfig, bound: Option<SocketAddr>, is_shared: bool) -> String {
    match bound {
        Some(bound) => address::advertised(
            config.public_address.as_deref(),
            bound,
            &address::host_name(),
        ),
        None if is_shared => address::unreachable(&address::host_name()),
        None => address::LOCAL.to_owned(),
    }
}

/// Warns of what delays messages from other servers.
async fn warn(
    config: &NotificationConfig,
    streaming_to: &str,
    has_listener: bool,
    is_shared: bool,
) {
    if has_listener {
        if let Some(reason) = address::doubt(streaming_to).await {
            tracing::warn!(
                address = streaming_to,
                reason,
                "other servers may not reach this one to tell it of messages; give it an address that they can use"
            );
        }
        if config.secret.is_none() {
            tracing::info!(
                "notifications from everybody are accepted; a secret lets only servers in that know it"
            );
        }
    } else if is_shared {
        tracing::warn!(
            "this server takes no notifications: messages that other servers get for its agents may wait until a stream looks at the store"
        );
    }
}
