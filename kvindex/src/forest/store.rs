//! What blocks there are: along the strands as far as they say the same, then a new one.

use std::sync::atomic::Ordering;

use kvproto::hash::canonical::Seed;
use kvproto::{LocalHash, SeqHash};

use smallvec::{SmallVec, smallvec};

use super::raw::{CHECK_EVERY, Owned, common};
use super::table::{Hash, MAX_LEN, MAX_STRANDS};
use super::*;

/// Blocks ahead that homes in the table of names are fetched.
pub(super) const AHEAD: usize = 32;

/// Consecutive blocks that a holder tells of.
#[derive(Clone, Copy)]
pub(crate) struct Told<'a> {
    /// Each block's own hash; in a canonical forest the same as `names`.
    pub locals: &'a [u64],
    /// What the engine calls them.
    pub names: &'a [u64],
    /// llm-d's request keys, 0 where not known; empty where the forest has none.
    pub keys: &'a [u64],
    /// Seed of the canonical chain.
    pub seed: u64,
    pub block_size: u32,
    /// Who tells: a number that no other holder had or will have.
    pub creator: u32,
    pub slot: Slot,
    /// Whether the copies told of are on the device in group 0, so that a strand which `slot` alone
    /// holds may grow with them.
    pub device: bool,
    /// Which of them, ascending, have a name that is another block's by now and must not be entered.
    pub unnamed: &'a [u32],
}

/// Blocks of one strand that a store is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub strand: u32,
    pub span: Span,
    pub how: How,
}

/// How a piece came to be where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// It was there.
    Found,
    /// It is all of a new strand, which nobody holds yet.
    Fresh,
    /// The strand grew, and with it what its only holder has.
    Grown,
}

/// Why a store stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clash {
    /// The block is there under another name.
    OtherName(Place),
    /// The name is another block's.
    NameTaken(Place),
    /// No more strands can be numbered.
    Full,
}

