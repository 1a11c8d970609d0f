//! What a start works out before it opens anything: the server's configuration, its store, and what to tell the user.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use fleethold_server::config::{ConfigText, split_listen};
use fleethold_server::{AdminConfig, AgentsConfig, Config, ConfigError, Server};
use fleethold_store::{Clock, Random};
use rustls::pki_types::ServerName;

use super::ServeArgs;
use crate::data_dir::DataDir;
use crate::output::{Exit, Failure};
use crate::store::{DataSourceName, StoreUrl};

/// A start that is ready to happen.
pub(super) struct Plan {
    pub(super) config: Config,
    pub(super) store: StoreUrl,
    /// Upstream's file, if it decides.
    components: Option<PathBuf>,
    /// The data directory, unless upstream's files decide.
    local: Option<Local>,
}

struct Local {
    names: Vec<ServerName<'static>>,
    dir: DataDir,
    ca_pem: String,
    listen_host: String,
    public_addresses: Vec<String>,
    /// The database, if this start will make it.
    new_store: Option<PathBuf>,
}

impl Plan {
    pub(super) fn new(
        args: ServeArgs,
        clock: &dyn Clock,
        random: &Random,
    ) -> Result<Self, Failure> {
        let agents = args.agents.clone();
        let notifications = args.notifications.clone();
        let operation = args.operation.clone();
        let mut plan = match args.components_config.clone() {
            Some(components) => Self::from_upstream(args, &components),
            None => Self::from_data_dir(args, clock, random),
        }?;
        agents.apply(&mut plan.config);
        notifications.apply(&mut plan.config)?;
        operation.apply(&mut plan.config)?;
        Ok(plan)
    }

    pub(super) fn from_upstream(args: ServeArgs, components: &Path) -> Result<Self, Failure> {
        let components_text = read(components)?;
        let services_text = args.services_config.as_deref().map(read).transpose()?;
        let services = args
            .services_config
            .as_deref()
            .zip(services_text.as_deref());
        let upstream = Config::from_upstream(
            &ConfigText {
                path: components,
                text: &components_text,
            },
            services
                .map(|(path, text)| ConfigText { path, text })
                .as_ref(),
        )
        .map_err(wrong_config)?;

        let mut config = upstream.config;
        let store = match (args.store, upstream.mysql_data_source_name) {
            (Some(store), None) => store,
            (Some(store), Some(_)) => {
                let warning =
                    "`mysql_data_source_name` is ignored, because --store names another store";
                config.warnings.push(warning.to_owned());
                store
            }
            (None, Some(name)) => StoreUrl::Mysql(DataSourceName::new(name)),
            (None, None) => {
                let error = format!("`{}`: no store is named", components.display());
                return Err(Failure::usage(error)
                    .hint("pass --store sqlite:PATH to use the embedded store"));
            }
        };
        args.services
            .into_iter()
            .for_each(|service| config.add_service(service));
        Ok(Self {
            config,
            store,
            components: Some(components.to_owned()),
            local: None,
        })
    }

    fn from_data_dir(args: ServeArgs, clock: &dyn Clock, random: &Random) -> Result<Self, Failure> {
        let (listen_host, names) = certificate_names_of(&args.listen, &args.public_addresses)?;

        let mut dir = DataDir::open(&args.data_dir)?;
        let certificates = dir.certificates(&names, clock.now(), random)?;
        let (path, text) = match args.services_config {
            Some(path) => {
                let text = read(&path)?;
                (path, text)
            }
            None => dir.services()?,
        };
        let mut config = Config {
            agents: Some(AgentsConfig {
                listen: args.listen.clone(),
                certificates_pem: certificates.server_pem,
                key_pem: certificates.server_key_pem,
                ..AgentsConfig::default()
            }),
            admin: Some(AdminConfig {
                listen: args.admin_listen,
            }),
            ..Config::default()
        };
        let services = ConfigText {
            path: &path,
            text: &text,
        };
        config.read_services(&services).map_err(wrong_config)?;
        config.warnings.extend(certificates.warnings);
        args.services
            .into_iter()
            .for_each(|service| config.add_service(service));

        let own_store = dir.root().join("fleethold.db");
        let new_store = (args.store.is_none() && !own_store.exists()).then(|| own_store.clone());
        Ok(Self {
            config,
            store: args.store.unwrap_or(StoreUrl::Sqlite(own_store)),
            components: None,
            local: Some(Local {
                names: names.iter().map(ServerName::to_owned).collect(),
                dir,
                ca_pem: certificates.ca_pem,
                listen_host: listen_host.to_owned(),
                public_addresses: args.public_addresses,
                new_store,
            }),
        })
    }

    /// Returns the certificate and key that agents should see now: those of
    /// upstream's file, or those of the data directory, renewed if need be.
    pub(super) fn agents_certificate(
        &mut self,
        clock: &dyn Clock,
        random: &Random,
    ) -> Result<Option<(String, String)>, Failure> {
        if let Some(path) = &self.components {
            let text = read(path)?;
            let upstream = Config::from_upstream(&ConfigText { path, text: &text }, None)
                .map_err(wrong_config)?;
            let agents = upstream.config.agents;
            return Ok(agents.map(|agents| (agents.certificates_pem, agents.key_pem)));
        }
        let Some(local) = &mut self.local else {
            return Ok(None);
        };
        let certificates = local.dir.certificates(&local.names, clock.now(), random)?;
        Ok(Some((certificates.server_pem, certificates.server_key_pem)))
    }

