//! The pools of a node, and what its caller's threads do with them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::api::PoolId;
use super::catalog::{Catalog, CatalogError, PoolRow};
use super::hints::Hinted;
use super::pool::Pool;
use super::schedule::Lane;
use super::streams::Streams;
use crate::ArenaError;
use crate::policy::{Config, Owner, Tier};
use crate::shared::Shared;
use crate::slot::lock;
use crate::store::{self, Backend, OpenError, Read, StoreKey};

/// Milliseconds since some moment: the wall clock's, or a test's.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What a node has to do with.
pub struct NodeConfig {
    /// What it is called; events name it as `kvtier:<name>`.
    pub name: String,
    /// Where its files are.
    pub folder: PathBuf,
    /// Bytes of RAM for each pool; 0 for none.
    pub ram_bytes: u64,
    /// Bytes of disk for each pool; 0 for none.
    pub disk_bytes: u64,
    /// Pools, at most.
    pub pools: usize,
    /// By which way to the disk.
    pub backend: Backend,
    /// The policy. How many blocks RAM and disk hold is worked out from the bytes above.
    pub policy: Config,
    /// How long an engine's offer waits for a slot.
    pub patience: Duration,
    /// The time.
    pub clock: Clock,
    /// Shared storage for blocks of so many bytes, where there is one.
    pub shared: Option<MakeShared>,
}

/// Makes what reaches shared storage for blocks of so many bytes.
pub type MakeShared = Box<dyn Fn(usize) -> Arc<dyn Shared> + Send + Sync>;

impl std::fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeConfig")
            .field("name", &self.name)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// A node cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its catalogue.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A pool's disk.
    #[error("open the disk of {block_bytes} byte blocks")]
    Disk {
        /// Which pool.
        block_bytes: usize,
        /// Why not.
        source: OpenError,
    },
    /// A disk was not written. It takes no more writes; see [`Node::probe`].
    #[error("write to disk")]
    Commit,
    /// A pool's RAM.
    #[error(transparent)]
    Ram(#[from] ArenaError),
    /// A folder.
    #[error("make {}", folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// What a scrub has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Blocks read.
    pub checked: u64,
    /// Blocks that were not what had been written, and are given up.
    pub bad: u64,
}

/// A pool, and how it was made.
pub(super) struct Place {
    pub pool: Arc<Pool>,
    pub row: PoolRow,
}

/// RAM, disk and shared storage of one machine.
pub struct Node {
    pub(super) config: NodeConfig,
    pub(super) catalog: Arc<Catalog>,
    pub(super) streams: Arc<Streams>,
    pub(super) pools: RwLock<Vec<Place>>,
    pub(super) owners: Mutex<Vec<(String, String)>>,
    /// Held while a pool is made.
    pub(super) making: Mutex<()>,
    /// Counts the processes that ran this node.
    pub(super) life: u32,
    /// Counts what may have given the movers something to do.
    pub(super) bell: (Mutex<u64>, Condvar),
    pub(super) closed: AtomicBool,
    pub(super) draining: AtomicBool,
    pub(super) hinted: Mutex<Hinted>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Node {
    pub(super) fn all(&self) -> Vec<(Arc<Pool>, PoolRow)> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools.iter().map(|place| (place.pool.clone(), place.row)).collect()
    }

