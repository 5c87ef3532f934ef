//! Strands, and what stores and removals do to them.

use super::table::Table;
use crate::hash::mix;

/// Words of a bitset of up to 512 pods.
pub const WORDS: usize = 8;
/// The strand before every first block; it has no blocks.
pub const ROOT: u32 = 0;
/// Blocks ahead that table homes are fetched.
const AHEAD: usize = 24;

/// A set of pods.
pub type Pods = [u64; WORDS];

/// Blocks `from..to` of a strand are held by `pod`.
#[derive(Clone, Copy)]
pub struct Part(u64);

impl Part {
    fn new(pod: u32, from: u32, to: u32) -> Part {
        Part(u64::from(pod) << 48 | u64::from(from) << 24 | u64::from(to))
    }
    #[inline(always)]
    pub fn pod(self) -> u32 {
        (self.0 >> 48) as u32
    }
    #[inline(always)]
    pub fn from(self) -> u32 {
        (self.0 >> 24) as u32 & 0xFF_FFFF
    }
    #[inline(always)]
    pub fn to(self) -> u32 {
        self.0 as u32 & 0xFF_FFFF
    }
}

/// A stretch of one chain.
#[derive(Default)]
pub struct Stretch {
    /// Who holds all of it.
    pub full: Pods,
    /// Who holds what of it otherwise.
    pub parts: Vec<Part>,
    pub locals: Vec<u64>,
    pub sequence: Vec<u64>,
    /// The strand it branches off and after how many of that one's blocks.
    pub parent: u32,
    pub parent_blocks: u32,
    children: u32,
}

impl Stretch {
    #[inline(always)]
    fn is_full(&self, pod: u32) -> bool {
        self.full[pod as usize / 64] >> (pod % 64) & 1 != 0
    }

    fn set_full(&mut self, pod: u32, full: bool) {
        let (word, bit) = (&mut self.full[pod as usize / 64], 1 << (pod % 64));
        if full { *word |= bit } else { *word &= !bit }
    }

    /// Notes that `pod` holds `from..to` now, joined with what it holds beside.
    fn cover(&mut self, pod: u32, from: u32, to: u32) {
        if self.is_full(pod) || from >= to {
            return;
        }
        let (mut lo, mut hi) = (from, to);
        self.parts.retain(|p| {
            let joins = p.pod() == pod && p.from() <= hi && lo <= p.to();
            if joins {
                (lo, hi) = (lo.min(p.from()), hi.max(p.to()));
            }
            !joins
        });
        if lo == 0 && hi as usize == self.locals.len() {
            self.set_full(pod, true);
        } else {
            self.parts.push(Part::new(pod, lo, hi));
        }
    }

    /// Notes that `pod` does not hold block `at`.
    fn uncover(&mut self, pod: u32, at: u32) {
        let (from, to) = if self.is_full(pod) {
            self.set_full(pod, false);
            (0, self.locals.len() as u32)
        } else {
            let holds = |p: &Part| p.pod() == pod && p.from() <= at && at < p.to();
            let Some(i) = self.parts.iter().position(holds) else { return };
            let part = self.parts.swap_remove(i);
            (part.from(), part.to())
        };
        if from < at {
            self.parts.push(Part::new(pod, from, at));
        }
        if at + 1 < to {
            self.parts.push(Part::new(pod, at + 1, to));
        }
    }

    fn is_held_by_only(&self, pod: u32) -> bool {
        let holders: u32 = self.full.iter().map(|w| w.count_ones()).sum();
        holders == 1 && self.is_full(pod) && self.parts.is_empty()
    }
}

/// The strands and the ways to them.
pub struct Forest {
    pub strands: Vec<Stretch>,
    free: Vec<u32>,
    /// Sequence hash → strand and offset.
    pub places: Table,
    /// [`child_key`] → strand.
    pub children: Table,
    /// Words of a bitset that are in use.
    pub words: usize,
    /// The path of the last query by sequence hashes: room to be used again.
    pub path: Vec<(u32, u32)>,
}

/// The key of the strand that goes on with block `local` after `offset` blocks of a strand.
#[inline(always)]
pub fn child_key(strand: u32, offset: u32, local: u64) -> u64 {
    let place = u64::from(strand) << 32 | u64::from(offset);
    mix(local ^ place.wrapping_mul(0xD6E8_FEB8_6659_FD93))
}

impl Forest {
    /// Nothing but the root, with room for `expected` blocks.
    pub fn new(pods: u32, expected: usize) -> Forest {
        assert!(pods as usize <= 64 * WORDS, "at most {} pods", 64 * WORDS);
        Forest {
            strands: vec![Stretch::default()],
            free: Vec::new(),
            places: Table::new(expected),
            children: Table::new(0),
            words: (pods as usize).div_ceil(64),
            path: Vec::new(),
        }
    }

