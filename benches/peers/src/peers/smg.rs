//! kv-index 2.0.0, of the gateway smg: the run-compressed chain index.

use std::sync::Arc;

use kv_index::{ChainBlockMap, ChainIndex, ContentHash, SequenceHash, StoredBlock};

use crate::peer::{Hit, Key, Peer, Reader, Shape};
use crate::stream::Change;

/// A change in the index's own types.
pub enum Event {
    Stored(u32, Option<SequenceHash>, Vec<StoredBlock>),
    Removed(u32, Vec<SequenceHash>),
    Cleared(u32),
}

/// `MAP` chooses how readers get scores: in a map made per query, or by callback.
pub struct Chain<const MAP: bool> {
    index: Arc<ChainIndex>,
    maps: Vec<ChainBlockMap>,
}

fn ask<const MAP: bool>(index: &ChainIndex, prompt: &[u64]) -> Hit {
    let mut hit = Hit::default();
    if MAP {
        // Making the call's own type of the prompt is part of a call.
        let prompt: Vec<ContentHash> = prompt.iter().map(|x| ContentHash(*x)).collect();
        index.find_matches(&prompt, false).scores.values().for_each(|s| hit.add(*s));
    } else {
        index.score_into(prompt, |x| *x, false, |_, s| hit.add(s));
    }
    hit
}

impl<const MAP: bool> Peer for Chain<MAP> {
    const NAME: &'static str = if MAP { "smg-chain-map" } else { "smg-chain" };
    const KEY: Key = Key::Local;
    type Event = Event;
    type Block = u64;

    fn new(shape: Shape) -> Self {
        let index = ChainIndex::with_max_workers(shape.pods as usize);
        for pod in 0..shape.pods {
            let id = index.intern_worker(&format!("w{pod}")).expect("no more pods than announced");
            assert_eq!(id, pod, "pods are numbered in order");
        }
        Chain { index: Arc::new(index), maps: (0..shape.pods).map(|_| ChainBlockMap::new()).collect() }
    }
    fn event(&self, change: Change<'_>) -> Event {
        match change {
            Change::Stored { pod, parent, blocks, .. } => {
                let block = |&[local, sequence]: &[u64; 2]| StoredBlock {
                    seq_hash: SequenceHash(sequence),
                    content_hash: ContentHash(local),
                };
                Event::Stored(pod, parent.map(SequenceHash), blocks.iter().map(block).collect())
            }
            // The index is a set: its caller counts copies.
            Change::Removed { pod, blocks, .. } => {
                Event::Removed(pod, blocks.iter().map(|b| SequenceHash(*b)).collect())
            }
            Change::Cleared { pod } => Event::Cleared(pod),
        }
    }
    fn block(local: u64, _sequence: u64) -> u64 {
        local
    }
    fn ingest(&mut self, events: Vec<Event>) -> usize {
        let mut refused = 0;
        for event in events {
            match event {
                Event::Stored(pod, parent, blocks) => {
                    let map = &mut self.maps[pod as usize];
                    refused += usize::from(self.index.apply_stored(pod, &blocks, parent, map).is_err());
                }
                Event::Removed(pod, blocks) => {
                    self.index.apply_removed(pod, &blocks, &mut self.maps[pod as usize]);
                }
                Event::Cleared(pod) => self.index.apply_cleared(pod, &mut self.maps[pod as usize]),
            }
        }
        refused
    }
    fn query(&mut self, prompt: &[u64]) -> Hit {
        ask::<MAP>(&self.index, prompt)
    }
    fn reader(&self) -> Option<Reader<u64>> {
        let index = self.index.clone();
        Some(Box::new(move |prompt| ask::<MAP>(&index, prompt)))
    }
    fn note(&self) -> String {
        format!("{:?}", self.index.stats())
    }
}
