//! The way of a prompt through the forest.
//!
//! Three ways, by what the prompt is given by. *Own hashes* are compared along the strands, with one
//! probe for each. *Canonical hashes* stand for a block and all before it, so that of a strand only
//! the block where the prompt leaves it has to be found. *Names* are looked up in a table and compared
//! along the strand that the first one lies in.

use std::sync::atomic::Ordering;

use kvproto::hash::canonical::Seed;
use kvproto::{LocalHash, SeqHash};

use super::raw::{CHECK_EVERY, common};
use super::*;

/// What a forest's blocks are known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By their own hashes, one after another; names are the engines'.
    Chained,
    /// By their canonical hashes alone.
    Canonical,
}

/// Blocks of a strand that are blocks of the prompt.
#[derive(Clone, Copy)]
pub(crate) struct Step<'g> {
    pub strand: u32,
    /// The first one's place in the prompt and in the strand, and how many.
    pub from: u32,
    pub offset: u32,
    pub n: u32,
    pub look: Look<'g>,
}

/// Blocks' own hashes, computed as they are asked for.
pub(crate) trait Chain {
    /// The hashes from [`first`](Self::first) on, at least up to the `n`th of the prompt where it has
    /// so many.
    fn upto(&mut self, n: usize) -> &[u64];

    /// Blocks of the prompt whose hashes are not given.
    fn first(&self) -> usize {
        0
    }
}

impl Chain for &[u64] {
    fn upto(&mut self, _: usize) -> &[u64] {
        self
    }
}

/// Hashes looked at together.
const STRETCH: usize = 128;
/// Bits of a query's number that are 0 when it notes what it used: one in 64.
const NOTE: u32 = 63;

impl Forest {
    /// Follows own hashes from the first one given, which is of the block after `at`. `each` says
    /// whether to go on. Returns the place after the last block found, and how many blocks of the
    /// prompt that is.
    #[inline]
    pub fn by_locals<'g>(
        &'g self,
        guard: &'g Guard,
        mut at: Place,
        prompt: &mut impl Chain,
        mut each: impl FnMut(Step<'g>) -> bool,
    ) -> (Place, usize) {
        let first = prompt.first();
        let mut i = first;
        let mut next = (at.strand != ROOT).then(|| self.look(guard, at.strand)).flatten();
        loop {
            let look = match next.take() {
                Some(look) => look,
                None => {
                    let Some(&local) = prompt.upto(i + 1).get(i - first) else { return (at, i) };
                    let Some((strand, look)) = self.find_child(guard, at, local) else { return (at, i) };
                    at = Place { strand, offset: 0 };
                    look
                }
            };
            let lane = look.locals().get(at.offset as usize..).unwrap_or_default();
            let mut n = 0;
            while n < lane.len() {
                let known = prompt.upto(i + n + STRETCH);
                let known = known.get(i - first + n..).unwrap_or_default();
                let same = common(&lane[n..], known);
                n += same;
                if same < known.len() || same == 0 {
                    break;
                }
            }
            let step = Step { strand: at.strand, from: i as u32, offset: at.offset, n: n as u32, look };
            i += n;
            at.offset += n as u32;
            // Nothing of the strand that the way began in: another may hang there.
            if n > 0 && !each(step) {
                return (at, i);
            }
        }
    }

