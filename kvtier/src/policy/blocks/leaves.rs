//! What may be evicted: blocks without a child that their leaving would cut off.

use super::super::{Owner, Tier};
use super::{Block, Blocks, NONE, No, flag};

/// The blocks of one tier that may be evicted, by owner, in no order.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    of: Vec<Vec<No>>,
    total: usize,
}

impl Leaves {
    /// Heap memory, in bytes.
    pub fn memory(&self) -> usize {
        self.of.iter().map(|list| list.capacity() * size_of::<No>()).sum()
    }
}

impl Blocks {
    /// Whether a block is among a tier's leaves.
    pub fn is_leaf(&self, no: No, tier: Tier) -> bool {
        let block = self.get(no);
        block.has(flag::LOCAL) && block.links[tier.at()] != NONE
    }

    /// Puts a resident block among a tier's leaves or takes it out.
    pub fn set_leaf(&mut self, no: No, tier: Tier, leaf: bool) {
        let at = tier.at();
        let Block { owner, links, .. } = *self.get(no);
        let leaves = &mut self.leaves[at];
        let owner = owner.0 as usize;
        if leaf {
            if leaves.of.len() <= owner {
                leaves.of.resize_with(owner + 1, Vec::new);
            }
            leaves.of[owner].push(no);
            leaves.total += 1;
            let place = (leaves.of[owner].len() - 1) as u32;
            self.get_mut(no).links[at] = place;
        } else {
            let list = &mut leaves.of[owner];
            let place = links[at];
            list.swap_remove(place as usize);
            leaves.total -= 1;
            if let Some(&moved) = list.get(place as usize) {
                self.get_mut(moved).links[at] = place;
            }
            self.get_mut(no).links[at] = NONE;
        }
    }

    /// How many leaves there are, of one owner or of all.
    pub fn leaves(&self, tier: Tier, owner: Option<Owner>) -> usize {
        let leaves = &self.leaves[tier.at()];
        owner.map_or(leaves.total, |o| leaves.of.get(o.0 as usize).map_or(0, Vec::len))
    }

    /// The `place`th leaf, of one owner or of all.
    pub fn leaf(&self, tier: Tier, owner: Option<Owner>, mut place: usize) -> Option<No> {
        let of = &self.leaves[tier.at()].of;
        if let Some(owner) = owner {
            return of.get(owner.0 as usize)?.get(place).copied();
        }
        for list in of {
            match list.get(place) {
                Some(&no) => return Some(no),
                None => place -= list.len(),
            }
        }
        None
    }
}
