//! The leaf with the greatest age / (1 + reuse), or simply the oldest (LRU).

use std::collections::BTreeSet;

use super::super::blocks::{Block, No};
use super::super::random::Random;
use super::super::{Owner, Tier};
use super::{Order, View};

/// Leaves by reuse and last access: of each reuse only the oldest can be next.
#[derive(Debug)]
pub(super) struct ByAge {
    /// Blocks reused more often count as reused this often.
    most: u8,
    /// By owner, then reuse; in each, by last access.
    leaves: Vec<BTreeSet<(u32, No)>>,
}

impl ByAge {
    /// An order that tells reuse apart up to `most` times; 0 is LRU.
    pub fn new(most: u8) -> ByAge {
        ByAge { most, leaves: Vec::new() }
    }

    fn classes(&self) -> usize {
        usize::from(self.most) + 1
    }

    fn at(&self, block: &Block) -> usize {
        block.owner.0 as usize * self.classes() + usize::from(block.past.reuse().min(self.most))
    }
}

impl Order for ByAge {
    fn freed(&mut self, no: No, block: &Block) {
        let at = self.at(block);
        if self.leaves.len() <= at {
            self.leaves.resize_with(at + 1, BTreeSet::new);
        }
        self.leaves[at].insert((block.last, no));
    }

    fn held(&mut self, no: No, block: &Block) {
        let at = self.at(block);
        if let Some(leaves) = self.leaves.get_mut(at) {
            leaves.remove(&(block.last, no));
        }
    }

    fn victim(&mut self, view: &View<'_>, owner: Option<Owner>, _random: &mut Random) -> Option<No> {
        debug_assert!(matches!(view.tier, Tier::Cpu | Tier::Disk));
        let classes = self.classes();
        let of = self.leaves.chunks(classes).enumerate();
        let oldest = of
            .filter(|(at, _)| owner.is_none_or(|o| o.0 as usize == *at))
            .flat_map(|(_, of_owner)| of_owner.iter().enumerate())
            .filter_map(|(reuse, leaves)| leaves.first().map(|&(last, no)| (reuse, last, no)));
        let rank = |(reuse, last, no): (usize, u32, No)| {
            let age = f64::from(view.now.wrapping_sub(last)) / (1 + reuse) as f64;
            (age, no)
        };
        oldest.map(rank).max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1))).map(|(_, no)| no)
    }

    fn memory(&self) -> usize {
        // A B-tree's nodes are between half full and full.
        self.leaves.iter().map(|l| l.len() * size_of::<(u32, No)>() * 3 / 2).sum()
    }
}
