//! Decompression that holds nothing back at a flush, and next to nothing while
//! a stream rests: most streams of a fleet do.

use bytes::{Buf, Bytes};
use miniz_oxide::inflate::TINFLStatus as Status;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_PARSE_ZLIB_HEADER, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY,
    TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress};

use super::body::BodyError;

/// How much is decompressed at a time.
pub(super) const CHUNK_BYTES: usize = 16 * 1024;

/// How far back a compressed stream may refer.
const WINDOW_BYTES: usize = 32 * 1024;

const FLAGS: u32 = TINFL_FLAG_PARSE_ZLIB_HEADER
    | TINFL_FLAG_HAS_MORE_INPUT
    | TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY
    | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;

/// An incremental zlib decoder.
#[derive(Default)]
pub(super) struct Inflater {
    state: State,
    /// The latest output, which what follows may refer to, and room for more.
    window: Vec<u8>,
    /// How much of the window is output.
    used: usize,
    /// The last output was cut off by its size.
    more: bool,
    /// The stream has ended.
    pub(super) finished: bool,
}

/// What is to be remembered besides the window.
#[derive(Default)]
enum State {
    #[default]
    Start,
    /// Inside a block: tables of 10 KiB.
    Inside(Box<DecompressorOxide>),
    /// Between two blocks, as after every flush: some bytes.
    Between(BlockBoundaryState),
}

impl Inflater {
    /// Takes input and returns the next output; `None` when more input is needed.
    pub(super) fn inflate(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, BodyError> {
        while !self.finished && (self.more || !input.is_empty()) {
            let mut decoder = match std::mem::take(&mut self.state) {
                State::Start => Box::default(),
                State::Inside(decoder) => decoder,
                State::Between(state) => {
                    Box::new(DecompressorOxide::from_block_boundary_state(&state))
                }
            };
            let start = self.make_room();
            let room = &mut self.window[..start + CHUNK_BYTES];
            let (status, consumed, written) = decompress(&mut decoder, input, room, start, FLAGS);
            self.used = start + written;
            input.advance(consumed);
            if input.is_empty() {
                // An empty rest would keep the connection's read buffer alive.
                *input = Bytes::new();
            }
            let output = Bytes::copy_from_slice(&self.window[start..self.used]);

            self.more = false;
            self.state = State::Inside(decoder);
            match status {
                Status::Done => {
                    self.finished = true;
                    self.forget();
                }
                Status::BlockBoundary if input.is_empty() => self.rest(),
                Status::BlockBoundary | Status::NeedsMoreInput => {}
                Status::HasMoreOutput => self.more = true,
                _ => return Err(BodyError::NotZlib),
            }
            if !output.is_empty() {
                return Ok(Some(output));
            }
            if consumed == 0 && status != Status::BlockBoundary {
                break;
            }
        }
        Ok(None)
    }

    /// Makes room for a chunk behind the window; returns where.
    fn make_room(&mut self) -> usize {
        if self.used > WINDOW_BYTES + CHUNK_BYTES {
            self.cut();
        }
        let needed = self.used + CHUNK_BYTES;
        if self.window.len() < needed {
            self.window.reserve_exact(needed - self.window.len());
            self.window.resize(needed, 0);
        }
        self.used
    }

    /// Forgets what lies too far back.
    fn cut(&mut self) {
        let surplus = self.used.saturating_sub(WINDOW_BYTES);
        self.window.copy_within(surplus..self.used, 0);
        self.used -= surplus;
    }

    /// Gives up what can be made again.
    fn rest(&mut self) {
        if let State::Inside(decoder) = &self.state
            && let Some(state) = decoder.block_boundary_state()
        {
            self.state = State::Between(state);
        }
        self.cut();
        self.window.truncate(self.used);
        self.window.shrink_to_fit();
    }

    fn forget(&mut self) {
        self.state = State::Start;
        self.window = Vec::new();
        self.used = 0;
    }

    /// Returns how many bytes are held.
    #[cfg(test)]
    fn held_bytes(&self) -> usize {
        let state = match &self.state {
            State::Inside(decoder) => size_of_val(&**decoder),
            State::Start | State::Between(_) => 0,
        };
        state + self.window.capacity()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    /// Text that repeats itself, also over long distances, and noise.
    fn sample(bytes: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut sample = Vec::with_capacity(bytes);
        while sample.len() < bytes {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let number = usize::try_from(state >> 33).unwrap();
            match number % 3 {
                0 => sample.extend_from_slice(&state.to_le_bytes()),
                1 => sample.extend_from_slice(b"the same words again and again "),
                _ => {
                    let back = 1 + number % 40_000;
                    let start = sample.len().saturating_sub(back);
                    let end = sample.len().min(start + number % 300);
                    sample.extend_from_within(start..end);
                }
            }
        }
        sample.truncate(bytes);
        sample
    }

    fn inflate_all(inflater: &mut Inflater, input: &[u8], piece: usize) -> Vec<u8> {
        let mut plain = Vec::new();
        for part in input.chunks(piece) {
            let mut part = Bytes::copy_from_slice(part);
            while let Some(output) = inflater.inflate(&mut part).unwrap() {
                plain.extend_from_slice(&output);
            }
            assert!(part.is_empty());
        }
        plain
    }

    #[test]
    fn flushed_parts_of_all_sizes_come_out_whole_however_they_arrive() {
        for (piece, levels) in [
            (1, &[6][..]),
            (7, &[1]),
            (1_000, &[0, 1, 6, 9]),
            (1_000_000, &[0, 1, 6, 9]),
        ] {
            for &level in levels {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(level));
                let mut inflater = Inflater::default();
                for (number, size) in [1, 100, 40_000, 5, 100_000, 0, 16_384, 32_768, 3]
                    .into_iter()
                    .enumerate()
                {
                    let part = sample(size, number as u64);
                    encoder.write_all(&part).unwrap();
                    encoder.flush().unwrap();
                    let compressed = std::mem::take(encoder.get_mut());
                    let plain = inflate_all(&mut inflater, &compressed, piece);
                    assert!(plain == part, "part {number} of level {level} by {piece}");
                }
                let end = encoder.finish().unwrap();
                assert!(!inflater.finished);
                assert_eq!(inflate_all(&mut inflater, &end, piece), b"");
                assert!(inflater.finished);
                assert_eq!(inflater.held_bytes(), 0);
            }
        }
    }

    #[test]
    fn stream_that_rests_holds_what_it_has_sent_and_at_most_a_window() {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        let mut inflater = Inflater::default();
        for (size, most) in [(500, 500), (1_500, 2_000), (1_000_000, WINDOW_BYTES)] {
            encoder.write_all(&sample(size, 1)).unwrap();
            encoder.flush().unwrap();
            let compressed = std::mem::take(encoder.get_mut());
            inflate_all(&mut inflater, &compressed, 1_000);
            let held = inflater.held_bytes();
            assert!(held <= most, "{held} bytes after {size}");
        }
    }

    #[test]
    fn damaged_streams_are_errors_and_never_end_well() {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&sample(5_000, 1)).unwrap();
        let good = encoder.finish().unwrap();
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 0x55;
            let mut input = Bytes::from(bad);
            let mut inflater = Inflater::default();
            let result = loop {
                match inflater.inflate(&mut input) {
                    Ok(Some(_)) => {}
                    other => break other,
                }
            };
            assert!(result.is_err() || !inflater.finished, "byte {position}");
        }
    }
}
