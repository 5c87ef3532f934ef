//! Registrations as version 0.1 kept them while there was no catalog: one JSON file.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::Deserialize;

use super::error::CatalogError;
use crate::publisher::PublisherSpec;

/// The file's format.
const VERSION: u32 = 1;
const NAME: &str = "publishers.json";
/// What it is called when its registrations are in the catalog.
const IMPORTED: &str = "publishers.json.imported";

#[derive(Deserialize)]
struct Header {
    version: u32,
}

#[derive(Deserialize)]
struct Contents {
    publishers: Vec<PublisherSpec>,
}

/// The registrations to take over from `directory`; `None` where there is no such file.
///
/// # Errors
/// If there is one that cannot be read. It stays as it is.
pub fn read(directory: &Path) -> Result<Option<Vec<PublisherSpec>>, CatalogError> {
    let path = directory.join(NAME);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CatalogError::Import { path, error }),
    };
    let damaged = |error| CatalogError::ImportDamaged { path: path.clone(), error };
    let header: Header = serde_json::from_slice(&text).map_err(damaged)?;
    if header.version != VERSION {
        return Err(CatalogError::ImportVersion { path, found: header.version });
    }
    let contents: Contents = serde_json::from_slice(&text).map_err(damaged)?;
    Ok(Some(contents.publishers))
}

/// Renames the file, so that it is not taken over again. Its registrations must be synced.
///
/// # Errors
/// If that cannot be done.
pub fn put_away(directory: &Path) -> Result<(), CatalogError> {
    let path = directory.join(NAME);
    let renamed =
        fs::rename(&path, directory.join(IMPORTED)).and_then(|()| File::open(directory)?.sync_all());
    renamed.map_err(|error| CatalogError::Import { path, error })
}
