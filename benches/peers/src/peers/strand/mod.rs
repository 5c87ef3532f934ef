//! A sketch of an index that should beat the published ones, as a mark for kvd's own: it shows what
//! the structure gives when nothing else is asked of it.
//!
//! Blocks live in *strands*: stretches of one chain that are never split ([`forest`]). A strand has
//! a bitset of the pods that hold all of it and a short list of (pod, from, to) intervals for the
//! rest, so a hole costs an interval and not a split. One table for the whole fleet ([`table`])
//! leads from a sequence hash to a block's strand and offset; a second, with an entry per strand,
//! leads from a strand, an offset and the next block to the strand that goes on there. Nothing is
//! kept per pod and block.
//!
//! What it leaves out: other threads (one writer that is also the reader), tiers, groups, counted
//! copies, more than 512 pods, hash domains, bounds; and a clear visits every strand.

mod ask;
mod forest;
mod table;

pub use table::Table;

use forest::Forest;

use crate::peer::{Hit, Key, Peer, Reader, Shape};
use crate::stream::Change;

/// A change in the sketch's own types.
pub enum Event {
    Stored(u32, Option<u64>, Vec<[u64; 2]>),
    Removed(u32, Vec<u64>),
    Cleared(u32),
}

/// Asked by local hashes, which it compares along the strands, or (`SEQUENCE`) by sequence hashes,
/// of which it probes a few.
pub struct Strand<const SEQUENCE: bool>(Forest);

impl<const SEQUENCE: bool> Peer for Strand<SEQUENCE> {
    const NAME: &'static str = if SEQUENCE { "proto-strand-seq" } else { "proto-strand" };
    const KEY: Key = if SEQUENCE { Key::Sequence } else { Key::Local };
    type Event = Event;
    type Block = u64;

    fn new(shape: Shape) -> Self {
        Strand(Forest::new(shape.pods, shape.expected_blocks))
    }
    fn event(&self, change: Change<'_>) -> Event {
        match change {
            Change::Stored { pod, parent, blocks, .. } => Event::Stored(pod, parent, blocks.to_vec()),
            Change::Removed { pod, blocks, .. } => Event::Removed(pod, blocks.to_vec()),
            Change::Cleared { pod } => Event::Cleared(pod),
        }
    }
    fn block(local: u64, sequence: u64) -> u64 {
        if SEQUENCE { sequence } else { local }
    }
    fn ingest(&mut self, events: Vec<Event>) -> usize {
        let mut refused = 0;
        for event in events {
            match event {
                Event::Stored(pod, parent, blocks) => {
                    refused += usize::from(!self.0.store(pod, parent, &blocks));
                }
                Event::Removed(pod, blocks) => self.0.remove(pod, &blocks),
                Event::Cleared(pod) => self.0.clear(pod),
            }
        }
        refused
    }
    fn query(&mut self, prompt: &[u64]) -> Hit {
        if SEQUENCE { self.0.ask_by_sequence(prompt) } else { self.0.ask_by_local(prompt) }
    }
    fn reader(&self) -> Option<Reader<u64>> {
        None
    }
    fn note(&self) -> String {
        self.0.note()
    }
}
