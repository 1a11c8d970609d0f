//! Broadcasts: one message to many clients, under a limit, through allocations.

use std::time::SystemTime;

use async_trait::async_trait;
use fleethold_proto::fleetspeak::Message;
use fleethold_proto::fleetspeak::server::Broadcast;

use crate::error::Result;
use crate::ids::{AllocationId, BroadcastId, ClientId};

/// The limit of a broadcast that is not sent to anybody any more.
pub const BROADCAST_DISABLED: u64 = 0;

/// The limit of a broadcast without limit: 2⁶³ − 1.
pub const BROADCAST_UNLIMITED: u64 = i64::MAX.unsigned_abs();

/// A broadcast and how far it has come.
#[derive(Clone, Debug, PartialEq)]
pub struct BroadcastInfo {
    /// The broadcast as it was created.
    pub broadcast: Broadcast,
    /// Messages sent under finished allocations.
    pub sent: u64,
    /// At most this many messages; see [`BROADCAST_UNLIMITED`].
    pub limit: u64,
}

/// What has become of the messages of a broadcast.
///
/// Messages that are no longer stored count as sent only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BroadcastProgress {
    /// Clients that the broadcast was saved for.
    pub sent: u64,
    /// Messages that their client acknowledged.
    pub acknowledged: u64,
    /// Messages that failed, or were deleted by an operator.
    pub failed: u64,
    /// Messages that have no result yet.
    pub pending: u64,
}

/// The right of one server to send some messages of a broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationInfo {
    /// Names the allocation within its broadcast.
    pub id: AllocationId,
    /// At most this many messages; see [`BROADCAST_UNLIMITED`].
    pub limit: u64,
    /// Nothing is sent under the allocation after this time.
    pub expiry: SystemTime,
}

