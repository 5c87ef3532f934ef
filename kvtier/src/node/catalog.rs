//! What a node writes down beside its blocks, in RocksDB.
//!
//! | column family | key | value |
//! | --- | --- | --- |
//! | `pools` | bytes per block | slots on disk, slots per segment, slots in RAM |
//! | `owners` | number | model and salt |
//! | `quotas` | pool, tier, owner | blocks |
//! | `streams` | number | model, first batch kept, batch up to which the disk is written down |
//! | `events` | stream, batch | the batch as it was published, then its changes |
//! | `shared` | pool, name | owner |
//!
//! Not in here is which block is in which slot: that table is read whole at every start, changes in
//! place and has a fixed size, all of which a flat file does better (`docs/tiers.md` says why; not measured).
//!
//! Writes go to the log of RocksDB and so survive the process; [`Catalog::sync`] makes them survive
//! the machine, once per group commit.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::{fs, fs::File, io};

use rocksdb::{ColumnFamily, DB, Direction, IteratorMode, Options, WriteBatch};

use crate::policy::{Owner, Tier};
use crate::slot::lock;
use crate::store::{KEY_BYTES, Layout, StoreKey};

/// The catalogue cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// RocksDB refuses.
    #[error("{what} in RocksDB")]
    Db {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: rocksdb::Error,
    },
    /// Its log cannot be synced.
    #[error("sync RocksDB's log")]
    Sync {
        /// Why not.
        source: io::Error,
    },
    /// It could not be opened again after a failure; see [`Node::probe`](super::Node::probe).
    #[error("the catalogue is closed after a failure")]
    Closed,
    /// What is there is not what was written.
    #[error("{what} cannot be read back")]
    Damaged {
        /// What.
        what: &'static str,
    },
}

/// How a pool was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PoolRow {
    pub layout: Layout,
    /// Blocks that RAM is to hold.
    pub ram: u32,
}

/// A model's stream of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamRow {
    pub model: String,
    /// First batch kept.
    pub first: u64,
    /// What was told in batches before this one is written down on disk, too.
    pub settled: u64,
}

/// A batch that was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Logged {
    pub seq: u64,
    pub payload: Vec<u8>,
    /// Came (1) or left (0), tier, name: what the payload says, for this node's own use.
    pub changes: Vec<(bool, Tier, StoreKey)>,
}

/// Key and value.
type Row = (Vec<u8>, Vec<u8>);

const FAMILIES: [&str; 6] = ["pools", "owners", "quotas", "streams", "events", "shared"];

/// The catalogue of one node.
pub(super) struct Catalog {
    folder: PathBuf,
    /// `None` while it cannot be opened again after a failure.
    db: RwLock<Option<DB>>,
    one_write: Mutex<()>,
    /// Whether a write failed. RocksDB takes no more of them then, even when there is room again.
    failed: AtomicBool,
    /// Number of the last log file that was synced.
    synced: Mutex<u64>,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("folder", &self.folder).finish_non_exhaustive()
    }
}

fn db(what: &'static str) -> impl Fn(rocksdb::Error) -> CatalogError {
    move |source| CatalogError::Db { what, source }
}

impl Catalog {
    /// Opens the catalogue in `folder`, or makes it.
    pub fn open(folder: &Path) -> Result<Catalog, CatalogError> {
        let db = Catalog::open_db(folder)?;
        Ok(Catalog {
            folder: folder.to_owned(),
            db: RwLock::new(Some(db)),
            failed: AtomicBool::new(false),
            synced: Mutex::default(),
            one_write: Mutex::default(),
        })
    }

