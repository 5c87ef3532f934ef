//! Where on disk do blocks lie, and are they still what was written?
//!
//! ```text
//!   put ──▶ slots in a row ──▶ segments        commit: sync segments, then write
//!                │                                     records, then sync those
//!                └─ pending records ──▶ journal ──▶ table
//!   get ──▶ index ──▶ read ──▶ verify ──▶ bytes, or a miss
//! ```
//!
//! A [`Store`] has a fixed number of slots, each for one block, in files whose space is reserved
//! when they are made. Which block is in which slot is in memory, in a table of 128 bytes per slot, and in a
//! journal of what has changed since that was written, to which [`Store::commit`] adds in groups.
//!
//! What is never returned is a wrong byte: a payload's checksum is keyed with the block's whole
//! name and with the number of the write, so a payload that is torn, flipped, in another's place
//! or of another time does not verify and is a miss. Hence the order of writes is a matter of how
//! much survives a crash, not of what is right.
//!
//! A store has its folder alone: nobody else may write to, cut or replace the files in it.
//!
//! Read `store` for what happens on put, get and commit, `meta` for what is written down, `slots`
//! for where blocks go, `direct` and `mapped` for the two ways to the disk.
//!
//! ```
//! use kvtier::store::{Backend, Get, Layout, Put, Read, Store, StoreKey};
//! # let folder = std::env::temp_dir().join(format!("kvtier-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//!
//! let layout = Layout { block_bytes: 4096, slots: 16, segment_slots: 8 };
//! let (store, blocks) = Store::open(&folder, layout, Backend::Auto)?;
//! assert!(blocks.is_empty());
//!
//! let key = StoreKey::new(0x1234, 0, b"an engine's hash")?;
//! let put = Put { key, after: None, owner: Default::default(), payload: &[7; 4096] };
//! store.put(&[put]).remove(0)?;
//! store.commit()?;
//!
//! let mut payload = vec![0; 4096];
//! let read = store.get(&mut [Get { key, into: &mut payload }]);
//! assert_eq!((read[0], payload[0]), (Read::Hit, 7));
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod direct;
#[cfg(test)]
mod faulty;
mod io;
mod jobs;
mod journal;
mod key;
mod mapped;
mod medium;
mod meta;
mod record;
mod slots;
#[expect(clippy::module_inception, reason = "the store itself beside its parts")]
mod store;
mod table;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wrong_bytes;

pub use io::parents_first;
pub(crate) use io::{TOGETHER, slot_bytes};
pub use jobs::{Jobs, Urgency};
pub(crate) use key::KEY_BYTES;
pub use key::{HASH_BYTES, HashLength, StoreKey};
pub use medium::Buffer;
pub use record::Record;
pub use store::{Get, Put, Read, Stats, Store};

/// The number of a write: the store's life above this many bits, its writes in that life below.
const LIFE_SHIFT: u32 = 40;

/// How a store's files are cut. Fixed when they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Layout {
    /// Bytes of a block's payload. A slot is as large, rounded up to pages of 4096.
    pub block_bytes: usize,
    /// Slots in all.
    pub slots: u32,
    /// Slots per file.
    pub segment_slots: u32,
}

/// By which way to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Direct, or mapped where direct I/O is refused.
    #[default]
    Auto,
    /// Past the page cache (`O_DIRECT`).
    Direct,
    /// Mapped to memory. Slower to write, and an error of the disk ends the process.
    Mapped,
}

/// A store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Blocks of no bytes, no slots, or files of no slots.
    #[error("{layout:?} holds nothing")]
    Empty {
        /// What was asked for.
        layout: Layout,
    },
    /// The files there are cut in another way.
    #[error("the store has {found:?}, not {wanted:?}")]
    Layout {
        /// What is there.
        found: Layout,
        /// What was asked for.
        wanted: Layout,
    },
    /// Another store has the folder.
    #[error("the folder is in use")]
    InUse,
    /// The system refuses.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// A block was not stored.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// Blocks of this store have another size.
    #[error("payload of {got} bytes, not {wanted}")]
    Size {
        /// Its size.
        got: usize,
        /// The store's.
        wanted: usize,
    },
    /// No slot is free.
    #[error("no slot is free")]
    Full,
    /// An earlier write failed; see [`Store::probe`].
    #[error("the store takes no writes")]
    ReadOnly,
    /// The write failed. The store takes no writes from now on.
    #[error("write slot {slot}: {kind}")]
    Io {
        /// The first slot of the write.
        slot: u32,
        /// Why.
        kind: std::io::ErrorKind,
    },
}

/// Changes were not written down. They are kept for the next time, and the store takes no writes
/// until [`Store::probe`] finds that it can.
#[derive(Debug, thiserror::Error)]
#[error("write {changes} changes down")]
pub struct CommitError {
    /// How many.
    pub changes: usize,
    /// Why not.
    pub source: std::io::Error,
}
