//! Broadcasts: create, list, disable.

use bytes::Bytes;
use fleethold_proto::fleethold::admin::v1::broadcasts_server::Broadcasts;
use fleethold_proto::fleethold::admin::v1::{BroadcastProgress, GetBroadcastProgressRequest};
use fleethold_proto::fleetspeak::server::{Broadcast, CreateBroadcastRequest};
use fleethold_store::BroadcastId;
use tonic::{Request, Response, Status};

use super::parse;
use super::status::status;
use super::{Admin, Methods};

impl Admin {
    /// Creates a broadcast; those of its group that it replaces end.
    pub(super) async fn create_broadcast(
        &self,
        request: CreateBroadcastRequest,
    ) -> Result<(), Status> {
        let mut broadcast = request
            .broadcast
            .ok_or_else(|| Status::invalid_argument("`broadcast` is missing"))?;
        let id = parse::broadcast_id(&broadcast.broadcast_id)?
            .unwrap_or_else(|| BroadcastId::random(&self.engine.random));
        if broadcast.source.is_none() {
            return Err(Status::invalid_argument("`broadcast.source` is missing"));
        }
        broadcast.broadcast_id = id.to_bytes();
        self.engine
            .store
            .create_broadcast(&broadcast, request.limit)
            .await
            .map_err(status)?;
        tracing::info!(broadcast = %id, limit = request.limit, "created a broadcast");
        self.refresh_broadcasts().await;
        Ok(())
    }

    /// Returns the active broadcasts, of one source service if it is not empty.
    pub(super) async fn list_active_broadcasts(
        &self,
        service: &str,
    ) -> Result<Vec<Broadcast>, Status> {
        let active = self
            .engine
            .store
            .list_active_broadcasts()
            .await
            .map_err(status)?;
        let broadcasts = active.into_iter().map(|info| info.broadcast);
        Ok(broadcasts
            .filter(|broadcast| {
                let source = broadcast.source.as_ref();
                service.is_empty() || source.is_some_and(|source| source.service_name == service)
            })
            .collect())
    }

    /// Ends broadcasts; unknown ones are no error.
    pub(super) async fn disable_broadcasts(&self, ids: &[Bytes]) -> Result<(), Status> {
        let ids = parse::broadcast_ids(ids)?;
        if ids.is_empty() {
            return Ok(());
        }
        self.engine
            .store
            .disable_broadcasts(&ids)
            .await
            .map_err(status)?;
        tracing::info!(broadcasts = ?ids, "disabled broadcasts");
        self.refresh_broadcasts().await;
        Ok(())
    }

    /// Counts the messages of a broadcast by their result.
    async fn broadcast_progress(&self, id: &[u8]) -> Result<BroadcastProgress, Status> {
        let id = parse::broadcast_id(id)?
            .ok_or_else(|| Status::invalid_argument("`broadcast_id` is missing"))?;
        let progress = self.engine.store.broadcast_progress(id).await;
        let progress = progress.map_err(status)?;
        Ok(BroadcastProgress {
            sent: progress.sent,
            acknowledged: progress.acknowledged,
            failed: progress.failed,
            pending: progress.pending,
        })
    }

    /// Makes a change effective on this server at once. If that fails it
    /// becomes effective a little later; the change itself is done.
    async fn refresh_broadcasts(&self) {
        if let Err(error) = self.engine.broadcasts.refresh().await {
            tracing::warn!(error = %crate::chain(&error), "cannot refresh broadcasts");
        }
    }
}

#[tonic::async_trait]
impl Broadcasts for Methods {
    async fn get_broadcast_progress(
        &self,
        request: Request<GetBroadcastProgressRequest>,
    ) -> Result<Response<BroadcastProgress>, Status> {
        let progress = self
            .admin
            .broadcast_progress(&request.get_ref().broadcast_id);
        progress.await.map(Response::new)
    }
}
