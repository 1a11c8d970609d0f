//! How a client is recognized: by its TLS certificate, or by what a proxy in
//! front says of it.

use std::fmt;
use std::str::FromStr;

use fleethold_proto::fleetspeak::components::frontend_config::FrontendMode;
use http::HeaderName;
use ipnet::IpNet;

/// Where the certificate of a client comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Frontend {
    /// The TLS handshake.
    #[default]
    MutualTls,
    /// A header that a proxy, or the agent itself, sets.
    Header {
        /// Whether the proxy connects with TLS.
        tls: bool,
        /// The header with the percent-encoded PEM text.
        certificate: HeaderName,
        /// The header with the certificate's checksum, if it has to be there.
        checksum: Option<HeaderName>,
    },
    /// The header `X-Forwarded-Client-Cert` of a proxy that connects without TLS.
    Xfcc {
        /// The name of the header.
        header: HeaderName,
        /// Whose word counts.
        element: XfccElement,
    },
}

/// Which element of `X-Forwarded-Client-Cert` counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XfccElement {
    /// The first one, as upstream does it: right for proxies that replace the header.
    #[default]
    First,
    /// The last one: right for proxies that append to it.
    Last,
}

impl Frontend {
    /// Returns whether connections begin with a TLS handshake.
    pub fn has_tls(&self) -> bool {
        match self {
            Self::MutualTls => true,
            Self::Header { tls, .. } => *tls,
            Self::Xfcc { .. } => false,
        }
    }

    /// Returns whether it is believed what a header says.
    pub fn believes_headers(&self) -> bool {
        *self != Self::MutualTls
    }

    /// Reads upstream's mode; the error is the field, its problem and what to write.
    pub(super) fn from_upstream(
        mode: Option<&FrontendMode>,
    ) -> Result<Self, (String, String, String)> {
        let (field, tls, certificate, checksum) = match mode {
            None | Some(FrontendMode::MtlsConfig(_)) => return Ok(Self::MutualTls),
            Some(FrontendMode::HttpsHeaderConfig(mode)) => (
                "https_header_config",
                true,
                &mode.client_certificate_header,
                None,
            ),
            Some(FrontendMode::HttpsHeaderChecksumConfig(mode)) => (
                "https_header_checksum_config",
                true,
                &mode.client_certificate_header,
                Some(&mode.client_certificate_checksum_header),
            ),
            Some(FrontendMode::CleartextHeaderConfig(mode)) => (
                "cleartext_header_config",
                false,
                &mode.client_certificate_header,
                None,
            ),
            Some(FrontendMode::CleartextHeaderChecksumConfig(mode)) => (
                "cleartext_header_checksum_config",
                false,
                &mode.client_certificate_header,
                Some(&mode.client_certificate_checksum_header),
            ),
            Some(FrontendMode::CleartextXfccConfig(mode)) => {
                let header = &mode.client_certificate_header;
                return Ok(Self::Xfcc {
                    header: header_name("cleartext_xfcc_config", CERTIFICATE, header)?,
                    element: XfccElement::First,
                });
            }
        };
        Ok(Self::Header {
            tls,
            certificate: header_name(field, CERTIFICATE, certificate)?,
            checksum: checksum
                .map(|name| header_name(field, CHECKSUM, name))
                .transpose()?,
        })
    }
}

const CERTIFICATE: &str = "client_certificate_header";
const CHECKSUM: &str = "client_certificate_checksum_header";

fn header_name(
    mode: &str,
    field: &str,
    text: &str,
) -> Result<HeaderName, (String, String, String)> {
    HeaderName::from_str(text).map_err(|_| {
        let problem = match text {
            "" => "is missing".to_owned(),
            _ => format!("`{text}` is not the name of a header"),
        };
        let example = match field {
            CHECKSUM => "x-client-cert-hash",
            _ => "x-client-cert",
        };
        (
            format!("https_config.frontend_config.{mode}.{field}"),
            problem,
            format!("write the header that your proxy sets, as in `{field}: \"{example}\"`"),
        )
    })
}

/// The peers whose headers are believed unless others are named: this machine
/// and private networks.
pub fn default_trusted_proxies() -> Vec<IpNet> {
    [
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "::1/128",
        "fc00::/7",
    ]
    .map(|network| network.parse().expect("a network"))
    .to_vec()
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MutualTls => "mutual TLS",
            Self::Header { tls: true, .. } => "TLS, certificates in headers",
            Self::Header { tls: false, .. } => "cleartext, certificates in headers",
            Self::Xfcc { .. } => "cleartext, certificates in X-Forwarded-Client-Cert",
        })
    }
}
