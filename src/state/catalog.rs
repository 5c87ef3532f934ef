//! The catalog: what is kept, and when it is on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::contents::{Contents, Cursor, Publisher, Snapshot, SnapshotState};
use super::error::CatalogError;
use super::format;
use super::memory::Memory;
use super::open;
use super::store::{Change, Durability, Rows, Store, Trouble};
use crate::publisher::{Followed, PublisherKey, PublisherSpec};

/// What kvd knows again after a restart. May be used from any thread.
pub struct Catalog {
    /// For messages.
    path: PathBuf,
    store: Box<dyn Store>,
    /// What is so. Never locked while something is written.
    now: Mutex<Contents>,
    /// Whether `now` has something that was not written.
    changed: AtomicBool,
    /// What the store has; `None` after a write that failed, which may be there or not. Held while
    /// writing, so that one write comes after the other.
    written: Mutex<Option<Rows>>,
    /// Held against another kvd on the same directory.
    _lock: Option<File>,
    set_aside: Option<PathBuf>,
    write_errors: AtomicU64,
}

impl Catalog {
    /// Opens the catalog in `directory`, both made where they are not there. A damaged one is set
    /// aside and what can be read of it taken over; so are, once, registrations of an earlier version.
    ///
    /// # Errors
    /// If the directory is in use, cannot be written, or its catalog is of a later version.
    pub fn open(directory: &Path) -> Result<Catalog, CatalogError> {
        let lock = open::lock(directory)?;
        let opened = open::store(directory)?;
        let imported = super::import::read(directory)?;
        let mut catalog = Catalog::over(opened.path, Box::new(opened.store))?;
        catalog._lock = Some(lock);
        catalog.set_aside = opened.set_aside;
        if let Some(imported) = imported {
            let mut all = catalog.publishers();
            let keys: Vec<_> = imported.iter().map(PublisherSpec::key).collect();
            all.retain(|known| !keys.contains(&known.spec.key()));
            all.extend(imported.into_iter().map(Followed::from));
            catalog.keep_publishers(&all)?;
            super::import::put_away(directory)?;
        }
        Ok(catalog)
    }

    /// A catalog of nothing that is forgotten when it is dropped.
    pub fn in_memory() -> Catalog {
        Catalog::over(PathBuf::new(), Box::new(Memory::default()))
            .expect("memory can be read and written, and has no format of a later version")
    }

    /// A catalog over `store`, in its next incarnation.
    pub(super) fn over(path: PathBuf, store: Box<dyn Store>) -> Result<Catalog, CatalogError> {
        let rows = store.read().map_err(|trouble| CatalogError::at(&path, trouble))?;
        let contents = format::contents(&rows).map_err(|trouble| CatalogError::at(&path, trouble))?;
        let catalog = Catalog {
            path,
            store,
            now: Mutex::new(contents),
            changed: AtomicBool::new(false),
            written: Mutex::new(Some(rows)),
            _lock: None,
            set_aside: None,
            write_errors: AtomicU64::new(0),
        };
        // Also finds out now whether anything can be written.
        catalog.change(|contents| contents.incarnation += 1)?;
        Ok(catalog)
    }

    /// How often kvd was started on this directory, this time included.
    pub fn incarnation(&self) -> u64 {
        self.now.lock().incarnation
    }

    /// Where a damaged catalog was put when this one was opened.
    pub fn set_aside(&self) -> Option<&Path> {
        self.set_aside.as_deref()
    }

    /// Writes that failed since the start.
    pub fn write_errors(&self) -> u64 {
        self.write_errors.load(Relaxed)
    }

    /// The registrations, by tenant, model, instance and rank.
    pub fn publishers(&self) -> Vec<Followed> {
        let now = self.now.lock();
        let followed = |p: &Publisher| Followed { spec: p.spec.clone(), origin: p.origin.clone() };
        now.publishers.values().map(followed).collect()
    }

    /// Makes `all` the registrations, and no others. On return that survives a crash. Who is
    /// replaced begins a new life.
    ///
    /// # Errors
    /// If it cannot be written; the next call that can writes what is then right.
    pub fn keep_publishers(&self, all: &[Followed]) -> Result<(), CatalogError> {
        self.change(|contents| contents.register(all))
    }

    /// Which life of its engine each publisher is in. A snapshot is noted with what this said before it
    /// was cut: who begins a life meanwhile is then in no snapshot, rather than in one of another engine.
    pub fn lives(&self) -> BTreeMap<PublisherKey, u64> {
        self.now.lock().publishers.iter().map(|(key, p)| (key.clone(), p.life)).collect()
    }

