//! Where connections come in: addresses to listen on, or sockets that somebody
//! else listens on for us.

use std::io;
use std::net::{self, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpSocket};

use crate::full_address;

/// How many connections may wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 4096;

/// Sockets that exist before the server, so that connections wait while it is
/// exchanged for another.
#[derive(Clone, Debug, Default)]
pub struct Listeners {
    /// For agents, instead of the configured address.
    pub agents: Option<Arc<net::TcpListener>>,
    /// For the admin API, instead of the configured address.
    pub admin: Option<Arc<net::TcpListener>>,
}

/// How to get at a listener.
pub(crate) struct Wanted<'a> {
    pub(crate) address: &'a str,
    pub(crate) inherited: Option<&'a Arc<net::TcpListener>>,
    /// Whether another process may listen on the same address.
    pub(crate) shared: bool,
}

impl Wanted<'_> {
    /// Begins to listen.
    pub(crate) async fn listen(&self) -> io::Result<(SocketAddr, TcpListener)> {
        let listener = match self.inherited {
            Some(listener) => {
                let listener = listener.try_clone()?;
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)?
            }
            None => self.bind().await?,
        };
        Ok((listener.local_addr()?, listener))
    }

    async fn bind(&self) -> io::Result<TcpListener> {
        let mut error = None;
        for address in tokio::net::lookup_host(full_address(self.address)).await? {
            match bind(address, self.shared) {
                Ok(listener) => return Ok(listener),
                Err(reason) => error = Some(reason),
            }
        }
        Err(error.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
    }
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // As the standard library does it: what a process that ended has left
    // behind keeps nobody from listening.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(shared)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
