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
