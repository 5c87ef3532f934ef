//! How does a coverage change, and where are its segments?

use smallvec::SmallVec;

use super::{FEW, Part, Slot, Span, View, few, of_few, word};

/// Parts of a segment from which on it is cut in two.
const MANY_PARTS: usize = 8;
/// Segments of one strand.
const MAX_SEGMENTS: usize = 48;

/// A coverage being changed by the writer.
#[derive(Debug, Default)]
pub(crate) struct Edit {
    len: u32,
    set_words: usize,
    starts: Vec<u32>,
    sets: Vec<u64>,
    /// By segment.
    parts: Vec<SmallVec<[Part; 4]>>,
}

/// What a changed coverage is stored as.
pub(crate) enum Changed {
    Number(u64),
    /// Written to the buffer handed in.
    Words,
}

impl Edit {
    /// Begins with what `view` shows of a strand of `len` blocks; sets have room for `slot`.
    pub fn begin(&mut self, view: View<'_>, len: u32, slot: Slot) {
        self.len = len;
        self.starts.clear();
        self.sets.clear();
        self.parts.clear();
        let room = |slot: Slot| slot as usize / 64 + 1;
        match view {
            View::Few(number) => {
                self.set_words = few(number).chain([slot]).map(room).max().unwrap_or(1);
                self.starts.push(0);
                self.sets.resize(self.set_words, 0);
                self.parts.push(SmallVec::new());
                for s in few(number) {
                    self.set(0, s);
                }
            }
            View::Many(words) => {
                let now = word(&words[0]) as usize & 0xFFFF;
                self.set_words = now.max(room(slot));
                for s in View::segments(words, len) {
                    self.starts.push(s.start);
                    self.sets.extend(s.set());
                    self.sets.extend(std::iter::repeat_n(0, self.set_words - now));
                    self.parts.push(s.parts().collect());
                }
            }
        }
    }

    fn end_of(&self, seg: usize) -> u32 {
        self.starts.get(seg + 1).copied().unwrap_or(self.len)
    }
    fn set(&mut self, seg: usize, slot: Slot) {
        self.sets[seg * self.set_words + slot as usize / 64] |= 1 << (slot % 64);
    }
    fn unset(&mut self, seg: usize, slot: Slot) -> bool {
        let w = &mut self.sets[seg * self.set_words + slot as usize / 64];
        let was = *w >> (slot % 64) & 1 != 0;
        *w &= !(1 << (slot % 64));
        was
    }
    fn is_set(&self, seg: usize, slot: Slot) -> bool {
        self.sets[seg * self.set_words + slot as usize / 64] >> (slot % 64) & 1 != 0
    }

    /// `slot` holds `from..to` from now on.
    pub fn cover(&mut self, slot: Slot, (from, to): Span) {
        for seg in 0..self.starts.len() {
            let (start, end) = (self.starts[seg], self.end_of(seg));
            let (mut lo, mut hi) = (from.max(start), to.min(end));
            if lo >= hi || self.is_set(seg, slot) {
                continue;
            }
            self.parts[seg].retain(|p| {
                let joins = p.slot() == slot && p.from() <= hi && lo <= p.to();
                if joins {
                    (lo, hi) = (lo.min(p.from()), hi.max(p.to()));
                }
                !joins
            });
            if (lo, hi) == (start, end) {
                self.set(seg, slot);
            } else {
                self.parts[seg].push(Part::new(slot, lo, hi));
            }
        }
        self.cut();
    }

