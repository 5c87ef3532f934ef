//! What other nodes reach, too: blocks in shared storage.
//!
//! [`Shared`] is what a node asks of it. `Objects` keeps blocks in an object store (S3 and what speaks
//! like it, a mounted file system), a few of a chain in each object:
//!
//! ```text
//!   <model>/<group>/<hash of all names>      payload, payload, ..., trailer (names, checksums), footer
//! ```

#[cfg(feature = "objects")]
mod objects;
#[cfg(feature = "objects")]
mod trailer;

use crate::policy::Owner;
use crate::store::{Get, Put, Read, StoreKey};

#[cfg(feature = "objects")]
pub use objects::{Objects, SharedError, store_at};

/// Shared storage, as a node uses it. All methods block.
pub trait Shared: Send + Sync + std::fmt::Debug {
    /// Stores blocks that follow each other. Whether each is there afterwards, by us or by
    /// somebody before us.
    fn put(&self, blocks: &[Put<'_>]) -> Vec<bool>;

    /// Reads blocks and verifies them.
    fn get(&self, blocks: &mut [Get<'_>]) -> Vec<Read>;

    /// What others have put or removed since this was last asked, and everything the first time.
    fn news(&self) -> News;
}

/// What has changed in shared storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Blocks that are there now.
    pub came: Vec<(StoreKey, Owner)>,
    /// Blocks that are not any more.
    pub left: Vec<StoreKey>,
}
