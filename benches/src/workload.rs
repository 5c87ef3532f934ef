//! What is asked, who holds how much of it, and so what the answer must be.

use kvproto::hash::canonical::{Namespace, PromptExtras, prompt_hashes};

/// Tokens per block in every workload.
pub const BLOCK: u32 = 16;

/// Token ids are below this, about the vocabulary of today's models.
const VOCABULARY: u64 = 150_000;

/// A generator of numbers that are the same in every run (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }
}

/// A prompt, what its blocks are called by the engines, and how much of it each pod holds.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The engines' hash of every whole block. All pods call a block by the same name, which kvd
    /// does not need but other indexers do.
    pub hashes: Vec<u64>,
    /// By pod: blocks held, from the root.
    pub held: Vec<u32>,
}

impl Prompt {
    /// A prompt of `tokens` random ids that nobody holds.
    pub fn random(random: &mut Random, tokens: usize) -> Prompt {
        let tokens: Vec<u32> = (0..tokens).map(|_| random.below(VOCABULARY) as u32).collect();
        let seed = Namespace { salt: "", model: "an engine's own names", lora: None }.seed();
        let hashes = prompt_hashes(seed, &tokens, BLOCK, PromptExtras::default()).map(|h| h.0).collect();
        Prompt { tokens, hashes, held: Vec::new() }
    }

    /// The pods hold from nothing to everything in even steps, which pod how much by chance.
    pub fn spread_over(mut self, pods: usize, random: &mut Random) -> Prompt {
        let blocks = self.hashes.len() as u64;
        let last = pods.saturating_sub(1).max(1) as u64;
        self.held = (0..pods as u64).map(|i| (blocks * i / last) as u32).collect();
        for i in (1..pods).rev() {
            self.held.swap(i, random.below(i as u64 + 1) as usize);
        }
        self
    }

    /// Every pod holds everything.
    pub fn held_by_all(mut self, pods: usize) -> Prompt {
        self.held = vec![self.hashes.len() as u32; pods];
        self
    }

    /// Tokens in the blocks that `pod` holds.
    pub fn held_tokens(&self, pod: usize) -> u64 {
        u64::from(self.held[pod] * BLOCK)
    }

    /// Tokens that the engine of `pod` itself would count as cached: the last one of a prompt is
    /// always computed, and its block with it.
    pub fn cached_tokens(&self, pod: usize) -> u64 {
        let block = u64::from(BLOCK);
        self.held_tokens(pod).min((self.tokens.len() as u64 - 1) / block * block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_goes_from_nothing_to_everything() {
        let mut random = Random(1);
        let p = Prompt::random(&mut random, 1024).spread_over(8, &mut random);
        let mut held = p.held.clone();
        held.sort_unstable();
        assert_eq!(held, [0, 9, 18, 27, 36, 45, 54, 64]);
        let full = p.held.iter().position(|h| *h == 64).unwrap();
        assert_eq!((p.held_tokens(full), p.cached_tokens(full)), (1024, 1008));
    }

    #[test]
    fn the_same_seed_gives_the_same_prompts() {
        let of = |seed| Prompt::random(&mut Random(seed), 64);
        assert_eq!(of(3).hashes, of(3).hashes);
        assert_ne!(of(3).hashes, of(4).hashes);
        assert!(of(3).tokens.iter().all(|t| u64::from(*t) < VOCABULARY));
    }
}
