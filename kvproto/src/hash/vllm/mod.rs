//! What does vLLM itself call a block: its own hash chain, for all four of its algorithms.
//!
//! ```text
//! none  = H(seed)
//! h[0]  = H((none,   (t0, …, tn-1), extra keys or None))
//! h[i]  = H((h[i-1], (…),           extra keys or None))
//! ```
//!
//! `H` is SHA-256 or XXH3-128 over Python's pickle or canonical CBOR of that tuple; an event
//! carries the last 8 bytes, big-endian. Not reproduced: the lookahead tokens that some
//! drafters of vLLM 0.33 mix in.

mod encode;
mod pickle;
#[cfg(test)]
mod vectors;

use sha2::{Digest as _, Sha256};
use xxhash_rust::xxh3::xxh3_128;

use crate::event::EngineHash;
use encode::Encoder as _;
use pickle::Pickle;

/// What vLLM 0.29 and later take for an unset `PYTHONHASHSEED` with the SHA-256 algorithms.
pub const DEFAULT_SEED: &str = "vllm-none-hash";

/// vLLM's `--prefix-caching-hash-algo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algo {
    /// SHA-256 of pickle.
    Sha256,
    /// SHA-256 of canonical CBOR.
    Sha256Cbor,
    /// XXH3-128 of pickle.
    Xxhash,
    /// XXH3-128 of canonical CBOR.
    XxhashCbor,
}

impl Algo {
    /// Every algorithm.
    pub const ALL: [Algo; 4] = [Algo::Sha256, Algo::Sha256Cbor, Algo::Xxhash, Algo::XxhashCbor];

    /// The name that vLLM gives it on its command line.
    pub fn name(self) -> &'static str {
        match self {
            Algo::Sha256 => "sha256",
            Algo::Sha256Cbor => "sha256_cbor",
            Algo::Xxhash => "xxhash",
            Algo::XxhashCbor => "xxhash_cbor",
        }
    }

    /// The algorithm of that name.
    pub fn from_name(name: &str) -> Option<Algo> {
        Algo::ALL.into_iter().find(|a| a.name() == name)
    }
}

/// Why an engine's hashes cannot be recomputed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Without `PYTHONHASHSEED` every engine process draws a seed of its own.
    #[error("{} without a seed starts from random bytes in every engine process", algo.name())]
    RandomSeed {
        /// The algorithm asked for.
        algo: Algo,
    },
}

/// A block's full hash: 32 bytes of SHA-256 or 16 of XXH3-128.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Digest {
    /// SHA-256.
    Sha256([u8; 32]),
    /// XXH3-128, big-endian.
    Xxh3([u8; 16]),
}

impl Digest {
    /// The bytes, as an engine publishes them when told not to shorten hashes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Digest::Sha256(b) => b,
            Digest::Xxh3(b) => b,
        }
    }

    /// The 64-bit number in the engine's events.
    pub fn to_engine_hash(&self) -> EngineHash {
        let last = match *self {
            Digest::Sha256([.., a, b, c, d, e, f, g, h]) => [a, b, c, d, e, f, g, h],
            Digest::Xxh3([.., a, b, c, d, e, f, g, h]) => [a, b, c, d, e, f, g, h],
        };
        EngineHash(u64::from_be_bytes(last))
    }
}

/// What makes a block differ besides its tokens, in vLLM's order: LoRA, items, salt, embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra<'a> {
    /// The LoRA adapter, on every block. Events do not tell its path.
    Lora {
        /// Adapter name.
        name: &'a str,
        /// Where the engine loaded it from.
        path: &'a str,
    },
    /// A multimodal item that touches the block.
    Mm {
        /// What the item is.
        identifier: &'a str,
        /// Tokens from the block's start to the item's; negative if it began earlier.
        offset: i64,
    },
    /// The cache salt, on the first block.
    CacheSalt(&'a str),
    /// SHA-256 of the block's prompt embeddings.
    PromptEmbeds(&'a [u8]),
}

/// How extra keys are written, which changed over vLLM's versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ExtraForm {
    /// Each a tuple that begins with its kind (0.31 and later).
    #[default]
    Tagged,
    /// Name, `(identifier, offset)`, salt, digest (0.20 to 0.30).
    Untagged,
    /// The same, but items by identifier alone (before 0.20).
    Bare,
}

/// The kinds of tagged extra keys.
#[derive(Clone, Copy, Debug)]
enum Tag {
    Lora,
    Mm,
    CacheSalt,
    PromptEmbeds,
}

impl Tag {
    const COUNT: usize = 4;

