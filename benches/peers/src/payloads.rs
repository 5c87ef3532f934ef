//! From an engine's payload to an index that has applied it: kvd, and Dynamo's decoder in front of its
//! compressed tree. The payloads are those of `kvd-benches ingest --save`.
//!
//! Processor time of the whole process, because Dynamo's tree is written by a thread of its own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use dynamo_kv_router::indexer::{SyncIndexer, ThreadPoolIndexer};
use dynamo_kv_router::indexer::concurrent_radix_tree_compressed::ConcurrentRadixTreeCompressed;
use dynamo_kv_router::protocols::{KvCacheEventData, WorkerWithDpRank};
use dynamo_kv_router::zmq_wire::{KvEventBatch, RawKvEvent, ZmqEventNormalizer, decode_event_batch};
use kvindex::{HolderId, HolderSpec, Index, IndexConfig};
use kvproto::engine::{Engine, decode};

use crate::alloc;
use crate::measure::clock::process_cpu;

/// Tokens per block of the payloads.
const BLOCK: u32 = 16;

/// What one decoder and index took, per block stored.
struct Cost {
    who: &'static str,
    blocks: u64,
    /// Processor seconds to decode alone, and altogether.
    decoded: f64,
    applied: f64,
    /// Allocations of all of it.
    allocations: u64,
    /// Pairs of pod and block held at the end.
    held: u64,
}

/// Measures the payloads in `path`, `passes` times each, and prints the best of them.
pub fn run(path: &Path, passes: usize) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let batches = split(&bytes)?;
    let pods = 1 + batches.iter().map(|(pod, _)| *pod).max().context("no payload in it")?;
    println!("{}: {} batches of {pods} pods", path.display(), batches.len());
    for pass in [dynamo, kvd] {
        let mut all = (0..passes.max(1)).map(|_| pass(&batches, pods)).collect::<Result<Vec<Cost>>>()?;
        all.sort_by(|a, b| a.applied.total_cmp(&b.applied));
        let Some(Cost { who, blocks, decoded, applied, allocations, held }) = all.first() else { continue };
        let slowest = all.last().map_or(0.0, |c| *blocks as f64 / c.applied / 1e6);
        let n = *blocks as f64;
        println!(
            "{who:<12} decoding {:>6.2} M blocks/CPU s, decoded and applied {:>5.2} (slowest pass {slowest:.2}), \
             {:.2} allocations per block, holds {held} pairs of pod and block",
            n / decoded / 1e6,
            n / applied / 1e6,
            *allocations as f64 / n
        );
    }
    Ok(())
}

/// Pod and payload of each batch: both numbers little-endian, 32 bits.
fn split(mut rest: &[u8]) -> Result<Vec<(u32, &[u8])>> {
    let mut batches = Vec::new();
    while let Some((pod, after)) = rest.split_first_chunk() {
        let (len, after) = after.split_first_chunk().context("a payload without its length")?;
        let (payload, after) =
            after.split_at_checked(u32::from_le_bytes(*len) as usize).context("a payload that is cut off")?;
        batches.push((u32::from_le_bytes(*pod), payload));
        rest = after;
    }
    ensure!(rest.is_empty(), "{} bytes too many", rest.len());
    Ok(batches)
}

fn kvd(batches: &[(u32, &[u8])], pods: u32) -> Result<Cost> {
    let index = Index::new(IndexConfig::default());
    let holders: Vec<HolderId> =
        (0..pods).map(|p| index.attach(HolderSpec::new("t", "m", &format!("p{p}"), 0))).collect();
    let began = process_cpu();
    let mut events = 0;
    for (_, payload) in batches {
        events += decode(Engine::Vllm, payload).context("decode")?.len();
    }
    std::hint::black_box(events);
    let decoded = process_cpu() - began;
    let (began, before) = (process_cpu(), alloc::calls());
    let mut blocks = 0;
    for (pod, payload) in batches {
        let batch = decode(Engine::Vllm, payload).context("decode")?;
        blocks += u64::from(index.apply(holders[*pod as usize], &batch).stored);
    }
    let (applied, allocations) = (process_cpu() - began, alloc::calls() - before);
    let held = index.stats().entries;
    ensure!(held > 0, "the index holds nothing");
    Ok(Cost { who: "kvd", blocks, decoded, applied, allocations, held })
}

fn dynamo(batches: &[(u32, &[u8])], _pods: u32) -> Result<Cost> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let tree = ThreadPoolIndexer::new(ConcurrentRadixTreeCompressed::new(), 1, BLOCK);
    let began = process_cpu();
    for (_, payload) in batches {
        std::hint::black_box(decode_event_batch(payload).context("decode")?);
    }
    let decoded = process_cpu() - began;
    let mut normalizer = ZmqEventNormalizer::new(BLOCK);
    let (began, before) = (process_cpu(), alloc::calls());
    let (mut blocks, mut id) = (0, 0);
    for (pod, payload) in batches {
        let KvEventBatch { events, .. } = decode_event_batch(payload).context("decode")?;
        for event in events {
            if let RawKvEvent::BlockStored { block_hashes, .. } = &event {
                blocks += block_hashes.len() as u64;
            }
            id += 1;
            let placed = normalizer.normalize(event, id, WorkerWithDpRank::new(u64::from(*pod), 0));
            let routed = placed.and_then(|p| p.into_router_event()).context("an event that it leaves out")?;
            tree.enqueue_event(routed).map_err(|e| anyhow::anyhow!("enqueue: {e}"))?;
        }
    }
    runtime.block_on(tree.flush_and_wait()).map_err(|e| anyhow::anyhow!("flush: {e}"))?;
    let (applied, allocations) = (process_cpu() - began, alloc::calls() - before);
    let held = tree.backend().dump_events().context("the tree can tell what it holds")?;
    let held = held.iter().map(|e| match &e.event.data {
        KvCacheEventData::Stored(stored) => stored.blocks.len() as u64,
        KvCacheEventData::Removed(_) | KvCacheEventData::Cleared => 0,
    });
    let held = held.sum();
    ensure!(held > 0, "the tree holds nothing");
    Ok(Cost { who: "dynamo-crtc", blocks, decoded, applied, allocations, held })
}
