//! vLLM from 0.9 to 0.33, and what speaks its format: llm-d's simulator and file
//! connector, LMCache, Dynamo's mocker.
//!
//! Up to 0.23 an event is an array, and each version's fields are those of the version
//! before and some more; from 0.24 on it is a map. Both are taken from every version.

use super::fields::{Dialect, Draft, Field, Kind};
use super::values::{Flaw, extra_keys};
use crate::event::{Batch, Content, RawStored, Tier};

pub(super) struct Vllm;

impl Dialect for Vllm {
    const TAG_KEYS: &'static [&'static [u8]] = &[b"type"];
    const STORED: &'static [Field] = &[
        Field::Hashes,
        Field::Parent,
        Field::Tokens,
        Field::BlockSize,
        Field::LoraId,
        Field::Medium,    // 0.10
        Field::LoraName,  // 0.14
        Field::ExtraKeys, // 0.18
        Field::Group,     // 0.20
        Field::SpecKind,  // 0.22
        Field::Window,
    ];
    const REMOVED: &'static [Field] = &[Field::Hashes, Field::Medium, Field::Group];

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
            b"extra_keys" => Field::ExtraKeys,
            b"group_idx" => Field::Group,
            b"kv_cache_spec_kind" => Field::SpecKind,
            b"kv_cache_spec_sliding_window" => Field::Window,
            // locality, ownership, session_id, lookahead_token_ids and what is yet to come.
            _ => return None,
        })
    }

    fn stored<'p>(draft: Draft<'p>, batch: &mut Batch<'p>) -> Result<RawStored<'p>, Flaw<'p>> {
        let tier = Tier::from_medium(draft.medium);
        let hashes = draft.hashes.end - draft.hashes.start;
        let extras = match draft.extra_keys {
            Some(r) => extra_keys(r, hashes, draft.lora, batch)?,
            None => None,
        };
        // Events of the tiers below the device leave out salts, items and adapters, so
        // tokens alone would make a salted block look like a plain one.
        let complete = !draft.tokens.is_empty()
            && !draft.is_nameless_adapter()
            && (tier == Tier::Gpu || extras.is_some());
        Ok(RawStored {
            content: if complete { Content::Complete } else { Content::HashOnly },
            extras: extras.unwrap_or_default(),
            tier,
            spec: draft.spec(),
            hashes: draft.hashes,
            parent: draft.parent,
            tokens: draft.tokens,
            locals: 0..0,
            block_size: draft.block_size,
            group: draft.group,
            lora: draft.lora,
            cache_salt: None,
            base_block: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::testing::{self, bin, pack};
    use super::super::{Engine, decode};
    use super::*;
    use crate::event::{EngineHash, Event, ExtraKey, GroupKind, GroupSpec, Stored};

    fn stored(event: &Value, look: impl FnOnce(Stored<'_>)) {
        testing::stored(Engine::Vllm, event, look);
    }

    fn flaw(event: &Value) -> String {
        testing::flaw(Engine::Vllm, event)
    }

    fn with(fields: Value) -> Value {
        let mut event = json!({
            "type": "BlockStored", "block_hashes": [11, 12], "parent_block_hash": 10, "token_ids": [1, 2, 3, 4],
            "block_size": 2, "lora_id": null, "medium": "GPU", "lora_name": null,
        });
        for (k, v) in fields.as_object().unwrap() {
            event[k] = v.clone();
        }
        event
    }

    #[test]
    fn every_older_array_is_a_prefix_of_the_newest() {
        let all = json!([
            "BlockStored", [11, 12], 10, [1, 2, 3, 4], 2, 7, "gpu", "adapter", [["adapter", "salt"], ["adapter"]],
            3, "sliding_window", 128, "extra", {"more": 1}
        ]);
        let all = all.as_array().unwrap();
        for len in [2, 6, 7, 8, 9, 10, 12, 14] {
            stored(&json!(all[..len]), |s| {
                assert_eq!(s.hashes, [EngineHash(11), EngineHash(12)]);
                assert_eq!(s.parent, (len > 2).then_some(EngineHash(10)), "length {len}");
                assert_eq!(s.tokens, if len > 3 { &[1, 2, 3, 4][..] } else { &[] }, "length {len}");
                assert_eq!(s.block_size, if len > 4 { 2 } else { 0 }, "length {len}");
                assert_eq!(s.lora, (len > 7).then_some("adapter"), "length {len}");
                assert_eq!(
                    s.extras(0),
                    if len > 8 { &[ExtraKey::Text("salt")][..] } else { &[] },
                    "length {len}"
                );
                assert_eq!(s.extras(1), [], "length {len}");
                assert_eq!(s.group, if len > 9 { 3 } else { 0 }, "length {len}");
                let spec = GroupSpec { kind: GroupKind::SlidingWindow, window: Some(128) };
                assert_eq!(s.spec, (len > 11).then_some(spec), "length {len}");
            });
        }
    }

    #[test]
    fn an_adapter_known_only_by_number_leaves_its_blocks_nameless() {
        stored(&with(json!({"lora_id": 3})), |s| assert_eq!(s.content, Content::HashOnly));
        stored(&with(json!({"lora_id": 3, "lora_name": "a"})), |s| {
            assert_eq!((s.content, s.lora), (Content::Complete, Some("a")));
        });
        stored(&with(json!({"lora_id": 0})), |s| assert_eq!(s.content, Content::Complete));
    }

    #[test]
    fn extra_keys_keep_their_order_and_lose_the_adapters_name() {
        let digest = bin(&[9; 32]);
        let keys = json!([["a", ["img", -5], ["a", 3], "a", digest], null]);
        stored(&with(json!({"lora_name": "a", "extra_keys": keys})), |s| {
            assert_eq!(
                s.extras(0),
                [
                    ExtraKey::Item { identifier: "img", offset: -5 },
                    ExtraKey::Item { identifier: "a", offset: 3 },
                    ExtraKey::Text("a"),
                    ExtraKey::Digest(&[9; 32]),
                ]
            );
            assert_eq!(s.extras(1), []);
        });
        // Without an adapter, a salt that looks like one stays.
        stored(&with(json!({"extra_keys": [["a"], []]})), |s| assert_eq!(s.extras(0), [ExtraKey::Text("a")]));
    }

    #[test]
    fn extra_keys_fit_the_hashes_or_the_event_is_left_out() {
        assert_eq!(
            flaw(&with(json!({"extra_keys": [null]}))),
            "event 0 (BlockStored): extra_keys: 1 for 2 hashes"
        );
        for bad in
            [json!([5]), json!([["img"]]), json!([["img", 1.5]]), json!([[1, 2]]), json!([""]), json!([true])]
        {
            flaw(&with(json!({"extra_keys": [bad, null]})));
        }
        flaw(&with(json!({"extra_keys": "salt"})));
        for none in [json!(null), json!([]), json!([null, null]), json!([[], null])] {
            stored(&with(json!({"extra_keys": none})), |s| assert_eq!(s.extras(0), []));
        }
    }

    #[test]
    fn tokens_tell_the_content_on_the_device_only() {
        let content = |fields| {
            let mut seen = None;
            stored(&with(fields), |s| seen = Some(s.content));
            seen.unwrap()
        };
        assert_eq!(content(json!({})), Content::Complete);
        assert_eq!(content(json!({"medium": null})), Content::Complete);
        assert_eq!(content(json!({"medium": "CPU"})), Content::HashOnly);
        assert_eq!(content(json!({"medium": "STORAGE"})), Content::HashOnly);
        assert_eq!(content(json!({"medium": "CPU", "extra_keys": [null, null]})), Content::Complete);
        assert_eq!(content(json!({"medium": "CPU", "extra_keys": null})), Content::HashOnly);
        assert_eq!(content(json!({"token_ids": []})), Content::HashOnly);
    }

    #[test]
    fn parent_zero_is_the_root() {
        let file = json!(["BlockStored", [5], 0, [], 0, null, "SHARED_STORAGE"]);
        stored(&file, |s| {
            assert_eq!((s.parent, s.tier, s.content), (None, Tier::Shared, Content::HashOnly));
        });
        let simulated = json!(["BlockStored", [5], 0, [1, 2], 2]);
        stored(&simulated, |s| assert_eq!((s.parent, s.content), (None, Content::Complete)));
    }

    #[test]
    fn a_hash_is_a_number_or_the_end_of_a_digest() {
        let digest: Vec<u8> = (0..32).collect();
        let last = EngineHash(0x18191a1b1c1d1e1f);
        stored(&with(json!({"block_hashes": [bin(&digest), bin(&digest[16..])]})), |s| {
            assert_eq!(s.hashes, [last, last]);
        });
        stored(&with(json!({"block_hashes": [bin(&digest[24..]), "0123456789abcdef"]})), |s| {
            assert_eq!(s.hashes, [last, EngineHash(u64::from_be_bytes(*b"89abcdef"))]);
        });
        stored(&with(json!({"block_hashes": [u64::MAX, -1], "parent_block_hash": i64::MIN})), |s| {
            assert_eq!(s.hashes, [EngineHash(u64::MAX); 2]);
            assert_eq!(s.parent, Some(EngineHash(1 << 63)));
        });
        for bad in [json!(null), json!(1.0), json!(true), json!("12345"), json!([1]), bin(&[0; 20])] {
            flaw(&with(json!({"block_hashes": [1, bad]})));
        }
    }

    #[test]
    fn numbers_are_neither_booleans_nor_floats_nor_out_of_range() {
        for (field, bad) in [
            ("token_ids", json!([1, true])),
            ("token_ids", json!([1, 2.0])),
            ("token_ids", json!([1, -2])),
            ("token_ids", json!([1, 1u64 << 32])),
            ("token_ids", json!([1, null])),
            ("token_ids", json!([[1, 2], [2, 3], [3, 4], [4, 5]])),
            ("token_ids", json!("tokens")),
            ("block_size", json!(65537)),
            ("block_size", json!(-1)),
            ("block_size", json!(true)),
            ("group_idx", json!(1u64 << 32)),
            ("kv_cache_spec_sliding_window", json!(2.5)),
            ("kv_cache_spec_kind", json!(1)),
            ("medium", json!(1)),
            ("lora_name", json!(["a"])),
            ("parent_block_hash", json!(1.5)),
            ("block_hashes", json!({"a": 1})),
        ] {
            let said = flaw(&with(json!({ field: bad })));
            assert!(said.contains(&format!("{field}: expected")), "{said}");
        }
        stored(&with(json!({"token_ids": [0, 255, 65535, u32::MAX]})), |s| {
            assert_eq!(s.tokens, [0, 255, 65535, u32::MAX]);
        });
    }

    #[test]
    fn fields_without_a_name_here_may_hold_anything() {
        let fields = json!({
            "locality": "LOCAL", "ownership": 5, "session_id": ["s"], "lookahead_token_ids": [[1], [2, "x"]],
            "lora_id": {"odd": true}, "remaining_copy_counts": null,
        });
        stored(&with(fields), |s| assert_eq!(s.content, Content::Complete));
    }

    #[test]
    fn a_clear_may_name_its_medium() {
        let bytes = pack(&json!([1, [
            ["AllBlocksCleared"],
            ["AllBlocksCleared", "ignored", 1],
            {"type": "AllBlocksCleared"},
            {"type": "AllBlocksCleared", "medium": "CPU"},
            {"type": "AllBlocksCleared", "medium": null},
        ]]));
        let batch = decode(Engine::Vllm, &bytes).unwrap();
        let tiers: Vec<_> = batch
            .events()
            .map(|e| match e {
                Event::Cleared(c) => c.tier,
                Event::Stored(_) | Event::Removed(_) => panic!("a clear"),
            })
            .collect();
        assert_eq!(tiers, [None, None, None, Some(Tier::Cpu), None]);
    }
}
