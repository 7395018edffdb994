//! Repeatable random numbers (splitmix64): the seed is printed, so a failure can be repeated.

/// From one state to the next.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A small generator; the same seed gives the same numbers for ever.
pub struct Random(u64);

impl Random {
    /// A generator from the seed in `SOCKTAP_TEST_SEED`, or from `default`. Prints which one it took.
    pub fn from_environment(default: u64) -> Random {
        let seed = std::env::var("SOCKTAP_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
        eprintln!("seed {seed} (repeat with SOCKTAP_TEST_SEED={seed})");
        Random(seed)
    }

    /// A generator that has left out as many numbers of this seed's.
    pub fn after(seed: u64, numbers: u64) -> Random {
        Random(seed.wrapping_add(numbers.wrapping_mul(STEP)))
    }

    /// An independent generator: number `index` of this one's family.
    pub fn fork(&self, index: u64) -> Random {
        let mut child = Random(self.0 ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93));
        child.next();
        child
    }

    /// 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    /// `length` random bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}
