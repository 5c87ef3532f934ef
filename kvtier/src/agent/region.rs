//! The memory that an engine shares with the agent: checked once, mapped, and sliced to slots.

use std::fs::File;
use std::os::fd::OwnedFd;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat, fstatfs};

use super::guard::Guard;

/// File systems whose pages are memory, so that touching one never waits for a disk or a peer.
const TMPFS: i64 = 0x0102_1994;
const HUGETLBFS: i64 = 0x9584_58f6;

/// A region cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Not a file in memory.
    #[error("not a file in memory (memfd, tmpfs or hugetlbfs)")]
    NotMemory,
    /// Shorter than what is to be in it.
    #[error("{has} bytes, not the {wants} that its slots take")]
    Short {
        /// Its size.
        has: u64,
        /// What is needed.
        wants: u64,
    },
    /// Slots that do not begin on a page cannot be guarded one by one, and direct I/O refuses them.
    #[error("offset {0} is not on a page")]
    Offset(u64),
    /// The system refuses.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// Where the slots are in a region's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many.
    pub slots: u32,
    /// Bytes from one to the next.
    pub stride: usize,
    /// Bytes of a block in each.
    pub block_bytes: usize,
    /// Bytes before the first.
    pub offset: u64,
}

/// An engine's memory, mapped. It stays mapped as long as any job holds it, whatever becomes of
/// the engine.
#[derive(Debug)]
pub struct Region {
    // Before the map, which must outlive it.
    guard: Option<Guard>,
    map: MmapRaw,
    shape: Shape,
}

impl Region {
    /// Maps the region that `file` is said to hold.
    ///
    /// # Errors
    ///
    /// [`RegionError`] where it is not memory, or not as large as said.
    pub fn map(file: OwnedFd, shape: Shape) -> Result<Region, RegionError> {
        let io = |what| move |error: rustix::io::Errno| RegionError::Io { what, source: error.into() };
        let kind = fstatfs(&file).map_err(io("look at the file system"))?.f_type as i64;
        if kind != TMPFS && kind != HUGETLBFS {
            return Err(RegionError::NotMemory);
        }
        if !shape.offset.is_multiple_of(4096) {
            return Err(RegionError::Offset(shape.offset));
        }
        let bytes = shape.slots as usize * shape.stride;
        let has = fstat(&file).map_err(io("look at the size"))?.st_size as u64;
        let wants = shape.offset.saturating_add(bytes as u64);
        if has < wants {
            return Err(RegionError::Short { has, wants });
        }
        let sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        let map = MmapOptions::new()
            .offset(shape.offset)
            .len(bytes)
            .map_raw(&File::from(file))
            .map_err(|source| RegionError::Io { what: "map", source })?;
        // Pages of hugetlbfs can be missing for want of memory even where the file cannot be cut.
        let guard = if sealed && kind == TMPFS {
            None
        } else {
            let guard = Guard::new(map.as_mut_ptr(), bytes);
            Some(guard.map_err(|source| RegionError::Io { what: "guard", source })?)
        };
        Ok(Region { guard, map, shape })
    }

    /// Whether it cannot be cut, and so needs no guard.
    pub fn is_sealed(&self) -> bool {
        self.guard.is_none()
    }

