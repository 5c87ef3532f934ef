//! How far down a prompt's way does each holder hold every block?

use super::cover::{Segment, few};
use super::find::Step;
use super::{Slot, View};

/// Who still holds all blocks on the way from the root, and where the others stopped.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    words: usize,
    alive: Vec<u64>,
    keep: Vec<u64>,
    blocks: u32,
    begun: bool,
    /// Blocks, how many hold so many, and where in `sets` those begin.
    levels: Vec<(u32, u32, u32)>,
    sets: Vec<u64>,
    /// Blocks, and the one who holds so many.
    singles: Vec<(u32, Slot)>,
    /// A strand on the way has more than the device's group 0: the numbers do not tell all.
    pub other_planes: bool,
}

impl Reach {
    /// Begins for holders below `slots`.
    pub fn begin(&mut self, slots: usize) {
        self.words = slots.div_ceil(64).max(1);
        self.alive.clear();
        self.alive.resize(self.words, 0);
        self.keep.resize(self.words, 0);
        self.levels.clear();
        self.sets.clear();
        self.singles.clear();
        self.blocks = 0;
        self.begun = false;
        self.other_planes = false;
    }

    /// Goes a step down. False where nobody holds all so far.
    #[inline]
    pub fn pass(&mut self, step: &Step<'_>) -> bool {
        self.other_planes |= step.look.planes.is_some();
        let (lo, hi) = (step.offset, step.offset + step.n);
        match step.look.cover {
            View::Few(number) => {
                self.keep.fill(0);
                for slot in few(number) {
                    keep(&mut self.keep, slot);
                }
                self.narrow(hi - lo)
            }
            View::Many(words) => {
                for s in View::segments(words, step.look.len) {
                    if s.end <= lo {
                        continue;
                    }
                    if s.start >= hi {
                        break;
                    }
                    if !self.segment(&s, lo.max(s.start), hi.min(s.end)) {
                        return false;
                    }
                }
                true
            }
        }
    }

    /// Blocks `lo..hi`, which lie within a segment.
    fn segment(&mut self, s: &Segment<'_>, lo: u32, hi: u32) -> bool {
        for (i, k) in self.keep.iter_mut().enumerate() {
            *k = s.set_word(i);
        }
        for part in s.parts() {
            let (word, bit) = (part.slot() as usize / 64, 1u64 << (part.slot() % 64));
            let alive = !self.begun || self.alive.get(word).is_some_and(|w| w & bit != 0);
            if part.from() > lo || part.to() <= lo || !alive {
                continue;
            }
            if part.to() >= hi {
                keep(&mut self.keep, part.slot());
            } else if word < self.words {
                self.singles.push((self.blocks + part.to() - lo, part.slot()));
                self.alive[word] &= !bit;
            }
        }
        self.narrow(hi - lo)
    }

    /// Those in `keep` hold the next `n` blocks; whoever else is alive stops here.
    #[inline]
    fn narrow(&mut self, n: u32) -> bool {
        let mut any = 0;
        if self.begun {
            let mut gone = 0;
            for (a, k) in self.alive.iter().zip(&self.keep) {
                gone += (a & !k).count_ones();
                any |= a & k;
            }
            if gone != 0 {
                self.levels.push((self.blocks, gone, self.sets.len() as u32));
                self.sets.extend(self.alive.iter().zip(&self.keep).map(|(a, k)| a & !k));
                self.alive.iter_mut().zip(&self.keep).for_each(|(a, k)| *a &= k);
            }
        } else {
            for (a, k) in self.alive.iter_mut().zip(&self.keep) {
                *a = *k;
                any |= *k;
            }
            self.begun = true;
        }
        if any != 0 {
            self.blocks += n;
        }
        any != 0
    }

    /// Ends one forest's way and begins the next one's, for other holders.
    pub fn next(&mut self) {
        let alive = self.alive.iter().map(|w| w.count_ones()).sum();
        if self.begun && self.blocks > 0 && alive > 0 {
            self.levels.push((self.blocks, alive, self.sets.len() as u32));
            self.sets.extend_from_slice(&self.alive);
        }
        self.blocks = 0;
        self.begun = false;
    }

    /// Blocks, and the words of the set of those who hold so many.
    pub fn sets(&self) -> impl Iterator<Item = (u32, &[u64])> {
        let stopped = self.levels.iter();
        stopped.map(|(b, _, at)| (*b, &self.sets[*at as usize..*at as usize + self.words]))
    }

    /// Blocks, and how many holders hold so many.
    pub fn counts(&self, mut each: impl FnMut(u32, u32)) {
        for (blocks, holders, _) in &self.levels {
            each(*blocks, *holders);
        }
        for (blocks, _) in &self.singles {
            each(*blocks, 1);
        }
    }

    /// Blocks and holder of each who stopped alone.
    pub fn singles(&self) -> impl Iterator<Item = (u32, Slot)> + '_ {
        self.singles.iter().copied()
    }
}

#[inline]
fn keep(keep: &mut [u64], slot: Slot) {
    // A holder that came after the query began has no place in its sets.
    if let Some(w) = keep.get_mut(slot as usize / 64) {
        *w |= 1 << (slot % 64);
    }
}
