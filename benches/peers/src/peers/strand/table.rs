//! The sketch's hash table: 64-bit key to two numbers in 16-byte slots.
//!
//! Open addressing with linear probing and backward-shift deletion. It is 64 tables that grow one at
//! a time; a key's home keeps the order of its hash, so that growing copies in order.

/// Log2 of the tables.
const TABLE_BITS: u32 = 6;
const NONE: u32 = u32::MAX;
const EMPTY: Slot = Slot { key: 0, a: NONE, b: 0 };

#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Slot {
    key: u64,
    a: u32,
    b: u32,
}

/// Key to (`a`, `b`), where `a` is not `u32::MAX`.
pub struct Table(Vec<Part>);

#[derive(Default)]
struct Part {
    slots: Vec<Slot>,
    used: usize,
}

impl Table {
    /// An empty table that has room for `expected` keys before it grows.
    pub fn new(expected: usize) -> Table {
        let parts = 1 << TABLE_BITS;
        let slots = expected / parts * 10 / 6;
        Table((0..parts).map(|_| Part { slots: vec![EMPTY; slots], used: 0 }).collect())
    }

    /// What a key leads to.
    #[inline(always)]
    pub fn get(&self, key: u64) -> Option<(u32, u32)> {
        let (part, hash) = hash(key);
        self.0[part].get(key, hash)
    }

    /// Sets what a key leads to.
    pub fn put(&mut self, key: u64, a: u32, b: u32) {
        let (part, hash) = hash(key);
        self.0[part].put(key, hash, a, b);
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: u64) {
        let (part, hash) = hash(key);
        self.0[part].remove(key, hash);
    }

    /// Asks the processor to fetch a key's home.
    #[inline(always)]
    pub fn prefetch(&self, key: u64) {
        let (part, hash) = hash(key);
        let part = &self.0[part];
        if !part.slots.is_empty() {
            prefetch(&part.slots[part.home(hash)]);
        }
    }
}

/// A key's table, and its hash within it.
#[inline(always)]
fn hash(key: u64) -> (usize, u64) {
    let h = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((h >> (64 - TABLE_BITS)) as usize, h << TABLE_BITS)
}

#[inline(always)]
fn prefetch<T>(at: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint about memory that the reference shows to be there.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

impl Part {
    #[inline(always)]
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.slots.len() as u128) >> 64) as usize
    }

    #[inline(always)]
    fn after(&self, i: usize) -> usize {
        if i + 1 == self.slots.len() { 0 } else { i + 1 }
    }

    /// Where the key is, or the empty slot where it belongs. The part has slots.
    #[inline(always)]
    fn find(&self, key: u64, hash: u64) -> usize {
        let mut i = self.home(hash);
        while self.slots[i].a != NONE && self.slots[i].key != key {
            i = self.after(i);
        }
        i
    }

    #[inline(always)]
    fn get(&self, key: u64, hash: u64) -> Option<(u32, u32)> {
        if self.slots.is_empty() {
            return None;
        }
        let s = self.slots[self.find(key, hash)];
        (s.a != NONE).then_some((s.a, s.b))
    }

    fn put(&mut self, key: u64, hash: u64, a: u32, b: u32) {
        if (self.used + 1) * 10 > self.slots.len() * 7 {
            self.grow();
        }
        let at = self.find(key, hash);
        self.used += usize::from(self.slots[at].a == NONE);
        self.slots[at] = Slot { key, a, b };
    }

    fn grow(&mut self) {
        let slots = (self.slots.len() * 3 / 2).max(16);
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; slots]);
        for s in old.into_iter().filter(|s| s.a != NONE) {
            let at = self.find(s.key, hash(s.key).1);
            self.slots[at] = s;
        }
    }

    fn remove(&mut self, key: u64, hash_of_key: u64) {
        if self.slots.is_empty() {
            return;
        }
        let mut hole = self.find(key, hash_of_key);
        if self.slots[hole].a == NONE {
            return;
        }
        self.used -= 1;
        // Whatever probed past the hole moves up into it.
        let slots = self.slots.len();
        let distance = |from: usize, to: usize| if to >= from { to - from } else { to + slots - from };
        let mut i = self.after(hole);
        while self.slots[i].a != NONE {
            let home = self.home(hash(self.slots[i].key).1);
            if distance(home, i) >= distance(hole, i) {
                self.slots[hole] = self.slots[i];
                hole = i;
            }
            i = self.after(i);
        }
        self.slots[hole] = EMPTY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Random;
    use std::collections::HashMap;

    #[test]
    fn it_holds_what_a_map_holds_through_growth_and_removal() {
        let (mut table, mut map) = (Table::new(0), HashMap::new());
        let mut random = Random(3);
        for i in 0..200_000 {
            let key = random.below(20_000) as u64;
            if random.below(3) == 0 {
                table.remove(key);
                map.remove(&key);
            } else {
                table.put(key, i, 7);
                map.insert(key, (i, 7));
            }
        }
        assert!((0..20_000).all(|k| table.get(k) == map.get(&k).copied()));
    }
}
