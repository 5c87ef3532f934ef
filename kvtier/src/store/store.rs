//! Put, get, remove, commit.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use hashbrown::HashMap;

use super::direct::Direct;
use super::key::StoreKey;
use super::mapped::Mapped;
use super::medium::{Buffer, Medium, PAGE, Segment};
use super::meta::Meta;
use super::record::Record;
use super::slots::Slots;
use super::{Backend, CommitError, LIFE_SHIFT, Layout, OpenError, PutError};
use crate::policy::{BlockId, Owner};

/// What the system calls memory that is not there.
const EFAULT: i32 = libc::EFAULT;

/// A block to store.
#[derive(Clone, Copy, Debug)]
pub struct Put<'a> {
    /// Its name.
    pub key: StoreKey,
    /// The block before it.
    pub after: Option<BlockId>,
    /// Whose it is.
    pub owner: Owner,
    /// Its bytes. On a page boundary (see [`Buffer`]), they are written without a copy.
    pub payload: &'a [u8],
}

/// A block to read.
#[derive(Debug)]
pub struct Get<'a> {
    /// Its name.
    pub key: StoreKey,
    /// Where to. On a page boundary (see [`Buffer`]), without a copy. After anything but a hit,
    /// its content means nothing.
    pub into: &'a mut [u8],
}

/// What reading a block came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The bytes are those that were stored.
    Hit,
    /// It is not in the store.
    Miss,
    /// It was, but could not be read or did not verify. It is not any more, and its slot is in
    /// quarantine.
    Lost,
    /// `into` has another size than blocks of this store.
    Size,
}

/// What a store holds and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks that can be read.
    pub blocks: usize,
    /// Free slots.
    pub idle: u32,
    /// Slots in quarantine.
    pub quarantined: usize,
    /// Changes that a crash would lose.
    pub pending: usize,
    /// Whether the store takes writes.
    pub writable: bool,
    /// Blocks written.
    pub puts: u64,
    /// Blocks read and verified.
    pub hits: u64,
    /// Blocks that did not verify.
    pub corrupt: u64,
    /// Reads and writes that failed.
    pub failed: u64,
    /// Bytes copied in memory because a payload was not on a page boundary, or was read again.
    pub copied: u64,
}

/// Where a block is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub slot: u32,
    pub generation: u64,
    pub checksum: u64,
}

/// A block that is in the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub key: StoreKey,
    pub place: Place,
}

/// What changes, under one lock that is never held during I/O.
#[derive(Debug, Default)]
pub(super) struct State {
    /// By short name, which is unique as good as certainly; the whole name is compared all the same.
    pub index: HashMap<BlockId, Held>,
    pub slots: Slots,
    /// What the table does not say yet, by slot.
    pub pending: BTreeMap<u32, Option<Record>>,
    /// What a commit is not to write down yet, by slot.
    pub held_back: BTreeMap<u32, Record>,
    /// Where the last blocks of some chains lie.
    pub ends: HashMap<BlockId, u32>,
    pub generation: u64,
    pub stats: Stats,
}

/// Blocks on disk. All methods take `&self`, may be called from any thread, and block.
#[derive(Debug)]
pub struct Store {
    pub(super) layout: Layout,
    pub(super) segments: Vec<Box<dyn Segment>>,
    pub(super) state: Mutex<State>,
    /// Held while changes are written down.
    meta: Mutex<Meta>,
    /// For payloads that are not on a page boundary.
    pub(super) spare: Mutex<Vec<Buffer>>,
    /// Locked as long as the store is open.
    owned: Option<File>,
}

