//! What a pool's disk still has from before: found again in two steps, so that lookups do not wait
//! for the second.
//!
//! First the table is read, and blocks can be looked up and loaded. Then the planner is told of
//! them, parents first, a stretch at a time: between stretches engines are served.

use std::path::Path;

use super::change::Change;
use super::pool::Pool;
use crate::policy::{Owner, Tier};
use crate::shared::News;
use crate::slot::lock;
use crate::store::{Backend, Layout, OpenError, Record, Store, StoreKey, parents_first};

/// Blocks that the planner is told of at once. Told one by one they cost about a microsecond each.
const STRETCH: usize = 512;

impl Pool {
    /// Opens the disk, after which lookups are answered. Returns what is to be given to
    /// [`restore`](Self::restore).
    pub fn open_disk(
        &self,
        folder: &Path,
        layout: Layout,
        backend: Backend,
    ) -> Result<Vec<Record>, OpenError> {
        let (store, records) = Store::open(folder, layout, backend)?;
        // Only the first to open it gets here: the folder is locked.
        let _ = self.store.set(Some(store));
        Ok(records)
    }

    /// This pool has no disk.
    pub fn no_disk(&self) {
        let _ = self.store.set(None);
        lock(&self.state).restored = true;
    }

    /// Tells the planner what the disk has.
    pub fn restore(&self, records: &[Record]) {
        for stretch in parents_first(records).chunks(STRETCH) {
            let mut state = lock(&self.state);
            for record in stretch {
                let id = record.key.id();
                // It may have been lost or given up since.
                let there = self.disk().is_some_and(|disk| disk.name(id) == Some(record.key));
                if !there {
                    continue;
                }
                if state.planner.restore(id, record.after, record.owner, Tier::Disk) {
                    state.names.add(&record.key);
                } else {
                    self.tell(&mut state, &[Change::left(record.key, Tier::Disk)]);
                    self.disk().map(|disk| disk.remove(record.key));
                }
            }
        }
        lock(&self.state).restored = true;
    }

    /// Takes up what has changed in shared storage.
    pub fn learn_shared(&self, news: &News) {
        for stretch in news.came.chunks(STRETCH) {
            let mut state = lock(&self.state);
            for (key, owner) in stretch {
                if state.shared.insert(key.id(), *key).is_none() {
                    state.planner.restore(key.id(), None, *owner, Tier::Shared);
                    self.tell(&mut state, &[Change::came(*key, Tier::Shared)]);
                    self.journal.shared(self.block_bytes, key, Some(*owner));
                }
            }
        }
        for key in &news.left {
            let mut state = lock(&self.state);
            if state.shared.remove(&key.id()).is_some() {
                self.tell(&mut state, &[Change::left(*key, Tier::Shared)]);
                self.journal.shared(self.block_bytes, key, None);
                self.reconcile(&mut state, key.id());
            }
        }
    }

    /// Tells the planner what this node knows to be in shared storage.
    pub fn restore_shared(&self, blocks: &[(StoreKey, Owner)]) {
        for stretch in blocks.chunks(STRETCH) {
            let mut state = lock(&self.state);
            for (key, owner) in stretch {
                // Which block was before it is known again when somebody asks for both.
                state.planner.restore(key.id(), None, *owner, Tier::Shared);
                state.shared.insert(key.id(), *key);
                state.names.add(key);
            }
        }
    }
}
