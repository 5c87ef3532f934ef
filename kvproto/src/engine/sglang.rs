//! SGLang: events of its radix cache, whose blocks are the tree's pages.
//!
//! Maps as vLLM's, with signed hashes; up to 0.5.12 arrays. A page is one node of content,
//! whatever tier it is in, so tokens name it everywhere.
//!
//! Two things are made plainer than they are sent:
//!
//! - Under speculative decoding a token id is a *pair* of a token and the one after it. The
//!   first of each pair is taken. So two pages that differ only in the token after them
//!   look alike here, and a prompt can match one page where the engine sees the other.
//! - The last page of a store may be shorter than `block_size`. Prompts are compared by
//!   whole blocks, so the short page can never match and is left out of the event, tokens
//!   and hash. Its removal then names a block that was never held, which is harmless.

use super::fields::{Dialect, Draft, Field, Kind};
use super::values::Flaw;
use crate::event::{Batch, Content, RawStored, Tier};

pub(super) struct Sglang;

impl Dialect for Sglang {
    const TAG_KEYS: &'static [&'static [u8]] = &[b"type"];
    const STORED: &'static [Field] =
        &[Field::Hashes, Field::Parent, Field::Tokens, Field::BlockSize, Field::LoraId, Field::Medium];
    const REMOVED: &'static [Field] = &[Field::Hashes, Field::Medium];
    const TOKEN_PAIRS: bool = true;

    fn kind(tag: &[u8]) -> Option<Kind> {
        match tag {
            b"BlockStored" => Some(Kind::Stored),
            b"BlockRemoved" => Some(Kind::Removed),
            b"AllBlocksCleared" => Some(Kind::Cleared),
            _ => None,
        }
    }

    fn field(key: &[u8]) -> Option<Field> {
        Some(match key {
            b"block_hashes" => Field::Hashes,
            b"parent_block_hash" => Field::Parent,
            b"token_ids" => Field::Tokens,
            b"block_size" => Field::BlockSize,
            b"lora_id" => Field::LoraId,
            b"medium" => Field::Medium,
            b"lora_name" => Field::LoraName,
            b"cache_salt" => Field::CacheSalt,
            // session_id and what is yet to come.
            _ => return None,
        })
    }

    fn stored<'p>(mut draft: Draft<'p>, _: &mut Batch<'p>) -> Result<RawStored<'p>, Flaw<'p>> {
        drop_short_page(&mut draft);
        let complete = !draft.tokens.is_empty() && !draft.is_nameless_adapter();
        Ok(RawStored {
            content: if complete { Content::Complete } else { Content::HashOnly },
            tier: Tier::from_medium(draft.medium),
            hashes: draft.hashes,
            parent: draft.parent,
            tokens: draft.tokens,
            locals: 0..0,
            block_size: draft.block_size,
            group: 0,
            spec: None,
            lora: draft.lora,
            cache_salt: draft.cache_salt,
            extras: 0..0,
            base_block: None,
        })
    }
}

fn drop_short_page(draft: &mut Draft<'_>) {
    let tokens = draft.tokens.end - draft.tokens.start;
    let pages = draft.hashes.end - draft.hashes.start;
    if draft.block_size == 0 {
        return;
    }
    let short = tokens % draft.block_size;
    if short > 0 && pages == tokens.div_ceil(draft.block_size) {
        draft.hashes.end -= 1;
        draft.tokens.end -= short;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Engine, testing};
    use super::*;
    use crate::event::{EngineHash, Stored};

    fn stored(event: &Value, look: impl FnOnce(Stored<'_>)) {
        testing::stored(Engine::Sglang, event, look);
    }

    #[test]
    fn the_older_array_and_the_newer_map_say_the_same() {
        let array = json!(["BlockStored", [-1, 2], -3, [1, 2, 3, 4], 2, null, "CPU_PINNED"]);
        let map = json!({
            "type": "BlockStored", "block_hashes": [-1, 2], "parent_block_hash": -3, "token_ids": [1, 2, 3, 4],
            "block_size": 2, "lora_id": null, "medium": "CPU_PINNED",
        });
        for event in [array, map] {
            stored(&event, |s| {
                assert_eq!(s.hashes, [EngineHash(u64::MAX), EngineHash(2)]);
                assert_eq!(s.parent, Some(EngineHash(-3i64 as u64)));
                assert_eq!((s.tokens, s.block_size), (&[1, 2, 3, 4][..], 2));
                assert_eq!((s.tier, s.content), (Tier::Cpu, Content::Complete));
            });
        }
    }

    #[test]
    fn a_salt_and_an_adapter_are_named_in_the_event() {
        let event = json!({
            "type": "BlockStored", "block_hashes": [1], "token_ids": [5], "block_size": 1,
            "cache_salt": "tenant-a", "lora_name": "adapter-a", "session_id": 9,
        });
        stored(&event, |s| assert_eq!((s.cache_salt, s.lora), (Some("tenant-a"), Some("adapter-a"))));
    }

    #[test]
    fn the_first_of_each_token_pair_counts() {
        let event = |tokens| json!({"type": "BlockStored", "block_hashes": [1], "token_ids": tokens, "block_size": 2});
        stored(&event(json!([[7, 8], [8, 70000]])), |s| {
            assert_eq!(s.tokens, [7, 8]);
            assert!(s.is_dense());
        });
        for bad in [
            json!([[7, 8], 8]),
            json!([7, [8, 9]]),
            json!([[7, 8], [8]]),
            json!([[7, 8], [8, "x"]]),
            json!([[]]),
        ] {
            testing::flaw(Engine::Sglang, &event(bad.clone()));
        }
    }

    #[test]
    fn a_short_last_page_is_left_out_of_the_event() {
        let event = |hashes: &[i64], tokens: &[u32]| json!({"type": "BlockStored", "block_hashes": hashes, "token_ids": tokens, "block_size": 2});
        stored(&event(&[1, 2], &[5, 6, 7]), |s| {
            assert_eq!((s.hashes, s.tokens), (&[EngineHash(1)][..], &[5, 6][..]));
            assert!(s.is_dense());
        });
        stored(&event(&[1], &[5]), |s| {
            assert!(s.hashes.is_empty() && s.tokens.is_empty());
            assert_eq!(s.content, Content::HashOnly);
        });
        // Counts that no short page explains are left as they are.
        stored(&event(&[1], &[5, 6, 7]), |s| assert_eq!((s.hashes.len(), s.tokens.len()), (1, 3)));
        stored(&event(&[1, 2, 3], &[5, 6, 7]), |s| assert_eq!((s.hashes.len(), s.tokens.len()), (3, 3)));
    }
}
