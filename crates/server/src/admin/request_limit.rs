//! The limit on the size of a request, and the code that says so.

use std::task::{Context, Poll};

use fleethold_proto::fleetspeak::server::admin_server;
use futures::TryFutureExt;
use futures::future::MapOk;
use http::{Request, Response};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::{Code, Status};

/// The largest request in bytes, the same as upstream's.
const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;

/// The admin service with limited requests.
///
/// tonic refuses a request over the limit with `OUT_OF_RANGE`, which none of
/// our methods answers; gRPC programs expect `RESOURCE_EXHAUSTED`.
#[derive(Clone, Debug)]
pub(super) struct LimitedRequests<S>(S);

impl<A: admin_server::Admin> LimitedRequests<admin_server::AdminServer<A>> {
    pub(super) fn new(methods: A) -> Self {
        let service = admin_server::AdminServer::new(methods);
        Self(service.max_decoding_message_size(MAX_REQUEST_BYTES))
    }
}

impl<S: NamedService> NamedService for LimitedRequests<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for LimitedRequests<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = MapOk<S::Future, fn(Response<Body>) -> Response<Body>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.call(request).map_ok(expected_code)
    }
}

fn expected_code(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::OutOfRange => {
            Status::resource_exhausted(status.message()).into_http()
        }
        _ => response,
    }
}
