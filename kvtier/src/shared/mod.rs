//! What other nodes reach, too: blocks in shared storage.

use crate::store::{Get, Put, Read, StoreKey};

/// Shared storage, as a node uses it. All methods block.
pub trait Shared: Send + Sync + std::fmt::Debug {
    /// Stores blocks that follow each other. Whether each is there afterwards, by us or by
    /// somebody before us.
    fn put(&self, blocks: &[Put<'_>]) -> Vec<bool>;

    /// Reads blocks and verifies them.
    fn get(&self, blocks: &mut [Get<'_>]) -> Vec<Read>;

    /// Whether each of some blocks is there, as far as can be told.
    fn find(&self, keys: &[StoreKey]) -> Vec<bool>;
}
