//! One slot's memory and who may touch it: its writer alone, then any number of readers.
//!
//! There is no lock around payloads. The mapping itself is moved: idle in the [`Pool`], then
//! owned by a [`Reserved`], then shared by the arena and its [`Lease`]s until the last of them
//! lets go. So the borrow checker sees that nothing is reused while it is read.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;
use twox_hash::XxHash3_64;

use crate::arena::Table;

/// What a payload is: the block it belongs to, by a hash of its owner's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub u64);

/// A slot as long as it holds one payload; the next one is of another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId {
    /// Which slot.
    pub index: u32,
    /// Which of the payloads it has held, from 1.
    pub generation: u64,
}

/// A payload is not what was committed under that key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("slot {} generation {} has checksum {computed:#x}, not {committed:#x}", slot.index, slot.generation)]
pub struct Corrupt {
    /// Where.
    pub slot: SlotId,
    /// The checksum at commit.
    pub committed: u64,
    /// The checksum now.
    pub computed: u64,
}

/// A slot's memory. Whoever has it, has it alone.
#[derive(Debug)]
pub(crate) struct Slot {
    pub id: SlotId,
    /// In the arena's file.
    pub offset: u64,
    pub bytes: MmapMut,
}

impl Slot {
    /// Keyed, so that a payload that is in the wrong place or from another time does not verify.
    fn checksum(&self, key: Key) -> u64 {
        let mut name = [0; 16];
        name[..8].copy_from_slice(&key.0.to_le_bytes());
        name[8..].copy_from_slice(&self.id.generation.to_le_bytes());
        XxHash3_64::oneshot_with_seed(XxHash3_64::oneshot(&name), &self.bytes)
    }
}

/// Slots that hold nothing, and how many do.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub idle: Vec<Slot>,
    /// Slots being written.
    pub reserved: usize,
    /// Slots with a payload, whether still held by the arena or only leased.
    pub filled: usize,
}

/// A slot to be written, owned alone. Dropped without [`commit`](Self::commit), it is idle again.
///
/// It reads as what it last held; write all of it.
#[derive(Debug)]
pub struct Reserved {
    slot: Option<Slot>,
    pool: Arc<Mutex<Pool>>,
    table: Arc<Mutex<Table>>,
}

impl Reserved {
    pub(crate) fn new(slot: Slot, pool: Arc<Mutex<Pool>>, table: Arc<Mutex<Table>>) -> Reserved {
        Reserved { slot: Some(slot), pool, table }
    }

    /// Makes the payload readable under the id returned.
    pub fn commit(mut self, key: Key) -> SlotId {
        let slot = self.slot.take().expect("only commit takes the slot, and it consumes self");
        let id = slot.id;
        let checksum = slot.checksum(key);
        let held = Held { slot: Some(slot), checksum, pool: self.pool.clone() };
        {
            let mut pool = lock(&self.pool);
            pool.reserved -= 1;
            pool.filled += 1;
        }
        lock(&self.table).insert(id, Arc::new(held));
        id
    }
}

impl Deref for Reserved {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.slot.as_ref().map_or(&[], |s| &s.bytes)
    }
}

impl DerefMut for Reserved {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.slot.as_mut().map_or(&mut [], |s| &mut s.bytes)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let mut pool = lock(&self.pool);
            pool.reserved -= 1;
            pool.idle.push(slot);
        }
    }
}

/// A payload, alive while the arena holds it or someone leases it.
#[derive(Debug)]
pub(crate) struct Held {
    /// Taken only by `drop`.
    pub slot: Option<Slot>,
    checksum: u64,
    pool: Arc<Mutex<Pool>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let mut pool = lock(&self.pool);
            pool.filled -= 1;
            pool.idle.push(slot);
        }
    }
}

/// A payload that can be read as long as this lives, even if it is freed meanwhile.
#[derive(Clone, Debug)]
pub struct Lease(pub(crate) Arc<Held>);

impl Lease {
    /// Where the payload is in [`Arena::file`](crate::Arena::file).
    pub fn offset(&self) -> u64 {
        self.0.slot.as_ref().map_or(0, |slot| slot.offset)
    }

    /// Checks that the payload is what was committed under `key`, by its checksum.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] where a byte has changed or the payload is another block's.
    pub fn verify(&self, key: Key) -> Result<(), Corrupt> {
        let Some(slot) = &self.0.slot else { return Ok(()) };
        let (committed, computed) = (self.0.checksum, slot.checksum(key));
        if committed == computed { Ok(()) } else { Err(Corrupt { slot: slot.id, committed, computed }) }
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.slot.as_ref().map_or(&[], |s| &s.bytes)
    }
}

/// No code panics under these locks, so a poisoned one still guards what is right.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
