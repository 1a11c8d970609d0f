//! Which request goes where, and what answers look like.

use std::borrow::Cow;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::activity::Busy;
use super::connection::Connection;
use super::{files, message, streaming};
use crate::contacts::{ContactError, Peer};
use crate::limits::Refused;

/// The body of an answer.
pub(super) type ReplyBody = UnsyncBoxBody<Bytes, Infallible>;

/// An answer before it is tied to its connection.
pub(super) type Reply = Response<ReplyBody>;

/// A request that gets an error for an answer.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    reason: Cow<'static, str>,
    /// The limit that was met, if one was.
    limit: Option<Refused>,
    retry_after: Option<Duration>,
    /// What the peer reads instead of the reason.
    shown: Option<&'static str>,
}

/// When an agent may come again after the store has failed.
const STORE_RETRY: Duration = Duration::from_secs(10);

impl Refusal {
    pub(super) fn new(status: StatusCode, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            reason: reason.into(),
            limit: None,
            retry_after: None,
            shown: None,
        }
    }

    /// Refuses because there is too much to do; what one agent causes gets
    /// another status than what all cause together.
    pub(super) fn busy(
        refused: Refused,
        reason: impl Into<Cow<'static, str>>,
        retry_after: Duration,
    ) -> Self {
        let status = match refused {
            Refused::AgentBytes | Refused::AgentMessages => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self {
            limit: Some(refused),
            retry_after: Some(retry_after),
            ..Self::new(status, reason)
        }
    }

    /// Refuses what nobody should try again.
    pub(super) fn over_limit(refused: Refused, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            limit: Some(refused),
            ..Self::bad_request(reason)
        }
    }

    /// The status the peer gets.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn bad_request(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }
}

impl From<ContactError> for Refusal {
    fn from(error: ContactError) -> Self {
        match error {
            ContactError::NotAuthorized => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "not authorized")
            }
            ContactError::Busy {
                refused,
                reason,
                retry_after,
            } => Self::busy(refused, reason, retry_after),
            ContactError::StoreFails(reason) => Self {
                retry_after: Some(STORE_RETRY),
                shown: Some("temporarily unavailable"),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, reason)
            },
            ContactError::Failed(reason) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, reason),
        }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        // What went wrong in here is for the log, not for whoever connects.
        let text = match refusal.status {
            StatusCode::INTERNAL_SERVER_ERROR => "internal error\n".into(),
            _ => format!("{}\n", refusal.shown.unwrap_or(&refusal.reason)),
        };
        let mut reply = Self::new(Full::new(Bytes::from(text)).boxed_unsync());
        *reply.status_mut() = refusal.status;
        let headers = reply.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        if refusal.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        if let Some(wait) = refusal.retry_after {
            // Whole seconds, and never zero: that would mean at once.
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
        }
        reply
    }
}

/// Returns a successful answer with a body of bytes.
pub(super) fn octets<B>(body: B) -> Reply
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let mut reply = Response::new(body.boxed_unsync());
    reply.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    reply
}

/// Returns a body of no bytes.
pub(super) fn nothing() -> ReplyBody {
    Empty::new().boxed_unsync()
}

/// Answers one request.
pub(super) async fn answer(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<TiedBody>, Infallible> {
    let mut busy = connection.activity.begin();
    let path = request.uri().path().to_owned();
    let reply = route(&connection, request, &mut busy)
        .await
        .unwrap_or_else(|refusal| {
            let Refusal {
                status,
                reason,
                limit,
                ..
            } = &refusal;
            let addr = connection.addr;
            if let Some(refused) = limit {
                // Under attack there are too many for the log; the metrics have them.
                connection.shared.refused(*refused);
                tracing::debug!(%addr, path, %status, reason = %reason, "refused a request");
            } else if status.is_server_error()
                && let Some(others) = connection.shared.unserved.due(Instant::now())
            {
                // Agents can cause such errors as often as they like.
                tracing::warn!(%addr, path, %status, reason = %reason, others, "cannot serve a request");
            } else {
                tracing::debug!(%addr, path, %status, reason = %reason, "refused a request");
            }
            refusal.into()
        });
    busy.touch();
    Ok(reply.map(|body| TiedBody { body, busy }))
}

async fn route(
    connection: &Arc<Connection>,
    request: Request<Incoming>,
    busy: &mut Busy,
) -> Result<Reply, Refusal> {
    match request.uri().path() {
        "/message" => {
            require_post(&request)?;
            message::poll(connection, request).await
        }
        "/streaming-message" if connection.shared.options.streaming => {
            require_post(&request)?;
            busy.is_stream();
            streaming::start(connection, request).await
        }
        path if path.starts_with("/files/") => files::serve(connection, &request).await,
        _ => Err(Refusal::new(StatusCode::NOT_FOUND, "not found")),
    }
}

fn require_post(request: &Request<Incoming>) -> Result<(), Refusal> {
    if request.method() == Method::POST {
        return Ok(());
    }
    Err(Refusal::bad_request("the method must be POST"))
}

/// Returns who sent a request.
pub(super) fn peer(connection: &Connection, headers: &HeaderMap) -> Result<Peer, Refusal> {
    let (client, key) = connection
        .identify(headers)
        .map_err(|error| Refusal::bad_request(error.to_string()))?;
    Ok(Peer {
        client,
        key,
        addr: connection.addr,
    })
}

/// The body of an answer; its connection is busy as long as it exists.
pub(super) struct TiedBody {
    body: ReplyBody,
    busy: Busy,
}

impl Body for TiedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(frame) = &frame {
            let data = frame
                .as_ref()
                .and_then(|frame| frame.as_ref().ok()?.data_ref());
            self.busy.took(data.map_or(0, Bytes::len));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
