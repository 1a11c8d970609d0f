//! What a server needs to know before it starts, and how upstream's configuration files say it.
//!
//! [`Config`] is plain data: programs may fill it in themselves. [`Config::from_upstream`] reads the two text files of
//! the stock server, unchanged, and refuses what would make this server behave differently from what they ask for.

mod error;
mod frontend;
mod notifications;
mod services;
mod syntax;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use fleethold_proto::fleetspeak::components;
use fleethold_proto::fleetspeak::server::{ServerConfig, ServiceConfig};
use fleethold_proto::text;

pub use error::ConfigError;
pub use frontend::{Frontend, XfccElement, default_trusted_proxies};
pub use ipnet::IpNet;
pub use notifications::NotificationConfig;

use crate::admin::AccessList;
use crate::limits::Limits;
use crate::listen::Listeners;
use crate::tls::{self, TlsError};

/// The largest request to the admin interface in bytes, the same as upstream's.
pub const MAX_ADMIN_REQUEST_BYTES: usize = 4 * 1024 * 1024;

/// How often broadcasts are read again unless a configuration says otherwise.
pub const DEFAULT_BROADCAST_POLL: Duration = Duration::from_secs(60);

/// The shortest time between two reads of the broadcasts.
pub const MIN_BROADCAST_POLL: Duration = Duration::from_secs(1);

/// How often a stream looks for messages of which no hint came, unless a configuration says otherwise.
pub const DEFAULT_STREAM_LOOK: Duration = Duration::from_secs(60);

/// How long a stop waits for open streams and calls unless a configuration says otherwise.
pub const DEFAULT_STOP_LIMIT: Duration = Duration::from_secs(8);

/// What a server serves, to whom and where.
///
/// The default serves nobody.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where and how agents connect; `None` serves no agents.
    pub agents: Option<AgentsConfig>,
    /// Where the admin interface listens; `None` offers none.
    pub admin: Option<AdminConfig>,
    /// Who may use the admin interface.
    pub admin_security: AdminSecurity,
    /// Where metrics are, as in [`AgentsConfig::listen`]; `None` offers none.
    pub stats_listen: Option<String>,
    /// Where health checks are answered, as in [`AgentsConfig::listen`].
    pub health_check_listen: Option<String>,
    /// How other servers on the same store are told of news, and tell this one.
    pub notifications: NotificationConfig,
    /// A label every agent has to carry, if any.
    pub required_label: Option<String>,
    /// The services of this server, each name once.
    pub services: Vec<ServiceConfig>,
    /// How often broadcasts are read again, at least [`MIN_BROADCAST_POLL`].
    pub broadcast_poll: Duration,
    /// How often an open stream looks for messages that another process has stored without telling this one; zero
    /// for never. A store that no other process uses is not asked.
    pub stream_look: Duration,
    /// How long a stop waits for open streams and calls.
    pub stop_limit: Duration,
    /// What agents and strangers may make the server do.
    pub limits: Limits,
    /// Whether metrics tell clients with different labels and agents of different versions apart, as upstream's do.
    pub metrics_by_client_labels: bool,
    /// Sockets to use instead of the addresses.
    pub listeners: Listeners,
    /// Whether other processes may listen on the same addresses, as a successor does.
    pub reuse_port: bool,
    /// What the configuration asks for and this server leaves out, one sentence each, for the log.
    pub warnings: Vec<String>,
}

/// Where and how agents connect.
#[derive(Clone)]
pub struct AgentsConfig {
    /// Where to listen: `host:port`, `:port`, `ip:port` or `[v6]:port`; port 0 lets the system choose.
    pub listen: String,
    /// The server's certificate in PEM, the leaf first, then its chain; not used without TLS.
    pub certificates_pem: String,
    /// The key of the leaf in PEM: SEC1, PKCS#1 or PKCS#8.
    pub key_pem: String,
    /// Whether agents may keep a stream open; otherwise they can only poll.
    pub streaming: bool,
    /// Whether a file download needs the label that contacts need.
    pub authorize_files: bool,
    /// How clients are recognized.
    pub frontend: Frontend,
    /// Whether connections may begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Who may say whom it connects for, by headers or the PROXY protocol.
    pub trusted_proxies: Vec<IpNet>,
}

