//! Options for those who run a server: who may use the admin interface, where
//! metrics and health are, and certificates that change while it runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;
use fleethold_server::{AccessList, Config, Server, certificate_expiry};

use crate::admin::host_port;
use crate::certificates::RENEWAL;
use crate::output::Failure;

/// How often files are looked at; SIGHUP makes it happen at once.
pub(super) const LOOK: Duration = Duration::from_secs(60);

/// How often the log warns of a certificate that expires soon.
const WARN_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Args, Clone, Debug)]
pub(crate) struct OperationArgs {
    /// Who may use the admin interface: lines of `token NAME SHA256 ROLES` or `certificate NAME SHA256 ROLES`
    #[arg(long, value_name = "FILE")]
    admin_access: Option<PathBuf>,
    /// The certificate of the admin interface in PEM, which makes it speak TLS
    #[arg(long, value_name = "FILE", requires = "admin_key")]
    admin_certificate: Option<PathBuf>,
    /// The key of that certificate in PEM
    #[arg(long, value_name = "FILE", requires = "admin_certificate")]
    admin_key: Option<PathBuf>,
    /// Let the admin interface listen for others than this machine without TLS and access file
    #[arg(long)]
    admin_insecure: bool,
    /// Where Prometheus metrics and health are: /metrics, /livez, /readyz, /healthz
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    stats_listen: Option<String>,
    /// Where health checks are answered
    #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
    health_check_listen: Option<String>,
    /// Leave labels of clients and versions of agents out of the metrics
    #[arg(long)]
    metrics_without_client_labels: bool,
}

impl OperationArgs {
    /// Puts the options into a configuration; they win over those of its files.
    pub(super) fn apply(&self, config: &mut Config) -> Result<(), Failure> {
        if let Some(address) = &self.stats_listen {
            config.stats_listen = Some(address.clone());
        }
        if let Some(address) = &self.health_check_listen {
            config.health_check_listen = Some(address.clone());
        }
        config.metrics_by_client_labels = !self.metrics_without_client_labels;
        config.admin_security.insecure = self.admin_insecure;
        let access = self.access()?;
        if access.as_ref().is_some_and(AccessList::is_empty) {
            warn_of_empty_access();
        }
        config.admin_security.access = access;
        config.admin_security.certificate_and_key_pem = self.certificate()?;
        Ok(())
    }

    fn access(&self) -> Result<Option<AccessList>, Failure> {
        let Some(path) = &self.admin_access else {
            return Ok(None);
        };
        refuse_mode(path, 0o022, "can be changed by other users", "chmod go-w")?;
        let list = AccessList::parse(&read(path)?)
            .with_context(|| format!("cannot use access file `{}`", path.display()))
            .map_err(|error| Failure::usage(format!("{error:#}")))?;
        Ok(Some(list))
    }

    fn certificate(&self) -> Result<Option<(String, String)>, Failure> {
        let (Some(certificate), Some(key)) = (&self.admin_certificate, &self.admin_key) else {
            return Ok(None);
        };
        refuse_mode(key, 0o007, "can be read by everybody", "chmod o-rwx")?;
        Ok(Some((read(certificate)?, read(key)?)))
    }
}

/// Follows the files of a running server.
pub(super) struct Reloader {
    args: OperationArgs,
    agents: Option<(String, String)>,
    admin: Option<(String, String)>,
    warned: Option<SystemTime>,
    /// Whether the access file was empty last time; the log says so once.
    nobody_has_access: bool,
    /// What was wrong last time: each problem is logged once.
    problem: Option<String>,
}

impl Reloader {
    pub(super) fn new(args: OperationArgs, config: &Config) -> Self {
        let agents = config.agents.as_ref();
        Self {
            args,
            agents: agents.map(|agents| (agents.certificates_pem.clone(), agents.key_pem.clone())),
            admin: config.admin_security.certificate_and_key_pem.clone(),
            warned: None,
            nobody_has_access: (config.admin_security.access.as_ref())
                .is_some_and(AccessList::is_empty),
            problem: None,
        }
    }

