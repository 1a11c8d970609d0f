//! Small plain HTTP ports beside the one for agents: for those who watch the
//! server, and for other servers.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long a peer may take for a request's header, the connection in between included.
const HEADER_LIMIT: Duration = Duration::from_secs(30);

/// How long a connection may last, and then still take for its last answer: peers may connect again.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10 * 60);
const LAST_ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The pause after a connection could not be accepted, for lack of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The most bytes of a request's header.
const HEADER_BYTES: usize = 16 * 1024;

/// A port that is served until this is dropped.
pub(crate) struct SidePort {
    _stop: DropGuard,
}

impl SidePort {
    /// Serves at most so many connections at once; more wait to be accepted.
    pub(crate) fn start<A, F>(
        listener: TcpListener,
        what: &'static str,
        connections: usize,
        answer: A,
    ) -> Self
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = accept(listener, what, connections, answer, stopped.clone()) => {}
                () = stopped.cancelled() => {}
            }
        });
        Self {
            _stop: stop.drop_guard(),
        }
    }
}

async fn accept<A, F>(
    listener: TcpListener,
    what: &'static str,
    connections: usize,
    answer: A,
    stop: CancellationToken,
) where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(connections));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        match listener.accept().await {
            Ok((tcp, addr)) => {
                let answer = answer.clone();
                let stop = stop.clone();
                tokio::spawn(async move {
                    let _place = place;
                    tokio::select! {
                        () = serve(tcp, addr, what, answer) => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, what, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve<A, F>(tcp: TcpStream, addr: SocketAddr, what: &'static str, answer: A)
where
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    // Answers are short, and somebody waits for them.
    let _only_slower = tcp.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(tcp), service);
    let mut connection = pin!(connection);
    let result = match tokio::time::timeout(CONNECTION_LIMIT, connection.as_mut()).await {
        Ok(result) => result,
        Err(_) => {
            connection.as_mut().graceful_shutdown();
            let rest = tokio::time::timeout(LAST_ANSWER_LIMIT, connection).await;
            rest.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        tracing::debug!(%addr, %error, what, "a connection failed");
    }
}
