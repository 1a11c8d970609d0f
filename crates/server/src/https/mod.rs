//! The port for agents: HTTPS with polls, streams and files (protocol
//! specification section 2).
//!
//! One task per connection, one more per open stream. What strangers can make
//! the server hold is limited: connections, time without progress, and the
//! bytes of all requests together.

mod activity;
mod body;
mod connection;
mod files;
mod framing;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod identity;
mod inflate;
mod message;
mod percent;
mod proxy;
mod reply;
mod session;
mod streaming;
#[cfg(test)]
mod tests;
mod transport;
mod waiting;
mod xfcc;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::body::Budget;
use crate::config::{Frontend, IpNet, default_trusted_proxies};
use crate::contacts::Contacts;
use crate::limits::{Gate, Limits, Notice, Rate, Refused};
use crate::notifications::PRESENCE;

/// The most bytes of a poll or of a stream's record, decompressed.
const MOST_CONTACT_BYTES: usize = 20 * 1024 * 1024;

/// How long before its end a stream sends its last messages. No stream sends
/// for longer than other servers look for it here.
const DONE_SENDING_BEFORE_END: Duration = Duration::from_secs(30);

/// How long the handling of one contact may take.
const HANDLING_LIMIT: Duration = Duration::from_secs(5 * 60);

/// The first and the longest pause after the system refused a connection.
const ACCEPT_PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How the port for agents behaves.
pub(crate) struct Options {
    /// `None` if agents, or the proxy in front, connect without TLS.
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    /// How clients are recognized.
    pub(crate) frontend: Frontend,
    /// Whether connections may begin with a header of the PROXY protocol.
    pub(crate) proxy_protocol: bool,
    /// Who may say whom it connects for.
    pub(crate) trusted_proxies: Vec<IpNet>,
    /// Whether connections that are not accepted wait for the next server.
    pub(crate) inherited: bool,
    /// Whether agents may open streams; otherwise they can only poll.
    pub(crate) streaming: bool,
    /// Whether downloads need a certificate and the required label.
    pub(crate) authorize_files: bool,
    /// Bounds of a stream's life. It is drawn at random, so that after a
    /// restart agents do not come back all at once again and again.
    pub(crate) stream_lifetime: Range<Duration>,
    /// How long before its end an agent is asked to open its next stream.
    pub(crate) done_sending_before_end: Duration,
    /// How often a stream looks for messages of which nobody told it; `None`
    /// if nobody else can have stored some.
    pub(crate) store_look: Option<Duration>,
}

impl Options {
    pub(crate) fn new(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        Self {
            tls,
            frontend: Frontend::default(),
            proxy_protocol: false,
            trusted_proxies: default_trusted_proxies(),
            inherited: false,
            streaming: true,
            authorize_files: false,
            stream_lifetime: Duration::from_secs(8 * 60)..PRESENCE + DONE_SENDING_BEFORE_END,
            done_sending_before_end: DONE_SENDING_BEFORE_END,
            store_look: None,
        }
    }
}

impl Options {
    /// Returns whether a peer may say whom it connects for.
    fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_proxies
            .iter()
            .any(|network| network.contains(&peer))
    }

    /// Returns whether the connections of a peer are those of many agents.
    fn is_proxy(&self, peer: IpAddr) -> bool {
        (self.proxy_protocol || self.frontend.believes_headers()) && self.trusts(peer)
    }
}

/// What all connections share.
struct Shared {
    options: Options,
    acceptor: Option<TlsAcceptor>,
    contacts: Arc<Contacts>,
    budget: Budget,
    waiting: waiting::Waiting,
    /// How many handshakes may go on at once.
    handshakes: Semaphore,
    downloads: files::Downloads,
    /// Paces the log about peers that may not speak for others.
    untrusted: Notice,
    /// The same about requests that end in an error of ours.
    unserved: Notice,
    tasks: TaskTracker,
    phases: Phases,
}

impl Shared {
    fn gate(&self) -> &Gate {
        &self.contacts.engine.gate
    }

    fn limits(&self) -> &Limits {
        &self.gate().limits
    }

    fn refused(&self, reason: Refused) {
        self.gate().refusals.count(reason);
    }
}

/// The steps of a stop.
#[derive(Clone, Default)]
struct Phases {
    /// No new connections; streams ask their agents to leave.
    drain: CancellationToken,
    /// Streams end.
    end: CancellationToken,
    /// Everything ends at once.
    abort: CancellationToken,
}

