//! The server's side of a connection. It outlives a connection that breaks: what
//! it was sent may be at work still, or may be begun only now.

use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::query::{INT, LONG};

/// Between two looks whether a process has gone.
const PAUSE: Duration = Duration::from_millis(5);

/// What says that no process will be ended.
const REFUSED: [SqlState; 3] = [
    SqlState::INSUFFICIENT_PRIVILEGE,
    SqlState::FEATURE_NOT_SUPPORTED,
    SqlState::UNDEFINED_FUNCTION,
];

/// The process of the server behind one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backend {
    process: i32,
    /// Tells it from a later process of the same number.
    started_micros: i64,
}

impl Backend {
    /// Asks for the process behind a connection; `None` on engines without any.
    pub(crate) async fn of(client: &Client) -> Option<Self> {
        let answer = client.simple_query(OWN).await.ok()?;
        answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(Self {
                process: row.try_get(0).ok()??.parse().ok()?,
                started_micros: row.try_get(1).ok()??.parse().ok()?,
            }),
            _ => None,
        })
    }

    /// Ends it, and waits until it has gone: what it was sent is committed then,
    /// or never will be. Goes on without that if this user may not, the engine
    /// cannot, or the process is another server's.
    pub(crate) async fn end(self, client: &Client) -> Result<(), tokio_postgres::Error> {
        loop {
            let ended = client
                .query_typed(END, &[(&self.process, INT), (&self.started_micros, LONG)])
                .await;
            match ended {
                Ok(rows) if rows.is_empty() => return Ok(()),
                Ok(_) => sleep(PAUSE).await,
                Err(error) if error.code().is_some_and(|code| REFUSED.contains(code)) => {
                    tracing::debug!(%error, "the process behind a lost connection is not ended");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

const OWN: &str = "\
-- connect (process)
SELECT pid, (extract(epoch FROM backend_start) * 1000000)::bigint
FROM pg_stat_activity WHERE pid = pg_backend_pid()";

// One that waits for a standby has committed, and ends by itself: to end it
// would show a commit that the standby has not got.
const END: &str = "\
-- repeat (end what was lost)
SELECT CASE WHEN wait_event IS DISTINCT FROM 'SyncRep' THEN pg_terminate_backend(pid) END
FROM pg_stat_activity
WHERE pid = $1 AND pid <> pg_backend_pid()
AND (extract(epoch FROM backend_start) * 1000000)::bigint = $2";
