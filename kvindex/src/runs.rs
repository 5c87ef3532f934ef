//! One holder's blocks of one prompt, as runs of equal masks.

use smallvec::SmallVec;

use crate::profile::Mask;

/// Blocks `from..to` of the prompt lie in `mask`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub from: u32,
    pub to: u32,
    pub mask: Mask,
}

/// What a holder has of a prompt: ascending runs, gaps where it has nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs(SmallVec<[Run; 4]>);

impl Runs {
    /// Adds block `i`, which is after every block added before.
    pub fn push(&mut self, i: u32, mask: Mask) {
        match self.0.last_mut() {
            Some(r) if r.to == i && r.mask == mask => r.to += 1,
            _ => self.0.push(Run { from: i, to: i + 1, mask }),
        }
    }

    /// Adds `mask` to blocks `from..to`, whatever was added before.
    pub fn add(&mut self, from: u32, to: u32, mask: Mask) {
        if from >= to {
            return;
        }
        if from >= self.end() {
            match self.0.last_mut() {
                Some(r) if r.to == from && r.mask == mask => r.to = to,
                _ => self.0.push(Run { from, to, mask }),
            }
            return;
        }
        // Cut where the new run begins and ends; what lies between gets the mask too.
        let mut cuts: SmallVec<[u32; 12]> =
            self.0.iter().flat_map(|r| [r.from, r.to]).chain([from, to]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let old = std::mem::take(self);
        for w in cuts.windows(2) {
            let more = if w[0] >= from && w[0] < to { mask } else { Mask::default() };
            let mask = old.at(w[0]).union(more);
            if mask.is_empty() {
                continue;
            }
            match self.0.last_mut() {
                Some(r) if r.to == w[0] && r.mask == mask => r.to = w[1],
                _ => self.0.push(Run { from: w[0], to: w[1], mask }),
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        self.0.iter().copied()
    }

    /// The block after the last one held.
    pub fn end(&self) -> u32 {
        self.0.last().map_or(0, |r| r.to)
    }

    /// Where block `i` lies.
    pub fn at(&self, i: u32) -> Mask {
        let k = self.0.partition_point(|r| r.to <= i);
        match self.0.get(k) {
            Some(r) if r.from <= i => r.mask,
            Some(_) | None => Mask::default(),
        }
    }

    /// How far an unbroken stretch from `from` goes in which every block is `ok`, at most to `to`.
    pub fn contiguous(&self, from: u32, to: u32, ok: impl Fn(Mask) -> bool) -> u32 {
        let mut end = from;
        for r in &self.0[self.0.partition_point(|r| r.to <= from)..] {
            if r.from > end || end >= to || !ok(r.mask) {
                break;
            }
            end = r.to.min(to);
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_to_runs_is_what_is_added_to_blocks() {
        let mut x = 5u32;
        let mut next = |n: u32| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 16) % n
        };
        for _ in 0..500 {
            let (mut runs, mut blocks) = (Runs::default(), [0u32; 20]);
            for _ in 0..1 + next(8) {
                let (from, bit) = (next(20), 1 << next(3));
                let to = from + next(20 - from + 1);
                runs.add(from, to, Mask(bit));
                blocks[from as usize..to as usize].iter_mut().for_each(|b| *b |= bit);
            }
            assert!((0..20).all(|i| runs.at(i).0 == blocks[i as usize]), "{runs:?} {blocks:?}");
            assert!(runs.0.windows(2).all(|w| w[0].to < w[1].from || w[0].mask != w[1].mask));
        }
    }

    #[test]
    fn equal_neighbours_join_and_gaps_stay() {
        let mut r = Runs::default();
        for (i, m) in [(0, 1), (1, 1), (2, 3), (5, 1)] {
            r.push(i, Mask(m));
        }
        assert_eq!(r.iter().count(), 3);
        assert_eq!((r.at(1).0, r.at(2).0, r.at(3).0, r.at(5).0, r.at(6).0), (1, 3, 0, 1, 0));
        assert_eq!(r.contiguous(0, 9, |m| m.0 & 1 != 0), 3);
        assert_eq!(r.contiguous(0, 2, |m| m.0 & 1 != 0), 2);
        assert_eq!(r.contiguous(2, 9, |m| m.0 & 2 != 0), 3);
        assert_eq!(r.contiguous(3, 9, |_| true), 3);
    }
}
