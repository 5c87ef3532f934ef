//! How is a prompt cut into pieces to compare its beginning with others'?

use kvindex::{Prompt, Query};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Pieces of a prompt that are looked at: 29,696 tokens, or as many blocks.
pub const MAX_PIECES: usize = 512;
/// The first so many pieces are short, to see where short prompts part.
const SHORT: usize = 64;
const SHORT_TOKENS: usize = 16;
const LONG_TOKENS: usize = 64;

/// Which prompts can begin alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Tenant.
    pub tenant: String,
    /// Model.
    pub model: String,
    /// LoRA adapter.
    pub adapter: Option<String>,
}

/// A prompt in pieces.
#[derive(Clone, Debug)]
pub struct Path {
    /// What it can be compared with.
    pub root: Root,
    /// A hash of each piece alone.
    pub pieces: Vec<u32>,
    /// Tokens per piece; 0 = tokens were given and cut here.
    pub step: u64,
}

impl Path {
    /// The prompt of `query`. `block_size` is what hashes stand for where the query does not say.
    pub fn of(query: &Query<'_>, block_size: u32) -> Path {
        let size = u64::from(query.block_size.unwrap_or(block_size).max(1));
        let hashed = |hashes: &mut dyn Iterator<Item = u64>, kind: u64| {
            // Hashes of another kind or size must not look like the same prompt.
            let salt = kind << 32 | size;
            hashes.take(MAX_PIECES).map(|h| fold(h ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect()
        };
        let mut adapter = None;
        let (pieces, step) = match query.prompt {
            Prompt::Tokens { tokens, lora, cache_salt, items: _ } => {
                adapter = lora.map(str::to_owned);
                // Prompts with other salts share nothing, so every piece is another one.
                let seed = cache_salt.map_or(0, |s| xxh3_64_with_seed(s.as_bytes(), 1));
                (cut(tokens, seed), 0)
            }
            Prompt::Local(hashes) => (hashed(&mut hashes.iter().map(|h| h.0), 1), size),
            Prompt::Canonical(hashes) => (hashed(&mut hashes.iter().map(|h| h.0), 2), size),
            Prompt::Engine(hashes) => (hashed(&mut hashes.iter().map(|h| h.0), 3), size),
            Prompt::Llmd(keys) => (hashed(&mut keys.iter().map(|h| h.0), 4), size),
        };
        Path { root: Root { tenant: query.tenant.into(), model: query.model.into(), adapter }, pieces, step }
    }

    /// Tokens in the first `pieces` pieces.
    pub fn end(&self, pieces: usize) -> u64 {
        match self.step {
            0 => (pieces.min(SHORT) * SHORT_TOKENS + pieces.saturating_sub(SHORT) * LONG_TOKENS) as u64,
            step => pieces as u64 * step,
        }
    }
}

fn cut(tokens: &[u32], seed: u64) -> Vec<u32> {
    let (head, tail) = tokens.split_at(tokens.len().min(SHORT * SHORT_TOKENS));
    let pieces = head.chunks_exact(SHORT_TOKENS).chain(tail.chunks_exact(LONG_TOKENS));
    let mut bytes = [0; LONG_TOKENS * 4];
    let hash = |piece: &[u32]| {
        for (to, token) in bytes.chunks_exact_mut(4).zip(piece) {
            to.copy_from_slice(&token.to_le_bytes());
        }
        fold(xxh3_64_with_seed(&bytes[..piece.len() * 4], seed))
    };
    pieces.take(MAX_PIECES).map(hash).collect()
}

fn fold(hash: u64) -> u32 {
    (hash ^ hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use kvproto::SeqHash;

    use super::*;

    fn of(prompt: Prompt<'_>) -> Path {
        Path::of(&Query::new("t", "m", prompt), 16)
    }

    #[test]
    fn pieces_are_short_at_first_and_whole() {
        let tokens: Vec<u32> = (0..1024 + 100).collect();
        let path = of(Prompt::tokens(&tokens));
        assert_eq!(path.pieces.len(), 65);
        assert_eq!((path.end(1), path.end(64), path.end(65)), (16, 1024, 1088));
        assert_eq!(of(Prompt::tokens(&tokens[..15])).pieces.len(), 0);
    }

    #[test]
    fn a_very_long_prompt_is_looked_at_only_so_far() {
        let tokens = vec![7; 1 << 20];
        let path = of(Prompt::tokens(&tokens));
        assert_eq!((path.pieces.len(), path.end(MAX_PIECES)), (MAX_PIECES, 29_696));
    }

    #[test]
    fn salts_and_kinds_keep_prompts_apart() {
        let tokens: Vec<u32> = (0..32).collect();
        let salted = Prompt::Tokens { tokens: &tokens, lora: None, cache_salt: Some("s"), items: &[] };
        let plain = of(Prompt::tokens(&tokens));
        assert_eq!(plain.pieces, of(Prompt::tokens(&tokens)).pieces);
        assert!(plain.pieces.iter().zip(of(salted).pieces).all(|(a, b)| *a != b));
        let hashes = [SeqHash(1), SeqHash(2)];
        let by_hash = of(Prompt::Canonical(&hashes));
        assert_eq!((by_hash.pieces.len(), by_hash.end(2)), (2, 32));
        let larger =
            Path::of(&Query { block_size: Some(32), ..Query::new("t", "m", Prompt::Canonical(&hashes)) }, 16);
        assert_ne!(larger.pieces, by_hash.pieces);
    }
}
