//! The canonical key: XXH3-64 local and rolling hashes as RFC #1403/#1527 lay down.
//!
//! With seed `S` of a [`Namespace`], for block `i` of `n` tokens:
//!
//! ```text
//! local[i] = XXH3(tokens as u32 LE, S)                         no extra keys
//!          = XXH3(XXH3(tokens as u32 LE, S) LE ‖ keys, S)      with extra keys
//! seq[0]   = local[0]
//! seq[i]   = XXH3(seq[i-1] LE ‖ local[i] LE, S)
//! ```
//!
//! `keys` is each extra key in order: a tag byte, the byte length as u64 LE, the bytes;
//! an item's offset follows as i64 LE. The seed is `XXH3("kvd-xxh3-64/1" ‖ salt ‖ model ‖
//! lora, 0)` with each of the three preceded by its byte length as u64 LE, and LoRA's
//! presence by one byte. So nothing collides by concatenation.

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::event::{ExtraKey, LocalHash, SeqHash};

/// The name of this scheme, as `GetHashSpec` gives it.
pub const ALGORITHM: &str = "kvd-xxh3-64/1";

/// Within which blocks of equal content are the same block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Namespace<'a> {
    /// The deployment's salt (`additionalsalt`): quantisation, model revision, tenant.
    pub salt: &'a str,
    /// Model name.
    pub model: &'a str,
    /// LoRA adapter name.
    pub lora: Option<&'a str>,
}

impl Namespace<'_> {
    /// The seed of every hash in this namespace.
    pub fn seed(&self) -> Seed {
        let mut h = Xxh3::with_seed(0);
        h.update(ALGORITHM.as_bytes());
        for part in [self.salt, self.model] {
            h.update(&(part.len() as u64).to_le_bytes());
            h.update(part.as_bytes());
        }
        match self.lora {
            None => h.update(&[0]),
            Some(name) => {
                h.update(&[1]);
                h.update(&(name.len() as u64).to_le_bytes());
                h.update(name.as_bytes());
            }
        }
        Seed(h.digest())
    }
}

/// The seed of a namespace's hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seed(pub u64);

impl Seed {
    /// The hash of one block's own content.
    pub fn local(self, tokens: &[u32], extras: &[ExtraKey<'_>]) -> LocalHash {
        let plain = hash_tokens(tokens, self.0);
        if extras.is_empty() {
            return LocalHash(plain);
        }
        let mut h = Xxh3::with_seed(self.0);
        h.update(&plain.to_le_bytes());
        for key in extras {
            match key {
                ExtraKey::Text(s) => update_tagged(&mut h, 1, s.as_bytes()),
                ExtraKey::Item { identifier, offset } => {
                    update_tagged(&mut h, 2, identifier.as_bytes());
                    h.update(&offset.to_le_bytes());
                }
                ExtraKey::Digest(d) => update_tagged(&mut h, 3, d),
            }
        }
        LocalHash(h.digest())
    }

    /// The hash of a block and its prefix, from the block before it.
    pub fn chain(self, parent: Option<SeqHash>, local: LocalHash) -> SeqHash {
        match parent {
            None => SeqHash(local.0),
            Some(p) => {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&p.0.to_le_bytes());
                bytes[8..].copy_from_slice(&local.0.to_le_bytes());
                SeqHash(xxh3_64_with_seed(&bytes, self.0))
            }
        }
    }
}

/// A multimodal item in a prompt: its first token and how many it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmItem<'a> {
    /// What the item is.
    pub identifier: &'a str,
    /// Its first token's position in the prompt.
    pub offset: u32,
    /// Tokens it covers.
    pub length: u32,
}

/// How an engine names multimodal items in extra keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MmForm {
    /// Identifier and offset (vLLM 0.20 and later).
    #[default]
    Placed,
    /// The identifier alone (up to vLLM 0.18).
    Bare,
}

/// What makes a prompt's blocks differ besides its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptExtras<'a> {
    /// Cache salt: a key of block 0.
    pub cache_salt: Option<&'a str>,
    /// Multimodal items, in order of their offset: keys of the blocks they touch.
    pub items: &'a [MmItem<'a>],
    /// How the engine asked about names them.
    pub form: MmForm,
}

