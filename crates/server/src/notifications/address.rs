//! Under which address other servers find this one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::config::split_listen;

/// What a server is called that others cannot notify, and need not: it has its store alone.
pub(super) const LOCAL: &str = "local";

/// The longest address that stores keep.
const MOST_BYTES: usize = fleethold_store::limits::MAX_STREAMING_TO_BYTES;

/// How long a name may take to be looked up.
const RESOLVE_LIMIT: Duration = Duration::from_secs(2);

/// Returns whether notifications can be sent there.
pub(super) fn is_reachable(address: &str) -> bool {
    matches!(split_listen(address), Ok((host, port)) if !host.is_empty() && port != 0)
}

/// Returns what a server with a listener is called: what it was told, or its
/// bound address, or the machine's name if it listens on all addresses.
pub(super) fn advertised(public: Option<&str>, bound: SocketAddr, host_name: &str) -> String {
    match public {
        Some(public) => public.to_owned(),
        None if bound.ip().is_unspecified() => format!("{host_name}:{}", bound.port()),
        None => bound.to_string(),
    }
}

/// Returns what a server is called that shares its store and cannot be
/// notified: a name for people that no other server has, and that nobody
/// takes for an address.
pub(super) fn unreachable(host_name: &str) -> String {
    let mut name = format!("{LOCAL} {host_name} {}", std::process::id());
    name.truncate(fleethold_store::limits::cut_bytes(&name, MOST_BYTES).len());
    name
}

/// Returns the name of this machine.
pub(super) fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

/// Returns why other machines may not reach an address, as far as this one can know.
pub(super) async fn doubt(address: &str) -> Option<String> {
    let Ok((host, _)) = split_listen(address) else {
        return Some("it is no address".to_owned());
    };
    if host.eq_ignore_ascii_case("localhost") {
        return Some("every machine calls itself so".to_owned());
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return match () {
            () if ip.is_unspecified() => Some("it is no machine's address".to_owned()),
            () if ip.is_loopback() => Some("only this machine reaches it".to_owned()),
            () => None,
        };
    }
    let resolved = tokio::time::timeout(RESOLVE_LIMIT, tokio::net::lookup_host((host, 0))).await;
    match resolved {
        Ok(Ok(mut addresses)) => match addresses.next() {
            Some(_) => None,
            None => Some("its name has no address".to_owned()),
        },
        Ok(Err(_)) => Some("its name is unknown, at least here".to_owned()),
        Err(_) => Some("its name was not looked up in time".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_is_called_by_an_address_that_others_can_use() {
        let named = |public, bound: &str| advertised(public, bound.parse().unwrap(), "here");
        assert_eq!(named(None, "[::]:8080"), "here:8080");
        assert_eq!(named(None, "0.0.0.0:8080"), "here:8080");
        assert_eq!(named(None, "192.0.2.1:8080"), "192.0.2.1:8080");
        assert_eq!(named(None, "[2001:db8::1]:80"), "[2001:db8::1]:80");
        assert_eq!(named(Some("a.example:1"), "[::]:8080"), "a.example:1");
        assert!(is_reachable(&named(None, "[::]:8080")));
        assert!(is_reachable("[2001:db8::1]:80"));
    }

    #[test]
    fn what_is_no_address_is_never_called() {
        for text in [LOCAL, "", ":80", "here:0", "here", "a b:1", "a/b:1"] {
            assert!(!is_reachable(text), "{text}");
        }
        let name = unreachable(&"long".repeat(100));
        assert!(!is_reachable(&name), "{name}");
        assert_eq!(name.len(), MOST_BYTES);
        assert!(unreachable(&host_name()).starts_with("local "));
    }

    #[tokio::test]
    async fn addresses_that_only_this_machine_knows_are_doubted() {
        for text in ["localhost:1", "127.0.0.1:1", "[::1]:1", "[::]:1", "a b"] {
            assert!(doubt(text).await.is_some(), "{text}");
        }
        for text in ["192.0.2.1:1", "[2001:db8::1]:1"] {
            assert_eq!(doubt(text).await, None, "{text}");
        }
        let unknown = doubt("no-such-host.invalid:1").await.unwrap();
        assert!(unknown.contains("name"), "{unknown}");
    }
}
