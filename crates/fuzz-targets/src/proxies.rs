//! What proxies write: PROXY headers, and certificates in HTTP headers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use fleethold_server::fuzzing::{ProxyStart, identify, read_proxy_header};
use fleethold_store::ClientId;
use tokio::io::{AsyncRead, ReadBuf};

use crate::bodies::RUNTIME;
use crate::memory::bounded;
use crate::split_mode;

/// The longest PROXY header, twice while its buffer grows.
const PROXY_CONSTANT_BYTES: usize = 16 * 1024;

/// What HTTP accepts of all headers of a request.
const MOST_HEADER_BYTES: usize = 64 * 1024;

/// Texts of errors, and the key.
const HEADER_CONSTANT_BYTES: usize = 4 * 1024;

/// The longest header that is accepted.
const MOST_PROXY_BYTES: usize = 4096;

/// The certificate of an agent as its proxy writes it.
const GENUINE: &str = "-----BEGIN%20CERTIFICATE-----%0A\
MIIBJzCBzaADAgECAgEBMAoGCCqGSM49BAMCMBsxGTAXBgNVBAoTEDdiYTc1ZGNm%0A\
YTQ2YzVlZGIwIhgPMDAwMTAxMDEwMDAwMDBaGA8wMDAxMDEwMTAwMDAwMFowGzEZ%0A\
MBcGA1UEChMQN2JhNzVkY2ZhNDZjNWVkYjBZMBMGByqGSM49AgEGCCqGSM49AwEH%0A\
A0IABCyO5yxk3qeEYzoDcHnUu%2FHWq3Ev%2BrPwn9hWLb5i5p9erJ%2Fvebuu3kLxGiRL%0A\
pFBniwi5%2BNNcqDb9D81ehbtZjecwCgYIKoZIzj0EAwIDSQAwRgIhAMMni%2FL1hLxD%0A\
EJvlHiGV20jm3EHUCG9no3Ay%2FgWkUsZ8AiEA49gd0sAhC6IT9KiAzeeWIgc3oUTb%0A\
CiDVOsUPoiS5L3M%3D%0A-----END%20CERTIFICATE-----%0A";
const GENUINE_CLIENT: &str = "7ba75dcfa46c5edb";

/// The start of a connection: byte 0 says in pieces of how many bytes the
/// others arrive.
pub fn proxy_header(input: &[u8]) {
    let Some((mode, rest)) = split_mode(input) else {
        return;
    };
    let whole = start_of(rest, rest.len().max(1));
    let pieces = start_of(rest, usize::from(mode) + 1);
    assert_eq!(whole.is_ok(), pieces.is_ok());
    let (Ok((start, left)), Ok((same_start, same_left))) = (whole, pieces) else {
        return;
    };
    assert_eq!(start, same_start);
    assert_eq!(left, same_left, "nothing behind the header is lost");
    match start {
        ProxyStart::Direct => assert_eq!(left, rest),
        ProxyStart::Local | ProxyStart::From(_) => {
            assert!(
                rest.ends_with(&left)
                    && (1..=MOST_PROXY_BYTES).contains(&(rest.len() - left.len()))
            );
        }
    }
}

/// A certificate in a header: byte 0 chooses the mode; the others are the
/// header and, on a line of its own, the checksum.
pub fn identity_header(input: &[u8]) {
    let Some((mode, rest)) = split_mode(input) else {
        return;
    };
    if rest.len() > MOST_HEADER_BYTES {
        return;
    }
    let mut lines = rest.splitn(2, |byte| *byte == b'\n');
    let header = lines.next().unwrap_or_default();
    let checksum = lines.next().unwrap_or_default();
    let found = bounded(rest.len(), HEADER_CONSTANT_BYTES, || {
        identify(mode, header, checksum)
    });
    if let Some((client, key)) = found {
        assert_eq!(client, ClientId::from_public_key(&key));
    }
    // Whatever stands before the last proxy's element, nobody else comes of it.
    for quote in [&b"\""[..], b""] {
        let last = [header, b",Cert=", quote, GENUINE.as_bytes(), quote].concat();
        if let Some((client, _)) = identify(3, &last, b"") {
            assert_eq!(client.to_string(), GENUINE_CLIENT);
        }
    }
}

/// Returns how a connection starts, and all bytes behind that.
fn start_of(bytes: &[u8], piece: usize) -> Result<(ProxyStart, Vec<u8>), String> {
    let mut stream = Pieces { bytes, piece };
    let (start, rest) = bounded(0, PROXY_CONSTANT_BYTES, || {
        RUNTIME.block_on(read_proxy_header(&mut stream))
    })?;
    Ok((start, [&rest, stream.bytes].concat()))
}

struct Pieces<'a> {
    bytes: &'a [u8],
    piece: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.piece.min(buffer.remaining()).min(self.bytes.len());
        let (piece, rest) = self.bytes.split_at(count);
        buffer.put_slice(piece);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}
