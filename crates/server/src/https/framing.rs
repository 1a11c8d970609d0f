//! The frames of a stream: what its body looks like in both directions
//! (protocol specification section 2.7).

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::time::Duration;

use bytes::{Buf, Bytes};
use fleethold_proto::fleetspeak::{ContactData, Message};
use fleethold_store::ClientId;
use http_body::Body;
use prost::Message as _;

use super::MOST_CONTACT_BYTES;
use super::body::{BodyError, Budget, Charge, Pace, PlainBody, append};

/// The first bytes of a stream, little endian.
const MAGIC: u32 = 0xf1ee_1001;

/// The longest base-128 varint of 64 bits.
const MOST_PREFIX_BYTES: u32 = 10;

/// How long a stream waits for memory before it gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is put into one frame at most, unless a single message is larger. An
/// agent takes frames of any size; smaller ones keep less memory busy.
const FRAME_BYTES: usize = 1024 * 1024;

/// The most messages in one frame.
const FRAME_MESSAGES: usize = 100;

/// Why the records of a stream end before the stream does.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("the stream does not begin with the magic number")]
    NoMagic,
    #[error("the size of a record is malformed")]
    BadSize,
    #[error("a record has {0} bytes, more than {MOST_CONTACT_BYTES}")]
    TooLarge(u64),
    #[error(transparent)]
    Body(#[from] BodyError),
}

/// One record, with its share of the memory budget.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) bytes: Bytes,
    pub(super) charge: Charge,
}

/// Cuts the body of a stream into records.
///
/// A record's buffer grows with the bytes received, whatever its size says.
pub(super) struct RecordReader<B> {
    body: PlainBody<B>,
    client: ClientId,
    budget: Budget,
    /// Received and not yet part of a record.
    rest: Bytes,
    size: Size,
    partial: Option<Partial>,
}

/// A base-128 number that is being received.
#[derive(Default)]
struct Size {
    value: u64,
    digits: u32,
}

/// A record that is being received.
struct Partial {
    size: usize,
    bytes: Vec<u8>,
    charge: Charge,
    /// How much of `bytes` is paid for.
    paid: usize,
    pace: Pace,
}

impl<B> RecordReader<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    pub(super) fn new(body: PlainBody<B>, client: ClientId, budget: Budget) -> Self {
        Self {
            body,
            client,
            budget,
            rest: Bytes::new(),
            size: Size::default(),
            partial: None,
        }
    }

    /// Reads the magic number at the start of the stream.
    pub(super) async fn magic(&mut self) -> Result<(), RecordError> {
        for expected in MAGIC.to_le_bytes() {
            if self.rest.is_empty() && !self.fill().await? {
                return Err(BodyError::Truncated.into());
            }
            if self.rest.get_u8() != expected {
                return Err(RecordError::NoMagic);
            }
        }
        Ok(())
    }

    /// Returns the next record; `None` when the body ends between two. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Record>, RecordError> {
        while self.partial.is_none() {
            if self.rest.is_empty() && !self.fill().await? {
                return match self.size.digits {
                    0 => Ok(None),
                    _ => Err(BodyError::Truncated.into()),
                };
            }
            if let Some(size) = self.size.push(self.rest.get_u8())? {
                self.size = Size::default();
                self.partial = Some(Partial {
                    size,
                    bytes: Vec::new(),
                    charge: self.budget.charge(self.client),
                    paid: 0,
                    pace: self.budget.pace(),
                });
            }
        }
        while let Some(partial) = &mut self.partial {
            let missing = partial.size - partial.bytes.len();
            let arrived = self.rest.split_to(missing.min(self.rest.len()));
            append(&mut partial.bytes, &arrived, partial.size);
            partial.pace.received(arrived.len());
            let unpaid = partial.bytes.len() - partial.paid;
            partial.charge.add(unpaid, PATIENCE).await?;
            partial.paid += unpaid;
            if partial.bytes.len() == partial.size {
                break;
            }
            let deadline = partial.pace.deadline();
            let more = tokio::time::timeout_at(deadline, self.fill())
                .await
                .map_err(|_| BodyError::TooSlow)??;
            if !more {
                return Err(BodyError::Truncated.into());
            }
        }
        if self.rest.is_empty() {
            // An empty rest would keep the connection's read buffer alive.
            self.rest = Bytes::new();
        }
        Ok(self.partial.take().map(|partial| Record {
            bytes: Bytes::from(partial.bytes),
            charge: partial.charge,
        }))
    }

    /// Returns whether a record has begun to arrive.
    pub(super) fn is_inside_record(&self) -> bool {
        self.partial.is_some()
    }

    /// Replaces the empty rest by the next bytes; `false` at the end of the body.
    async fn fill(&mut self) -> Result<bool, BodyError> {
        self.rest = Bytes::new();
        let Some(chunk) = self.body.chunk().await? else {
            return Ok(false);
        };
        self.rest = chunk;
        Ok(true)
    }
}

