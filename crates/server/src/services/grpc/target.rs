//! The gRPC targets that stock configurations name.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use http::Uri;

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A host name or address, which is looked up for every connection.
    Tcp { host: String, port: u16 },
    /// A Unix domain socket.
    Unix(PathBuf),
}

impl Target {
    /// Reads `host:port`, `dns:///host:port`, `unix:path` or `unix:///path`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const FORMS: &str = "write `host:port`, `dns:///host:port` or `unix:/path`";
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" => Err(format!("`{text}` has no path; {FORMS}")),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let address = text.strip_prefix("dns:///").unwrap_or(text);
        let parts = match address.strip_prefix('[') {
            Some(rest) => rest
                .split_once("]:")
                .filter(|(host, _)| host.parse::<Ipv6Addr>().is_ok()),
            None => address
                .rsplit_once(':')
                .filter(|(host, _)| !host.contains([':', '/'])),
        };
        parts
            .filter(|(host, _)| !host.is_empty())
            .and_then(|(host, port)| Some((host, port.parse().ok().filter(|port| *port != 0)?)))
            .map(|(host, port)| Self::Tcp {
                host: host.to_owned(),
                port,
            })
            .ok_or_else(|| format!("`{text}` is no target; {FORMS}"))
    }

    /// Returns the name that the service's certificate must have.
    pub(super) fn server_name(&self) -> &str {
        match self {
            Self::Tcp { host, .. } => host,
            Self::Unix(_) => "localhost",
        }
    }

    /// Returns what calls say about where they are going.
    pub(super) fn origin(&self, is_encrypted: bool) -> Result<Uri, String> {
        let scheme = if is_encrypted { "https" } else { "http" };
        let authority = match self {
            Self::Tcp { .. } => self.to_string(),
            Self::Unix(_) => self.server_name().to_owned(),
        };
        format!("{scheme}://{authority}")
            .parse()
            .map_err(|_| format!("`{self}` is no host and port"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_stock_configurations_are_understood() {
        for (text, display, origin) in [
            (
                "localhost:11111",
                "localhost:11111",
                "http://localhost:11111/",
            ),
            (
                "dns:///grr.example:1",
                "grr.example:1",
                "http://grr.example:1/",
            ),
            (
                "127.0.0.1:65535",
                "127.0.0.1:65535",
                "http://127.0.0.1:65535/",
            ),
            ("[::1]:80", "[::1]:80", "http://[::1]:80/"),
            ("dns:///[::1]:80", "[::1]:80", "http://[::1]:80/"),
            ("unix:/run/grr", "unix:/run/grr", "http://localhost/"),
            ("unix:///run/grr", "unix:/run/grr", "http://localhost/"),
            ("unix:grr.sock", "unix:grr.sock", "http://localhost/"),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!(target.to_string(), display, "{text}");
            assert_eq!(target.origin(false).unwrap().to_string(), origin, "{text}");
        }
    }

    #[test]
    fn other_targets_are_refused_with_the_forms_to_write() {
        for text in [
            "",
            "localhost",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            "localhost:http",
            ":11111",
            "::1",
            "::1:80",
            "[::1]",
            "[a/b]:1",
            "unix:",
            "unix://",
            "http://localhost:1",
            "xds:///grr:1",
            "dns://8.8.8.8/grr:1",
        ] {
            let problem = Target::parse(text).unwrap_err();
            assert!(problem.contains("write `host:port`"), "{text}: {problem}");
        }
        assert!(Target::parse("a host:1").unwrap().origin(false).is_err());
    }
}