    pub(super) fn at(&self, pool: PoolId) -> Option<Arc<Pool>> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools.get(pool.0 as usize).map(|place| place.pool.clone())
    }

    pub(super) fn of_size(&self, block_bytes: usize) -> Option<Arc<Pool>> {
        self.all().into_iter().find(|(_, row)| row.layout.block_bytes == block_bytes).map(|(pool, _)| pool)
    }

    pub(super) fn now(&self) -> u64 {
        (self.config.clock)()
    }

    /// Something may be to be done.
    pub(super) fn ring(&self) {
        *lock(&self.bell.0) += 1;
        self.bell.1.notify_all();
    }

    /// Makes one batch of moves, the most urgent there is. False where there is none.
    pub fn step(&self) -> bool {
        let pools = self.all();
        Lane::IO.into_iter().any(|lane| pools.iter().any(|(pool, _)| pool.step(lane)))
    }

    /// Makes moves until [`close`](Self::close). For a few threads of the caller's.
    pub fn work(&self) {
        while !self.closed.load(Ordering::Acquire) {
            let rung = *lock(&self.bell.0);
            if self.step() {
                // What was made may let others begin.
                self.ring();
                continue;
            }
            let bell = lock(&self.bell.0);
            let quiet = |now: &mut u64| *now == rung && !self.closed.load(Ordering::Acquire);
            drop(self.bell.1.wait_while(bell, quiet).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Lets [`work`](Self::work) end. What is written down is all that was committed.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.ring();
    }

    /// Whether [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Writes down what has changed: payloads, then records, then how far events are true. To be
    /// called every 50 ms, say.
    ///
    /// # Errors
    ///
    /// Where a disk or the catalogue could not be written. The changes are kept for the next time.
    pub fn commit(&self) -> Result<usize, NodeError> {
        let pools = self.all();
        // A change is told with its pool's lock held, so with all of them held nothing is between
        // being told and being there.
        let stand = {
            let _held: Vec<_> = pools.iter().map(|(pool, _)| lock(&pool.state)).collect();
            self.streams.stand()
        };
        let mut changes = 0;
        let mut failed = false;
        for (pool, _) in &pools {
            if let Some(disk) = pool.disk() {
                match disk.commit() {
                    Ok(count) => changes += count,
                    Err(_) => {
                        failed = true;
                        pool.heed_disk(&mut lock(&pool.state));
                    }
                }
            }
        }
        if failed {
            return Err(NodeError::Commit);
        }
        self.streams.settled(&stand)?;
        self.catalog.sync()?;
        Ok(changes)
    }

    /// Finds out whether disks that take no writes can take them again, and looks at slots in
    /// quarantine; forgets pins whose time is over. To be called every few seconds. Returns how many pools take writes.
    pub fn probe(&self) -> usize {
        let mut writable = 0;
        self.catalog.probe();
        for (pool, _) in self.all() {
            pool.end_pins(&self.catalog, self.now());
            let Some(disk) = pool.disk() else { continue };
            let stats = disk.stats();
            let takes = if stats.writable && stats.quarantined == 0 { true } else { disk.probe(None).0 };
            pool.heed_disk(&mut lock(&pool.state));
            writable += usize::from(takes);
        }
        writable
    }

    /// Reads every block on disk and gives up those that are not what was written. Takes as long as
    /// that does; `go_on` is asked between batches.
    pub fn scrub(&self, pool: PoolId, mut go_on: impl FnMut(Scrubbed) -> bool) -> Scrubbed {
        let mut seen = Scrubbed::default();
        let Some(pool) = self.at(pool) else { return seen };
        let names = pool.disk().map(store::Store::names).unwrap_or_default();
        let together = ((1 << 20) / pool.block_bytes.max(1)).max(1);
        for keys in names.chunks(together) {
            if !go_on(seen) {
                break;
            }
            for read in pool.read_disk(keys) {
                seen.checked += u64::from(read == Read::Hit || read == Read::Lost);
                seen.bad += u64::from(read == Read::Lost);
            }
        }
        seen
    }

    /// Copies what is in RAM alone to disk and takes no more offers, so that nothing is lost when
    /// the machine is taken away. Returns how many blocks are still to be written.
    pub fn drain(&self) -> usize {
        self.draining.store(true, Ordering::Release);
        let left = self.all().iter().map(|(pool, _)| pool.drain()).sum();
        self.ring();
        left
    }

    /// Takes offers again.
    pub fn undrain(&self) {
        self.draining.store(false, Ordering::Release);
    }

    /// Whether no offers are taken.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Gives blocks up wherever they are, unless they are pinned. How many copies.
    pub fn evict(&self, pool: PoolId, keys: &[StoreKey]) -> usize {
        let evicted = self.at(pool).map_or(0, |pool| pool.evict(keys));
        self.ring();
        evicted
    }

    /// Allows an owner so many blocks in a tier of a pool, from now on and after restarts.
    ///
    /// # Errors
    ///
    /// Where it cannot be written down; it holds until the end of this process all the same.
    pub fn set_quota(&self, pool: PoolId, owner: Owner, tier: Tier, blocks: u32) -> Result<(), NodeError> {
        let Some(pool) = self.at(pool) else { return Ok(()) };
        pool.set_quota(owner, tier, blocks);
        self.ring();
        self.catalog.set_quota(pool.block_bytes, tier, owner, blocks)?;
        Ok(())
    }

    /// Learns what others have put to and removed from shared storage. Waits for that.
    pub fn refresh_shared(&self) {
        for (pool, _) in self.all() {
            if let Some(shared) = &pool.shared {
                pool.learn_shared(&shared.news());
            }
        }
    }
}
