//! Where ids, nonces and jitter come from: one generator that is handed in.

use std::sync::{Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

/// A cryptographically secure generator shared by all users of a store or server.
///
/// Tests seed it; production takes the seed from the operating system.
#[derive(Debug)]
pub struct Random(Mutex<StdRng>);

impl Random {
    /// Takes the seed from the operating system.
    pub fn from_os() -> Self {
        Self(Mutex::new(StdRng::from_os_rng()))
    }

    /// Repeats the same sequence for the same `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    /// Fills `bytes` with random bytes.
    pub fn fill(&self, bytes: &mut [u8]) {
        self.with(|rng| rng.fill_bytes(bytes));
    }

    /// Returns a random number.
    pub fn next_u64(&self) -> u64 {
        self.with(RngCore::next_u64)
    }

    /// Returns a number between 0 (included) and 1 (excluded).
    pub fn unit(&self) -> f64 {
        self.with(|rng| rng.random())
    }

    fn with<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
