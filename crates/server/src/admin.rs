//! The admin interface: gRPC service `fleetspeak.server.Admin` (protocol
//! specification section 4), and the listener it is served on.
//!
//! What the methods do lies in a file for each subject; here they are only
//! taken off the wire.

mod access;
mod audit;
mod broadcasts;
mod clients;
mod files;
mod messages;
mod parse;
mod request_limit;
mod status;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fleethold_proto::fleethold::admin::v1::broadcasts_server::BroadcastsServer;
use fleethold_proto::fleetspeak::server::admin_server;
use fleethold_proto::fleetspeak::server::{
    BlacklistClientRequest, CreateBroadcastRequest, DeleteFileRequest,
    DeletePendingMessagesRequest, DisableBroadcastsRequest, FetchClientResourceUsageRecordsRequest,
    FetchClientResourceUsageRecordsResponse, GetMessageStatusRequest, GetMessageStatusResponse,
    GetPendingMessageCountRequest, GetPendingMessageCountResponse, GetPendingMessagesRequest,
    GetPendingMessagesResponse, ListActiveBroadcastsRequest, ListActiveBroadcastsResponse,
    ListClientContactsRequest, ListClientContactsResponse, ListClientsRequest, ListClientsResponse,
    StoreFileRequest, StreamClientContactsRequest, StreamClientContactsResponse,
    StreamClientIdsRequest, StreamClientIdsResponse,
};
use fleethold_proto::fleetspeak::{EmptyMessage, Message};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tracing::Instrument;

pub(crate) use self::access::Access;
pub use self::access::{AccessError, AccessList, Role};
use self::access::{Caller, Checked};
use self::audit::{Call, hex};
use self::request_limit::LimitedRequests;
use crate::engine::Engine;

/// When the other end of an idle connection is asked whether it still exists.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The longest wait for calls at a stop. Connections that never made a call
/// cannot be told from busy ones, and one of them is enough to wait this long.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// The pause after a connection could not be accepted, for lack of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a TLS handshake may take, and how many there are at a time.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const MOST_HANDSHAKES: usize = 64;

/// What the methods work on.
pub(crate) struct Admin {
    pub(crate) engine: Arc<Engine>,
}

/// The running admin interface.
pub(crate) struct AdminServer {
    stop: CancellationToken,
    serving: JoinHandle<()>,
    changes: TaskTracker,
}

impl AdminServer {
    /// Serves `admin` on `listener` to those in `access`.
    pub(crate) fn start(
        listener: TcpListener,
        admin: Admin,
        tls: Option<Arc<rustls::ServerConfig>>,
        access: Access,
    ) -> Self {
        let stop = CancellationToken::new();
        let changes = TaskTracker::new();
        let methods = Arc::new(Methods {
            admin: Arc::new(admin),
            changes: changes.clone(),
        });
        let incoming = TcpIncoming::from(listener)
            .with_nodelay(Some(true))
            .with_keepalive(Some(KEEPALIVE))
            .then(|accepted| async {
                if let Err(error) = &accepted {
                    tracing::warn!(%error, "cannot accept an admin connection");
                    sleep(ACCEPT_PAUSE).await;
                }
                accepted
            });
        let serving = serve(incoming, methods, tls, access, stop.clone());
        let serving = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(error = %crate::chain(&error), "admin interface ended");
            }
        });
        Self {
            stop,
            serving,
            changes,
        }
    }

    /// Accepts no more calls and waits for those under way, at most for `limit`.
    pub(crate) async fn stop(mut self, limit: Duration) {
        let deadline = Instant::now() + limit.min(STOP_LIMIT);
        self.stop.cancel();
        self.changes.close();
        let finished = async {
            // Its errors are logged by the task itself.
            let _ = (&mut self.serving).await;
            self.changes.wait().await;
        };
        if timeout_at(deadline, finished).await.is_err() {
            tracing::warn!("admin calls did not end in time");
            self.serving.abort();
        }
    }
}

