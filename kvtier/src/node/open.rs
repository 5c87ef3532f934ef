//! How a node begins, and how it gets its pools.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

use super::api::{PoolError, PoolId};
use super::catalog::{Catalog, PoolRow};
use super::change::{Change, Journal};
use super::node::{Node, NodeConfig, NodeError, Place};
use super::pool::Pool;
use super::streams::{Publish, Streams};
use crate::Arena;
use crate::policy::{Config, Owner, Tier};
use crate::slot::lock;
use crate::store::{self, Layout, Record};

/// Bytes of a file of slots.
const SEGMENT_BYTES: u64 = 1 << 30;
/// Largest block.
const MOST_BLOCK_BYTES: usize = 1 << 28;
/// Slots that RAM has beside those that the planner knows of: for blocks that have to leave and
/// are not on disk yet.
fn spare(slots: u32) -> u32 {
    (slots / 8).clamp(8, 256)
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
            life: catalog.live()?,
            hinted: Mutex::default(),
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
        pool.expect_pins(&self.catalog, self.life, self.now())?;
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
            lock(&pool.state).planner.expect_no_more();
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
        let slot_bytes = store::slot_bytes(block_bytes) as u64;
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
}
