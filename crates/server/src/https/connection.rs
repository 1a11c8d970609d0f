//! One connection of an agent: handshake, HTTP/1.1 or HTTP/2, and its end.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fleethold_store::ClientId;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::activity::{Activity, IdleLimits, STOPPING_GRACE, Verdict};
use super::identity::{self, Unidentified};
use super::proxy::{self, Start};
use super::reply::{TiedBody, answer};
use super::transport::{Transport, WriteLimit};
use super::{Shared, TcpStream};
use crate::limits::Refused;
use crate::tls;

/// The most bytes of a request's header, and the size to which HTTP/1.1 buffers grow.
const HEADER_BYTES: usize = 64 * 1024;

/// The most header lines of a request; downloads have one for each label.
const HEADER_LINES: usize = 512;

/// Flow control of HTTP/2: what an agent may send before it is read. An honest
/// agent opens few streams, and only one of them sends much.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 512 * 1024;
const MOST_HTTP2_STREAMS: u32 = 32;

/// When a silent peer is asked whether it still exists.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How long a connection that is told to end may take for it.
const CLOSING_LIMIT: Duration = Duration::from_secs(1);

/// How much an agent may still send that nobody wants.
const LINGER_BYTES: u64 = 256 * 1024;

/// What requests know of their connection.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) addr: SocketAddr,
    /// The client and its key, if it presented exactly one certificate to us.
    handshake: Option<(ClientId, Bytes)>,
    pub(super) activity: Arc<Activity>,
}

impl Connection {
    /// Returns the client that a request with these headers is from, and its key.
    pub(super) fn identify(&self, headers: &HeaderMap) -> Result<(ClientId, Bytes), Unidentified> {
        let frontend = &self.shared.options.frontend;
        identity::identify(frontend, self.handshake.as_ref(), headers)
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(tcp: TcpStream, addr: SocketAddr, shared: Arc<Shared>) {
    let abort = shared.phases.abort.clone();
    tokio::select! {
        result = Box::pin(handshake_and_serve(tcp, addr, shared)) => {
            if let Err(error) = result {
                tracing::debug!(%addr, %error, "a connection failed");
            }
        }
        () = abort.cancelled() => {}
    }
}

async fn handshake_and_serve(
    mut tcp: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
) -> io::Result<()> {
    // Acks and messages are small and urgent.
    tcp.set_nodelay(true)?;
    // A machine that was switched off leaves its connection behind.
    SockRef::from(&tcp).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    let limits = shared.limits();
    let trusted = shared.options.trusts(peer.ip());
    if shared.options.frontend.believes_headers() && !trusted {
        refuse_untrusted(&shared, peer, "name clients in headers");
        return Ok(());
    }
    let (addr, early) = match shared.options.proxy_protocol {
        true => match source(&mut tcp, peer, trusted, &shared).await? {
            Some(source) => source,
            None => return Ok(()),
        },
        false => (peer, Bytes::new()),
    };
    let mut _place = None;
    if addr != peer {
        _place = shared.gate().addresses.enter(addr.ip());
        if _place.is_none() {
            shared.refused(Refused::AddressConnections);
            return Ok(());
        }
    }
    let tcp = WriteLimit::new(tcp, early, Arc::clone(&shared.contacts.engine.gate));
    let idle_limits = IdleLimits {
        first: limits.header_timeout,
        between: limits.idle_timeout,
    };
    let connection = |handshake, shared| {
        Arc::new(Connection {
            shared,
            addr,
            handshake,
            activity: Arc::new(Activity::new(idle_limits)),
        })
    };
    let Some(acceptor) = &shared.acceptor else {
        return Box::pin(serve_http1(tcp, connection(None, shared))).await;
    };
    let Ok(permit) = shared.handshakes.try_acquire() else {
        shared.refused(Refused::Handshakes);
        return Ok(());
    };
    // Boxed: a handshake needs much more than the connection that follows.
    let handshake = Box::pin(acceptor.accept(tcp));
    let tls = tokio::select! {
        tls = tokio::time::timeout(limits.handshake_timeout, handshake) => match tls {
            Ok(tls) => tls?,
            Err(_) => {
                shared.refused(Refused::HandshakeTime);
                return Err(too_slow("the handshake took too long"));
            }
        },
        () = too_late(&shared) => return Ok(()),
    };
    drop(permit);
    let (_, session) = tls.get_ref();
    let connection = connection(tls::peer_identity(session), shared);
    match session.alpn_protocol() {
        Some(b"h2") => Box::pin(serve_http2(tls, connection)).await,
        _ => Box::pin(serve_http1(tls, connection)).await,
    }
}

/// Returns where a connection comes from, by its PROXY header if it has one,
/// and what was read behind that; `None` if it must not say so.
async fn source(
    tcp: &mut TcpStream,
    peer: SocketAddr,
    trusted: bool,
    shared: &Shared,
) -> io::Result<Option<(SocketAddr, Bytes)>> {
    let start = tokio::select! {
        start = tokio::time::timeout(shared.limits().handshake_timeout, proxy::read_start(tcp)) => start,
        () = too_late(shared) => return Ok(None),
    };
    let start = start.map_err(|_| {
        shared.refused(Refused::HandshakeTime);
        too_slow("the PROXY header, or what stands there instead, took too long")
    })?;
    let (start, rest) = start.map_err(|error| {
        shared.refused(Refused::ProxyHeader);
        io::Error::other(error)
    })?;
    let addr = match start {
        Start::Direct => peer,
        _ if !trusted => {
            refuse_untrusted(shared, peer, "use the PROXY protocol");
            return Ok(None);
        }
        Start::Local => peer,
        Start::From(addr) => addr,
    };
    Ok(Some((addr, rest)))
}

/// Notes that a peer claimed what only proxies may.
fn refuse_untrusted(shared: &Shared, peer: SocketAddr, what: &str) {
    shared.refused(Refused::UntrustedPeer);
    if let Some(more) = shared.untrusted.due(Instant::now()) {
        tracing::warn!(
            %peer,
            more,
            "closed a connection: this peer may not {what}; if it is your proxy, allow it with --trusted-proxy"
        );
    }
}

/// Returns when it is too late for a connection to begin: it was accepted, so
/// while the server stops it is still served if it is quick.
async fn too_late(shared: &Shared) {
    shared.phases.drain.cancelled().await;
    tokio::time::sleep(STOPPING_GRACE).await;
}

fn too_slow(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

async fn serve_http1<T: Transport>(stream: T, connection: Arc<Connection>) -> io::Result<()> {
    let mut http = http1::Builder::new()
        .max_buf_size(HEADER_BYTES)
        .max_headers(HEADER_LINES)
        // Time limits are kept by `drive`.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service(Arc::clone(&connection)));
    if !drive(&mut http, &connection).await? {
        return Ok(());
    }
    let mut stream = http.into_parts().io.into_inner();
    // The answer to a body that was not read would be lost if the rest of the
    // body met a closed socket.
    let _may_fail = tokio::time::timeout(CLOSING_LIMIT, async {
        stream.shutdown().await?;
        let tcp = stream.tcp();
        tokio::io::copy(&mut tcp.take(LINGER_BYTES), &mut tokio::io::sink()).await
    })
    .await;
    Ok(())
}

async fn serve_http2<T: Transport>(stream: T, connection: Arc<Connection>) -> io::Result<()> {
    let executor = Executor(Arc::clone(&connection.shared));
    let mut http = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MOST_HTTP2_STREAMS)
        .max_header_list_size(u32::try_from(HEADER_BYTES).expect("fits"))
        .max_send_buf_size(HEADER_BYTES)
        .keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(20))
        .serve_connection(TokioIo::new(stream), service(Arc::clone(&connection)));
    drive(&mut http, &connection).await?;
    Ok(())
}

type AnswerFuture = Pin<Box<dyn Future<Output = Result<Response<TiedBody>, Infallible>> + Send>>;

/// Boxes the handling, so that an idle connection keeps no room for it.
fn service(
    connection: Arc<Connection>,
) -> impl hyper::service::HttpService<
    Incoming,
    ResBody = TiedBody,
    Error = Infallible,
    Future = AnswerFuture,
> + Unpin {
    service_fn(move |request: Request<Incoming>| -> AnswerFuture {
        Box::pin(answer(Arc::clone(&connection), request))
    })
}

/// An HTTP connection of either version.
trait Http {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>>;
    /// Ends the connection after the requests it is serving.
    fn finish(&mut self);
}

impl<T, S> Http for http1::Connection<TokioIo<T>, S>
where
    T: Transport,
    S: hyper::service::HttpService<
            Incoming,
            ResBody = TiedBody,
            Error = Infallible,
            Future = AnswerFuture,
        > + Unpin,
{
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.poll_without_shutdown(context)
    }