    fn name(self) -> &'static str {
        match self {
            Tag::Lora => "lora",
            Tag::Mm => "mm",
            Tag::CacheSalt => "cache_salt",
            Tag::PromptEmbeds => "prompt_embeds",
        }
    }
}

/// An engine's hash chain. Holds the buffers that blocks are encoded in.
#[derive(Clone, Debug)]
pub struct Chain {
    algo: Algo,
    form: ExtraForm,
    none_hash: Digest,
    cbor: Vec<u8>,
    pickle: Pickle,
}

impl Chain {
    /// The chain of engines with this algorithm and `PYTHONHASHSEED`.
    ///
    /// No seed means that of vLLM 0.29 and later; older engines without one are as random as
    /// the XXH3 algorithms, which this cannot tell.
    ///
    /// # Errors
    ///
    /// [`ChainError::RandomSeed`] for the XXH3 algorithms without a seed.
    pub fn new(algo: Algo, seed: Option<&str>) -> Result<Chain, ChainError> {
        let seed = match (algo, seed) {
            (_, Some(seed)) => seed,
            (Algo::Sha256 | Algo::Sha256Cbor, None) => DEFAULT_SEED,
            (Algo::Xxhash | Algo::XxhashCbor, None) => return Err(ChainError::RandomSeed { algo }),
        };
        let mut chain = Chain {
            algo,
            form: ExtraForm::default(),
            none_hash: Digest::Xxh3([0; 16]),
            cbor: Vec::new(),
            pickle: Pickle::default(),
        };
        chain.none_hash = chain.digest(|e| e.text(seed), |e| e.text(seed));
        Ok(chain)
    }

    /// The same chain with extra keys written in `form`.
    pub fn with_form(self, form: ExtraForm) -> Chain {
        Chain { form, ..self }
    }

    /// The parent of first blocks: vLLM's `NONE_HASH`.
    pub fn none_hash(&self) -> Digest {
        self.none_hash
    }

    /// The hash of a block after `parent`; `None` at the root. Tokens are `u32` or `u64`.
    pub fn block<T: Copy + Into<u64>>(
        &mut self,
        parent: Option<Digest>,
        tokens: &[T],
        extras: &[Extra<'_>],
    ) -> Digest {
        let parent = parent.unwrap_or(self.none_hash);
        let form = self.form;
        self.digest(
            |e| encode::block(e, parent.as_bytes(), tokens, extras, form),
            |e| encode::block(e, parent.as_bytes(), tokens, extras, form),
        )
    }

    /// The bytes that the last digest is of.
    #[cfg(test)]
    fn last_input(&self) -> &[u8] {
        match self.algo {
            Algo::Sha256 | Algo::Xxhash => self.pickle.written(),
            Algo::Sha256Cbor | Algo::XxhashCbor => &self.cbor,
        }
    }

    /// The digest of one value, which is written by either of the two.
    fn digest(&mut self, to_pickle: impl FnOnce(&mut Pickle), to_cbor: impl FnOnce(&mut Vec<u8>)) -> Digest {
        let bytes = match self.algo {
            Algo::Sha256 | Algo::Xxhash => {
                self.pickle.begin();
                to_pickle(&mut self.pickle);
                self.pickle.finish()
            }
            Algo::Sha256Cbor | Algo::XxhashCbor => {
                self.cbor.clear();
                to_cbor(&mut self.cbor);
                &self.cbor
            }
        };
        match self.algo {
            Algo::Sha256 | Algo::Sha256Cbor => Digest::Sha256(Sha256::digest(bytes).into()),
            Algo::Xxhash | Algo::XxhashCbor => Digest::Xxh3(xxh3_128(bytes).to_be_bytes()),
        }
    }
}

/// The engine's hashes of every whole block of a prompt, into `out`, as vLLM 0.31 and later
/// compute them. The tail that does not fill a block is left out; of size 0 there are none.
///
/// # Errors
///
/// As [`Chain::new`]; `out` is empty then.
pub fn prompt_hashes(
    algo: Algo,
    seed: Option<&str>,
    tokens: &[u32],
    block_size: u32,
    cache_salt: Option<&str>,
    out: &mut Vec<EngineHash>,
) -> Result<(), ChainError> {
    out.clear();
    let mut chain = Chain::new(algo, seed)?;
    if block_size == 0 {
        return Ok(());
    }
    let salt = cache_salt.map(Extra::CacheSalt);
    let mut extras = salt.as_slice();
    let mut parent = None;
    for block in tokens.chunks_exact(block_size as usize) {
        let digest = chain.block(parent, block, extras);
        out.push(digest.to_engine_hash());
        parent = Some(digest);
        extras = &[];
    }
    Ok(())
}
