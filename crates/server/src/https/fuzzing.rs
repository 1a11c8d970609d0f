//! Doors for `crate::fuzzing`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fleethold_store::ClientId;
use futures::{FutureExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody};
use tokio::io::AsyncRead;

use super::body::{Budget, Encoding, PlainBody};
use super::framing::RecordReader;
use super::proxy::{self, Start};
use super::{files, identity};
use crate::config::{Frontend, XfccElement};
use crate::limits::{Gate, Limits};

/// The most bytes of a record.
pub const MOST_RECORD_BYTES: usize = super::MOST_CONTACT_BYTES;

const CLIENT: ClientId = ClientId::new(*b"an agent");

/// How a connection starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyStart {
    /// Without a header.
    Direct,
    /// With a header without an address.
    Local,
    /// With the address of who connected to the proxy.
    From(SocketAddr),
}

/// The answer to a download.
pub struct Download {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// What was sent.
    pub body: Bytes,
}

/// Reads the body of a poll that arrives in `chunks`.
pub async fn read_poll(chunks: Vec<Bytes>, deflate: bool, limit: usize) -> Result<Bytes, String> {
    let budget = budget();
    let mut charge = budget.charge(CLIENT);
    plain_body(chunks, deflate)
        .collect(limit, None, budget.pace(), &mut charge)
        .await
        .map_err(|error| error.to_string())
}

/// Gives the records of a stream that arrives in `chunks` to `record` and
/// returns why it ended, if not by its end.
pub async fn read_stream(
    chunks: Vec<Bytes>,
    deflate: bool,
    mut record: impl FnMut(Bytes),
) -> Option<String> {
    let mut records = RecordReader::new(plain_body(chunks, deflate), CLIENT, budget());
    if let Err(error) = records.magic().await {
        return Some(error.to_string());
    }
    loop {
        match records.next().await {
            Ok(Some(next)) => record(next.bytes),
            Ok(None) => return None,
            Err(error) => return Some(error.to_string()),
        }
    }
}

/// Returns the service and the name of the file that a path names.
pub fn file_of(path: &str) -> Option<(String, String)> {
    files::file_of(path)
}

/// Answers a download of an existing file.
pub fn serve_file(headers: &HeaderMap, modified: SystemTime, content: Bytes) -> Download {
    let (parts, body) = files::reply(&Method::GET, headers, Some(modified), content).into_parts();
    let collected = body.collect().now_or_never();
    let Ok(body) = collected.expect("the content is there");
    Download {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: body.to_bytes(),
    }
}

/// Reads the PROXY header of a connection; also returns what was read behind it.
pub async fn read_proxy_header(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<(ProxyStart, Bytes), String> {
    let start = proxy::read_start(stream).await;
    let (start, rest) = start.map_err(|error| error.to_string())?;
    let start = match start {
        Start::Direct => ProxyStart::Direct,
        Start::Local => ProxyStart::Local,
        Start::From(address) => ProxyStart::From(address),
    };
    Ok((start, rest))
}

/// Returns the client and the key of a certificate in a header: as it is, with
/// a checksum, or in the first or last element of an XFCC header.
pub fn identify(mode: u8, header: &[u8], checksum: &[u8]) -> Option<(ClientId, Bytes)> {
    const HEADER: HeaderName = HeaderName::from_static("x-certificate");
    const CHECKSUM: HeaderName = HeaderName::from_static("x-checksum");
    let frontend = match mode % 4 {
        2 | 3 => Frontend::Xfcc {
            header: HEADER,
            element: match mode % 4 {
                2 => XfccElement::First,
                _ => XfccElement::Last,
            },
        },
        mode => Frontend::Header {
            tls: true,
            certificate: HEADER,
            checksum: (mode == 1).then_some(CHECKSUM),
        },
    };
    let mut headers = HeaderMap::new();
    headers.insert(HEADER, HeaderValue::from_bytes(header).ok()?);
    headers.insert(CHECKSUM, HeaderValue::from_bytes(checksum).ok()?);
    identity::identify(&frontend, None, &headers).ok()
}

fn budget() -> Budget {
    Budget::new(Arc::new(Gate::new(Limits::default())))
}

fn plain_body(
    chunks: Vec<Bytes>,
    deflate: bool,
) -> PlainBody<impl Body<Data = Bytes, Error = Infallible> + Unpin> {
    let frames = chunks.into_iter().map(|chunk| Ok(Frame::data(chunk)));
    let encoding = match deflate {
        true => Encoding::Deflate,
        false => Encoding::Plain,
    };
    PlainBody::new(StreamBody::new(stream::iter(frames)), encoding)
}