async fn serve(
    incoming: impl Stream<Item = io::Result<TcpStream>> + Send + 'static,
    methods: Arc<Methods>,
    tls: Option<Arc<rustls::ServerConfig>>,
    access: Access,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter
        .set_serving::<admin_server::AdminServer<Methods>>()
        .await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(fleethold_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let router = Server::builder()
        .layer(tower_layer(access))
        .add_service(BroadcastsServer::from_arc(Arc::clone(&methods)))
        .add_service(LimitedRequests::new(methods))
        .add_service(health)
        // The Go and Python tools of today ask for the older one.
        .add_service(reflection().build_v1alpha().expect("our own descriptors"))
        .add_service(reflection().build_v1().expect("our own descriptors"));
    let stopped = stop.cancelled_owned();
    let Some(tls) = tls else {
        return router.serve_with_incoming_shutdown(incoming, stopped).await;
    };
    let acceptor = TlsAcceptor::from(tls);
    let incoming = incoming
        .map(move |tcp| {
            let acceptor = acceptor.clone();
            async move {
                match timeout(HANDSHAKE_LIMIT, acceptor.accept(tcp.ok()?)).await {
                    Ok(Ok(connection)) => Some(Ok::<_, io::Error>(connection)),
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "an admin connection failed");
                        None
                    }
                    Err(_) => None,
                }
            }
        })
        .buffer_unordered(MOST_HANDSHAKES)
        .filter_map(std::future::ready);
    router.serve_with_incoming_shutdown(incoming, stopped).await
}

/// Puts the check of callers before every service.
fn tower_layer<S>(access: Access) -> impl tower_layer::Layer<S, Service = Checked<S>> + Clone {
    tower_layer::layer_fn(move |inner| Checked::new(inner, access.clone()))
}

/// The methods as they are called from outside.
struct Methods {
    admin: Arc<Admin>,
    changes: TaskTracker,
}

impl Methods {
    /// Makes a change in a task of its own: a caller that hangs up does not
    /// stop it between the store and those who must hear of it.
    async fn change<F>(
        &self,
        call: Call,
        change: impl FnOnce(Arc<Admin>) -> F,
    ) -> Result<Response<EmptyMessage>, Status>
    where
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let method = call.method;
        let span = tracing::info_span!("admin", method);
        let change = change(Arc::clone(&self.admin));
        let task = async move {
            let result = change.await;
            call.log(&result);
            result
        }
        .instrument(span);
        match self.changes.spawn(task).await {
            Ok(done) => done.map(|()| Response::new(EmptyMessage {})),
            Err(error) => {
                tracing::error!(method, %error, "admin call ended badly");
                Err(Status::internal(
                    "the call ended badly, see the server's log",
                ))
            }
        }
    }
}

/// A call that came past no check may see everything.
fn may_see_payloads<T>(request: &Request<T>) -> bool {
    request
        .extensions()
        .get::<Caller>()
        .is_none_or(|caller| caller.has(Role::Payload))
}

#[tonic::async_trait]
impl admin_server::Admin for Methods {
    type StreamClientIdsStream = BoxStream<'static, Result<StreamClientIdsResponse, Status>>;
    type StreamClientContactsStream =
        BoxStream<'static, Result<StreamClientContactsResponse, Status>>;

    async fn keep_alive(
        &self,
        _request: Request<EmptyMessage>,
    ) -> Result<Response<EmptyMessage>, Status> {
        Ok(Response::new(EmptyMessage {}))
    }

    async fn insert_message(
        &self,
        request: Request<Message>,
    ) -> Result<Response<EmptyMessage>, Status> {
        let call = Call::insert_message(&request);
        let message = request.into_inner();
        self.change(
            call,
            |admin| async move { admin.insert_message(message).await },
        )
        .await
    }

    async fn get_message_status(
        &self,
        request: Request<GetMessageStatusRequest>,
    ) -> Result<Response<GetMessageStatusResponse>, Status> {
        let status = self.admin.message_status(&request.get_ref().message_id);
        status.await.map(Response::new)
    }

    async fn get_pending_messages(
        &self,
        request: Request<GetPendingMessagesRequest>,
    ) -> Result<Response<GetPendingMessagesResponse>, Status> {
        if request.get_ref().want_data && !may_see_payloads(&request) {
            return Err(Status::permission_denied(
                "`want_data` needs the role `payload`",
            ));
        }
        let messages = self.admin.pending_messages(request.get_ref()).await?;
        Ok(Response::new(GetPendingMessagesResponse { messages }))
    }

    async fn get_pending_message_count(
        &self,
        request: Request<GetPendingMessageCountRequest>,
    ) -> Result<Response<GetPendingMessageCountResponse>, Status> {
        let count = self
            .admin
            .pending_message_count(&request.get_ref().client_ids);
        let count = count.await?;
        Ok(Response::new(GetPendingMessageCountResponse { count }))
    }

    async fn delete_pending_messages(
        &self,
        request: Request<DeletePendingMessagesRequest>,
    ) -> Result<Response<EmptyMessage>, Status> {
        let clients = request.get_ref().client_ids.len();
        let call = Call::new("DeletePendingMessages", &request).to(clients);
        let clients = request.into_inner().client_ids;
        self.change(call, |admin| async move {
            admin.delete_pending_messages(&clients).await
        })
        .await
    }

