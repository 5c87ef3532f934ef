//! What was a request's prompt, once the message it came in is gone?

use kvindex::Prompt;
use kvproto::hash::canonical::MmItem;
use kvproto::hash::llmd::RequestKey;
use kvproto::{EngineHash, SeqHash};

/// A prompt that owns what it is made of, so that it can outlive its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedPrompt {
    /// What the blocks are found by.
    pub key: PromptKey,
    /// Block size the request named; `None` where it did not.
    pub block_size: Option<u32>,
    /// LoRA adapter.
    pub lora: Option<String>,
    /// Cache salt.
    pub cache_salt: Option<String>,
    /// Multimodal items, in order of their offset.
    pub items: Vec<OwnedItem>,
}

/// What the blocks of a prompt are found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptKey {
    /// Token ids.
    Tokens(Vec<u32>),
    /// Canonical rolling hashes from the root.
    Canonical(Vec<SeqHash>),
    /// The engine's own hashes from the root.
    Engine(Vec<EngineHash>),
    /// llm-d's request keys from the root.
    Llmd(Vec<RequestKey>),
}

/// See [`MmItem`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedItem {
    /// What the item is.
    pub identifier: String,
    /// Its first token's position in the prompt.
    pub offset: u32,
    /// Tokens it covers.
    pub length: u32,
}

impl PromptKey {
    /// Tokens, or hashes.
    pub fn len(&self) -> usize {
        match self {
            PromptKey::Tokens(t) => t.len(),
            PromptKey::Canonical(h) => h.len(),
            PromptKey::Engine(h) => h.len(),
            PromptKey::Llmd(k) => k.len(),
        }
    }

    /// Whether there is nothing to find.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl OwnedPrompt {
    /// A copy of `prompt`.
    pub fn of(prompt: Prompt<'_>, block_size: Option<u32>) -> OwnedPrompt {
        let bare = |key| OwnedPrompt { key, block_size, lora: None, cache_salt: None, items: Vec::new() };
        match prompt {
            Prompt::Tokens { tokens, lora, cache_salt, items } => OwnedPrompt {
                lora: lora.map(Into::into),
                cache_salt: cache_salt.map(Into::into),
                items: items
                    .iter()
                    .map(|i| OwnedItem {
                        identifier: i.identifier.into(),
                        offset: i.offset,
                        length: i.length,
                    })
                    .collect(),
                ..bare(PromptKey::Tokens(tokens.to_vec()))
            },
            Prompt::Canonical(hashes) => bare(PromptKey::Canonical(hashes.to_vec())),
            Prompt::Engine(hashes) => bare(PromptKey::Engine(hashes.to_vec())),
            Prompt::Llmd(keys) => bare(PromptKey::Llmd(keys.to_vec())),
            // No request gives a prompt so.
            Prompt::Local(_) => bare(PromptKey::Tokens(Vec::new())),
        }
    }

    /// This prompt and what follows it, as a conversation's next turn.
    ///
    /// # Errors
    /// The field of `next` that does not go with this prompt, and why.
    pub fn followed_by(&self, next: OwnedPrompt) -> Result<OwnedPrompt, (&'static str, &'static str)> {
        let key = match (&self.key, next.key) {
            (PromptKey::Tokens(a), PromptKey::Tokens(b)) => PromptKey::Tokens([&a[..], &b[..]].concat()),
            (PromptKey::Canonical(a), PromptKey::Canonical(b)) => {
                PromptKey::Canonical([&a[..], &b[..]].concat())
            }
            (PromptKey::Engine(a), PromptKey::Engine(b)) => PromptKey::Engine([&a[..], &b[..]].concat()),
            (PromptKey::Llmd(a), PromptKey::Llmd(b)) => PromptKey::Llmd([&a[..], &b[..]].concat()),
            _ => return Err(("continues", "that prompt was given in another form")),
        };
        if next.lora.is_some() && next.lora != self.lora {
            return Err(("lora_name", "differs from that of the prompt that is continued"));
        }
        if next.cache_salt.is_some() && next.cache_salt != self.cache_salt {
            return Err(("cache_salt", "differs from that of the prompt that is continued"));
        }
        let hashes = !matches!(key, PromptKey::Tokens(_));
        if hashes && next.block_size.is_some() && next.block_size != self.block_size {
            return Err(("block_size", "differs from the one that the continued prompt's hashes came with"));
        }
        let mut items = [&self.items[..], &next.items[..]].concat();
        items.sort_by_key(|i| i.offset);
        Ok(OwnedPrompt {
            key,
            block_size: next.block_size.or(self.block_size),
            lora: self.lora.clone(),
            cache_salt: self.cache_salt.clone(),
            items,
        })
    }

    /// Hands out the prompt as the index takes it.
    pub fn lend<R>(&self, ask: impl FnOnce(Prompt<'_>) -> R) -> R {
        let items: Vec<MmItem<'_>> = self
            .items
            .iter()
            .map(|i| MmItem { identifier: &i.identifier, offset: i.offset, length: i.length })
            .collect();
        ask(match &self.key {
            PromptKey::Tokens(tokens) => Prompt::Tokens {
                tokens,
                lora: self.lora.as_deref(),
                cache_salt: self.cache_salt.as_deref(),
                items: &items,
            },
            PromptKey::Canonical(hashes) => Prompt::Canonical(hashes),
            PromptKey::Engine(hashes) => Prompt::Engine(hashes),
            PromptKey::Llmd(keys) => Prompt::Llmd(keys),
        })
    }

    /// Blocks of `block_size` tokens in the prompt, whole ones.
    pub fn blocks(&self, block_size: u32) -> u32 {
        let blocks = match &self.key {
            PromptKey::Tokens(t) => t.len().checked_div(block_size as usize).unwrap_or(0),
            PromptKey::Canonical(_) | PromptKey::Engine(_) | PromptKey::Llmd(_) => self.key.len(),
        };
        u32::try_from(blocks).unwrap_or(u32::MAX)
    }

    /// Bytes that keeping the prompt takes, roughly.
    pub fn bytes(&self) -> usize {
        let key = match &self.key {
            PromptKey::Tokens(t) => t.capacity() * 4,
            PromptKey::Canonical(h) => h.capacity() * 8,
            PromptKey::Engine(h) => h.capacity() * 8,
            PromptKey::Llmd(k) => k.capacity() * 8,
        };
        let text = |s: &Option<String>| s.as_ref().map_or(0, String::capacity);
        let items: usize = self.items.iter().map(|i| i.identifier.capacity()).sum();
        size_of::<OwnedPrompt>()
            + key
            + text(&self.lora)
            + text(&self.cache_salt)
            + items
            + self.items.capacity() * size_of::<OwnedItem>()
    }
}
