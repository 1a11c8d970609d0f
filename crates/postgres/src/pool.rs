//! Connections: how they are made, checked and lent.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
    Timeouts,
};
use tokio_postgres::NoTls;

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

/// The pool, and the way to connections beside it.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    pool: Pool,
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
        let manager = match &tls {
            Tls::Off => Manager::from_config(config.clone(), NoTls, manager_config),
            Tls::On(connect) => {
                Manager::from_config(config.clone(), connect.clone(), manager_config)
            }
        };
        let mut pool = Pool::builder(manager)
            .max_size(options.pool_size.get().into())
            .timeouts(Timeouts {
                wait: Some(options.wait_limit),
                create: Some(CONNECT_LIMIT),
                recycle: Some(CHECK_LIMIT),
            })
            .runtime(Runtime::Tokio1)
            .pre_recycle(Hook::async_fn(|connection, metrics| {
                Box::pin(async move {
                    if metrics.last_used() > CHECKED_AFTER {
                        connection
                            .simple_query("")
                            .await
                            .map_err(HookError::Backend)?;
                    }
                    Ok(())
                })
            }));
        if options.prepared {
            pool = pool.post_create(Hook::async_fn(|connection, _| {
                Box::pin(async move {
                    drop(connection.batch_execute(PLANS).await);
                    Ok(())
                })
            }));
        }
        Ok(Self {
            pool: pool.build().expect("a pool with a runtime"),
            config: Arc::new(config),
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
