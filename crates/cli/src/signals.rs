//! The request to stop.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT, which ask a server to stop.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes over the signals; from now on they end nothing by themselves.
    pub(crate) fn install() -> Result<Self> {
        let install = |kind| signal(kind).context("cannot handle signals");
        Ok(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
        })
    }

    /// Takes over SIGHUP, which asks a server to read its files again.
    pub(crate) fn hang_up() -> Result<Signal> {
        signal(SignalKind::hangup()).context("cannot handle signals")
    }

    /// Waits for the next request and returns its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
