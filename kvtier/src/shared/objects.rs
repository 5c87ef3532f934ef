//! Blocks in an object store.
//!
//! An object is put as a whole and only if there is none of its name, so two nodes that share the same
//! chain store it once, and one that is killed in the middle leaves nothing that can be read. What is
//! where is known from the objects' ends: read when they are first listed.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectMeta, ObjectStore, PutMode, PutPayload};
use tokio::runtime::Handle;
use twox_hash::XxHash3_128;

use super::trailer::{self, FOOTER, Row};
use super::{News, Shared};
use crate::policy::{BlockId, Owner};
use crate::slot::lock;
use crate::store::{Get, Put, Read, StoreKey};

/// Bytes of an object's end that are read at first: enough for the trailer of 64 blocks.
const END: u64 = 8192;
/// Objects that may fail to be read before the rest is left for the next look.
const MOST_FAILURES: usize = 16;
/// Generation in checksums of payloads: an object is written once.
const ONCE: u64 = u64::MAX;

/// Shared storage cannot be reached or read.
#[derive(Debug, thiserror::Error)]
#[error("{what} in shared storage")]
pub struct SharedError {
    /// What was tried.
    pub what: &'static str,
    /// Why not.
    pub source: Error,
}

#[derive(Clone, Debug)]
struct Place {
    key: StoreKey,
    object: Arc<Path>,
    offset: u64,
    checksum: u64,
}

#[derive(Debug, Default)]
struct Known {
    blocks: HashMap<BlockId, Place>,
    /// Objects whose end was read, ours or not, with the blocks that are found there.
    objects: HashMap<Path, Vec<BlockId>>,
    /// Objects that could not be reached when blocks of them were wanted, which are forgotten until it
    /// is seen that the object is still there.
    unreached: HashSet<Path>,
    /// Objects that were put since the last look began.
    fresh: HashSet<Path>,
    /// Failures since the start.
    failed: u64,
}

/// Blocks of one size in an object store.
#[derive(Debug)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    runtime: Handle,
    prefix: Path,
    block_bytes: usize,
    known: Mutex<Known>,
}

/// The object store at `url`: `file:///folder`, and with feature `s3` also `s3://bucket/prefix`, for
/// which the environment says the rest (`AWS_REGION`, `AWS_ENDPOINT`, keys).
///
/// # Errors
///
/// [`SharedError`] where there is none or it is not known how to reach it.
pub fn store_at(url: &str) -> Result<Arc<dyn ObjectStore>, SharedError> {
    let failed = |source| SharedError { what: "open what the URL names", source };
    if let Some(folder) = url.strip_prefix("file://") {
        std::fs::create_dir_all(folder)
            .map_err(|error| failed(Error::Generic { store: "file", source: error.into() }))?;
        return Ok(Arc::new(LocalFileSystem::new_with_prefix(folder).map_err(failed)?));
    }
    #[cfg(feature = "s3")]
    if url.starts_with("s3://") {
        // One that is there already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let s3 = object_store::aws::AmazonS3Builder::from_env().with_url(url).build().map_err(failed)?;
        return Ok(Arc::new(s3));
    }
    let text = format!("{url}: use file:///folder, or s3://bucket where kvd was built with feature s3");
    Err(failed(Error::NotSupported { source: text.into() }))
}

impl Objects {
    /// Blocks of `block_bytes` under `prefix`. Requests are made on `runtime`; methods are to be
    /// called from other threads.
    pub fn new(store: Arc<dyn ObjectStore>, runtime: Handle, prefix: &str, block_bytes: usize) -> Objects {
        // Blocks of another size are another node's pool.
        let prefix = Path::from(format!("{prefix}/{block_bytes}"));
        Objects { store, runtime, prefix, block_bytes, known: Mutex::default() }
    }

    /// Requests that failed so far.
    pub fn failed(&self) -> u64 {
        lock(&self.known).failed
    }

