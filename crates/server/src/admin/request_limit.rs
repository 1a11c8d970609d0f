//! The limit on the size of a request, and the code that says so.

use std::sync::Arc;
use std::task::{Context, Poll};

use fleethold_proto::fleetspeak::server::admin_server;
use futures::TryFutureExt;
use futures::future::MapOk;
use http::{Request, Response};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::{Code, Status};

use crate::config::MAX_ADMIN_REQUEST_BYTES;

/// The admin service with limited requests.
///
/// tonic refuses a request over the limit with `OUT_OF_RANGE`, which none of
/// our methods answers, and in its own words; gRPC programs expect
/// `RESOURCE_EXHAUSTED`.
#[derive(Clone, Debug)]
pub(super) struct LimitedRequests<S>(S);

impl<A: admin_server::Admin> LimitedRequests<admin_server::AdminServer<A>> {
    pub(super) fn new(methods: Arc<A>) -> Self {
        let service = admin_server::AdminServer::from_arc(methods);
        Self(service.max_decoding_message_size(MAX_ADMIN_REQUEST_BYTES))
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
        self.0.call(request).map_ok(expected_status)
    }
}

fn expected_status(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::OutOfRange => {
            let text = format!("the request exceeds the {MAX_ADMIN_REQUEST_BYTES}-byte limit");
            Status::resource_exhausted(text).into_http()
        }
        _ => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_large_a_request_is_told_the_limit_and_other_answers_stay() {
        let status = |status: Status| {
            let answer = expected_status(status.into_http());
            let status = Status::from_header_map(answer.headers()).unwrap();
            (status.code(), status.message().to_owned())
        };
        let text = "the request exceeds the 4194304-byte limit".to_owned();
        assert_eq!(
            status(Status::out_of_range(
                "Error, decoded message length too large"
            )),
            (Code::ResourceExhausted, text)
        );
        assert_eq!(
            status(Status::not_found("no client")),
            (Code::NotFound, "no client".to_owned())
        );
    }
}
