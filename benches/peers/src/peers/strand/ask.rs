//! The sketch's queries.

use super::forest::{Forest, Part, Pods, ROOT, WORDS, child_key};
use crate::peer::Hit;

/// Probes that overlap in the search by sequence hashes.
const PROBES: usize = 8;

/// Who still holds every block on the way from the root.
struct Descent {
    hit: Hit,
    alive: Pods,
    blocks: u32,
    words: usize,
}

impl Forest {
    /// By local hashes: compares them along the strands, with one probe per strand.
    pub fn ask_by_local(&self, prompt: &[u64]) -> Hit {
        let mut down = Descent::new(self.words);
        let Some(&first) = prompt.first() else { return down.hit };
        let mut at = self.children.get(child_key(ROOT, 0, first));
        while let Some((strand, _)) = at {
            let s = &self.strands[strand as usize];
            let rest = &prompt[down.blocks as usize..];
            let same = common(&s.locals, rest);
            if same == 0 || !down.pass(&s.full, &s.parts, same as u32) {
                break;
            }
            at = rest.get(same).and_then(|next| self.children.get(child_key(strand, same as u32, *next)));
        }
        down.end()
    }

    /// By sequence hashes: finds the deepest known block in a few rounds of overlapping probes (a
    /// block in the table has all that precede it in the forest). The way from its strand up to the
    /// root gives the coverage; no block in between is looked at.
    pub fn ask_by_sequence(&mut self, prompt: &[u64]) -> Hit {
        let mut down = Descent::new(self.words);
        let Some((mut strand, offset)) = self.deepest(prompt) else { return down.hit };
        self.path.clear();
        let mut blocks = offset + 1;
        while strand != ROOT {
            self.path.push((strand, blocks));
            let s = &self.strands[strand as usize];
            (strand, blocks) = (s.parent, s.parent_blocks);
        }
        for &(strand, blocks) in self.path.iter().rev() {
            let s = &self.strands[strand as usize];
            if !down.pass(&s.full, &s.parts, blocks) {
                break;
            }
        }
        down.end()
    }

    fn deepest(&self, prompt: &[u64]) -> Option<(u32, u32)> {
        let last = self.places.get(*prompt.last()?);
        if last.is_some() {
            return last;
        }
        let mut best = None;
        // Blocks before `known` are in the forest, those from `unknown` on are not.
        let (mut known, mut unknown) = (0, prompt.len() - 1);
        while known < unknown {
            let span = unknown - known;
            let probes = span.min(PROBES);
            let (from, spread) = (known, (probes - 1).max(1));
            let at = |i: usize| from + (span - 1) * i / spread;
            (0..probes).for_each(|i| self.places.prefetch(prompt[at(i)]));
            for i in 0..probes {
                match self.places.get(prompt[at(i)]) {
                    Some(place) => {
                        best = Some(place);
                        known = at(i) + 1;
                    }
                    None => {
                        unknown = at(i);
                        break;
                    }
                }
            }
        }
        best
    }
}

impl Descent {
    fn new(words: usize) -> Descent {
        Descent { hit: Hit::default(), alive: Pods::default(), blocks: 0, words }
    }

    /// Goes down `blocks` blocks of a strand; false where nobody holds all so far.
    #[inline(always)]
    fn pass(&mut self, full: &Pods, parts: &[Part], blocks: u32) -> bool {
        let words = self.words;
        let mut keep = *full;
        let at_root = self.blocks == 0;
        if at_root || (0..words).any(|i| self.alive[i] & !keep[i] != 0) {
            for p in parts {
                let (i, bit) = (p.pod() as usize / 64, 1u64 << (p.pod() % 64));
                if p.from() != 0 || (!at_root && self.alive[i] & bit == 0) {
                    continue;
                }
                if p.to() >= blocks {
                    keep[i] |= bit;
                } else {
                    self.hit.add(self.blocks + p.to());
                    self.alive[i] &= !bit;
                }
            }
        }
        let mut any = 0;
        for (alive, keep) in self.alive.iter_mut().zip(keep).take(words) {
            if at_root {
                *alive = keep;
            } else {
                self.hit.add_level(self.blocks, (*alive & !keep).count_ones());
                *alive &= keep;
            }
            any |= *alive;
        }
        if any != 0 {
            self.blocks += blocks;
        }
        any != 0
    }

    /// The scores: those left alive hold all the way.
    fn end(mut self) -> Hit {
        for w in &self.alive[..self.words.min(WORDS)] {
            self.hit.add_level(self.blocks, w.count_ones());
        }
        self.hit
    }
}

/// How many leading elements two slices have in common.
#[inline]
fn common(a: &[u64], b: &[u64]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature.
        return unsafe { common_avx2(a, b) };
    }
    common_anywhere(a, b)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn common_avx2(a: &[u64], b: &[u64]) -> usize {
    common_anywhere(a, b)
}

/// Compares 32 at a time without a branch, which the compiler makes vector code of. A plain loop: a
/// closure would be compiled for any processor and halve the speed.
#[inline(always)]
fn common_anywhere(a: &[u64], b: &[u64]) -> usize {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut i = 0;
    while i + 32 <= n {
        let (x, y) = (&a[i..i + 32], &b[i..i + 32]);
        let mut differs = 0;
        for j in 0..32 {
            differs |= x[j] ^ y[j];
        }
        if differs != 0 {
            break;
        }
        i += 32;
    }
    while i < n && a[i] == b[i] {
        i += 1;
    }
    i
}
