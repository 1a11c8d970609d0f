//! What fuzzing runs: for everything that reads bytes of agents or of files a
//! function that takes any bytes and panics if a promise is broken.
//!
//! The targets of `cargo fuzz` in `/fuzz` call them, and so does this crate's
//! test with the checked-in corpora, which needs no fuzzer. `docs/fuzzing.md`
//! says what each target promises.

mod agents;
mod bodies;
mod files;
mod memory;
mod proxies;

// The program itself is no library.
#[path = "../../cli/src/store/url.rs"]
mod store_url;

pub use agents::{certificate, contact_data, wrapped_contact_data};
pub use bodies::{poll, stream};
pub use files::{addresses, config, download, ids};
pub use proxies::{identity_header, proxy_header};

/// A target: its name, which is that of its corpus, too, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("addresses", addresses),
    ("certificate", certificate),
    ("config", config),
    ("contact_data", contact_data),
    ("download", download),
    ("identity_header", identity_header),
    ("ids", ids),
    ("poll", poll),
    ("proxy_header", proxy_header),
    ("stream", stream),
    ("wrapped_contact_data", wrapped_contact_data),
];

/// Inputs larger than this are left out: what is promised does not depend on it.
const MOST_INPUT_BYTES: usize = 1024 * 1024;

/// Takes the first byte, which says how the rest is used.
fn split_mode(input: &[u8]) -> Option<(u8, &[u8])> {
    let (&mode, rest) = input.split_first()?;
    (rest.len() <= MOST_INPUT_BYTES).then_some((mode, rest))
}

/// Repeats bytes 2ⁿ times, where n is the lower half of `mode`: a few bytes
/// become a list of very many elements, which no fuzzer would write out.
fn repeated(mode: u8, bytes: &[u8]) -> Vec<u8> {
    let times = 1_usize << (mode & 0x1f).min(20);
    bytes.repeat(times.min((MOST_INPUT_BYTES / bytes.len().max(1)).max(1)))
}
