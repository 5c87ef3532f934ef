//! What a node tells of its blocks: one ordered stream of batches per model, kept for who missed
//! some.
//!
//! ```text
//!   change ──▶ batch, next number ──▶ RocksDB ──▶ Publish (the service's socket)
//!                                        └──▶ replay:  batches from a number on, or a snapshot
//! ```
//!
//! A batch is written to the log before it is published, so a process that was killed goes on where
//! subscribers heard it last. Only what was told between the last commit and the kill may be untrue
//! then; [`Streams::resume`] says which blocks those are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::catalog::{Catalog, CatalogError, Logged, StreamRow};
use super::change::{Change, Journal};
use super::wire::encode;
use crate::policy::{Owner, Tier};
use crate::slot::lock;
use crate::store::StoreKey;

/// Batches kept for replay, at least; up to an eighth more are.
const KEPT: u64 = 100_000;
/// Blocks in a batch of a snapshot, at least.
const SNAPSHOT_BLOCKS: usize = 16_384;

/// A batch of events and its number.
pub type Numbered = (u64, Vec<u8>);

/// Who sends batches to subscribers. Called in order, and must not wait: what cannot be sent is
/// left out, and whoever misses it asks for it.
pub trait Publish: Send + Sync + std::fmt::Debug {
    /// A batch of a model's stream.
    fn publish(&self, stream: u32, seq: u64, payload: &[u8]);
}

/// Nobody listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unheard;

impl Publish for Unheard {
    fn publish(&self, _stream: u32, _seq: u64, _payload: &[u8]) {}
}

/// What a stream has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamStats {
    /// The model.
    pub model: String,
    /// Number of the next batch.
    pub next: u64,
    /// First batch that can be replayed.
    pub first: u64,
    /// Changes told by this process.
    pub changes: u64,
    /// Batches that could not be written to the log.
    pub unlogged: u64,
}

#[derive(Debug)]
struct Stream {
    row: StreamRow,
    next: u64,
    changes: u64,
    unlogged: u64,
    /// Whether the row is not as it was last written.
    changed: bool,
}

#[derive(Debug, Default)]
struct Inner {
    streams: Vec<Stream>,
    /// By fingerprint, as in block names.
    of_model: HashMap<u128, u32>,
    /// Changes of models that nobody named.
    nameless: u64,
}

