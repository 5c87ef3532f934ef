//! Hashing prompts on the client, as the server says it is done.

use kvproto::SeqHash;
use kvproto::hash::canonical::{self, MmForm, MmItem, PromptExtras, Seed};
use kvproto::rpc::kv;

use crate::Prompt;

/// How kvd hashes prompts of one model and adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashSpec {
    /// Name of the scheme.
    pub algorithm: String,
    /// The seed of every hash.
    pub seed: Seed,
    /// Block sizes of the engines that serve the model now.
    pub block_sizes: Vec<u32>,
    /// The scheme in words.
    pub description: String,
    /// The deployment's salt that is part of the seed.
    pub additional_salt: String,
    /// Examples to check an implementation with.
    pub vectors: Vec<HashVector>,
}

/// A prompt and its hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashVector {
    /// Tokens per block.
    pub block_size: u32,
    /// The prompt.
    pub tokens: Vec<u32>,
    /// Its cache salt.
    pub cache_salt: Option<String>,
    /// The rolling hash of each whole block.
    pub hashes: Vec<SeqHash>,
}

impl From<kv::HashSpec> for HashSpec {
    fn from(s: kv::HashSpec) -> Self {
        HashSpec {
            algorithm: s.algorithm,
            seed: Seed(s.seed),
            block_sizes: s.block_sizes,
            description: s.description,
            additional_salt: s.additional_salt,
            vectors: s.vectors.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<kv::HashVector> for HashVector {
    fn from(v: kv::HashVector) -> Self {
        HashVector {
            block_size: v.block_size,
            tokens: v.token_ids,
            cache_salt: (!v.cache_salt.is_empty()).then_some(v.cache_salt),
            hashes: v.seq_hashes.into_iter().map(SeqHash).collect(),
        }
    }
}

/// Why this client cannot hash for that server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HasherError {
    /// The server hashes by another scheme.
    #[error("server hashes by {theirs:?}, this client by {:?}", canonical::ALGORITHM)]
    Algorithm {
        /// The server's scheme.
        theirs: String,
    },
    /// Blocks have 1 to 65536 tokens.
    #[error("block size {block_size} is outside 1 to 65536")]
    BlockSize {
        /// What was asked for.
        block_size: u32,
    },
    /// The scheme has the right name, but one of the server's examples comes out differently.
    #[error("the server's example {index} comes out differently here")]
    Vector {
        /// Which of [`HashSpec::vectors`].
        index: usize,
    },
}

/// Hashes prompts of one model and adapter in blocks of one size.
#[derive(Clone, Copy, Debug)]
pub struct PromptHasher {
    seed: Seed,
    block_size: u32,
}

impl PromptHasher {
    /// A hasher that agrees with `spec`, checked on its examples. `block_size` should be one of
    /// `spec.block_sizes`: candidates with another are left out of the answer.
    ///
    /// # Errors
    ///
    /// [`HasherError`]; send tokens instead then.
    pub fn new(spec: &HashSpec, block_size: u32) -> Result<PromptHasher, HasherError> {
        if spec.algorithm != canonical::ALGORITHM {
            return Err(HasherError::Algorithm { theirs: spec.algorithm.clone() });
        }
        for (index, v) in spec.vectors.iter().enumerate() {
            let hasher = PromptHasher::checked(spec.seed, v.block_size)?;
            if !hasher.hashes(&v.tokens, v.cache_salt.as_deref(), &[]).eq(v.hashes.iter().copied()) {
                return Err(HasherError::Vector { index });
            }
        }
        PromptHasher::checked(spec.seed, block_size)
    }

    /// Tokens per block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The rolling hash of each whole block, from the root. `items` are in order of their offset.
    pub fn hashes<'a>(
        &self,
        tokens: &'a [u32],
        cache_salt: Option<&'a str>,
        items: &'a [MmItem<'a>],
    ) -> impl Iterator<Item = SeqHash> + 'a {
        // On the wire an empty salt is none.
        let cache_salt = cache_salt.filter(|s| !s.is_empty());
        let extras = PromptExtras { cache_salt, items, form: MmForm::Placed };
        canonical::prompt_hashes(self.seed, tokens, self.block_size, extras)
    }

    /// The prompt as its hashes, ready to be asked about.
    pub fn prompt(&self, tokens: &[u32], cache_salt: Option<&str>, items: &[MmItem<'_>]) -> Prompt {
        Prompt::canonical(self.hashes(tokens, cache_salt, items), self.block_size)
    }

    fn checked(seed: Seed, block_size: u32) -> Result<PromptHasher, HasherError> {
        match block_size {
            1..=65536 => Ok(PromptHasher { seed, block_size }),
            0 | 65537.. => Err(HasherError::BlockSize { block_size }),
        }
    }
}
