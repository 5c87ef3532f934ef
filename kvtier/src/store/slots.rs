//! Which slots are free, in use, or not to be trusted.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Stretches looked at to find a long one.
const SEARCHED: usize = 64;

/// The slots of a store.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Free stretches: first slot, and how many.
    free: BTreeMap<u32, u32>,
    idle: u32,
    /// Where a stretch was last found.
    searched: u32,
    /// Slots being read: by how many, and whether to free them after the last.
    reading: HashMap<u32, (u32, bool)>,
    /// Slots whose content was wrong or that could not be read or written.
    quarantined: BTreeSet<u32>,
}

impl Slots {
    /// Free slots.
    pub fn idle(&self) -> u32 {
        self.idle
    }

    /// Slots in quarantine.
    pub fn quarantined(&self) -> usize {
        self.quarantined.len()
    }

    /// A slot: the one behind `near` if that is free, else the first of a stretch that has room for
    /// `wanted`, or of a long one. `None` where none is free.
    pub fn take(&mut self, wanted: usize, near: Option<u32>) -> Option<u32> {
        let follows = near.and_then(|slot| self.free.get_key_value(&(slot + 1)));
        let (first, length) = match follows {
            Some((first, length)) => (*first, *length),
            None => {
                // From where the last search ended, or the beginning would be crowded with crumbs.
                let from = self.free.range(self.searched..).chain(self.free.range(..self.searched));
                let stretches = || from.clone().take(SEARCHED);
                let fits = stretches().find(|(_, len)| **len as usize >= wanted);
                let (first, length) = fits.or_else(|| stretches().max_by_key(|(_, len)| **len))?;
                (*first, *length)
            }
        };
        self.searched = first;
        self.free.remove(&first);
        if length > 1 {
            self.free.insert(first + 1, length - 1);
        }
        self.idle -= 1;
        Some(first)
    }

    /// Gives a slot back. If it is being read, it is free after the last reader.
    pub fn give(&mut self, slot: u32) {
        if let Some((_, doomed)) = self.reading.get_mut(&slot) {
            *doomed = true;
            return;
        }
        if self.quarantined.contains(&slot) {
            return;
        }
        self.idle += 1;
        let (mut first, mut length) = (slot, 1);
        if let Some((&before, &len)) = self.free.range(..slot).next_back()
            && before + len == slot
        {
            (first, length) = (before, len + 1);
        }
        if let Some(after) = self.free.remove(&(slot + 1)) {
            length += after;
        }
        self.free.insert(first, length);
    }

    /// Somebody begins to read a slot.
    pub fn read(&mut self, slot: u32) {
        self.reading.entry(slot).or_default().0 += 1;
    }

    /// Somebody is done with it.
    pub fn done(&mut self, slot: u32) {
        let Some((readers, doomed)) = self.reading.get_mut(&slot) else { return };
        *readers -= 1;
        if *readers == 0 {
            let doomed = *doomed;
            self.reading.remove(&slot);
            if doomed {
                self.give(slot);
            }
        }
    }

    /// Keeps a slot that is in use from being used again.
    pub fn quarantine(&mut self, slot: u32) {
        self.quarantined.insert(slot);
    }

    /// A slot in quarantine, if there is one.
    pub fn suspect(&self, after: Option<u32>) -> Option<u32> {
        self.quarantined.range(after.map_or(0, |slot| slot + 1)..).next().copied()
    }

    /// A slot turned out to be good.
    pub fn acquit(&mut self, slot: u32) {
        if self.quarantined.remove(&slot) {
            self.give(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(count: u32) -> Slots {
        let mut slots = Slots::default();
        (0..count).for_each(|slot| slots.give(slot));
        slots
    }

    #[test]
    fn a_chain_goes_on_where_it_ended() {
        let mut slots = slots(6);
        assert_eq!((slots.take(1, None), slots.take(1, Some(0))), (Some(0), Some(1)));
        assert_eq!((slots.take(3, None), slots.take(2, Some(2))), (Some(2), Some(3)));
        slots.give(0);
        assert_eq!((slots.take(2, None), slots.take(1, Some(4))), (Some(4), Some(5)));
        assert_eq!((slots.take(1, Some(5)), slots.take(1, None), slots.idle()), (Some(0), None, 0));
    }

    #[test]
    fn slots_given_back_in_any_order_join() {
        let mut slots = slots(6);
        (0..6).for_each(|slot| assert_eq!(slots.take(1, None), Some(slot)));
        [3, 1, 2, 4].into_iter().for_each(|slot| slots.give(slot));
        slots.give(0);
        assert_eq!((slots.free.len(), slots.idle()), (1, 5));
    }

    #[test]
    fn a_slot_is_free_after_its_last_reader_and_never_out_of_quarantine() {
        let mut slots = slots(1);
        slots.take(1, None);
        slots.read(0);
        slots.read(0);
        slots.give(0);
        slots.done(0);
        assert_eq!(slots.idle(), 0);
        slots.done(0);
        assert_eq!(slots.take(1, None), Some(0));
        slots.quarantine(0);
        slots.give(0);
        assert_eq!((slots.idle(), slots.quarantined(), slots.suspect(None)), (0, 1, Some(0)));
        slots.acquit(0);
        assert_eq!((slots.idle(), slots.quarantined()), (1, 0));
    }
}
