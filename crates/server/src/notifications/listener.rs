//! What other servers tell this one (protocol specification section 5.6).

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleethold_store::{ClientId, Clock};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use super::call::{self, News};
use super::secret::{self, NotificationSecret};
use crate::cache::ClientCache;
use crate::limits::{Notice, Rate};
use crate::metrics::Metrics;
use crate::side_port::SidePort;
use crate::streams::Streams;

/// How many connections of other servers are served at once.
const MOST_CONNECTIONS: usize = 256;

/// How many clients per second may be named without a signature: each may be a look at the store.
pub(super) const MOST_UNSIGNED_PER_SECOND: u32 = 10_000;

/// How long a body may take.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// Takes notifications.
pub(super) struct Listener {
    pub(super) streams: Arc<Streams>,
    pub(super) cache: Arc<ClientCache>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) secret: Option<NotificationSecret>,
    /// Whether notifications without signature are accepted though there is a secret.
    pub(super) accept_unsigned: bool,
    /// Paces notifications that anybody could send.
    pub(super) unsigned: Rate,
    pub(super) refused: Notice,
}

/// Why a notification is not accepted.
#[derive(Debug, thiserror::Error)]
enum Wrong {
    #[error("no such path")]
    Path,
    #[error("use POST")]
    Method,
    #[error("the path does not end with a client id of 16 hex digits")]
    Id,
    #[error("the body is no list of clients, too long or too slow")]
    Body,
    #[error("too many without signature; the rest is found later")]
    TooMany,
    #[error("{0}")]
    Signature(#[from] secret::Refusal),
}

impl Listener {
    /// Serves until what is returned is dropped.
    pub(super) fn start(self, listener: TcpListener) -> SidePort {
        let this = Arc::new(self);
        SidePort::start(
            listener,
            "notifications",
            MOST_CONNECTIONS,
            move |request| {
                let this = Arc::clone(&this);
                async move { this.answer(request).await }
            },
        )
    }

    async fn answer<B: Body<Error: Into<Box<dyn Error + Send + Sync>>>>(
        &self,
        request: Request<B>,
    ) -> Response<Full<Bytes>> {
        let result = self.accept(request).await;
        let (status, text) = match &result {
            // Upstream's answer is empty, too.
            Ok(()) => (StatusCode::OK, String::new()),
            Err(wrong) => (wrong.status(), format!("{wrong}\n")),
        };
        if let Err(wrong) = result {
            self.metrics.notification_received("refused", 1);
            if let Wrong::Signature(refusal) = wrong
                && let Some(others) = self.refused.due(Instant::now())
            {
                tracing::warn!(
                    reason = %refusal,
                    others,
                    "refused a notification; give all servers the same secret, or accept unsigned ones"
                );
            }
        }
        let mut answer = Response::new(Full::new(text.into()));
        *answer.status_mut() = status;
        answer
    }

    async fn accept<B: Body<Error: Into<Box<dyn Error + Send + Sync>>>>(
        &self,
        request: Request<B>,
    ) -> Result<(), Wrong> {
        let path = request.uri().path();
        if path == call::PATH {
            return self.accept_call(request).await;
        }
        let id = path.strip_prefix("/client/").ok_or(Wrong::Path)?;
        if id.contains('/') {
            return Err(Wrong::Path);
        }
        let client: ClientId = id.parse().map_err(|_| Wrong::Id)?;
        if request.method() != Method::POST {
            return Err(Wrong::Method);
        }
        if self.secret.is_some() && !self.accept_unsigned {
            return Err(secret::Refusal::Unsigned.into());
        }
        self.take(&[(client, News::Messages)], false)
    }

    async fn accept_call<B>(&self, request: Request<B>) -> Result<(), Wrong>
    where
        B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        if request.method() != Method::POST {
            return Err(Wrong::Method);
        }
        let (head, body) = request.into_parts();
        let body = Limited::new(body, call::MOST_BYTES).collect();
        let body = timeout(BODY_LIMIT, body).await;
        let body = body
            .map_err(|_| Wrong::Body)?
            .map_err(|_| Wrong::Body)?
            .to_bytes();
        let mut signed = false;
        if let Some(secret) = &self.secret {
            let header = head.headers.get(secret::HEADER);
            let header = header.map(http::HeaderValue::as_bytes);
            if header.is_some() || !self.accept_unsigned {
                secret.check(self.clock.now(), header, &body)?;
                signed = true;
            }
        }
        let news = call::read(&body).ok_or(Wrong::Body)?;
        self.take(&news, signed)
    }

    fn take(&self, news: &[(ClientId, News)], signed: bool) -> Result<(), Wrong> {
        let now = Instant::now();
        let mut taken = 0;
        let mut woken = 0;
        for (client, news) in news {
            if !signed && self.unsigned.take(now).is_err() {
                break;
            }
            taken += 1;
            if *news == News::Client {
                self.cache.forget(*client);
            }
            woken += u64::from(self.streams.wake(*client));
        }
        self.metrics.notification_received("woken", woken);
        self.metrics
            .notification_received("no_stream", taken as u64 - woken);
        match taken == news.len() {
            true => Ok(()),
            false => Err(Wrong::TooMany),
        }
    }
}

impl Wrong {
    fn status(&self) -> StatusCode {
        match self {
            Self::Path => StatusCode::NOT_FOUND,
            // As upstream answers.
            Self::Method | Self::Id | Self::Body => StatusCode::BAD_REQUEST,
            Self::TooMany => StatusCode::SERVICE_UNAVAILABLE,
            Self::Signature(_) => StatusCode::FORBIDDEN,
        }
    }
}
