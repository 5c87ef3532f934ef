//! Files that are read again when they change.
//!
//! They are looked at rather than watched, see `discovery::file`. What cannot be used changes nothing: a
//! certificate and its key are seldom replaced at one moment.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tracing::{info, warn};

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct LoadError {
    /// Which; the first where it is several together.
    pub file: PathBuf,
    /// Why not.
    pub why: String,
}

/// What some files come to.
pub struct Reloaded<T> {
    files: Vec<PathBuf>,
    read: fn(&[Vec<u8>]) -> Result<T, String>,
    /// What was looked at last, whether it could be used or not.
    seen: Mutex<Vec<Vec<u8>>>,
    now: RwLock<Arc<T>>,
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what is in them.
        f.debug_struct("Reloaded").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T> Reloaded<T> {
    /// Reads `files`.
    ///
    /// # Errors
    /// If one is not there, or they make no sense.
    pub fn load(files: Vec<PathBuf>, read: fn(&[Vec<u8>]) -> Result<T, String>) -> Result<Self, LoadError> {
        let seen = contents(&files)?;
        let now = read(&seen).map_err(|why| LoadError { file: files[0].clone(), why })?;
        Ok(Reloaded { files, read, seen: Mutex::new(seen), now: RwLock::new(Arc::new(now)) })
    }

    /// What they came to last.
    pub fn now(&self) -> Arc<T> {
        Arc::clone(&self.now.read())
    }

    /// Looks whether they have changed.
    pub fn look(&self) {
        let mut seen = self.seen.lock();
        let found = match contents(&self.files) {
            Ok(found) => found,
            Err(error) => {
                // Once, until it is there again.
                if !seen.is_empty() {
                    warn!(%error, "cannot be read, going on with what it was");
                    seen.clear();
                }
                return;
            }
        };
        if *seen == found {
            return;
        }
        match (self.read)(&found) {
            Ok(now) => {
                *self.now.write() = Arc::new(now);
                info!(file = %self.files[0].display(), "read again");
            }
            Err(why) => {
                warn!(file = %self.files[0].display(), why, "cannot be used, going on with what it was");
            }
        }
        *seen = found;
    }
}

fn contents(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, LoadError> {
    let read = |file: &PathBuf| {
        std::fs::read(file).map_err(|e| LoadError { file: file.clone(), why: e.to_string() })
    };
    files.iter().map(read).collect()
}