    fn open_db(folder: &Path) -> Result<DB, CatalogError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        // Small: what is written is read again only after a restart or by who missed it.
        options.set_write_buffer_size(8 << 20);
        options.set_max_write_buffer_number(2);
        options.set_max_total_wal_size(64 << 20);
        options.set_keep_log_file_num(2);
        options.set_max_open_files(64);
        // A torn end of the log is what a crash leaves; anything else is damage.
        options.set_wal_recovery_mode(rocksdb::DBRecoveryMode::TolerateCorruptedTailRecords);
        let families = FAMILIES.map(|name| (name, options.clone()));
        DB::open_cf_with_opts(&options, folder, families).map_err(db("open the catalogue"))
    }

    /// Opens the catalogue again if a write to it failed. False where that is no use yet.
    pub fn probe(&self) -> bool {
        if !self.failed.load(Ordering::Acquire) {
            return true;
        }
        let _one = lock(&self.one_write);
        let mut open = self.db.write().unwrap_or_else(PoisonError::into_inner);
        // Closed first: it has a lock on the folder.
        *open = None;
        *open = Catalog::open_db(&self.folder).ok();
        let works = open.is_some();
        self.failed.store(!works, Ordering::Release);
        works
    }

    fn with<T>(&self, run: impl FnOnce(&DB) -> Result<T, CatalogError>) -> Result<T, CatalogError> {
        let open = self.db.read().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().ok_or(CatalogError::Closed).and_then(run)
    }

    /// Writes, one at a time: RocksDB built with assertions, as Debian's is, ends the process on a
    /// write after one that failed.
    fn writing(&self, run: impl FnOnce(&DB) -> Result<(), CatalogError>) -> Result<(), CatalogError> {
        let _one = lock(&self.one_write);
        if self.failed.load(Ordering::Acquire) {
            return Err(CatalogError::Closed);
        }
        let result = self.with(run);
        self.failed.store(result.is_err(), Ordering::Release);
        result
    }

    fn put(&self, name: &'static str, key: &[u8], value: &[u8]) -> Result<(), CatalogError> {
        self.writing(|open| open.put_cf(family(open, name), key, value).map_err(db("write")))
    }

    fn rows(&self, name: &'static str) -> Result<Vec<Row>, CatalogError> {
        self.with(|open| {
            let rows = open.iterator_cf(family(open, name), IteratorMode::Start);
            rows.map(|row| row.map(|(k, v)| (k.into_vec(), v.into_vec())).map_err(db("read"))).collect()
        })
    }

    /// All pools.
    pub fn pools(&self) -> Result<Vec<PoolRow>, CatalogError> {
        let decode = |(key, value): Row| {
            let (slots, rest) = value.split_first_chunk()?;
            let (segment_slots, rest) = rest.split_first_chunk()?;
            let layout = Layout {
                block_bytes: u64::from_be_bytes(key.try_into().ok()?) as usize,
                slots: u32::from_be_bytes(*slots),
                segment_slots: u32::from_be_bytes(*segment_slots),
            };
            Some(PoolRow { layout, ram: u32::from_be_bytes(rest.try_into().ok()?) })
        };
        let rows = self.rows("pools")?;
        rows.into_iter().map(|row| decode(row).ok_or(CatalogError::Damaged { what: "a pool" })).collect()
    }

    /// Notes a pool.
    pub fn add_pool(&self, row: PoolRow) -> Result<(), CatalogError> {
        let PoolRow { layout, ram } = row;
        let value = [layout.slots, layout.segment_slots, ram].map(u32::to_be_bytes).concat();
        self.put("pools", &(layout.block_bytes as u64).to_be_bytes(), &value)
    }

    /// All owners, by number: model and salt.
    pub fn owners(&self) -> Result<Vec<(String, String)>, CatalogError> {
        let decode = |at: usize, (key, value): Row| {
            let text = String::from_utf8(value).ok()?;
            let (model, salt) = text.split_once('\0')?;
            (key == (at as u16).to_be_bytes()).then(|| (model.to_owned(), salt.to_owned()))
        };
        let rows = self.rows("owners")?.into_iter().enumerate();
        rows.map(|(at, row)| decode(at, row).ok_or(CatalogError::Damaged { what: "an owner" })).collect()
    }

    /// Notes an owner. The model has no zero character in it.
    pub fn add_owner(&self, owner: Owner, model: &str, salt: &str) -> Result<(), CatalogError> {
        self.put("owners", &owner.0.to_be_bytes(), format!("{model}\0{salt}").as_bytes())
    }

    /// All quotas: bytes per block of the pool, tier, owner, blocks.
    pub fn quotas(&self) -> Result<Vec<(usize, Tier, Owner, u32)>, CatalogError> {
        let decode = |(key, value): Row| {
            let (pool, rest) = key.split_first_chunk()?;
            let (tier, owner) = rest.split_first()?;
            let owner = Owner(u16::from_be_bytes(owner.try_into().ok()?));
            let blocks = u32::from_be_bytes(value.try_into().ok()?);
            Some((u64::from_be_bytes(*pool) as usize, tier_of(*tier)?, owner, blocks))
        };
        let rows = self.rows("quotas")?;
        rows.into_iter().map(|row| decode(row).ok_or(CatalogError::Damaged { what: "a quota" })).collect()
    }

    /// Notes a quota.
    pub fn set_quota(&self, pool: usize, tier: Tier, owner: Owner, blocks: u32) -> Result<(), CatalogError> {
        let key = [&(pool as u64).to_be_bytes()[..], &[tier as u8], &owner.0.to_be_bytes()].concat();
        self.put("quotas", &key, &blocks.to_be_bytes())
    }

    /// All streams, by number.
    pub fn streams(&self) -> Result<Vec<StreamRow>, CatalogError> {
        let decode = |at: usize, (key, value): Row| {
            let (first, rest) = value.split_first_chunk()?;
            let (settled, model) = rest.split_first_chunk()?;
            let model = String::from_utf8(model.to_vec()).ok()?;
            let (first, settled) = (u64::from_be_bytes(*first), u64::from_be_bytes(*settled));
            (key == (at as u32).to_be_bytes()).then_some(StreamRow { model, first, settled })
        };
        let rows = self.rows("streams")?.into_iter().enumerate();
        rows.map(|(at, row)| decode(at, row).ok_or(CatalogError::Damaged { what: "a stream" })).collect()
    }

    /// Notes a stream, and drops what it does not keep any more.
    pub fn set_stream(&self, stream: u32, row: &StreamRow) -> Result<(), CatalogError> {
        let value = [&row.first.to_be_bytes()[..], &row.settled.to_be_bytes(), row.model.as_bytes()].concat();
        self.writing(|open| {
            let mut batch = WriteBatch::default();
            batch.put_cf(family(open, "streams"), stream.to_be_bytes(), &value);
            let gone = (event_key(stream, 0), event_key(stream, row.first));
            batch.delete_range_cf(family(open, "events"), gone.0, gone.1);
            open.write(batch).map_err(db("write"))
        })
    }

    /// Adds a batch to a stream.
    pub fn log(&self, stream: u32, batch: &Logged) -> Result<(), CatalogError> {
        let mut value = Vec::with_capacity(4 + batch.payload.len() + batch.changes.len() * (2 + KEY_BYTES));
        value.extend((batch.payload.len() as u32).to_be_bytes());
        value.extend(&batch.payload);
        for (came, tier, key) in &batch.changes {
            value.extend([u8::from(*came), *tier as u8]);
            value.extend(key.bytes());
        }
        self.put("events", &event_key(stream, batch.seq), &value)
    }

    /// Up to `most` batches of a stream, from `seq` on.
    pub fn logged(&self, stream: u32, seq: u64, most: usize) -> Result<Vec<Logged>, CatalogError> {
        self.with(|open| Catalog::read_log(open, stream, seq, most))
    }

    fn read_log(open: &DB, stream: u32, seq: u64, most: usize) -> Result<Vec<Logged>, CatalogError> {
        let from = event_key(stream, seq);
        let rows = open.iterator_cf(family(open, "events"), IteratorMode::From(&from, Direction::Forward));
        let mut batches = Vec::new();
        for row in rows.take(most) {
            let (key, value) = row.map_err(db("read events"))?;
            let damaged = || CatalogError::Damaged { what: "a batch of events" };
            let (of, seq) = key.split_first_chunk::<4>().ok_or_else(damaged)?;
            if u32::from_be_bytes(*of) != stream {
                break;
            }
            let seq = u64::from_be_bytes(seq.try_into().map_err(|_| damaged())?);
            let (payload, changes) = decode_logged(&value).ok_or_else(damaged)?;
            batches.push(Logged { seq, payload, changes });
        }
        Ok(batches)
    }

    /// The number after a stream's last batch that is kept; `None` where none is.
    pub fn end(&self, stream: u32) -> Result<Option<u64>, CatalogError> {
        self.with(|open| {
            let from = event_key(stream, u64::MAX);
            let mut rows =
                open.iterator_cf(family(open, "events"), IteratorMode::From(&from, Direction::Reverse));
            let Some(row) = rows.next() else { return Ok(None) };
            let (key, _) = row.map_err(db("read events"))?;
            let (of, seq) = (key.first_chunk::<4>(), key.last_chunk::<8>());
            let end = |seq: &[u8; 8]| u64::from_be_bytes(*seq).saturating_add(1);
            Ok(seq.filter(|_| of == Some(&stream.to_be_bytes())).map(end))
        })
    }

    /// Blocks of a pool that are in shared storage, and whose they are.
    pub fn shared(&self, pool: usize) -> Result<Vec<(StoreKey, Owner)>, CatalogError> {
        self.with(|open| {
            let prefix = (pool as u64).to_be_bytes();
            let from = IteratorMode::From(&prefix, Direction::Forward);
            let mut found = Vec::new();
            for row in open.iterator_cf(family(open, "shared"), from) {
                let (key, value) = row.map_err(db("read shared blocks"))?;
                let Some(name) = key.strip_prefix(&prefix[..]) else { break };
                let damaged = || CatalogError::Damaged { what: "a shared block" };
                let name = name.try_into().ok().and_then(StoreKey::from_bytes).ok_or_else(damaged)?;
                let owner = value[..].try_into().map(u16::from_be_bytes).map_err(|_| damaged())?;
                found.push((name, Owner(owner)));
            }
            Ok(found)
        })
    }

    /// Notes that a block is in shared storage, or (`None`) is not.
    pub fn set_shared(&self, pool: usize, key: &StoreKey, owner: Option<Owner>) -> Result<(), CatalogError> {
        let row = [&(pool as u64).to_be_bytes()[..], &key.bytes()].concat();
        match owner {
            Some(owner) => self.put("shared", &row, &owner.0.to_be_bytes()),
            None => self.writing(|open| open.delete_cf(family(open, "shared"), row).map_err(db("write"))),
        }
    }

    /// Makes what was written so far survive the machine.
    pub fn sync(&self) -> Result<(), CatalogError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(CatalogError::Closed);
        }
        // Not by RocksDB's own call for that: after a failed write it ends the process.
        self.sync_logs().map_err(|source| CatalogError::Sync { source })
    }

    fn sync_logs(&self) -> io::Result<()> {
        let mut synced = lock(&self.synced);
        let mut newest = *synced;
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            let Some(number) = number.filter(|_| path.extension().is_some_and(|e| e == "log")) else {
                continue;
            };
            // An older one was complete when a newer one was begun, and was synced once more then.
            if number >= *synced {
                newest = newest.max(number);
                match File::open(&path) {
                    Ok(file) => file.sync_data()?,
                    // It was dropped just now: what was in it is in tables.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if newest > *synced {
            File::open(&self.folder)?.sync_all()?;
            *synced = newest;
        }
        Ok(())
    }
}

