//! Which block is meant by 64 bits of its hash?
//!
//! Events carry 64 bits of an engine's hash, and who listens knows no more. That is enough for a hint
//! and never for bytes: what is found here is looked up by its whole name afterwards, and where
//! several blocks share the 64 bits, none is meant.

use std::collections::{BTreeSet, HashMap};

use twox_hash::XxHash3_64;

use crate::policy::BlockId;
use crate::store::StoreKey;

/// Groups of layers that are told apart; an engine has a few.
const MOST_GROUPS: usize = 64;

/// The 64 bits by which events call a block; `None` where they cannot.
pub fn short(key: &StoreKey) -> Option<u64> {
    let hash = key.hash();
    // Other lengths are no hash of any engine, and no decoder takes them.
    let last = hash.last_chunk().filter(|_| matches!(hash.len(), 8 | 16 | 32));
    last.map(|last| u64::from_be_bytes(*last))
}

/// A pool's blocks by 64 bits of their hashes.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// By a hash over model, group and the 64 bits. Halves, because whole they would be padded.
    one: HashMap<u64, [u64; 2]>,
    /// How many blocks share what `one` would be keyed by, where several do.
    several: HashMap<u64, u32>,
    groups: BTreeSet<u32>,
}

impl Names {
    /// A block is there now.
    pub fn add(&mut self, key: &StoreKey) {
        let Some(short) = short(key) else { return };
        if self.groups.len() < MOST_GROUPS {
            self.groups.insert(key.group);
        }
        let (slot, id) = (slot(key.model, key.group, short), halves(key.id()));
        if let Some(count) = self.several.get_mut(&slot) {
            *count += 1;
        } else if self.one.insert(slot, id).is_some_and(|before| before != id) {
            self.one.remove(&slot);
            self.several.insert(slot, 2);
        }
    }

    /// A block is not there any more.
    pub fn remove(&mut self, key: &StoreKey) {
        let Some(short) = short(key) else { return };
        let slot = slot(key.model, key.group, short);
        if let Some(count) = self.several.get_mut(&slot) {
            // The last one of several is not known by itself: which it is was never kept.
            *count -= 1;
            if *count == 0 {
                self.several.remove(&slot);
            }
        } else if self.one.get(&slot) == Some(&halves(key.id())) {
            self.one.remove(&slot);
        }
    }

    /// The blocks of a model that `short` may mean, one per group.
    pub fn find(&self, model: u128, short: u64) -> impl Iterator<Item = BlockId> + '_ {
        let slots = self.groups.iter().map(move |group| slot(model, *group, short));
        slots
            .filter_map(|slot| self.one.get(&slot))
            .map(|[high, low]| BlockId(u128::from(*high) << 64 | u128::from(*low)))
    }
}

fn halves(id: BlockId) -> [u64; 2] {
    [(id.0 >> 64) as u64, id.0 as u64]
}

fn slot(model: u128, group: u32, short: u64) -> u64 {
    let mut bytes = [0; 28];
    bytes[..16].copy_from_slice(&model.to_le_bytes());
    bytes[16..20].copy_from_slice(&group.to_le_bytes());
    bytes[20..].copy_from_slice(&short.to_le_bytes());
    XxHash3_64::oneshot(&bytes)
}

#[cfg(test)]
mod tests {
    use kvproto::Event;
    use kvproto::engine::{Engine, decode};

    use super::super::change::Change;
    use super::super::wire::encode;
    use super::*;
    use crate::policy::Tier;

    fn key(model: u128, group: u32, front: u8, last: u64) -> StoreKey {
        let hash = [&[front; 24][..], &last.to_be_bytes()].concat();
        StoreKey::new(model, group, &hash).unwrap()
    }

    fn found(names: &Names, model: u128, short: u64) -> Vec<BlockId> {
        names.find(model, short).collect()
    }

    #[test]
    fn who_listens_calls_a_block_by_the_same_bits() {
        for bytes in [8, 16, 32] {
            let hash: Vec<u8> = (1..=bytes).collect();
            let key = StoreKey::new(1, 0, &hash).unwrap();
            let told = encode(0, "", None, &[Change::came(key, Tier::Disk)]);
            let batch = decode(Engine::Vllm, &told).unwrap();
            let Some(Event::Stored(stored)) = batch.events().next() else { panic!("{told:?}") };
            assert_eq!(Some(stored.hashes[0].0), short(&key));
        }
        assert_eq!(short(&StoreKey::new(1, 0, &[1; 9]).unwrap()), None);
    }

    #[test]
    fn a_block_is_found_in_each_group_of_its_model_until_it_leaves() {
        let mut names = Names::default();
        let (a, b, other) = (key(1, 0, 5, 9), key(1, 3, 5, 9), key(2, 0, 5, 9));
        [a, b, other, a].iter().for_each(|key| names.add(key));
        assert_eq!(found(&names, 1, 9), [a.id(), b.id()]);
        assert_eq!(found(&names, 2, 9), [other.id()]);
        assert_eq!(found(&names, 1, 8), []);
        names.remove(&a);
        assert_eq!(found(&names, 1, 9), [b.id()]);
    }

    #[test]
    fn where_two_blocks_share_the_bits_neither_is_meant_until_both_are_gone() {
        let mut names = Names::default();
        let (a, b) = (key(1, 0, 5, 9), key(1, 0, 6, 9));
        [a, b].iter().for_each(|key| names.add(key));
        assert_eq!(found(&names, 1, 9), []);
        names.remove(&a);
        assert_eq!(found(&names, 1, 9), [], "which one is left was not kept");
        names.remove(&b);
        names.remove(&b);
        names.add(&b);
        assert_eq!(found(&names, 1, 9), [b.id()]);
        // One that was never added takes no other's place away.
        names.remove(&a);
        assert_eq!(found(&names, 1, 9), [b.id()]);
    }
}
