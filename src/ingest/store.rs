//! Registrations on disk.
//!
//! One small JSON file, replaced as a whole: whenever the process dies, either the old or the
//! new one is there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::publisher::PublisherSpec;

/// The file's format.
const VERSION: u32 = 1;
const NAME: &str = "publishers.json";

/// Registrations that cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The data directory cannot be used.
    #[error("data directory {}: {error}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The file cannot be read.
    #[error("read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The file cannot be written.
    #[error("write {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The file is not what was written.
    #[error("{} is damaged ({error}); repair it, or move it away and register the publishers again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: serde_json::Error,
    },
    /// The file is of another version.
    #[error("{} has format {found}, this version reads {VERSION}; move it away and register the publishers again", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

#[derive(Deserialize)]
struct Header {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Contents {
    version: u32,
    publishers: Vec<PublisherSpec>,
}

/// Where registrations are kept.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Uses `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(directory: &Path) -> Result<Store, StoreError> {
        fs::create_dir_all(directory)
            .map_err(|error| StoreError::Directory { path: directory.to_owned(), error })?;
        Ok(Store { directory: directory.to_owned() })
    }

    /// Reads the registrations; none if there is no file yet.
    ///
    /// # Errors
    /// If the file cannot be read or is not what was written. It stays as it is.
    pub fn load(&self) -> Result<Vec<PublisherSpec>, StoreError> {
        let path = self.directory.join(NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::Read { path, error }),
        };
        let damaged = |error| StoreError::Damaged { path: path.clone(), error };
        let header: Header = serde_json::from_slice(&text).map_err(damaged)?;
        if header.version != VERSION {
            return Err(StoreError::Version { path, found: header.version });
        }
        let contents: Contents = serde_json::from_slice(&text).map_err(damaged)?;
        Ok(contents.publishers)
    }

    /// Keeps `publishers`, and nothing else. On return they survive a crash.
    ///
    /// # Errors
    /// If they cannot be written; then the old ones are still there.
    pub fn save(&self, publishers: Vec<PublisherSpec>) -> Result<(), StoreError> {
        let path = self.directory.join(NAME);
        self.write(&path, &Contents { version: VERSION, publishers })
            .map_err(|error| StoreError::Write { path, error })
    }

    fn write(&self, path: &Path, contents: &Contents) -> io::Result<()> {
        let fresh = self.directory.join(format!("{NAME}.new"));
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec_pretty(contents)?)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        // The rename is durable only when the directory is.
        File::open(&self.directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::testing::dialled;

    #[test]
    fn registrations_come_back_as_they_were_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("data")).unwrap();
        assert_eq!(store.load().unwrap(), []);
        let specs = vec![dialled("a", "tcp://10.0.0.1:5557"), dialled("b", "tcp://[::1]:5557")];
        store.save(specs.clone()).unwrap();
        assert_eq!(store.load().unwrap(), specs);
        store.save(specs[..1].to_vec()).unwrap();
        assert_eq!(store.load().unwrap(), specs[..1]);
    }

    #[test]
    fn a_damaged_file_is_named_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let store = Store::open(dir.path()).unwrap();
        for (text, says) in
            [("{\"version\": 1", "damaged"), ("{\"version\": 7}", "format 7"), ("", "damaged")]
        {
            fs::write(&path, text).unwrap();
            let error = store.load().unwrap_err().to_string();
            assert!(
                error.contains(says) && error.contains(NAME) && error.contains("move it away"),
                "{error}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn what_a_crash_left_half_written_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save(vec![dialled("a", "tcp://10.0.0.1:5557")]).unwrap();
        fs::write(dir.path().join(format!("{NAME}.new")), "{\"ver").unwrap();
        assert_eq!(store.load().unwrap().len(), 1);
        store.save(vec![]).unwrap();
        assert_eq!(store.load().unwrap(), []);
    }
}
