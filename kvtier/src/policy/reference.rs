//! The policy's rules in the slowest and most obvious way.
//!
//! It holds no opinion on which leaf should go. It carries every move out on plain maps and says
//! whether it was allowed: that the copy was there, that there was room, that nothing a
//! descendant needs was taken away.

use std::collections::{BTreeMap, BTreeSet};

use super::{BlockId, Found, Move, Owner, Tier};

/// One block.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub parent: Option<BlockId>,
    pub owner: Owner,
    pub tiers: BTreeSet<Tier>,
    /// ms of the last use.
    pub last: u64,
}

/// A node's tiers.
#[derive(Debug, Default)]
pub struct Reference {
    pub capacity: BTreeMap<Tier, usize>,
    pub quota: BTreeMap<(Owner, Tier), usize>,
    pub blocks: BTreeMap<BlockId, Known>,
    pub disk_writable: bool,
    /// Blocks that may not be dropped now: pinned, or of the request at hand.
    pub protected: BTreeSet<BlockId>,
}

impl Reference {
    /// Blocks in a tier, of one owner or of all.
    pub fn held(&self, tier: Tier, owner: Option<Owner>) -> usize {
        let of = |k: &&Known| owner.is_none_or(|o| k.owner == o) && k.tiers.contains(&tier);
        self.blocks.values().filter(of).count()
    }

    /// What a lookup has to find.
    pub fn found(&self, chain: &[BlockId]) -> Found {
        let mut found = Found::default();
        for id in chain {
            match self.blocks.get(id).and_then(|k| k.tiers.first()) {
                Some(Tier::Cpu) => found.cpu += 1,
                Some(Tier::Disk) => found.disk += 1,
                Some(Tier::Shared) => found.shared += 1,
                None => break,
            }
        }
        found
    }

    /// Blocks of the chain, contiguous from its root, with a copy on this node.
    pub fn found_here(&self, chain: &[BlockId]) -> usize {
        let here = |id: &&BlockId| self.is_in(**id, Tier::Cpu) || self.is_in(**id, Tier::Disk);
        chain.iter().take_while(here).count()
    }

    /// Carries a move out; `Err` says which rule it breaks.
    pub fn apply(&mut self, step: Move, owner: Owner) -> Result<(), String> {
        match step {
            Move::Take { id, to } => {
                self.blocks.entry(id).or_default().owner = owner;
                self.put(id, to)
            }
            Move::Copy { id, from, to } => {
                if !self.is_in(id, from) {
                    return Err(format!("{step:?} of nothing"));
                }
                self.put(id, to)
            }
            Move::Drop { id, from } => self.drop_copy(id, from),
        }
    }

    /// Whether a block has a copy in a tier.
    pub fn is_in(&self, id: BlockId, tier: Tier) -> bool {
        self.blocks.get(&id).is_some_and(|k| k.tiers.contains(&tier))
    }

    /// Whether a child of the block has a copy in a tier.
    pub fn has_child_in(&self, id: BlockId, tier: Tier) -> bool {
        self.blocks.values().any(|k| k.parent == Some(id) && k.tiers.contains(&tier))
    }

    fn put(&mut self, id: BlockId, to: Tier) -> Result<(), String> {
        if to == Tier::Disk && !self.disk_writable {
            return Err(format!("{id:?} written to a disk that takes nothing"));
        }
        let known = self.blocks.entry(id).or_default();
        // What only shared storage still had may have been forgotten, and is written again then.
        if !known.tiers.insert(to) && to != Tier::Shared {
            return Err(format!("{id:?} is in {to:?} already"));
        }
        let owner = known.owner;
        if self.held(to, None) > self.capacity.get(&to).copied().unwrap_or(usize::MAX) {
            return Err(format!("{to:?} is too full with {id:?}"));
        }
        if self.held(to, Some(owner)) > self.quota.get(&(owner, to)).copied().unwrap_or(usize::MAX) {
            return Err(format!("{owner:?} has too much in {to:?} with {id:?}"));
        }
        Ok(())
    }

    fn drop_copy(&mut self, id: BlockId, from: Tier) -> Result<(), String> {
        if self.protected.contains(&id) {
            return Err(format!("{id:?} is pinned or asked for"));
        }
        if !self.blocks.get_mut(&id).is_some_and(|k| k.tiers.remove(&from)) {
            return Err(format!("{id:?} is not in {from:?}"));
        }
        let gone = !self.is_in(id, Tier::Cpu) && !self.is_in(id, Tier::Disk);
        let tiers = if gone { vec![Tier::Cpu, Tier::Disk] } else { vec![from] };
        match tiers.into_iter().find(|&tier| self.has_child_in(id, tier)) {
            Some(tier) => Err(format!("{id:?} left {from:?} before its child left {tier:?}")),
            None => Ok(()),
        }
    }
}