    /// Notes that a publisher is found to be a new engine, and says which life that is; `None` where
    /// none is registered. Waits for nothing: what is lost of this in a crash is found again, because
    /// no snapshot knows of it either.
    pub fn begin_life(&self, publisher: &PublisherKey) -> Option<u64> {
        let life = self.now.lock().begin_life(publisher)?;
        self.changed.store(true, Relaxed);
        Some(life)
    }

    /// Where the last complete snapshot has a publisher, in the life it is in.
    pub fn cursor(&self, publisher: &PublisherKey) -> Option<Cursor> {
        self.now.lock().cursor(publisher)
    }

    /// All snapshots with their file names, the last one cut first.
    pub fn snapshots(&self) -> Vec<(String, Snapshot)> {
        let mut all: Vec<_> =
            self.now.lock().snapshots.iter().map(|(name, s)| (name.clone(), s.clone())).collect();
        all.sort_by(|(a, x), (b, y)| (y.cut_ms, b).cmp(&(x.cut_ms, a)));
        all
    }

    /// Notes a snapshot, whose file is synced. On return that survives a crash.
    ///
    /// # Errors
    /// If it cannot be written; the snapshot is then not in the catalog.
    ///
    /// # Panics
    /// If `name` is no plain file name.
    pub fn add_snapshot(&self, name: &str, snapshot: &Snapshot) -> Result<(), CatalogError> {
        assert!(format::is_file_name(name), "{name:?} is no plain file name");
        self.change(|contents| {
            contents.snapshots.insert(name.to_owned(), snapshot.clone());
        })
    }

    /// Notes that a snapshot is not what was written, so that it is not tried again.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn mark_bad(&self, name: &str) -> Result<(), CatalogError> {
        self.change(|contents| {
            if let Some(snapshot) = contents.snapshots.get_mut(name) {
                snapshot.state = SnapshotState::Bad;
            }
        })
    }

    /// Forgets a snapshot. Its file may be removed afterwards, not before.
    ///
    /// # Errors
    /// If it cannot be written; the snapshot is then still in the catalog.
    pub fn remove_snapshot(&self, name: &str) -> Result<(), CatalogError> {
        self.change(|contents| drop(contents.snapshots.remove(name)))
    }

    /// Writes the lives that were noted since the last write, if any.
    ///
    /// # Errors
    /// If they cannot be written; the next call tries again.
    pub fn flush(&self) -> Result<(), CatalogError> {
        if !self.changed.load(Relaxed) {
            return Ok(());
        }
        let mut written = self.written.lock();
        self.changed.store(false, Relaxed);
        let rows = format::rows(&self.now.lock());
        let done = self.write(&mut written, rows, Durability::Soon);
        if done.is_err() {
            self.changed.store(true, Relaxed);
        }
        done
    }

    /// The same, and lets everything survive the machine. Before the end of the process.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn sync(&self) -> Result<(), CatalogError> {
        self.flush()?;
        let _one_at_a_time = self.written.lock();
        self.store.sync().map_err(|trouble| self.failed(trouble))
    }

    /// Changes what is so, once that is on disk.
    fn change(&self, change: impl Fn(&mut Contents)) -> Result<(), CatalogError> {
        let mut written = self.written.lock();
        let mut next = self.now.lock().clone();
        change(&mut next);
        self.write(&mut written, format::rows(&next), Durability::Synced)?;
        // Lives may have begun meanwhile, so what was written is not simply what is so.
        change(&mut self.now.lock());
        Ok(())
    }

    fn write(
        &self,
        written: &mut Option<Rows>,
        rows: Rows,
        durability: Durability,
    ) -> Result<(), CatalogError> {
        let old = match written.take() {
            Some(old) => old,
            None => self.store.read().map_err(|trouble| self.failed(trouble))?,
        };
        let changes = difference(&old, &rows);
        if !changes.is_empty() {
            self.store.write(changes, durability).map_err(|trouble| self.failed(trouble))?;
        }
        *written = Some(rows);
        Ok(())
    }

    fn failed(&self, trouble: Trouble) -> CatalogError {
        self.write_errors.fetch_add(1, Relaxed);
        CatalogError::at(&self.path, trouble)
    }
}

/// What turns `old` into `new`.
fn difference(old: &Rows, new: &Rows) -> Vec<Change> {
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), None));
    let fresh = new.iter().filter(|(key, value)| old.get(*key) != Some(value));
    gone.chain(fresh.map(|(key, value)| (key.clone(), Some(value.clone())))).collect()
}