/// Where the admin interface listens.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where to listen, as in [`AgentsConfig::listen`].
    pub listen: String,
}

/// Who may use the admin interface, and how they are recognized.
///
/// The default lets everybody use it, which a server accepts on loopback only.
#[derive(Clone, Default)]
pub struct AdminSecurity {
    /// Certificates and key in PEM, as in [`AgentsConfig`]; `None` serves without TLS.
    pub certificate_and_key_pem: Option<(String, String)>,
    /// Who may call what; `None` lets everybody call everything.
    pub access: Option<AccessList>,
    /// Whether an interface that others can reach may do without TLS or access list.
    pub insecure: bool,
}

/// A configuration file that was read: its text, and its path for messages.
#[derive(Clone, Copy)]
pub struct ConfigText<'a> {
    /// Where the text comes from.
    pub path: &'a Path,
    /// The text in protobuf text format.
    pub text: &'a str,
}

/// What upstream's files say.
#[derive(Clone)]
pub struct Upstream {
    /// The server they describe.
    pub config: Config,
    /// The MySQL database they name, with its password; the caller opens the store.
    pub mysql_data_source_name: Option<String>,
}

impl Config {
    /// Reads upstream's components file and, if there is one, its services file.
    ///
    /// # Errors
    ///
    /// A file is malformed, lacks something, or asks for something that this server cannot do and must not ignore.
    /// The error names file, line or field, and [says](ConfigError::hint) what to write instead.
    pub fn from_upstream(
        components: &ConfigText<'_>,
        services: Option<&ConfigText<'_>>,
    ) -> Result<Upstream, ConfigError> {
        let file: components::Config = parse(components, syntax::COMPONENTS_EXAMPLE)?;
        let invalid =
            |field, problem, hint| ConfigError::invalid(components.path, field, problem, hint);
        refuse_unsupported(&file, components.path)?;

        let mut config = Self {
            notifications: NotificationConfig::from_upstream(&file, components.path)?,
            required_label: Some(file.required_label).filter(|label| !label.is_empty()),
            ..Self::default()
        };
        config.warnings.extend(config.notifications.warning());
        if let Some(https) = file.https_config {
            let field = "https_config.listen_address";
            check_listen(&https.listen_address).map_err(|problem| {
                invalid(
                    field,
                    problem,
                    "write `listen_address: \":443\"` in `https_config`",
                )
            })?;
            let mode = https.frontend_config.as_ref();
            let mode = mode.and_then(|frontend| frontend.frontend_mode.as_ref());
            let frontend = Frontend::from_upstream(mode).map_err(|(field, problem, hint)| {
                ConfigError::invalid(components.path, field, problem, hint)
            })?;
            if frontend.has_tls() {
                check_certificate(&https.certificates, &https.key)
                    .map_err(|(field, problem, hint)| invalid(field, problem, hint))?;
            }
            config.agents = Some(AgentsConfig {
                listen: https.listen_address,
                certificates_pem: https.certificates,
                key_pem: https.key,
                streaming: !https.disable_streaming,
                authorize_files: https.enable_file_server_authorization,
                frontend,
                proxy_protocol: file.proxy_protocol,
                ..AgentsConfig::default()
            });
        }
        if let Some(admin) = file.admin_config {
            let field = "admin_config.listen_address";
            check_listen(&admin.listen_address).map_err(|problem| {
                invalid(
                    field,
                    problem,
                    "write `listen_address: \"localhost:9000\"` in `admin_config`",
                )
            })?;
            config.admin = Some(AdminConfig {
                listen: admin.listen_address,
            });
        }
        if let Some(address) = file
            .stats_config
            .map(|stats| stats.address)
            .filter(|address| !address.is_empty())
        {
            let hint = "write `address: \"localhost:9100\"` in `stats_config`";
            check_listen(&address)
                .map_err(|problem| invalid("stats_config.address", problem, hint))?;
            config.stats_listen = Some(address);
        }
        if let Some(health) = file.health_check_config {
            let field = "health_check_config.listen_address";
            let hint = "write `listen_address: \"localhost:8000\"` in `health_check_config`";
            check_listen(&health.listen_address)
                .map_err(|problem| invalid(field, problem, hint))?;
            config.health_check_listen = Some(health.listen_address);
        }
        if config.agents.is_none() && config.admin.is_none() {
            let warning = "neither `https_config` nor `admin_config` is set, so nobody can connect";
            config.warnings.push(warning.to_owned());
        }
        if let Some(services) = services {
            config.read_services(services)?;
        }
        Ok(Upstream {
            config,
            mysql_data_source_name: Some(file.mysql_data_source_name)
                .filter(|name| !name.is_empty()),
        })
    }

