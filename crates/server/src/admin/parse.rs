//! Ids in requests. Empty bytes are the nil id, which names nothing; any other
//! wrong length is an error (protocol specification section 4.1).

use bytes::Bytes;
use fleethold_store::{BroadcastId, ClientId, IdError, MessageId};
use tonic::Status;

pub(super) fn message_id(bytes: &[u8]) -> Result<Option<MessageId>, Status> {
    MessageId::from_optional_bytes(bytes).map_err(invalid)
}

pub(super) fn client_id(bytes: &[u8]) -> Result<Option<ClientId>, Status> {
    ClientId::from_optional_bytes(bytes).map_err(invalid)
}

/// Leaves nil ids out.
pub(super) fn client_ids(ids: &[Bytes]) -> Result<Vec<ClientId>, Status> {
    let ids = ids.iter().map(|id| client_id(id));
    ids.filter_map(Result::transpose).collect()
}

pub(super) fn broadcast_id(bytes: &[u8]) -> Result<Option<BroadcastId>, Status> {
    BroadcastId::from_optional_bytes(bytes).map_err(invalid)
}

/// Leaves nil ids out.
pub(super) fn broadcast_ids(ids: &[Bytes]) -> Result<Vec<BroadcastId>, Status> {
    let ids = ids.iter().map(|id| broadcast_id(id));
    ids.filter_map(Result::transpose).collect()
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn invalid(error: IdError) -> Status {
    Status::invalid_argument(error.to_string())
}
