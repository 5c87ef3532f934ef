//! What an index holds, as bytes: to be read again after a restart, or by another replica.
//!
//! ```text
//! Index ─ cut, one holder at a time ─▶ record ─▶ frame ─▶ bytes ─▶ file, gRPC stream
//! Index ◀─ restore ◀──────────────── record ◀─ frame ◀─ bytes ◀──┘
//! ```
//!
//! A holder is *cut* by whoever applies its batches, between two of them, so that what is written is
//! what it had at the cursor handed in. Blocks are written once, however many holders have them. Both
//! directions go in steps that the caller spaces out, and neither opens, waits for or schedules anything.
//! The bytes are laid down in `docs/formats.md`; a reader takes them from anywhere in pieces of any
//! length and believes nothing.
//!
//! Read [`cut`] and [`restore`] for what happens, `record` and `frame` for the bytes, `digest` for how
//! two replicas compare what they have.
//!
//! ```
//! use std::sync::Arc;
//! use kvindex::snapshot::{Cursor, Restore, Writer};
//! use kvindex::{HolderSpec, Index, IndexConfig};
//!
//! let index = Arc::new(Index::new(IndexConfig::default()));
//! let pod = index.attach(HolderSpec::new("default", "llama", "10.0.0.1:8000", 0));
//!
//! // On the thread that applies the pod's batches; nothing else is applied to it until it is done.
//! let (mut writer, mut bytes) = (Writer::new(index.clone()), Vec::new());
//! writer.begin(pod, b"10.0.0.1:8000", Cursor { seq: Some(41), ts: 1.5 })?;
//! while writer.step(64 << 10, &mut bytes)?.is_more() {}
//! // When every pod is: what nobody holds but a lower tier may still name, and the end.
//! writer.begin_ghosts()?;
//! while writer.step(64 << 10, &mut bytes)?.is_more() {}
//! writer.finish(&mut bytes)?;
//!
//! // After a restart: attach the holders, then hand in the bytes in whatever pieces they come.
//! let index = Arc::new(Index::new(IndexConfig::default()));
//! let pod = index.attach(HolderSpec::new("default", "llama", "10.0.0.1:8000", 0));
//! let mut restore = Restore::new(index.clone());
//! for piece in bytes.chunks(1000) {
//!     restore.feed(piece, |found| (found.label == b"10.0.0.1:8000").then_some(pod))?;
//!     for done in restore.restored() {
//!         assert_eq!((done.holder, done.cursor.seq), (pod, Some(41)));
//!     }
//! }
//! restore.finish()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod cut;
mod digest;
mod frame;
mod record;
pub mod restore;
mod target;

pub use cut::{CutError, Step, Writer};
pub use digest::{BUCKETS, Digest};
pub use record::Totals;
pub use restore::{Found, Restore, RestoreError, Restored};

/// Where in its event stream a holder was when it was cut.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cursor {
    /// Sequence number of the last batch applied; `None` before the first.
    pub seq: Option<u64>,
    /// The time that batch tells.
    pub ts: f64,
}

/// Bytes that are no snapshot this version can read. `at` counts bytes from the first one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It begins otherwise.
    #[error("not a snapshot of kvd: it begins with {found:02x?}")]
    Magic {
        /// The first bytes.
        found: [u8; 8],
    },
    /// Another version of the format.
    #[error("snapshot of version {found}, this is written for version {}", frame::VERSION)]
    Version {
        /// What it says.
        found: u32,
    },
    /// What was written is not what is read.
    #[error("byte {at}: the checksum does not fit what it stands for")]
    Checksum {
        /// Where the header or chunk begins.
        at: u64,
    },
    /// A chunk of no bytes, or of too many.
    #[error("byte {at}: a chunk of {len} bytes, 1 to {} are allowed", frame::MAX_CHUNK)]
    ChunkLength {
        /// Where the chunk begins.
        at: u64,
        /// What it says.
        len: u32,
    },
    /// A record that no writer writes.
    #[error("byte {at}: {what}")]
    Malformed {
        /// Where.
        at: u64,
        /// What is wrong, in words.
        what: &'static str,
    },
    /// It ends before it says so: what was being written when its writer died, or a part of it.
    #[error("it ends after byte {at} and does not say that it is complete")]
    Truncated {
        /// Bytes there are.
        at: u64,
    },
    /// Bytes after the end.
    #[error("byte {at}: bytes after the end")]
    Trailing {
        /// Where they begin.
        at: u64,
    },
    /// The end says something else than was read.
    #[error("it says of itself {said:?}, and there are {found:?}")]
    Totals {
        /// What the end says.
        said: Box<Totals>,
        /// What was read.
        found: Box<Totals>,
    },
}