impl Pen<'_> {
    /// Finds or adds the blocks after `at` (a strand and how many of its blocks precede). Returns
    /// how many were dealt with; all of them unless there was a clash at the next.
    pub fn store(&mut self, at: Place, told: &Told<'_>, pieces: &mut Vec<Piece>) -> (usize, Option<Clash>) {
        let (mut strand, mut offset) = (at.strand, at.offset);
        let mut i = 0;
        let n = told.names.len();
        while i < n {
            if strand != ROOT
                && let Some(look) = self.forest.look(self.guard, strand)
                && offset < look.len
            {
                let from = offset as usize;
                let names = &self.forest.names(look)[from..];
                let same = common(&look.locals()[from..], &told.locals[i..]);
                let named = if told.locals.as_ptr() == told.names.as_ptr() {
                    same
                } else {
                    common(&names[..same], &told.names[i..i + same])
                };
                if named > 0 {
                    let span = (offset, offset + named as u32);
                    pieces.push(Piece { strand, span, how: How::Found });
                    i += named;
                    offset += named as u32;
                }
                if named < same {
                    return (i, Some(Clash::OtherName(Place { strand, offset })));
                }
                if i == n {
                    break;
                }
            }
            let next = match self.forest.kind {
                // Nothing hangs on it.
                Kind::Chained if self.w.meta.get(strand as usize).is_some_and(|m| m.children == 0) => None,
                Kind::Chained => {
                    let at = Place { strand, offset };
                    self.forest.find_child(self.guard, at, told.locals[i]).map(|(s, _)| (s, 0))
                }
                Kind::Canonical => {
                    self.forest.find_name(self.guard, told.names[i]).map(|p| (p.strand, p.offset))
                }
            };
            if let Some(next) = next {
                (strand, offset) = next;
                continue;
            }
            let (added, clash) = self.add(Place { strand, offset }, told, i, pieces);
            i += added;
            if clash.is_some() {
                return (i, clash);
            }
            if let Some(last) = pieces.last() {
                (strand, offset) = (last.strand, last.span.1);
            }
        }
        (i, None)
    }

    /// Adds blocks that are not there, from the `i`th on, as many as one strand has room for.
    fn add(
        &mut self,
        at: Place,
        told: &Told<'_>,
        i: usize,
        pieces: &mut Vec<Piece>,
    ) -> (usize, Option<Clash>) {
        let grows = self.can_grow(at, told);
        let base = if grows { at.offset as usize } else { 0 };
        let strand = if grows {
            at.strand
        } else {
            match self.new_strand() {
                Some(strand) => strand,
                None => return (0, Some(Clash::Full)),
            }
        };
        let wanted = (told.names.len() - i).min(MAX_LEN - base);
        let names = &told.names[i..i + wanted];
        let is_named = |j: usize| told.unnamed.binary_search(&((i + j) as u32)).is_err();
        let (n, taken) = self.put_names(strand, base, names, is_named);
        if n == 0 {
            if !grows {
                self.w.bin.strands.push(strand);
            }
            return (0, taken.map(Clash::NameTaken));
        }
        let part = Told {
            locals: &told.locals[i..i + n],
            names: &names[..n],
            keys: if told.keys.is_empty() { &[] } else { &told.keys[i..i + n] },
            ..*told
        };
        if self.forest.keyed {
            for (j, key) in part.keys.iter().enumerate().filter(|(_, k)| **k != 0) {
                let place = Place { strand, offset: (base + j) as u32 };
                let is = |p: Place| self.forest.is_in_lane(self.guard, p, 2, *key);
                self.forest.keys.put(self.guard, *key, place, &mut self.w.bin, is);
            }
        }
        if grows {
            self.grow(strand, base, &part);
        } else {
            self.branch(strand, at, &part);
        }
        let span = (base as u32, (base + n) as u32);
        pieces.push(Piece { strand, span, how: if grows { How::Grown } else { How::Fresh } });
        (n, taken.map(Clash::NameTaken))
    }

    /// A strand grows only for the one who holds all of it alone and told of all of it: whoever
    /// holds all of a strand holds what it grows by.
    fn can_grow(&self, at: Place, told: &Told<'_>) -> bool {
        let Some(meta) = self.w.meta.get(at.strand as usize) else { return false };
        at.strand != ROOT
            && told.device
            && meta.children == 0
            && !meta.sealed
            && meta.creator == told.creator
            && (at.offset as usize) < MAX_LEN
            && self.forest.block_size(at.strand) == told.block_size
            && self.forest.head(at.strand).is_some_and(|head| {
                let once = planes(head.copies.load(self.guard)).is_none();
                once && head.look(self.guard).is_some_and(|l| l.len == at.offset && l.is_only(told.slot))
            })
    }

    /// Enters names up to the first that is another block's. Until the blocks are there, readers
    /// who find an entry see that it is none.
    fn put_names(
        &mut self,
        strand: u32,
        base: usize,
        names: &[u64],
        is_named: impl Fn(usize) -> bool,
    ) -> (usize, Option<Place>) {
        let (forest, guard) = (self.forest, self.guard);
        let lane = forest.name_lane();
        let mut ahead = [Hash::default(); AHEAD];
        for (hash, name) in ahead.iter_mut().zip(names) {
            *hash = forest.names.prefetch(guard, *name);
        }
        for (j, &name) in names.iter().enumerate() {
            let hash = ahead[j % AHEAD];
            if let Some(later) = names.get(j + AHEAD) {
                ahead[j % AHEAD] = forest.names.prefetch(guard, *later);
            }
            if !is_named(j) {
                continue;
            }
            let place = Place { strand, offset: (base + j) as u32 };
            // A name told twice in one event is not in its lane yet.
            let is = |p: Place| match p.strand == strand && p.offset as usize >= base {
                true => names.get(p.offset as usize - base) == Some(&name),
                false => forest.is_in_lane(guard, p, lane, name),
            };
            if let Some(there) = forest.names.put_hashed(guard, hash, place, &mut self.w.bin, is) {
                return (j, Some(there));
            }
        }
        (names.len(), None)
    }

    fn new_strand(&mut self) -> Option<u32> {
        let strand = match self.w.bin.strands.pop() {
            Some(strand) => strand,
            None if self.forest.heads.len() as u32 >= MAX_STRANDS => return None,
            None => self.forest.heads.push(Head::new) as u32,
        };
        if self.w.meta.len() <= strand as usize {
            self.w.meta.resize(strand as usize + 1, Meta::default());
        }
        Some(strand)
    }

    /// What a strand keeps of blocks told of, lane by lane.
    fn lanes<'t>(&self, told: &Told<'t>) -> SmallVec<[&'t [u64]; 3]> {
        match self.forest.kind {
            Kind::Canonical => smallvec![told.names],
            Kind::Chained if self.forest.keyed => smallvec![told.locals, told.names, told.keys],
            Kind::Chained => smallvec![told.locals, told.names],
        }
    }

    fn grow(&mut self, strand: u32, base: usize, told: &Told<'_>) {
        let Some(head) = self.forest.head(strand) else { return };
        let Some(look) = head.look(self.guard) else { return };
        let tip = SeqHash(self.w.meta[strand as usize].tip);
        let tip = self.chain(Some(tip), base, told);
        let n = told.names.len();
        if base + n <= look.blocks.cap() {
            look.blocks.append(&self.lanes(told), &self.w.checks);
        } else {
            let more = if base < 64 { base / 2 } else { base / 4 };
            let cap = (base + n.max(more).max(4)).min(MAX_LEN);
            let checked = self.forest.kind == Kind::Chained;
            let mut new = Blocks::with_room(cap, self.forest.lanes(), checked);
            let checks = if checked { look.checks() } else { &[] };
            let old: SmallVec<[&[u64]; 3]> = (0..self.forest.lanes()).map(|l| look.lane(l)).collect();
            new.blocks().append(&old, checks);
            new.blocks().append(&self.lanes(told), &self.w.checks);
            self.publish(head, new);
        }
        self.w.meta[strand as usize].tip = tip;
        self.touch(strand);
    }

    fn branch(&mut self, strand: u32, at: Place, told: &Told<'_>) {
        let before = self.seq_before(at);
        let tip = self.chain(before, 0, told);
        let first = self.w.checks.first().copied().unwrap_or(0);
        let chained = self.forest.kind == Kind::Chained;
        let mut new = Blocks::with_room(told.names.len(), self.forest.lanes(), chained);
        new.blocks().append(&self.lanes(told), &self.w.checks);
        let Some(head) = self.forest.head(strand) else { return };
        let depth = match self.forest.depth(at.strand) {
            UNKNOWN_DEPTH => UNKNOWN_DEPTH,
            _ if !chained && at.strand == ROOT => UNKNOWN_DEPTH,
            depth => depth.saturating_add(at.offset),
        };
        let seed = if chained { told.seed } else { self.name_at(at) };
        head.seed.store(seed, Ordering::Relaxed);
        head.parent.store(at.strand, Ordering::Relaxed);
        head.at.store(at.offset, Ordering::Relaxed);
        head.depth.store(depth, Ordering::Relaxed);
        head.block_size.store(told.block_size, Ordering::Relaxed);
        self.publish(head, new);
        self.touch(strand);
        self.w.meta[strand as usize] = Meta { creator: told.creator, live: true, tip, ..Meta::default() };
        self.count_teller(told.creator);
        if chained {
            self.w.meta[at.strand as usize].children += 1;
            let place = Place { strand, offset: 0 };
            let never = |_: Place| false;
            self.forest.children.put(
                self.guard,
                child_key(at, told.locals[0]),
                place,
                &mut self.w.bin,
                never,
            );
            self.forest.firsts.put(self.guard, first, place, &mut self.w.bin, never);
        }
    }

    pub(super) fn publish(&mut self, head: &Head, blocks: Owned) {
        self.w.bin.grew(blocks.bytes());
        self.w.bin.retire(head.blocks.replace(blocks));
    }

    /// Puts the checks due among the blocks told of into `checks`; returns the last one's canonical
    /// hash. The check of a block is the canonical hash of it.
    fn chain(&mut self, before: Option<SeqHash>, base: usize, told: &Told<'_>) -> u64 {
        self.w.checks.clear();
        if self.forest.kind == Kind::Canonical {
            return 0;
        }
        let seed = Seed(told.seed);
        let mut last = before;
        for (i, local) in told.locals.iter().enumerate() {
            let seq = seed.chain(last, LocalHash(*local));
            if (base + i).is_multiple_of(CHECK_EVERY) {
                self.w.checks.push(seq.0);
            }
            last = Some(seq);
        }
        last.map_or(0, |s| s.0)
    }

    /// The canonical hash of the block before `at`.
    fn seq_before(&self, at: Place) -> Option<SeqHash> {
        if at.strand == ROOT || self.forest.kind == Kind::Canonical {
            return None;
        }
        let look = self.forest.look(self.guard, at.strand)?;
        if at.offset == look.len {
            return Some(SeqHash(self.w.meta[at.strand as usize].tip));
        }
        self.forest.seq_at(look, at.strand, at.offset.checked_sub(1)?)
    }

    /// What the block before `at` is called; 0 where there is none.
    fn name_at(&self, at: Place) -> u64 {
        let name = || {
            let look = self.forest.look(self.guard, at.strand)?;
            self.forest.names(look).get(at.offset.checked_sub(1)? as usize).copied()
        };
        name().unwrap_or(0)
    }

    /// Notes what a canonical block says of where it stands, where its parent does not tell.
    pub fn stands_at(&mut self, strand: u32, depth: u32, parent: Option<u64>) {
        let Some(head) = self.forest.head(strand) else { return };
        if head.depth() == UNKNOWN_DEPTH {
            head.depth.store(depth, Ordering::Relaxed);
        }
        if head.seed.load(Ordering::Relaxed) == 0 {
            head.seed.store(parent.unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// Notes that a strand is in use.
    pub(super) fn touch(&mut self, strand: u32) {
        if let Some(head) = self.forest.head(strand) {
            head.touched.store(self.forest.clock.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Who told of a strand's blocks.
    pub fn creator(&self, strand: u32) -> u32 {
        self.w.meta.get(strand as usize).map_or(0, |m| m.creator)
    }

    /// Somebody else calls blocks as who told of this strand does.
    pub fn agree_with(&mut self, strand: u32) {
        let creator = self.creator(strand);
        *self.stirred |= self.w.agreed_with.insert(creator);
    }

    /// Whether somebody else calls blocks as `creator` does.
    pub fn is_agreed_with(&self, creator: u32) -> bool {
        self.w.agreed_with.contains(&creator)
    }

    /// Whether all blocks that are here were told by `creator`.
    pub fn is_of_one(&self, creator: u32) -> bool {
        self.w.tellers.len() <= 1 && self.w.tellers.keys().all(|c| *c == creator)
    }

    fn count_teller(&mut self, creator: u32) {
        let strands = self.w.tellers.entry(creator).or_default();
        *strands += 1;
        *self.stirred |= *strands == 1;
    }

    /// A strand that `creator` told of is gone.
    pub(super) fn discount_teller(&mut self, creator: u32) {
        let Some(strands) = self.w.tellers.get_mut(&creator) else { return };
        *strands -= 1;
        if *strands == 0 {
            self.w.tellers.remove(&creator);
            *self.stirred = true;
        }
    }

    /// Strands of which `creator` told.
    pub fn told_by(&self, creator: u32) -> Vec<u32> {
        let of = |(_, m): &(u32, &Meta)| m.live && m.creator == creator;
        (0..).zip(&self.w.meta).filter(of).map(|(s, _)| s).collect()
    }

    /// One tick of the writer's clock.
    pub fn tick(&mut self) {
        let clock = self.forest.clock.load(Ordering::Relaxed).wrapping_add(1);
        self.forest.clock.store(clock, Ordering::Relaxed);
    }
}

impl Forest {
    /// The canonical hash of block `i` of a strand.
    pub(super) fn seq_at(&self, look: Look<'_>, strand: u32, i: u32) -> Option<SeqHash> {
        let seed = Seed(self.head(strand)?.seed.load(Ordering::Relaxed));
        let i = i as usize;
        let check = i / CHECK_EVERY;
        let mut seq = SeqHash(*look.checks().get(check)?);
        for local in look.locals().get(check * CHECK_EVERY + 1..=i)? {
            seq = seed.chain(Some(seq), LocalHash(*local));
        }
        Some(seq)
    }
}