    async fn list_clients(
        &self,
        request: Request<ListClientsRequest>,
    ) -> Result<Response<ListClientsResponse>, Status> {
        let clients = self
            .admin
            .list_clients(&request.get_ref().client_ids)
            .await?;
        Ok(Response::new(ListClientsResponse { clients }))
    }

    async fn stream_client_ids(
        &self,
        request: Request<StreamClientIdsRequest>,
    ) -> Result<Response<Self::StreamClientIdsStream>, Status> {
        let ids = self.admin.stream_client_ids(request.get_ref())?;
        Ok(Response::new(ids))
    }

    async fn list_client_contacts(
        &self,
        request: Request<ListClientContactsRequest>,
    ) -> Result<Response<ListClientContactsResponse>, Status> {
        let contacts = self
            .admin
            .list_client_contacts(&request.get_ref().client_id)
            .await?;
        Ok(Response::new(ListClientContactsResponse { contacts }))
    }

    async fn stream_client_contacts(
        &self,
        request: Request<StreamClientContactsRequest>,
    ) -> Result<Response<Self::StreamClientContactsStream>, Status> {
        let contacts = self
            .admin
            .stream_client_contacts(&request.get_ref().client_id)?;
        Ok(Response::new(contacts))
    }

    async fn blacklist_client(
        &self,
        request: Request<BlacklistClientRequest>,
    ) -> Result<Response<EmptyMessage>, Status> {
        let call = Call::new("BlacklistClient", &request)
            .to(1)
            .what(hex(&request.get_ref().client_id));
        let client = request.into_inner().client_id;
        self.change(call, |admin| async move {
            admin.blacklist_client(&client).await
        })
        .await
    }

    async fn fetch_client_resource_usage_records(
        &self,
        request: Request<FetchClientResourceUsageRecordsRequest>,
    ) -> Result<Response<FetchClientResourceUsageRecordsResponse>, Status> {
        let records = self.admin.resource_usage(request.get_ref()).await?;
        Ok(Response::new(FetchClientResourceUsageRecordsResponse {
            records,
        }))
    }

    async fn create_broadcast(
        &self,
        request: Request<CreateBroadcastRequest>,
    ) -> Result<Response<EmptyMessage>, Status> {
        let call = Call::create_broadcast(&request);
        let request = request.into_inner();
        self.change(call, |admin| async move {
            admin.create_broadcast(request).await
        })
        .await
    }

    async fn list_active_broadcasts(
        &self,
        request: Request<ListActiveBroadcastsRequest>,
    ) -> Result<Response<ListActiveBroadcastsResponse>, Status> {
        let service = &request.get_ref().service_name;
        let mut broadcasts = self.admin.list_active_broadcasts(service).await?;
        if !may_see_payloads(&request) {
            broadcasts
                .iter_mut()
                .for_each(|broadcast| broadcast.data = None);
        }
        Ok(Response::new(ListActiveBroadcastsResponse { broadcasts }))
    }

    async fn disable_broadcasts(
        &self,
        request: Request<DisableBroadcastsRequest>,
    ) -> Result<Response<EmptyMessage>, Status> {
        let what = request.get_ref().broadcast_ids.iter().take(10).map(hex);
        let what = what.collect::<Vec<_>>().join(",");
        let call = Call::new("DisableBroadcasts", &request).what(what);
        let ids = request.into_inner().broadcast_ids;
        self.change(
            call,
            |admin| async move { admin.disable_broadcasts(&ids).await },
        )
        .await
    }

    async fn store_file(
        &self,
        request: Request<StoreFileRequest>,
    ) -> Result<Response<EmptyMessage>, Status> {
        let (of, bytes) = (request.get_ref(), request.get_ref().data.len());
        let what = format!("{}/{} {bytes} bytes", of.service_name, of.file_name);
        let call = Call::new("StoreFile", &request).what(what);
        let file = request.into_inner();
        self.change(call, |admin| async move { admin.store_file(&file).await })
            .await
    }

    async fn delete_file(
        &self,
        request: Request<DeleteFileRequest>,
    ) -> Result<Response<EmptyMessage>, Status> {
        let of = request.get_ref();
        let what = format!("{}/{}", of.service_name, of.file_name);
        let call = Call::new("DeleteFile", &request).what(what);
        let file = request.into_inner();
        self.change(call, |admin| async move { admin.delete_file(&file).await })
            .await
    }
}