    /// Stores (local, sequence) pairs. False where the parent is not known.
    pub fn store(&mut self, pod: u32, parent: Option<u64>, blocks: &[[u64; 2]]) -> bool {
        let at = parent.map_or(Some((ROOT, 0)), |p| self.places.get(p).map(|(s, offset)| (s, offset + 1)));
        let Some((mut strand, mut offset)) = at else { return false };
        let mut rest = blocks;
        loop {
            // Along the strand as far as it says the same.
            let s = &mut self.strands[strand as usize];
            let same = s.locals[offset as usize..].iter().zip(rest).take_while(|(a, b)| **a == b[0]).count();
            s.cover(pod, offset, offset + same as u32);
            offset += same as u32;
            rest = &rest[same..];
            let Some(next) = rest.first() else { return true };
            match self.children.get(child_key(strand, offset, next[0])) {
                Some((child, _)) => (strand, offset) = (child, 0),
                None => {
                    self.add(pod, strand, offset, rest);
                    return true;
                }
            }
        }
    }

    /// Adds blocks that nobody has after `offset` blocks of a strand.
    fn add(&mut self, pod: u32, strand: u32, offset: u32, blocks: &[[u64; 2]]) {
        let s = &self.strands[strand as usize];
        let at_its_end = strand != ROOT && offset as usize == s.locals.len();
        let grows = at_its_end && s.children == 0 && s.is_held_by_only(pod);
        let (id, base) = match grows {
            true => (strand, offset),
            false => (self.branch(pod, strand, offset, blocks), 0),
        };
        blocks.iter().take(AHEAD).for_each(|b| self.places.prefetch(b[1]));
        let s = &mut self.strands[id as usize];
        for (i, b) in blocks.iter().enumerate() {
            if let Some(later) = blocks.get(i + AHEAD) {
                self.places.prefetch(later[1]);
            }
            s.locals.push(b[0]);
            s.sequence.push(b[1]);
            self.places.put(b[1], id, base + i as u32);
        }
    }

    fn branch(&mut self, pod: u32, parent: u32, parent_blocks: u32, blocks: &[[u64; 2]]) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            self.strands.push(Stretch::default());
            self.strands.len() as u32 - 1
        });
        self.children.put(child_key(parent, parent_blocks, blocks[0][0]), id, 0);
        self.strands[parent as usize].children += 1;
        let s = &mut self.strands[id as usize];
        *s = Stretch { parent, parent_blocks, ..Stretch::default() };
        s.set_full(pod, true);
        s.locals.reserve_exact(blocks.len());
        s.sequence.reserve_exact(blocks.len());
        id
    }

    /// Removes blocks from a pod.
    pub fn remove(&mut self, pod: u32, blocks: &[u64]) {
        let mut last = ROOT;
        blocks.iter().take(AHEAD).for_each(|b| self.places.prefetch(*b));
        for (i, b) in blocks.iter().enumerate() {
            if let Some(later) = blocks.get(i + AHEAD) {
                self.places.prefetch(*later);
            }
            let Some((strand, offset)) = self.places.get(*b) else { continue };
            if last != strand {
                self.settle(last);
                last = strand;
            }
            self.strands[strand as usize].uncover(pod, offset);
        }
        self.settle(last);
    }

    /// Removes everything from a pod.
    pub fn clear(&mut self, pod: u32) {
        for strand in 1..self.strands.len() as u32 {
            let s = &mut self.strands[strand as usize];
            s.set_full(pod, false);
            s.parts.retain(|p| p.pod() != pod);
            self.settle(strand);
        }
    }

    /// Drops the blocks at a strand's end that nobody holds, and strands that have become empty.
    fn settle(&mut self, mut strand: u32) {
        loop {
            let s = &mut self.strands[strand as usize];
            if strand == ROOT || s.children > 0 || s.locals.is_empty() || s.full.iter().any(|w| *w != 0) {
                return;
            }
            let end = s.parts.iter().map(|p| p.to()).max().unwrap_or(0);
            s.sequence.drain(end as usize..).for_each(|b| self.places.remove(b));
            if end > 0 {
                s.locals.truncate(end as usize);
                let whole = |p: &Part| p.from() == 0 && p.to() == end;
                let full: Vec<u32> = s.parts.iter().filter(|p| whole(p)).map(|p| p.pod()).collect();
                s.parts.retain(|p| !whole(p));
                full.iter().for_each(|pod| s.set_full(*pod, true));
                return;
            }
            let Stretch { parent, parent_blocks, locals, .. } = std::mem::take(s);
            self.free.push(strand);
            self.children.remove(child_key(parent, parent_blocks, locals[0]));
            self.strands[parent as usize].children -= 1;
            strand = parent;
        }
    }

    /// How many of what there are.
    pub fn note(&self) -> String {
        let live = self.strands.iter().filter(|s| !s.locals.is_empty());
        let (blocks, parts): (Vec<_>, Vec<_>) = live.map(|s| (s.locals.len(), s.parts.len())).unzip();
        let most = parts.iter().max().unwrap_or(&0);
        let (strands, blocks, parts) =
            (blocks.len(), blocks.iter().sum::<usize>(), parts.iter().sum::<usize>());
        format!("{strands} strands, {blocks} blocks, {parts} intervals (at most {most} in a strand)")
    }
}
