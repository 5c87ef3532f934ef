//! The pools of a node, whose blocks they are, and what is told and written down of them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::api::{PoolError, PoolId};
use super::catalog::{Catalog, CatalogError, PoolRow};
use super::change::{Change, Journal};
use super::pool::{Moves, Pool};
use super::schedule::Lane;
use super::streams::{Numbered, Publish, StreamStats, Streams};
use crate::policy::{self, Config, Owner, Tier};
use crate::shared::Shared;
use crate::slot::lock;
use crate::store::{self, Backend, Layout, OpenError, Read, Record, StoreKey};
use crate::{Arena, ArenaError};

/// Milliseconds since some moment: the wall clock's, or a test's.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Bytes of a file of slots.
const SEGMENT_BYTES: u64 = 1 << 30;
/// Largest block.
const MOST_BLOCK_BYTES: usize = 1 << 28;
/// Slots that RAM has beside those that the planner knows of: for blocks that have to leave and
/// are not on disk yet.
fn spare(slots: u32) -> u32 {
    (slots / 8).clamp(8, 256)
}

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

/// One pool, as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    /// Which.
    pub pool: PoolId,
    /// Bytes per block.
    pub block_bytes: usize,
    /// Blocks that RAM is to hold.
    pub ram_blocks: u32,
    /// Blocks that the disk is to hold.
    pub disk_blocks: u32,
    /// What the policy knows and has decided.
    pub policy: policy::Stats,
    /// What the disk holds and has done; `None` where there is none or it is not open yet.
    pub disk: Option<store::Stats>,
    /// Blocks known to be in shared storage.
    pub shared: usize,
    /// What was moved.
    pub moves: Moves,
    /// Moves decided and not made yet: to RAM, to disk, to shared storage.
    pub waiting: [usize; 3],
    /// The policy knows all that the disk holds.
    pub restored: bool,
}

/// What a scrub has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Blocks read.
    pub checked: u64,
    /// Blocks that were not what had been written, and are given up.
    pub bad: u64,
}

struct Place {
    pool: Arc<Pool>,
    row: PoolRow,
}