    /// Follows canonical hashes from the root.
    pub fn by_seqs<'g>(&'g self, guard: &'g Guard, seqs: &[SeqHash], mut each: impl FnMut(Step<'g>) -> bool) {
        let mut at = Place { strand: ROOT, offset: 0 };
        let mut i = 0;
        let mut next = seqs.first().and_then(|s| self.first_at(guard, *s, at));
        while let Some(strand) = next {
            let Some(look) = self.look(guard, strand) else { return };
            let rest = &seqs[i..];
            // Where another strand hangs on this one's end, the prompt has all of it.
            let end = Place { strand, offset: look.len };
            next = rest.get(look.len as usize).and_then(|s| self.first_at(guard, *s, end));
            let n = match next {
                Some(_) => look.len as usize,
                None => self.same_seqs(look, strand, rest),
            };
            let step = Step { strand, from: i as u32, offset: 0, n: n as u32, look };
            if n == 0 || !each(step) {
                return;
            }
            i += n;
            at = Place { strand, offset: n as u32 };
            if next.is_none() {
                next = seqs.get(i).and_then(|s| self.first_at(guard, *s, at));
            }
        }
    }

    fn first_at(&self, guard: &Guard, seq: SeqHash, at: Place) -> Option<u32> {
        let is = |p: Place| {
            let Some(head) = self.head(p.strand) else { return false };
            head.parent() == at && head.look(guard).is_some_and(|l| l.checks().first() == Some(&seq.0))
        };
        self.firsts.find(guard, seq.0, is).map(|p| p.strand)
    }

    /// How many of a strand's blocks are the prompt's next ones.
    fn same_seqs(&self, look: Look<'_>, strand: u32, rest: &[SeqHash]) -> usize {
        let Some(head) = self.head(strand) else { return 0 };
        let seed = Seed(head.seed.load(Ordering::Relaxed));
        let n = rest.len().min(look.len as usize);
        let checks = look.checks();
        let same = |k: usize| checks.get(k).is_some_and(|c| *c == rest[k * CHECK_EVERY].0);
        // A hash stands for all before it, so equal ones come before others.
        let (mut low, mut high) = (0, n.div_ceil(CHECK_EVERY).min(checks.len()));
        if high > 0 && same(high - 1) {
            low = high;
        }
        while low < high {
            let mid = low + (high - low) / 2;
            if same(mid) { low = mid + 1 } else { high = mid }
        }
        let Some(check) = low.checked_sub(1) else { return 0 };
        let mut i = check * CHECK_EVERY;
        let mut seq = SeqHash(checks[check]);
        for local in look.locals().iter().take(n).skip(i + 1) {
            seq = seed.chain(Some(seq), LocalHash(*local));
            if seq != rest[i + 1] {
                break;
            }
            i += 1;
        }
        i + 1
    }

    /// Follows the engines' own names, or of a canonical forest the canonical hashes.
    pub fn by_names<'g>(&'g self, guard: &'g Guard, names: &[u64], each: impl FnMut(Step<'g>) -> bool) {
        self.by_lane(guard, names, &self.names, self.name_lane(), each);
    }

    /// Follows llm-d's request keys.
    pub fn by_keys<'g>(&'g self, guard: &'g Guard, keys: &[u64], each: impl FnMut(Step<'g>) -> bool) {
        if self.keyed {
            self.by_lane(guard, keys, &self.keys, 2, each);
        }
    }

    fn by_lane<'g>(
        &'g self,
        guard: &'g Guard,
        names: &[u64],
        table: &Table,
        lane: usize,
        mut each: impl FnMut(Step<'g>) -> bool,
    ) {
        let mut i = 0;
        while let Some(&name) = names.get(i) {
            let found = table.find(guard, name, |p| self.is_in_lane(guard, p, lane, name));
            let Some(Place { strand, offset }) = found else { return };
            let Some(look) = self.look(guard, strand) else { return };
            let here = look.lane(lane).get(offset as usize..).unwrap_or_default();
            let n = match self.kind {
                Kind::Canonical => same_prefixes(here, &names[i..]),
                Kind::Chained => common(here, &names[i..]),
            };
            let step = Step { strand, from: i as u32, offset, n: n as u32, look };
            if n == 0 || !each(step) {
                return;
            }
            i += n;
        }
    }

    /// The strands from the root to the block before `at`, with how many blocks of each are passed.
    pub fn path<'g>(&'g self, guard: &'g Guard, mut at: Place) -> Option<Vec<Step<'g>>> {
        let mut steps = Vec::new();
        let mut end = self.depth(at.strand).checked_add(at.offset)?;
        while at.strand != ROOT {
            let look = self.look(guard, at.strand)?;
            if at.offset > look.len {
                return None;
            }
            end -= at.offset;
            if at.offset > 0 {
                steps.push(Step { strand: at.strand, from: end, offset: 0, n: at.offset, look });
            }
            at = self.head(at.strand)?.parent();
        }
        steps.reverse();
        Some(steps)
    }

    /// The canonical hashes of the blocks found by llm-d's request keys.
    pub fn seqs_by_keys(&self, guard: &Guard, keys: &[u64]) -> Vec<SeqHash> {
        let mut out = Vec::new();
        self.by_keys(guard, keys, |step| {
            let seqs = (step.offset..step.offset + step.n).map(|i| self.seq_at(step.look, step.strand, i));
            out.extend(seqs.map_while(|s| s));
            true
        });
        out
    }

    /// Notes that a strand was asked for; one query in some does so.
    #[inline]
    pub fn note_use(&self, strand: u32, query: u32) {
        if query & NOTE == 0
            && let Some(head) = self.head(strand)
        {
            head.touched.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// How many of two lists of hashes that stand for all before them are the same from the start.
fn same_prefixes(a: &[u64], b: &[u64]) -> usize {
    let n = a.len().min(b.len());
    if n == 0 || a[n - 1] == b[n - 1] {
        return n;
    }
    let (mut low, mut high) = (0, n - 1);
    while low < high {
        let mid = low + (high - low) / 2;
        if a[mid] == b[mid] { low = mid + 1 } else { high = mid }
    }
    low
}