    /// Whether it was cut: its bytes mean nothing any more.
    pub fn is_broken(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::is_broken)
    }

    fn start(&self, slot: u32) -> *mut u8 {
        assert!(slot < self.shape.slots, "the session let a slot pass that the region does not have");
        // SAFETY: `map` has slots * stride bytes, and slot is one of them.
        unsafe { self.map.as_mut_ptr().add(slot as usize * self.shape.stride) }
    }

    /// A slot's bytes.
    ///
    /// # Safety
    ///
    /// No slice that [`slot_mut`](Self::slot_mut) gave for this slot may be in use. The engine is
    /// another process and may write at any time; what is read is then any mixture of old and new.
    pub unsafe fn slot(&self, slot: u32) -> &[u8] {
        // SAFETY: in the map, which lives as long as self; a stride holds at least a block.
        unsafe { std::slice::from_raw_parts(self.start(slot), self.shape.block_bytes) }
    }

    /// A slot's bytes, to write to.
    ///
    /// # Safety
    ///
    /// No other slice for this slot may be in use in this process.
    #[expect(clippy::mut_from_ref, reason = "slots are told apart by number, which the session checks")]
    pub unsafe fn slot_mut(&self, slot: u32) -> &mut [u8] {
        // SAFETY: as in `slot`, and the caller has it alone.
        unsafe { std::slice::from_raw_parts_mut(self.start(slot), self.shape.block_bytes) }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;

    fn memory(bytes: u64, seals: SealFlags) -> OwnedFd {
        let fd = memfd_create("region", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, bytes).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    const SHAPE: Shape = Shape { slots: 4, stride: 8192, block_bytes: 5000, offset: 4096 };

    #[test]
    fn a_region_that_is_no_memory_or_too_short_is_refused() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.set_len(1 << 20).unwrap();
        assert!(matches!(Region::map(file.into(), SHAPE), Err(RegionError::NotMemory)));
        let short = memory(4096 + 4 * 8192 - 1, SealFlags::SHRINK);
        assert!(matches!(Region::map(short, SHAPE), Err(RegionError::Short { has: 36863, wants: 36864 })));
        let odd = Shape { offset: 100, ..SHAPE };
        assert!(matches!(
            Region::map(memory(1 << 20, SealFlags::SHRINK), odd),
            Err(RegionError::Offset(100))
        ));
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        assert!(matches!(Region::map(pipe, SHAPE), Err(RegionError::NotMemory)));
    }

    #[test]
    fn slots_are_where_the_shape_says() {
        let fd = memory(4096 + 4 * 8192, SealFlags::SHRINK);
        let other = Region::map(fd.try_clone().unwrap(), SHAPE).unwrap();
        let region = Region::map(fd, SHAPE).unwrap();
        assert!(region.is_sealed());
        // SAFETY: no other slice of these slots is in use while these are.
        unsafe {
            region.slot_mut(3).fill(7);
            assert!(other.slot(3).iter().all(|b| *b == 7) && other.slot(3).len() == 5000);
            assert!(other.slot(2).iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn a_cut_region_does_not_cost_the_disk_its_block() {
        use crate::store::{Backend, Get, Layout, Put, Read, Store, StoreKey};
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let layout = Layout { block_bytes: 4096, slots: 8, segment_slots: 8 };
        let (store, _) = Store::open(folder.path(), layout, Backend::Auto).unwrap();
        let fd = memory(4 * 4096, SealFlags::empty());
        let shape = Shape { slots: 4, stride: 4096, block_bytes: 4096, offset: 0 };
        let region = Region::map(fd.try_clone().unwrap(), shape).unwrap();
        let key = StoreKey::new(1, 0, b"block").unwrap();
        // SAFETY: each slot has one slice at a time.
        let (from, into, after) = unsafe { (region.slot_mut(0), region.slot_mut(1), region.slot(2)) };
        from.fill(7);
        let put = Put { key, after: None, owner: Default::default(), payload: from };
        assert!(store.put(&[put])[0].is_ok());
        assert_eq!(store.get(&mut [Get { key, into }]), [Read::Hit]);
        assert_eq!(store.stats().copied, 0);
        ftruncate(&fd, 0).unwrap();
        // The disk cannot write to what is not there, so the block is read apart and copied.
        assert_eq!(store.get(&mut [Get { key, into }]), [Read::Hit]);
        assert!(region.is_broken() && into.iter().all(|b| *b == 7));
        assert_eq!((store.stats().copied, store.stats().quarantined, store.stats().failed), (4096, 0, 0));
        assert!(after.iter().all(|b| *b == 0));
    }

    #[test]
    fn a_region_that_is_cut_reads_as_zeros_and_is_broken() {
        let fd = memory(4096 + 4 * 8192, SealFlags::empty());
        let region = Region::map(fd.try_clone().unwrap(), SHAPE).unwrap();
        let untouched = Region::map(memory(4096 + 4 * 8192, SealFlags::empty()), SHAPE).unwrap();
        // SAFETY: no other slice of these slots is in use while these are.
        unsafe {
            region.slot_mut(1).fill(7);
            assert!(!region.is_sealed() && !region.is_broken());
            ftruncate(&fd, 0).unwrap();
            assert!(region.slot(1).iter().all(|b| *b == 0));
            region.slot_mut(2).fill(1);
        }
        assert!(region.is_broken() && !untouched.is_broken());
    }
}
