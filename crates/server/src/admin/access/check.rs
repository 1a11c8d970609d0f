//! The check before every call, whichever service it is for.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

use super::{Access, Caller, Need, need};
use crate::tls;

/// How many refused strangers there are between two lines in the log.
const LOGGED_EVERY: u64 = 1_000;

/// Lets calls through whose caller may make them.
#[derive(Clone)]
pub(in crate::admin) struct Checked<S> {
    inner: S,
    access: Access,
    strangers: Arc<AtomicU64>,
}

impl<S> Checked<S> {
    pub(in crate::admin) fn new(inner: S, access: Access) -> Self {
        Self {
            inner,
            access,
            strangers: Arc::default(),
        }
    }

    fn check(&self, request: &Request<Body>) -> Result<Caller, Status> {
        let Some(list) = self.access.list() else {
            return Ok(Caller::anybody());
        };
        let path = request.uri().path();
        let need = need(path);
        if need == Some(Need::Nobody) {
            return Ok(Caller::anybody());
        }
        let token = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let caller = match token {
            Some(token) => list.by_token(token),
            None => peer_key(request).and_then(|key| list.by_key(&key)),
        };
        let Some(caller) = caller else {
            let before = self.strangers.fetch_add(1, Ordering::Relaxed);
            if before.is_multiple_of(LOGGED_EVERY) {
                tracing::warn!(
                    refused_before = before,
                    "refused an admin call of a stranger"
                );
            }
            return Err(Status::unauthenticated(
                "show a token (`authorization: Bearer …`) or a client certificate of the access file",
            ));
        };
        match need {
            Some(need) if !caller.may(need) => {
                let Need::One(role) = need else {
                    unreachable!("only roles can be missing")
                };
                let method = path.rsplit('/').next();
                tracing::warn!(target: "audit", who = &*caller.name, method, result = "PermissionDenied");
                Err(Status::permission_denied(format!(
                    "`{}` has no role `{}`",
                    caller.name,
                    role.name()
                )))
            }
            Some(_) => Ok(caller.clone()),
            // A method that asks for nothing yet is nobody's.
            None => Err(Status::unimplemented(format!(
                "there is no method `{path}`"
            ))),
        }
    }
}

/// Returns the key of the certificate that the peer has proven to own.
fn peer_key(request: &Request<Body>) -> Option<bytes::Bytes> {
    let connection = request
        .extensions()
        .get::<TlsConnectInfo<TcpConnectInfo>>()?;
    match connection.peer_certs()?.as_slice() {
        [certificate] => tls::identity(certificate).map(|(_, key)| key),
        _ => None,
    }
}

impl<S> Service<Request<Body>> for Checked<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.check(&request) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Box::pin(self.inner.call(request))
            }
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}
