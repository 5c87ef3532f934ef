//! The envelope of RFC #1527 as Mooncake's master publishes it for its pool.
//!
//! An event is a map with `event_type`; beside it and its fields may stand the older names
//! (`type`, `block_hashes`, `parent_block_hash`) that say the same. A pool knows neither
//! tokens nor ranks: most fields are nil, and the hashes stand for themselves.

use super::fields::{Dialect, Draft, Field, Kind};
use super::values::Flaw;
use crate::event::{Batch, Content, RawStored, Tier};

pub(super) struct Mooncake;

impl Dialect for Mooncake {
    const TAG_KEYS: &'static [&'static [u8]] = &[b"event_type", b"type"];
    const STORED: &'static [Field] = &[];
    const REMOVED: &'static [Field] = &[];

    fn kind(tag: &[u8]) -> Option<Kind> {
        match tag {
            b"stored" | b"BlockStored" => Some(Kind::Stored),
            b"removed" | b"BlockRemoved" => Some(Kind::Removed),
            b"cleared" | b"AllBlocksCleared" => Some(Kind::Cleared),
            _ => None,
        }
    }

    fn field(key: &[u8]) -> Option<Field> {
        Some(match key {
            b"seq_hashes" | b"block_hashes" => Field::Hashes,
            b"block_hash" => Field::Hash,
            b"parent_hash" | b"parent_block_hash" => Field::Parent,
            b"base_block_idx" => Field::BaseBlock,
            b"token_ids" => Field::Tokens,
            b"block_size" => Field::BlockSize,
            b"medium" => Field::Medium,
            b"lora_name" => Field::LoraName,
            // model_name, additional_salt, tenant_id, backend_id and dp_rank are the
            // registration's business; group_id and object_key are the pool's own.
            _ => return None,
        })
    }

    /// Milliseconds, where vLLM sends a float of seconds.
    fn seconds(ts: u64) -> f64 {
        ts as f64 / 1000.0
    }

    fn stored<'p>(draft: Draft<'p>, _: &mut Batch<'p>) -> Result<RawStored<'p>, Flaw<'p>> {
        Ok(RawStored {
            content: if draft.tokens.is_empty() { Content::Canonical } else { Content::Complete },
            tier: Tier::from_medium(draft.medium),
            hashes: draft.hashes,
            parent: draft.parent,
            tokens: draft.tokens,
            locals: 0..0,
            block_size: draft.block_size,
            group: 0,
            spec: None,
            lora: draft.lora,
            cache_salt: None,
            extras: 0..0,
            base_block: draft.base_block,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::testing::pack;
    use super::super::{Engine, decode};
    use super::*;
    use crate::event::{Cleared, EngineHash, Event, Removed};

    fn events(events: Value, look: impl FnOnce(Vec<Event<'_>>)) {
        let bytes = pack(&json!([1_780_000_000_500u64, events, 0]));
        let batch = decode(Engine::Mooncake, &bytes).unwrap();
        assert_eq!(batch.skipped, crate::event::Skipped::default());
        assert_eq!((batch.ts, batch.rank), (1_780_000_000.5, Some(0)));
        look(batch.events().collect());
    }

    #[test]
    fn a_pools_store_stands_for_itself() {
        let store = json!({
            "event_id": 5, "timestamp": 1_780_000_000_500u64, "event_type": "stored", "type": "BlockStored",
            "model_name": null, "block_size": 64, "additional_salt": null, "lora_name": null,
            "tenant_id": "default", "backend_id": "pool", "medium": "disk", "dp_rank": null, "group_id": "7",
            "object_key": "42", "seq_hashes": [u64::MAX], "block_hashes": [-1], "base_block_idx": 3,
            "parent_hash": 41, "token_ids": null, "parent_block_hash": 41,
        });
        events(json!([store]), |got| {
            let Event::Stored(s) = &got[0] else { panic!("a store") };
            assert_eq!((s.hashes, s.parent), (&[EngineHash(u64::MAX)][..], Some(EngineHash(41))));
            assert_eq!((s.tier, s.block_size, s.base_block), (Tier::Disk, 64, Some(3)));
            assert_eq!((s.content, s.tokens.len()), (Content::Canonical, 0));
        });
    }

    #[test]
    fn a_store_with_tokens_is_named_by_them() {
        let store = json!({"event_type": "stored", "seq_hashes": [1], "token_ids": [5, 6], "block_size": 2});
        events(json!([store]), |got| {
            let Event::Stored(s) = &got[0] else { panic!("a store") };
            assert_eq!((s.content, s.tokens), (Content::Complete, &[5, 6][..]));
        });
    }

    #[test]
    fn older_names_say_the_same() {
        let hashes = |name: &str| json!({"event_type": "removed", name: [7, 8], "medium": "cpu"});
        let one = json!({"type": "BlockRemoved", "block_hash": 7, "medium": "cpu"});
        // The list that says something counts, whichever comes first.
        let nil = json!({"type": "removed", "block_hashes": [7], "seq_hashes": null, "medium": "cpu"});
        events(json!([hashes("seq_hashes"), hashes("block_hashes"), one, nil]), |got| {
            let removed = |hashes| Event::Removed(Removed { hashes, tier: Tier::Cpu, group: 0 });
            let both = [EngineHash(7), EngineHash(8)];
            assert_eq!(got, [removed(&both), removed(&both), removed(&both[..1]), removed(&both[..1])]);
        });
    }

    #[test]
    fn a_clear_is_of_its_medium() {
        events(
            json!([{"event_type": "cleared", "medium": "cpu"}, {"event_type": "cleared"}, {"type": "AllBlocksCleared"}]),
            |got| {
                let cleared = |tier| Event::Cleared(Cleared { tier });
                assert_eq!(got, [cleared(Some(Tier::Cpu)), cleared(None), cleared(None)]);
            },
        );
    }

    #[test]
    fn an_event_type_of_another_engine_is_unknown() {
        let bytes = pack(&json!([1.5, [{"event_type": "pinned", "seq_hashes": [1]}]]));
        let batch = decode(Engine::Mooncake, &bytes).unwrap();
        assert_eq!((batch.ts, batch.skipped.unknown), (1.5, 1));
        let bytes = pack(&json!([1.5, [["BlockStored", [1]]]]));
        assert_eq!(decode(Engine::Mooncake, &bytes).unwrap().skipped.malformed, 1);
        let bytes = pack(&json!([1.5, [{"event_type": "stored", "seq_hashes": [1]}]]));
        assert_eq!(decode(Engine::Vllm, &bytes).unwrap().skipped.malformed, 1);
    }
}
