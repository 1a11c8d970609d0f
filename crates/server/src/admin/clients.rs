//! Clients: records, contacts, blacklist and resource usage.

use std::sync::Arc;

use bytes::Bytes;
use fleethold_proto::fleetspeak::server::{
    Client, ClientContact, ClientResourceUsageRecord, FetchClientResourceUsageRecordsRequest,
    StreamClientContactsResponse, StreamClientIdsRequest, StreamClientIdsResponse,
};
use fleethold_store::clock::timestamp_epoch_nanos;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tonic::Status;

use super::Admin;
use super::parse;
use super::status::status;
use super::stream::owned;
use crate::notifications::News;

impl Admin {
    /// Returns records of clients: of all if there are no ids at all.
    pub(super) async fn list_clients(&self, ids: &[Bytes]) -> Result<Vec<Client>, Status> {
        let known = parse::client_ids(ids)?;
        // Only nil ids: nobody was asked for, not everybody.
        if known.is_empty() && !ids.is_empty() {
            return Ok(Vec::new());
        }
        self.engine.store.list_clients(&known).await.map_err(status)
    }

    /// Streams the ids of clients.
    pub(super) fn stream_client_ids(
        &self,
        request: &StreamClientIdsRequest,
    ) -> Result<BoxStream<'static, Result<StreamClientIdsResponse, Status>>, Status> {
        let include_blacklisted = request.include_blacklisted;
        let after = request.last_contact_after;
        if after.is_some_and(|time| timestamp_epoch_nanos(&time).is_none()) {
            return Err(Status::invalid_argument(
                "`last_contact_after` is not a valid time",
            ));
        }
        Ok(owned(
            Arc::clone(&self.engine.store),
            move |store| store.stream_client_ids(include_blacklisted, after),
            |id| StreamClientIdsResponse {
                client_id: id.to_bytes(),
            },
        ))
    }

    /// Returns all contacts of a client.
    pub(super) async fn list_client_contacts(
        &self,
        id: &[u8],
    ) -> Result<Vec<ClientContact>, Status> {
        match parse::client_id(id)? {
            Some(client) => {
                let contacts = self.engine.store.list_client_contacts(client);
                contacts.await.map_err(status)
            }
            None => Ok(Vec::new()),
        }
    }

    /// Streams all contacts of a client.
    pub(super) fn stream_client_contacts(
        &self,
        id: &[u8],
    ) -> Result<BoxStream<'static, Result<StreamClientContactsResponse, Status>>, Status> {
        let Some(client) = parse::client_id(id)? else {
            return Ok(stream::empty().boxed());
        };
        Ok(owned(
            Arc::clone(&self.engine.store),
            move |store| store.stream_client_contacts(client),
            |contact| StreamClientContactsResponse {
                contact: Some(contact),
            },
        ))
    }

    /// Blacklists a client and lets its stream know at once.
    pub(super) async fn blacklist_client(&self, id: &[u8]) -> Result<(), Status> {
        let Some(client) = parse::client_id(id)? else {
            return Ok(());
        };
        match self.engine.store.blacklist_client(client).await {
            Err(error) if error.is_not_found() => {
                tracing::info!(%client, "unknown client, nothing to blacklist");
                return Ok(());
            }
            done => done.map_err(status)?,
        }
        self.engine.cache.forget(client);
        self.engine.wake(client, News::Client);
        tracing::info!(%client, "blacklisted a client");
        Ok(())
    }

    /// Returns the resource usage records of a client that arrived in a range of time.
    pub(super) async fn resource_usage(
        &self,
        request: &FetchClientResourceUsageRecordsRequest,
    ) -> Result<Vec<ClientResourceUsageRecord>, Status> {
        let missing = |field| move || Status::invalid_argument(format!("`{field}` is missing"));
        let start = request.start_timestamp.as_ref();
        let start = start.ok_or_else(missing("start_timestamp"))?;
        let end = request.end_timestamp.as_ref();
        let end = end.ok_or_else(missing("end_timestamp"))?;
        match parse::client_id(&request.client_id)? {
            Some(client) => {
                let records = self
                    .engine
                    .store
                    .fetch_resource_usage_records(client, start, end);
                records.await.map_err(status)
            }
            None => {
                // Nobody has records, but a wrong range is wrong for everybody.
                fleethold_store::record::nanos_range("fetch_resource_usage_records", start, end)
                    .map_err(status)?;
                Ok(Vec::new())
            }
        }
    }
}