/// RAM, disk and shared storage of one machine.
pub struct Node {
    config: NodeConfig,
    pub(super) catalog: Arc<Catalog>,
    pub(super) streams: Arc<Streams>,
    pools: RwLock<Vec<Place>>,
    pub(super) owners: Mutex<Vec<(String, String)>>,
    /// Held while a pool is made.
    making: Mutex<()>,
    /// Counts what may have given the movers something to do.
    bell: (Mutex<u64>, Condvar),
    pub(super) closed: AtomicBool,
    draining: AtomicBool,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Node {
    /// A node with the pools it had. Their disks are opened by [`recover`](Self::recover); until
    /// then, what they hold is not known.
    ///
    /// # Errors
    ///
    /// [`NodeError`].
    pub fn open(config: NodeConfig, publish: Arc<dyn Publish>) -> Result<Node, NodeError> {
        let folder = config.folder.join("catalog");
        std::fs::create_dir_all(&folder)
            .map_err(|source| NodeError::Folder { folder: folder.clone(), source })?;
        let catalog = Arc::new(Catalog::open(&folder)?);
        let owner = format!("kvtier:{}", config.name);
        let streams = Streams::open(catalog.clone(), publish, config.clock.clone(), owner)?;
        let node = Node {
            streams: Arc::new(streams),
            pools: RwLock::default(),
            owners: Mutex::new(catalog.owners()?),
            making: Mutex::default(),
            bell: (Mutex::new(0), Condvar::new()),
            closed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            catalog,
            config,
        };
        for row in node.catalog.pools()? {
            node.add(row)?;
        }
        for (block_bytes, tier, owner, blocks) in node.catalog.quotas()? {
            if let Some(pool) = node.of_size(block_bytes) {
                pool.set_quota(owner, tier, blocks);
            }
        }
        Ok(node)
    }

    fn add(&self, row: PoolRow) -> Result<PoolId, NodeError> {
        let bytes = row.layout.block_bytes;
        let arena = match row.ram {
            0 => None,
            blocks => Some(Arena::new(bytes, blocks + spare(blocks))?),
        };
        let shared = self.config.shared.as_ref().map(|make| make(bytes));
        let policy = Config { cpu: row.ram, disk: row.layout.slots, ..self.config.policy.clone() };
        let journal: Arc<dyn Journal> = self.streams.clone();
        let pool = Pool::new(bytes, policy, arena, shared, journal, self.config.patience);
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        pools.push(Place { pool: Arc::new(pool), row });
        Ok(PoolId(pools.len() as u32 - 1))
    }

    /// Opens the disks of all pools that are there from before, and tells what has changed since
    /// the last process told. Lookups are served meanwhile.
    ///
    /// # Errors
    ///
    /// [`NodeError`] where a disk cannot be opened; the others are.
    pub fn recover(&self) -> Result<(), NodeError> {
        let mut result = Ok(());
        let mut found: Vec<(Arc<Pool>, Vec<Record>)> = Vec::new();
        for (pool, row) in self.all() {
            match self.open_disk(&pool, row) {
                Ok(records) => found.push((pool, records)),
                Err(error) => {
                    pool.no_disk();
                    result = Err(error);
                }
            }
        }
        // Names before anything is told.
        let owners = lock(&self.owners).clone();
        for (_, records) in &found {
            let named: HashMap<u128, Owner> = records.iter().map(|r| (r.key.model, r.owner)).collect();
            for (model, owner) in named {
                if let Some((name, _)) = owners.get(usize::from(owner.0)) {
                    self.streams.name(model, name)?;
                }
            }
        }
        let streams = self.streams.stats().len() as u32;
        for stream in 0..streams {
            self.resume(stream)?;
        }
        for (pool, records) in found {
            pool.restore(&records);
        }
        for (pool, _) in self.all() {
            pool.restore_shared(&self.catalog.shared(pool.block_bytes)?);
        }
        self.ring();
        result
    }

    fn open_disk(&self, pool: &Pool, row: PoolRow) -> Result<Vec<Record>, NodeError> {
        let block_bytes = row.layout.block_bytes;
        if row.layout.slots == 0 {
            pool.no_disk();
            return Ok(Vec::new());
        }
        let folder = self.config.folder.join(format!("pool-{block_bytes}"));
        std::fs::create_dir_all(&folder)
            .map_err(|source| NodeError::Folder { folder: folder.clone(), source })?;
        let opened = pool.open_disk(&folder, row.layout, self.config.backend);
        opened.map_err(|source| NodeError::Disk { block_bytes, source })
    }

    /// What a stream told last, and is not so: the process ended between telling and writing down.
    fn resume(&self, stream: u32) -> Result<(), NodeError> {
        let pools = self.all();
        let mut gone = Vec::new();
        for (key, came) in self.streams.unsettled(stream)? {
            let disks = pools.iter().filter_map(|(pool, _)| pool.disk());
            let on: Vec<&store::Store> = disks.filter(|disk| disk.has(key)).collect();
            if came && on.is_empty() {
                gone.push(Change::left(key, Tier::Disk));
            } else if !came {
                // Another block may have been written to its place already.
                on.into_iter().for_each(|disk| {
                    disk.remove(key);
                });
            }
        }
        self.streams.resume(stream, &gone);
        Ok(())
    }

    fn all(&self) -> Vec<(Arc<Pool>, PoolRow)> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools.iter().map(|place| (place.pool.clone(), place.row)).collect()
    }

