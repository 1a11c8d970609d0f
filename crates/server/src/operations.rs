//! The ports for those who watch a server: metrics and health (protocol
//! specification sections 5.4 and 5.5). They are plain HTTP, say nothing about
//! single clients, and change nothing but the file that readiness writes.

mod health;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use tokio::net::TcpListener;

pub(crate) use self::health::Health;
use crate::engine::Engine;
use crate::side_port::SidePort;

/// How many connections a port serves; more wait to be accepted.
const MOST_CONNECTIONS: usize = 64;

/// Which port a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// Metrics and health; other paths are not found.
    Stats,
    /// Health, and success for any other path, as upstream.
    HealthCheck,
}

/// Serves a port until what is returned is dropped.
pub(crate) fn serve(
    listener: TcpListener,
    port: Port,
    engine: Arc<Engine>,
    health: Arc<Health>,
) -> SidePort {
    let answers = Arc::new(Answers {
        port,
        engine,
        health,
    });
    SidePort::start(
        listener,
        "metrics or health",
        MOST_CONNECTIONS,
        move |request| {
            let answers = Arc::clone(&answers);
            async move { answers.answer(request.method(), request.uri().path()).await }
        },
    )
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
