//! Ways to keep blocks on a disk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use foyer::{
    BlockEngineConfig, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder, PsyncIoEngineConfig,
};
use kvtier::policy::Owner;
use kvtier::store::{Backend, Buffer, Get, Layout, Put, Read, Store, StoreKey};
use rustix::fs::{OFlags, syncfs};
use tokio::runtime::Runtime;

use crate::{Load, THREADS, noise};

/// Bytes between two of kvtier's commits.
const COMMIT: usize = 64 << 20;

/// One way.
pub trait Way {
    fn name(&self) -> &'static str;
    /// What is not timed.
    fn prepare(&mut self, load: &Load) -> anyhow::Result<()>;
    /// Stores all blocks; they are on the disk when it returns.
    fn write(&mut self, load: &Load) -> anyhow::Result<()>;
    /// Reads all of them; how many are not what was written.
    fn check(&mut self, load: &Load) -> anyhow::Result<usize>;
}

/// Lets threads take block after block, each with a buffer of its own, on a page boundary.
fn share(load: &Load, work: impl Fn(usize, &mut [u8]) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut buffer = Buffer::new(load.bytes).context("get memory")?;
                    buffer.copy_from_slice(&noise(load.bytes));
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= load.count {
                            return Ok(());
                        }
                        work(number, &mut buffer)?;
                    }
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })
}

/// Counts blocks that are not right.
fn count_wrong(
    load: &Load,
    read: impl Fn(usize, &mut [u8]) -> anyhow::Result<bool> + Sync,
) -> anyhow::Result<usize> {
    let wrong = AtomicUsize::new(0);
    share(load, |number, buffer| {
        let right = read(number, buffer)? && load.is_right(number, buffer);
        wrong.fetch_add(usize::from(!right), Ordering::Relaxed);
        Ok(())
    })?;
    Ok(wrong.into_inner())
}

fn direct() -> i32 {
    OFlags::DIRECT.bits() as i32
}

/// The disk itself: one preallocated file, past the page cache.
pub struct Raw(File);

impl Raw {
    pub fn new(folder: &Path, bytes: usize, count: usize) -> anyhow::Result<Raw> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).custom_flags(direct());
        let file = file.open(folder.join("raw")).context("open a file past the page cache")?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, (bytes * count) as u64)?;
        Ok(Raw(file))
    }
}

impl Way for Raw {
    fn name(&self) -> &'static str {
        "the disk itself"
    }

    fn prepare(&mut self, _: &Load) -> anyhow::Result<()> {
        Ok(())
    }

    fn write(&mut self, load: &Load) -> anyhow::Result<()> {
        share(load, |number, block| {
            load.fill(number, block);
            Ok(self.0.write_all_at(block, (number * load.bytes) as u64)?)
        })?;
        Ok(self.0.sync_data()?)
    }

    fn check(&mut self, load: &Load) -> anyhow::Result<usize> {
        count_wrong(load, |number, into| {
            self.0.read_exact_at(into, (number * load.bytes) as u64)?;
            Ok(true)
        })
    }
}

/// kvtier's store, full of the last round's blocks: each goes for one that comes.
pub struct Kvtier(Store);

impl Kvtier {
    pub fn new(folder: &Path, bytes: usize, count: usize) -> anyhow::Result<Kvtier> {
        let folder = folder.join("kvtier");
        std::fs::create_dir_all(&folder)?;
        let layout =
            Layout { block_bytes: bytes, slots: count as u32, segment_slots: ((1 << 30) / bytes) as u32 };
        Ok(Kvtier(Store::open(&folder, layout, Backend::Direct)?.0))
    }

    fn key(round: u64, number: usize) -> StoreKey {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&round.to_le_bytes());
        hash[8..16].copy_from_slice(&(number as u64).to_le_bytes());
        StoreKey::new(1, 0, &hash).expect("32 bytes are a hash")
    }
}

impl Way for Kvtier {
    fn name(&self) -> &'static str {
        "kvtier"
    }

    fn prepare(&mut self, _: &Load) -> anyhow::Result<()> {
        Ok(())
    }

    fn write(&mut self, load: &Load) -> anyhow::Result<()> {
        let since_commit = AtomicUsize::new(0);
        share(load, |number, block| {
            if load.round > 0 {
                self.0.remove(Kvtier::key(load.round - 1, number));
            }
            load.fill(number, block);
            let put =
                Put { key: Kvtier::key(load.round, number), after: None, owner: Owner(0), payload: block };
            self.0.put(&[put]).remove(0)?;
            if since_commit.fetch_add(load.bytes, Ordering::Relaxed) > COMMIT {
                since_commit.store(0, Ordering::Relaxed);
                self.0.commit()?;
            }
            Ok(())
        })?;
        self.0.commit()?;
        Ok(())
    }

    fn check(&mut self, load: &Load) -> anyhow::Result<usize> {
        count_wrong(load, |number, into| {
            let read = self.0.get(&mut [Get { key: Kvtier::key(load.round, number), into }]);
            Ok(read[0] == Read::Hit)
        })
    }
}

