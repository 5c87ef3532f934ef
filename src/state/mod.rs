//! What does kvd know again after a restart?
//!
//! ```text
//! Catalog ─ contents.rs ─ format.rs ─▶ rows ─ trait Store ─▶ rocks.rs   RocksDB, `catalog/` in the data directory
//!  │  ▲                                                 └──▶ memory.rs  nothing survives
//!  │  └ open.rs: the lock, a damaged one set aside, import.rs: registrations of before
//!  └ publishers, lives and cursors, snapshots, kvd's own incarnation
//! ```
//!
//! All of it is small, so it is in memory whole; the disk is read once, at the start, and a change is
//! written as the difference of rows. Registrations and snapshots are on disk when the call returns.
//! Lives are written with the next of those, or by [`Catalog::flush`], so that who follows an engine
//! never waits for a disk. Nothing outside `rocks.rs` knows RocksDB; `docs/formats.md` has the rows.

mod catalog;
mod contents;
mod error;
mod format;
mod import;
mod memory;
mod open;
mod rocks;
mod store;
#[cfg(test)]
mod tests;

pub use catalog::Catalog;
pub use contents::{Cursor, Snapshot, SnapshotCursor, SnapshotState};
pub use error::CatalogError;
