//! Which engines call blocks by the same names?
//!
//! Nothing tells so beforehand: the hash depends on the engine's version, algorithm and seed. Where two
//! engines have the same block, their names for it say whether they agree.

use kvproto::EngineHash;

use super::odd::Known;
use super::store::{Copy, after};
use super::{Desk, Holder, Strands};
use crate::forest::{Clash, DEVICE, Place, Plane, ROOT, Told};
use crate::types::Applied;

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
        let mut retold = Vec::new();
        self.unname(&mut retold, desk);
        let from = std::mem::replace(&mut self.domain, to);
        let Strands { mut all, .. } = std::mem::take(&mut self.strands[1]);
        all.sort_unstable_by_key(|s| (desk.forests.get(from).depth(*s), *s));
        all.dedup();
        desk.join(to);
        // All that it told, held or not: what it holds may hang on that, and may come back by name.
        let mut told = desk.pen(from).told_by(self.creator);
        told.sort_unstable_by_key(|s| desk.forests.get(from).depth(*s));
        told.iter().for_each(|s| self.copy_blocks(*s, from, to, desk));
        for &strand in &all {
            self.copy_holdings(strand, from, to, &mut retold, desk);
        }
        for &strand in &all {
            let Some(look) = desk.forests.get(from).look(desk.guard, strand) else { continue };
            self.changing(from, strand, (0, look.len), desk, |pen, slot| {
                pen.drop_all(slot, strand, (0, look.len), |_| true);
            });
            desk.pen(from).let_go(strand);
        }
        desk.part(from);
        self.tell_again(&retold, desk);
    }

    /// Takes second names out, which are of places in this domain, to be told in the next.
    fn unname(&mut self, retold: &mut Vec<Retold>, desk: &mut Desk<'_>) {
        let placed: Vec<(EngineHash, Option<Place>)> = self
            .odd
            .iter()
            .filter(|(_, n)| matches!(n.known, Known::Placed { .. }))
            .map(|(h, _)| (h, self.odd.place(h, self.domain, desk)))
            .collect();
        // What the forest shows of them is not to be carried over as if it were counted there.
        placed.iter().filter_map(|(_, p)| *p).for_each(|p| self.drop_at(p, desk));
        for (h, place) in placed {
            let copies = self.odd.take(h).map(|n| self.forget_odd(n)).unwrap_or_default();
            let of_place = place.and_then(|p| Retold::at(p, self.domain, desk));
            match of_place {
                Some(block) if !copies.is_empty() => {
                    let times = |(copy, times)| Retold { name: h.0, copy, times, ..block };
                    retold.extend(copies.into_iter().map(times));
                }
                Some(_) | None => {
                    self.odd.insert(h, Known::Nothing);
                    copies.into_iter().for_each(|(copy, n)| self.odd_add(h, copy, n, desk));
                }
            }
        }
    }

    fn copy_blocks(&mut self, strand: u32, from: usize, to: usize, desk: &mut Desk<'_>) {
        let forest = desk.forests.get(from);
        let Some(len) = forest.look(desk.guard, strand).map(|l| l.len) else { return };
        let before = forest.name_before(desk.guard, strand);
        let there = before.and_then(|name| desk.forests.get(to).find_name(desk.guard, name));
        let at = match (before, there) {
            (None, _) => Place { strand: ROOT, offset: 0 },
            (Some(_), Some(place)) => after(place),
            (Some(_), None) => {
                // It hangs on what another told: that goes along.
                let path = forest.path(desk.guard, Place { strand, offset: 0 }).unwrap_or_default();
                let mut at = Place { strand: ROOT, offset: 0 };
                for step in path {
                    match self.copy_some(step.strand, step.n, at, from, to, desk) {
                        Some(end) => at = end,
                        None => return,
                    }
                }
                at
            }
        };
        self.copy_some(strand, len, at, from, to, desk);
    }

    /// Copies the first `n` blocks of a strand after `at`; returns where they end.
    fn copy_some(
        &mut self,
        strand: u32,
        n: u32,
        at: Place,
        from: usize,
        to: usize,
        desk: &mut Desk<'_>,
    ) -> Option<Place> {
        let forest = desk.forests.get(from);
        let look = forest.look(desk.guard, strand)?;
        let n = n as usize;
        let told = Told {
            locals: look.locals().get(..n)?,
            names: forest.names(look).get(..n)?,
            keys: if self.llmd.is_some() { look.keys().get(..n)? } else { &[] },
            seed: forest.seed(strand),
            block_size: forest.block_size(strand),
            creator: self.creator,
            slot: self.slot,
            device: false,
            unnamed: &[],
        };
        let mut pieces = Vec::new();
        let (_, clash) = desk.pen(to).store(at, &told, &mut pieces);
        // Whether anyone holds them is seen when what this holder has is carried over.
        pieces.iter().for_each(|p| desk.pen(to).let_go(p.strand));
        let last = pieces.last().filter(|_| clash.is_none())?;
        Some(Place { strand: last.strand, offset: last.span.1 })
    }

    /// Takes over what this holder has of a strand; what is not there by its name goes to `retold`.
    fn copy_holdings(
        &mut self,
        strand: u32,
        from: usize,
        to: usize,
        retold: &mut Vec<Retold>,
        desk: &mut Desk<'_>,
    ) {
        let old = desk.forests.get(from);
        let Some(look) = old.look(desk.guard, strand) else { return };
        let names = old.names(look);
        let held = desk.pen(from).holdings(self.slot, strand);
        for (plane, (mut i, end)) in held {
            while i < end {
                let new = desk.forests.get(to);
                let found = new.find_name(desk.guard, names[i as usize]);
                let Some((p, there)) = found.and_then(|p| Some((p, new.look(desk.guard, p.strand)?))) else {
                    let block = Retold::at(Place { strand, offset: i }, from, desk);
                    let copy = Copy::of_bit(plane.bit);
                    retold.extend(block.map(|b| Retold { copy, ..b }));
                    i += 1;
                    continue;
                };
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

    /// Tells what the new domain has not by that name.
    fn tell_again(&mut self, retold: &[Retold], desk: &mut Desk<'_>) {
        let (mut pieces, mut done) = (Vec::new(), Applied::default());
        for r in retold {
            let told = Told {
                locals: &[r.local],
                names: &[r.name],
                keys: if self.llmd.is_some() { &[r.key] } else { &[] },
                seed: r.seed,
                block_size: r.block_size,
                creator: self.creator,
                slot: self.slot,
                device: false,
                unnamed: &[],
            };
            for _ in 0..r.times {
                self.tell_one(r.parent, &told, r.copy, &mut pieces, desk, &mut done);
            }
        }
    }
}

/// Copies of a block to be told in another domain.
#[derive(Clone, Copy)]
struct Retold {
    parent: Option<EngineHash>,
    name: u64,
    local: u64,
    key: u64,
    seed: u64,
    block_size: u32,
    copy: Copy,
    times: u32,
}

impl Retold {
    /// The block at a place, as the forest calls it.
    fn at(place: Place, domain: usize, desk: &Desk<'_>) -> Option<Retold> {
        let forest = desk.forests.get(domain);
        let look = forest.look(desk.guard, place.strand)?;
        let (i, names) = (place.offset as usize, forest.names(look));
        let parent = match i.checked_sub(1) {
            Some(i) => names.get(i).copied(),
            None => forest.name_before(desk.guard, place.strand),
        };
        Some(Retold {
            parent: parent.map(EngineHash),
            name: *names.get(i)?,
            local: *look.locals().get(i)?,
            key: forest.key_at(look, i),
            seed: forest.seed(place.strand),
            block_size: forest.block_size(place.strand),
            copy: Copy::of_bit(DEVICE),
            times: 1,
        })
    }
}
