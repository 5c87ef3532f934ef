//! From a 64-bit key to where it lies, in 8 bytes a slot.
//!
//! A slot has 24 bits of the key's hash and a [`Place`]; that the key is the right one is for the
//! caller to see at the place. Slots lie in *lines* of eight, a cache line each: a key is in its home
//! line or, where that was full, in the next that was not. A key's home keeps the order of its hash
//! and is told by the slot alone, so growing copies in order and looks nowhere else. Parts grow one at
//! a time.
//!
//! Readers take no lock: a slot never moves within a part, a removed one stays marked where others may
//! have gone past it, and a part made anew replaces the old one, which readers may finish with.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Bin;
use super::raw::{Cell, Guard, Loaded, Owned, prefetch};

const TAG_BITS: u32 = 24;
const OFFSET_BITS: u32 = 14;
const PLACE_BITS: u32 = 64 - TAG_BITS;
/// Strands there can be numbers for.
pub(crate) const MAX_STRANDS: u32 = 1 << (PLACE_BITS - OFFSET_BITS);
/// Blocks of one strand.
pub(crate) const MAX_LEN: usize = 1 << OFFSET_BITS;

/// Slots of a line.
const LINE: usize = 8;
/// Words before the first line, with the count: lines begin where cache lines do.
const EDGE: usize = LINE - 1;
/// Of 16 slots, those that may be taken before a part grows, and those that are then.
const FULL: usize = 13;
const AFTER: usize = 10;
/// Keys up to which a part is small.
const SMALL: usize = 256;
const EMPTY: u64 = 0;
/// A slot whose key was removed; strand 0 has no blocks, so nothing lies there.
const GONE: u64 = 1;

/// Block `offset` of strand `strand`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub strand: u32,
    pub offset: u32,
}

impl Place {
    fn to_bits(self) -> u64 {
        u64::from(self.strand) << OFFSET_BITS | u64::from(self.offset)
    }
    fn of_bits(word: u64) -> Place {
        let place = word & ((1 << PLACE_BITS) - 1);
        Place { strand: (place >> OFFSET_BITS) as u32, offset: place as u32 & (MAX_LEN as u32 - 1) }
    }
}

/// The table.
#[derive(Debug)]
pub(crate) struct Table {
    parts: Box<[Part]>,
    /// Bits of a hash that tell the part.
    part_bits: u32,
    /// Nobody outside knows it, so nobody can send keys that share a home.
    seed: [u64; 2],
}

#[derive(Debug)]
struct Part {
    slots: Cell,
    /// Slots with a key, and empty ones that may be taken before it grows. Only the writer's.
    used: AtomicU32,
    left: AtomicU32,
}

/// A key's part, and its hash within it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Hash {
    part: usize,
    tag: u64,
}

impl Hash {
    /// The home among `lines`.
    #[inline(always)]
    fn line(self, lines: usize) -> usize {
        ((self.tag * lines as u64) >> TAG_BITS) as usize
    }
}

impl Table {
    /// An empty table of 2^`part_bits` parts: many where growing at once would take long, few where
    /// readers should find the parts' beginnings in their cache.
    pub fn new(part_bits: u32) -> Table {
        let part = || Part { slots: Cell::new(0), used: AtomicU32::new(0), left: AtomicU32::new(0) };
        let random = RandomState::new();
        Table {
            parts: std::iter::repeat_with(part).take(1 << part_bits).collect(),
            part_bits,
            seed: [random.hash_one(1), random.hash_one(2) | 1],
        }
    }