    /// Completes the data directory, now that the ports are known, and returns what to tell the user.
    pub(super) fn announce(&mut self, server: &Server) -> Result<String, Failure> {
        let mut lines = Vec::new();
        if let (Some(local), Some(agents)) = (&mut self.local, server.agents_addr()) {
            let (addresses, reachable) = local.agent_addresses(agents);
            let agent_config = local.dir.agent(&local.ca_pem, &addresses)?;
            let mut made = local.dir.made().join(", ");
            if local.new_store.is_some() {
                made = format!("{made}, fleethold.db");
            }
            lines.push(format!("data     {}", local.dir.root().display()));
            if !made.is_empty() {
                lines.push(format!("made     {}", made.trim_start_matches(", ")));
            }
            lines.push(format!("agents   {agents}"));
            lines.extend(server.admin_addr().map(|admin| format!("admin    {admin}")));
            lines.push(format!(
                "connect  fleetspeak-client -config {}",
                shell_word(&agent_config)
            ));
            if !reachable {
                lines.push(
                    "         agents on other machines need --public-address HOST:PORT".to_owned(),
                );
            }
        } else {
            lines.push(match &self.store {
                StoreUrl::Sqlite(path) => format!("data     {}", path.display()),
                other => format!("data     {other}"),
            });
            lines.extend(
                server
                    .agents_addr()
                    .map(|agents| format!("agents   {agents}")),
            );
            lines.extend(server.admin_addr().map(|admin| format!("admin    {admin}")));
        }
        lines.push("ready    stop with Ctrl-C or SIGTERM".to_owned());
        Ok(lines.join("\n") + "\n")
    }
}

/// Returns the store that these arguments name, without starting anything.
pub(super) fn store_of(args: ServeArgs) -> Result<StoreUrl, Failure> {
    match (args.components_config.clone(), args.store.clone()) {
        (_, Some(store)) => Ok(store),
        (Some(components), None) => Ok(Plan::from_upstream(args, &components)?.store),
        (None, None) => Err(Failure::usage(
            "--takeover needs --store or --components-config",
        )),
    }
}

impl Local {
    /// Returns where agents connect, and whether those of other machines can.
    fn agent_addresses(&self, bound: SocketAddr) -> (Vec<String>, bool) {
        if !self.public_addresses.is_empty() {
            return (self.public_addresses.clone(), true);
        }
        let port = bound.port();
        let host = self.listen_host.as_str();
        if is_everywhere(host) {
            return (vec![format!("localhost:{port}")], false);
        }
        // Whoever listens on loopback wants no other machines.
        match host.contains(':') {
            true => (vec![format!("[{host}]:{port}")], true),
            false => (vec![format!("{host}:{port}")], true),
        }
    }
}

/// Returns a host as a name in a certificate.
pub(crate) fn server_name(host: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).ok()
}

/// Returns the host of a listener, and what its certificate has to be valid for.
pub(super) fn certificate_names_of<'a>(
    listen: &'a str,
    public_addresses: &[String],
) -> Result<(&'a str, Vec<ServerName<'static>>), Failure> {
    let (host, _) = split_listen(listen).expect("checked when the command line was read");
    Ok((host, certificate_names(host, public_addresses)?))
}

fn certificate_names(
    listen_host: &str,
    public_addresses: &[String],
) -> Result<Vec<ServerName<'static>>, Failure> {
    let public_hosts = public_addresses.iter().map(|address| {
        split_listen(address)
            .expect("checked when the command line was read")
            .0
    });
    let own = Some(listen_host).filter(|host| !is_everywhere(host));
    let mut names = Vec::new();
    for host in own
        .into_iter()
        .chain(public_hosts)
        .chain(["localhost", "127.0.0.1", "::1"])
    {
        let name = server_name(host).ok_or_else(|| {
            Failure::usage(format!("`{host}` is neither a host name nor an address"))
                .hint("correct --listen or --public-address")
        })?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Returns whether a server with this host listens on all addresses of its machine.
fn is_everywhere(host: &str) -> bool {
    host.is_empty()
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_unspecified())
}

pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::PermissionDenied => "allow the user who runs the server to read it",
            ErrorKind::InvalidData => "check the path; a configuration is text in UTF-8",
            _ => "check the path",
        };
        Failure::new(Exit::Usage, error)
            .context(format!("cannot read configuration `{}`", path.display()))
            .hint(hint)
    })
}

pub(crate) fn wrong_config(error: ConfigError) -> Failure {
    let hint = error.hint().to_owned();
    Failure::new(Exit::Usage, error).hint(hint)
}

/// Returns a path as one word of a shell command.
pub(crate) fn shell_word(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    match path.chars().all(plain) {
        true => path,
        false => format!("'{}'", path.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_valid_for_every_way_to_connect() {
        let text = |listen, public: &[&str]| -> Vec<String> {
            let public: Vec<_> = public.iter().map(|&address| address.to_owned()).collect();
            let names = certificate_names(listen, &public).unwrap();
            names
                .iter()
                .map(|name| name.to_str().into_owned())
                .collect()
        };
        assert_eq!(text("127.0.0.1", &[]), ["127.0.0.1", "localhost", "::1"]);
        assert_eq!(text("0.0.0.0", &[]), ["localhost", "127.0.0.1", "::1"]);
        assert_eq!(
            text("", &["fleet.example:443"]),
            ["fleet.example", "localhost", "127.0.0.1", "::1"]
        );
        assert_eq!(
            text("10.0.0.1", &["[2001:db8::1]:1"])[..2],
            ["10.0.0.1", "2001:db8::1"]
        );
        assert!(certificate_names("a,b", &[]).is_err());
    }

    #[test]
    fn commands_can_be_pasted_into_a_shell() {
        assert_eq!(shell_word(Path::new("/var/lib/fleet")), "/var/lib/fleet");
        assert_eq!(shell_word(Path::new("/it's here")), r"'/it'\''s here'");
    }
}