    pub(super) fn at(&self, pool: PoolId) -> Option<Arc<Pool>> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools.get(pool.0 as usize).map(|place| place.pool.clone())
    }

    fn of_size(&self, block_bytes: usize) -> Option<Arc<Pool>> {
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
    /// quarantine. To be called every few seconds. Returns how many pools take writes.
    pub fn probe(&self) -> usize {
        let mut writable = 0;
        self.catalog.probe();
        for (pool, _) in self.all() {
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

    /// How all pools stand.
    pub fn usage(&self) -> Vec<PoolUsage> {
        let usage = |(at, (pool, row)): (usize, (Arc<Pool>, PoolRow))| {
            let state = lock(&pool.state);
            PoolUsage {
                pool: PoolId(at as u32),
                block_bytes: pool.block_bytes,
                ram_blocks: row.ram,
                disk_blocks: row.layout.slots,
                policy: state.planner.stats(),
                disk: pool.disk().map(store::Store::stats),
                shared: state.shared.len(),
                moves: state.moves,
                waiting: Lane::IO.map(|lane| state.schedule.len(lane)),
                restored: state.restored,
            }
        };
        self.all().into_iter().enumerate().map(usage).collect()
    }

    /// What every model's stream has told.
    pub fn streams(&self) -> Vec<StreamStats> {
        self.streams.stats()
    }

    /// Models and salts, by owner.
    pub fn owners(&self) -> Vec<(String, String)> {
        lock(&self.owners).clone()
    }

    /// Batches of a stream from `seq` on, up to `most` at a time. Where that one is not kept: what
    /// stands for all before, in any number of batches.
    ///
    /// # Errors
    ///
    /// Where the log cannot be read.
    pub fn replay(&self, stream: u32, seq: u64, most: usize) -> Result<Vec<Numbered>, NodeError> {
        if let Some(batches) = self.streams.replay(stream, seq, most)? {
            return Ok(batches);
        }
        let pools = self.all();
        let states: Vec<_> = pools.iter().map(|(pool, _)| lock(&pool.state)).collect();
        let blocks: Vec<(StoreKey, Tier)> =
            pools.iter().zip(&states).flat_map(|((pool, _), state)| pool.all(state)).collect();
        Ok(self.streams.snapshot(stream, &blocks))
    }

    /// A pool for blocks of this size, made if it is not there.
    pub(super) fn make(&self, block_bytes: usize) -> Result<PoolId, PoolError> {
        if block_bytes == 0 || block_bytes > MOST_BLOCK_BYTES {
            return Err(PoolError::Size { block_bytes, most: MOST_BLOCK_BYTES });
        }
        let _one_at_a_time = lock(&self.making);
        let pools = self.all();
        if let Some(at) = pools.iter().position(|(pool, _)| pool.block_bytes == block_bytes) {
            return Ok(PoolId(at as u32));
        }
        let no_room = |reason: String| PoolError::NoRoom { block_bytes, reason };
        if pools.len() >= self.config.pools {
            return Err(no_room(format!("{} pools are allowed", self.config.pools)));
        }
        let slot_bytes = block_bytes.next_multiple_of(4096) as u64;
        let slots = |bytes: u64| u32::try_from(bytes / slot_bytes).unwrap_or(u32::MAX);
        let (disk, ram) = (slots(self.config.disk_bytes), slots(self.config.ram_bytes));
        if disk == 0 && ram == 0 {
            return Err(no_room("not one block fits".into()));
        }
        let segment_slots = slots(SEGMENT_BYTES).clamp(1, disk.max(1));
        let row = PoolRow { layout: Layout { block_bytes, slots: disk, segment_slots }, ram };
        let refused = |error: NodeError| match std::error::Error::source(&error) {
            Some(source) => no_room(format!("{error}: {source}")),
            None => no_room(error.to_string()),
        };
        // The disk first: what has no room is not a pool.
        let id = self.add(row).map_err(refused)?;
        let pool = self.at(id).expect("just added");
        if let Err(error) = self.open_disk(&pool, row) {
            self.pools.write().unwrap_or_else(PoisonError::into_inner).pop();
            return Err(refused(error));
        }
        pool.restore(&[]);
        self.catalog.add_pool(row).map_err(|error| refused(error.into()))?;
        Ok(id)
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// What engines of a model have called it in their blocks' names.
    pub fn fingerprints(&self, model: &str) -> Vec<u128> {
        self.streams.fingerprints(model)
    }

    /// Learns what others have put to and removed from shared storage. Waits for that.
    pub fn refresh_shared(&self) {
        for (pool, _) in self.all() {
            if let Some(shared) = &pool.shared {
                pool.learn_shared(&shared.news());
            }
        }
    }

    /// The number of a model's stream.
    ///
    /// # Errors
    ///
    /// Where it is new and cannot be written down.
    pub fn stream_of(&self, model: &str) -> Result<u32, NodeError> {
        Ok(self.streams.open_stream(model)?)
    }

    /// Says which model a fingerprint in block names is of, so that its blocks are told of.
    ///
    /// # Errors
    ///
    /// Where it cannot be written down.
    pub fn name_model(&self, fingerprint: u128, model: &str) -> Result<u32, NodeError> {
        Ok(self.streams.name(fingerprint, model)?)
    }
}
