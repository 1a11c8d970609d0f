//! The Fleetspeak server as a library.
//!
//! [`Server::start`] takes a [`Config`] and a store and serves agents over
//! HTTPS, operators and services over gRPC; [`Server::stop`] ends all of it.
//! The server knows no backend: whoever starts it opens the store and closes
//! it afterwards. Stock agents, `fleetspeak-admin` and the Python connectors
//! work with it unchanged; `docs/compatibility.md` lists what differs.
//!
//! # Guarantees
//!
//! * What is answered to an agent or an operator with success is in the store.
//! * A message for an agent is handed out to one contact at a time, and again
//!   after 15 minutes until the agent acknowledges it.
//! * Memory grows with bytes received, never with sizes announced.

pub mod config;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod limits;

mod admin;
mod broadcasts;
mod cache;
mod certificate;
mod check;
mod contacts;
mod engine;
mod https;
mod listen;
mod metrics;
mod notifications;
mod operations;
mod services;
mod side_port;
mod streams;
mod tls;
mod wire;

use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fleethold_store::{Clock, Random, Store};
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

pub use admin::{AccessError, AccessList, Role};
pub use check::check;
pub use config::{AdminConfig, AgentsConfig, Config, ConfigError};
pub use limits::Limits;
pub use listen::Listeners;
pub use notifications::{NotificationSecret, SecretError};
pub use services::ServiceConfigError;
pub use tls::TlsError;
pub use tls::expiry as certificate_expiry;

use crate::admin::{Access, Admin, AdminServer};
use crate::contacts::Contacts;
use crate::engine::Engine;
use crate::https::AgentServer;
use crate::listen::Wanted;
use crate::notifications::Notifications;
use crate::operations::{Health, Port};
use crate::services::Backlog;
use crate::side_port::SidePort;
use crate::tls::LiveCertificate;

/// A running server.
pub struct Server {
    engine: Arc<Engine>,
    refresher: AbortHandle,
    _hints: AbortOnDropHandle<()>,
    agents: Option<(SocketAddr, AgentServer)>,
    admin: Option<(SocketAddr, AdminServer)>,
    stats: Option<(SocketAddr, SidePort)>,
    health_check: Option<(SocketAddr, SidePort)>,
    notifications: Notifications,
    health: Arc<Health>,
    agents_certificate: Option<LiveCertificate>,
    admin_certificate: Option<LiveCertificate>,
    access: Access,
    stop_limit: Duration,
}

