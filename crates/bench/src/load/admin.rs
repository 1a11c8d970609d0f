//! The operator's side: the admin interface of the server under load.

use std::time::Duration;

use bytes::Bytes;
use fleethold_proto::Any;
use fleethold_proto::fleetspeak::server::admin_client::AdminClient;
use fleethold_proto::fleetspeak::server::{
    Broadcast, CreateBroadcastRequest, GetMessageStatusRequest,
};
use fleethold_proto::fleetspeak::{Address, EmptyMessage, Message};
use fleethold_store::{ClientId, MessageId};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::failure::Failure;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// A connection to the admin interface.
#[derive(Clone, Debug)]
pub(crate) struct Admin(AdminClient<Channel>);

impl Admin {
    pub(crate) async fn connect(address: &str) -> Result<Self, Failure> {
        let refused = |error: tonic::transport::Error| Failure::connection("gRPC", &error);
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(refused)?;
        let channel = endpoint
            .connect_timeout(CONNECT_LIMIT)
            .timeout(CALL_LIMIT)
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(refused)?;
        let mut admin = Self(AdminClient::new(channel));
        admin.0.keep_alive(EmptyMessage {}).await.map_err(failure)?;
        Ok(admin)
    }

    /// Sends a message to a service of an agent.
    pub(crate) async fn insert(
        &mut self,
        id: MessageId,
        client: ClientId,
        service: &str,
        data: Any,
    ) -> Result<(), Failure> {
        let message = Message {
            message_id: id.to_bytes(),
            source: Some(Address {
                service_name: service.to_owned(),
                ..Address::default()
            }),
            destination: Some(Address {
                client_id: client.to_bytes(),
                service_name: service.to_owned(),
            }),
            message_type: "Bench".to_owned(),
            data: Some(data),
            ..Message::default()
        };
        self.0.insert_message(message).await.map_err(failure)?;
        Ok(())
    }

    /// Sends a broadcast to a service of all agents, or of at most `limit`.
    pub(crate) async fn broadcast(
        &mut self,
        id: Bytes,
        service: &str,
        message_type: &str,
        limit: u64,
    ) -> Result<(), Failure> {
        let request = CreateBroadcastRequest {
            broadcast: Some(Broadcast {
                broadcast_id: id,
                source: Some(Address {
                    service_name: service.to_owned(),
                    ..Address::default()
                }),
                message_type: message_type.to_owned(),
                data: Some(Any {
                    type_url: "type.googleapis.com/fleethold.bench.Broadcast".to_owned(),
                    value: Bytes::from_static(&[7; 100]),
                }),
                ..Broadcast::default()
            }),
            limit,
        };
        self.0.create_broadcast(request).await.map_err(failure)?;
        Ok(())
    }

    /// Returns whether the server knows a message as processed.
    pub(crate) async fn is_processed(&mut self, id: MessageId) -> Result<bool, Failure> {
        let request = GetMessageStatusRequest {
            message_id: id.to_bytes(),
        };
        let answer = self.0.get_message_status(request).await.map_err(failure)?;
        let result = answer.into_inner().result;
        Ok(result.is_some_and(|result| !result.failed && result.processed_time.is_some()))
    }
}

fn failure(status: Status) -> Failure {
    Failure::Admin(format!("{:?}: {}", status.code(), status.message()))
}