impl<'a> PromptExtras<'a> {
    /// The extra keys of the block that covers `block_size` tokens from `start`.
    pub fn of_block(&self, start: u64, block_size: u32, out: &mut Vec<ExtraKey<'a>>) {
        out.clear();
        let end = start + u64::from(block_size);
        // In order of their offset, so none after the first beyond the block can touch it.
        for m in self.items.iter().take_while(|m| u64::from(m.offset) < end) {
            let (from, to) = (u64::from(m.offset), u64::from(m.offset) + u64::from(m.length));
            if to > start {
                out.push(match self.form {
                    MmForm::Placed => {
                        ExtraKey::Item { identifier: m.identifier, offset: from as i64 - start as i64 }
                    }
                    MmForm::Bare => ExtraKey::Text(m.identifier),
                });
            }
        }
        if start == 0
            && let Some(salt) = self.cache_salt
        {
            out.push(ExtraKey::Text(salt));
        }
    }
}

/// The rolling hashes of every whole block of `tokens`, from the root, computed as they are
/// asked for. The tail that does not fill a block is left out.
pub fn prompt_hashes<'a>(
    seed: Seed,
    tokens: &'a [u32],
    block_size: u32,
    mut extras: PromptExtras<'a>,
) -> impl Iterator<Item = SeqHash> + 'a {
    let mut keys = Vec::new();
    let mut parent = None;
    tokens.chunks_exact(block_size as usize).enumerate().map(move |(i, block)| {
        if i == 0 || !extras.items.is_empty() {
            // Items that are over are not looked at again: a prompt of many items and many blocks
            // must not cost their product.
            let start = i as u64 * u64::from(block_size);
            let over = |m: &&MmItem<'_>| u64::from(m.offset) + u64::from(m.length) <= start;
            extras.items = &extras.items[extras.items.iter().take_while(over).count()..];
            extras.of_block(i as u64 * u64::from(block_size), block_size, &mut keys);
        } else {
            keys.clear();
        }
        let seq = seed.chain(parent, seed.local(block, &keys));
        parent = Some(seq);
        seq
    })
}

/// The hash of token ids as little-endian u32.
fn hash_tokens(tokens: &[u32], seed: u64) -> u64 {
    if cfg!(target_endian = "little") {
        // SAFETY: u32 has no padding and every byte pattern is a valid u8; the length is that of
        // the same memory in bytes.
        let bytes = unsafe { std::slice::from_raw_parts(tokens.as_ptr().cast::<u8>(), size_of_val(tokens)) };
        xxh3_64_with_seed(bytes, seed)
    } else {
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        xxh3_64_with_seed(&bytes, seed)
    }
}

fn update_tagged(h: &mut Xxh3, tag: u8, bytes: &[u8]) {
    h.update(&[tag]);
    h.update(&(bytes.len() as u64).to_le_bytes());
    h.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Namespace<'static> = Namespace { salt: "", model: "m", lora: None };

    #[test]
    fn names_do_not_collide_by_concatenation() {
        let seeds = [
            Namespace { salt: "a", model: "b", lora: None },
            Namespace { salt: "", model: "ab", lora: None },
            Namespace { salt: "ab", model: "", lora: None },
            Namespace { salt: "a", model: "", lora: Some("b") },
            Namespace { salt: "a", model: "b", lora: Some("") },
        ]
        .map(|n| n.seed().0);
        for (i, a) in seeds.iter().enumerate() {
            assert!(seeds[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn the_first_rolling_hash_is_the_local_hash() {
        let s = PLAIN.seed();
        let out: Vec<_> = prompt_hashes(s, &[1, 2, 3, 4, 5], 2, PromptExtras::default()).collect();
        assert_eq!(out.len(), 2);
        assert_eq!(out[0].0, s.local(&[1, 2], &[]).0);
        assert_eq!(out[1], s.chain(Some(out[0]), s.local(&[3, 4], &[])));
    }

    #[test]
    fn a_salt_changes_every_block_and_an_item_those_it_touches_and_their_descendants() {
        let s = PLAIN.seed();
        let tokens: Vec<u32> = (0..8).collect();
        let chain = |extras: PromptExtras<'_>| prompt_hashes(s, &tokens, 2, extras).collect::<Vec<_>>();
        let plain = chain(PromptExtras::default());
        let salted = chain(PromptExtras { cache_salt: Some("x"), ..Default::default() });
        assert!(plain.iter().zip(&salted).all(|(a, b)| a != b));
        let item = [MmItem { identifier: "img", offset: 3, length: 2 }];
        let with_item = chain(PromptExtras { items: &item, ..Default::default() });
        assert_eq!(plain[0], with_item[0]);
        assert!(plain[1..].iter().zip(&with_item[1..]).all(|(a, b)| a != b));
        let mut keys = vec![];
        PromptExtras { items: &item, ..Default::default() }.of_block(4, 2, &mut keys);
        assert_eq!(keys, [ExtraKey::Item { identifier: "img", offset: -1 }]);
    }
}
