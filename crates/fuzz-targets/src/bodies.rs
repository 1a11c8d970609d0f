//! Bodies of requests: polls and the records of streams, compressed or not,
//! whole or in pieces.

use std::io::Write;
use std::sync::LazyLock;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use fleethold_server::fuzzing::{MOST_RECORD_BYTES, read_poll, read_stream};
use tokio::runtime::{Builder, Runtime};

use crate::memory::bounded;
use crate::split_mode;

/// The most bytes of a poll here; the server's own limit is too large to reach.
const MOST_POLL_BYTES: usize = 16 * 1024;

/// A compressed body of more bytes takes too long: each may become a thousand.
const MOST_COMPRESSED_BYTES: usize = 4 * 1024;

/// Timers and buffers of one body, whatever its length.
const BODY_CONSTANT_BYTES: usize = 128 * 1024;

const MAGIC: [u8; 4] = 0xf1ee_1001_u32.to_le_bytes();

pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime without input and output needs nothing")
});

/// A poll: the highest bit of byte 0 says whether the others are compressed,
/// the lowest six in pieces of how many bytes they arrive.
pub fn poll(input: &[u8]) {
    let Some((mode, rest)) = split_mode(input) else {
        return;
    };
    let deflate = mode & 0x80 != 0 && rest.len() <= MOST_COMPRESSED_BYTES;
    let piece = usize::from(mode & 0x3f) + 1;
    let whole = poll_body(rest, deflate, rest.len().max(1));
    // Which of two errors is found first may differ.
    assert_eq!(poll_body(rest, deflate, piece).ok(), whole.clone().ok());
    match (&whole, deflate) {
        (Ok(plain), true) => assert!(plain.len() <= MOST_POLL_BYTES),
        (Err(_), true) => {}
        (Ok(plain), false) => assert!(plain == rest && rest.len() <= MOST_POLL_BYTES),
        (Err(error), false) => assert!(rest.len() > MOST_POLL_BYTES, "{error}"),
    }
    if rest.len() <= MOST_POLL_BYTES {
        let compressed = compress([rest]);
        assert_eq!(poll_body(&compressed, true, piece).as_deref(), Ok(rest));
        let cut = &compressed[..compressed.len() - 1];
        assert!(poll_body(cut, true, piece).is_err());
    }
}

/// A stream: the two highest bits of byte 0 say what the others are, the lowest
/// six in pieces of how many bytes they arrive.
pub fn stream(input: &[u8]) {
    let Some((mode, rest)) = split_mode(input) else {
        return;
    };
    let piece = usize::from(mode & 0x3f) + 1;
    match mode >> 6 {
        0 => plain_stream(rest, piece),
        1 => compressed_stream(rest, piece),
        kind => own_records(rest, piece, kind == 3),
    }
}

/// Any bytes as a stream: its records are what a simple reader finds.
fn plain_stream(body: &[u8], piece: usize) {
    let (expected, end) = simple_reader(body);
    for piece in [piece, body.len().max(1)] {
        let mut expected = expected.iter();
        let chunks = chunks(body, piece);
        let error = bounded(body.len(), BODY_CONSTANT_BYTES, || {
            RUNTIME.block_on(read_stream(chunks, false, |record| {
                assert_eq!(Some(&&record[..]), expected.next());
            }))
        });
        assert_eq!(expected.next(), None, "{error:?}");
        let as_expected = match error.as_deref() {
            None => end == End::Whole,
            Some("the body ends too early") => end == End::Cut,
            Some(_) => end == End::Refused,
        };
        assert!(as_expected, "{error:?}");
    }
}

/// Any bytes as a compressed stream.
fn compressed_stream(body: &[u8], piece: usize) {
    if body.len() > MOST_COMPRESSED_BYTES {
        return;
    }
    let (whole, whole_error) = records(body, true, body.len().max(1));
    let (pieces, pieces_error) = records(body, true, piece);
    assert_eq!(whole_error.is_some(), pieces_error.is_some());
    // Damage may hide what arrives or is decompressed together with it.
    let common = whole.len().min(pieces.len());
    assert_eq!(whole[..common], pieces[..common]);
    assert!(whole_error.is_some() || whole.len() == pieces.len());
}

