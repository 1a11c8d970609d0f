//! One exchange with an agent: a poll, a record, or a frame with messages.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::Metrics;
use super::labels::text;

/// The kinds of exchange that upstream tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PollType {
    Poll,
    StreamStart,
    StreamFromClient,
    StreamToClient,
}

impl PollType {
    fn name(self) -> &'static str {
        match self {
            Self::Poll => "POLL",
            Self::StreamStart => "STREAM_START",
            Self::StreamFromClient => "STREAM_FROM_CLIENT",
            Self::StreamToClient => "STREAM_TO_CLIENT",
        }
    }
}

/// Is measured until it is dropped; one that nobody finished was aborted.
pub(crate) struct Exchange {
    metrics: Arc<Metrics>,
    kind: PollType,
    started: Instant,
    status: StatusCode,
    cache_hit: bool,
    read: (Duration, usize),
    written: (Duration, usize),
    write_started: Option<Instant>,
}

impl Exchange {
    pub(super) fn new(metrics: Arc<Metrics>, kind: PollType) -> Self {
        Self {
            metrics,
            kind,
            started: Instant::now(),
            status: StatusCode::INTERNAL_SERVER_ERROR,
            cache_hit: matches!(kind, PollType::StreamFromClient | PollType::StreamToClient),
            read: Default::default(),
            written: Default::default(),
            write_started: None,
        }
    }

    /// Notes that all of the agent's bytes are there.
    pub(crate) fn has_read(&mut self, bytes: usize) {
        self.read = (self.started.elapsed(), bytes);
    }

    /// Notes whether the client was in the cache.
    pub(crate) fn set_cache_hit(&mut self, cache_hit: bool) {
        self.cache_hit = cache_hit;
    }

    /// Notes how the exchange is answered, and that the answer begins.
    pub(crate) fn answers(&mut self, status: StatusCode) {
        self.status = status;
        self.write_started = Some(Instant::now());
    }

    /// Notes that more bytes of the answer were taken.
    pub(crate) fn has_written(&mut self, bytes: usize) {
        let started = self.write_started.unwrap_or(self.started);
        self.written = (started.elapsed(), self.written.1 + bytes);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let values = [self.status.as_str(), self.kind.name(), text(self.cache_hit)];
        self.metrics.polls.of(values).inc();
        #[expect(clippy::cast_precision_loss, reason = "a metric")]
        let megabytes = |bytes: usize| bytes as f64 / 1_000_000.0;
        let measured = [
            self.started.elapsed().as_secs_f64(),
            self.read.0.as_secs_f64(),
            self.written.0.as_secs_f64(),
            megabytes(self.read.1),
            megabytes(self.written.1),
        ];
        for (histogram, value) in self.metrics.poll_times.iter().zip(measured) {
            histogram.of(values).observe(value);
        }
    }
}
