//! The parts of a store's work: runs of slots, whole or copied payloads, what a failure leads to.

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::StoreKey;
use super::medium::{Buffer, PAGE, is_aligned};
use super::record::Record;
use super::store::{Get, Held, Place, Put, Read, State, Stats, Store, lock};
use super::table::Records;
use crate::policy::BlockId;

/// Blocks in a row are read and written together up to so many bytes.
pub(crate) const TOGETHER: usize = 1 << 20;
/// Buffers kept for payloads that are not on a page boundary.
const SPARE: usize = 8;
/// Ends of chains remembered, so that what follows is put behind them.
const ENDS: usize = 4096;

/// Bytes from one payload to the next, on disk and in memory that is read to from there.
pub(crate) fn slot_bytes(block_bytes: usize) -> usize {
    block_bytes.next_multiple_of(PAGE)
}

impl Store {
    fn slot_bytes(&self) -> usize {
        slot_bytes(self.layout.block_bytes)
    }

    pub(super) fn segment_of(&self, slot: u32) -> usize {
        (slot / self.layout.segment_slots) as usize
    }

    /// Which of these slots are neighbours in one file, and go together.
    pub(super) fn runs(&self, slots: &[u32]) -> Vec<Range<usize>> {
        let most = (TOGETHER / self.slot_bytes()).max(1);
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (at, &slot) in slots.iter().enumerate() {
            let follows = |run: &Range<usize>| {
                let before = slots[run.end - 1];
                slot == before + 1 && self.segment_of(slot) == self.segment_of(before) && run.len() < most
            };
            match runs.last_mut() {
                Some(run) if follows(run) => run.end = at + 1,
                Some(_) | None => runs.push(at..at + 1),
            }
        }
        runs
    }

    /// Writes payloads to the slots from `first` on.
    pub(super) fn write<'a>(&self, first: u32, payloads: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        let payloads: Vec<&[u8]> = payloads.collect();
        let at = self.offset(first);
        let segment = &self.segments[self.segment_of(first)];
        if payloads.iter().all(|p| is_aligned(p)) {
            let slices: Vec<IoSlice<'_>> = payloads.iter().map(|p| IoSlice::new(p)).collect();
            return segment.write(at, &slices);
        }
        let mut buffer = self.spare(payloads.len())?;
        for (slot, payload) in buffer.chunks_mut(self.slot_bytes()).zip(&payloads) {
            slot[..payload.len()].copy_from_slice(payload);
            slot[payload.len()..].fill(0);
        }
        self.count_copies(payloads.iter().map(|p| p.len()).sum());
        let written = segment.write(at, &[IoSlice::new(&buffer[..payloads.len() * self.slot_bytes()])]);
        self.keep_spare(buffer);
        written
    }

    /// Reads the slots from `first` on.
    pub(super) fn read<'a>(&self, first: u32, into: impl Iterator<Item = &'a mut [u8]>) -> io::Result<()> {
        let mut into: Vec<&mut [u8]> = into.collect();
        let at = self.offset(first);
        let segment = &self.segments[self.segment_of(first)];
        if into.iter().all(|p| is_aligned(p)) {
            let mut slices: Vec<IoSliceMut<'_>> = into.into_iter().map(IoSliceMut::new).collect();
            return segment.read(at, &mut slices);
        }
        let mut buffer = self.spare(into.len())?;
        let bytes = into.len() * self.slot_bytes();
        let read = segment.read(at, &mut [IoSliceMut::new(&mut buffer[..bytes])]);
        for (slot, into) in buffer.chunks(self.slot_bytes()).zip(&mut into) {
            into.copy_from_slice(&slot[..into.len()]);
        }
        self.count_copies(into.iter().map(|p| p.len()).sum());
        self.keep_spare(buffer);
        read
    }

    /// Reads a block that did not verify once more, to memory of the store's own: the caller's may
    /// be shared with another process, and what that does to it says nothing about the disk.
    /// Whether it is right now.
    pub(super) fn read_apart(&self, slot: u32, get: &mut Get<'_>, place: Place) -> io::Result<bool> {
        let mut buffer = self.spare(1)?;
        let bytes = self.slot_bytes();
        let read = self.segments[self.segment_of(slot)]
            .read(self.offset(slot), &mut [IoSliceMut::new(&mut buffer[..bytes])]);
        let payload = &buffer[..get.into.len()];
        let good = read.is_ok() && get.key.checksum(place.generation, payload) == place.checksum;
        if good {
            get.into.copy_from_slice(payload);
            self.count_copies(payload.len());
        }
        self.keep_spare(buffer);
        read.map(|()| good)
    }

    fn count_copies(&self, bytes: usize) {
        lock(&self.state).stats.copied += bytes as u64;
    }

    fn offset(&self, slot: u32) -> u64 {
        u64::from(slot % self.layout.segment_slots) * self.slot_bytes() as u64
    }

    /// A buffer for so many slots.
    fn spare(&self, slots: usize) -> io::Result<Buffer> {
        let bytes = slots * self.slot_bytes();
        let mut spare = lock(&self.spare);
        match spare.iter().position(|b| b.len() >= bytes) {
            Some(at) => Ok(spare.swap_remove(at)),
            None => Buffer::new(bytes),
        }
    }

    fn keep_spare(&self, buffer: Buffer) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE {
            spare.push(buffer);
        }
    }
}

