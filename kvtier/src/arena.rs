//! A fixed number of slots in RAM, and which of them hold what.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use memmap2::MmapOptions;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::slot::{Held, Lease, Pool, Reserved, Slot, SlotId, lock};

/// Slots start on multiples of this in their file.
const PAGE: usize = 4096;

/// An arena could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// Slots of no bytes, or none of them.
    #[error("{slots} slots of {slot_bytes} bytes hold nothing")]
    Empty {
        /// Bytes per slot asked for.
        slot_bytes: usize,
        /// Slots asked for.
        slots: u32,
    },
    /// The system gives no more memory.
    #[error("map slot {index} of {slot_bytes} bytes")]
    Map {
        /// Bytes per slot asked for.
        slot_bytes: usize,
        /// The slot that failed.
        index: u32,
        /// Why.
        source: std::io::Error,
    },
}

/// What an arena holds and has done. Each number is right by itself; while other threads work,
/// they may be of slightly different moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// All slots.
    pub slots: usize,
    /// Slots that can be reserved.
    pub idle: usize,
    /// Slots being written.
    pub reserved: usize,
    /// Slots with a payload that can be leased.
    pub held: usize,
    /// Slots freed while leased, not yet idle.
    pub retired: usize,
    /// Payloads committed so far.
    pub commits: u64,
    /// Payloads freed so far.
    pub frees: u64,
    /// Leases given so far.
    pub leases: u64,
    /// Leases refused because the payload was gone.
    pub stale: u64,
    /// Reservations refused because no slot was idle.
    pub full: u64,
}

/// Slots of one size in RAM. All methods take `&self` and may be called from any thread.
///
/// The slots are in one file in memory, so that another process can map them, but only to read:
/// the file can be neither cut nor grown, nor written to by any mapping but the arena's own. Each
/// slot is a mapping of its own that starts on a page, as direct I/O wants it, and takes memory
/// only once written.
#[derive(Debug)]
pub struct Arena {
    slot_bytes: usize,
    slots: usize,
    file: File,
    pool: Arc<Mutex<Pool>>,
    table: Arc<Mutex<Table>>,
}

impl Arena {
    /// An arena of `slots` slots of `slot_bytes` bytes.
    ///
    /// # Errors
    ///
    /// [`ArenaError`] where that is nothing, or more than the system maps.
    pub fn new(slot_bytes: usize, slots: u32) -> Result<Arena, ArenaError> {
        if slot_bytes == 0 || slots == 0 {
            return Err(ArenaError::Empty { slot_bytes, slots });
        }
        let failed = |index| move |source| ArenaError::Map { slot_bytes, index, source };
        let stride = slot_bytes.checked_next_multiple_of(PAGE).and_then(|stride| u64::try_from(stride).ok());
        let bytes = stride.and_then(|stride| stride.checked_mul(u64::from(slots)));
        let (Some(stride), Some(bytes)) = (stride, bytes) else {
            return Err(failed(0)(io::ErrorKind::OutOfMemory.into()));
        };
        let file = memory(bytes).map_err(failed(0))?;
        let mut pool = Pool::default();
        // From the last, so that the first slot is the first to be used.
        for index in (0..slots).rev() {
            let offset = u64::from(index) * stride;
            let mut map = MmapOptions::new();
            // SAFETY: the file is this arena's own and sealed below; others map it to read at
            // most, and each slot is mapped once.
            let bytes = unsafe { map.offset(offset).len(slot_bytes).map_mut(&file) };
            let bytes = bytes.map_err(failed(index))?;
            pool.idle.push(Slot { id: SlotId { index, generation: 0 }, offset, bytes });
        }
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(|error| failed(0)(error.into()))?;
        Ok(Arena {
            slot_bytes,
            slots: slots as usize,
            file,
            pool: Arc::new(Mutex::new(pool)),
            table: Arc::new(Mutex::new(Table::default())),
        })
    }

    /// Bytes per slot.
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// The file that the slots are in, for others to map and read. See [`Lease::offset`].
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes of that file.
    pub fn file_bytes(&self) -> u64 {
        self.slots as u64 * self.slot_bytes.next_multiple_of(PAGE) as u64
    }

    /// A slot to write a payload to; `None` where none is idle.
    pub fn reserve(&self) -> Option<Reserved> {
        let mut pool = lock(&self.pool);
        let Some(mut slot) = pool.idle.pop() else {
            drop(pool);
            lock(&self.table).full += 1;
            return None;
        };
        pool.reserved += 1;
        drop(pool);
        slot.id.generation += 1;
        Some(Reserved::new(slot, self.pool.clone(), self.table.clone()))
    }

    /// The payload committed as `id`; `None` where it was freed.
    pub fn lease(&self, id: SlotId) -> Option<Lease> {
        let mut table = lock(&self.table);
        let found = table.find(id).cloned();
        match &found {
            Some(_) => table.leases += 1,
            None => table.stale += 1,
        }
        found.map(Lease)
    }