fn family<'d>(open: &'d DB, name: &'static str) -> &'d ColumnFamily {
    open.cf_handle(name).expect("all families are opened or made by open")
}

fn event_key(stream: u32, seq: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&stream.to_be_bytes());
    key[4..].copy_from_slice(&seq.to_be_bytes());
    key
}

fn tier_of(byte: u8) -> Option<Tier> {
    [Tier::Cpu, Tier::Disk, Tier::Shared].into_iter().find(|tier| *tier as u8 == byte)
}

type Told = (Vec<u8>, Vec<(bool, Tier, StoreKey)>);

fn decode_logged(value: &[u8]) -> Option<Told> {
    let (bytes, rest) = value.split_first_chunk()?;
    let (payload, rest) = rest.split_at_checked(u32::from_be_bytes(*bytes) as usize)?;
    let change = |row: &[u8]| {
        let (head, name) = row.split_first_chunk::<2>()?;
        Some((head[0] == 1, tier_of(head[1])?, StoreKey::from_bytes(name.try_into().ok()?)?))
    };
    let changes = rest.chunks(2 + KEY_BYTES).map(change).collect::<Option<Vec<_>>>()?;
    Some((payload.to_vec(), changes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_there_after_opening_again() {
        let folder = tempfile::tempdir().unwrap();
        let key = |n: u8| StoreKey::new(1, 0, &[n]).unwrap();
        let pool = PoolRow { layout: Layout { block_bytes: 4096, slots: 7, segment_slots: 3 }, ram: 2 };
        let stream = StreamRow { model: "llama".into(), first: 2, settled: 4 };
        let batch = |seq| Logged {
            seq,
            payload: vec![seq as u8; 3],
            changes: vec![(true, Tier::Disk, key(1)), (false, Tier::Shared, key(2))],
        };
        {
            let catalog = Catalog::open(folder.path()).unwrap();
            assert_eq!(catalog.end(0).unwrap(), None);
            catalog.add_pool(pool).unwrap();
            catalog.add_owner(Owner(0), "llama", "").unwrap();
            catalog.add_owner(Owner(1), "llama", "salt\0ed").unwrap();
            catalog.set_quota(4096, Tier::Disk, Owner(1), 9).unwrap();
            (0..5).for_each(|seq| catalog.log(0, &batch(seq)).unwrap());
            catalog.log(1, &batch(77)).unwrap();
            catalog.set_stream(0, &stream).unwrap();
            catalog.set_shared(4096, &key(1), Some(Owner(1))).unwrap();
            catalog.set_shared(4096, &key(2), Some(Owner(1))).unwrap();
            catalog.set_shared(4096, &key(2), None).unwrap();
            catalog.set_shared(8192, &key(3), Some(Owner(0))).unwrap();
            catalog.sync().unwrap();
        }
        let catalog = Catalog::open(folder.path()).unwrap();
        assert_eq!(catalog.pools().unwrap(), [pool]);
        let owner = |model: &str, salt: &str| (model.to_owned(), salt.to_owned());
        assert_eq!(catalog.owners().unwrap(), [owner("llama", ""), owner("llama", "salt\0ed")]);
        assert_eq!(catalog.quotas().unwrap(), [(4096, Tier::Disk, Owner(1), 9)]);
        assert_eq!(catalog.streams().unwrap(), [stream]);
        assert_eq!(catalog.logged(0, 0, 9).unwrap(), [batch(2), batch(3), batch(4)]);
        assert_eq!(catalog.logged(0, 3, 1).unwrap(), [batch(3)]);
        assert_eq!((catalog.end(0).unwrap(), catalog.end(1).unwrap()), (Some(5), Some(78)));
        assert_eq!(catalog.shared(4096).unwrap(), [(key(1), Owner(1))]);
    }
}
