//! dynamo-kv-router 1.6.1: the radix tree, the concurrent compressed tree that Dynamo uses by
//! default, and the positional index.

use std::sync::Arc;

use dynamo_kv_router::indexer::concurrent_radix_tree_compressed::ConcurrentRadixTreeCompressed;
use dynamo_kv_router::indexer::positional::{LevelIndex, PositionalIndexer, SearchMode};
use dynamo_kv_router::indexer::{RadixTree, SyncIndexer, ThreadPoolIndexer};
use dynamo_kv_router::protocols::{
    ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
    KvCacheStoredBlockData, LocalBlockHash, OverlapScores, RouterEvent, WorkerWithDpRank,
};
use rustc_hash::FxHashMap;

use crate::peer::{Hit, Key, Peer, Reader, Shape};
use crate::stream::Change;

/// Blocks between two probes of the positional index: its own default.
const JUMP: usize = 32;

fn router_event(change: Change<'_>) -> RouterEvent {
    let (pod, data) = match change {
        Change::Stored { pod, parent, blocks, .. } => {
            let block = |&[local, sequence]: &[u64; 2]| KvCacheStoredBlockData {
                block_hash: ExternalSequenceBlockHash(sequence),
                tokens_hash: LocalBlockHash(local),
                mm_extra_info: None,
            };
            let data = KvCacheStoreData {
                parent_hash: parent.map(ExternalSequenceBlockHash),
                start_position: None,
                blocks: blocks.iter().map(block).collect(),
            };
            (pod, KvCacheEventData::Stored(data))
        }
        Change::Removed { pod, blocks, .. } => {
            let block_hashes = blocks.iter().map(|b| ExternalSequenceBlockHash(*b)).collect();
            (pod, KvCacheEventData::Removed(KvCacheRemoveData { block_hashes }))
        }
        Change::Cleared { pod } => (pod, KvCacheEventData::Cleared),
    };
    RouterEvent::new(u64::from(pod), KvCacheEvent { event_id: 0, data, dp_rank: 0 })
}

fn fold(scores: &OverlapScores) -> Hit {
    let mut hit = Hit::default();
    scores.scores.values().for_each(|s| hit.add(*s));
    hit
}

/// The compressed radix tree, single-threaded.
pub struct Radix(RadixTree);

impl Peer for Radix {
    const NAME: &'static str = "dynamo-radix";
    const KEY: Key = Key::Local;
    type Event = RouterEvent;
    type Block = LocalBlockHash;

    fn new(_: Shape) -> Self {
        Radix(RadixTree::new())
    }
    fn event(&self, change: Change<'_>) -> RouterEvent {
        router_event(change)
    }
    fn block(local: u64, _sequence: u64) -> LocalBlockHash {
        LocalBlockHash(local)
    }
    fn ingest(&mut self, events: Vec<RouterEvent>) -> usize {
        events.into_iter().map(|e| usize::from(self.0.apply_event(e).is_err())).sum()
    }
    fn query(&mut self, prompt: &[LocalBlockHash]) -> Hit {
        // The call takes the hashes by value: the copy is part of it.
        fold(&self.0.find_matches(prompt.to_vec(), false))
    }
    fn reader(&self) -> Option<Reader<LocalBlockHash>> {
        None
    }
}

/// The positional ("flash") index, driven by one writer; `BINARY` searches by halving instead of
/// jumping.
pub struct Positional<const BINARY: bool> {
    index: Arc<PositionalIndexer>,
    blocks: FxHashMap<WorkerWithDpRank, LevelIndex>,
}

impl<const BINARY: bool> Peer for Positional<BINARY> {
    const NAME: &'static str = if BINARY { "dynamo-positional-bin" } else { "dynamo-positional" };
    const KEY: Key = Key::Local;
    type Event = RouterEvent;
    type Block = LocalBlockHash;

    fn new(_: Shape) -> Self {
        let mode = if BINARY { SearchMode::Binary } else { SearchMode::Strided };
        let index = Arc::new(PositionalIndexer::new_with_mode(JUMP, mode));
        Positional { index, blocks: FxHashMap::default() }
    }
    fn event(&self, change: Change<'_>) -> RouterEvent {
        router_event(change)
    }
    fn block(local: u64, _sequence: u64) -> LocalBlockHash {
        LocalBlockHash(local)
    }
    fn ingest(&mut self, events: Vec<RouterEvent>) -> usize {
        let apply = |e| usize::from(self.index.apply_event(&mut self.blocks, e, None).is_err());
        events.into_iter().map(apply).sum()
    }
    fn query(&mut self, prompt: &[LocalBlockHash]) -> Hit {
        fold(&self.index.find_matches(prompt, false))
    }
    fn reader(&self) -> Option<Reader<LocalBlockHash>> {
        let index = self.index.clone();
        Some(Box::new(move |prompt| fold(&index.find_matches(prompt, false))))
    }
}

/// The concurrent compressed tree behind a pool of one writer thread. Its apply function is
/// private, so events go through the pool's queue.
pub struct Compressed {
    pool: ThreadPoolIndexer<ConcurrentRadixTreeCompressed>,
    runtime: tokio::runtime::Runtime,
}

impl Peer for Compressed {
    const NAME: &'static str = "dynamo-crtc";
    const KEY: Key = Key::Local;
    const OWN_WRITER: bool = true;
    type Event = RouterEvent;
    type Block = LocalBlockHash;

    fn new(shape: Shape) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        Compressed {
            pool: ThreadPoolIndexer::new(ConcurrentRadixTreeCompressed::new(), 1, shape.block_size),
            runtime: runtime.expect("a runtime without drivers needs nothing"),
        }
    }
    fn event(&self, change: Change<'_>) -> RouterEvent {
        router_event(change)
    }
    fn block(local: u64, _sequence: u64) -> LocalBlockHash {
        LocalBlockHash(local)
    }
    fn ingest(&mut self, events: Vec<RouterEvent>) -> usize {
        let enqueue = |e| usize::from(self.pool.enqueue_event(e).is_err());
        let refused = events.into_iter().map(enqueue).sum();
        self.runtime.block_on(self.pool.flush_and_wait()).expect("the writer thread runs");
        refused
    }
    fn query(&mut self, prompt: &[LocalBlockHash]) -> Hit {
        fold(&self.pool.backend().find_matches_impl(prompt, false))
    }
    fn reader(&self) -> Option<Reader<LocalBlockHash>> {
        let tree = self.pool.backend_arc();
        Some(Box::new(move |prompt| fold(&tree.find_matches_impl(prompt, false))))
    }
}
