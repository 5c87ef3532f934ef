//! What can be wrong with a data directory, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use super::store::Trouble;

/// A data directory that cannot be used, read or written.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The directory cannot be made or written.
    #[error("data directory {} cannot be written: {error}; make it writable or choose another with --data-dir", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Another kvd uses the directory.
    #[error("data directory {} is in use by another kvd{}; stop that one or choose another with --data-dir", path.display(), process(pid))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Which process, where it says.
        pid: Option<u32>,
    },
    /// Another program has the catalog open.
    #[error("catalog {} is open in another program ({why}); end that one first", path.display())]
    Locked {
        /// The catalog.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// A later version wrote the catalog.
    #[error("catalog {} was written by a later version ({why}); run that version, or move it away and register the publishers again", path.display())]
    Newer {
        /// The catalog.
        path: PathBuf,
        /// How that can be seen.
        why: String,
    },
    /// The catalog is not what was written, and could not be set aside.
    #[error("catalog {} is damaged ({why}); move it away and register the publishers again", path.display())]
    Damaged {
        /// The catalog.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// No room to write.
    #[error("catalog {} cannot be written, the disk is full ({why}); free some space or choose another disk with --data-dir", path.display())]
    Full {
        /// The catalog.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// No permission to write.
    #[error("catalog {} cannot be written ({why}); make it and everything in it writable or choose another directory with --data-dir", path.display())]
    Denied {
        /// The catalog.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// Something else.
    #[error("catalog {} cannot be used: {why}; if it stays so, move it away and register the publishers again", path.display())]
    Failed {
        /// The catalog.
        path: PathBuf,
        /// What the library says.
        why: String,
    },
    /// The registrations of an earlier version cannot be read or put away.
    #[error("import {}: {error}; make it readable, or move it away and register the publishers again", path.display())]
    Import {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The registrations of an earlier version are not what was written.
    #[error("{} is damaged ({error}); repair it, or move it away and register the publishers again", path.display())]
    ImportDamaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: serde_json::Error,
    },
    /// The file with registrations is of a version that never was.
    #[error("{} has format {found}, only format 1 can be imported; move it away and register the publishers again", path.display())]
    ImportVersion {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

impl CatalogError {
    /// What happened to the catalog at `path`.
    pub(super) fn at(path: &Path, trouble: Trouble) -> CatalogError {
        let path = path.to_owned();
        match trouble {
            Trouble::Damaged { why } => CatalogError::Damaged { path, why },
            Trouble::Newer { why } => CatalogError::Newer { path, why },
            Trouble::Locked { why } => CatalogError::Locked { path, why },
            Trouble::Full { why } => CatalogError::Full { path, why },
            Trouble::Denied { why } => CatalogError::Denied { path, why },
            Trouble::Failed { why } => CatalogError::Failed { path, why },
        }
    }
}

fn process(pid: &Option<u32>) -> String {
    pid.map_or(String::new(), |pid| format!(" (process {pid})"))
}
