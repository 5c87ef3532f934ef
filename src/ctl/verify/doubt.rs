//! Can anybody outside the engine still know what its offload tiers hold?
//!
//! `AllBlocksCleared` speaks of the device pool and does not say whether the offload tiers were
//! emptied with it. After one, an index that forgets everything may say less than the engine
//! finds. That is no fault of either, so a check must know when it can happen.

use std::collections::HashMap;

use kvproto::engine::{self, Engine};
use kvproto::{EngineHash, Event, Tier};

/// Follows one engine's stream.
#[derive(Default)]
pub struct OffloadDoubt {
    copies: HashMap<(Tier, EngineHash), u64>,
    last: Option<u64>,
    cleared: bool,
}

impl OffloadDoubt {
    /// Looks at the next batch. One that cannot be decoded is kvd's to complain about.
    pub fn observe(&mut self, engine: Engine, number: u64, payload: &[u8]) {
        if self.last.is_some_and(|last| number <= last) {
            *self = OffloadDoubt::default();
        }
        self.last = Some(number);
        let Ok(batch) = engine::decode(engine, payload) else { return };
        for event in batch.events() {
            match event {
                Event::Stored(s) if s.tier != Tier::Gpu => {
                    s.hashes.iter().for_each(|h| *self.copies.entry((s.tier, *h)).or_default() += 1);
                }
                Event::Removed(r) if r.tier != Tier::Gpu => {
                    r.hashes.iter().for_each(|h| self.forget(r.tier, *h));
                }
                Event::Stored(_) | Event::Removed(_) => {}
                Event::Cleared(c) => {
                    // Naming a tier, the event leaves no doubt.
                    self.cleared |= c.tier.is_none() && !self.copies.is_empty();
                    self.copies.retain(|(tier, _), _| c.tier.is_some_and(|t| t != *tier));
                }
            }
        }
    }

    /// Whether the engine may hold offloaded blocks that its events called cleared.
    pub fn exists(&self) -> bool {
        self.cleared
    }

    fn forget(&mut self, tier: Tier, hash: EngineHash) {
        if let Some(n) = self.copies.get_mut(&(tier, hash)) {
            *n -= 1;
            if *n == 0 {
                self.copies.remove(&(tier, hash));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[0.0, [event], 0]` with an event in map form.
    fn batch(kind: &str, medium: &str) -> Vec<u8> {
        use serde_json::json;
        let hashes = json!([7]);
        let event = match kind {
            "AllBlocksCleared" => json!({"type": kind}),
            "BlockRemoved" => json!({"type": kind, "block_hashes": hashes, "medium": medium}),
            _ => json!({"type": kind, "block_hashes": hashes, "parent_block_hash": null,
                        "token_ids": [], "block_size": 0, "medium": medium}),
        };
        rmp_serde::to_vec(&json!([0.0, [event], 0])).unwrap()
    }

    fn doubt_after(events: &[(u64, &str, &str)]) -> bool {
        let mut doubt = OffloadDoubt::default();
        for (seq, kind, medium) in events {
            doubt.observe(Engine::Vllm, *seq, &batch(kind, medium));
        }
        doubt.exists()
    }

    #[test]
    fn a_clear_with_something_offloaded_leaves_doubt() {
        let stored = (0, "BlockStored", "CPU");
        let cleared = (2, "AllBlocksCleared", "");
        assert!(doubt_after(&[stored, cleared]));
        assert!(!doubt_after(&[stored]));
        assert!(!doubt_after(&[(0, "BlockStored", "GPU"), cleared]));
        assert!(!doubt_after(&[stored, (1, "BlockRemoved", "CPU"), cleared]));
    }

    #[test]
    fn a_new_engine_has_no_doubt() {
        let life = [(0, "BlockStored", "CPU"), (1, "AllBlocksCleared", ""), (0, "BlockStored", "CPU")];
        assert!(!doubt_after(&life));
    }
}
