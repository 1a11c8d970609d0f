//! What is checked before any load begins.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use fleethold_store::Random;
use tokio::net::{TcpStream, lookup_host};

use super::admin::Admin;
use super::agent::{Agent, Surroundings};
use super::failure::Failure;
use super::service::Service;
use super::{Bench, Settings};

/// Files that are open besides the connections of agents.
const OTHER_FILES: u64 = 128;

/// Checks everything and makes the first agent.
pub(crate) async fn connect(settings: Settings) -> Result<Bench> {
    settings.check()?;
    let server = resolve(&settings.target, settings.own_server).await?;
    if let Some(admin) = &settings.admin {
        resolve(admin, settings.own_server).await?;
    }
    allow_files(settings.agents)?;
    let around = Arc::new(surroundings(&settings, server)?);
    drop(TcpStream::connect(server).await.with_context(|| {
        format!(
            "cannot reach a server for agents at `{}`; start it, or correct the address",
            settings.target
        )
    })?);
    let probe = Arc::new(Agent::new(0, &around)?);
    introduce(&probe, &settings).await?;
    let admin = match &settings.admin {
        None => None,
        Some(address) => Some(Admin::connect(address).await.map_err(|failure| {
            anyhow!("cannot use the admin interface at `{address}`: {failure}; it has to be the one of the same server, without TLS or access list")
        })?),
    };
    let service = match settings.service_listen {
        None => None,
        Some(listen) => Some(Service::start(listen).await?),
    };
    Ok(Bench {
        around,
        admin,
        service,
        random: Random::from_os(),
        fleet: vec![probe],
        broadcasts: 0,
        settings,
    })
}

pub(crate) fn surroundings(settings: &Settings, server: SocketAddr) -> Result<Surroundings> {
    let host = settings
        .target
        .rsplit_once(':')
        .map_or("", |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = settings.server_name.as_deref().unwrap_or(host);
    Surroundings::new(server, name, &settings.ca_pem, settings.http, settings.deflate)
        .context("cannot trust the file with the CA; give the certificate (PEM) that the server's certificate was signed with")
}

/// Resolves an address, and refuses those of other machines.
async fn resolve(address: &str, own_server: bool) -> Result<SocketAddr> {
    let resolved: Vec<_> = lookup_host(address)
        .await
        .with_context(|| format!("`{address}` is no address; write HOST:PORT"))?
        .collect();
    let loopback = resolved.iter().all(|address| address.ip().is_loopback());
    if !loopback && !own_server {
        bail!(
            "`{address}` is not on this machine; load is only for servers of one's own: if it is yours, say so with --i-own-this-server"
        );
    }
    let first = resolved.first();
    first
        .copied()
        .with_context(|| format!("`{address}` has no address"))
}

/// Raises the number of open files as far as a run needs it.
pub(crate) fn allow_files(agents: u32) -> Result<()> {
    let needed = u64::from(agents) + OTHER_FILES;
    let granted =
        rlimit::increase_nofile_limit(needed).context("cannot learn the limit of open files")?;
    if granted < needed {
        bail!(
            "{agents} agents need {needed} open files and the system allows {granted}; raise the hard limit (ulimit -Hn), or ask for fewer agents"
        );
    }
    Ok(())
}

/// Makes one contact.
async fn introduce(probe: &Agent, settings: &Settings) -> Result<()> {
    let contact = async {
        let mut connection = probe.connect().await?;
        probe.poll(&mut connection, Vec::new()).await
    };
    match contact.await {
        Ok(_) => Ok(()),
        Err(failure @ Failure::Connection("TLS", _)) => Err(anyhow!(
            "agents cannot trust the server at `{}`: {failure}; give the CA that signed its certificate, and the name in it with --server-name",
            settings.target
        )),
        Err(failure @ Failure::Refused(_)) => Err(anyhow!(
            "the server at `{}` refuses a new agent: {failure}; its limits or its address may be meant for others",
            settings.target
        )),
        Err(failure) => Err(anyhow!(
            "the server at `{}` does not speak with agents: {failure}",
            settings.target
        )),
    }
}
