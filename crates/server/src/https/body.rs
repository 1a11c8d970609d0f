//! Request bodies without their content encoding, read no faster than memory
//! allows and no slower than an honest agent sends.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fleethold_store::ClientId;
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::inflate::Inflater;
use super::reply::Refusal;
use crate::limits::{Gate, Held, Limits, Refused};

/// When an agent may try again that met too much in flight.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Why a body cannot be read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the connection ended in the middle of the body")]
    Aborted(#[source] Box<dyn StdError + Send + Sync>),
    #[error("the body ends too early")]
    Truncated,
    #[error("the body is too large")]
    TooLarge,
    #[error("the body is not a zlib stream")]
    NotZlib,
    #[error("the body arrives too slowly")]
    TooSlow,
    #[error("too much is being received at the moment")]
    Exhausted,
    #[error("too much of this client is being received at the moment")]
    AgentExhausted,
}

impl BodyError {
    /// Returns which limit the body met, if that ended it.
    pub(super) fn refused(&self) -> Option<Refused> {
        match self {
            Self::Exhausted => Some(Refused::Bytes),
            Self::AgentExhausted => Some(Refused::AgentBytes),
            Self::TooSlow => Some(Refused::SlowBody),
            _ => None,
        }
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        match error.refused() {
            None => Self::bad_request(error.to_string()),
            Some(Refused::SlowBody) => Self::over_limit(Refused::SlowBody, error.to_string()),
            Some(refused) => Self::busy(refused, error.to_string(), RETRY_AFTER),
        }
    }
}

/// How the bytes of a body are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Deflate,
}

impl Encoding {
    /// Reads the encoding from a request's headers; only what agents send is known.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        match headers.get(CONTENT_ENCODING).map(|value| value.as_bytes()) {
            None | Some(b"") => Ok(Self::Plain),
            Some(b"deflate") => Ok(Self::Deflate),
            Some(_) => Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the content encoding must be `deflate` or absent",
            )),
        }
    }
}

/// The bytes that all requests together may have received and not yet processed.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    bytes: Arc<Semaphore>,
    gate: Arc<Gate>,
}

/// A share of the budget for one agent, given back when dropped.
#[derive(Debug)]
pub(super) struct Charge {
    bytes: Arc<Semaphore>,
    paid: Option<OwnedSemaphorePermit>,
    held: Held,
}

impl Budget {
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        let bytes = gate.limits.bytes_in_flight.min(Semaphore::MAX_PERMITS);
        Self {
            bytes: Arc::new(Semaphore::new(bytes)),
            gate,
        }
    }

    /// Starts a share of no bytes.
    pub(super) fn charge(&self, client: ClientId) -> Charge {
        Charge {
            bytes: Arc::clone(&self.bytes),
            paid: None,
            held: self.gate.agents.hold(client),
        }
    }

    /// Starts to watch the speed of a body.
    pub(super) fn pace(&self) -> Pace {
        Pace::start(&self.gate.limits)
    }
}

impl Charge {
    /// Adds bytes that have arrived, waiting at most `patience` for others to finish.
    pub(super) async fn add(&mut self, bytes: usize, patience: Duration) -> Result<(), BodyError> {
        let count = u32::try_from(bytes).map_err(|_| BodyError::Exhausted)?;
        if !self.held.add(bytes) {
            return Err(BodyError::AgentExhausted);
        }
        let budget = Arc::clone(&self.bytes);
        let permit = match Arc::clone(&budget).try_acquire_many_owned(count) {
            Ok(permit) => permit,
            Err(_) if patience.is_zero() => return Err(BodyError::Exhausted),
            Err(_) => tokio::time::timeout(patience, budget.acquire_many_owned(count))
                .await
                .ok()
                .and_then(Result::ok)
                .ok_or(BodyError::Exhausted)?,
        };
        match &mut self.paid {
            Some(paid) => paid.merge(permit),
            None => self.paid = Some(permit),
        }
        Ok(())
    }
}

/// Tells when a body that makes too little progress has to be given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    grace: Duration,
    least_bytes_per_second: usize,
    started: Instant,
    received: usize,
    latest: Instant,
}

