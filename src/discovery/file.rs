//! A file of publishers, read again when it changes.
//!
//! It is looked at rather than watched: a mounted ConfigMap changes by way of symbolic links, other file
//! systems do not tell at all, and reading a small file once a second costs nothing.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tracing::{info, warn};

use super::board::{Seen, Standing, Word};
use super::run::{Deaf, Feed, Gone};
use super::{Counts, Discovery};
use crate::registration::Registration;

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes that are read; more is no list of publishers.
const MOST: u64 = 16 << 20;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Listed {
    publisher: Vec<Registration>,
}

/// Says what the file holds until nobody listens any more.
pub async fn watch(path: PathBuf, feed: Feed, discovery: Arc<Discovery>) -> Deaf {
    let mut before: Option<io::Result<Vec<u8>>> = None;
    loop {
        let reading = path.clone();
        let Ok(now) = tokio::task::spawn_blocking(move || content(&reading)).await else { return Err(Gone) };
        if before.as_ref().is_none_or(|b| !is_same(b, &now)) {
            let word = match &now {
                Ok(bytes) => read(&path, bytes),
                Err(error) => Err(error.to_string()),
            };
            let word = match word {
                Ok(seen) => {
                    info!(file = %path.display(), "publishers read");
                    Counts::add(&discovery.counts.listed, 1);
                    Word::All(vec![seen])
                }
                Err(why) => {
                    warn!(file = %path.display(), error = why, "publishers cannot be read, going on with those before");
                    Counts::add(&discovery.counts.errors, 1);
                    Word::Failed(why)
                }
            };
            feed.say(word).await?;
            before = Some(now);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn content(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(io::Error::other(format!("it is larger than {MOST} bytes")));
    }
    Ok(bytes)
}

fn is_same(a: &io::Result<Vec<u8>>, b: &io::Result<Vec<u8>>) -> bool {
    match (a, b) {
        (Ok(a), Ok(b)) => a == b,
        (Err(a), Err(b)) => a.kind() == b.kind(),
        _ => false,
    }
}

/// What the file at `path` holds. One that is wrong anywhere says nothing: half of a list would take
/// the other half's engines away.
pub fn read(path: &Path, bytes: &[u8]) -> Result<Seen, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    let mut unknown = Vec::new();
    let table = toml::Deserializer::parse(text).map_err(|e| e.to_string())?;
    let listed: Listed = serde_ignored::deserialize(table, |key| unknown.push(key.to_string()))
        .map_err(|e: toml::de::Error| e.to_string())?;
    if !unknown.is_empty() {
        return Err(format!("unknown key {}", unknown.join(", ")));
    }
    let mut publishers = Vec::with_capacity(listed.publisher.len());
    for (i, registration) in listed.publisher.into_iter().enumerate() {
        publishers.push(registration.check().map_err(|e| format!("publisher number {}: {e}", i + 1))?);
    }
    Ok(Seen {
        object: path.display().to_string(),
        identity: String::new(),
        standing: Standing::Serving,
        publishers: Ok(publishers),
    })
}
