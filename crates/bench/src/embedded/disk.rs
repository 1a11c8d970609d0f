//! The disk under test, without a database.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

const BLOCK: [u8; 4096] = [7; 4096];

/// Copies a file and waits until it is on disk, so that no later sync has to
/// wait for it.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)?;
    File::open(to)?.sync_all()?;
    Ok(())
}

/// Appends blocks, each followed by `fdatasync`.
pub(crate) fn append(file: &mut File, blocks: u32) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..blocks {
        file.write_all(&BLOCK)?;
        file.sync_data()?;
    }
    Ok(start.elapsed())
}

/// Writes the first block again and again, each time followed by `fdatasync`:
/// what a log costs that has its length.
pub(crate) fn overwrite(file: &mut File, blocks: u32) -> Result<Duration> {
    let start = Instant::now();
    for _ in 0..blocks {
        file.rewind()?;
        file.write_all(&BLOCK)?;
        file.sync_data()?;
    }
    Ok(start.elapsed())
}
