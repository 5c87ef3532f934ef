//! The ledger in RocksDB, in a directory of its own.
//!
//! | key | value |
//! | --- | --- |
//! | `t` and 16 bytes of the id | a transfer, see [`super::codec`] |
//! | `m/format` | format of the keys, u64 little-endian |
//! | `m/clock` | latest time written, u64 little-endian |

use std::path::Path;

use rocksdb::{DB, IteratorMode, Options, WriteBatch, WriteOptions};
use tracing::warn;

use super::{Kept, Store, StoreError, codec};
use crate::transfer::ledger::book::Write;
use crate::transfer::ledger::record::{Millis, TransferId};

const FORMAT_KEY: &[u8] = b"m/format";
const CLOCK_KEY: &[u8] = b"m/clock";
const FORMAT: u64 = 1;

/// A ledger on disk.
pub struct Rocks {
    db: DB,
}

impl Rocks {
    /// Opens the ledger in `directory`, a new one where there is none.
    ///
    /// # Errors
    /// Where the directory cannot be used, or another process has it.
    pub fn open(directory: &Path) -> Result<Rocks, StoreError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        // A few thousand small records: no more memory, files or log than they need.
        options.set_write_buffer_size(4 << 20);
        options.set_max_write_buffer_number(2);
        options.set_max_open_files(64);
        options.set_max_total_wal_size(16 << 20);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        Ok(Rocks { db: DB::open(&options, directory)? })
    }
}

impl Store for Rocks {
    fn load(&mut self) -> Result<Kept, StoreError> {
        match number(self.db.get(FORMAT_KEY)?) {
            None => self.db.put(FORMAT_KEY, FORMAT.to_le_bytes())?,
            Some(FORMAT) => {}
            Some(found) => return Err(StoreError::Format { found, known: FORMAT }),
        }
        let clock = number(self.db.get(CLOCK_KEY)?).unwrap_or(0);
        let mut kept = Kept { clock, ..Kept::default() };
        let from = IteratorMode::From(b"t", rocksdb::Direction::Forward);
        for item in self.db.iterator(from) {
            let (key, value) = item?;
            if !key.starts_with(b"t") {
                break;
            }
            match codec::decode(&value) {
                Ok(record) => kept.records.push(record),
                Err(error) => {
                    // Minutes of one transfer are lost with it; refusing to start would lose them all.
                    warn!(?key, %error, "a transfer in the ledger cannot be read");
                    kept.unreadable += 1;
                }
            }
        }
        Ok(kept)
    }

    fn write(&mut self, writes: &[Write], clock: Millis) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for write in writes {
            match write {
                Write::Put(record) => batch.put(key(record.id), codec::encode(record)),
                Write::Delete(id) => batch.delete(key(*id)),
            }
        }
        batch.put(CLOCK_KEY, clock.to_le_bytes());
        let mut options = WriteOptions::default();
        options.set_sync(true);
        Ok(self.db.write_opt(batch, &options)?)
    }
}

fn key(id: TransferId) -> [u8; 17] {
    let mut key = [b't'; 17];
    key[1..].copy_from_slice(&id.bytes());
    key
}

fn number(value: Option<Vec<u8>>) -> Option<u64> {
    value.and_then(|v| v.try_into().ok()).map(u64::from_le_bytes)
}