    /// Looks at all files; `agents` is the certificate and key that agents should see now.
    pub(super) fn look(
        &mut self,
        server: &Server,
        agents: Result<Option<(String, String)>, Failure>,
        now: SystemTime,
        asked: bool,
    ) {
        let result = self.reload(server, agents, asked);
        let problem = result.err().map(|failure| format!("{:#}", failure.error()));
        if let Some(problem) = &problem
            && (asked || self.problem.as_ref() != Some(problem))
        {
            tracing::error!(problem, "cannot reload; what was there stays in use");
        }
        self.problem = problem;
        self.warn_of_expiry(now);
    }

    fn reload(
        &mut self,
        server: &Server,
        agents: Result<Option<(String, String)>, Failure>,
        asked: bool,
    ) -> Result<(), Failure> {
        // One that cannot be used does not keep the others from their places.
        let access = self.args.access().map(|access| {
            if let Some(access) = access {
                let before = std::mem::replace(&mut self.nobody_has_access, access.is_empty());
                if access.is_empty() && !before {
                    warn_of_empty_access();
                }
                server.set_admin_access(access);
            }
        });
        let admin = self.reload_admin(server);
        let agents = agents.and_then(|agents| self.reload_agents(server, agents));
        access.and(admin).and(agents)?;
        if asked {
            tracing::info!("reloaded certificates and access file");
        }
        Ok(())
    }

    fn reload_admin(&mut self, server: &Server) -> Result<(), Failure> {
        let admin = self.args.certificate()?;
        if let (Some((certificates, key)), true) = (&admin, admin != self.admin) {
            server
                .set_admin_certificate(certificates, key)
                .context("cannot use the certificate of the admin interface")?;
            tracing::info!("the admin interface has another certificate");
            self.admin = admin;
        }
        Ok(())
    }

    fn reload_agents(
        &mut self,
        server: &Server,
        agents: Option<(String, String)>,
    ) -> Result<(), Failure> {
        if let (Some((certificates, key)), true) = (&agents, agents != self.agents) {
            server
                .set_agents_certificate(certificates, key)
                .context("cannot use the certificate for agents")?;
            tracing::info!("agents see another certificate from now on");
            self.agents = agents;
        }
        Ok(())
    }

    fn warn_of_expiry(&mut self, now: SystemTime) {
        let is_due = |warned: &SystemTime| {
            now.duration_since(*warned)
                .is_ok_and(|since| since >= WARN_EVERY)
        };
        if !self.warned.as_ref().is_none_or(is_due) {
            return;
        }
        for (listener, pair) in [("agents", &self.agents), ("admin", &self.admin)] {
            let expiry = pair.as_ref().and_then(|(pem, _)| certificate_expiry(pem));
            if let Some(expiry) = expiry.filter(|expiry| *expiry < now + RENEWAL) {
                let days = expiry.duration_since(now).unwrap_or_default().as_secs() / 86_400;
                tracing::warn!(
                    listener,
                    days_left = days,
                    "a certificate expires soon; put a new one in its place, no restart is needed"
                );
                self.warned = Some(now);
            }
        }
    }
}

fn warn_of_empty_access() {
    tracing::warn!("the access file is empty: nobody may use the admin interface");
}

pub(super) fn refuse_mode(
    path: &Path,
    mask: u32,
    problem: &str,
    remedy: &str,
) -> Result<(), Failure> {
    let mode = fs::metadata(path)
        .with_context(|| format!("cannot read `{}`", path.display()))
        .map_err(|error| Failure::usage(format!("{error:#}")))?
        .permissions()
        .mode();
    if mode & mask != 0 {
        return Err(Failure::usage(format!("`{}` {problem}", path.display()))
            .hint(format!("run: {remedy} {}", path.display())));
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path)
        .with_context(|| format!("cannot read `{}`", path.display()))
        .map_err(|error| Failure::usage(format!("{error:#}")))
}
