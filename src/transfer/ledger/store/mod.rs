//! Where is the ledger kept while nothing runs?
//!
//! A [`Store`] takes what changed. [`commit`] writes from a thread of its own, many
//! changes at a time, so that a change waits for one flush of the disk and not for one each.
//! A store that several replicas share also says what of it is this one's.

pub mod codec;
pub mod commit;
pub mod memory;
pub mod rocks;
pub mod valkey;

use std::time::{Duration, Instant};

use super::book::Write;
use super::record::{Millis, Record, TransferId};

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
    /// What was left by the last process, or by another that is gone.
    ///
    /// # Errors
    /// Where the store cannot be read, or a newer kvd has written it.
    fn load(&mut self) -> Result<Kept, StoreError>;

    /// Writes all of `writes`. When it returns they survive any crash; each of them is written whole or not at all.
    ///
    /// # Errors
    /// Where that cannot be promised: any of them may be written, and writing them again is right. With
    /// [`StoreError::Lost`] none of the lost ones is.
    fn write(&mut self, writes: &[Write], clock: Millis) -> Result<(), StoreError>;

    /// How often [`keep`](Self::keep) is to be called; `None` = never, because nobody else uses the store.
    fn beat(&self) -> Option<Duration> {
        None
    }

    /// Keeps transfers this process's own, and takes over those that nobody has.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn keep(&mut self, _clock: Millis) -> Result<Kept, StoreError> {
        Ok(Kept::default())
    }

    /// Until when it is certain that nobody else has this process's transfers; `None` = for good.
    fn held_until(&self) -> Option<Instant> {
        None
    }

    /// Lets others have them; nothing is written after this.
    fn leave(&mut self) {}
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
    /// The servers say so.
    #[error("ledger of transfers: {0}")]
    Servers(#[from] redis::RedisError),
    /// Another replica has these now.
    #[error("ledger of transfers: {} are another replica's now", .0.len())]
    Lost(Vec<TransferId>),
    /// The servers lack what was written before: everything is to be written again.
    #[error("ledger of transfers: the servers lost what was written last")]
    RolledBack,
    /// It was closed, as a crash does.
    #[error("ledger of transfers: closed")]
    Closed,
}
