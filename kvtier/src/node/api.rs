//! What an engine may ask of a node's tiers.
//!
//! ```text
//!  a request begins:   lookup ──▶ where, per block          touch: count it, bring it up to RAM
//!  it is admitted:     load ──▶ bytes in the engine's memory
//!  a block is full:    store ◀── bytes from the engine's memory
//! ```
//!
//! Nothing here is asynchronous. `lookup`, `touch`, `lease`, `prefetch` and the pins never wait
//! for I/O; `load`, `store` and `flush` do, on the caller's thread. Who talks to engines has a few
//! threads for those ([`Jobs`](crate::store::Jobs) is a queue for them).
//!
//! Payloads are slices: of the region that an engine shares with the node, or of any memory. On a
//! page boundary they are read and written without a copy, as long as they go to and come from
//! disk. The other side of a region may change it at any time, so what is written is what was
//! there at some moment; a payload that changed between its checksum and its write does not verify
//! later and is a miss.

use std::os::fd::OwnedFd;

use crate::Lease;
use crate::policy::{BlockId, Owner, PinError, PinId, Tier};
use crate::store::{Get, Put, Read, StoreKey};

/// Blocks of one size. All calls but [`Tiers::pool`] and [`Tiers::owner`] are about one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub u32);

/// Where a block can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Where {
    /// Nowhere below the GPU.
    Nowhere,
    /// The node has begun a moment ago and has not read yet what its disk holds. To be asked
    /// again.
    Unknown,
    /// In this tier; of several, the fastest. Loading it can still show that it is lost.
    In(Tier),
}

/// What became of a block that an engine offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stored {
    /// It is in a tier now. It can be loaded at once; see [`Tiers::flush`] for when it survives a
    /// crash.
    Kept,
    /// It was there already.
    Known,
    /// No tier has room for it, or what is there is worth more.
    Refused,
    /// The write failed, or the disk takes no writes.
    Failed,
    /// The payload has another size than blocks of this pool.
    Size,
}

/// What was loaded from a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loads {
    /// Blocks, by [`Tier`]: from RAM, from disk, from shared storage.
    pub blocks: [u64; 3],
    /// Bytes copied in memory on the way. What is read from disk into memory on a page boundary is
    /// not.
    pub copied_bytes: u64,
}

/// There is no pool for blocks of this size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Blocks of no bytes, or more than a node may be asked for.
    #[error("blocks of {block_bytes} bytes, 1 to {most} wanted")]
    Size {
        /// What was asked for.
        block_bytes: usize,
        /// The most.
        most: usize,
    },
    /// What the node may use is given to other pools.
    #[error("no room for a pool of {block_bytes} byte blocks: {reason}")]
    NoRoom {
        /// What was asked for.
        block_bytes: usize,
        /// What is missing.
        reason: String,
    },
}

/// More models and salts than owners can be told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} owners, no more can be told apart")]
pub struct OwnersFull(pub usize);

/// A node's tiers, as engines see them. From any thread.
pub trait Tiers: Send + Sync + std::fmt::Debug {
    /// The pool for blocks of so many bytes; makes it if it is not there, which reserves its space
    /// and waits for that.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    fn pool(&self, block_bytes: usize) -> Result<PoolId, PoolError>;

    /// Whose quota blocks of a model and cache salt count against; the empty salt is a salt, too.
    ///
    /// # Errors
    ///
    /// [`OwnersFull`].
    fn owner(&self, model: &str, salt: &str) -> Result<Owner, OwnersFull>;

    /// An engine of `model` is going to call blocks by this fingerprint.
    fn expect(&self, model: &str, fingerprint: u128) {
        let _ = (model, fingerprint);
    }

    /// Where each of `keys` can be had. Only looks: nothing is moved and nothing learned.
    fn lookup(&self, pool: PoolId, keys: &[StoreKey]) -> Vec<Where>;

    /// A request wants `chain`, root first. Counts as one use of its blocks, and what is below RAM
    /// is on its way up when this returns. To be called once per request.
    fn touch(&self, pool: PoolId, chain: &[StoreKey]);

    /// Reads blocks from the fastest tier that each is in, and verifies them. What each came to,
    /// in their order. After anything but [`Read::Hit`], the memory means nothing.
    fn load(&self, pool: PoolId, blocks: &mut [Get<'_>]) -> Vec<Read>;

    /// A block in RAM, to be read where it lies. `None` where it is not in RAM.
    fn lease(&self, pool: PoolId, key: StoreKey) -> Option<Lease>;

    /// The file that leased blocks of this pool are in, for another process to map and read, and
    /// its bytes. `None` where there is no RAM for them.
    fn arena(&self, pool: PoolId) -> Option<(OwnedFd, u64)> {
        let _ = pool;
        None
    }

    /// What was loaded from this pool so far.
    fn loads(&self, pool: PoolId) -> Loads {
        let _ = pool;
        Loads::default()
    }

    /// Offers blocks, chains root first. What became of each, in their order. When this returns,
    /// the payloads are not needed any more.
    fn store(&self, pool: PoolId, blocks: &[Put<'_>]) -> Vec<Stored>;

    /// Gives blocks up: their bytes may not be what they were said to be.
    fn disown(&self, pool: PoolId, keys: &[StoreKey]);

    /// Copies up to `most` blocks of `chain`, from its root on, to RAM before they are asked for,
    /// and pins what is there for `ttl` ms. Not a use.
    ///
    /// # Errors
    ///
    /// [`PinError::TooMany`]; then nothing is copied either.
    fn prefetch(&self, pool: PoolId, chain: &[BlockId], most: u32, ttl: u64) -> Result<PinId, PinError>;

    /// Keeps the blocks of `chain` that are here, contiguous from its root, where they are for
    /// `ttl` ms.
    ///
    /// # Errors
    ///
    /// [`PinError::TooMany`].
    fn pin(&self, pool: PoolId, chain: &[BlockId], ttl: u64) -> Result<PinId, PinError>;

    /// Moves a pin's end to `ttl` ms from now.
    ///
    /// # Errors
    ///
    /// [`PinError::Unknown`].
    fn renew(&self, pool: PoolId, pin: PinId, ttl: u64) -> Result<(), PinError>;

    /// Takes a pin back.
    ///
    /// # Errors
    ///
    /// [`PinError::Unknown`].
    fn unpin(&self, pool: PoolId, pin: PinId) -> Result<(), PinError>;

    /// Waits until the moves decided so far are made and what is on disk survives a crash. False
    /// where that could not be written down.
    fn flush(&self, pool: PoolId) -> bool;
}
