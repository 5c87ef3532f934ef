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
//! | `pins` | pool, pin | its end, then the blocks |
//! | `node` | `life` | how often the catalogue was opened |
//!
//! Not in here is which block is in which slot: that is read whole at every start, has a fixed size and its space
//! reserved, and is in the store's own table and journal (`kvd-benches records` compares the two).
//!
//! Writes go to the log of RocksDB and so survive the process; [`Catalog::sync`] makes them survive
//! the machine, once per group commit.

mod log;
mod rows;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::{fs, fs::File, io};

use rocksdb::{ColumnFamily, DB, IteratorMode, LogLevel, Options};

use crate::policy::Tier;
use crate::slot::lock;

pub(super) use log::{Logged, StreamRow};
pub(super) use rows::{PinRow, PoolRow};

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

/// Key and value.
type Row = (Vec<u8>, Vec<u8>);

const FAMILIES: [&str; 8] = ["pools", "owners", "quotas", "streams", "events", "shared", "pins", "node"];

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
        // Where assertions are compiled in, a line of its own log that finds the disk full and another
        // after it end the process.
        options.set_log_level(LogLevel::Fatal);
        options.set_stats_dump_period_sec(0);
        // A torn end of the log is what a crash leaves; anything else is damage.
        options.set_wal_recovery_mode(rocksdb::DBRecoveryMode::TolerateCorruptedTailRecords);
        // The one that is always there holds nothing, but by its settings space for the log is reserved:
        // by those it has of itself, 64 MiB.
        let families = FAMILIES.iter().chain(&["default"]).map(|name| (*name, options.clone()));
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

fn tier_of(byte: u8) -> Option<Tier> {
    [Tier::Cpu, Tier::Disk, Tier::Shared].into_iter().find(|tier| *tier as u8 == byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Owner, PinId};
    use crate::store::{Layout, StoreKey};

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
            for pin in 1..=3 {
                let row = PinRow { pin: PinId(pin), until: 5, blocks: vec![key(1).id(), key(2).id()] };
                catalog.set_pin(4096, &row).unwrap();
            }
            assert!(catalog.move_pin(4096, PinId(2), 9).unwrap());
            assert!(!catalog.move_pin(8192, PinId(2), 9).unwrap());
            catalog.drop_pins(4096, &[PinId(3), PinId(7)]).unwrap();
            assert_eq!(catalog.live().unwrap(), 1);
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
        let pin = |pin, until| PinRow { pin: PinId(pin), until, blocks: vec![key(1).id(), key(2).id()] };
        assert_eq!(catalog.pins(4096).unwrap(), [pin(1, 5), pin(2, 9)]);
        assert_eq!(catalog.pins(8192).unwrap(), []);
        assert_eq!(catalog.live().unwrap(), 2);
    }
}
