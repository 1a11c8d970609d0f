//! Whether a server can do its work.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fleethold_store::{Error, StoreStats};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::engine::Engine;

/// For how long an answer of the store is good: whoever asks more often, and
/// however many ask, the store is asked once in this time.
const FRESH: Duration = Duration::from_secs(1);

/// How long the store may take to answer.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// The file that readiness writes, again and again.
const PROBE_FILE: (&str, &str) = ("fleethold", "readiness");

/// Messages that are overdue for so long are not being processed any more.
const OVERDUE_LIMIT: Duration = Duration::from_secs(10 * 60);

/// Answers whether the server is ready, and what is wrong if it is not.
pub(crate) struct Health {
    engine: Arc<Engine>,
    stopping: AtomicBool,
    written: Mutex<Option<(Instant, Result<(), String>)>>,
    read: Mutex<Option<(Instant, Result<StoreStats, String>)>>,
}

/// What deep health has found; each check is `Ok` or says what is wrong.
pub(crate) struct Report {
    checks: Vec<(&'static str, Result<(), String>)>,
    streams: usize,
}

impl Health {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self {
            engine,
            stopping: AtomicBool::new(false),
            written: Mutex::default(),
            read: Mutex::default(),
        }
    }

    /// From now on the server is not ready: agents should go elsewhere.
    pub(crate) fn begin_to_stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Returns whether agents can be served; the error is one line without details.
    pub(crate) async fn ready(&self) -> Result<(), String> {
        self.check_running()?;
        let mut written = self.written.lock().await;
        if let Some((at, result)) = &*written
            && at.elapsed() < FRESH
        {
            return result.clone();
        }
        let result = self.write().await;
        *written = Some((Instant::now(), result.clone()));
        result
    }

    /// Returns what the store says of its load.
    pub(crate) async fn store_stats(&self) -> Result<StoreStats, String> {
        let mut read = self.read.lock().await;
        if let Some((at, result)) = &*read
            && at.elapsed() < FRESH
        {
            return result.clone();
        }
        let result = match timeout(PROBE_LIMIT, self.engine.store.stats()).await {
            Ok(stats) => stats.map_err(|error| failed("read", &error)),
            Err(_) => Err(late("read")),
        };
        *read = Some((Instant::now(), result.clone()));
        result
    }

    /// Looks at everything.
    pub(crate) async fn report(&self) -> Report {
        let (written, stats) = tokio::join!(self.ready(), self.store_stats());
        let backlog =
            stats
                .as_ref()
                .map_or(Ok(()), |stats| match stats.oldest_overdue_server_message {
                    Some(age) if age > OVERDUE_LIMIT => Err(format!(
                        "messages for services have been overdue for {} s",
                        age.as_secs()
                    )),
                    _ => Ok(()),
                });
        Report {
            checks: vec![
                ("running", self.check_running()),
                ("store_write", written),
                ("store_read", stats.map(drop)),
                ("backlog", backlog),
            ],
            streams: self.engine.streams.clients().len(),
        }
    }

    fn check_running(&self) -> Result<(), String> {
        match self.stopping.load(Ordering::Acquire) {
            true => Err("the server is stopping".to_owned()),
            false => Ok(()),
        }
    }

    /// Writes to the store; only what is on disk counts.
    async fn write(&self) -> Result<(), String> {
        let (service, name) = PROBE_FILE;
        // Always something else: a store need not write what is there already.
        let number = self.engine.random.next_u64();
        let content = format!("written to see whether the store takes writes: {number:016x}\n");
        let mut content = content.as_bytes();
        let write = self.engine.store.store_file(service, name, &mut content);
        match timeout(PROBE_LIMIT, write).await {
            Ok(written) => written.map_err(|error| failed("write", &error)),
            Err(_) => Err(late("write")),
        }
    }
}

/// Logs what the store said; the port may be open to many.
fn failed(what: &str, error: &Error) -> String {
    tracing::warn!(error = %crate::chain(error), "the store fails to {what}");
    format!("the store fails to {what}; the server's log says why")
}

fn late(what: &str) -> String {
    tracing::warn!(
        limit_seconds = PROBE_LIMIT.as_secs(),
        "the store takes too long to {what}"
    );
    format!("the store takes too long to {what}")
}

impl Report {
    pub(crate) fn is_healthy(&self) -> bool {
        self.checks.iter().all(|(_, result)| result.is_ok())
    }

    /// Writes the report; no text in it needs an escape.
    pub(crate) fn to_json(&self) -> String {
        let mut json = format!("{{\"healthy\":{}", self.is_healthy());
        for (name, result) in &self.checks {
            let text = result.as_ref().map_or_else(String::as_str, |()| "ok");
            let _infallible = write!(json, ",\"{name}\":\"{text}\"");
        }
        let _infallible = writeln!(json, ",\"streams\":{}}}", self.streams);
        json
    }
}
