//! Snapshots as files: written aside, synced, renamed, noted in the catalog; the last good ones kept.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvindex::Index;
use parking_lot::Mutex;
use tracing::{info, warn};
use xxhash_rust::xxh3::Xxh3;

use super::load::{LoadError, Loaded, load};
use super::write::{Pace, WriteError, Written, write};
use crate::ingest::{Position, Publishers};
use crate::publisher::PublisherKey;
use crate::state::{Catalog, CatalogError, Cursor, Snapshot, SnapshotCursor, SnapshotState};
use crate::wall::unix_ms;

/// Below the data directory.
const FOLDER: &str = "snapshots";
/// What is being written ends in this.
const UNFINISHED: &str = ".new";

/// A snapshot that could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The file system refused something.
    #[error("{}: {error}", path.display())]
    Io {
        /// About what.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It was not written to its end.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// It is written, but could not be noted.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// The snapshots of one data directory.
pub struct Files {
    folder: PathBuf,
    catalog: Arc<Catalog>,
    /// How many good ones stay.
    keep: usize,
    /// One is written at a time.
    writing: Mutex<()>,
}

impl Files {
    /// Uses `data_dir`, and removes what an earlier process left unfinished.
    ///
    /// # Errors
    /// If the folder cannot be made or read.
    pub fn open(data_dir: &Path, catalog: Arc<Catalog>, keep: usize) -> Result<Files, KeepError> {
        let folder = data_dir.join(FOLDER);
        let failed = |error| KeepError::Io { path: folder.clone(), error };
        fs::create_dir_all(&folder).map_err(failed)?;
        let known: Vec<String> = catalog.snapshots().into_iter().map(|(name, _)| name).collect();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !known.contains(&name) && is_ours(&name) {
                // Not noted as complete, so nobody will ever read it.
                remove(&entry.path());
            }
        }
        Ok(Files { folder, catalog, keep: keep.max(1), writing: Mutex::new(()) })
    }

    /// Writes one more and removes those that are one too many.
    ///
    /// # Errors
    /// If it was not written or not noted; the earlier ones stay.
    pub fn write(
        &self,
        publishers: &Publishers,
        index: &Arc<Index>,
        pace: Pace,
        go_on: impl FnMut() -> bool,
    ) -> Result<Written, KeepError> {
        let _one_at_a_time = self.writing.lock();
        let cut_ms = unix_ms();
        let name = format!("index-{cut_ms:013}.kvs");
        let fresh = self.folder.join(format!("{name}{UNFINISHED}"));
        let lives = self.catalog.lives();
        let made = self.fill(&fresh, publishers, index, pace, go_on);
        if made.is_err() {
            remove(&fresh);
        }
        let (written, checksum) = made?;
        let path = self.folder.join(&name);
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| KeepError::Io { path, error }
        };
        fs::rename(&fresh, &path).map_err(io(&path))?;
        // The rename is durable only when the folder is.
        File::open(&self.folder).and_then(|f| f.sync_all()).map_err(io(&self.folder))?;
        let size = written.bytes;
        let cursors = cursors(&written, &lives);
        self.catalog.add_snapshot(
            &name,
            &Snapshot { state: SnapshotState::Complete, size, checksum, cut_ms, cursors },
        )?;
        self.remove_old();
        Ok(written)
    }

    fn fill(
        &self,
        path: &Path,
        publishers: &Publishers,
        index: &Arc<Index>,
        pace: Pace,
        go_on: impl FnMut() -> bool,
    ) -> Result<(Written, u64), KeepError> {
        let failed = |error| KeepError::Io { path: path.to_owned(), error };
        let mut out = Summed { file: File::create(path).map_err(failed)?, sum: Xxh3::new() };
        let written = write(publishers, index, &mut out, pace, go_on)?;
        out.file.sync_all().map_err(failed)?;
        Ok((written, out.sum.finish()))
    }

    /// Lets the publishers that wait go on from the newest snapshot that can be used. Those that cannot
    /// are marked bad, renamed and left for a look.
    pub fn load(&self, publishers: &Publishers, index: &Arc<Index>) -> Option<Loaded> {
        for (name, snapshot) in self.complete() {
            let path = self.folder.join(&name);
            let opened = File::open(&path);
            let loaded = opened.map_err(LoadError::from).and_then(|file| {
                check_size(&file, snapshot.size)?;
                load(publishers, index, &mut BufReader::new(file), |_| {})
            });
            match loaded {
                Ok(loaded) => {
                    let Loaded { publishers, blocks, passed_over, .. } = loaded;
                    info!(file = %path.display(), publishers, blocks, passed_over, "went on from a snapshot");
                    return Some(loaded);
                }
                Err(error) => self.set_aside(&name, &error),
            }
        }
        None
    }

    /// The newest complete snapshot: when it was cut, in milliseconds since 1970, and its file.
    pub fn newest(&self) -> Option<(u64, File)> {
        let (name, snapshot) = self.complete().next()?;
        // One that was removed just now has a newer one after it.
        Some((snapshot.cut_ms, File::open(self.folder.join(name)).ok()?))
    }

    fn complete(&self) -> impl Iterator<Item = (String, Snapshot)> {
        self.catalog.snapshots().into_iter().filter(|(_, s)| s.state == SnapshotState::Complete)
    }

    fn set_aside(&self, name: &str, error: &LoadError) {
        let path = self.folder.join(name);
        let aside = self.folder.join(format!("{name}.bad"));
        warn!(file = %path.display(), %error, aside = %aside.display(), "snapshot cannot be used, trying an older one");
        if let Err(error) = self.catalog.mark_bad(name) {
            warn!(%error, "cannot note that a snapshot is bad");
        }
        if let Err(error) = fs::rename(&path, &aside)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(file = %path.display(), %error, "cannot set a bad snapshot aside");
        }
    }

    /// Forgets all but the last good ones; of the bad, the newest stays to be looked at.
    fn remove_old(&self) {
        let (good, bad): (Vec<_>, Vec<_>) =
            self.catalog.snapshots().into_iter().partition(|(_, s)| s.state == SnapshotState::Complete);
        let old = good.into_iter().skip(self.keep).map(|(n, _)| (n.clone(), n));
        let bad = bad.into_iter().skip(1).map(|(n, _)| (format!("{n}.bad"), n));
        for (file, name) in old.chain(bad) {
            // The catalog first: what it names must be there.
            match self.catalog.remove_snapshot(&name) {
                Ok(()) => remove(&self.folder.join(file)),
                Err(error) => warn!(%error, name, "cannot forget an old snapshot"),
            }
        }
    }
}

/// The same for the catalog.
fn cursors(written: &Written, lives: &BTreeMap<PublisherKey, u64>) -> Vec<SnapshotCursor> {
    // Who has no life is not kept on disk, or came while this was being cut.
    let of = |(publisher, position): &(PublisherKey, Position)| {
        Some(SnapshotCursor {
            publisher: publisher.clone(),
            life: *lives.get(publisher)?,
            cursor: position.seq.map(|seq| Cursor { seq, ts: position.ts.unwrap_or_default() }),
        })
    };
    written.publishers.iter().filter_map(of).collect()
}

fn is_ours(name: &str) -> bool {
    name.starts_with("index-") && (name.ends_with(".kvs") || name.ends_with(UNFINISHED))
}

fn check_size(file: &File, size: u64) -> Result<(), LoadError> {
    let found = file.metadata()?.len();
    if found == size {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("{found} bytes, {size} were written")).into())
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(file = %path.display(), %error, "cannot remove a file");
    }
}

/// A file, and the sum of what was written to it.
struct Summed {
    file: File,
    sum: Xxh3,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.sum.write(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