/// A file per block, as vLLM's tier for file systems writes them: past the page cache, under a name of its own in
/// folders by hash, and renamed. No checksum. Synced once, at the end, which vLLM leaves out.
pub struct Files {
    folder: PathBuf,
}

impl Files {
    pub fn new(folder: &Path) -> Files {
        Files { folder: folder.join("files") }
    }

    fn path(&self, number: usize) -> PathBuf {
        let hash = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let first = self.folder.join(format!("{:03x}", hash >> 52));
        first.join(format!("{:02x}_g0", hash >> 44 & 0xff)).join(format!("{hash:016x}.bin"))
    }
}

impl Way for Files {
    fn name(&self) -> &'static str {
        "a file per block"
    }

    fn prepare(&mut self, load: &Load) -> anyhow::Result<()> {
        if self.folder.exists() {
            std::fs::remove_dir_all(&self.folder)?;
        }
        std::fs::create_dir_all(&self.folder)?;
        for number in 0..load.count {
            std::fs::create_dir_all(self.path(number).parent().expect("it has one"))?;
        }
        Ok(syncfs(File::open(&self.folder)?)?)
    }

    fn write(&mut self, load: &Load) -> anyhow::Result<()> {
        share(load, |number, block| {
            load.fill(number, block);
            let path = self.path(number);
            let temporary = path.with_extension("tmp");
            let mut options = OpenOptions::new();
            let file = options.write(true).create_new(true).custom_flags(direct()).open(&temporary)?;
            file.write_all_at(block, 0)?;
            Ok(std::fs::rename(temporary, path)?)
        })?;
        Ok(syncfs(File::open(&self.folder)?)?)
    }

    fn check(&mut self, load: &Load) -> anyhow::Result<usize> {
        count_wrong(load, |number, into| {
            let file = OpenOptions::new().read(true).custom_flags(direct()).open(self.path(number))?;
            file.read_exact_at(into, 0)?;
            Ok(true)
        })
    }
}

/// foyer's hybrid cache with next to no memory, on a device twice as large as what is stored, so that it evicts
/// nothing. Its buffers have room for all that is stored, which it would drop otherwise.
pub struct Foyer {
    folder: PathBuf,
    runtime: Runtime,
    cache: Mutex<Option<HybridCache<u64, Vec<u8>>>>,
}

impl Foyer {
    pub fn new(folder: &Path) -> anyhow::Result<Foyer> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Foyer { folder: folder.join("foyer"), runtime, cache: Mutex::default() })
    }

    fn cache(&self) -> HybridCache<u64, Vec<u8>> {
        self.cache.lock().expect("no thread panics").clone().expect("prepared")
    }
}

impl Way for Foyer {
    fn name(&self) -> &'static str {
        "foyer 0.22.6"
    }

    fn prepare(&mut self, load: &Load) -> anyhow::Result<()> {
        if let Some(cache) = self.cache.get_mut().expect("no thread panics").take() {
            self.runtime.block_on(cache.close())?;
        }
        if self.folder.exists() {
            std::fs::remove_dir_all(&self.folder)?;
        }
        std::fs::create_dir_all(&self.folder)?;
        let all = load.bytes * load.count;
        let device = FsDeviceBuilder::new(&self.folder).with_capacity(2 * all).with_direct(true).build()?;
        let engine = BlockEngineConfig::new(device)
            .with_block_size(16 << 20)
            .with_flushers(2)
            .with_buffer_pool_size(3 * all)
            .with_submit_queue_size_threshold(2 * all);
        let cache = self.runtime.block_on(
            HybridCacheBuilder::new()
                .memory(1 << 20)
                .with_weighter(|_: &u64, value: &Vec<u8>| value.len())
                .storage()
                .with_io_engine_config(PsyncIoEngineConfig::new())
                .with_engine_config(engine)
                .build(),
        )?;
        *self.cache.get_mut().expect("no thread panics") = Some(cache);
        Ok(syncfs(File::open(&self.folder)?)?)
    }

    fn write(&mut self, load: &Load) -> anyhow::Result<()> {
        let cache = self.cache();
        let _within = self.runtime.enter();
        share(load, |number, block| {
            load.fill(number, block);
            ensure!(cache.storage_writer(number as u64).force().insert(block.to_vec()).is_some(), "refused");
            Ok(())
        })?;
        self.runtime.block_on(cache.storage().wait());
        Ok(syncfs(File::open(&self.folder)?)?)
    }

    fn check(&mut self, load: &Load) -> anyhow::Result<usize> {
        let cache = self.cache();
        count_wrong(load, |number, into| {
            let found = self.runtime.handle().block_on(async { cache.get(&(number as u64)).await })?;
            let there = found.filter(|entry| entry.value().len() == into.len());
            Ok(there.map(|entry| into.copy_from_slice(entry.value())).is_some())
        })
    }
}