    /// Blocks known to be there.
    pub fn blocks(&self) -> usize {
        lock(&self.known).blocks.len()
    }

    /// Puts blocks of one model and group, none of which is known to be there.
    fn put_object(&self, blocks: &[Put<'_>]) -> Result<(), Error> {
        let Some(first) = blocks.first() else { return Ok(()) };
        let mut names = Vec::new();
        let mut bytes = Vec::with_capacity(blocks.len() * (self.block_bytes + 128));
        let mut rows = Vec::with_capacity(blocks.len());
        for put in blocks {
            names.extend(put.key.bytes());
            rows.push(Row {
                key: put.key,
                offset: bytes.len() as u64,
                checksum: put.key.checksum(ONCE, put.payload),
                after: put.after,
            });
            bytes.extend(put.payload);
        }
        bytes.extend(trailer::encode(&rows, self.block_bytes));
        let mut name = String::new();
        let hash = XxHash3_128::oneshot(&names);
        // Writing to a string does not fail.
        let _ = write!(name, "{}/{:032x}/{:08x}/{hash:032x}", self.prefix, first.key.model, first.key.group);
        let path = Path::from(name);
        let put = self.store.put_opts(&path, PutPayload::from(bytes), PutMode::Create.into());
        match self.runtime.block_on(put) {
            // Whoever put it has put the same: the name says what is in it, and reading verifies that.
            Ok(_) | Err(Error::AlreadyExists { .. }) => {
                lock(&self.known).fresh.insert(path.clone());
                self.note(&path, &rows);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Remembers what an object has. Returns the blocks that were not known before.
    fn note(&self, path: &Path, rows: &[Row]) -> Vec<StoreKey> {
        let known = &mut *lock(&self.known);
        let object = Arc::new(path.clone());
        let (mut here, mut fresh) = (Vec::new(), Vec::new());
        for Row { key, offset, checksum, .. } in rows.iter().copied() {
            let id = key.id();
            if let std::collections::hash_map::Entry::Vacant(entry) = known.blocks.entry(id) {
                entry.insert(Place { key, object: object.clone(), offset, checksum });
                here.push(id);
                fresh.push(key);
            }
        }
        known.objects.entry(path.clone()).or_default().extend(here);
        known.unreached.remove(path);
        fresh
    }

    /// The rows of an object; empty where it is not one of ours or is not whole.
    async fn rows(&self, object: &ObjectMeta) -> Result<Vec<Row>, Error> {
        if object.size < FOOTER as u64 {
            // S3 does not answer for the end of what is empty.
            return Ok(vec![]);
        }
        let end = |bytes: u64| async move {
            let options = GetOptions { range: Some(GetRange::Suffix(bytes)), ..GetOptions::default() };
            self.store.get_opts(&object.location, options).await?.bytes().await
        };
        let mut bytes = end(END.min(object.size)).await?;
        let Some(length) = trailer::length(&bytes) else { return Ok(vec![]) };
        let wanted = (length + FOOTER) as u64;
        if wanted > bytes.len() as u64 && wanted <= object.size {
            bytes = end(wanted).await?;
        }
        Ok(match trailer::decode(&bytes, object.size) {
            Some((rows, block_bytes)) if block_bytes == self.block_bytes => rows,
            Some(_) | None => vec![],
        })
    }

    async fn look(&self) -> Result<News, Error> {
        lock(&self.known).fresh.clear();
        let objects: Vec<ObjectMeta> = self.store.list(Some(&self.prefix)).try_collect().await?;
        let mut news = News::default();
        let there: HashSet<&Path> = objects.iter().map(|object| &object.location).collect();
        {
            let known = &mut *lock(&self.known);
            // What was put while this was listed may not be in the list.
            let fresh = &known.fresh;
            let gone = |path: &Path, _: &mut Vec<BlockId>| !there.contains(path) && !fresh.contains(path);
            for (path, blocks) in known.objects.extract_if(gone).collect::<Vec<_>>() {
                known.unreached.remove(&path);
                news.left
                    .extend(blocks.iter().filter_map(|id| known.blocks.remove(id)).map(|place| place.key));
            }
        }
        let mut failures = 0;
        for object in &objects {
            {
                let known = lock(&self.known);
                let path = &object.location;
                if known.objects.contains_key(path) && !known.unreached.contains(path) {
                    continue;
                }
            }
            match self.rows(object).await {
                Ok(rows) => {
                    let fresh = self.note(&object.location, &rows);
                    news.came.extend(fresh.into_iter().map(|key| (key, Owner::default())));
                }
                // It was removed meanwhile.
                Err(Error::NotFound { .. }) => {}
                // What is known so far must be told: it is not looked at again. One object that cannot
                // be read is in nobody's way; a server that is gone is not asked for every one.
                Err(_) => {
                    self.fail();
                    failures += 1;
                    if failures == MOST_FAILURES {
                        break;
                    }
                }
            }
        }
        Ok(news)
    }

    fn fail(&self) {
        lock(&self.known).failed += 1;
    }

    /// A block is not where it should be.
    fn forget(&self, key: &StoreKey) {
        lock(&self.known).blocks.remove(&key.id());
    }
}

impl Shared for Objects {
    fn put(&self, blocks: &[Put<'_>]) -> Vec<bool> {
        let is_there = |key: &StoreKey| lock(&self.known).blocks.contains_key(&key.id());
        let fresh: Vec<Put<'_>> = blocks
            .iter()
            .filter(|put| put.payload.len() == self.block_bytes && !is_there(&put.key))
            .copied()
            .collect();
        for alike in fresh.chunk_by(|a, b| (a.key.model, a.key.group) == (b.key.model, b.key.group)) {
            for chunk in alike.chunks(trailer::MOST) {
                if self.put_object(chunk).is_err() {
                    self.fail();
                }
            }
        }
        blocks.iter().map(|put| is_there(&put.key)).collect()
    }

    fn get(&self, blocks: &mut [Get<'_>]) -> Vec<Read> {
        let mut reads = vec![Read::Miss; blocks.len()];
        // Blocks of one object are asked for together.
        let mut wanted: HashMap<Arc<Path>, Vec<(usize, Place)>> = HashMap::new();
        for (at, get) in blocks.iter().enumerate() {
            if get.into.len() != self.block_bytes {
                reads[at] = Read::Size;
                continue;
            }
            let place = lock(&self.known).blocks.get(&get.key.id()).cloned();
            if let Some(place) = place.filter(|place| place.key == get.key) {
                wanted.entry(place.object.clone()).or_default().push((at, place));
            }
        }
        for (object, places) in wanted {
            let ranges: Vec<std::ops::Range<u64>> = places
                .iter()
                .map(|(_, place)| place.offset..place.offset + self.block_bytes as u64)
                .collect();
            let came = self.runtime.block_on(self.store.get_ranges(&object, &ranges));
            let failed = came.is_err();
            // It is gone, or it cannot be told and is looked at again.
            if matches!(&came, Err(error) if !matches!(error, Error::NotFound { .. })) {
                lock(&self.known).unreached.insert((*object).clone());
            }
            let bytes = came.unwrap_or_default();
            for (nth, (at, place)) in places.into_iter().enumerate() {
                let get = &mut blocks[at];
                let good = bytes.get(nth).is_some_and(|bytes| {
                    bytes.len() == get.into.len() && get.key.checksum(ONCE, bytes) == place.checksum
                });
                if good {
                    get.into.copy_from_slice(&bytes[nth]);
                    reads[at] = Read::Hit;
                } else {
                    reads[at] = Read::Lost;
                    self.forget(&place.key);
                }
            }
            if failed {
                self.fail();
            }
        }
        reads
    }

    fn news(&self) -> News {
        self.runtime.block_on(self.look()).unwrap_or_else(|_| {
            self.fail();
            News::default()
        })
    }
}
