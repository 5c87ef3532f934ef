//! What a (block, pod) pair costs.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::clock::resident_bytes;
use crate::alloc::{count, live_bytes};
use crate::peer::{Peer, Shape};
use crate::stream::Change;
use crate::workload::filler::fill;

/// Events handed over at a time.
const BATCH: usize = 256;

/// What one process measured of one index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    pub peer: String,
    /// (Block, pod) pairs, and pods that hold each block.
    pub entries: u64,
    pub share: u64,
    /// Bytes per pair: allocated and not freed, and resident.
    pub live: f64,
    pub resident: f64,
}

/// Fills a new index with `entries` pairs, each block held by `share` of `pods`.
pub fn memory<P: Peer>(entries: usize, share: usize, pods: u32, block_size: u32) -> Memory {
    count();
    let mut peer = P::new(Shape { pods, block_size, expected_blocks: 0 });
    let (live, resident, began) = (live_bytes(), resident_bytes(), Instant::now());
    let (mut n, mut pending) = (0, Vec::new());
    fill(entries, share, pods, |pod, blocks| {
        n += blocks.len() as u64;
        pending.push(peer.event(Change::Stored { pod, parent: None, position: 0, blocks }));
        if pending.len() == BATCH {
            peer.ingest(std::mem::take(&mut pending));
        }
    });
    peer.ingest(pending);
    eprintln!("{}: {n} entries in {:.2} s", P::NAME, began.elapsed().as_secs_f64());
    let per_entry = |bytes: isize| bytes as f64 / n as f64;
    let memory = Memory {
        peer: P::NAME.to_owned(),
        entries: n,
        share: share as u64,
        live: per_entry(live_bytes() - live),
        resident: per_entry(resident_bytes() - resident),
    };
    // Only now may the index go.
    drop(peer);
    memory
}
