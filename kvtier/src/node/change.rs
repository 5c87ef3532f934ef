//! What is told about blocks: each time a copy came or left.

use crate::policy::{Owner, Tier};
use crate::store::StoreKey;

/// A copy came or left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Of which block.
    pub key: StoreKey,
    /// Where.
    pub tier: Tier,
    /// Whether it came.
    pub came: bool,
}

impl Change {
    /// A copy is there now.
    pub fn came(key: StoreKey, tier: Tier) -> Change {
        Change { key, tier, came: true }
    }

    /// A copy is not there any more, or will not be in a moment.
    pub fn left(key: StoreKey, tier: Tier) -> Change {
        Change { key, tier, came: false }
    }
}

/// Who is told. Called in the order in which things happen, with the pool's lock held: it must not
/// wait for anything but a short write.
pub trait Journal: Send + Sync + std::fmt::Debug {
    /// These happen now, in this order.
    fn tell(&self, changes: &[Change]);

    /// Remembers that a block of a pool is in shared storage and whose it is, or (`None`) that it is
    /// not: the node would not find that out by itself after a restart.
    fn shared(&self, block_bytes: usize, key: &StoreKey, owner: Option<Owner>);
}
