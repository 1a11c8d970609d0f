//! The agents' side on the command line: proxies in front, and limits.

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use fleethold_server::Config;
use fleethold_server::config::{Frontend, IpNet, XfccElement};
use fleethold_server::limits::{DEFAULT_EXPECTED_CLIENTS, Limits};

/// Files and connections that are open besides those of agents.
const OTHER_FILES: u64 = 256;

#[derive(Args, Clone, Debug)]
pub(crate) struct AgentArgs {
    /// A network whose peers may say whom they connect for, by headers or the PROXY protocol; may be given several times [default: loopback and private networks]
    #[arg(long = "trusted-proxy", value_name = "ADDRESS[/BITS]", value_parser = network)]
    trusted_proxies: Vec<IpNet>,
    /// The element of X-Forwarded-Client-Cert that counts: first, if the proxy replaces the header; last, if it appends
    #[arg(long, value_name = "WHICH", default_value = "first")]
    xfcc_element: Which,
    /// Listen also where another server does, so that it can be stopped once this one is ready
    #[arg(long)]
    reuse_port: bool,
    /// How many clients to expect; the limits below follow from it
    #[arg(long, value_name = "N", default_value_t = DEFAULT_EXPECTED_CLIENTS)]
    #[arg(help_heading = LIMITS, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    expected_clients: u32,
    /// Connections of agents at once
    #[arg(long, value_name = "N", help_heading = LIMITS, value_parser = count)]
    max_connections: Option<u32>,
    /// Connections of one address at once [default: half of --max-connections]
    #[arg(long, value_name = "N", help_heading = LIMITS, value_parser = count)]
    max_connections_per_address: Option<u32>,
    /// New connections per second
    #[arg(long, value_name = "N", help_heading = LIMITS, value_parser = count)]
    max_connections_per_second: Option<u32>,
    /// TLS handshakes at once
    #[arg(long, value_name = "N", help_heading = LIMITS, value_parser = count)]
    max_handshakes: Option<u32>,
    /// New clients per second
    #[arg(long, value_name = "N", help_heading = LIMITS, value_parser = count)]
    max_enrolments_per_second: Option<u32>,
    /// Requests at once whose bodies have not arrived
    #[arg(long, value_name = "N", help_heading = LIMITS, value_parser = count)]
    max_unfinished_requests: Option<u32>,
    /// MiB that all agents together may have in flight
    #[arg(long, value_name = "MIB", help_heading = LIMITS, value_parser = count)]
    max_mib_in_flight: Option<u32>,
    /// MiB that one agent may have in flight, at least 20
    #[arg(long, value_name = "MIB", help_heading = LIMITS)]
    #[arg(value_parser = clap::value_parser!(u32).range(20..=4096))]
    max_agent_mib_in_flight: Option<u32>,
    /// Messages per second from one agent
    #[arg(long, value_name = "N", help_heading = LIMITS, value_parser = count)]
    max_agent_messages_per_second: Option<u32>,
    /// How long a handshake may take
    #[arg(long, value_name = "SECONDS", help_heading = LIMITS, value_parser = seconds)]
    handshake_timeout: Option<Duration>,
    /// How long the first request of a connection may take to begin
    #[arg(long, value_name = "SECONDS", help_heading = LIMITS, value_parser = seconds)]
    header_timeout: Option<Duration>,
    /// How long a connection may serve no request
    #[arg(long, value_name = "SECONDS", help_heading = LIMITS, value_parser = seconds)]
    idle_timeout: Option<Duration>,
    /// How long an agent may take next to nothing of its answer
    #[arg(long, value_name = "SECONDS", help_heading = LIMITS, value_parser = seconds)]
    write_timeout: Option<Duration>,
    /// How long a request may arrive too slowly
    #[arg(long, value_name = "SECONDS", help_heading = LIMITS, value_parser = seconds)]
    slow_body_timeout: Option<Duration>,
    /// Below this a request is too slow
    #[arg(long, value_name = "BYTES", help_heading = LIMITS, value_parser = count)]
    least_body_bytes_per_second: Option<u32>,
}

const LIMITS: &str = "Limits of the agents' side (docs/limits.md)";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    First,
    Last,
}

impl AgentArgs {
    /// Completes a configuration.
    pub(crate) fn apply(&self, config: &mut Config) {
        config.limits = self.limits();
        config.reuse_port = self.reuse_port;
        let Some(agents) = &mut config.agents else {
            return;
        };
        if !self.trusted_proxies.is_empty() {
            agents.trusted_proxies.clone_from(&self.trusted_proxies);
        }
        if let Frontend::Xfcc { element, .. } = &mut agents.frontend {
            *element = match self.xfcc_element {
                Which::First => XfccElement::First,
                Which::Last => XfccElement::Last,
            };
        }
    }

