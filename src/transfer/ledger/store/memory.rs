//! A ledger that forgets what was not written when it is closed, for tests and for a kvd without a
//! data directory.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Kept, Store, StoreError, codec};
use crate::transfer::ledger::book::Write;
use crate::transfer::ledger::record::{Millis, TransferId};

/// What is on the disk that there is not. Clones share it, as two lives of a process share a disk.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    state: Arc<Mutex<Content>>,
}

#[derive(Debug, Default)]
struct Content {
    records: BTreeMap<TransferId, Vec<u8>>,
    clock: Millis,
    /// Writes until the power goes; `None` = it stays.
    left: Option<u32>,
    /// Whether the last write still reaches the disk, although nobody is told.
    torn: bool,
}

/// A ledger in memory.
#[derive(Debug, Default)]
pub struct Memory {
    disk: Disk,
}

impl Disk {
    /// Lets the power go at the write after `writes` more. With `written` that one still reaches
    /// the disk and only its answer is lost.
    pub fn fail_after(&self, writes: u32, written: bool) {
        let mut content = self.state.lock();
        content.left = Some(writes);
        content.torn = written;
    }

    /// Whether the power is gone.
    pub fn is_down(&self) -> bool {
        self.state.lock().left == Some(0)
    }

    /// Power is back, for the next life.
    pub fn restore(&self) -> Memory {
        self.state.lock().left = None;
        Memory { disk: self.clone() }
    }
}

impl Memory {
    /// A ledger on `disk`.
    pub fn on(disk: Disk) -> Memory {
        Memory { disk }
    }
}

impl Store for Memory {
    fn load(&mut self) -> Result<Kept, StoreError> {
        let content = self.disk.state.lock();
        let records: Vec<_> = content.records.values().filter_map(|b| codec::decode(b).ok()).collect();
        let unreadable = content.records.len() - records.len();
        Ok(Kept { records, clock: content.clock, unreadable })
    }

    fn write(&mut self, writes: &[Write], clock: Millis) -> Result<(), StoreError> {
        let mut content = self.disk.state.lock();
        let fails = match &mut content.left {
            None => false,
            Some(0) => return Err(StoreError::Closed),
            Some(left) => {
                *left -= 1;
                *left == 0
            }
        };
        if !fails || content.torn {
            for write in writes {
                match write {
                    Write::Put(record) => content.records.insert(record.id, codec::encode(record)),
                    Write::Delete(id) => content.records.remove(id),
                };
            }
            content.clock = clock;
        }
        if fails { Err(StoreError::Closed) } else { Ok(()) }
    }
}
