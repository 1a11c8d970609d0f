//! Numbers that depend on a seed and on nothing else, in every version of this
//! crate's dependencies: a failing seed can be kept as a test.

/// The SplitMix64 generator.
#[derive(Debug)]
pub(crate) struct Seeded(u64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `last`, both included.
    pub(crate) fn up_to(&mut self, last: usize) -> usize {
        // Counts of writes and sectors are tiny beside 2^64: no visible bias.
        (self.next() % (last as u64 + 1)) as usize
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.up_to(count - 1) == 0
    }
}
