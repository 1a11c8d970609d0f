//! What is checked of an agent and of each of its messages.

use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::{Message, MessageResult};
use fleethold_store::{ClientId, MAX_PAYLOAD_BYTES, MessageId};

use super::{ContactError, Peer};
use crate::cache::CachedClient;
use crate::services::system::{DIE, NAME as SYSTEM};

pub(super) fn check_key(known: &CachedClient, peer: &Peer) -> Result<(), ContactError> {
    // A client added by an operator has no key yet.
    if known.data.key.is_empty() || known.data.key == peer.key {
        return Ok(());
    }
    tracing::warn!(client = %peer.client, addr = %peer.addr, "refused an agent whose key is not the client's");
    Err(ContactError::NotAuthorized)
}

/// Checks a message of an agent and sets what only the server may set.
pub(crate) fn stamp(client: ClientId, message: &mut Message) -> Result<(), &'static str> {
    let destination = message.destination.as_ref().ok_or("no destination")?;
    if !destination.client_id.is_empty() {
        return Err("addressed to a client");
    }
    if destination.service_name.is_empty() {
        return Err("no destination service");
    }
    let source = message.source.as_mut().ok_or("no source")?;
    if source.service_name.is_empty() {
        return Err("no source service");
    }
    if message.source_message_id.is_empty() {
        return Err("no source message id");
    }
    source.client_id = client.to_bytes();
    let id = MessageId::for_source(
        Some(client),
        &source.service_name,
        &message.source_message_id,
    );
    message.message_id = id.to_bytes();
    message.validation_info = None;
    message.result = None;
    message.is_blocklisted_source = false;
    Ok(())
}

/// Fails a message that would have to wait and is too large to be stored: an
/// error of the contact would make the agent send it for ever.
pub(super) fn give_up_oversized(message: &mut Message, now: Timestamp) {
    let bytes = message.data.as_ref().map_or(0, |data| data.value.len());
    if message.result.is_some() || bytes <= MAX_PAYLOAD_BYTES {
        return;
    }
    message.data = None;
    message.result = Some(MessageResult {
        processed_time: Some(now),
        failed: true,
        failed_reason: format!(
            "The service did not take the message, and {bytes} bytes are too many to wait."
        ),
    });
}

pub(super) fn is_die(message: &Message) -> bool {
    message.message_type == DIE
        && message
            .destination
            .as_ref()
            .is_some_and(|destination| destination.service_name == SYSTEM)
}
