//! Rows in RocksDB. The only file that knows it.
//!
//! The catalog is a few thousand rows that are read once and written seldom: everything that RocksDB
//! does for large ones (caches, compression, background threads, statistics, a log of what it does) is
//! turned down.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rocksdb::{
    BlockBasedOptions, DB, DBCompressionType, DBRecoveryMode, ErrorKind, IteratorMode, LogLevel, Options,
    WriteBatch, WriteOptions,
};

use super::store::{Change, Durability, Rows, Store, Trouble};

/// A RocksDB of rows in the default column family.
pub struct Rocks {
    path: PathBuf,
    /// `None` after a write that failed: RocksDB then refuses all others, until it is opened again.
    db: Mutex<Option<DB>>,
}

impl Rocks {
    /// Opens the one at `path`, or makes it.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn open(path: &Path) -> Result<Rocks, Trouble> {
        let db = open(path)?;
        Ok(Rocks { path: path.to_owned(), db: Mutex::new(Some(db)) })
    }

    /// The rows that can still be read of a damaged one at `path`; none where it cannot be opened at all.
    /// Files that do not fit may be moved within it.
    pub fn salvage(path: &Path) -> Rows {
        let mut options = options();
        options.set_paranoid_checks(false);
        // Up to the first record that does not fit.
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        let peek = || DB::open_for_read_only(&options, path, false);
        let opened = peek().or_else(|_| DB::repair(&options, path).and_then(|()| peek()));
        let Ok(db) = opened else { return Rows::new() };
        let rows = db.iterator(IteratorMode::Start).map_while(Result::ok);
        rows.map(|(key, value)| (key.into(), value.into())).collect()
    }

    fn with<T>(&self, job: impl FnOnce(&DB) -> Result<T, rocksdb::Error>) -> Result<T, Trouble> {
        let mut slot = self.db.lock();
        let db = match slot.take() {
            Some(db) => db,
            None => open(&self.path)?,
        };
        let done = job(&db).map_err(trouble)?;
        *slot = Some(db);
        Ok(done)
    }
}

impl Store for Rocks {
    fn read(&self) -> Result<Rows, Trouble> {
        self.with(|db| {
            db.iterator(IteratorMode::Start)
                .map(|row| row.map(|(key, value)| (key.into(), value.into())))
                .collect()
        })
    }

    fn write(&self, changes: Vec<Change>, durability: Durability) -> Result<(), Trouble> {
        let mut batch = WriteBatch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(durability == Durability::Synced);
        self.with(|db| db.write_opt(batch, &options))
    }

    fn sync(&self) -> Result<(), Trouble> {
        self.with(|db| db.flush_wal(true))
    }
}

fn open(path: &Path) -> Result<DB, Trouble> {
    DB::open(&options(), path).map_err(trouble)
}

fn options() -> Options {
    let mut o = Options::default();
    o.create_if_missing(true);
    o.set_paranoid_checks(true);
    // A write that a crash cut off was never acknowledged. Anything else that does not fit is damage,
    // and must not end the log silently, as the default has it.
    o.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    o.set_compression_type(DBCompressionType::None);
    o.set_write_buffer_size(1 << 20);
    o.set_max_write_buffer_number(2);
    o.set_max_total_wal_size(4 << 20);
    o.set_max_manifest_file_size(1 << 20);
    o.set_manifest_preallocation_size(64 << 10);
    o.set_max_background_jobs(1);
    o.set_max_file_opening_threads(1);
    o.set_max_open_files(32);
    o.set_table_cache_num_shard_bits(0);
    o.set_skip_stats_update_on_db_open(true);
    // No thread that writes statistics now and then.
    o.set_stats_dump_period_sec(0);
    o.set_stats_persist_period_sec(0);
    // What happens is told in kvd's own log; this one has the options of the last two starts.
    o.set_log_level(LogLevel::Fatal);
    o.set_keep_log_file_num(1);
    o.set_max_log_file_size(64 << 10);
    let mut table = BlockBasedOptions::default();
    table.disable_cache();
    o.set_block_based_table_factory(&table);
    o
}

/// What an error asks for. RocksDB tells kinds apart, but of I/O errors only by the system's words.
fn trouble(error: rocksdb::Error) -> Trouble {
    let kind = error.kind();
    let why = error.into_string();
    let says = |words: &[&str]| words.iter().any(|w| why.contains(w));
    match kind {
        ErrorKind::Corruption => Trouble::Damaged { why },
        // Features and column families that this version does not write.
        ErrorKind::NotSupported => Trouble::Newer { why },
        ErrorKind::InvalidArgument if says(&["olumn famil"]) => Trouble::Newer { why },
        ErrorKind::IOError if says(&["lock file", "lock hold"]) => Trouble::Locked { why },
        ErrorKind::IOError if says(&["No space left", "Disk quota", "File too large"]) => {
            Trouble::Full { why }
        }
        ErrorKind::IOError if says(&["Permission denied", "Read-only file system", "not permitted"]) => {
            Trouble::Denied { why }
        }
        // A file that belongs to it is gone: the directory itself is made where it is missing.
        ErrorKind::IOError if says(&["No such file"]) => Trouble::Damaged { why },
        _ => Trouble::Failed { why },
    }
}
