//! The right of this server to send some messages of one broadcast.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fleethold_proto::fleetspeak::server::Broadcast;
use fleethold_proto::fleetspeak::{Address, Message};
use fleethold_store::clock::timestamp;
use fleethold_store::{AllocationId, AllocationInfo, BroadcastId, ClientId, Clock, MessageId};
use tokio::sync::RwLock;

/// The right to send some messages of one broadcast.
pub(super) struct Share {
    pub(super) id: BroadcastId,
    pub(super) broadcast: Broadcast,
    pub(super) right: Right,
    sent: Mutex<u64>,
    /// How much was sent when somebody last looked.
    seen: Mutex<u64>,
    /// Read by senders for as long as `sent` may still change back.
    pub(super) in_use: RwLock<()>,
}

/// How much may be sent.
#[derive(Debug)]
pub(super) enum Right {
    Unlimited,
    Limited(AllocationInfo),
    /// Nothing, until somebody needs it: what nobody uses is left to other servers.
    OnDemand,
}

impl Right {
    pub(super) fn allocation(&self) -> Option<&AllocationInfo> {
        match self {
            Self::Limited(allocation) => Some(allocation),
            Self::Unlimited | Self::OnDemand => None,
        }
    }
}

/// An ended share, to be counted in the store.
pub(super) struct Report {
    pub(super) broadcast: BroadcastId,
    pub(super) allocation: Option<AllocationId>,
    pub(super) sent: u64,
}

impl Share {
    pub(super) fn new(id: BroadcastId, broadcast: Broadcast, right: Right) -> Self {
        Self {
            id,
            broadcast,
            right,
            sent: Mutex::new(0),
            seen: Mutex::new(0),
            in_use: RwLock::new(()),
        }
    }

    pub(super) fn sent(&self) -> std::sync::MutexGuard<'_, u64> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take_place(&self, clock: &dyn Clock) -> bool {
        let mut sent = self.sent();
        let is_free = !self.has_expired(clock)
            && match &self.right {
                Right::Unlimited => true,
                Right::Limited(allocation) => {
                    *sent < allocation.limit && clock.now() <= allocation.expiry
                }
                Right::OnDemand => false,
            };
        *sent += u64::from(is_free);
        is_free
    }

    pub(super) fn return_place(&self) {
        let mut sent = self.sent();
        *sent = sent.saturating_sub(1);
    }

    pub(super) fn has_expired(&self, clock: &dyn Clock) -> bool {
        let now = timestamp(clock.now());
        self.broadcast.expiration_time.is_some_and(|expiration| {
            (expiration.seconds, expiration.nanos) <= (now.seconds, now.nanos)
        })
    }

    pub(super) fn is_good_for(&self, duration: Duration, clock: &dyn Clock) -> bool {
        self.right.allocation().is_some_and(|allocation| {
            *self.sent() < allocation.limit && clock.now() + duration < allocation.expiry
        })
    }

    /// Returns whether nothing was sent since the last call.
    pub(super) fn is_idle(&self) -> bool {
        let sent = *self.sent();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *seen, sent) == sent
    }

    /// Waits for those who send under the share, then says what was sent.
    pub(super) async fn end(&self) -> Report {
        let _nobody_sends = self.in_use.write().await;
        let mut sent = self.sent();
        let report = Report {
            broadcast: self.id,
            allocation: self.right.allocation().map(|allocation| allocation.id),
            sent: *sent,
        };
        // Whoever still holds the share finds no place in it.
        *sent = u64::MAX >> 1;
        report
    }

    pub(super) fn message(&self, client: ClientId, id: MessageId, clock: &dyn Clock) -> Message {
        let source = self.broadcast.source.as_ref();
        let source = source.map_or("", |source| source.service_name.as_str());
        let destination = self.broadcast.destination.as_ref();
        let destination = destination
            .map(|destination| destination.service_name.as_str())
            .filter(|name| !name.is_empty())
            .unwrap_or(source);
        Message {
            message_id: id.to_bytes(),
            source: Some(Address {
                service_name: source.to_owned(),
                ..Address::default()
            }),
            destination: Some(Address {
                client_id: client.to_bytes(),
                service_name: destination.to_owned(),
            }),
            message_type: self.broadcast.message_type.clone(),
            creation_time: Some(timestamp(clock.now())),
            data: self.broadcast.data.clone(),
            ..Message::default()
        }
    }
}
