//! The PROXY protocol, versions 1 and 2: what a proxy writes before anything
//! else, to tell where a connection comes from (protocol specification section 5.2).

use std::io;
use std::net::SocketAddr;

use bytes::{Buf, Bytes, BytesMut};
use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// How a header of version 1 begins.
const TEXT: &[u8] = b"PROXY ";

/// The longest header of version 1, its line end included.
const MOST_TEXT_BYTES: usize = 107;

/// What precedes the variable part of a header of version 2.
const BINARY_START_BYTES: usize = 16;

/// The longest header of version 2 that is accepted; proxies send about 100 bytes.
const MOST_BINARY_BYTES: usize = 4096;

/// What a connection begins with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// No header.
    Direct,
    /// A header without an address: the proxy connects for itself.
    Local,
    /// A header with the address of who connected to the proxy.
    From(SocketAddr),
}

/// A header that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("the connection ended in its PROXY header")]
    Truncated,
    #[error("a malformed PROXY header: {0}")]
    Malformed(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads the header, if there is one, and returns also what was read behind it.
pub(super) async fn read_start<R: AsyncRead + Unpin>(
    stream: &mut R,
) -> Result<(Start, Bytes), ProxyError> {
    // Enough for every usual header at once.
    let mut received = BytesMut::with_capacity(512);
    loop {
        if let Some((start, length)) = parse(&received)? {
            let mut rest = received.freeze();
            rest.advance(length);
            return Ok((start, rest));
        }
        if stream.read_buf(&mut received).await? == 0 {
            return match received.is_empty() {
                true => Ok((Start::Direct, Bytes::new())),
                false => Err(ProxyError::Truncated),
            };
        }
    }
}

/// Reads the start of a connection; `None` when more bytes are needed. Also
/// returns the length of the header.
fn parse(received: &[u8]) -> Result<Option<(Start, usize)>, ProxyError> {
    let begins_with = |signature: &[u8]| {
        let length = signature.len().min(received.len());
        received[..length] == signature[..length]
    };
    if begins_with(v2::PROTOCOL_PREFIX) {
        parse_binary(received)
    } else if begins_with(TEXT) {
        parse_text(received)
    } else {
        Ok(Some((Start::Direct, 0)))
    }
}

fn parse_text(received: &[u8]) -> Result<Option<(Start, usize)>, ProxyError> {
    let malformed = |problem: &dyn ToString| ProxyError::Malformed(problem.to_string());
    let within = &received[..received.len().min(MOST_TEXT_BYTES)];
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        return match received.len() < MOST_TEXT_BYTES {
            true => Ok(None),
            false => Err(malformed(&"it has no line end")),
        };
    };
    let length = end + 2;
    let header = v1::Header::try_from(&received[..length]).map_err(|error| malformed(&error))?;
    let start = match header.addresses {
        v1::Addresses::Unknown => Start::Local,
        v1::Addresses::Tcp4(ip) => from(ip.source_address, ip.source_port),
        v1::Addresses::Tcp6(ip) => from(ip.source_address, ip.source_port),
    };
    Ok(Some((start, length)))
}

fn parse_binary(received: &[u8]) -> Result<Option<(Start, usize)>, ProxyError> {
    if received.len() < BINARY_START_BYTES {
        return Ok(None);
    }
    let more = u16::from_be_bytes([received[14], received[15]]);
    let length = BINARY_START_BYTES + usize::from(more);
    if length > MOST_BINARY_BYTES {
        let problem = format!("it has {length} bytes, more than {MOST_BINARY_BYTES}");
        return Err(ProxyError::Malformed(problem));
    }
    if received.len() < length {
        return Ok(None);
    }
    let header = v2::Header::try_from(&received[..length])
        .map_err(|error| ProxyError::Malformed(error.to_string()))?;
    let start = match (header.command, header.addresses) {
        (v2::Command::Proxy, v2::Addresses::IPv4(ip)) => from(ip.source_address, ip.source_port),
        (v2::Command::Proxy, v2::Addresses::IPv6(ip)) => from(ip.source_address, ip.source_port),
        _ => Start::Local,
    };
    Ok(Some((start, length)))
}