impl Size {
    /// Adds the next byte; returns the number with its last one.
    fn push(&mut self, byte: u8) -> Result<Option<usize>, RecordError> {
        let digit = u64::from(byte & 0x7f);
        if self.digits == MOST_PREFIX_BYTES || (self.digits == MOST_PREFIX_BYTES - 1 && byte > 1) {
            return Err(RecordError::BadSize);
        }
        self.value |= digit << (7 * self.digits);
        self.digits += 1;
        if byte & 0x80 != 0 {
            return Ok(None);
        }
        match usize::try_from(self.value) {
            Ok(size) if size <= MOST_CONTACT_BYTES => Ok(Some(size)),
            _ => Err(RecordError::TooLarge(self.value)),
        }
    }
}

/// Returns the frame that acknowledges record `index`.
pub(super) fn ack(index: u64) -> Bytes {
    frame(&ContactData {
        ack_index: index,
        ..ContactData::default()
    })
}

/// Returns the frame that asks the agent to close the stream.
pub(super) fn done_sending() -> Bytes {
    frame(&ContactData {
        done_sending: true,
        ..ContactData::default()
    })
}

/// Returns a frame with the nonce and the first of `messages`, which it takes out.
pub(super) fn delivery(nonce: u64, messages: &mut VecDeque<Message>) -> Bytes {
    frame(&ContactData {
        sequencing_nonce: nonce,
        messages: take_messages(messages, FRAME_BYTES),
        ..ContactData::default()
    })
}

/// Takes out the first messages: at most 100, and together at most `bytes` unless
/// the first alone is larger.
pub(super) fn take_messages(messages: &mut VecDeque<Message>, bytes: usize) -> Vec<Message> {
    let mut total = 0;
    let count = messages
        .iter()
        .take(FRAME_MESSAGES)
        .take_while(|message| {
            let first = total == 0;
            total += message.encoded_len();
            first || total <= bytes
        })
        .count();
    messages.drain(..count).collect()
}

