//! From a 64-bit key to where it lies, in 8 bytes a slot.
//!
//! A slot has 24 bits of the key's hash and a [`Place`]; that the key is the right one is for the
//! caller to see at the place. Open addressing with linear probing in parts that grow one at a time. A
//! key's home keeps the order of its hash and is told by the slot alone, so growing copies in
//! order and looks nowhere else.
//!
//! Readers take no lock: a slot never moves within a part, a removed one stays marked until the part
//! is made anew, and a part made anew replaces the old one, which readers may finish with.

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
    /// Slots with a key, and those marked gone. Only the writer's.
    used: AtomicU32,
    gone: AtomicU32,
}

/// A key's part, and its hash within it.
#[derive(Clone, Copy)]
struct Hash {
    part: usize,
    tag: u64,
}

impl Hash {
    #[inline(always)]
    fn home(self, slots: usize) -> usize {
        ((self.tag * slots as u64) >> TAG_BITS) as usize
    }
}

impl Table {
    /// An empty table of 2^`part_bits` parts: many where growing at once would take long, few where
    /// readers should find the parts' beginnings in their cache.
    pub fn new(part_bits: u32) -> Table {
        let part = || Part { slots: Cell::new(0), used: AtomicU32::new(0), gone: AtomicU32::new(0) };
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
    pub fn find(&self, guard: &Guard, key: u64, mut is: impl FnMut(Place) -> bool) -> Option<Place> {
        let hash = self.hash(key);
        let Loaded::Words(words) = self.parts[hash.part].slots.load(guard) else { return None };
        let slots = words.all();
        let mut i = hash.home(slots.len());
        loop {
            let word = slots[i].load(Ordering::Acquire);
            if word == EMPTY {
                return None;
            }
            if word >> PLACE_BITS == hash.tag && word != GONE && is(Place::of_bits(word)) {
                return Some(Place::of_bits(word));
            }
            i = after(i, slots);
        }
    }

    /// Asks the processor to fetch a key's home.
    #[inline(always)]
    pub fn prefetch(&self, guard: &Guard, key: u64) {
        let hash = self.hash(key);
        if let Loaded::Words(words) = self.parts[hash.part].slots.load(guard) {
            let slots = words.all();
            prefetch(&slots[hash.home(slots.len())]);
        }
    }

    /// Says where `key` lies, or returns where it lay already: at the first candidate that `is` says
    /// it is at.
    #[inline]
    pub fn put(
        &self,
        guard: &Guard,
        key: u64,
        place: Place,
        bin: &mut Bin,
        mut is: impl FnMut(Place) -> bool,
    ) -> Option<Place> {
        let hash = self.hash(key);
        let part = &self.parts[hash.part];
        let (used, gone) = (part.used.load(Ordering::Relaxed), part.gone.load(Ordering::Relaxed));
        let room = match part.slots.load(guard) {
            Loaded::Words(words) => (words.all().len() * 13 / 16) as u32,
            Loaded::Number(_) => 0,
        };
        if used + gone + 1 > room {
            part.rebuild(guard, bin);
        }
        let Loaded::Words(words) = part.slots.load(guard) else { return None };
        let slots = words.all();
        let mut i = hash.home(slots.len());
        let mut at = None;
        loop {
            let word = slots[i].load(Ordering::Relaxed);
            if word == EMPTY {
                break;
            }
            if word == GONE {
                at = at.or(Some(i));
            } else if word >> PLACE_BITS == hash.tag && is(Place::of_bits(word)) {
                return Some(Place::of_bits(word));
            }
            i = after(i, slots);
        }
        if at.is_some() {
            part.gone.fetch_sub(1, Ordering::Relaxed);
        }
        part.used.store(part.used.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        slots[at.unwrap_or(i)].store(hash.tag << PLACE_BITS | place.to_bits(), Ordering::Release);
        None
    }

    /// Takes out that `key` lies at `place`.
    pub fn remove(&self, guard: &Guard, key: u64, place: Place) {
        let hash = self.hash(key);
        let part = &self.parts[hash.part];
        let Loaded::Words(words) = part.slots.load(guard) else { return };
        let slots = words.all();
        let wanted = hash.tag << PLACE_BITS | place.to_bits();
        let mut i = hash.home(slots.len());
        loop {
            match slots[i].load(Ordering::Relaxed) {
                EMPTY => return,
                word if word == wanted => break,
                _ => i = after(i, slots),
            }
        }
        part.used.store(part.used.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        if slots[after(i, slots)].load(Ordering::Relaxed) != EMPTY {
            slots[i].store(GONE, Ordering::Release);
            part.gone.store(part.gone.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            return;
        }
        // No key was put further because of this slot, nor of gone ones right before it.
        slots[i].store(EMPTY, Ordering::Release);
        let mut freed = 0;
        loop {
            i = if i == 0 { slots.len() - 1 } else { i - 1 };
            if slots[i].load(Ordering::Relaxed) != GONE {
                break;
            }
            slots[i].store(EMPTY, Ordering::Release);
            freed += 1;
        }
        part.gone.store(part.gone.load(Ordering::Relaxed) - freed, Ordering::Relaxed);
    }

    /// Makes parts that are far too large for what is left in them anew. Called now and then.
    pub fn shrink(&self, guard: &Guard, bin: &mut Bin) {
        for part in &self.parts {
            if let Loaded::Words(words) = part.slots.load(guard)
                && words.all().len() > 64
                && (part.used.load(Ordering::Relaxed) as usize) < words.all().len() / 4
            {
                part.rebuild(guard, bin);
            }
        }
    }
}

#[inline(always)]
fn after(i: usize, slots: &[AtomicU64]) -> usize {
    if i + 1 == slots.len() { 0 } else { i + 1 }
}

impl Part {
    /// Copies the keys into slots of which they fill 13 in 20.
    fn rebuild(&self, guard: &Guard, bin: &mut Bin) {
        // Words in whole cache lines, the count among them.
        let n = ((self.used.load(Ordering::Relaxed) as usize + 4) * 20 / 13).next_multiple_of(8) - 1;
        let mut new = Owned::zeroed(n);
        if let Loaded::Words(words) = self.slots.load(guard) {
            let slots = new.all();
            for slot in words.all() {
                let word = slot.load(Ordering::Relaxed);
                if word == EMPTY || word == GONE {
                    continue;
                }
                let mut i = Hash { part: 0, tag: word >> PLACE_BITS }.home(slots.len());
                while slots[i].load(Ordering::Relaxed) != EMPTY {
                    i = after(i, slots);
                }
                slots[i].store(word, Ordering::Relaxed);
            }
        }
        self.gone.store(0, Ordering::Relaxed);
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