/// Serves agents until it is stopped or dropped.
pub(crate) struct AgentServer {
    tasks: TaskTracker,
    phases: Phases,
    _abort_on_drop: DropGuard,
}

impl AgentServer {
    /// Begins to serve the connections of `listener`.
    pub(crate) fn start(listener: TcpListener, options: Options, contacts: Arc<Contacts>) -> Self {
        let tasks = TaskTracker::new();
        let phases = Phases::default();
        let handshakes = contacts.engine.gate.limits.handshakes;
        let shared = Arc::new(Shared {
            waiting: waiting::Waiting::new(contacts.engine.gate.limits.unfinished_requests),
            handshakes: Semaphore::new(handshakes.min(Semaphore::MAX_PERMITS)),
            acceptor: options.tls.clone().map(TlsAcceptor::from),
            untrusted: Notice::default(),
            unserved: Notice::default(),
            budget: Budget::new(Arc::clone(&contacts.engine.gate)),
            downloads: files::Downloads::default(),
            options,
            contacts,
            tasks: tasks.clone(),
            phases: phases.clone(),
        });
        tasks.spawn(accept(listener, shared));
        Self {
            tasks,
            _abort_on_drop: phases.abort.clone().drop_guard(),
            phases,
        }
    }

    /// Stops accepting, lets agents close their streams and finish their
    /// requests, and ends what is left after `limit`.
    pub(crate) async fn stop(self, limit: Duration) {
        self.tasks.close();
        self.phases.drain.cancel();
        if tokio::time::timeout(limit * 6 / 10, self.tasks.wait())
            .await
            .is_ok()
        {
            return;
        }
        // An agent takes the end of a stream as a reason to reconnect, too.
        self.phases.end.cancel();
        if tokio::time::timeout(limit * 3 / 10, self.tasks.wait())
            .await
            .is_ok()
        {
            return;
        }
        tracing::warn!(
            tasks = self.tasks.len(),
            "cut off agents that did not finish in time"
        );
        self.phases.abort.cancel();
        let _cut_off = tokio::time::timeout(limit / 10, self.tasks.wait()).await;
    }
}

/// Accepts connections until the server stops.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let limits = shared.limits();
    let door = Door {
        slots: Arc::new(Semaphore::new(
            limits.connections.min(Semaphore::MAX_PERMITS),
        )),
        rate: Rate::new(limits.connections_per_second),
        shared: Arc::clone(&shared),
    };
    let mut pause = ACCEPT_PAUSES.0;
    let accept_all = async {
        loop {
            match listener.accept().await {
                Ok((tcp, addr)) => {
                    pause = ACCEPT_PAUSES.0;
                    door.admit(tcp, addr);
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    // Mostly too many open files: connections that end give some back.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(ACCEPT_PAUSES.1);
                }
            }
        }
    };
    tokio::select! {
        () = accept_all => {}
        () = shared.phases.drain.cancelled() => {}
        () = shared.phases.abort.cancelled() => return,
    }
    if shared.options.inherited {
        return;
    }
    // Who waits already would be refused when the listener is closed.
    while let Some(Ok((tcp, addr))) = listener.accept().now_or_never() {
        door.admit(tcp, addr);
    }
}

/// Lets connections in.
struct Door {
    slots: Arc<Semaphore>,
    rate: Rate,
    shared: Arc<Shared>,
}

impl Door {
    fn admit(&self, tcp: TcpStream, addr: SocketAddr) {
        // What is too much is closed here and now: waiting connections would
        // keep others waiting, too.
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            self.shared.refused(Refused::Connections);
            return;
        };
        if self.rate.take(Instant::now()).is_err() {
            self.shared.refused(Refused::ConnectionRate);
            return;
        }
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let mut address = None;
        if !self.shared.options.is_proxy(addr.ip()) {
            address = self.shared.gate().addresses.enter(addr.ip());
            if address.is_none() {
                self.shared.refused(Refused::AddressConnections);
                return;
            }
        }
        let connection = connection::serve(tcp, addr, Arc::clone(&self.shared));
        self.shared.tasks.spawn(async move {
            let _places = (slot, address);
            connection.await;
        });
    }
}

/// Returns whether the next connection can be accepted at once.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}