    fn finish(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}

impl<T, S> Http for http2::Connection<TokioIo<T>, S, Executor>
where
    T: Transport,
    S: hyper::service::HttpService<
            Incoming,
            ResBody = TiedBody,
            Error = Infallible,
            Future = AnswerFuture,
        > + Unpin,
{
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        Pin::new(self).poll(context)
    }

    fn finish(&mut self) {
        Pin::new(self).graceful_shutdown();
    }
}

/// Runs a connection to its end, or until it has idled too long; returns
/// whether it ended by itself.
async fn drive(http: &mut impl Http, connection: &Connection) -> io::Result<bool> {
    let drain = &connection.shared.phases.drain;
    let mut stopping = false;
    let mut finishing = false;
    let mut closing: Option<Instant> = None;
    loop {
        let now = Instant::now();
        if stopping && !finishing && connection.activity.has_served() {
            finishing = true;
            http.finish();
        }
        let look = match (connection.activity.verdict(now, stopping), closing) {
            (Verdict::Stalled, _) => {
                connection.shared.refused(Refused::SlowReader);
                tracing::debug!(addr = %connection.addr, "closed a connection that makes no progress");
                return Ok(false);
            }
            (Verdict::Idle, None) => {
                if !connection.activity.has_served() && !stopping {
                    connection.shared.refused(Refused::HeaderTime);
                }
                http.finish();
                *closing.insert(now + CLOSING_LIMIT)
            }
            (Verdict::Idle, Some(end)) if end <= now => return Ok(false),
            (Verdict::Idle, Some(end)) => end,
            (Verdict::Fine(look), _) => {
                // A request may have arrived just before the end.
                closing = None;
                look
            }
        };
        tokio::select! {
            result = poll_fn(|context| http.poll(context)) => {
                return match result {
                    Ok(()) => Ok(true),
                    Err(error) => Err(io::Error::other(error)),
                };
            }
            () = tokio::time::sleep_until(look) => {}
            () = drain.cancelled(), if !stopping => {
                stopping = true;
            }
        }
    }
}

/// Runs the requests of an HTTP/2 connection as tasks that a stop waits for.
#[derive(Clone)]
struct Executor(Arc<Shared>);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let abort = self.0.phases.abort.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                _ = future => {}
                () = abort.cancelled() => {}
            }
        });
    }
}