    /// Gives a payload up. Its slot is idle as soon as nobody leases it. False where it was
    /// freed before.
    pub fn free(&self, id: SlotId) -> bool {
        // The table's lock ends here: the payload's drop takes the pool's.
        let freed = lock(&self.table).remove(id);
        freed.is_some()
    }

    /// What the arena holds and has done.
    pub fn stats(&self) -> Stats {
        let table = lock(&self.table);
        let pool = lock(&self.pool);
        Stats {
            slots: self.slots,
            idle: pool.idle.len(),
            reserved: pool.reserved,
            held: table.live,
            retired: pool.filled.saturating_sub(table.live),
            commits: table.commits,
            frees: table.frees,
            leases: table.leases,
            stale: table.stale,
            full: table.full,
        }
    }
}

impl Drop for Arena {
    /// Unmaps neighbours one after the other. In random order, every second one would split what
    /// the system has joined to one mapping, and of those a process may only have so many.
    fn drop(&mut self) {
        let held = std::mem::take(&mut lock(&self.table).held);
        drop(held);
        let mut idle = std::mem::take(&mut lock(&self.pool).idle);
        idle.sort_unstable_by_key(|slot| slot.id.index);
    }
}

/// A file in memory that is not in any file system.
fn memory(bytes: u64) -> io::Result<File> {
    let file = File::from(memfd_create("kvtier-arena", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(bytes)?;
    Ok(file)
}

/// Which payloads can be leased.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// By slot.
    held: Vec<Option<Arc<Held>>>,
    live: usize,
    commits: u64,
    frees: u64,
    leases: u64,
    stale: u64,
    full: u64,
}

impl Table {
    pub fn insert(&mut self, id: SlotId, held: Arc<Held>) {
        let at = id.index as usize;
        if self.held.len() <= at {
            self.held.resize_with(at + 1, || None);
        }
        // The slot was not in the table: it had to be idle to be reserved.
        self.held[at] = Some(held);
        self.live += 1;
        self.commits += 1;
    }

    fn find(&self, id: SlotId) -> Option<&Arc<Held>> {
        let held = self.held.get(id.index as usize)?.as_ref()?;
        held.slot.as_ref().is_some_and(|s| s.id == id).then_some(held)
    }

    fn remove(&mut self, id: SlotId) -> Option<Arc<Held>> {
        self.find(id)?;
        self.live -= 1;
        self.frees += 1;
        self.held[id.index as usize].take()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::Key;

    fn put(arena: &Arena, key: u64, byte: u8) -> Option<SlotId> {
        let mut reserved = arena.reserve()?;
        reserved.fill(byte);
        Some(reserved.commit(Key(key)))
    }

    #[test]
    fn an_arena_of_nothing_is_refused() {
        assert!(matches!(Arena::new(0, 1), Err(ArenaError::Empty { .. })));
        assert!(matches!(Arena::new(1, 0), Err(ArenaError::Empty { .. })));
        assert!(matches!(Arena::new(isize::MAX as usize, 1), Err(ArenaError::Map { index: 0, .. })));
    }

    #[test]
    fn a_freed_slot_is_not_reused_while_it_is_leased() {
        let arena = Arena::new(64, 1).unwrap();
        let id = put(&arena, 1, 7).unwrap();
        let lease = arena.lease(id).unwrap();
        let second = lease.clone();
        assert!(arena.free(id));
        drop(lease);
        assert!(arena.reserve().is_none());
        assert_eq!((arena.stats().retired, arena.stats().full), (1, 1));
        assert!(second.iter().all(|&b| b == 7));
        drop(second);
        assert_eq!(put(&arena, 2, 8), Some(SlotId { index: id.index, generation: id.generation + 1 }));
    }

    #[test]
    fn an_id_of_an_earlier_generation_is_nothing() {
        let arena = Arena::new(64, 1).unwrap();
        let old = put(&arena, 1, 7).unwrap();
        assert!(arena.free(old));
        let new = put(&arena, 1, 8).unwrap();
        assert!(arena.lease(old).is_none());
        assert!(!arena.free(old));
        assert!(arena.lease(SlotId { index: 9, generation: 1 }).is_none());
        assert_eq!(arena.lease(new).unwrap()[0], 8);
        assert_eq!((arena.stats().stale, arena.stats().frees), (2, 1));
    }

    #[test]
    fn a_reservation_that_is_dropped_leaves_the_slot_idle() {
        let arena = Arena::new(64, 1).unwrap();
        let reserved = arena.reserve().unwrap();
        assert_eq!((arena.stats().idle, arena.stats().reserved), (0, 1));
        drop(reserved);
        assert_eq!((arena.stats().idle, arena.stats().reserved), (1, 0));
    }

    #[test]
    fn a_changed_byte_or_another_key_does_not_verify() {
        let arena = Arena::new(64, 2).unwrap();
        let id = put(&arena, 1, 7).unwrap();
        let lease = arena.lease(id).unwrap();
        assert_eq!(lease.verify(Key(1)), Ok(()));
        assert_eq!(lease.verify(Key(2)).unwrap_err().slot, id);
        drop(lease);
        {
            let mut table = lock(&arena.table);
            let held = Arc::get_mut(table.held[id.index as usize].as_mut().unwrap()).unwrap();
            held.slot.as_mut().unwrap().bytes[63] ^= 1;
        }
        assert!(arena.lease(id).unwrap().verify(Key(1)).is_err());
    }

    #[test]
    fn equal_payloads_of_two_generations_have_different_checksums() {
        let arena = Arena::new(64, 1).unwrap();
        let first = put(&arena, 1, 7).unwrap();
        let before = arena.lease(first).unwrap().verify(Key(2)).unwrap_err().committed;
        arena.free(first);
        let second = put(&arena, 1, 7).unwrap();
        assert_ne!(arena.lease(second).unwrap().verify(Key(2)).unwrap_err().committed, before);
    }

    #[test]
    fn a_lease_outlives_its_arena() {
        let arena = Arena::new(64, 1).unwrap();
        let id = put(&arena, 1, 7).unwrap();
        let lease = arena.lease(id).unwrap();
        drop(arena);
        assert_eq!(lease.verify(Key(1)), Ok(()));
    }

    #[test]
    fn others_can_read_what_is_leased_and_write_nothing() {
        let arena = Arena::new(5000, 3).unwrap();
        put(&arena, 1, 7).unwrap();
        let lease = arena.lease(put(&arena, 2, 9).unwrap()).unwrap();
        let file = File::from(arena.file().try_clone_to_owned().unwrap());
        assert_eq!((lease.offset(), arena.file_bytes()), (8192, 3 * 8192));
        let mut map = MmapOptions::new();
        // SAFETY: nothing is written while the map is looked at.
        let map = unsafe { map.offset(lease.offset()).len(5000).map(&file) }.unwrap();
        assert_eq!(&map[..], &lease[..]);
        // SAFETY: it is refused.
        assert!(unsafe { MmapOptions::new().map_mut(&file) }.is_err());
        assert!(file.set_len(0).is_err() && file.set_len(1 << 20).is_err());
        assert!(rustix::io::pwrite(&file, b"x", 0).is_err());
    }

    #[test]
    fn guards_go_from_thread_to_thread() {
        fn crosses<T: Send + Sync>() {}
        crosses::<Arena>();
        crosses::<Reserved>();
        crosses::<Lease>();
    }

    /// What a payload is filled with, told by its key alone.
    fn byte_of(key: u64) -> u8 {
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
    }

    #[test]
    fn random_use_agrees_with_a_map() {
        const SLOTS: u32 = 7;
        for seed in 1..=20u64 {
            let arena = Arena::new(96, SLOTS).unwrap();
            let mut held: HashMap<SlotId, u64> = HashMap::new();
            let mut gone: Vec<SlotId> = vec![];
            let mut reserved: Vec<Reserved> = vec![];
            let mut leases: Vec<(SlotId, u64, Lease)> = vec![];
            let mut x = seed;
            for step in 0..3000u64 {
                // xorshift64
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                let pick = (x >> 8) as usize;
                let mut ids: Vec<SlotId> = held.keys().copied().collect();
                ids.sort();
                match x % 8 {
                    0 | 1 => {
                        let idle = arena.stats().idle;
                        match arena.reserve() {
                            Some(r) => reserved.push(r),
                            None => assert_eq!(idle, 0),
                        }
                    }
                    2 if !reserved.is_empty() => {
                        let mut r = reserved.swap_remove(pick % reserved.len());
                        r.fill(byte_of(step));
                        assert_eq!(held.insert(r.commit(Key(step)), step), None);
                    }
                    3 if !reserved.is_empty() => drop(reserved.swap_remove(pick % reserved.len())),
                    4 if !ids.is_empty() => {
                        let id = ids[pick % ids.len()];
                        leases.push((id, held[&id], arena.lease(id).unwrap()));
                    }
                    5 if !leases.is_empty() => drop(leases.swap_remove(pick % leases.len())),
                    6 if !ids.is_empty() => {
                        let id = ids[pick % ids.len()];
                        assert!(arena.free(id));
                        held.remove(&id);
                        gone.push(id);
                    }
                    7 if !gone.is_empty() => {
                        let id = gone[pick % gone.len()];
                        assert!(arena.lease(id).is_none() && !arena.free(id));
                    }
                    _ => {}
                }
                for (_, key, lease) in &leases {
                    assert!(lease.iter().all(|&b| b == byte_of(*key)));
                    lease.verify(Key(*key)).unwrap();
                }
                let mut retired: Vec<SlotId> = leases.iter().map(|l| l.0).collect();
                retired.retain(|id| !held.contains_key(id));
                retired.sort();
                retired.dedup();
                let stats = arena.stats();
                let used = (stats.held, stats.reserved, stats.retired);
                assert_eq!(used, (held.len(), reserved.len(), retired.len()), "seed {seed}, step {step}");
                assert_eq!(stats.idle, SLOTS as usize - used.0 - used.1 - used.2);
                assert_eq!(stats.commits - stats.frees, held.len() as u64);
            }
            assert!(arena.stats().full > 0 && arena.stats().stale > 0, "seed {seed} never got there");
        }
    }
}
