//! Messages: insert, status, and what is pending.

use bytes::Bytes;
use fleethold_proto::fleetspeak::server::{GetMessageStatusResponse, GetPendingMessagesRequest};
use fleethold_proto::fleetspeak::{Address, Message};
use fleethold_store::clock::timestamp;
use fleethold_store::{ClientId, MessageId};
use prost::Message as _;
use tonic::Status;

use super::Admin;
use super::parse;
use super::status::status;
use crate::notifications::News;

/// The largest message an agent takes, in bytes, serialised and complete.
const MAX_CLIENT_MESSAGE_BYTES: usize = 2_097_152;

impl Admin {
    /// Stores a message and tells whoever waits for it.
    ///
    /// A message that is stored already is accepted without effect: callers
    /// that got no answer try again with the same id.
    pub(super) async fn insert_message(&self, mut message: Message) -> Result<(), Status> {
        let destination =
            parse::client_id(&address("destination", &message.destination)?.client_id)?;
        address("source", &message.source)?;
        let given_id = parse::message_id(&message.message_id)?;
        let id = given_id.unwrap_or_else(|| MessageId::random(&self.engine.random));
        if given_id.is_none() {
            message.message_id = id.to_bytes();
        }
        if message.creation_time.is_none() {
            message.creation_time = Some(timestamp(self.engine.clock.now()));
        }
        match destination {
            Some(client) => self.insert_for_client(id, &message, client).await,
            None => {
                let is_known = given_id.is_some() && self.message(id).await?.is_some();
                self.insert_for_server(id, message, is_known).await
            }
        }
    }

    async fn insert_for_client(
        &self,
        id: MessageId,
        message: &Message,
        client: ClientId,
    ) -> Result<(), Status> {
        let size = message.encoded_len();
        if size > MAX_CLIENT_MESSAGE_BYTES {
            return Err(Status::resource_exhausted(format!(
                "message {id} has {size} bytes, which exceeds the {MAX_CLIENT_MESSAGE_BYTES}-byte limit"
            )));
        }
        if self
            .engine
            .cache
            .load(client)
            .await
            .map_err(status)?
            .is_none()
        {
            return Err(Status::not_found(format!("unknown client {client}")));
        }
        self.engine
            .store
            .store_messages(std::slice::from_ref(message), None)
            .await
            .map_err(status)?;
        self.engine.wake(client, News::Messages);
        tracing::info!(message = %id, %client, "inserted a message");
        Ok(())
    }

    async fn insert_for_server(
        &self,
        id: MessageId,
        message: Message,
        is_known: bool,
    ) -> Result<(), Status> {
        self.engine
            .store
            .store_messages(std::slice::from_ref(&message), None)
            .await
            .map_err(status)?;
        tracing::info!(message = %id, "inserted a message for a service on the server");
        // A message that was there already is processed, under way, or waits for its retry.
        if !is_known && message.result.is_none() {
            self.engine.services.process_stored(message);
        }
        Ok(())
    }

    /// Returns what became of a message; nothing for an unknown one.
    pub(super) async fn message_status(
        &self,
        id: &[u8],
    ) -> Result<GetMessageStatusResponse, Status> {
        let message = match parse::message_id(id)? {
            Some(id) => self.message(id).await?,
            None => None,
        };
        let message = message.unwrap_or_default();
        Ok(GetMessageStatusResponse {
            creation_time: message.creation_time,
            result: message.result,
        })
    }

    /// Returns the messages that wait for some clients, by message id.
    pub(super) async fn pending_messages(
        &self,
        request: &GetPendingMessagesRequest,
    ) -> Result<Vec<Message>, Status> {
        let clients = parse::client_ids(&request.client_ids)?;
        self.engine
            .store
            .get_pending_messages(&clients, request.offset, request.limit, request.want_data)
            .await
            .map_err(status)
    }

    /// Returns how many messages wait for some clients.
    pub(super) async fn pending_message_count(&self, clients: &[Bytes]) -> Result<u64, Status> {
        let clients = parse::client_ids(clients)?;
        let count = self.engine.store.get_pending_message_count(&clients);
        count.await.map_err(status)
    }

    /// Fails the messages that wait for some clients.
    pub(super) async fn delete_pending_messages(&self, clients: &[Bytes]) -> Result<(), Status> {
        let clients = parse::client_ids(clients)?;
        self.engine
            .store
            .delete_pending_messages(&clients)
            .await
            .map_err(status)?;
        tracing::info!(?clients, "removed pending messages");
        Ok(())
    }

    async fn message(&self, id: MessageId) -> Result<Option<Message>, Status> {
        match self.engine.store.get_messages(&[id], false).await {
            Ok(mut messages) => Ok(messages.pop()),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(status(error)),
        }
    }
}

fn address<'a>(role: &str, address: &'a Option<Address>) -> Result<&'a Address, Status> {
    address
        .as_ref()
        .filter(|address| !address.service_name.is_empty())
        .ok_or_else(|| Status::invalid_argument(format!("`{role}.service_name` is missing")))
}