    /// Reads a services file, upstream's `fleetspeak.server.ServerConfig`, and adds what it says.
    ///
    /// # Errors
    ///
    /// As [`from_upstream`](Self::from_upstream).
    pub fn read_services(&mut self, services: &ConfigText<'_>) -> Result<(), ConfigError> {
        let file: ServerConfig = parse(services, syntax::SERVICES_EXAMPLE)?;
        for (index, service) in file.services.into_iter().enumerate() {
            services::check(&service, index, services.path)?;
            self.add_service(service);
        }
        if let Some(poll) = file.broadcast_poll_time {
            let poll = Duration::try_from(poll).map_err(|_| {
                ConfigError::invalid(
                    services.path,
                    "broadcast_poll_time",
                    "is not a positive duration",
                    "write `broadcast_poll_time { seconds: 60 }`",
                )
            })?;
            if poll < MIN_BROADCAST_POLL {
                let warning = "`broadcast_poll_time` is less than a second; one second is used";
                self.warnings.push(warning.to_owned());
            }
            self.broadcast_poll = poll.max(MIN_BROADCAST_POLL);
        }
        Ok(())
    }

    /// Adds a service; it takes the place of an earlier one with the same name.
    pub fn add_service(&mut self, service: ServiceConfig) {
        match self
            .services
            .iter_mut()
            .find(|other| other.name == service.name)
        {
            Some(earlier) => {
                let warning = format!(
                    "service `{}` is configured twice; the later one is used",
                    service.name
                );
                self.warnings.push(warning);
                *earlier = service;
            }
            None => self.services.push(service),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            agents: None,
            admin: None,
            admin_security: AdminSecurity::default(),
            stats_listen: None,
            health_check_listen: None,
            notifications: NotificationConfig::default(),
            required_label: None,
            services: Vec::new(),
            broadcast_poll: DEFAULT_BROADCAST_POLL,
            stream_look: DEFAULT_STREAM_LOOK,
            stop_limit: DEFAULT_STOP_LIMIT,
            limits: Limits::default(),
            metrics_by_client_labels: true,
            listeners: Listeners::default(),
            reuse_port: false,
            warnings: Vec::new(),
        }
    }
}

impl Default for AgentsConfig {
    fn default() -> Self {
        Self {
            listen: String::new(),
            certificates_pem: String::new(),
            key_pem: String::new(),
            streaming: true,
            authorize_files: false,
            frontend: Frontend::default(),
            proxy_protocol: false,
            trusted_proxies: default_trusted_proxies(),
        }
    }
}

impl AdminSecurity {
    /// Returns whether the interface may listen at `address`.
    pub(crate) fn allows(&self, address: SocketAddr) -> bool {
        let is_guarded = self.certificate_and_key_pem.is_some() && self.access.is_some();
        is_guarded || self.insecure || address.ip().to_canonical().is_loopback()
    }
}

impl fmt::Debug for AdminSecurity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminSecurity")
            .field("tls", &self.certificate_and_key_pem.is_some())
            .field("access", &self.access)
            .field("insecure", &self.insecure)
            .finish()
    }
}

impl fmt::Debug for AgentsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key stays out of logs.
        f.debug_struct("AgentsConfig")
            .field("listen", &self.listen)
            .field("streaming", &self.streaming)
            .field("authorize_files", &self.authorize_files)
            .field("frontend", &self.frontend)
            .field("proxy_protocol", &self.proxy_protocol)
            .field("trusted_proxies", &self.trusted_proxies)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name of the data source holds a password.
        f.debug_struct("Upstream")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Splits a listen address into its host and port.
