//! What is asked about: a prompt, in one of the forms that kvd accepts.

use kvproto::hash::canonical::MmItem;
use kvproto::hash::llmd::{self, RequestKey};
use kvproto::rpc::kv::{self, prompt::Key};
use kvproto::{EngineHash, SeqHash};

/// A prompt and what else makes its blocks differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    pub(crate) wire: kv::Prompt,
    /// Of the hashes; 0 where the prompt is not hashes.
    pub(crate) block_size: u32,
}

impl Prompt {
    /// Token ids, sent as bytes: the fastest to send.
    pub fn tokens(tokens: &[u32]) -> Prompt {
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        Prompt::token_bytes(bytes)
    }

    /// Token ids that already are little-endian u32, four bytes each.
    pub fn token_bytes(bytes: Vec<u8>) -> Prompt {
        Prompt::of(Key::TokenIdsLe(bytes.into()), 0)
    }

    /// Token ids, sent as packed fixed32.
    pub fn packed_tokens(tokens: Vec<u32>) -> Prompt {
        Prompt::of(Key::Tokens(kv::TokenIds { ids: tokens }), 0)
    }

    /// kvd's own rolling hashes of blocks of `block_size` tokens, from the root;
    /// [`PromptHasher`](crate::PromptHasher) makes them.
    pub fn canonical(hashes: impl IntoIterator<Item = SeqHash>, block_size: u32) -> Prompt {
        Prompt::hashes(kv::HashKind::Canonical, hashes.into_iter().map(|h| h.0), block_size)
    }

    /// The engine's own hashes of blocks of `block_size` tokens, from the root.
    pub fn engine(hashes: impl IntoIterator<Item = EngineHash>, block_size: u32) -> Prompt {
        Prompt::hashes(kv::HashKind::Engine, hashes.into_iter().map(|h| h.0), block_size)
    }

    /// llm-d's request keys of blocks of `block_size` tokens, from the root.
    pub fn llmd(algo: llmd::Algo, keys: impl IntoIterator<Item = RequestKey>, block_size: u32) -> Prompt {
        let kind = match algo {
            llmd::Algo::CborFnv => kv::HashKind::LlmdCborFnv,
            llmd::Algo::Xxh64 => kv::HashKind::LlmdXxh64,
        };
        Prompt::hashes(kind, keys.into_iter().map(|k| k.0), block_size)
    }

    /// A prompt that was scored before, by the token in [`Scores`](crate::Scores).
    pub fn scored(score_token: impl Into<String>) -> Prompt {
        Prompt::of(Key::ScoreToken(score_token.into()), 0)
    }

    /// What follows the prompt that was scored with this token, as a conversation's next turn: only
    /// what is new is sent. Adapter, salt and items are that prompt's.
    pub fn continues(mut self, score_token: impl Into<String>) -> Prompt {
        self.wire.continues = score_token.into();
        self
    }

    /// With this LoRA adapter.
    pub fn lora(mut self, name: impl Into<String>) -> Prompt {
        self.wire.lora_name = name.into();
        self
    }

    /// With this cache salt; an empty one is none.
    pub fn cache_salt(mut self, salt: impl Into<String>) -> Prompt {
        self.wire.cache_salt = salt.into();
        self
    }

    /// With these multimodal items, in any order.
    pub fn items<'a>(mut self, items: impl IntoIterator<Item = MmItem<'a>>) -> Prompt {
        self.wire.mm_items = items
            .into_iter()
            .map(|m| kv::MmItem { hash: m.identifier.to_owned(), offset: m.offset, length: m.length })
            .collect();
        self
    }

    fn hashes(kind: kv::HashKind, hashes: impl Iterator<Item = u64>, block_size: u32) -> Prompt {
        Prompt::of(Key::Hashes(kv::BlockHashes { kind: kind as i32, hashes: hashes.collect() }), block_size)
    }

    fn of(key: Key, block_size: u32) -> Prompt {
        Prompt { wire: kv::Prompt { key: Some(key), ..kv::Prompt::default() }, block_size }
    }
}
