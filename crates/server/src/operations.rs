//! The ports for those who watch a server: metrics and health (protocol
//! specification sections 5.4 and 5.5). They are plain HTTP, say nothing about
//! single clients, and change nothing but the file that readiness writes.

mod health;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) use self::health::Health;
use crate::engine::Engine;

/// How many connections a port serves; more wait to be accepted.
const MOST_CONNECTIONS: usize = 64;

/// How long a peer may take for a request's header, the connection in between included.
const HEADER_LIMIT: Duration = Duration::from_secs(30);

/// How long a connection may last: who watches may connect again.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10 * 60);

/// The pause after a connection could not be accepted, for lack of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The most bytes of a request's header.
const HEADER_BYTES: usize = 16 * 1024;

/// Which port a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// Metrics and health; other paths are not found.
    Stats,
    /// Health, and success for any other path, as upstream.
    HealthCheck,
}

/// A port that is served until this is dropped.
pub(crate) struct OperationsServer {
    _stop: DropGuard,
}

impl OperationsServer {
    pub(crate) fn start(
        listener: TcpListener,
        port: Port,
        engine: Arc<Engine>,
        health: Arc<Health>,
    ) -> Self {
        let stop = CancellationToken::new();
        let answers = Arc::new(Answers {
            port,
            engine,
            health,
        });
        tokio::spawn(accept(listener, answers, stop.clone()));
        Self {
            _stop: stop.drop_guard(),
        }
    }
}

async fn accept(listener: TcpListener, answers: Arc<Answers>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let accept_all = async {
        loop {
            let place = Arc::clone(&places).acquire_owned().await;
            match listener.accept().await {
                Ok((tcp, addr)) => {
                    let answers = Arc::clone(&answers);
                    let stop = stop.clone();
                    tokio::spawn(async move {
                        let _place = place;
                        tokio::select! {
                            () = serve(tcp, addr, answers) => {}
                            () = stop.cancelled() => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection for metrics or health");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept_all => {}
        () = stop.cancelled() => {}
    }
}

async fn serve(tcp: TcpStream, addr: SocketAddr, answers: Arc<Answers>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answers = Arc::clone(&answers);
        async move { Ok::<_, Infallible>(answers.answer(request.method(), request.uri().path()).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(tcp), service);
    match tokio::time::timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => {
            tracing::debug!(%addr, %error, "a connection for metrics or health failed");
        }
    }
}

struct Answers {
    port: Port,
    engine: Arc<Engine>,
    health: Arc<Health>,
}

impl Answers {
    async fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        match path {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.health.ready().await {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            },
            "/healthz" => {
                let report = self.health.report().await;
                let status = match report.is_healthy() {
                    true => StatusCode::OK,
                    false => StatusCode::SERVICE_UNAVAILABLE,
                };
                answer(status, "application/json", report.to_json())
            }
            _ if self.port == Port::HealthCheck => answer(StatusCode::OK, "text/plain", ""),
            "/metrics" if matches!(*method, Method::GET | Method::HEAD) => {
                self.collect().await;
                answer(
                    StatusCode::OK,
                    prometheus::TEXT_FORMAT,
                    self.engine.metrics.encode(),
                )
            }
            "/metrics" => text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n"),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// Brings what is counted elsewhere into the metrics.
    async fn collect(&self) {
        let metrics = &self.engine.metrics;
        metrics.set_refused(self.engine.gate.refusals.all());
        match self.health.store_stats().await {
            Ok(stats) => metrics.set_store_stats(&stats),
            Err(reason) => tracing::debug!(reason, "the store says nothing of its load"),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    answer(status, "text/plain; charset=utf-8", body)
}

fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
