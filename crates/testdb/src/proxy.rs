//! A proxy between driver and database that counts round trips and cuts connections.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// Where a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The request never reaches the database.
    BeforeRequest,
    /// The database has answered, and the driver never hears of it.
    AfterAnswer,
}

/// Listens on loopback and carries bytes to a database; ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Connections of older generations end.
    generation: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Requests so far; one that is sent in pieces counts once.
    requests: u64,
    cut_at: Option<(u64, Cut)>,
    cut_on: Option<(Vec<u8>, Cut)>,
    hold_on: Option<(Vec<u8>, Hold)>,
    refusing: bool,
}

/// What the holder of a request and its connection tell each other.
#[derive(Clone, Debug, Default)]
struct Hold {
    arrived: Arc<Notify>,
    released: Arc<Notify>,
}

/// A request that waits in the proxy; dropping this lets it go on.
#[derive(Debug)]
pub struct Held(Hold);

impl Held {
    /// Waits until the request is there.
    pub async fn arrived(&self) {
        self.0.arrived.notified().await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.released.notify_one();
    }
}

impl Proxy {
    /// Starts a proxy to `target`, within a tokio runtime.
    ///
    /// # Errors
    /// If loopback has no free port.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::<Mutex<State>>::default();
        let (generation, ends) = watch::channel(0);
        let accepting = tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    if lock(&state).refusing {
                        continue;
                    }
                    let (state, mut ends) = (Arc::clone(&state), ends.clone());
                    ends.mark_unchanged();
                    tokio::spawn(async move {
                        tokio::select! {
                            // Whatever breaks, both ends see a closed connection.
                            _ = carry(client, target, &state) => {}
                            _ = ends.changed() => {}
                        }
                    });
                }
            }
        });
        Ok(Self {
            address,
            state,
            generation,
            accepting,
        })
    }

    /// Returns the port on loopback.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns how many requests were sent so far, over all connections: what a
    /// driver sends before it hears an answer is one request, and one round trip.
    pub fn round_trips(&self) -> u64 {
        self.state().requests
    }

    /// Cuts the connection of the `number`-th request from now on, counted from 1.
    pub fn cut_at(&self, number: u64, cut: Cut) {
        let mut state = self.state();
        state.cut_at = Some((state.requests + number, cut));
    }

    /// Cuts the connection of the next request that holds these bytes.
    pub fn cut_on(&self, bytes: impl Into<Vec<u8>>, cut: Cut) {
        self.state().cut_on = Some((bytes.into(), cut));
    }

    /// Keeps back the next request that holds these bytes.
    pub fn hold_on(&self, bytes: impl Into<Vec<u8>>) -> Held {
        let hold = Hold::default();
        self.state().hold_on = Some((bytes.into(), hold.clone()));
        Held(hold)
    }

    /// Returns whether a cut that was asked for is still to come; takes it back.
    pub fn take_back(&self) -> bool {
        let mut state = self.state();
        state.cut_at.take().is_some() | state.cut_on.take().is_some()
    }

    /// Cuts all connections, now.
    pub fn cut_all(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Cuts all connections and closes new ones at once, or takes them again.
    pub fn refuse(&self, refusing: bool) {
        self.state().refusing = refusing;
        if refusing {
            self.cut_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl State {
    /// Returns who holds a request with these bytes.
    fn hold(&mut self, bytes: &[u8]) -> Option<Hold> {
        let held = self
            .hold_on
            .take_if(|(wanted, _)| bytes.windows(wanted.len()).any(|part| part == &wanted[..]));
        held.map(|(_, hold)| hold)
    }

    /// Counts a request whose first bytes are these, if it is a new one.
    fn cut(&mut self, new: bool, bytes: &[u8]) -> Option<Cut> {
        self.requests += u64::from(new);
        let requests = self.requests;
        let counted = self.cut_at.take_if(|(number, _)| requests >= *number);
        let mut matched = || {
            self.cut_on
                .take_if(|(wanted, _)| bytes.windows(wanted.len()).any(|part| part == &wanted[..]))
        };
        counted
            .map(|(_, cut)| cut)
            .or_else(|| matched().map(|(_, cut)| cut))
    }
}

/// Carries bytes both ways until one end closes or the connection is cut.
async fn carry(mut client: TcpStream, target: SocketAddr, state: &Mutex<State>) -> io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut from_server) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut answered = true;
    let mut cut_after_answer = false;
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let bytes = &from_client[..read?];
                if bytes.is_empty() {
                    return Ok(());
                }
                let held = lock(state).hold(bytes);
                if let Some(hold) = held {
                    hold.arrived.notify_one();
                    hold.released.notified().await;
                }
                match lock(state).cut(answered, bytes) {
                    Some(Cut::BeforeRequest) => return Ok(()),
                    Some(Cut::AfterAnswer) => cut_after_answer = true,
                    None => {}
                }
                answered = false;
                server.write_all(bytes).await?;
            }
            read = server.read(&mut from_server) => {
                let bytes = &from_server[..read?];
                if bytes.is_empty() || cut_after_answer {
                    return Ok(());
                }
                answered = true;
                client.write_all(bytes).await?;
            }
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
