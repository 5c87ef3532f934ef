//! What does one holder have?

use kvproto::{EngineHash, Tier};

use super::odd::Known;
use super::{Desk, Holder};
use crate::forest::{Place, UNKNOWN_DEPTH};
use crate::pool::CANONICAL;
use crate::profile::Mask;
use crate::types::{DumpRow, HolderId, HolderStats};

impl Holder {
    pub fn stats(&self) -> HolderStats {
        HolderStats { block_size: self.profile.block_size, ..self.stats }
    }

    /// Where a block lies that is not in the forest by this name.
    pub fn odd_mask(&self, h: EngineHash) -> Mask {
        self.odd.mask_of(h)
    }

    /// Rows in ascending (block, tier) order after `after`, at most `limit`.
    pub fn dump(
        &self,
        id: HolderId,
        after: Option<(EngineHash, Tier)>,
        limit: usize,
        desk: &Desk<'_>,
    ) -> Vec<DumpRow> {
        let mut rows: Vec<DumpRow> = Vec::new();
        let mut add = |row: DumpRow| {
            if after.is_none_or(|a| (row.block, row.tier) > a) {
                rows.push(row);
            }
        };
        for domain in [CANONICAL, self.domain] {
            self.strand_rows(id, domain, desk, &mut add);
        }
        for (block, node) in self.odd.iter() {
            for tier in Tier::ALL {
                if node.copies.iter().any(|(c, _)| c.tier == tier) {
                    add(self.odd_row(id, block, tier, &node.known, desk));
                }
            }
        }
        // A tier's groups are joined into one row, and a strand may be listed twice.
        let key = |r: &DumpRow| (r.block, r.tier);
        // Only the first `limit` are wanted: select before sorting keeps a page of a large
        // holder linear. Twice as many, as rows may still be the same.
        let most = limit.saturating_mul(2 + self.profile.groups.len());
        if rows.len() > most {
            rows.select_nth_unstable_by_key(most, key);
            rows.truncate(most);
        }
        // A block may lie in the forest in one group and wait for its parent in another: it has a place.
        rows.sort_unstable_by_key(|r| (key(r), r.depth.is_none(), r.depth, r.parent));
        rows.dedup_by_key(|r| key(r));
        rows.truncate(limit);
        rows
    }

    fn strand_rows(&self, id: HolderId, domain: usize, desk: &Desk<'_>, add: &mut impl FnMut(DumpRow)) {
        let forest = desk.forests.get(domain);
        let mut strands = self.strands[usize::from(domain != CANONICAL)].all.clone();
        strands.sort_unstable();
        strands.dedup();
        for strand in strands {
            let Some(look) = forest.look(desk.guard, strand) else { continue };
            let names = forest.names(look);
            let depth = Some(forest.depth(strand)).filter(|d| *d != UNKNOWN_DEPTH);
            let before = forest.name_before(desk.guard, strand);
            let size = match forest.block_size(strand) {
                0 => self.profile.block_size,
                n => n,
            };
            for (plane, view) in look.planes() {
                let Some(tier) = Tier::ALL.into_iter().find(|t| plane.mask().has_tier(*t)) else { continue };
                for (from, to) in view.held(self.slot, (0, look.len), look.len) {
                    for i in from..to {
                        if self.odd.is_at(domain, Place { strand, offset: i }) {
                            continue;
                        }
                        let parent = match i {
                            0 => before,
                            _ => Some(names[i as usize - 1]),
                        };
                        add(DumpRow {
                            holder: id,
                            tier,
                            block: EngineHash(names[i as usize]),
                            depth: depth.map(|d| d.saturating_add(i)),
                            parent: parent.map(EngineHash),
                            block_size: size,
                        });
                    }
                }
            }
        }
    }

    fn odd_row(
        &self,
        id: HolderId,
        block: EngineHash,
        tier: Tier,
        known: &Known,
        desk: &Desk<'_>,
    ) -> DumpRow {
        let row = DumpRow {
            holder: id,
            tier,
            block,
            depth: None,
            parent: None,
            block_size: self.profile.block_size,
        };
        match *known {
            Known::Nothing => row,
            Known::Orphan { parent, block_size, .. } => DumpRow { parent: Some(parent), block_size, ..row },
            Known::Placed { domain, place, .. } => {
                let forest = desk.forests.get(domain);
                let before = match place.offset {
                    0 => forest.name_before(desk.guard, place.strand),
                    n => forest
                        .look(desk.guard, place.strand)
                        .and_then(|l| forest.names(l).get(n as usize - 1).copied()),
                };
                DumpRow {
                    depth: Some(forest.depth(place.strand).saturating_add(place.offset)),
                    parent: before.map(EngineHash),
                    block_size: forest.block_size(place.strand),
                    ..row
                }
            }
        }
    }
}
