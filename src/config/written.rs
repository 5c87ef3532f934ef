//! What does a configuration file say, and does all of it mean something?

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("config file {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The file is no TOML, or a value in it is of the wrong type.
    #[error("config file {}: {error}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: Box<toml::de::Error>,
    },
    /// Keys that mean nothing.
    #[error("config file {}: unknown key {}; {example} lists the keys there are", path.display(), keys.join(", "))]
    UnknownKeys {
        /// The file.
        path: PathBuf,
        /// The keys, with their tables.
        keys: Vec<String>,
        /// A file with all keys there are.
        example: &'static str,
    },
}

/// The text of a file that the configuration is, or names.
pub(crate) fn read(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(|error| FileError::Unreadable { path: path.to_owned(), error })
}

/// What `text`, that of the file at `path`, sets. All keys there are stand in `example`.
pub(crate) fn parse<T: DeserializeOwned>(
    text: &str,
    path: &Path,
    example: &'static str,
) -> Result<T, FileError> {
    let malformed = |error| FileError::Malformed { path: path.to_owned(), error: Box::new(error) };
    let mut keys = Vec::new();
    let table = toml::Deserializer::parse(text).map_err(malformed)?;
    let file =
        serde_ignored::deserialize(table, |key| keys.push(named(&key.to_string()))).map_err(malformed)?;
    match keys.is_empty() {
        true => Ok(file),
        false => Err(FileError::UnknownKeys { path: path.to_owned(), keys, example }),
    }
}

/// A key that means nothing, without the marks for tables that may be left out.
fn named(path: &str) -> String {
    format!("`{}`", path.replace(".?", ""))
}
