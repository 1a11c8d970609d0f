//! The bytes of a connection below TLS and HTTP.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;

use crate::limits::{Gate, Refused};

/// A TCP connection that is limited and may have been looked into.
pub(super) type Tcp = WriteLimit<TcpStream>;

/// What HTTP is spoken over.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Returns the connection without encryption.
    fn tcp(&mut self) -> &mut Tcp;
}

impl Transport for Tcp {
    fn tcp(&mut self) -> &mut Tcp {
        self
    }
}

impl Transport for TlsStream<Tcp> {
    fn tcp(&mut self) -> &mut Tcp {
        self.get_mut().0
    }
}

/// Fails when the peer accepts next to nothing of what is written to it for a while.
pub(super) struct WriteLimit<T> {
    stream: T,
    /// What was read before and has to be read again.
    early: Bytes,
    pace: Pace,
    gate: Arc<Gate>,
    /// Runs while a write waits, since then.
    wait: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// How fast a peer takes what waits for it.
///
/// Only the time counts during which something waits: a connection with nothing
/// to say may rest for as long as it likes.
#[derive(Debug)]
struct Pace {
    limit: Duration,
    least_bytes_per_second: usize,
    waited: Duration,
    taken: usize,
}

impl Pace {
    fn new(limit: Duration, least_bytes_per_second: usize) -> Self {
        Self {
            limit,
            least_bytes_per_second,
            waited: Duration::ZERO,
            taken: 0,
        }
    }

    /// Returns how long the next wait may last.
    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.waited)
    }

    /// Notes a wait and what was taken after it; returns whether that is fast enough.
    fn note(&mut self, waited: Duration, taken: usize) -> bool {
        self.waited += waited;
        self.taken = self.taken.saturating_add(taken);
        if self.waited < self.limit {
            return true;
        }
        #[expect(clippy::cast_precision_loss, reason = "some bytes more or less")]
        let needed = self.waited.as_secs_f64() * self.least_bytes_per_second as f64;
        #[expect(clippy::cast_precision_loss, reason = "some bytes more or less")]
        let is_enough = self.taken > 0 && self.taken as f64 >= needed;
        self.waited = Duration::ZERO;
        self.taken = 0;
        is_enough
    }
}

impl<T> WriteLimit<T> {
    pub(super) fn new(stream: T, early: Bytes, gate: Arc<Gate>) -> Self {
        let limits = &gate.limits;
        let least = limits.least_body_bytes_per_second;
        Self {
            stream,
            early,
            pace: Pace::new(limits.write_timeout, least),
            gate,
            wait: None,
        }
    }

    fn check(
        &mut self,
        result: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(taken)) = result {
            return match self.wait.take() {
                Some((since, _)) if !self.pace.note(since.elapsed(), taken) => self.too_slow(),
                _ => result,
            };
        }
        if result.is_ready() {
            return result;
        }
        loop {
            let left = self.pace.left();
            let (since, timer) = self
                .wait
                .get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(left))));
            ready!(timer.as_mut().poll(context));
            let waited = since.elapsed().max(left);
            self.wait = None;
            if !self.pace.note(waited, 0) {
                return self.too_slow();
            }
        }
    }

    fn too_slow(&self) -> Poll<io::Result<usize>> {
        self.gate.refusals.count(Refused::SlowReader);
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the peer takes next to no data",
        )))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WriteLimit<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let count = self.early.len().min(buffer.remaining());
            buffer.put_slice(&self.early.split_to(count));
            if self.early.is_empty() {
                self.early = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WriteLimit<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.check(result, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.check(result, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(45);

    #[test]
    fn s4_reader_of_a_few_bytes_now_and_then_is_too_slow() {
        let mut pace = Pace::new(LIMIT, 1024);
        let mut waits = 0;
        while pace.note(Duration::from_secs(44), 100) {
            waits += 1;
            assert!(pace.left() <= Duration::from_secs(1));
            assert!(waits < 10, "it may go on for ever");
        }
        assert_eq!(waits, 1);
    }

    #[test]
    fn reader_that_is_fast_enough_may_go_on_for_ever() {
        let mut pace = Pace::new(LIMIT, 1024);
        for _ in 0..1_000 {
            assert!(pace.note(Duration::from_secs(44), 64 * 1024));
            assert!(pace.left() > Duration::ZERO);
        }
        // What waits for nobody costs no time.
        let mut pace = Pace::new(LIMIT, 1024);
        for _ in 0..1_000 {
            assert!(pace.note(Duration::ZERO, 1));
        }
    }

    #[test]
    fn reader_of_nothing_has_the_limit_once() {
        for least in [0, 1024] {
            let mut pace = Pace::new(LIMIT, least);
            assert_eq!(pace.left(), LIMIT);
            assert!(!pace.note(LIMIT, 0), "{least}");
        }
    }
}
