//! A table of rows that outlives the process, as the catalog needs it.

use std::collections::BTreeMap;

/// Rows by key.
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// A row to write, or to remove where there is no value.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// When a change must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On return, whatever happens to the machine.
    Synced,
    /// On return as far as this process goes; the machine may lose it, and all after it.
    Soon,
}

/// What a store does for the catalog. Changes of one call are all there later, or none of them is.
pub trait Store: Send + Sync {
    /// Every row.
    ///
    /// # Errors
    /// If they cannot be read.
    fn read(&self) -> Result<Rows, Trouble>;

    /// Writes `changes`, after all that was written before.
    ///
    /// # Errors
    /// If they cannot be written. They may be there later nevertheless.
    fn write(&self, changes: Vec<Change>, durability: Durability) -> Result<(), Trouble>;

    /// Makes everything written survive the machine.
    ///
    /// # Errors
    /// If that cannot be done.
    fn sync(&self) -> Result<(), Trouble>;
}

/// Why a store cannot be opened, read or written; each asks for something else to be done. `why` is
/// what the system or the library says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is not what was written.
    Damaged {
        /// What does not fit.
        why: String,
    },
    /// A later version wrote it.
    Newer {
        /// How that can be seen.
        why: String,
    },
    /// Another process has it open.
    Locked {
        /// How that can be seen.
        why: String,
    },
    /// The disk, or what we may take of it, is full.
    Full {
        /// The system's word for it.
        why: String,
    },
    /// We may not write there.
    Denied {
        /// The system's word for it.
        why: String,
    },
    /// Something else.
    Failed {
        /// What.
        why: String,
    },
}