///
/// The host comes without brackets and is empty in `:port`, which means all addresses of the machine.
///
/// # Errors
///
/// Says in a few words what is wrong, for example `has no port`.
pub fn split_listen(listen: &str) -> Result<(&str, u16), &'static str> {
    if listen.is_empty() {
        return Err("is missing");
    }
    if listen.contains(|c: char| c.is_whitespace() || c == '/') {
        return Err("is not of the form `host:port`");
    }
    let (host, port) = match listen.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("has a `[` without `]`")?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("has no IPv6 address between its brackets");
            }
            (host, after.strip_prefix(':').ok_or("has no port")?)
        }
        None => {
            let (host, port) = listen.rsplit_once(':').ok_or("has no port")?;
            if host.contains(':') {
                return Err("has an IPv6 address without brackets");
            }
            (host, port)
        }
    };
    // u16 alone would take a sign.
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err("has no number as port");
    }
    let port = port.parse().map_err(|_| "has a port above 65535")?;
    Ok((host, port))
}

/// Reads a file with a message in text format; `example` is a text of that message without errors.
///
/// # Errors
///
/// [`ConfigError::Syntax`], with what to write instead.
pub fn parse<M: prost::Message + prost::Name + Default>(
    file: &ConfigText<'_>,
    example: &str,
) -> Result<M, ConfigError> {
    text::parse(file.text).map_err(|source| ConfigError::Syntax {
        path: file.path.to_owned(),
        message_type: M::full_name(),
        hint: syntax::hint(&source, example),
        source,
    })
}

/// Refuses settings that would make this server less safe or different in silence if it ignored them.
fn refuse_unsupported(file: &components::Config, path: &Path) -> Result<(), ConfigError> {
    if file.spanner_config.is_some() {
        let hint = "remove it and choose another store";
        return Err(ConfigError::unsupported(path, "spanner_config", hint));
    }
    Ok(())
}

fn check_listen(listen: &str) -> Result<(), String> {
    match split_listen(listen) {
        Ok(_) => Ok(()),
        Err(problem) if listen.is_empty() => Err(problem.to_owned()),
        Err(problem) => Err(format!("`{listen}` {problem}")),
    }
}

/// Refuses certificates and keys that the listener could not use, and says which field to look at.
fn check_certificate(
    certificates: &str,
    key: &str,
) -> Result<(), (&'static str, String, &'static str)> {
    const CERTIFICATES: &str = "https_config.certificates";
    const KEY: &str = "https_config.key";
    const PUT_CERTIFICATES: &str =
        "put the PEM text of the server's certificate there, then its chain";
    const PUT_KEY: &str = "put the PEM text of the key that belongs to the first certificate there";

    let missing = || "is missing".to_owned();
    if certificates.is_empty() {
        return Err((CERTIFICATES, missing(), PUT_CERTIFICATES));
    }
    if key.is_empty() {
        return Err((KEY, missing(), PUT_KEY));
    }
    tls::check(certificates, key).map_err(|error| match error {
        TlsError::NoCertificate => (
            CERTIFICATES,
            "holds no certificate".to_owned(),
            PUT_CERTIFICATES,
        ),
        TlsError::BadCertificate { number } => {
            let problem = format!("is damaged in certificate {number}");
            (CERTIFICATES, problem, PUT_CERTIFICATES)
        }
        TlsError::NoKey => (KEY, "holds no private key".to_owned(), PUT_KEY),
        TlsError::EncryptedKey => {
            let hint = "put the key there without a password";
            (KEY, "is encrypted".to_owned(), hint)
        }
        TlsError::BadKey(_) | TlsError::Setup(_) => {
            let hint = "put the PEM text of an ECDSA, Ed25519 or RSA key there";
            (KEY, "cannot be used".to_owned(), hint)
        }
        TlsError::OtherKey => {
            let problem = "does not belong to the first certificate";
            (KEY, problem.to_owned(), PUT_KEY)
        }
    })
}
