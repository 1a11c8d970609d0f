//! Sockets handed over by a service manager (`LISTEN_FDS`, as systemd does it):
//! they stay open while the server is exchanged, so no agent is refused.

use std::net::TcpListener;
use std::sync::Arc;

use fleethold_server::{Config, Listeners};
use listenfd::ListenFd;

use crate::output::Failure;

/// What the sockets are called, in the order that counts without names.
const NAMES: [&str; 2] = ["agents", "admin"];

const HINT: &str = "hand over one stream socket for agents and one for the admin interface, with \
                    `FileDescriptorName=agents` and `FileDescriptorName=admin`";

/// Takes the sockets that were handed to this process, if any were.
pub(crate) fn take(config: &mut Config, names: Option<&str>) -> Result<(), Failure> {
    let mut sockets = ListenFd::from_env();
    if sockets.len() == 0 {
        return Ok(());
    }
    let places = places(names, sockets.len()).map_err(wrong)?;
    let mut listeners = Listeners::default();
    for (index, place) in places.into_iter().enumerate() {
        let socket = sockets
            .take_tcp_listener(index)
            .ok()
            .flatten()
            .ok_or_else(|| {
                wrong(format!(
                    "socket {index} does not listen for TCP connections"
                ))
            })?;
        let socket: Arc<TcpListener> = Arc::new(socket);
        let (listener, is_used) = match place {
            0 => (&mut listeners.agents, config.agents.is_some()),
            _ => (&mut listeners.admin, config.admin.is_some()),
        };
        if !is_used {
            let problem = format!(
                "socket {index} is for `{}`, which the configuration does not offer",
                NAMES[place]
            );
            return Err(wrong(problem));
        }
        *listener = Some(socket);
    }
    config.listeners = listeners;
    Ok(())
}

fn wrong(problem: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("cannot use the sockets in LISTEN_FDS: {problem}")).hint(HINT)
}

/// Returns for each socket the index of its name.
fn places(names: Option<&str>, count: usize) -> Result<Vec<usize>, String> {
    let known = |name: &str| NAMES.iter().position(|known| *known == name);
    let names: Vec<_> = names
        .into_iter()
        .flat_map(|names| names.split(':'))
        .collect();
    let places: Vec<usize> = if names.iter().any(|name| known(name).is_some()) {
        names
            .into_iter()
            .map(|name| known(name).ok_or_else(|| format!("`{name}` is no name of a socket")))
            .collect::<Result<_, _>>()?
    } else {
        (0..count).collect()
    };
    let mut sorted = places.clone();
    sorted.dedup();
    if places.len() != count || count > NAMES.len() || sorted.len() != count {
        return Err(format!("there are {count}"));
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_told_apart_by_name_or_by_order() {
        assert_eq!(places(None, 1), Ok(vec![0]));
        assert_eq!(places(None, 2), Ok(vec![0, 1]));
        assert_eq!(places(Some("unknown:unknown"), 2), Ok(vec![0, 1]));
        assert_eq!(places(Some("admin"), 1), Ok(vec![1]));
        assert_eq!(places(Some("admin:agents"), 2), Ok(vec![1, 0]));
        for (names, count) in [
            (None, 3),
            (Some("agents:agents"), 2),
            (Some("agents:other"), 2),
            (Some("agents"), 2),
        ] {
            assert!(places(names, count).is_err(), "{names:?}");
        }
    }
}