    #[inline(always)]
    fn hash(&self, key: u64) -> Hash {
        let wide = u128::from(key ^ self.seed[0]) * u128::from(self.seed[1]);
        let h = (wide as u64 ^ (wide >> 64) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Hash { part: (h >> (64 - self.part_bits)) as usize, tag: (h << self.part_bits) >> (64 - TAG_BITS) }
    }

    /// Where `key` lies: the first candidate that `is` says it is at.
    #[inline]
    pub fn find(&self, guard: &Guard, key: u64, is: impl FnMut(Place) -> bool) -> Option<Place> {
        let hash = self.hash(key);
        look(self.parts[hash.part].slots(guard)?, hash, is).ok().map(|(_, place)| place)
    }

    /// Asks the processor to fetch a key's home, and returns what [`put_hashed`](Self::put_hashed)
    /// and [`remove_hashed`](Self::remove_hashed) take.
    #[inline(always)]
    pub fn prefetch(&self, guard: &Guard, key: u64) -> Hash {
        let hash = self.hash(key);
        if let Some(slots) = self.parts[hash.part].slots(guard) {
            prefetch(&slots[hash.line(slots.len() / LINE) * LINE]);
        }
        hash
    }

    /// Says where `key` lies, or returns where it lay already: at the first candidate that `is` says
    /// it is at.
    pub fn put(
        &self,
        guard: &Guard,
        key: u64,
        place: Place,
        bin: &mut Bin,
        is: impl FnMut(Place) -> bool,
    ) -> Option<Place> {
        self.put_hashed(guard, self.hash(key), place, bin, is)
    }

    /// The same for a key whose home was asked for before.
    #[inline(always)]
    pub fn put_hashed(
        &self,
        guard: &Guard,
        hash: Hash,
        place: Place,
        bin: &mut Bin,
        mut is: impl FnMut(Place) -> bool,
    ) -> Option<Place> {
        let part = &self.parts[hash.part];
        if part.left.load(Ordering::Relaxed) == 0 {
            part.rebuild(guard, bin);
        }
        let slots = part.slots(guard)?;
        let free = match look(slots, hash, &mut is) {
            Ok((_, there)) => return Some(there),
            Err(free) => free,
        };
        if slots[free].load(Ordering::Relaxed) == EMPTY {
            part.left.store(part.left.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        }
        part.used.store(part.used.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        slots[free].store(hash.tag << PLACE_BITS | place.to_bits(), Ordering::Release);
        None
    }

    /// Takes out that `key` lies at `place`.
    pub fn remove(&self, guard: &Guard, key: u64, place: Place) {
        self.remove_hashed(guard, self.hash(key), place);
    }

    /// The same for a key whose home was asked for before.
    #[inline(always)]
    pub fn remove_hashed(&self, guard: &Guard, hash: Hash, place: Place) {
        let part = &self.parts[hash.part];
        let Some(slots) = part.slots(guard) else { return };
        // The same place means the same slot, whatever it is said to be.
        let Ok((i, _)) = look(slots, hash, |p| p == place) else { return };
        part.used.store(part.used.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        let (lines, _) = slots.as_chunks::<LINE>();
        let (line, mut at) = (&lines[i / LINE], i % LINE);
        if at + 1 == LINE || line[at + 1].load(Ordering::Relaxed) != EMPTY {
            // Others may have gone past it.
            slots[i].store(GONE, Ordering::Release);
            return;
        }
        let mut left = part.left.load(Ordering::Relaxed);
        loop {
            line[at].store(EMPTY, Ordering::Release);
            left += 1;
            if at == 0 || line[at - 1].load(Ordering::Relaxed) != GONE {
                break;
            }
            at -= 1;
        }
        part.left.store(left, Ordering::Relaxed);
    }

    /// Makes parts that are far too large for what is left in them anew. Called now and then.
    pub fn shrink(&self, guard: &Guard, bin: &mut Bin) {
        for part in &self.parts {
            let slots = part.slots(guard).map_or(0, |s| s.len());
            if slots > 64 && (part.used.load(Ordering::Relaxed) as usize) < slots / 4 {
                part.rebuild(guard, bin);
            }
        }
    }
}

/// Where a key is: its slot and place. Where it is not, the slot for it: one whose key is gone, or
/// the first that is empty.
#[inline(always)]
fn look(slots: &[AtomicU64], hash: Hash, mut is: impl FnMut(Place) -> bool) -> Result<(usize, Place), usize> {
    let (lines, _) = slots.as_chunks::<LINE>();
    let mut line = hash.line(lines.len());
    // Where the first gone key was, as a line; rare, so looked up again when it is wanted.
    let mut gone = None;
    loop {
        // Empty slots of a line come after all others, and keys go past a line only when it is full.
        for (i, slot) in lines[line].iter().enumerate() {
            let word = slot.load(Ordering::Acquire);
            if word <= GONE {
                if word == EMPTY {
                    return Err(gone.map_or(line * LINE + i, |line: usize| first_gone(lines, line)));
                }
                gone = gone.or(Some(line));
            } else if word >> PLACE_BITS == hash.tag && is(Place::of_bits(word)) {
                return Ok((line * LINE + i, Place::of_bits(word)));
            }
        }
        line = if line + 1 == lines.len() { 0 } else { line + 1 };
    }
}

#[cold]
fn first_gone(lines: &[[AtomicU64; LINE]], line: usize) -> usize {
    let at = lines[line].iter().position(|s| s.load(Ordering::Relaxed) == GONE);
    // A reader, who does not want it, may find it taken meanwhile.
    line * LINE + at.unwrap_or(0)
}

impl Part {
    #[inline(always)]
    fn slots<'g>(&'g self, guard: &'g Guard) -> Option<&'g [AtomicU64]> {
        match self.slots.load(guard) {
            Loaded::Words(words) => words.all().get(EDGE..),
            Loaded::Number(_) => None,
        }
    }

    /// Copies the keys into more slots, or fewer.
    fn rebuild(&self, guard: &Guard, bin: &mut Bin) {
        let used = self.used.load(Ordering::Relaxed) as usize;
        // Small ones grow faster: they are copied more often, and take little.
        let after = if used < SMALL { AFTER / 2 } else { AFTER };
        let n = ((used + 1) * 16 / after + 1).next_multiple_of(LINE);
        let mut new = Owned::zeroed(EDGE + n);
        let (lines, _) = new.all()[EDGE..].as_chunks::<LINE>();
        let mut filled = vec![0u8; lines.len()];
        for slot in self.slots(guard).unwrap_or_default() {
            let word = slot.load(Ordering::Relaxed);
            if word <= GONE {
                continue;
            }
            let mut line = Hash { part: 0, tag: word >> PLACE_BITS }.line(lines.len());
            while filled[line] == LINE as u8 {
                line = if line + 1 == lines.len() { 0 } else { line + 1 };
            }
            lines[line][usize::from(filled[line])].store(word, Ordering::Relaxed);
            filled[line] += 1;
        }
        // At least one slot stays free for ever: a search ends there.
        let left = (n * FULL / 16).saturating_sub(used).max(1);
        self.left.store(left as u32, Ordering::Relaxed);
        bin.grew(new.bytes());
        bin.retire(self.slots.replace(new));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forest::raw::pin;
    use std::collections::HashMap;

    #[test]
    fn it_holds_what_a_map_holds_through_growth_and_removal() {
        let (table, mut map, mut bin) = (Table::new(8), HashMap::new(), Bin::default());
        let keys: std::cell::RefCell<HashMap<Place, u64>> = Default::default();
        let guard = pin();
        let mut x = 3u64;
        let mut next = |n: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) % n
        };
        for i in 0..300_000u32 {
            let key = next(if i < 150_000 { 20_000 } else { 200 });
            let is = |p: Place| keys.borrow().get(&p) == Some(&key);
            if next(3) == 0 {
                if let Some(place) = map.remove(&key) {
                    table.remove(&guard, key, place);
                    keys.borrow_mut().remove(&place);
                }
            } else {
                let place = Place { strand: i / 7 + 1, offset: i % 7 };
                assert_eq!(table.put(&guard, key, place, &mut bin, is), map.get(&key).copied());
                keys.borrow_mut().entry(place).or_insert(key);
                map.entry(key).or_insert(place);
                if map[&key] != place {
                    keys.borrow_mut().remove(&place);
                }
            }
            if i % 1000 == 0 {
                table.shrink(&guard, &mut bin);
            }
        }
        for key in 0..20_000 {
            let is = |p: Place| keys.borrow().get(&p) == Some(&key);
            assert_eq!(table.find(&guard, key, is), map.get(&key).copied());
        }
    }
}
