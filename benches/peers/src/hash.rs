//! Numbers that are the same in every run, and the hash chain that the streams' blocks are named by.

/// Scrambles a number (the output function of SplitMix64).
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A generator of numbers (SplitMix64).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % n as u64) as usize
    }

    /// A number from 0 up to 1.
    pub fn unit(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The local hash of block `k` of the text called `tag`, another for every seed.
pub fn content(seed: u64, tag: u64, k: u64) -> u64 {
    mix(mix(tag ^ mix(seed)) ^ (k << 1 | 1))
}

/// The sequence hash of a block after one named `before`, as the published indexes chain:
/// XXH3-64 (seed 1337) over the parent's sequence hash and the block's local hash; a first block's
/// sequence hash is its local hash. Dynamo's positional index computes it itself and needs it so.
#[inline]
pub fn chain(before: u64, local: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&before.to_le_bytes());
    bytes[8..].copy_from_slice(&local.to_le_bytes());
    xxhash_rust::xxh3::xxh3_64_with_seed(&bytes, 1337)
}

/// The sequence hash of every block of a prompt.
pub fn sequence_hashes(locals: &[u64]) -> Vec<u64> {
    let mut last = None;
    let next = |&local: &u64| *last.insert(last.map_or(local, |before| chain(before, local)));
    locals.iter().map(next).collect()
}