/// Records as an agent would send them, each written as its length and bytes:
/// all of them arrive as they are.
fn own_records(mut written: &[u8], piece: usize, deflate: bool) {
    let mut sent = Vec::new();
    while let Some((&length, rest)) = written.split_first() {
        let (record, rest) = rest.split_at(usize::from(length).min(rest.len()));
        sent.push(record);
        written = rest;
    }
    let frames = sent.iter().map(|record| {
        let mut frame = Vec::new();
        prost::encode_length_delimiter(record.len(), &mut frame).expect("a Vec grows");
        [&frame, *record].concat()
    });
    let parts: Vec<_> = std::iter::once(MAGIC.to_vec()).chain(frames).collect();
    let body = match deflate {
        true => compress(parts.iter().map(|part| &part[..])),
        false => parts.concat(),
    };
    let (received, error) = records(&body, deflate, piece);
    assert_eq!(error, None);
    assert_eq!(received, sent);
}

/// How a stream ends.
#[derive(PartialEq, Eq)]
enum End {
    Whole,
    /// In the middle of a record or its size.
    Cut,
    /// By what no agent sends.
    Refused,
}

/// Reads a plain stream in the simplest way: returns its records and its end.
fn simple_reader(body: &[u8]) -> (Vec<&[u8]>, End) {
    let mut records = Vec::new();
    let Some(mut rest) = body.strip_prefix(&MAGIC) else {
        return match MAGIC.starts_with(body) {
            true => (records, End::Cut),
            false => (records, End::Refused),
        };
    };
    while !rest.is_empty() {
        let digits = rest.iter().take_while(|byte| **byte >= 0x80).count() + 1;
        if digits > 10 {
            return (records, End::Refused);
        }
        let Some((prefix, after)) = rest.split_at_checked(digits) else {
            return (records, End::Cut);
        };
        let size = prefix
            .iter()
            .rev()
            .fold(0_u128, |value, byte| value << 7 | u128::from(byte & 0x7f));
        let size = usize::try_from(size).ok();
        let Some(size) = size.filter(|size| *size <= MOST_RECORD_BYTES) else {
            return (records, End::Refused);
        };
        let Some((record, after)) = after.split_at_checked(size) else {
            return (records, End::Cut);
        };
        records.push(record);
        rest = after;
    }
    (records, End::Whole)
}

fn records(body: &[u8], deflate: bool, piece: usize) -> (Vec<Bytes>, Option<String>) {
    let mut records = Vec::new();
    let read = read_stream(chunks(body, piece), deflate, |record| records.push(record));
    let error = RUNTIME.block_on(read);
    (records, error)
}

fn poll_body(body: &[u8], deflate: bool, piece: usize) -> Result<Bytes, String> {
    let chunks = chunks(body, piece);
    // What counts of a compressed body is how much it becomes.
    let bytes = match deflate {
        true => MOST_POLL_BYTES,
        false => body.len(),
    };
    LazyLock::force(&RUNTIME);
    bounded(bytes, BODY_CONSTANT_BYTES, || {
        RUNTIME.block_on(read_poll(chunks, deflate, MOST_POLL_BYTES))
    })
}

/// Cuts a body into pieces that share its memory.
fn chunks(body: &[u8], piece: usize) -> Vec<Bytes> {
    let body = Bytes::copy_from_slice(body);
    (0..body.len())
        .step_by(piece)
        .map(|start| body.slice(start..body.len().min(start + piece)))
        .collect()
}

/// Compresses with a flush after each part, as agents do.
fn compress<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    for part in parts {
        encoder.write_all(part).expect("a Vec grows");
        encoder.flush().expect("a Vec grows");
    }
    encoder.finish().expect("a Vec grows")
}
