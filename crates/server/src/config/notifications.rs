//! How servers that share a store tell each other of news.

use std::path::Path;

use fleethold_proto::fleetspeak::components;

use super::{ConfigError, check_listen, split_listen};
use crate::notifications::NotificationSecret;

/// How a server takes notifications from other servers on the same store, and sends them.
///
/// The default takes none, and sends them if its store is shared.
#[derive(Clone, Debug, Default)]
pub struct NotificationConfig {
    /// Where to listen, as in [`AgentsConfig::listen`](super::AgentsConfig::listen); `None` takes no notifications.
    pub listen: Option<String>,
    /// Under which address other servers find the listener; `None` for the bound address, or the machine's name if it
    /// listens on all addresses.
    pub public_address: Option<String>,
    /// Whether to send notifications even if nothing says that there are other servers.
    pub send: bool,
    /// What all servers know, so that they believe each other; without it everybody is believed.
    pub secret: Option<NotificationSecret>,
    /// Whether notifications without signature are accepted though there is a secret: stock servers sign nothing.
    pub accept_unsigned: bool,
}

impl NotificationConfig {
    pub(super) fn from_upstream(
        file: &components::Config,
        path: &Path,
    ) -> Result<Self, ConfigError> {
        let given = |address: &String| Some(address.clone()).filter(|text| !text.is_empty());
        let config = Self {
            listen: given(&file.notification_listen_address),
            public_address: given(&file.notification_public_address),
            send: file.notification_use_http_notifier,
            ..Self::default()
        };
        if let Some(listen) = &config.listen {
            check_listen(listen).map_err(|problem| {
                let hint = "write `notification_listen_address: \":8080\"`";
                ConfigError::invalid(path, "notification_listen_address", problem, hint)
            })?;
        }
        if let Some(address) = &config.public_address {
            check_public(address).map_err(|problem| {
                let hint = "write `notification_public_address: \"HOST:PORT\"`, as other servers reach this one";
                ConfigError::invalid(path, "notification_public_address", problem, hint)
            })?;
        }
        Ok(config)
    }

    /// Returns what the settings lack to make sense.
    pub(super) fn warning(&self) -> Option<String> {
        (self.public_address.is_some() && self.listen.is_none()).then(|| {
            "`notification_public_address` is ignored without `notification_listen_address`"
                .to_owned()
        })
    }
}

/// Returns what is wrong with an address under which others are to find a server.
fn check_public(address: &str) -> Result<(), String> {
    let most = fleethold_store::limits::MAX_STREAMING_TO_BYTES;
    match split_listen(address) {
        Ok(("", _)) => Err(format!("`{address}` has no host")),
        Ok((_, 0)) => Err(format!("`{address}` has port 0, where nobody is found")),
        Ok(_) if address.len() > most => Err(format!("is longer than {most} bytes")),
        Ok(_) => Ok(()),
        Err(problem) => Err(format!("`{address}` {problem}")),
    }
}
