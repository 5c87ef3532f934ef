//! What do one engine's events say of how its blocks are named?
//!
//! Counted since its last restart, for whoever asks why prompts do not match.

use kvproto::{Batch, Event, ExtraKey, Tier};

/// Adapters whose names are remembered.
const MOST_ADAPTERS: usize = 32;

/// What was heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Blocks stored, in any tier.
    pub stored: u64,
    /// Stores at the root of a prompt, and those of them that name a salt (or up to vLLM 0.18 an item).
    pub roots: u64,
    /// See [`roots`](Self::roots).
    pub salted_roots: u64,
    /// Stores that name an adapter.
    pub with_adapter: u64,
    /// The adapters' names, the first ones heard.
    pub adapters: Vec<Box<str>>,
    /// Whether more adapters were named than are remembered.
    pub more_adapters: bool,
    /// Whether blocks were stored below the device.
    lower_tiers: bool,
    /// Whether a clear came that does not say if it means the lower tiers too.
    pub offload_in_doubt: bool,
}

impl Heard {
    /// Takes in what a batch says.
    pub fn note(&mut self, batch: &Batch<'_>) {
        for event in batch.events() {
            match event {
                Event::Stored(s) => {
                    self.stored += s.hashes.len() as u64;
                    self.lower_tiers |= s.tier != Tier::Gpu;
                    if s.parent.is_none() && s.tier == Tier::Gpu {
                        let salted = s.cache_salt.is_some()
                            || s.extras(0).iter().any(|k| matches!(k, ExtraKey::Text(_)));
                        self.roots += 1;
                        self.salted_roots += u64::from(salted);
                    }
                    if let Some(name) = s.lora {
                        self.with_adapter += 1;
                        self.note_adapter(name);
                    }
                }
                Event::Cleared(c) => self.offload_in_doubt |= c.tier.is_none() && self.lower_tiers,
                Event::Removed(_) => {}
            }
        }
    }

    /// Whether blocks of this adapter may have been stored.
    pub fn knows_adapter(&self, name: &str) -> bool {
        self.more_adapters || self.adapters.iter().any(|a| **a == *name)
    }

    fn note_adapter(&mut self, name: &str) {
        if self.adapters.iter().any(|a| **a == *name) {
            return;
        }
        if self.adapters.len() < MOST_ADAPTERS {
            self.adapters.push(name.into());
        } else {
            self.more_adapters = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvproto::EngineHash;
    use kvproto::event::{BatchBuilder, StoredFields};

    fn stored(tier: Tier, lora: Option<&str>, parent: Option<EngineHash>) -> Heard {
        let mut batch = BatchBuilder::new(0.0, None);
        let fields = StoredFields { block_size: 1, tier, lora, parent, ..Default::default() };
        batch.stored(fields, &[EngineHash(1), EngineHash(2)], &[7, 8], &[]);
        batch.cleared(None);
        let mut heard = Heard::default();
        heard.note(&batch.build());
        heard
    }

    #[test]
    fn roots_and_adapters_are_counted() {
        let heard = stored(Tier::Gpu, Some("sql"), None);
        assert_eq!((heard.stored, heard.roots, heard.salted_roots, heard.with_adapter), (2, 1, 0, 1));
        assert!(heard.knows_adapter("sql") && !heard.knows_adapter("other"));
        assert_eq!(stored(Tier::Gpu, None, Some(EngineHash(9))).roots, 0);
    }

    #[test]
    fn a_clear_leaves_in_doubt_only_what_lies_below_the_device() {
        assert!(!stored(Tier::Gpu, None, None).offload_in_doubt);
        assert!(stored(Tier::Cpu, None, None).offload_in_doubt);
    }

    #[test]
    fn names_without_end_are_not_kept() {
        let mut heard = Heard::default();
        for n in 0..1000 {
            heard.note_adapter(&n.to_string());
        }
        assert_eq!(heard.adapters.len(), MOST_ADAPTERS);
        assert!(heard.knows_adapter("never seen"), "it may have been");
    }
}
