//! The service behind the server, which counts what arrives.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result};
use fleethold_proto::fleethold::service::v1::batch_processor_server::{
    BatchProcessor, BatchProcessorServer,
};
use fleethold_proto::fleethold::service::v1::{BatchRequest, BatchResponse, Outcome};
use fleethold_proto::fleetspeak::grpcservice::processor_server::{Processor, ProcessorServer};
use fleethold_proto::fleetspeak::{EmptyMessage, Message};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::ledger::Ledger;
use super::pace::Recorder;

/// The largest call with messages.
const MOST_CALL_BYTES: usize = 64 << 20;

/// A gRPC service that takes every message; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Service {
    counting: Counting,
    _task: AbortOnDropHandle<()>,
}

/// Whom arrivals are reported to.
#[derive(Clone, Debug, Default)]
struct Counting(Arc<RwLock<Option<Run>>>);

#[derive(Clone, Debug)]
struct Run {
    ledger: Arc<Ledger>,
    recorder: Arc<Recorder>,
}

impl Service {
    /// Listens, and serves until it is dropped.
    pub(crate) async fn start(listen: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!("cannot listen on `{listen}` for the server's messages to the service")
        })?;
        let counting = Counting::default();
        let processor = ProcessorServer::new(counting.clone());
        let batches = BatchProcessorServer::new(counting.clone());
        let server = Server::builder()
            .tcp_nodelay(true)
            .add_service(processor.max_decoding_message_size(MOST_CALL_BYTES))
            .add_service(batches.max_decoding_message_size(MOST_CALL_BYTES));
        let serving = server.serve_with_incoming(TcpListenerStream::new(listener));
        Ok(Self {
            counting,
            _task: AbortOnDropHandle::new(tokio::spawn(async { drop(serving.await) })),
        })
    }

    /// Reports arrivals to this ledger from now on, and the time they took to this recorder.
    pub(crate) fn count(&self, ledger: &Arc<Ledger>, recorder: &Arc<Recorder>) {
        let run = Run {
            ledger: Arc::clone(ledger),
            recorder: Arc::clone(recorder),
        };
        *self
            .counting
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(run);
    }
}

impl Counting {
    fn note(&self, messages: &[Message]) {
        let run = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(run) = &*run else { return };
        for message in messages {
            let mark = message.data.as_ref().and_then(|data| run.ledger.read(data));
            if let Some(mark) = mark
                && run.ledger.arrive(mark)
            {
                run.recorder.record(mark.agent, mark.intended);
            }
        }
    }
}

#[tonic::async_trait]
impl Processor for Counting {
    async fn process(&self, request: Request<Message>) -> Result<Response<EmptyMessage>, Status> {
        self.note(std::slice::from_ref(request.get_ref()));
        Ok(Response::new(EmptyMessage::default()))
    }
}

#[tonic::async_trait]
impl BatchProcessor for Counting {
    async fn process_batch(
        &self,
        request: Request<BatchRequest>,
    ) -> Result<Response<BatchResponse>, Status> {
        let messages = &request.get_ref().messages;
        self.note(messages);
        let outcomes = messages.iter().map(|_| Outcome::default()).collect();
        Ok(Response::new(BatchResponse { outcomes }))
    }
}
