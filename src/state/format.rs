//! The catalog's rows, as bytes. `docs/formats.md` lays them down.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::contents::{Contents, Publisher, Snapshot};
use super::store::{Rows, Trouble};
use crate::publisher::PublisherKey;

/// The format that is written. Every change of a row's meaning, and every new kind of row, is a new one.
pub const FORMAT: u64 = 2;

const FORMAT_KEY: &[u8] = b"m/format";
const INCARNATION_KEY: &[u8] = b"m/incarnation";
const FIRST_LIFE_KEY: &[u8] = b"m/first_life";
const PUBLISHER: &[u8] = b"p/";
const SNAPSHOT: &[u8] = b"s/";

/// The rows of `contents`.
pub fn rows(contents: &Contents) -> Rows {
    let mut rows = Rows::from([
        (FORMAT_KEY.to_vec(), encode(&FORMAT)),
        (INCARNATION_KEY.to_vec(), encode(&contents.incarnation)),
        (FIRST_LIFE_KEY.to_vec(), encode(&contents.first_life)),
    ]);
    for (key, publisher) in &contents.publishers {
        rows.insert([PUBLISHER, &encode(key)].concat(), encode(publisher));
    }
    for (name, snapshot) in &contents.snapshots {
        rows.insert([SNAPSHOT, name.as_bytes()].concat(), encode(snapshot));
    }
    rows
}

/// What `rows` say. A catalog without a row is new.
///
/// # Errors
/// If a later version wrote them, or they are not what any version writes.
pub fn contents(rows: &Rows) -> Result<Contents, Trouble> {
    let mut contents = Contents::default();
    if rows.is_empty() {
        return Ok(contents);
    }
    let format: u64 = match rows.get(FORMAT_KEY) {
        Some(value) => decode(FORMAT_KEY, value)?,
        None => return Err(Trouble::Damaged { why: "it does not say its format".into() }),
    };
    if format > FORMAT {
        return Err(Trouble::Newer { why: format!("format {format}, this version reads up to {FORMAT}") });
    }
    for (key, value) in rows {
        take(&mut contents, key, value)?;
    }
    Ok(contents)
}

/// What can be made of the `rows` of a damaged catalog. Some are missing, others may be older than the
/// rest, so every life is a new one: no snapshot's cursor counts.
pub fn salvage(rows: &Rows) -> Contents {
    let mut contents = Contents::default();
    for (key, value) in rows {
        // What does not fit is what is lost.
        let _ = take(&mut contents, key, value);
    }
    contents.renew_lives();
    contents
}

/// Adds what one row says.
fn take(contents: &mut Contents, key: &[u8], value: &[u8]) -> Result<(), Trouble> {
    if key == FORMAT_KEY {
    } else if key == INCARNATION_KEY {
        contents.incarnation = decode(key, value)?;
    } else if key == FIRST_LIFE_KEY {
        contents.first_life = decode(key, value)?;
    } else if let Some(name) = key.strip_prefix(PUBLISHER) {
        let name: PublisherKey = decode(key, name)?;
        let publisher: Publisher = decode(key, value)?;
        if publisher.spec.key() != name {
            return Err(wrong(key, "it holds another publisher"));
        }
        contents.publishers.insert(name, publisher);
    } else if let Some(name) = key.strip_prefix(SNAPSHOT) {
        let name = std::str::from_utf8(name).map_err(|e| wrong(key, &e))?;
        if !is_file_name(name) {
            return Err(wrong(key, "it names no file of the data directory"));
        }
        let snapshot: Snapshot = decode(key, value)?;
        contents.snapshots.insert(name.to_owned(), snapshot);
    } else {
        return Err(wrong(key, "no such row is written"));
    }
    Ok(())
}

/// Whether `name` is a file of the directory that it is joined to, and nowhere else.
pub fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("numbers, texts and lists of them can be written to memory")
}

fn decode<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T, Trouble> {
    let mut rest = value;
    let decoded = rmp_serde::decode::from_read(&mut rest).map_err(|e| wrong(key, &e))?;
    if rest.is_empty() { Ok(decoded) } else { Err(wrong(key, "something follows its value")) }
}

fn wrong(key: &[u8], why: &(impl ToString + ?Sized)) -> Trouble {
    Trouble::Damaged { why: format!("row {}: {}", key.escape_ascii(), why.to_string()) }
}