impl Store {
    /// Opens the store in `folder`, or makes it. Returns as well what it holds, by slot (see
    /// [`parents_first`](super::parents_first)); whether a payload is still good shows when it is
    /// read.
    ///
    /// # Errors
    ///
    /// [`OpenError`] where the layout is empty or another, the folder is in use, or the system
    /// refuses.
    pub fn open(folder: &Path, layout: Layout, backend: Backend) -> Result<(Store, Vec<Record>), OpenError> {
        let io = |what| move |source| OpenError::Io { what, source };
        let owned = File::create(folder.join("lock")).map_err(io("make the lock file"))?;
        owned.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::InUse,
            TryLockError::Error(source) => OpenError::Io { what: "lock the folder", source },
        })?;
        let direct = Direct { folder: folder.to_owned() };
        let mapped = Mapped { folder: folder.to_owned() };
        let medium: &dyn Medium = match backend {
            Backend::Direct => &direct,
            Backend::Mapped => &mapped,
            Backend::Auto if direct.open("lock", PAGE as u64).is_ok() => &direct,
            Backend::Auto => &mapped,
        };
        let (mut store, records) = Store::on(medium, layout)?;
        store.owned = Some(owned);
        Ok((store, records))
    }

    pub(super) fn on(medium: &dyn Medium, layout: Layout) -> Result<(Store, Vec<Record>), OpenError> {
        if layout.block_bytes == 0 || layout.slots == 0 || layout.segment_slots == 0 {
            return Err(OpenError::Empty { layout });
        }
        // Before the segments: files of a store with another layout are left as they are.
        // Whoever reads need not wait for whoever makes the index.
        let (meta, (mut state, records)) = thread::scope(|scope| {
            let (read, to_index) = sync_channel(8);
            let indexing = scope.spawn(move || State::restored(layout.slots, to_index));
            let meta = Meta::open(medium, layout, |records| {
                let ids = records.iter().map(|(_, record)| record.key.id()).collect();
                read.send((ids, records)).expect("it takes all that there are")
            });
            drop(read);
            let indexed = indexing.join().expect("no thread panics");
            Ok((meta?, indexed))
        })?;
        let io = |what| move |source| OpenError::Io { what, source };
        let mut segments = Vec::new();
        let slot_bytes = layout.block_bytes.next_multiple_of(PAGE) as u64;
        for (at, first) in (0..layout.slots).step_by(layout.segment_slots as usize).enumerate() {
            let slots = layout.segment_slots.min(layout.slots - first);
            let segment = medium.open(&format!("segment-{at:05}"), u64::from(slots) * slot_bytes);
            segments.push(segment.map_err(io("open a segment"))?);
        }
        state.generation = meta.life() << LIFE_SHIFT;
        let (state, meta) = (Mutex::new(state), Mutex::new(meta));
        let spare = Mutex::default();
        Ok((Store { layout, segments, state, meta, spare, owned: None }, records))
    }

    /// Stores blocks, those in a row side by side where there is room. What each came to, in
    /// their order. A block that is there already is not written again.
    ///
    /// They can be read at once; a crash loses those that are not committed.
    pub fn put(&self, blocks: &[Put<'_>]) -> Vec<Result<(), PutError>> {
        let results = self.put_held_back(blocks);
        self.release(blocks.iter().zip(&results).filter(|(_, put)| put.is_ok()).map(|(put, _)| put.key));
        results
    }

    /// Lets a commit write down blocks that [`put_held_back`](Self::put_held_back) stored.
    pub fn release(&self, keys: impl IntoIterator<Item = StoreKey>) {
        let state = &mut *lock(&self.state);
        for key in keys {
            if let Some(place) = state.place(key)
                && let Some(record) = state.held_back.remove(&place.slot)
            {
                state.pending.insert(place.slot, Some(record));
            }
        }
    }

    /// The same as [`put`](Self::put), but no commit writes them down before they are
    /// [`released`](Self::release): for who has to tell of them first.
    pub fn put_held_back(&self, blocks: &[Put<'_>]) -> Vec<Result<(), PutError>> {
        let mut results: Vec<Result<(), PutError>> = Vec::with_capacity(blocks.len());
        let mut placed: Vec<(usize, Place)> = Vec::new();
        let mut state = lock(&self.state);
        for (at, put) in blocks.iter().enumerate() {
            let placed_here = |key| placed.iter().any(|(at, _)| blocks[*at].key == key);
            let (got, wanted) = (put.payload.len(), self.layout.block_bytes);
            results.push(match () {
                () if got != wanted => Err(PutError::Size { got, wanted }),
                () if state.place(put.key).is_some() || placed_here(put.key) => Ok(()),
                // Another block has the short name: as good as impossible, unless somebody tries.
                () if state.index.contains_key(&put.key.id()) => Err(PutError::Full),
                () if !state.stats.writable => Err(PutError::ReadOnly),
                () => {
                    let near = placed.last().map(|(_, before)| before.slot);
                    let near = near.or_else(|| state.end_of(put.after));
                    match state.slots.take(blocks.len() - at, near) {
                        Some(slot) => {
                            state.generation += 1;
                            placed.push((at, Place { slot, generation: state.generation, checksum: 0 }));
                            Ok(())
                        }
                        None => Err(PutError::Full),
                    }
                }
            });
        }
        drop(state);
        for (at, place) in &mut placed {
            place.checksum = blocks[*at].key.checksum(place.generation, blocks[*at].payload);
        }
        let slots: Vec<u32> = placed.iter().map(|p| p.1.slot).collect();
        for run in self.runs(&slots) {
            let run = &placed[run];
            let written = self.write(run[0].1.slot, run.iter().map(|(at, _)| blocks[*at].payload));
            let mut state = lock(&self.state);
            match written {
                Ok(()) => run.iter().for_each(|(at, place)| state.keep(&blocks[*at], *place)),
                // The caller's memory is gone, as that of another process may be. The disk is not
                // to blame.
                Err(error) if error.raw_os_error() == Some(EFAULT) => {
                    for (at, place) in run {
                        state.slots.give(place.slot);
                        results[*at] = Err(PutError::Io { slot: place.slot, kind: error.kind() });
                    }
                }
                Err(error) => {
                    state.fail(run.iter().map(|p| p.1.slot), &error);
                    for (at, _) in run {
                        results[*at] = Err(PutError::Io { slot: run[0].1.slot, kind: error.kind() });
                    }
                }
            }
        }
        results
    }

    /// Reads blocks, those in a row together, and verifies them. What each came to, in their
    /// order.
    pub fn get(&self, blocks: &mut [Get<'_>]) -> Vec<Read> {
        let mut reads = vec![Read::Miss; blocks.len()];
        let mut found: Vec<(usize, Place)> = Vec::new();
        let mut state = lock(&self.state);
        for (at, get) in blocks.iter().enumerate() {
            if get.into.len() != self.layout.block_bytes {
                reads[at] = Read::Size;
            } else if let Some(place) = state.place(get.key) {
                state.slots.read(place.slot);
                found.push((at, place));
            }
        }
        drop(state);
        let slots: Vec<u32> = found.iter().map(|f| f.1.slot).collect();
        for run in self.runs(&slots) {
            let run = &found[run];
            let range = run[0].0..run[run.len() - 1].0 + 1;
            // One bad block must not take its neighbours with it, and what was wrong on the way
            // may be right the second time: what is not good at once is read again by itself.
            let whole = range.len() == run.len();
            let read =
                whole && self.read(run[0].1.slot, blocks[range].iter_mut().map(|g| &mut *g.into)).is_ok();
            for (at, place) in run {
                let get = &mut blocks[*at];
                let good = |get: &Get<'_>| get.key.checksum(place.generation, get.into) == place.checksum;
                let mut came = read;
                if !read {
                    came = self.read(place.slot, std::iter::once(&mut *get.into)).is_ok();
                }
                let (mut hit, mut failed) = (came && good(get), false);
                if !hit {
                    let again = self.read_apart(place.slot, get, *place);
                    (hit, failed) = (matches!(again, Ok(true)), again.is_err());
                }
                reads[*at] = lock(&self.state).conclude(get.key, *place, hit, failed);
            }
        }
        reads
    }

    /// Whether a block is there. Reading it can still show that it is not good.
    pub fn has(&self, key: StoreKey) -> bool {
        lock(&self.state).place(key).is_some()
    }

    /// Whether each of some blocks, given by short and whole name, is there.
    pub fn have<'k>(&self, blocks: impl Iterator<Item = (&'k BlockId, &'k StoreKey)>) -> Vec<bool> {
        let state = lock(&self.state);
        blocks.map(|(id, key)| state.index.get(id).is_some_and(|held| held.key == *key)).collect()
    }

    /// The whole name of the block with this short one, if it is there.
    pub fn name(&self, id: BlockId) -> Option<StoreKey> {
        lock(&self.state).index.get(&id).map(|held| held.key)
    }

    /// The whole names of all blocks that are there.
    pub fn names(&self) -> Vec<StoreKey> {
        lock(&self.state).index.values().map(|held| held.key).collect()
    }

    /// Gives a block up. False where it is not there.
    pub fn remove(&self, key: StoreKey) -> bool {
        let mut state = lock(&self.state);
        let Some(place) = state.place(key) else { return false };
        state.index.remove(&key.id());
        state.forget(place.slot);
        state.slots.give(place.slot);
        true
    }

    /// Writes down what has changed; a crash does not lose it any more. Returns the number of
    /// changes. To be called every so often, or after so many bytes.
    ///
    /// # Errors
    ///
    /// [`CommitError`]; the changes are kept for the next time.
    pub fn commit(&self) -> Result<usize, CommitError> {
        let mut meta = lock(&self.meta);
        let pending = std::mem::take(&mut lock(&self.state).pending);
        if pending.is_empty() {
            return Ok(0);
        }
        let changes: Vec<(u32, Option<Record>)> = pending.iter().map(|(s, r)| (*s, *r)).collect();
        let touched = changes.iter().filter(|c| c.1.is_some()).map(|c| self.segment_of(c.0));
        let mut touched: Vec<usize> = touched.collect();
        touched.dedup();
        // A record before its payload would only be a block that does not verify.
        let synced = touched.into_iter().try_for_each(|at| self.segments[at].sync());
        match synced.and_then(|()| meta.commit(&changes)) {
            Ok(()) => Ok(changes.len()),
            Err(source) => {
                let mut state = lock(&self.state);
                state.stats.writable = false;
                state.stats.failed += 1;
                for (slot, record) in pending {
                    // What has changed since is newer.
                    state.pending.entry(slot).or_insert(record);
                }
                Err(CommitError { changes: changes.len(), source })
            }
        }
    }

    /// Tries whether a store that takes no writes can take them again, and looks at one slot in
    /// quarantine, behind `after`. Returns whether the store takes writes, and the slot looked at.
    pub fn probe(&self, after: Option<u32>) -> (bool, Option<u32>) {
        let (suspect, free) = {
            let mut state = lock(&self.state);
            (state.slots.suspect(after), state.slots.take(1, None))
        };
        let pattern: Vec<u8> = (0..self.layout.block_bytes).map(|at| ((at * 31) >> 3) as u8).collect();
        let works = |slot: u32| {
            let mut back = vec![0; pattern.len()];
            self.write(slot, std::iter::once(&pattern[..])).is_ok()
                && self.segments[self.segment_of(slot)].sync().is_ok()
                && self.read(slot, std::iter::once(&mut back[..])).is_ok()
                && back == pattern
        };
        let works_free = free.is_none_or(works);
        let works_suspect = suspect.is_some_and(works);
        let works_meta = lock(&self.meta).probe().is_ok();
        let mut state = lock(&self.state);
        if let Some(slot) = free {
            if !works_free {
                state.slots.quarantine(slot);
            }
            state.slots.give(slot);
        }
        if let Some(slot) = suspect.filter(|_| works_suspect) {
            state.slots.acquit(slot);
        }
        state.stats.writable = works_meta && works_free;
        (state.stats.writable, suspect)
    }

    /// What the store holds and has done.
    pub fn stats(&self) -> Stats {
        let state = lock(&self.state);
        Stats {
            blocks: state.index.len(),
            idle: state.slots.idle(),
            quarantined: state.slots.quarantined(),
            pending: state.pending.len() + state.held_back.len(),
            ..state.stats
        }
    }
}

/// No code panics under these locks, so a poisoned one still guards what is right.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
