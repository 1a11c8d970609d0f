//! The agent's side of a stream.

use std::io::Write as _;

use bytes::{Buf, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use fleethold_proto::fleetspeak::{ContactData, Message};
use http::StatusCode;
use http::header::{CONNECTION, EXPECT, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::agent::{ANSWER_LIMIT, Agent, Connection, Http};
use super::failure::Failure;

/// The first bytes of a stream.
const MAGIC: [u8; 4] = [0x01, 0x10, 0xee, 0xf1];
/// Records that may wait for the connection.
const AHEAD: usize = 32;
/// The largest frame a server may send.
const MOST_FRAME_BYTES: usize = 64 << 20;

/// An open stream; dropping it closes its connection.
pub(crate) struct AgentStream {
    records: mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
    encoder: Option<ZlibEncoder<Vec<u8>>>,
    frames: Incoming,
    received: BytesMut,
    _connection: Connection,
}

impl Agent {
    /// Opens a stream on a connection of its own; returns it and its first frame.
    pub(crate) async fn stream(
        &self,
        messages: Vec<Message>,
    ) -> Result<(AgentStream, ContactData), Failure> {
        let mut connection = self.connect().await?;
        let (records, body) = mpsc::channel(AHEAD);
        let mut encoder = self
            .around()
            .deflate
            .then(|| ZlibEncoder::new(Vec::new(), Compression::fast()));
        let first = self.wrap(self.contact(messages, true));
        let mut bytes = MAGIC.to_vec();
        bytes.extend(first.encode_length_delimited_to_vec());
        let piece = compress(&mut encoder, bytes)?;
        let _has_room = records.try_send(Ok(Frame::data(piece)));
        let body = StreamBody::new(ReceiverStream::new(body)).boxed_unsync();
        let open = async {
            let mut request = self.request("/streaming-message", body);
            if self.around().http == Http::One {
                // As stock agents do; some servers answer early only then.
                let headers = request.headers_mut();
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
                headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
            }
            let response = connection.send(request).await?;
            if response.status() != StatusCode::OK {
                return Err(Failure::Refused(response.status().as_u16()));
            }
            let mut stream = AgentStream {
                records,
                encoder,
                frames: response.into_body(),
                received: BytesMut::new(),
                _connection: connection,
            };
            let first = stream.next_frame().await?;
            Ok((stream, first))
        };
        let (stream, first) = Failure::within(ANSWER_LIMIT, "a stream", open).await?;
        self.note_nonce(&first);
        Ok((stream, first))
    }

    /// Sends a record with these messages; `processed` returns as many tokens.
    pub(crate) async fn send_record(
        &self,
        stream: &mut AgentStream,
        messages: Vec<Message>,
        processed: u64,
    ) -> Result<(), Failure> {
        let mut contact = self.contact(messages, false);
        if processed > 0 {
            let service = self.around().service.to_owned();
            contact.allowed_messages.insert(service, processed);
        }
        let record = self.wrap(contact).encode_length_delimited_to_vec();
        let piece = compress(&mut stream.encoder, record)?;
        let sent = stream.records.send(Ok(Frame::data(piece))).await;
        sent.map_err(|_| Failure::Ended)
    }
}

impl AgentStream {
    /// Waits for the next frame; may be dropped and called again.
    pub(crate) async fn next_frame(&mut self) -> Result<ContactData, Failure> {
        loop {
            if let Some(frame) = self.whole_frame()? {
                return Ok(frame);
            }
            match self.frames.frame().await {
                Some(Ok(piece)) => {
                    let data = piece.into_data().unwrap_or_default();
                    self.received.extend_from_slice(&data);
                }
                // However it ends, the agent would reconnect.
                Some(Err(_)) | None => return Err(Failure::Ended),
            }
        }
    }

    /// Takes a frame out of what was received, if it is there to its end.
    fn whole_frame(&mut self) -> Result<Option<ContactData>, Failure> {
        let mut rest = &self.received[..];
        let Ok(size) = prost::decode_length_delimiter(&mut rest) else {
            return match self.received.len() {
                0..10 => Ok(None),
                _ => Err(Failure::Nonsense("a frame")),
            };
        };
        if size > MOST_FRAME_BYTES {
            return Err(Failure::Nonsense("a frame"));
        }
        if rest.len() < size {
            return Ok(None);
        }
        let prefix = self.received.len() - rest.len();
        self.received.advance(prefix);
        let frame = self.received.split_to(size).freeze();
        if self.received.is_empty() {
            // An idle stream keeps no buffer.
            self.received = BytesMut::new();
        }
        let frame = ContactData::decode(frame).map_err(|_| Failure::Nonsense("a frame"))?;
        Ok(Some(frame))
    }
}

/// Compresses up to a flush, if the stream is compressed.
fn compress(encoder: &mut Option<ZlibEncoder<Vec<u8>>>, bytes: Vec<u8>) -> Result<Bytes, Failure> {
    let Some(encoder) = encoder else {
        return Ok(bytes.into());
    };
    let written = encoder.write_all(&bytes).and_then(|()| encoder.flush());
    written.map_err(|_| Failure::Nonsense("own compression"))?;
    Ok(std::mem::take(encoder.get_mut()).into())
}
