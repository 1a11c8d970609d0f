//! The agent's side of a stream.

use std::io::Write as _;

use bytes::{Buf, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use fleethold_proto::fleetspeak::{ContactData, WrappedContactData};
use http::header::{CONTENT_ENCODING, HeaderMap};
use http::{Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{Agent, RequestBody, over_http2, post, soon};

/// The first bytes of a stream.
pub(crate) const MAGIC: [u8; 4] = [0x01, 0x10, 0xee, 0xf1];

/// How an agent opens a stream.
#[derive(Clone, Debug)]
pub(crate) struct StreamOptions {
    pub(crate) version: Version,
    pub(crate) deflate: bool,
    /// Further headers, for instance those of the stock agent.
    pub(crate) headers: HeaderMap,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            version: Version::HTTP_11,
            deflate: false,
            headers: HeaderMap::new(),
        }
    }
}

type BodyFrame = Result<Frame<Bytes>, std::io::Error>;

/// An open stream.
pub(crate) struct AgentStream {
    upload: Upload,
    response: Response<Incoming>,
    received: BytesMut,
    /// The first frame of the server.
    pub(crate) first: ContactData,
}

/// The request's body, which stays open.
struct Upload {
    frames: Option<mpsc::UnboundedSender<BodyFrame>>,
    encoder: Option<ZlibEncoder<Vec<u8>>>,
}

impl Upload {
    fn send(&mut self, bytes: &[u8]) {
        let bytes = match &mut self.encoder {
            Some(encoder) => {
                encoder.write_all(bytes).unwrap();
                encoder.flush().unwrap();
                std::mem::take(encoder.get_mut())
            }
            None => bytes.to_vec(),
        };
        if let Some(frames) = &self.frames {
            // The server may have closed the stream; tests look at its answer.
            let _closed = frames.send(Ok(Frame::data(bytes.into())));
        }
    }
}

impl AgentStream {
    /// Opens a stream; an answer other than 200 is the error.
    pub(super) async fn open(
        agent: &Agent,
        options: StreamOptions,
        first: &WrappedContactData,
    ) -> Result<Self, StatusCode> {
        let bytes = [&MAGIC[..], &first.encode_length_delimited_to_vec()].concat();
        Self::open_with(agent, options, &bytes).await
    }

    /// Opens a stream that begins with these bytes.
    pub(crate) async fn open_with(
        agent: &Agent,
        options: StreamOptions,
        bytes: &[u8],
    ) -> Result<Self, StatusCode> {
        let (sender, frames) = mpsc::unbounded_channel();
        let mut upload = Upload {
            frames: Some(sender),
            encoder: options
                .deflate
                .then(|| ZlibEncoder::new(Vec::new(), Compression::default())),
        };
        upload.send(bytes);
        let mut request: Request<_> = post("/streaming-message", Bytes::new());
        if options.version == Version::HTTP_2 {
            request = over_http2(request);
        }
        *request.body_mut() = StreamBody::new(UnboundedReceiverStream::new(frames)).boxed_unsync();
        request.headers_mut().extend(options.headers);
        if options.deflate {
            request
                .headers_mut()
                .insert(CONTENT_ENCODING, "deflate".parse().unwrap());
        }
        let response = agent.request(request).await;
        if response.status() != StatusCode::OK {
            return Err(response.status());
        }
        let mut stream = Self {
            upload,
            response,
            received: BytesMut::new(),
            first: ContactData::default(),
        };
        stream.first = stream.frame().await.expect("the first frame");
        Ok(stream)
    }

    /// Returns the headers of the server's answer.
    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Sends a record.
    pub(crate) fn send(&mut self, record: &WrappedContactData) {
        self.send_bytes(&record.encode_length_delimited_to_vec());
    }

    /// Sends a record with this contact data.
    pub(crate) fn send_contact(&mut self, contact: &ContactData) {
        self.send(&WrappedContactData {
            contact_data: contact.encode_to_vec().into(),
            ..WrappedContactData::default()
        });
    }

    /// Sends bytes as one piece of the body.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.upload.send(bytes);
    }

    /// Ends the request's body and leaves the answer open.
    pub(crate) fn close_upload(&mut self) {
        self.upload.frames = None;
    }

    /// Returns the next frame; `None` at the end of the stream.
    pub(crate) async fn frame(&mut self) -> Option<ContactData> {
        soon("a frame", self.next_frame()).await
    }

    /// Returns the acks until the end of the stream or `count` of them; other
    /// frames are skipped.
    pub(crate) async fn acks(&mut self, count: usize) -> Vec<u64> {
        let mut acks = Vec::new();
        while acks.len() < count {
            match self.frame().await {
                Some(frame) if frame.ack_index > 0 => acks.push(frame.ack_index),
                Some(_) => {}
                None => break,
            }
        }
        acks
    }

    /// As [`frame`](Self::frame), however long it takes.
    pub(crate) async fn next_frame(&mut self) -> Option<ContactData> {
        loop {
            if let Some(frame) = self.whole_frame() {
                return Some(frame);
            }
            let piece = self.response.body_mut().frame().await?.ok()?;
            self.received
                .extend_from_slice(&piece.into_data().unwrap_or_default());
        }
    }

    /// Takes a frame out of what was received, if it is there to its end.
    fn whole_frame(&mut self) -> Option<ContactData> {
        let mut rest = &self.received[..];
        let size = prost::decode_length_delimiter(&mut rest).ok()?;
        if rest.len() < size {
            return None;
        }
        let prefix = self.received.len() - rest.len();
        self.received.advance(prefix);
        let frame = self.received.split_to(size).freeze();
        Some(ContactData::decode(frame).expect("a frame of the server"))
    }
}

/// Makes a request whose body is sent in these pieces, without a length.
pub(crate) fn chunked(request: Request<RequestBody>, pieces: Vec<Bytes>) -> Request<RequestBody> {
    let pieces = pieces
        .into_iter()
        .map(|piece| BodyFrame::Ok(Frame::data(piece)));
    let body = StreamBody::new(tokio_stream::iter(pieces)).boxed_unsync();
    request.map(|_| body)
}