/// All streams of a node.
pub(super) struct Streams {
    catalog: Arc<Catalog>,
    publish: Arc<dyn Publish>,
    clock: super::Clock,
    owner: String,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Streams {
    /// The streams that the catalogue knows, each to go on where it ended.
    pub fn open(
        catalog: Arc<Catalog>,
        publish: Arc<dyn Publish>,
        clock: super::Clock,
        owner: String,
    ) -> Result<Streams, CatalogError> {
        let mut streams = Vec::new();
        for (at, row) in catalog.streams()?.into_iter().enumerate() {
            let next = catalog.end(at as u32)?.unwrap_or(0).max(row.first);
            streams.push(Stream { row, next, changes: 0, unlogged: 0, changed: false });
        }
        let inner = Mutex::new(Inner { streams, ..Inner::default() });
        Ok(Streams { catalog, publish, clock, owner, inner })
    }

    /// Says which model a fingerprint is of. Its blocks are told of from then on.
    pub fn name(&self, fingerprint: u128, model: &str) -> Result<u32, CatalogError> {
        let inner = &mut *lock(&self.inner);
        if let Some(stream) = inner.of_model.get(&fingerprint) {
            return Ok(*stream);
        }
        let stream = self.stream(inner, model)?;
        inner.of_model.insert(fingerprint, stream);
        Ok(stream)
    }

    /// What a model is called in blocks' names.
    pub fn fingerprints(&self, model: &str) -> Vec<u128> {
        let inner = lock(&self.inner);
        let of = inner.streams.iter().position(|stream| stream.row.model == model);
        let named = inner.of_model.iter().filter(|(_, stream)| Some(**stream as usize) == of);
        named.map(|(fingerprint, _)| *fingerprint).collect()
    }

    /// The number of a model's stream.
    pub fn open_stream(&self, model: &str) -> Result<u32, CatalogError> {
        self.stream(&mut lock(&self.inner), model)
    }

    fn stream(&self, inner: &mut Inner, model: &str) -> Result<u32, CatalogError> {
        if let Some(at) = inner.streams.iter().position(|stream| stream.row.model == model) {
            return Ok(at as u32);
        }
        let row = StreamRow { model: model.to_owned(), first: 0, settled: 0 };
        let at = inner.streams.len() as u32;
        self.catalog.set_stream(at, &row)?;
        inner.streams.push(Stream { row, next: 0, changes: 0, unlogged: 0, changed: false });
        Ok(at)
    }

    /// What each stream has told.
    pub fn stats(&self) -> Vec<StreamStats> {
        let inner = lock(&self.inner);
        let stats = |stream: &Stream| StreamStats {
            model: stream.row.model.clone(),
            next: stream.next,
            first: stream.row.first,
            changes: stream.changes,
            unlogged: stream.unlogged,
        };
        inner.streams.iter().map(stats).collect()
    }

    /// Where each stream stands: to be read before a commit, and given to
    /// [`settled`](Self::settled) after it.
    pub fn stand(&self) -> Vec<u64> {
        lock(&self.inner).streams.iter().map(|stream| stream.next).collect()
    }

    /// What was told before `stand` is written down on disk, too. Also drops what is too old.
    pub fn settled(&self, stand: &[u64]) -> Result<(), CatalogError> {
        let inner = &mut *lock(&self.inner);
        for (at, (stream, settled)) in inner.streams.iter_mut().zip(stand).enumerate() {
            if stream.row.settled == *settled && !stream.changed {
                continue;
            }
            stream.row.settled = *settled;
            stream.changed = true;
            let oldest = stream.next.saturating_sub(KEPT);
            if oldest > stream.row.first + KEPT / 8 {
                stream.row.first = oldest;
            }
            self.catalog.set_stream(at as u32, &stream.row)?;
            stream.changed = false;
        }
        Ok(())
    }

    /// What a stream last said of each block on disk after its last commit: whether it came. All
    /// else that it told of the disk is so.
    pub fn unsettled(&self, stream: u32) -> Result<HashMap<StoreKey, bool>, CatalogError> {
        let mut from = match lock(&self.inner).streams.get(stream as usize) {
            Some(stream) => stream.row.settled.max(stream.row.first),
            None => return Ok(HashMap::new()),
        };
        let mut last = HashMap::new();
        loop {
            let batches = self.catalog.logged(stream, from, 256)?;
            let Some(end) = batches.last() else { return Ok(last) };
            from = end.seq + 1;
            for (came, tier, key) in batches.into_iter().flat_map(|batch| batch.changes) {
                if tier == Tier::Disk {
                    last.insert(key, came);
                }
            }
        }
    }

    /// Nothing is in RAM after a start: says so, where the stream goes on. What else is not so any
    /// more is in `changes`.
    pub fn resume(&self, stream: u32, changes: &[Change]) {
        let inner = &mut *lock(&self.inner);
        if inner.streams.get(stream as usize).is_some_and(|stream| stream.next > 0) {
            self.send(inner, stream, Some(Some(Tier::Cpu)), changes);
        }
    }

    /// Batches of a stream from `seq` on, up to `most` of them; `None` where that one is not kept
    /// any more or was never told, and a snapshot is to be sent instead. Empty where `seq` is the
    /// next to come.
    pub fn replay(&self, stream: u32, seq: u64, most: usize) -> Result<Option<Vec<Numbered>>, CatalogError> {
        let (first, next) = match lock(&self.inner).streams.get(stream as usize) {
            Some(stream) => (stream.row.first, stream.next),
            None => return Ok(None),
        };
        if seq < first || seq > next {
            return Ok(None);
        }
        let batches = self.catalog.logged(stream, seq, most)?;
        Ok(Some(batches.into_iter().map(|batch| (batch.seq, batch.payload)).collect()))
    }

    /// Batches that stand for all that a stream has told, as numbers up to its last. To be called
    /// while nothing can change; `blocks` is what is where.
    pub fn snapshot(&self, stream: u32, blocks: &[(StoreKey, Tier)]) -> Vec<Numbered> {
        let inner = lock(&self.inner);
        let Some(next) = inner.streams.get(stream as usize).map(|stream| stream.next) else { return vec![] };
        let ours = |(key, _): &&(StoreKey, Tier)| inner.of_model.get(&key.model) == Some(&stream);
        let mut changes: Vec<Change> =
            blocks.iter().filter(ours).map(|(key, tier)| Change::came(*key, *tier)).collect();
        changes.sort_by_key(|change| (change.tier, change.key.group));
        // As many batches as there are numbers, at most.
        let per = SNAPSHOT_BLOCKS.max(changes.len().div_ceil(next.max(1) as usize));
        let mut parts: Vec<&[Change]> = changes.chunks(per).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let first = next.saturating_sub(parts.len() as u64);
        let now = (self.clock)();
        let batch = |(at, part): (usize, &&[Change])| {
            (first + at as u64, encode(now, &self.owner, (at == 0).then_some(None), part))
        };
        parts.iter().enumerate().map(batch).collect()
    }

    fn send(&self, inner: &mut Inner, at: u32, clear: Option<Option<Tier>>, changes: &[Change]) {
        let Some(stream) = inner.streams.get_mut(at as usize) else { return };
        let payload = encode((self.clock)(), &self.owner, clear, changes);
        let noted = changes.iter().map(|change| (change.came, change.tier, change.key)).collect();
        let batch = Logged { seq: stream.next, payload, changes: noted };
        stream.next += 1;
        stream.changes += changes.len() as u64;
        if self.catalog.log(at, &batch).is_err() {
            // Who misses what is from before this hole gets a snapshot.
            stream.unlogged += 1;
            stream.row.first = stream.next;
            stream.changed = true;
        }
        self.publish.publish(at, batch.seq, &batch.payload);
    }
}

impl Journal for Streams {
    fn tell(&self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let inner = &mut *lock(&self.inner);
        // Nearly always all of one model.
        for of_model in changes.chunk_by(|a, b| a.key.model == b.key.model) {
            match inner.of_model.get(&of_model[0].key.model) {
                Some(&stream) => self.send(inner, stream, None, of_model),
                None => inner.nameless += of_model.len() as u64,
            }
        }
    }

    fn shared(&self, block_bytes: usize, key: &StoreKey, owner: Option<Owner>) {
        // Forgotten, it would be found again by the next node that looks.
        let _ = self.catalog.set_shared(block_bytes, key, owner);
    }
}
