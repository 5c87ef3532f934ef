//! Opening a data directory: one kvd at a time, and a damaged catalog does not keep it from starting.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tracing::error;

use super::error::CatalogError;
use super::format;
use super::rocks::Rocks;
use super::store::{Durability, Store, Trouble};

/// The catalog in the data directory.
const CATALOG: &str = "catalog";
/// Held by the kvd that uses the directory, whose process it names.
const LOCK: &str = "kvd.lock";
/// Damaged catalogs that are kept for a closer look, `catalog.damaged-1` the last one.
const KEPT: u32 = 3;

/// A store that can be read, and where it is.
pub struct Opened {
    pub store: Rocks,
    pub path: PathBuf,
    /// Where a damaged one was put.
    pub set_aside: Option<PathBuf>,
}

/// Makes `directory` where it is not there, and takes it for this process until the file is dropped.
///
/// # Errors
/// If it cannot be written, or another kvd has it.
pub fn lock(directory: &Path) -> Result<File, CatalogError> {
    let unusable = |error| CatalogError::Directory { path: directory.to_owned(), error };
    fs::create_dir_all(directory).map_err(unusable)?;
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.join(LOCK))
        .map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Whose it is helps, but is not needed.
            let _ = file.read_to_string(&mut pid);
            return Err(CatalogError::InUse { path: directory.to_owned(), pid: pid.trim().parse().ok() });
        }
        Err(TryLockError::Error(error)) => return Err(unusable(error)),
    }
    let named = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    named.map_err(unusable)?;
    Ok(file)
}

/// Opens the store in `directory`, or a new one with what can be read of it where it is damaged.
///
/// # Errors
/// If it can be neither used nor set aside.
pub fn store(directory: &Path) -> Result<Opened, CatalogError> {
    let path = directory.join(CATALOG);
    let at = |trouble| CatalogError::at(&path, trouble);
    match readable(&path) {
        Ok(store) => Ok(Opened { store, path, set_aside: None }),
        Err(Trouble::Damaged { why }) => {
            let aside = set_aside(directory).map_err(|error| {
                at(Trouble::Damaged { why: format!("{why}; it cannot be renamed: {error}") })
            })?;
            let left = format::salvage(&Rocks::salvage(&aside));
            error!(
                catalog = %path.display(), kept = %aside.display(), why,
                publishers = left.publishers.len(), snapshots = left.snapshots.len(),
                "catalog is damaged: set aside, going on with what could be read of it; register again who is missing"
            );
            let store = Rocks::open(&path).map_err(at)?;
            let rows = format::rows(&left).into_iter().map(|(key, value)| (key, Some(value)));
            store.write(rows.collect(), Durability::Synced).map_err(at)?;
            Ok(Opened { store, path, set_aside: Some(aside) })
        }
        Err(other) => Err(at(other)),
    }
}

/// Opens a store all of whose rows make sense.
fn readable(path: &Path) -> Result<Rocks, Trouble> {
    let store = Rocks::open(path)?;
    format::contents(&store.read()?)?;
    Ok(store)
}

/// Renames the catalog, and says to what. Keeps the last few and removes what is older.
fn set_aside(directory: &Path) -> io::Result<PathBuf> {
    let kept = |n| directory.join(format!("{CATALOG}.damaged-{n}"));
    match fs::remove_dir_all(kept(KEPT)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    for n in (0..KEPT).rev() {
        let from = if n == 0 { directory.join(CATALOG) } else { kept(n) };
        match fs::rename(from, kept(n + 1)) {
            Err(e) if n == 0 || e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    File::open(directory)?.sync_all()?;
    Ok(kept(1))
}