fn from(ip: impl Into<std::net::IpAddr>, port: u16) -> Start {
    Start::From((ip.into().to_canonical(), port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IPV4: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\x7f\0\0\x01\xd4\x31\x01\xbb";

    fn ipv6() -> Vec<u8> {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x28".to_vec();
        header.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        header.extend([0; 15]);
        header.extend([1, 0xd4, 0x31, 1, 0xbb]);
        // A type-length-value part that nobody knows.
        header.extend([0xee, 0, 1, 9]);
        header
    }

    fn address(text: &str) -> Start {
        Start::From(text.parse().unwrap())
    }

    /// Reads a connection that arrives in pieces of `piece` bytes.
    async fn read(bytes: &[u8], piece: usize) -> Result<(Start, Vec<u8>), ProxyError> {
        let mut builder = io::Cursor::new(bytes.to_vec());
        let mut stream = Pieces(&mut builder, piece);
        let (start, rest) = read_start(&mut stream).await?;
        let mut all = rest.to_vec();
        stream.read_to_end(&mut all).await.unwrap();
        Ok((start, all))
    }

    struct Pieces<'a>(&'a mut io::Cursor<Vec<u8>>, usize);

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            let this = self.get_mut();
            let bytes = &mut vec![0; this.1.min(buffer.remaining())];
            let count = io::Read::read(this.0, bytes)?;
            buffer.put_slice(&bytes[..count]);
            std::task::Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn p_194_headers_of_both_versions_name_the_source() {
        let text4: &[u8] = b"PROXY TCP4 192.0.2.1 127.0.0.1 54321 443\r\n";
        let text6: &[u8] = b"PROXY TCP6 2001:db8::7 ::1 54321 443\r\n";
        let mapped: &[u8] = b"PROXY TCP6 ::ffff:192.0.2.1 ::1 54321 443\r\n";
        for (header, expected) in [
            (text4, address("192.0.2.1:54321")),
            (text6, address("[2001:db8::7]:54321")),
            (mapped, address("192.0.2.1:54321")),
            (b"PROXY UNKNOWN\r\n", Start::Local),
            (b"PROXY UNKNOWN a b c d\r\n", Start::Local),
            (IPV4, address("192.0.2.1:54321")),
            (&ipv6(), address("[2001:db8::7]:54321")),
            // LOCAL, and an address of no network.
            (b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\x00", Start::Local),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x00\0\x02ab", Start::Local),
        ] {
            for piece in [1, 2, 7, 1_000] {
                let connection = [header, b"\x16\x03\x01 and more"].concat();
                let (start, rest) = read(&connection, piece).await.unwrap();
                assert_eq!(start, expected, "{header:?}");
                assert_eq!(rest, b"\x16\x03\x01 and more");
            }
        }
    }

    #[tokio::test]
    async fn p_195_connection_without_header_loses_nothing() {
        for connection in [
            &b"\x16\x03\x01\x02\0"[..],
            b"POST /message HTTP/1.1\r\n",
            b"\r\n\r\nGET",
            b"",
        ] {
            for piece in [1, 1_000] {
                let (start, all) = read(connection, piece).await.unwrap();
                assert_eq!((start, &all[..]), (Start::Direct, connection));
            }
        }
    }

    #[tokio::test]
    async fn p_196_malformed_headers_are_errors() {
        let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 200], b"\r\n"].concat();
        let huge = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..], &[0; 70_000]].concat();
        for header in [
            &b"PROXY TCP4 1.2.3.4 1.2.3.4 1 \r\n"[..],
            b"PROXY TCP4 1.2.3.999 1.2.3.4 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY \xff\xfe\r\n",
            b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY \r\n",
            &long,
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c000000000000",
            b"\r\n\r\n\0\r\nQUIT\n\x2f\x11\0\x0c000000000000",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x51\0\x0c000000000000",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x03000",
            &huge,
        ] {
            for piece in [1, 1_000] {
                let result = read(header, piece).await;
                let malformed = matches!(result, Err(ProxyError::Malformed(_)));
                assert!(malformed, "{:?}: {result:?}", &header[..20]);
            }
        }
        for cut in [&b"PROXY TCP4 1.2"[..], b"P", b"\r\n\r\n\0", &IPV4[..20]] {
            let result = read(cut, 1_000).await;
            assert!(matches!(result, Err(ProxyError::Truncated)), "{result:?}");
        }
    }
}