impl State {
    /// What is there under a name.
    pub fn place(&self, key: StoreKey) -> Option<Place> {
        self.index.get(&key.id()).filter(|held| held.key == key).map(|held| held.place)
    }

    /// What is written down, by slot, and given piece by piece with the blocks' short names. Returns the
    /// records, too.
    pub fn restored(
        slots: u32,
        pieces: impl IntoIterator<Item = (Vec<BlockId>, Records)>,
    ) -> (State, Vec<Record>) {
        let mut this = State { stats: Stats { writable: true, ..Stats::default() }, ..State::default() };
        // As many as there may be: growing would copy them a few times over. What is not used is no memory.
        let mut found: Records = Vec::with_capacity(slots as usize);
        let mut twice = false;
        for (ids, records) in pieces {
            if this.index.is_empty() && !records.is_empty() {
                this.index.reserve(slots as usize);
            }
            for (id, (slot, record)) in ids.into_iter().zip(&records) {
                let Record { key, generation, checksum, .. } = *record;
                let place = Place { slot: *slot, generation, checksum };
                match this.index.entry(id) {
                    Entry::Vacant(entry) => drop(entry.insert(Held { key, place })),
                    // Of two copies, the newer: the older one was given up, and that was not written
                    // down.
                    Entry::Occupied(mut entry) => {
                        twice = true;
                        if entry.get().place.generation < generation {
                            entry.insert(Held { key, place });
                        }
                    }
                }
            }
            found.extend(records);
        }
        if twice {
            found.retain(|(slot, record)| this.place(record.key).is_some_and(|place| place.slot == *slot));
        }
        let mut used = found.iter().map(|f| f.0).peekable();
        for slot in 0..slots {
            if used.next_if_eq(&slot).is_none() {
                this.slots.give(slot);
            }
        }
        (this, found.into_iter().map(|(_, record)| record).collect())
    }

    /// Where the end of a chain was put.
    pub fn end_of(&self, after: Option<BlockId>) -> Option<u32> {
        self.ends.get(&after?).copied()
    }

    /// A block is written.
    pub fn keep(&mut self, put: &Put<'_>, place: Place) {
        if self.index.contains_key(&put.key.id()) {
            // Somebody else was faster.
            self.slots.give(place.slot);
            return;
        }
        let Place { slot, generation, checksum } = place;
        let record = Record { key: put.key, generation, checksum, after: put.after, owner: put.owner };
        self.index.insert(put.key.id(), Held { key: put.key, place });
        self.held_back.insert(slot, record);
        self.stats.puts += 1;
        if let Some(after) = put.after {
            self.ends.remove(&after);
        }
        if self.ends.len() >= ENDS {
            self.ends.clear();
        }
        self.ends.insert(put.key.id(), slot);
    }

    /// A slot has no block any more.
    pub fn forget(&mut self, slot: u32) {
        self.held_back.remove(&slot);
        self.pending.insert(slot, None);
    }

    /// A write failed. A slot is to blame for that unless the disk is full.
    pub fn fail(&mut self, slots: impl Iterator<Item = u32>, error: &io::Error) {
        self.stats.writable = false;
        self.stats.failed += 1;
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        for slot in slots {
            if !full {
                self.slots.quarantine(slot);
            }
            self.slots.give(slot);
        }
    }

    /// A block was read, or not.
    pub fn conclude(&mut self, key: StoreKey, place: Place, hit: bool, failed: bool) -> Read {
        let current = self.place(key).is_some_and(|now| now.generation == place.generation);
        if !hit && current {
            self.index.remove(&key.id());
            self.forget(place.slot);
            self.slots.quarantine(place.slot);
            self.slots.give(place.slot);
        }
        self.slots.done(place.slot);
        self.stats.hits += u64::from(hit);
        self.stats.failed += u64::from(failed);
        self.stats.corrupt += u64::from(!hit && !failed);
        match () {
            () if hit => Read::Hit,
            () if current => Read::Lost,
            () => Read::Miss,
        }
    }
}

/// Orders records so that each comes after the block before it, where that is there. A chain
/// that closes upon itself is cut somewhere.
pub fn parents_first(records: &[Record]) -> Vec<Record> {
    let mut by_id: HashMap<BlockId, usize> = HashMap::with_capacity(records.len());
    by_id.extend(records.iter().enumerate().map(|(at, record)| (record.key.id(), at)));
    let mut seen = vec![false; records.len()];
    let mut ordered = Vec::with_capacity(records.len());
    for start in 0..records.len() {
        let first = ordered.len();
        let mut at = Some(start);
        while let Some(this) = at.filter(|at| !std::mem::replace(&mut seen[*at], true)) {
            ordered.push(records[this]);
            at = records[this].after.and_then(|id| by_id.get(&id).copied());
        }
        ordered[first..].reverse();
    }
    ordered
}
