//! The memory that reading takes, counted at the allocator.

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What reading may take at most for each byte read.
const BYTES_PER_BYTE: usize = 8;

/// Runs `read` and returns what it returns.
///
/// # Panics
/// If it takes more memory at a time than eight times `input_bytes` and
/// `constant_bytes`. No other thread may run while it does.
pub(crate) fn bounded<T>(input_bytes: usize, constant_bytes: usize, read: impl FnOnce() -> T) -> T {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let value = read();
    let taken = ALLOCATOR.peak_usage().saturating_sub(before);
    let limit = BYTES_PER_BYTE * input_bytes + constant_bytes;
    assert!(
        taken <= limit,
        "reading {input_bytes} bytes took {taken} bytes of memory, more than {limit}"
    );
    value
}