impl Pace {
    fn start(limits: &Limits) -> Self {
        let now = Instant::now();
        Self {
            grace: limits.slow_body_timeout,
            least_bytes_per_second: limits.least_body_bytes_per_second.max(1),
            started: now,
            received: 0,
            latest: now,
        }
    }

    pub(super) fn received(&mut self, bytes: usize) {
        self.received += bytes;
        self.latest = Instant::now();
    }

    /// Returns when the next bytes must have arrived.
    pub(super) fn deadline(&self) -> Instant {
        let earned = u64::try_from(self.received / self.least_bytes_per_second);
        let earned = Duration::from_secs(earned.unwrap_or(u64::MAX));
        // Nothing is earned for a silence: what waits holds memory.
        (self.started + self.grace + earned).min(self.latest + self.grace)
    }
}

/// The bytes of a request body, decompressed as they arrive.
pub(super) struct PlainBody<B> {
    body: B,
    /// Received and not yet decompressed.
    compressed: Bytes,
    /// Boxed, because most agents do not compress.
    inflater: Option<Box<Inflater>>,
}

impl<B> PlainBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    pub(super) fn new(body: B, encoding: Encoding) -> Self {
        Self {
            body,
            compressed: Bytes::new(),
            inflater: (encoding == Encoding::Deflate).then(Box::default),
        }
    }

    /// Returns the next bytes, never none; `None` at the end. Cancel safe.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            if let Some(inflater) = &mut self.inflater {
                if let Some(plain) = inflater.inflate(&mut self.compressed)? {
                    return Ok(Some(plain));
                }
                if inflater.finished {
                    return Ok(None);
                }
            }
            let received = match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(BodyError::Aborted(error.into())),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            if received.is_empty() {
                continue;
            }
            if self.inflater.is_none() {
                return Ok(Some(received));
            }
            self.compressed = received;
        }
    }

    /// Reads the body to its end into one buffer that grows with what arrives.
    ///
    /// `announced` only avoids a last growth beyond what is needed.
    pub(super) async fn collect(
        mut self,
        limit: usize,
        announced: Option<usize>,
        mut pace: Pace,
        charge: &mut Charge,
    ) -> Result<Bytes, BodyError> {
        let mut collected = Vec::new();
        while let Some(chunk) = tokio::time::timeout_at(pace.deadline(), self.chunk())
            .await
            .map_err(|_| BodyError::TooSlow)??
        {
            if chunk.len() > limit - collected.len() {
                return Err(BodyError::TooLarge);
            }
            charge.add(chunk.len(), Duration::ZERO).await?;
            pace.received(chunk.len());
            append(
                &mut collected,
                &chunk,
                announced.unwrap_or(limit).min(limit),
            );
        }
        self.check_end().await?;
        Ok(Bytes::from(collected))
    }

    /// Checks that a compressed body ended where its zlib stream ended.
    async fn check_end(&mut self) -> Result<(), BodyError> {
        let Some(inflater) = &self.inflater else {
            return Ok(());
        };
        if !inflater.finished {
            return Err(BodyError::Truncated);
        }
        while self.compressed.is_empty() {
            match self.body.frame().await {
                None => return Ok(()),
                Some(Err(error)) => return Err(BodyError::Aborted(error.into())),
                Some(Ok(frame)) => self.compressed = frame.into_data().unwrap_or_default(),
            }
        }
        Err(BodyError::NotZlib)
    }
}

