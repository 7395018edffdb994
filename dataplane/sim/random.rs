//! The only source of chance in the simulator: SplitMix64 (Steele, Lea and Flood, 2014), seeded.

/// A small generator; the same seed gives the same numbers for ever.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// A generator that begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A generator that is independent of this one.
    pub fn fork(&mut self) -> Self {
        Self(self.bits())
    }

    /// A number from 0 up to, and without, `end`.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.bits()) * end as u128) >> 64) as usize
    }

    /// A number from `first` up to and including `last`.
    pub fn between(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Appends `length` random bytes.
    pub fn fill(&mut self, length: usize, bytes: &mut Vec<u8>) {
        let end = bytes.len() + length;
        while bytes.len() < end {
            let eight = self.bits().to_le_bytes();
            bytes.extend_from_slice(&eight[..eight.len().min(end - bytes.len())]);
        }
    }
}

/// Scrambles 64 bits, one to one.
pub fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
