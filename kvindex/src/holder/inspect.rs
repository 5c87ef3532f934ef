//! What does one holder have?

use kvproto::{EngineHash, Tier};

use super::{Holder, Node, Place, UNKNOWN_DEPTH};
use crate::profile::Mask;
use crate::types::{DumpRow, HolderId, HolderStats};

impl Holder {
    pub fn stats(&self) -> HolderStats {
        HolderStats { block_size: self.profile.block_size, ..self.stats }
    }

    /// Where the engine's own hash `h` lies.
    pub fn mask_of(&self, h: EngineHash) -> Mask {
        self.nodes.get(&h).map_or(Mask::default(), Node::mask)
    }

    /// Rows in ascending (block, tier) order after `after`, at most `limit`.
    pub fn dump(&self, id: HolderId, after: Option<(EngineHash, Tier)>, limit: usize) -> Vec<DumpRow> {
        let mut rows: Vec<DumpRow> = Vec::new();
        for (&block, node) in &self.nodes {
            for tier in Tier::ALL {
                let held = node.copies.iter().any(|c| c.tier == tier);
                if held && after.is_none_or(|a| (block, tier) > a) {
                    let depth = match node.place {
                        Place::Known { depth, .. } if depth != UNKNOWN_DEPTH => Some(depth),
                        Place::Known { .. } | Place::Orphan { .. } | Place::Nameless => None,
                    };
                    let block_size =
                        if node.block_size > 0 { node.block_size } else { self.profile.block_size };
                    rows.push(DumpRow { holder: id, tier, block, depth, parent: node.parent, block_size });
                }
            }
        }
        // Only the first `limit` are wanted: select before sorting keeps a page of a large
        // holder linear.
        if rows.len() > limit {
            rows.select_nth_unstable_by_key(limit, |r| (r.block, r.tier));
            rows.truncate(limit);
        }
        rows.sort_unstable_by_key(|r| (r.block, r.tier));
        rows
    }
}
