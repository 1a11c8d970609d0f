//! Connections: how they are made, checked and lent.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, Metrics, RecycleResult, Timeouts};
use deadpool_postgres::{ClientWrapper, ManagerConfig, RecyclingMethod};
use tokio_postgres::NoTls;

use crate::backend::Backend;
use crate::error::OpenError;
use crate::options::PostgresOptions;
use crate::tls::Tls;

/// A connection that rested longer is asked whether it still works.
const CHECKED_AFTER: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const CHECK_LIMIT: Duration = Duration::from_secs(2);

/// Plans as the statements mean them. They are kept for the life of a
/// connection, which may have begun when all tables were empty. Only a hint:
/// an engine without these settings, or a pooler, does without.
const PLANS: &str = "\
-- plans
SET enable_seqscan = off; SET jit = off";

pub(crate) type Object = managed::Object<Manager>;
pub(crate) type PoolError = managed::PoolError<tokio_postgres::Error>;

/// The pool, and the way to connections beside it.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    pool: managed::Pool<Manager>,
    config: Arc<tokio_postgres::Config>,
    tls: Tls,
}

impl Connections {
    pub(crate) fn new(options: &PostgresOptions) -> Result<Self, OpenError> {
        let mut config = options.config().clone();
        config.connect_timeout(CONNECT_LIMIT);
        config.keepalives_idle(Duration::from_secs(30));
        config.tcp_user_timeout(Duration::from_secs(15));
        if config.get_application_name().is_none() {
            config.application_name("fleethold");
        }
        let tls = Tls::new(options)?;
        let manager_config = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let config = Arc::new(config);
        let manager = Manager {
            inner: match &tls {
                Tls::Off => deadpool_postgres::Manager::from_config(
                    (*config).clone(),
                    NoTls,
                    manager_config,
                ),
                Tls::On(connect) => deadpool_postgres::Manager::from_config(
                    (*config).clone(),
                    connect.clone(),
                    manager_config,
                ),
            },
            is_own: options.prepared,
        };
        let pool = managed::Pool::builder(manager)
            .max_size(options.pool_size.get().into())
            .timeouts(Timeouts {
                wait: Some(options.wait_limit),
                create: Some(CONNECT_LIMIT),
                recycle: Some(CHECK_LIMIT),
            })
            .runtime(Runtime::Tokio1);
        Ok(Self {
            pool: pool.build().expect("a pool with a runtime"),
            config,
            tls,
        })
    }

    /// Lends a connection; waits for one as long as the options allow.
    pub(crate) async fn get(&self) -> Result<Object, PoolError> {
        self.pool.get().await
    }

    /// Makes a connection that does not belong to the pool. Its task ends with
    /// its client, and hands `messages` what the server says unasked.
    pub(crate) async fn connect(
        &self,
        messages: impl FnMut(tokio_postgres::AsyncMessage) + Send + 'static,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        match &self.tls {
            Tls::Off => {
                let (client, connection) = self.config.connect(NoTls).await?;
                tokio::spawn(drive(connection, messages));
                Ok(client)
            }
            Tls::On(connect) => {
                let (client, connection) = self.config.connect(connect.clone()).await?;
                tokio::spawn(drive(connection, messages));
                Ok(client)
            }
        }
    }

    /// Asks the server to end what a connection runs, in the background.
    pub(crate) fn cancel(&self, token: tokio_postgres::CancelToken) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let tls = self.tls.clone();
        runtime.spawn(tokio::time::timeout(CONNECT_LIMIT, async move {
            // It may have ended by itself.
            drop(match tls {
                Tls::Off => token.cancel_query(NoTls).await,
                Tls::On(connect) => token.cancel_query(connect).await,
            });
        }));
    }

    pub(crate) fn config(&self) -> &tokio_postgres::Config {
        &self.config
    }

    pub(crate) fn close(&self) {
        self.pool.close();
    }
}

/// A connection, and the process of the server behind it if that is known.
#[derive(Debug)]
pub(crate) struct Link {
    client: ClientWrapper,
    pub(crate) backend: Option<Backend>,
}

impl Deref for Link {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        &self.client
    }
}

/// Makes connections of the pool, and checks them before they are lent again.
#[derive(Debug)]
pub(crate) struct Manager {
    inner: deadpool_postgres::Manager,
    /// Whether no pooler is said to lend each statement another session.
    is_own: bool,
}

impl managed::Manager for Manager {
    type Type = Link;
    type Error = tokio_postgres::Error;

    async fn create(&self) -> Result<Link, tokio_postgres::Error> {
        let client = self.inner.create().await?;
        let mut backend = None;
        if self.is_own {
            let (_, found) = tokio::join!(client.batch_execute(PLANS), Backend::of(&client));
            backend = found;
        }
        Ok(Link { client, backend })
    }

    async fn recycle(
        &self,
        link: &mut Link,
        metrics: &Metrics,
    ) -> RecycleResult<tokio_postgres::Error> {
        if metrics.last_used() > CHECKED_AFTER {
            link.client.simple_query("").await?;
        }
        self.inner.recycle(&mut link.client, metrics).await
    }

    fn detach(&self, link: &mut Link) {
        self.inner.detach(&mut link.client);
    }
}

async fn drive<S, T>(
    mut connection: tokio_postgres::Connection<S, T>,
    mut messages: impl FnMut(tokio_postgres::AsyncMessage),
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    // An error reaches whoever waits for an answer; here it is only the end.
    while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
        messages(message);
    }
}
