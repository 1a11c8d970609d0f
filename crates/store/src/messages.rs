//! Messages: storing, results, claims, and what is pending.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use fleethold_proto::fleetspeak::{Message, MessageResult};

use crate::clients::ContactId;
use crate::error::Result;
use crate::ids::{ClientId, MessageId};
use crate::processor::MessageProcessor;

/// How many messages each destination service of a client accepts.
///
/// A service that is missing accepts none.
pub type ServiceLimits = BTreeMap<String, u64>;

/// The reason in the result of a message removed by
/// [`MessageStore::delete_pending_messages`].
pub const REMOVED_BY_ADMIN: &str = "Removed by admin action.";

/// Stores messages until they have a result.
///
/// A stored message is *pending* (no result, payload kept, due at some time),
/// *done* or *failed* (result, payload gone). Messages without a destination
/// client are server messages: only
/// [`server_messages_for_processing`](Self::server_messages_for_processing)
/// hands them out, and only
/// [`client_messages_for_processing`](Self::client_messages_for_processing)
/// hands out the others (specification section 3.1).
///
/// Every method is atomic, and durable when it returns success. A dropped
/// future leaves its operation done or not done, never half done.
#[async_trait]
pub trait MessageStore: Send + Sync {
    /// Records `messages`, or new results of known ones, and links all of them
    /// to `contact`. Specification section 3.2.1.
    ///
    /// Messages are handled in order. A known message keeps its first fields; a
    /// success result replaces any earlier result, a failure only a missing
    /// one. A new message without result is due at once for a client, and at
    /// [`server_retry_time(0)`](crate::Clock::server_retry_time) on the server.
    /// A well-formed contact that does not exist is skipped. No messages: no
    /// database access.
    ///
    /// # Errors
    /// `InvalidArgument` for a message without 32-byte id, creation time,
    /// destination, with a client id of wrong length or a result without
    /// processed time, or for a malformed contact; `TooLarge` for a payload that
    /// must wait and is over [`MAX_PAYLOAD_BYTES`](crate::MAX_PAYLOAD_BYTES),
    /// also if the message is known. Nothing of the call is stored then.
    async fn store_messages(&self, messages: &[Message], contact: Option<&ContactId>)
    -> Result<()>;

    /// Sets the result of a message whatever result it had, and drops its
    /// payload. Specification section 3.2.2.
    ///
    /// `destination` is a hint where to look and never changes the effect. An
    /// unknown message is no error: it may have been pruned.
    ///
    /// # Errors
    /// `InvalidArgument` without processed time.
    async fn set_message_result(
        &self,
        destination: Option<ClientId>,
        id: MessageId,
        result: &MessageResult,
    ) -> Result<()>;

    /// Does [`set_message_result`](Self::set_message_result) for many messages
    /// in one transaction. Not part of upstream's interface.
    ///
    /// # Errors
    /// `InvalidArgument` if any result has no processed time; no result is set then.
    async fn set_message_results(&self, results: &[(MessageId, MessageResult)]) -> Result<()>;

    /// Returns the result of a message; `None` while it is pending or if it is
    /// unknown. Specification section 3.2.3.
    async fn get_message_result(&self, id: MessageId) -> Result<Option<MessageResult>>;

    /// Returns messages in the order of `ids`, one for each occurrence; unknown
    /// ids are left out. Specification section 3.2.4.
    ///
    /// Source and destination are always set; `data` only if `want_data` and
    /// the message is pending; priority, background and blocklist flag never.
    ///
    /// # Errors
    /// `NotFound` if `ids` is not empty and none of them exists.
    async fn get_messages(&self, ids: &[MessageId], want_data: bool) -> Result<Vec<Message>>;

    /// Returns the pending messages of `clients`, due or not, by ascending
    /// message id: `limit` of them from `offset` on; a `limit` of 0 means all.
    /// Specification section 3.2.5.
    ///
    /// # Errors
    /// `InvalidArgument` for an `offset` without `limit`.
    async fn get_pending_messages(
        &self,
        clients: &[ClientId],
        offset: u64,
        limit: u64,
        want_data: bool,
    ) -> Result<Vec<Message>>;

    /// Returns how many messages
    /// [`get_pending_messages`](Self::get_pending_messages) would return
    /// without limit.
    async fn get_pending_message_count(&self, clients: &[ClientId]) -> Result<u64>;

    /// Fails all pending messages of `clients` now, with the reason
    /// [`REMOVED_BY_ADMIN`]. Specification section 3.2.7.
    ///
    /// Any number of messages, in one transaction.
    async fn delete_pending_messages(&self, clients: &[ClientId]) -> Result<()>;

    /// Claims at most `limit` due messages of `client`, oldest due first, ties
    /// by message id. Specification section 3.2.8.
    ///
    /// A claimed message is due again at
    /// [`client_retry_time`](crate::Clock::client_retry_time); no other caller
    /// gets it before. A message is due when its time is now or past. With
    /// `service_limits`, never more messages per destination service than it
    /// says; messages skipped for their service do not count towards `limit`.
    /// The cost does not depend on how many messages wait. Fewer than `limit`
    /// are claimed if their payloads reach
    /// [`MAX_CLAIM_BYTES`](crate::limits::MAX_CLAIM_BYTES) before;
    /// [`fills_claim`](crate::limits::fills_claim) tells.
    async fn client_messages_for_processing(
        &self,
        client: ClientId,
        limit: u64,
        service_limits: Option<&ServiceLimits>,
    ) -> Result<Vec<Message>>;

    /// Claims at most `limit` due server messages, oldest due first, ties by
    /// message id. Specification section 4; a method of ours behind
    /// [`register_message_processor`](Self::register_message_processor).
    ///
    /// A claimed message is due again at
    /// [`server_retry_time(n)`](crate::Clock::server_retry_time), n being how
    /// often it has been claimed, this time included. Payloads limit a claim as
    /// in [`client_messages_for_processing`](Self::client_messages_for_processing).
    async fn server_messages_for_processing(&self, limit: u64) -> Result<Vec<Message>>;

    /// Gives messages of `client` back that were claimed, or handed out with a
    /// broadcast: those of `ids` that are pending are due now, instead of when
    /// their claim ends. Not part of upstream's interface.
    ///
    /// For a holder that cannot tell whether they have arrived, before its claim
    /// ends: later, somebody else may hold them. A message that was claimed more
    /// than [`MOST_EARLY_CLAIMS`](crate::limits::MOST_EARLY_CLAIMS) times is
    /// skipped: if it breaks its holders, it does so every 15 minutes and not at
    /// once again. So are ids that are unknown, have a result, or belong to others.
    async fn release_messages(&self, client: ClientId, ids: &[MessageId]) -> Result<()>;

    /// Gives every due server message to `processor`, until
    /// [`stop_message_processor`](Self::stop_message_processor); replaces a
    /// registered one after that has finished. Specification section 4.
    async fn register_message_processor(&self, processor: Arc<dyn MessageProcessor>);

    /// Returns after the running call of the processor has finished; no further
    /// one starts. No effect if none is registered.
    async fn stop_message_processor(&self);
}