    fn limits(&self) -> Limits {
        fn set<T>(limit: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *limit = value;
            }
        }
        let bytes = |mib: Option<u32>| mib.map(|mib| as_usize(mib).saturating_mul(1024 * 1024));
        let mut limits = Limits::for_clients(self.expected_clients);
        set(&mut limits.connections, self.max_connections.map(as_usize));
        limits.connections_per_address = self
            .max_connections_per_address
            .map_or(limits.connections.div_ceil(2), as_usize);
        set(
            &mut limits.connections_per_second,
            self.max_connections_per_second,
        );
        set(&mut limits.handshakes, self.max_handshakes.map(as_usize));
        set(
            &mut limits.enrolments_per_second,
            self.max_enrolments_per_second,
        );
        set(
            &mut limits.unfinished_requests,
            self.max_unfinished_requests.map(as_usize),
        );
        set(&mut limits.bytes_in_flight, bytes(self.max_mib_in_flight));
        set(
            &mut limits.bytes_in_flight_per_agent,
            bytes(self.max_agent_mib_in_flight),
        );
        set(
            &mut limits.messages_per_second_per_agent,
            self.max_agent_messages_per_second,
        );
        set(&mut limits.handshake_timeout, self.handshake_timeout);
        set(&mut limits.header_timeout, self.header_timeout);
        set(&mut limits.idle_timeout, self.idle_timeout);
        set(&mut limits.write_timeout, self.write_timeout);
        set(&mut limits.slow_body_timeout, self.slow_body_timeout);
        set(
            &mut limits.least_body_bytes_per_second,
            self.least_body_bytes_per_second.map(as_usize),
        );
        limits
    }
}

/// Asks the system for enough open files, and lowers the number of connections
/// to what it grants: without a file to spare, nothing works any more.
pub(crate) fn allow_open_files(limits: &mut Limits) {
    let wanted = u64::try_from(limits.connections).unwrap_or(u64::MAX);
    let wanted = wanted.saturating_add(OTHER_FILES);
    let granted = match rlimit::increase_nofile_limit(wanted) {
        Ok(granted) => granted,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            return;
        }
    };
    if granted < wanted {
        let left = granted.saturating_sub(OTHER_FILES).max(granted / 2);
        limits.connections = usize::try_from(left).unwrap_or(usize::MAX);
        tracing::warn!(
            wanted,
            granted,
            connections = limits.connections,
            "the system allows too few open files and thus fewer connections; raise `LimitNOFILE` or `ulimit -n`"
        );
    }
}

fn as_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn count(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("write a whole number above 0".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err("write whole seconds, from 1 to 3600".to_owned()),
    }
}

/// Reads a network, or one address.
fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(address).ok_or_else(|| {
        "write an address as in 192.0.2.1, or a network as in 192.0.2.0/24".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        agents: AgentArgs,
    }

    fn limits(line: &str) -> Limits {
        let words = std::iter::once("serve").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
        line.agents.limits()
    }

    #[test]
    fn limits_follow_from_the_fleet_and_every_one_can_be_set() {
        assert_eq!(limits(""), Limits::default());
        assert_eq!(
            limits("--expected-clients 100000"),
            Limits::for_clients(100_000)
        );
        let set = limits(
            "--max-connections 1 --max-connections-per-second 2 --max-handshakes 3 \
             --max-enrolments-per-second 4 --max-mib-in-flight 5 --max-agent-mib-in-flight 20 \
             --max-agent-messages-per-second 7 --handshake-timeout 8 --header-timeout 9 \
             --idle-timeout 10 --write-timeout 11 --slow-body-timeout 12 \
             --least-body-bytes-per-second 13 --max-unfinished-requests 14 \
             --max-connections-per-address 15",
        );
        let seconds = Duration::from_secs;
        let expected = Limits {
            connections: 1,
            connections_per_second: 2,
            handshakes: 3,
            enrolments_per_second: 4,
            bytes_in_flight: 5 << 20,
            bytes_in_flight_per_agent: 20 << 20,
            messages_per_second_per_agent: 7,
            handshake_timeout: seconds(8),
            header_timeout: seconds(9),
            idle_timeout: seconds(10),
            write_timeout: seconds(11),
            slow_body_timeout: seconds(12),
            least_body_bytes_per_second: 13,
            unfinished_requests: 14,
            connections_per_address: 15,
        };
        assert_eq!(set, expected);
    }

    #[test]
    fn limits_that_make_no_sense_are_refused() {
        for line in [
            "--max-connections 0",
            "--max-connections -1",
            "--expected-clients 0",
            "--max-agent-mib-in-flight 19",
            "--header-timeout 0",
            "--header-timeout 1h",
            "--trusted-proxy here",
            "--trusted-proxy 10.0.0.0/33",
            "--xfcc-element middle",
        ] {
            let words = std::iter::once("serve").chain(line.split(' '));
            assert!(Line::try_parse_from(words).is_err(), "{line}");
        }
    }

    #[test]
    fn trusted_proxies_are_networks_or_addresses() {
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(network(text).unwrap().to_string(), expected);
        }
    }
}
