//! Another server, and how it is told: in our form, or in upstream's if it
//! knows no other.

use std::time::Duration;

use std::sync::Arc;

use bytes::Bytes;
use fleethold_store::{ClientId, Clock};
use futures::StreamExt;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, timeout};

use super::call::{self, News};
use super::secret::{self, NotificationSecret};

/// How long a call may take, its connection included.
const CALL_LIMIT: Duration = Duration::from_millis(1500);

/// How long a connection may be idle; servers close it later.
const IDLE_LIMIT: Duration = Duration::from_secs(15);

/// How many calls in upstream's form, which is one for each client, go on at once.
const MOST_CALLS: usize = 8;

/// How much of an answer is read, so that its connection can be used again.
const MOST_ANSWER_BYTES: usize = 4096;

/// How long a server that does not know our form is not asked again: it may be
/// exchanged for one that does.
const ASK_AGAIN: Duration = Duration::from_secs(10 * 60);

/// What carries calls to all servers.
#[derive(Clone)]
pub(super) struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
    clock: Arc<dyn Clock>,
    secret: Option<NotificationSecret>,
}

/// Another server.
pub(super) struct Peer {
    address: String,
    caller: Caller,
    /// Until when it is told in upstream's form.
    upstream_until: Option<Instant>,
}

/// How much of some news a server was told.
pub(super) struct Told {
    pub(super) sent: usize,
    /// Why not all of it.
    pub(super) error: Option<String>,
}

impl Caller {
    pub(super) fn new(clock: Arc<dyn Clock>, secret: Option<NotificationSecret>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CALL_LIMIT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_max_idle_per_host(MOST_CALLS)
            .build(connector);
        Self {
            client,
            clock,
            secret,
        }
    }

    /// Posts a body; the error says in a few words why there is no answer.
    async fn post(
        &self,
        url: String,
        body: Vec<u8>,
        signature: Option<String>,
    ) -> Result<StatusCode, String> {
        let mut request = Request::builder().method(Method::POST).uri(url);
        if let Some(signature) = signature {
            request = request.header(secret::HEADER, signature);
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let exchange = async {
            let answer = self.client.request(request).await;
            let answer = answer.map_err(|error| crate::chain(&error))?;
            let status = answer.status();
            // Otherwise the connection would be closed; how long it is, is not our problem.
            let _rest = Limited::new(answer.into_body(), MOST_ANSWER_BYTES)
                .collect()
                .await;
            Ok(status)
        };
        match timeout(CALL_LIMIT, exchange).await {
            Ok(result) => result,
            Err(_) => Err("no answer in time".to_owned()),
        }
    }
}

impl Peer {
    pub(super) fn new(address: String, caller: Caller) -> Self {
        Self {
            address,
            caller,
            upstream_until: None,
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Tells it the news, at most once.
    pub(super) async fn tell(&mut self, news: &[(ClientId, News)]) -> Told {
        let now = Instant::now();
        if self.upstream_until.is_none_or(|until| until <= now) {
            match self.call(news).await {
                Ok(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) => {
                    self.upstream_until = Some(now + ASK_AGAIN);
                }
                result => {
                    let error = as_error(result);
                    return Told {
                        sent: if error.is_none() { news.len() } else { 0 },
                        error,
                    };
                }
            }
        }
        self.call_as_upstream(news).await
    }

    async fn call(&self, news: &[(ClientId, News)]) -> Result<StatusCode, String> {
        let body = call::write(news);
        let secret = self.caller.secret.as_ref();
        let signature = secret.map(|secret| secret.sign(self.caller.clock.now(), &body));
        let url = format!("http://{}{}", self.address, call::PATH);
        self.caller.post(url, body, signature).await
    }

    /// One call for each client; after the first that fails no further one begins.
    async fn call_as_upstream(&self, news: &[(ClientId, News)]) -> Told {
        let urls: Vec<_> = news
            .iter()
            .map(|(client, _)| format!("http://{}/client/{client}", self.address))
            .collect();
        let calls = urls
            .into_iter()
            .map(|url| self.caller.post(url, Vec::new(), None));
        let mut results = futures::stream::iter(calls).buffer_unordered(MOST_CALLS);
        let mut sent = 0;
        while let Some(result) = results.next().await {
            match as_error(result) {
                None => sent += 1,
                error => return Told { sent, error },
            }
        }
        Told { sent, error: None }
    }
}

fn as_error(result: Result<StatusCode, String>) -> Option<String> {
    match result {
        Ok(status) if status.is_success() => None,
        Ok(StatusCode::FORBIDDEN) => Some(
            "it refuses the signature; the servers need the same secret and the same time"
                .to_owned(),
        ),
        Ok(status) => Some(format!("it answers {status}")),
        Err(error) => Some(error),
    }
}
