//! A map that never holds more than so many entries.
//!
//! Two halves: what is used goes into the young one; when that is full it becomes the old one,
//! and the old one's entries are forgotten. Every step is constant time, however many strangers come.

use std::hash::Hash;

use rustc_hash::FxHashMap;

/// A bounded map that forgets what has not been written for longest.
#[derive(Clone, Debug)]
pub struct Table<K, V> {
    young: FxHashMap<K, V>,
    old: FxHashMap<K, V>,
    half: usize,
}

impl<K: Eq + Hash + Clone, V> Table<K, V> {
    /// A map of at most `limit` entries, but two at least.
    pub fn new(limit: usize) -> Table<K, V> {
        Table { young: FxHashMap::default(), old: FxHashMap::default(), half: (limit / 2).max(1) }
    }

    /// What is known of `key`.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// The entry of `key`, to be written; `make` makes it where there is none.
    pub fn entry(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V {
        if !self.young.contains_key(key) {
            let value = self.old.remove(key).unwrap_or_else(make);
            if self.young.len() >= self.half {
                self.old = std::mem::take(&mut self.young);
            }
            self.young.insert(key.clone(), value);
        }
        self.young.get_mut(key).expect("inserted above")
    }

    /// Removes every entry that `keep` says no to.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        self.young.retain(&mut keep);
        self.old.retain(&mut keep);
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.young.iter().chain(&self.old)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_holds_more_than_its_limit() {
        let mut table = Table::new(100);
        for k in 0..10_000u32 {
            *table.entry(&k, || 0) += k;
            assert!(table.len() <= 100);
            assert_eq!(table.get(&k), Some(&k));
        }
        assert!(table.len() > 40, "{} left", table.len());
    }

    #[test]
    fn what_is_written_all_the_time_stays() {
        let mut table = Table::new(10);
        for k in 1..1000u32 {
            *table.entry(&0, || 0) += 1;
            table.entry(&k, || 0);
        }
        assert_eq!(table.get(&0), Some(&999));
    }
}
