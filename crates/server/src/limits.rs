//! What agents and strangers may make the server do, all in one place, and how
//! often it said no.
//!
//! Most limits follow from one number, [the clients that are expected](Limits::for_clients);
//! `docs/limits.md` has the formula. A refusal is counted under its reason and
//! concerns only who caused it.

mod addresses;
mod agents;
mod notice;
mod rate;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(crate) use addresses::Addresses;
pub(crate) use agents::{Agents, Held};
pub(crate) use notice::Notice;
pub(crate) use rate::Rate;

/// The clients a server expects unless it is told otherwise.
pub const DEFAULT_EXPECTED_CLIENTS: u32 = 10_000;

/// The largest contact in bytes; an agent must be able to have one in flight.
const CONTACT_BYTES: usize = 20 * 1024 * 1024;

/// Limits of the agents' side of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more are closed before their handshake.
    pub connections: usize,
    /// The same from one address; those of proxies that say whom they connect for do not count.
    pub connections_per_address: usize,
    /// New connections per second, after a burst of ten seconds' worth.
    pub connections_per_second: u32,
    /// TLS handshakes at once; more connections are closed before theirs.
    pub handshakes: usize,
    /// New clients per second, after a burst of ten seconds' worth.
    pub enrolments_per_second: u32,
    /// Requests at once whose bodies have not arrived; of more, the oldest are given up.
    pub unfinished_requests: usize,
    /// Bytes of requests that were received and are not processed yet, of all agents together.
    pub bytes_in_flight: usize,
    /// The same of one agent; at least the largest contact.
    pub bytes_in_flight_per_agent: usize,
    /// Messages per second from one agent, after a burst of ten seconds' worth.
    pub messages_per_second_per_agent: u32,
    /// How long a TLS handshake, or the header of the PROXY protocol, may take.
    pub handshake_timeout: Duration,
    /// From the handshake to the end of the first request's header.
    pub header_timeout: Duration,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    /// How long a peer may take next to nothing of what is written to it.
    pub write_timeout: Duration,
    /// How long a body may arrive slower than `least_body_bytes_per_second`.
    pub slow_body_timeout: Duration,
    /// The least average speed of a body.
    pub least_body_bytes_per_second: usize,
}

impl Limits {
    /// Returns the limits for a fleet of this size.
    ///
    /// Each client may have two connections and some are spare; the whole
    /// fleet may connect within 20 seconds and enrol within 100; each client
    /// adds 32 KiB to the 256 MiB that may be in flight.
    pub const fn for_clients(expected_clients: u32) -> Self {
        let clients = expected_clients as usize;
        let connections = clients.saturating_mul(2).saturating_add(6_000);
        Self {
            connections,
            // A whole site may come from one address, but not the whole fleet.
            connections_per_address: connections / 2,
            connections_per_second: at_least(500, expected_clients / 20),
            handshakes: at_least(512, expected_clients / 10) as usize,
            enrolments_per_second: at_least(20, expected_clients / 100),
            unfinished_requests: at_least(1_000, expected_clients / 8) as usize,
            bytes_in_flight: clients
                .saturating_mul(32 * 1024)
                .saturating_add(256 * 1024 * 1024),
            bytes_in_flight_per_agent: 2 * CONTACT_BYTES,
            messages_per_second_per_agent: 200,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(45),
            slow_body_timeout: Duration::from_secs(45),
            least_body_bytes_per_second: 1024,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::for_clients(DEFAULT_EXPECTED_CLIENTS)
    }
}

const fn at_least(least: u32, number: u32) -> u32 {
    if number < least { least } else { number }
}

/// Why a connection or a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Connections,
    AddressConnections,
    ConnectionRate,
    Handshakes,
    HandshakeTime,
    HeaderTime,
    UntrustedPeer,
    ProxyHeader,
    Enrolments,
    Unfinished,
    Bytes,
    AgentBytes,
    AgentMessages,
    SlowBody,
    SlowReader,
}

impl Refused {
    /// All reasons, in the order of their declaration.
    const ALL: [Self; 15] = [
        Self::Connections,
        Self::AddressConnections,
        Self::ConnectionRate,
        Self::Handshakes,
        Self::HandshakeTime,
        Self::HeaderTime,
        Self::UntrustedPeer,
        Self::ProxyHeader,
        Self::Enrolments,
        Self::Unfinished,
        Self::Bytes,
        Self::AgentBytes,
        Self::AgentMessages,
        Self::SlowBody,
        Self::SlowReader,
    ];

    /// The value of the metric's label `reason`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::AddressConnections => "connections_of_address",
            Self::ConnectionRate => "connection_rate",
            Self::Handshakes => "handshakes",
            Self::HandshakeTime => "handshake_time",
            Self::HeaderTime => "header_time",
            Self::UntrustedPeer => "untrusted_peer",
            Self::ProxyHeader => "proxy_header",
            Self::Enrolments => "enrolments",
            Self::Unfinished => "unfinished_requests",
            Self::Bytes => "bytes_in_flight",
            Self::AgentBytes => "bytes_in_flight_of_agent",
            Self::AgentMessages => "messages_of_agent",
            Self::SlowBody => "slow_body",
            Self::SlowReader => "slow_reader",
        }
    }
}

/// How often something was refused, by reason.
#[derive(Debug, Default)]
pub(crate) struct Refusals([AtomicU64; Refused::ALL.len()]);

impl Refusals {
    pub(crate) fn count(&self, reason: Refused) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn of(&self, reason: Refused) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// Returns every reason with its count since the start.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        Refused::ALL.into_iter().map(Refused::name).zip(counts)
    }
}

/// The limits of a running server and what counts towards them.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) limits: Limits,
    pub(crate) refusals: Refusals,
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) enrolments: Rate,
    pub(crate) agents: Agents,
}

impl Gate {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            addresses: Arc::new(Addresses::new(limits.connections_per_address)),
            enrolments: Rate::new(limits.enrolments_per_second),
            agents: Agents::new(
                limits.messages_per_second_per_agent,
                limits.bytes_in_flight_per_agent.max(CONTACT_BYTES),
            ),
            refusals: Refusals::default(),
            limits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_counts_under_a_name_of_its_own() {
        let refusals = Refusals::default();
        for (index, reason) in Refused::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            refusals.count(reason);
        }
        refusals.count(Refused::SlowReader);
        let all: std::collections::BTreeMap<_, _> = refusals.all().collect();
        assert_eq!(all.len(), Refused::ALL.len());
        assert_eq!(all["slow_reader"], 2);
        assert_eq!(all["connections"], 1);
        assert_eq!(refusals.of(Refused::SlowReader), 2);
    }

    #[test]
    fn limits_grow_with_the_fleet_and_never_overflow() {
        let small = Limits::for_clients(1);
        let large = Limits::for_clients(100_000);
        assert_eq!(small.connections, 6_002);
        assert_eq!(small.enrolments_per_second, 20);
        assert_eq!(large.connections, 206_000);
        assert_eq!(large.connections_per_second, 5_000);
        assert_eq!(large.enrolments_per_second, 1_000);
        assert!(large.bytes_in_flight > small.bytes_in_flight);
        assert!(Limits::for_clients(u32::MAX).connections > large.connections);
    }
}