/// Stores broadcasts and keeps their limits.
///
/// The number of messages saved for a limited broadcast never exceeds its
/// limit, however many servers send. Every method is atomic, and durable when
/// it returns success.
#[async_trait]
pub trait BroadcastStore: Send + Sync {
    /// Creates a broadcast of which nothing is sent. Specification section 3.4.1.
    ///
    /// With a group name, the active broadcasts with equal group, source
    /// service, destination service (absent means the source's) and
    /// [labels](crate::labels_equal), each stored once, are disabled in the same transaction. A
    /// limit above [`BROADCAST_UNLIMITED`] means that. Client ids in source and
    /// destination are dropped.
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` for a missing or wrong id, a missing
    /// source or a text over 128 characters; `TooLarge` for data over
    /// [`MAX_PAYLOAD_BYTES`](crate::MAX_PAYLOAD_BYTES). Nothing is disabled then.
    async fn create_broadcast(&self, broadcast: &Broadcast, limit: u64) -> Result<()>;

    /// Sets the limit; [`BROADCAST_DISABLED`] does what
    /// [`disable_broadcasts`](Self::disable_broadcasts) does. Existing
    /// allocations keep theirs. Specification section 3.4.2.
    ///
    /// # Errors
    /// `NotFound` for an unknown broadcast.
    async fn set_broadcast_limit(&self, id: BroadcastId, limit: u64) -> Result<()>;

    /// Sets the limits to 0 and removes the allocations; what they have sent
    /// stays counted. Unknown and repeated ids are no error. Specification
    /// section 3.4.3.
    async fn disable_broadcasts(&self, ids: &[BroadcastId]) -> Result<()>;

    /// Stores a message of a broadcast to a client, notes that the client got
    /// it and counts it in `allocation`. Specification section 3.4.4.
    ///
    /// The message is due at [`client_retry_time`](crate::Clock::client_retry_time):
    /// the caller sends it itself right away. A message id that is stored
    /// already keeps its message; the rest proceeds.
    ///
    /// # Errors
    /// `InvalidArgument` as in
    /// [`store_messages`](crate::MessageStore::store_messages);
    /// `BroadcastDisabled` if the broadcast is unknown or has expired, if it
    /// has limit 0 (matters without `allocation` only), or if the allocation
    /// is gone; `AllocationFull`; `AllocationExpired`;
    /// `AlreadyExists` if the client has the broadcast; `NotFound` for an
    /// unknown client. Checked in this order; nothing is stored then.
    async fn save_broadcast_message(
        &self,
        message: &Message,
        broadcast: BroadcastId,
        client: ClientId,
        allocation: Option<AllocationId>,
    ) -> Result<()>;

    /// Returns the broadcasts with room under their limit that have not
    /// expired, by id. Specification section 3.4.5.
    async fn list_active_broadcasts(&self) -> Result<Vec<BroadcastInfo>>;

    /// Returns the ids of all broadcasts ever saved for a client, ascending.
    async fn list_sent_broadcasts(&self, client: ClientId) -> Result<Vec<BroadcastId>>;

    /// Returns how many messages of a broadcast, saved under whatever
    /// allocation, have which result.
    ///
    /// The work grows with what was sent: this is for operators, not for every contact.
    ///
    /// # Errors
    /// `NotFound` for an unknown broadcast.
    async fn broadcast_progress(&self, id: BroadcastId) -> Result<BroadcastProgress>;

    /// Reserves `fraction` of what is left under the limit, at least one
    /// message; `None` if nothing is left, or the broadcast is disabled or
    /// expired. Specification sections 3.4.7, 5.1 and 5.3.
    ///
    /// Allocations of the broadcast that expired more than
    /// [`ALLOCATION_GRACE`] ago are reclaimed first.
    ///
    /// # Errors
    /// `NotFound` for an unknown broadcast; `InvalidArgument` for a fraction
    /// that is negative or no number, or an expiry after year 9999.
    async fn create_allocation(
        &self,
        broadcast: BroadcastId,
        fraction: f32,
        expiry: SystemTime,
    ) -> Result<Option<AllocationInfo>>;

    /// Ends an allocation: counts `final_sent` messages and returns the rest of
    /// its limit. Specification section 3.4.8.
    ///
    /// Without allocation only counts. An allocation that is gone is no error,
    /// and nothing is counted. Counts saturate at [`BROADCAST_UNLIMITED`].
    ///
    /// # Errors
    /// `NotFound` for an unknown broadcast.
    async fn cleanup_allocation(
        &self,
        broadcast: BroadcastId,
        allocation: Option<AllocationId>,
        final_sent: u64,
    ) -> Result<()>;
}

/// How long after its expiry an allocation may still be cleaned up by its owner.
pub const ALLOCATION_GRACE: std::time::Duration = std::time::Duration::from_secs(5 * 60);

/// Returns the size of a new allocation and the broadcast's new `allocated`;
/// a size of 0 means that nothing is left. Specification section 5.1.
///
/// The share is computed in 32-bit floating point, as upstream does. Upstream
/// subtracts only the larger of `allocated` and `sent` from the limit and so
/// exceeds it; here both count.
pub fn compute_broadcast_allocation(
    limit: u64,
    allocated: u64,
    sent: u64,
    fraction: f32,
) -> (u64, u64) {
    if limit == BROADCAST_UNLIMITED {
        return (BROADCAST_UNLIMITED, allocated);
    }
    let left = limit.saturating_sub(allocated.saturating_add(sent));
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "upstream's rounding; the cast to u64 saturates"
    )]
    let share = (left as f32 * fraction) as u64;
    let size = share.max(1).min(left);
    (size, allocated + size)
}

/// Returns the broadcast's new `allocated` after an allocation has ended.
/// Specification section 5.2; a damaged count becomes 0 instead of an error.
pub fn compute_broadcast_allocation_cleanup(allocation_limit: u64, allocated: u64) -> u64 {
    if allocation_limit == BROADCAST_UNLIMITED {
        return allocated;
    }
    allocated.saturating_sub(allocation_limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Vectors: specification section 11, column "With O-10".
    #[test]
    fn allocation_is_a_share_of_what_is_neither_sent_nor_allocated() {
        for ((limit, allocated, sent, fraction), expected) in [
            ((8, 0, 0, 0.5), (4, 4)),
            ((8, 4, 0, 0.5), (2, 6)),
            ((8, 6, 0, 0.1), (1, 7)),
            ((8, 7, 0, 2.0), (1, 8)),
            ((8, 8, 0, 2.0), (0, 8)),
            ((100, 0, 0, 0.29), (29, 29)),
            ((1 << 40, 0, 0, 0.2), (219_902_328_832, 219_902_328_832)),
            ((16_777_217, 0, 0, 1.0), (16_777_216, 16_777_216)),
            ((10, 3, 7, 0.5), (0, 3)),
            ((10, 11, 0, 0.5), (0, 11)),
            ((10, 10, 0, 0.5), (0, 10)),
            ((BROADCAST_UNLIMITED, 5, 9, 0.7), (BROADCAST_UNLIMITED, 5)),
            ((8, 0, 0, f32::INFINITY), (8, 8)),
        ] {
            assert_eq!(
                compute_broadcast_allocation(limit, allocated, sent, fraction),
                expected,
                "{limit} {allocated} {sent} {fraction}"
            );
        }
    }

    #[test]
    fn ended_allocation_returns_its_limit() {
        for ((limit, allocated), expected) in
            [((BROADCAST_UNLIMITED, 7), 7), ((3, 7), 4), ((5, 3), 0)]
        {
            assert_eq!(
                compute_broadcast_allocation_cleanup(limit, allocated),
                expected
            );
        }
    }
}
