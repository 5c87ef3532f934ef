//! Where is the ledger kept while nothing runs?
//!
//! A [`Store`] takes what changed, all or nothing. [`commit`] writes from a thread of its own, many
//! changes at a time, so that a change waits for one flush of the disk and not for one each.

pub mod codec;
pub mod commit;
pub mod memory;
pub mod rocks;

use super::book::Write;
use super::record::{Millis, Record};

/// A ledger as it was left.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    /// Every transfer, in no order.
    pub records: Vec<Record>,
    /// The latest time that was ever written: the ledger's clock does not go back behind it.
    pub clock: Millis,
    /// Records that could not be read.
    pub unreadable: usize,
}

/// Keeps the ledger.
pub trait Store: Send {
    /// What was left by the last process.
    ///
    /// # Errors
    /// Where the store cannot be read, or a newer kvd has written it.
    fn load(&mut self) -> Result<Kept, StoreError>;

    /// Writes all of `writes`, or nothing. When it returns they survive any crash.
    ///
    /// # Errors
    /// Where that cannot be promised.
    fn write(&mut self, writes: &[Write], clock: Millis) -> Result<(), StoreError>;
}

/// A store that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database says so.
    #[error("ledger of transfers: {0}")]
    Database(#[from] rocksdb::Error),
    /// Another version of kvd wrote it.
    #[error("ledger of transfers: is of format {found}, this kvd knows {known}")]
    Format {
        /// The format it is in.
        found: u64,
        /// The newest this kvd knows.
        known: u64,
    },
    /// The system gives no thread to write from.
    #[error("ledger of transfers: start a thread: {0}")]
    Thread(std::io::Error),
    /// It was closed, as a crash does.
    #[error("ledger of transfers: closed")]
    Closed,
}