    /// `slot` holds nothing of `from..to` from now on.
    pub fn uncover(&mut self, slot: Slot, (from, to): Span) {
        for seg in 0..self.starts.len() {
            let (start, end) = (self.starts[seg], self.end_of(seg));
            let (lo, hi) = (from.max(start), to.min(end));
            if lo >= hi {
                continue;
            }
            let mut rest: SmallVec<[Part; 4]> = SmallVec::new();
            let mut keep = |a: u32, b: u32| {
                if a < lo {
                    rest.push(Part::new(slot, a, b.min(lo)));
                }
                if b > hi {
                    rest.push(Part::new(slot, a.max(hi), b));
                }
            };
            if self.unset(seg, slot) {
                keep(start, end);
            } else {
                self.parts[seg].retain(|p| {
                    let mine = p.slot() == slot && p.from() < hi && p.to() > lo;
                    if mine {
                        keep(p.from(), p.to());
                    }
                    !mine
                });
            }
            self.parts[seg].extend(rest);
        }
        self.cut();
    }

    /// The strand ends after `len` blocks now; nobody holds any after them.
    pub fn truncate(&mut self, len: u32) {
        let segs = self.starts.iter().take_while(|s| **s < len).count().max(1);
        self.starts.truncate(segs);
        self.sets.truncate(segs * self.set_words);
        self.parts.truncate(segs);
        self.len = len;
        let seg = segs - 1;
        let whole: SmallVec<[Part; 4]> = self.parts[seg]
            .iter()
            .copied()
            .filter(|p| (p.from(), p.to()) == (self.starts[seg], len))
            .collect();
        self.parts[seg].retain(|p| !whole.contains(p));
        whole.iter().for_each(|p| self.set(seg, p.slot()));
    }

    /// Cuts segments with many parts where most of them begin or end.
    fn cut(&mut self) {
        let mut seg = 0;
        while seg < self.starts.len() && self.starts.len() < MAX_SEGMENTS {
            if self.parts[seg].len() <= MANY_PARTS {
                seg += 1;
                continue;
            }
            let (start, end) = (self.starts[seg], self.end_of(seg));
            let mut ends: SmallVec<[u32; 32]> = self.parts[seg]
                .iter()
                .flat_map(|p| [p.from(), p.to()])
                .filter(|&b| b > start && b < end)
                .collect();
            ends.sort_unstable();
            let most = ends.chunk_by(|a, b| a == b).max_by_key(|same| same.len());
            let Some(&[at, ..]) = most else { return };
            self.cut_at(seg, at);
            // A cut that takes few parts away is not repeated until there are more.
            if self.parts[seg].len() + self.parts[seg + 1].len() > MANY_PARTS {
                seg += 2;
            }
        }
    }

    fn cut_at(&mut self, seg: usize, at: u32) {
        let (start, end) = (self.starts[seg], self.end_of(seg));
        let parts = std::mem::take(&mut self.parts[seg]);
        self.starts.insert(seg + 1, at);
        self.parts.insert(seg + 1, SmallVec::new());
        let first = seg * self.set_words;
        let set: SmallVec<[u64; 8]> = self.sets[first..first + self.set_words].into();
        self.sets.splice(first..first, set);
        for p in parts {
            for (seg, lo, hi) in [(seg, start, at), (seg + 1, at, end)] {
                let (a, b) = (p.from().max(lo), p.to().min(hi));
                if (a, b) == (lo, hi) {
                    self.set(seg, p.slot());
                } else if a < b {
                    self.parts[seg].push(Part::new(p.slot(), a, b));
                }
            }
        }
    }

    /// Puts segments with the same holders and no parts together again.
    fn heal(&mut self) {
        let w = self.set_words;
        let mut seg = 1;
        while seg < self.starts.len() {
            let (a, b) = ((seg - 1) * w, seg * w);
            let same = self.parts[seg - 1].is_empty()
                && self.parts[seg].is_empty()
                && (0..w).all(|i| self.sets[a + i] == self.sets[b + i]);
            if same {
                self.starts.remove(seg);
                self.parts.remove(seg);
                self.sets.drain(b..b + w);
            } else {
                seg += 1;
            }
        }
    }