/// A server that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The agents' certificate or key cannot be used.
    #[error("cannot use the server certificate")]
    Tls(#[from] TlsError),
    /// A service cannot be set up.
    #[error(transparent)]
    Service(#[from] ServiceConfigError),
    /// Everybody in the network could use the admin interface.
    #[error("the admin API on `{address}` would be open to everybody who reaches it")]
    OpenAdmin {
        /// Where it would listen.
        address: SocketAddr,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on `{address}` for {whom}")]
    Listen {
        /// The configured address.
        address: String,
        /// Who would connect there.
        whom: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl Server {
    /// Starts to serve; on return the listeners accept connections.
    ///
    /// # Errors
    /// Fails if an address is taken or wrong, or if a certificate or a service
    /// cannot be set up. Nothing is served then.
    pub async fn start(
        config: Config,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        random: Arc<Random>,
    ) -> Result<Self, StartError> {
        let engine = Arc::new(Engine::new(&config, store, clock, random)?);
        let required_label = config.required_label.clone();

        let listeners = &config.listeners;
        let shared = config.reuse_port;
        let wanted = |address, inherited| Wanted {
            address,
            inherited,
            shared,
        };
        // All that can fail comes before anything runs.
        let mut agents_certificate = None;
        let mut agents = None;
        if let Some(config) = &config.agents {
            let tls = match config.frontend.has_tls() {
                true => {
                    let (tls, certificate) =
                        tls::server_config(&config.certificates_pem, &config.key_pem)?;
                    agents_certificate = Some(certificate);
                    Some(tls)
                }
                false => None,
            };
            if let Some(expiry) = tls::expiry(&config.certificates_pem) {
                engine.metrics.set_certificate_expiry("agents", expiry);
            }
            let (address, listener) =
                listen(&wanted(&config.listen, listeners.agents.as_ref()), "agents").await?;
            agents = Some((address, listener, tls, config));
        }
        let mut admin = None;
        let mut admin_tls = None;
        let mut admin_certificate = None;
        let security = &config.admin_security;
        if let Some(config) = &config.admin {
            if let Some((certificates_pem, key_pem)) = &security.certificate_and_key_pem {
                let (mut tls, certificate) = tls::server_config(certificates_pem, key_pem)?;
                tls.alpn_protocols = vec![b"h2".to_vec()];
                if let Some(expiry) = tls::expiry(certificates_pem) {
                    engine.metrics.set_certificate_expiry("admin", expiry);
                }
                admin_tls = Some(Arc::new(tls));
                admin_certificate = Some(certificate);
            }
            let wanted = wanted(&config.listen, listeners.admin.as_ref());
            let (address, listener) = listen(&wanted, "the admin API").await?;
            if !security.allows(address) {
                return Err(StartError::OpenAdmin { address });
            }
            admin = Some((address, listener));
        }
        let access = Access::new(security.access.clone());
        let stats = match &config.stats_listen {
            Some(listen_at) => Some(listen(&wanted(listen_at, None), "metrics").await?),
            None => None,
        };
        let health_check = match &config.health_check_listen {
            Some(listen_at) => Some(listen(&wanted(listen_at, None), "health checks").await?),
            None => None,
        };

        let notifications = match &config.notifications.listen {
            Some(listen_at) => Some(listen(&wanted(listen_at, None), "notifications").await?),
            None => None,
        };

        let store_look =
            Some(config.stream_look).filter(|every| !every.is_zero() && engine.store.is_shared());
        let has_agents = agents.is_some();
        let notifications =
            Notifications::start(&config.notifications, notifications, &engine, has_agents);
        let notifications = Box::pin(notifications).await;
        let inherited_agents = listeners.agents.is_some();
        let agents = agents.map(|(address, listener, tls, config)| {
            let contacts = Contacts {
                engine: Arc::clone(&engine),
                required_label: required_label.clone(),
                streaming_to: notifications.streaming_to.clone(),
            };
            let options = https::Options {
                streaming: config.streaming,
                authorize_files: config.authorize_files,
                frontend: config.frontend.clone(),
                proxy_protocol: config.proxy_protocol,
                inherited: inherited_agents,
                trusted_proxies: config.trusted_proxies.clone(),
                store_look,
                ..https::Options::new(tls.map(Arc::new))
            };
            let server = AgentServer::start(listener, options, Arc::new(contacts));
            (address, server)
        });
        let admin = admin.map(|(address, listener)| {
            let admin = Admin {
                engine: Arc::clone(&engine),
            };
            let server = AdminServer::start(listener, admin, admin_tls, access.clone());
            (address, server)
        });
        let health = Arc::new(Health::new(Arc::clone(&engine)));
        let watched = |(address, listener), port| {
            let (engine, health) = (Arc::clone(&engine), Arc::clone(&health));
            (address, operations::serve(listener, port, engine, health))
        };
        let stats = stats.map(|bound| watched(bound, Port::Stats));
        let health_check = health_check.map(|bound| watched(bound, Port::HealthCheck));
        let refresher = tokio::spawn(Arc::clone(&engine.broadcasts).run()).abort_handle();
        let hints = AbortOnDropHandle::new(tokio::spawn(follow_hints(Arc::clone(&engine))));
        let processor = Arc::new(Backlog(Arc::clone(&engine.services)));
        engine.store.register_message_processor(processor).await;
        Ok(Self {
            engine,
            refresher,
            _hints: hints,
            agents,
            admin,
            stats,
            health_check,
            notifications,
            health,
            agents_certificate,
            admin_certificate,
            access,
            stop_limit: config.stop_limit,
        })
    }

    /// Returns where agents connect.
    pub fn agents_addr(&self) -> Option<SocketAddr> {
        self.agents.as_ref().map(|(address, _)| *address)
    }

    /// Returns where the admin API is.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(address, _)| *address)
    }

    /// Returns where metrics are.
    pub fn stats_addr(&self) -> Option<SocketAddr> {
        self.stats.as_ref().map(|(address, _)| *address)
    }

    /// Returns where health checks are answered.
    pub fn health_check_addr(&self) -> Option<SocketAddr> {
        self.health_check.as_ref().map(|(address, _)| *address)
    }

    /// Returns where notifications of other servers are taken.
    pub fn notifications_addr(&self) -> Option<SocketAddr> {
        let listener = self.notifications.listener.as_ref();
        listener.map(|(address, _)| *address)
    }

    /// Uses another certificate for agents from the next connection on.
    ///
    /// # Errors
    /// The certificate or the key cannot be used; nothing has changed then.
    pub fn set_agents_certificate(
        &self,
        certificates_pem: &str,
        key_pem: &str,
    ) -> Result<(), TlsError> {
        let certificate = self.agents_certificate.as_ref();
        self.set_certificate("agents", certificate, certificates_pem, key_pem)
    }

    /// Uses another certificate for the admin API from the next connection on.
    ///
    /// # Errors
    /// The certificate or the key cannot be used; nothing has changed then.
    pub fn set_admin_certificate(
        &self,
        certificates_pem: &str,
        key_pem: &str,
    ) -> Result<(), TlsError> {
        let certificate = self.admin_certificate.as_ref();
        self.set_certificate("admin", certificate, certificates_pem, key_pem)
    }

    fn set_certificate(
        &self,
        listener: &'static str,
        certificate: Option<&LiveCertificate>,
        certificates_pem: &str,
        key_pem: &str,
    ) -> Result<(), TlsError> {
        let Some(certificate) = certificate else {
            return Ok(());
        };
        certificate.replace(certificates_pem, key_pem)?;
        if let Some(expiry) = tls::expiry(certificates_pem) {
            self.engine.metrics.set_certificate_expiry(listener, expiry);
        }
        Ok(())
    }

    /// Lets other callers use the admin API from the next call on.
    pub fn set_admin_access(&self, access: AccessList) {
        self.access.replace(access);
    }

    /// Stops serving: streams are told to end, running calls finish, broadcast
    /// allocations are given back. Takes at most the configured limit.
    pub async fn stop(self) {
        self.health.begin_to_stop();
        let deadline = Instant::now() + self.stop_limit;
        let left = || deadline.saturating_duration_since(Instant::now());
        self.refresher.abort();
        let backlog = tokio::time::timeout(left(), self.engine.store.stop_message_processor());
        let agents = async {
            if let Some((_, agents)) = self.agents {
                agents.stop(left()).await;
            }
        };
        let admin = async {
            if let Some((_, admin)) = self.admin {
                admin.stop(left()).await;
            }
        };
        let (backlog, (), ()) = tokio::join!(backlog, agents, admin);
        if backlog.is_err() {
            tracing::warn!("left overdue messages to the next start");
        }
        self.engine.services.finish(left()).await;
        if tokio::time::timeout(
            left().max(Duration::from_secs(1)),
            self.engine.broadcasts.close(),
        )
        .await
        .is_err()
        {
            tracing::warn!("broadcast allocations are left to expire");
        }
    }
}

/// Wakes streams for messages that other processes have stored, as far as the
/// store hears of them.
async fn follow_hints(engine: Arc<Engine>) {
    let mut hints = engine.store.wakeups();
    while let Some(client) = hints.next().await {
        engine.streams.wake(client);
    }
}

async fn listen(
    wanted: &Wanted<'_>,
    whom: &'static str,
) -> Result<(SocketAddr, TcpListener), StartError> {
    wanted.listen().await.map_err(|source| StartError::Listen {
        address: wanted.address.to_owned(),
        whom,
        source,
    })
}

/// Returns an address with its host: `:443` means every address of this machine.
pub(crate) fn full_address(address: &str) -> String {
    match address.strip_prefix(':') {
        Some(port) => format!("[::]:{port}"),
        None => address.to_owned(),
    }
}

/// Returns an error with its causes on one line.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