fn frame(data: &ContactData) -> Bytes {
    Bytes::from(data.encode_length_delimited_to_vec())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use fleethold_proto::Any;
    use futures::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use std::sync::Arc;

    use super::super::body::Encoding;
    use super::*;
    use crate::limits::{Gate, Limits};

    /// Reads all records of a body that arrives in pieces of `piece` bytes.
    async fn records(body: &[u8], piece: usize) -> (Vec<Bytes>, Option<RecordError>) {
        let pieces: Vec<_> = body
            .chunks(piece)
            .map(|bytes| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(bytes))))
            .collect();
        let body = PlainBody::new(StreamBody::new(stream::iter(pieces)), Encoding::Plain);
        let mut reader = RecordReader::new(body, ClientId::new([1; 8]), budget());
        let mut records = Vec::new();
        if let Err(error) = reader.magic().await {
            return (records, Some(error));
        }
        loop {
            match reader.next().await {
                Ok(Some(record)) => records.push(record.bytes),
                Ok(None) => return (records, None),
                Err(error) => return (records, Some(error)),
            }
        }
    }

    fn budget() -> Budget {
        Budget::new(Arc::new(Gate::new(Limits::default())))
    }

    fn body(parts: &[&[u8]]) -> Vec<u8> {
        [&MAGIC.to_le_bytes()[..], &parts.concat()].concat()
    }

    #[tokio::test]
    async fn p_072_chunk_borders_mean_nothing() {
        let long = vec![7; 300];
        let whole = body(&[b"\x02ab", b"\x00", b"\xac\x02", &long, b"\x01c"]);
        for piece in [1, 2, 3, 5, 100, 1_000] {
            let (records, error) = records(&whole, piece).await;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(records, [&b"ab"[..], b"", &long, b"c"]);
        }
    }

    #[tokio::test]
    async fn p_073_sizes_of_one_to_four_bytes_are_read() {
        for size in [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152] {
            let content = vec![1; size];
            let mut prefix = Vec::new();
            prost::encode_length_delimiter(size, &mut prefix).unwrap();
            let (records, error) = records(&body(&[&prefix, &content]), 10_000).await;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(records, [content]);
        }
    }

    #[tokio::test]
    async fn p_073_malformed_sizes_end_the_records() {
        let over_long = body(&[b"\x01a", &[0x80; 11]]);
        let (got, error) = records(&over_long, 4).await;
        assert_eq!(got, [&b"a"[..]]);
        assert!(matches!(error, Some(RecordError::BadSize)), "{error:?}");

        let too_large = body(&[b"\x81\x80\x80\x0a"]);
        let (_, error) = records(&too_large, 4).await;
        assert!(
            matches!(error, Some(RecordError::TooLarge(20_971_521))),
            "{error:?}"
        );

        let over_64_bits = body(&[&[0xff; 9], b"\x02"]);
        let (_, error) = records(&over_64_bits, 4).await;
        assert!(matches!(error, Some(RecordError::BadSize)), "{error:?}");
    }

    #[tokio::test]
    async fn body_that_ends_inside_a_record_is_an_error() {
        for cut in [&b"\x80"[..], b"\x02a", b"\x02"] {
            let (got, error) = records(&body(&[cut]), 100).await;
            assert!(got.is_empty());
            let truncated = matches!(error, Some(RecordError::Body(BodyError::Truncated)));
            assert!(truncated, "{error:?}");
        }
    }

    #[tokio::test]
    async fn stream_begins_with_the_magic_number() {
        let (_, error) = records(b"\x01\x10\xee\xf2\x00", 100).await;
        assert!(matches!(error, Some(RecordError::NoMagic)));
        let (_, error) = records(b"\x01\x10", 100).await;
        assert!(matches!(
            error,
            Some(RecordError::Body(BodyError::Truncated))
        ));
    }

    #[tokio::test]
    async fn p_234_announced_size_allocates_nothing() {
        let pieces = [Ok::<_, Infallible>(Frame::data(Bytes::from_static(
            b"\x01\x10\xee\xf1\x80\x80\x80\x0aab",
        )))];
        let body = StreamBody::new(futures::StreamExt::chain(
            stream::iter(pieces),
            stream::pending(),
        ));
        let body = PlainBody::new(body, Encoding::Plain);
        let mut reader = RecordReader::new(body, ClientId::new([1; 8]), budget());
        reader.magic().await.unwrap();
        assert!(futures::FutureExt::now_or_never(reader.next()).is_none());
        let partial = reader.partial.unwrap();
        assert_eq!((partial.size, partial.bytes.capacity()), (20 << 20, 2));
    }

    // Vectors: protocol specification C.3.
    #[test]
    fn frames_look_as_agents_expect() {
        assert_eq!(ack(1), b"\x02\x20\x01"[..]);
        assert_eq!(done_sending(), b"\x02\x28\x01"[..]);
        assert_eq!(delivery(42, &mut VecDeque::new()), b"\x02\x08\x2a"[..]);
    }

    #[test]
    fn p_075_frames_are_limited_in_messages_and_bytes() {
        let message = |bytes: usize| Message {
            message_id: Bytes::from_static(b"id"),
            data: Some(Any {
                value: vec![0; bytes].into(),
                ..Any::default()
            }),
            ..Message::default()
        };
        let mut small: VecDeque<_> = (0..250).map(|_| message(0)).collect();
        let counts: Vec<_> = std::iter::from_fn(|| {
            (!small.is_empty()).then(|| take_messages(&mut small, FRAME_BYTES).len())
        })
        .collect();
        assert_eq!(counts, [100, 100, 50]);

        let mut large: VecDeque<_> = [2 << 20, 600 << 10, 300 << 10, 300 << 10]
            .map(message)
            .into();
        let counts: Vec<_> = std::iter::from_fn(|| {
            (!large.is_empty()).then(|| take_messages(&mut large, FRAME_BYTES).len())
        })
        .collect();
        assert_eq!(counts, [1, 2, 1]);
    }
}
