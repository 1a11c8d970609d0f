//! Checks a configuration without serving anything.

use std::net::SocketAddr;

use fleethold_proto::fleetspeak::server::ServiceConfig;

use crate::config::{Config, split_listen};
use crate::services;
use crate::tls;
use crate::{StartError, full_address};

/// Returns everything that would keep a server with this configuration from starting, as far as that shows without
/// taking ports or opening the store: certificates, services, and addresses that no resolver knows.
///
/// Call this inside a runtime.
pub async fn check(config: &Config) -> Vec<StartError> {
    let mut problems = Vec::new();
    if let Some(agents) = config
        .agents
        .as_ref()
        .filter(|agents| agents.frontend.has_tls())
    {
        let checked = tls::check(&agents.certificates_pem, &agents.key_pem);
        problems.extend(checked.err().map(StartError::Tls));
    }
    let security = &config.admin_security;
    if let Some((certificates_pem, key_pem)) = &security.certificate_and_key_pem {
        let checked = tls::check(certificates_pem, key_pem);
        problems.extend(checked.err().map(StartError::Tls));
    }
    let admin = config.admin.as_ref().map(|admin| &admin.listen);
    if let Some(address) = admin.and_then(|listen| full_address(listen).parse::<SocketAddr>().ok())
        && !security.allows(address)
    {
        problems.push(StartError::OpenAdmin { address });
    }
    let refused = |service: &ServiceConfig| services::make(service).err();
    problems.extend(
        config
            .services
            .iter()
            .filter_map(refused)
            .map(StartError::Service),
    );
    let addresses = [
        (
            config.agents.as_ref().map(|agents| &agents.listen),
            "agents",
        ),
        (
            config.admin.as_ref().map(|admin| &admin.listen),
            "the admin API",
        ),
        (config.stats_listen.as_ref(), "metrics"),
        (config.health_check_listen.as_ref(), "health checks"),
        (config.notifications.listen.as_ref(), "notifications"),
    ];
    for (address, whom) in addresses {
        let Some(address) = address.filter(|address| split_listen(address).is_ok()) else {
            continue;
        };
        if let Err(source) = tokio::net::lookup_host(full_address(address)).await {
            problems.push(StartError::Listen {
                address: address.clone(),
                whom,
                source,
            });
        }
    }
    problems
}