    /// What it is to be stored as; words are written to `out`.
    pub fn end(&mut self, out: &mut Vec<u64>) -> Changed {
        self.heal();
        let holders: u32 = self.sets.iter().map(|w| w.count_ones()).sum();
        if self.starts.len() == 1 && self.parts[0].is_empty() && u64::from(holders) <= FEW {
            let slots = self.sets.iter().enumerate().flat_map(|(i, &w)| {
                (0..64).filter(move |b| w >> b & 1 != 0).map(move |b| (i * 64 + b) as Slot)
            });
            return Changed::Number(of_few(slots));
        }
        let parts: usize = self.parts.iter().map(|p| p.len()).sum();
        out.clear();
        out.push(self.set_words as u64 | (self.starts.len() as u64) << 16 | (parts as u64) << 32);
        let mut at = 0u64;
        for (start, parts) in self.starts.iter().zip(&self.parts) {
            let to = at + parts.len() as u64;
            out.push(u64::from(*start) | at << 16 | to << 40);
            at = to;
        }
        out.extend(&self.sets);
        out.extend(self.parts.iter().flatten().map(|p| p.0));
        Changed::Words
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicU64;

    use super::*;

    /// Random changes against sets of blocks, one per holder.
    #[test]
    fn spans_are_what_sets_of_blocks_are() {
        let mut x = 7u64;
        let mut next = |n: u32| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) as u32 % n
        };
        let (mut most, mut segments) = (0, 0);
        for round in 0..40 {
            let mut len = 40;
            let holders = 1 + next(100) as Slot;
            let mut sets = vec![BTreeSet::new(); holders as usize];
            let (mut edit, mut number, mut words) = (Edit::default(), Some(0), Vec::new());
            for _ in 0..300 {
                let atomics: Vec<AtomicU64> = words.iter().map(|w| AtomicU64::new(*w)).collect();
                let view = |n: Option<u64>| n.map_or(View::Many(&atomics), View::Few);
                let slot = next(u32::from(holders)) as Slot;
                // Many end where others do, as prefixes of conversations do.
                let span = if next(2) == 0 { (0, 1 + next(4) * 10) } else { (next(len), 0) };
                let span = if span.1 == 0 { (span.0, span.0 + 1 + next(len - span.0)) } else { span };
                let span = (span.0, span.1.min(len));
                let got = view(number).held(slot, span, len);
                let want: Vec<u32> = (span.0..span.1).filter(|b| sets[slot as usize].contains(b)).collect();
                assert_eq!(got.iter().flat_map(|s| s.0..s.1).collect::<Vec<_>>(), want);
                assert!(got.windows(2).all(|w| w[0].1 < w[1].0));
                edit.begin(view(number), len, slot);
                if next(3) > 0 {
                    edit.cover(slot, span);
                    sets[slot as usize].extend(span.0..span.1);
                } else {
                    edit.uncover(slot, span);
                    sets[slot as usize].retain(|b| *b < span.0 || *b >= span.1);
                }
                let top = sets.iter().filter_map(|s| s.last()).max().map_or(0, |b| b + 1);
                if round % 2 == 1 && top > 0 && top < len && next(20) == 0 {
                    edit.truncate(top);
                    len = top;
                }
                number = match edit.end(&mut words) {
                    Changed::Number(n) => Some(n),
                    Changed::Words => None,
                };
                let atomics: Vec<AtomicU64> = words.iter().map(|w| AtomicU64::new(*w)).collect();
                let view = number.map_or(View::Many(&atomics), View::Few);
                let mut seen = vec![BTreeSet::new(); holders as usize];
                view.each(len, |s, (a, b)| {
                    (a..b).for_each(|i| assert!(seen[s as usize].insert(i), "each block once"));
                });
                assert_eq!(seen, sets);
                assert_eq!(view.end(len), top);
                most = most.max(edit.parts.iter().map(|p| p.len()).max().unwrap_or(0));
                segments = segments.max(edit.starts.len());
            }
        }
        assert!(segments > 4 && most > 8, "{segments} segments, {most} parts");
    }
}