/// Appends to a buffer that will hold at most `total` bytes: it doubles, but
/// never beyond that.
pub(super) fn append(buffer: &mut Vec<u8>, bytes: &[u8], total: usize) {
    let needed = buffer.len() + bytes.len();
    if needed > buffer.capacity() {
        let capacity = (2 * buffer.capacity()).min(total).max(needed);
        buffer.reserve_exact(capacity - buffer.len());
    }
    buffer.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use futures::FutureExt;
    use http_body::Frame;
    use http_body_util::{Full, StreamBody};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::super::inflate::CHUNK_BYTES;
    use super::*;

    fn zlib(plain: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    async fn collect(compressed: Vec<u8>, limit: usize) -> Result<Bytes, BodyError> {
        let body = PlainBody::new(Full::new(Bytes::from(compressed)), Encoding::Deflate);
        let budget = Budget::new(Arc::new(Gate::new(Limits::default())));
        let mut charge = budget.charge(ClientId::new([1; 8]));
        body.collect(limit, None, budget.pace(), &mut charge).await
    }

    #[tokio::test]
    async fn compressed_body_is_read_to_its_end() {
        let plain: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(collect(zlib(&plain), plain.len()).await.unwrap(), plain);
        assert_eq!(collect(zlib(b""), 10).await.unwrap(), b"".as_slice());
    }

    #[tokio::test]
    async fn every_flush_delivers_all_bytes_before_it() {
        let (sender, frames) = mpsc::unbounded_channel();
        let body = StreamBody::new(UnboundedReceiverStream::new(frames));
        let mut body = PlainBody::new(body, Encoding::Deflate);
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        for part in [vec![1; 3], vec![2; CHUNK_BYTES], vec![3; 100_000], vec![4]] {
            encoder.write_all(&part).unwrap();
            encoder.flush().unwrap();
            let compressed = Bytes::from(std::mem::take(encoder.get_mut()));
            sender
                .send(Ok::<_, Infallible>(Frame::data(compressed)))
                .unwrap();
            let mut received = Vec::new();
            while received.len() < part.len() {
                let chunk = body.chunk().now_or_never().expect("nothing is held back");
                received.extend_from_slice(&chunk.unwrap().unwrap());
            }
            assert_eq!(received, part);
        }
        assert!(body.chunk().now_or_never().is_none());
    }

    #[tokio::test]
    async fn damaged_compressed_bodies_are_refused() {
        let good = zlib(b"a contact");
        let cut = good[..good.len() - 1].to_vec();
        let trailed = [&good[..], b"x"].concat();
        let mut wrong_sum = good.clone();
        *wrong_sum.last_mut().unwrap() ^= 1;
        assert!(matches!(collect(cut, 99).await, Err(BodyError::Truncated)));
        assert!(matches!(
            collect(vec![], 99).await,
            Err(BodyError::Truncated)
        ));
        for damaged in [trailed, wrong_sum, b"no zlib".to_vec()] {
            assert!(matches!(
                collect(damaged, 99).await,
                Err(BodyError::NotZlib)
            ));
        }
    }

    #[tokio::test]
    async fn bomb_is_given_up_at_the_limit() {
        let bomb = zlib(&vec![0; 1_000_001]);
        assert!(bomb.len() < 2_000);
        assert!(matches!(
            collect(bomb, 1_000_000).await,
            Err(BodyError::TooLarge)
        ));
    }

    #[tokio::test]
    async fn exhausted_budget_refuses_and_recovers() {
        let gate = Gate::new(Limits {
            bytes_in_flight: 100,
            ..Limits::default()
        });
        let budget = Budget::new(Arc::new(gate));
        let mut first = budget.charge(ClientId::new([1; 8]));
        first.add(60, Duration::ZERO).await.unwrap();
        first.add(30, Duration::ZERO).await.unwrap();
        let mut second = budget.charge(ClientId::new([2; 8]));
        assert!(matches!(
            second.add(11, Duration::ZERO).await,
            Err(BodyError::Exhausted)
        ));
        second.add(10, Duration::ZERO).await.unwrap();
        drop(first);
        second.add(90, Duration::ZERO).await.unwrap();
    }

    #[test]
    fn body_has_to_keep_a_least_speed() {
        let mut pace = Pace::start(&Limits::default());
        let grace = pace.grace;
        let started = pace.started;
        pace.received(60);
        assert_eq!(pace.deadline(), started + Duration::from_secs(45));
        pace.received(100 * 1024);
        let latest = pace.latest;
        assert_eq!(pace.deadline(), latest + grace);
        pace.latest = started + Duration::from_secs(120);
        assert_eq!(pace.deadline(), started + Duration::from_secs(145));
    }

    #[test]
    fn buffer_never_grows_beyond_its_total() {
        let mut buffer = Vec::new();
        append(&mut buffer, &[1; 60], 100);
        assert_eq!(buffer.capacity(), 60);
        append(&mut buffer, &[2; 10], 100);
        assert_eq!(buffer.capacity(), 100);
        append(&mut buffer, &[3; 30], 100);
        assert_eq!((buffer.len(), buffer.capacity()), (100, 100));
    }
}
