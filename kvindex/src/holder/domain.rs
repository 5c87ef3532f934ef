//! Which engines call blocks by the same names?
//!
//! Nothing tells so beforehand: the hash depends on the engine's version, algorithm and seed. Where two
//! engines have the same block, their names for it say whether they agree.

use kvproto::EngineHash;

use super::odd::{Copies, Known};
use super::store::after;
use super::{Desk, Holder, Strands};
use crate::forest::{Clash, Place, Plane, ROOT, Told};

impl Holder {
    /// Whether this holder went to another domain because of a clash over a block with own hash
    /// `local` that it calls `name`.
    pub(super) fn moves(&mut self, clash: Clash, local: u64, name: u64, desk: &mut Desk<'_>) -> bool {
        let place = match clash {
            Clash::OtherName(place) | Clash::NameTaken(place) => place,
            Clash::Full => return false,
        };
        // One engine may have two names for what looks the same.
        if self.agreed || desk.pen(self.domain).creator(place.strand) == self.creator {
            return false;
        }
        let agrees = |d: &usize| {
            let forest = desk.forests.get(*d);
            *d != self.domain
                && forest.find_name(desk.guard, name).is_some_and(|p| {
                    let look = forest.look(desk.guard, p.strand);
                    look.is_some_and(|l| l.locals().get(p.offset as usize) == Some(&local))
                })
        };
        let found = desk.forests.domains().find(agrees);
        let unused = || desk.forests.unused();
        let Some(to) = found.or_else(unused) else {
            // No more domains: what does not fit is odd from now on.
            self.agreed = true;
            return false;
        };
        if found.is_none() {
            // Of those who were there before may be left what nobody holds.
            desk.pen(to).settle_all();
        }
        self.agreed = found.is_some();
        self.move_to(to, desk);
        true
    }

    /// Takes all that this holder told and holds over into another domain.
    fn move_to(&mut self, to: usize, desk: &mut Desk<'_>) {
        let from = std::mem::replace(&mut self.domain, to);
        let Strands { mut all, .. } = std::mem::take(&mut self.strands[1]);
        all.sort_unstable_by_key(|s| (desk.forests.get(from).depth(*s), *s));
        all.dedup();
        desk.forests.join(to);
        // All that it told, held or not: what it holds may hang on that, and may come back by name.
        let mut told = desk.pen(from).told_by(self.creator);
        told.sort_unstable_by_key(|s| desk.forests.get(from).depth(*s));
        told.iter().for_each(|s| self.copy_blocks(*s, from, to, desk));
        for &strand in &all {
            self.copy_holdings(strand, from, to, desk);
        }
        for &strand in &all {
            let Some(look) = desk.forests.get(from).look(desk.guard, strand) else { continue };
            self.changing(from, strand, (0, look.len), desk, |pen, slot| {
                pen.drop_all(slot, strand, (0, look.len), |_| true);
            });
            desk.pen(from).let_go(strand);
        }
        desk.forests.part(from);
        // Second names are of places in the old domain.
        let placed: Vec<EngineHash> = self
            .odd
            .iter()
            .filter(|(_, n)| matches!(n.known, Known::Placed { .. }))
            .map(|(h, _)| h)
            .collect();
        for h in placed {
            let copies = self.odd.take(h).map(|n| self.forget_odd(n)).unwrap_or_default();
            self.odd.insert(h, Known::Nothing);
            self.odd_restore(h, copies, desk);
        }
    }

    fn odd_restore(&mut self, h: EngineHash, copies: Copies, desk: &mut Desk<'_>) {
        let mut done = crate::types::Applied::default();
        for (copy, n) in copies {
            (0..n).for_each(|_| self.odd_stored(h, copy, desk, &mut done));
        }
    }

    fn copy_blocks(&mut self, strand: u32, from: usize, to: usize, desk: &mut Desk<'_>) {
        let forest = desk.forests.get(from);
        let Some(look) = forest.look(desk.guard, strand) else { return };
        let at = match forest.name_before(desk.guard, strand) {
            None => Place { strand: ROOT, offset: 0 },
            Some(name) => match desk.forests.get(to).find_name(desk.guard, name) {
                Some(place) => after(place),
                None => return,
            },
        };
        let told = Told {
            locals: look.locals(),
            names: forest.names(look),
            keys: if self.llmd.is_some() { look.keys() } else { &[] },
            seed: forest.seed(strand),
            block_size: forest.block_size(strand),
            creator: self.creator,
            slot: self.slot,
            device: false,
            unnamed: &[],
        };
        let mut pieces = Vec::new();
        desk.pen(to).store(at, &told, &mut pieces);
        // Whether anyone holds them is seen when what this holder has is carried over.
        pieces.iter().for_each(|p| desk.pen(to).let_go(p.strand));
    }

    fn copy_holdings(&mut self, strand: u32, from: usize, to: usize, desk: &mut Desk<'_>) {
        let old = desk.forests.get(from);
        let Some(look) = old.look(desk.guard, strand) else { return };
        let names = old.names(look);
        let held = desk.pen(from).holdings(self.slot, strand);
        for (plane, (mut i, end)) in held {
            while i < end {
                let new = desk.forests.get(to);
                let Some(p) = new.find_name(desk.guard, names[i as usize]) else { break };
                let Some(there) = new.look(desk.guard, p.strand) else { break };
                let same = new.names(there)[p.offset as usize..]
                    .iter()
                    .zip(&names[i as usize..end as usize])
                    .take_while(|(a, b)| a == b)
                    .count() as u32;
                if !there.has(self.slot) {
                    self.strands[1].all.push(p.strand);
                }
                let span = (p.offset, p.offset + same);
                let plane = Plane { level: 0, ..plane };
                self.changing(to, p.strand, span, desk, |pen, slot| pen.hold(slot, plane, p.strand, span));
                i += same.max(1);
            }
        }
    }
}
