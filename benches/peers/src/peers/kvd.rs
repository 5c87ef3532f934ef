//! kvd's own index, through its public API: a batch per event, as an engine step with one event.
//!
//! Twice: blocks named by the streams' sequence hashes (which stand for kvd's canonical hashes),
//! and blocks of token ids that kvd hashes itself, on the way in and in every query.

use std::sync::Arc;

use kvindex::{HolderId, HolderSpec, Index, IndexConfig, Prompt, Query};
use kvproto::event::{BatchBuilder, Content, StoredFields};
use kvproto::{Batch, EngineHash, SeqHash, Tier};

use crate::hash::mix;
use crate::peer::{Hit, Key, Peer, Reader, Shape};
use crate::stream::Change;

const TENANT: &str = "default";
const MODEL: &str = "model";

/// An index and a holder for every pod.
struct Fleet {
    index: Arc<Index>,
    pods: Vec<HolderId>,
    block_size: u32,
}

/// One change of one pod, ready to be applied.
pub type Event = (HolderId, Batch<'static>);

impl Fleet {
    fn new(shape: Shape) -> Fleet {
        let index = Index::new(IndexConfig::default());
        let attach = |p| {
            index.attach(HolderSpec::new(TENANT, MODEL, &format!("10.0.{}.{}:8000", p / 256, p % 256), 0))
        };
        let pods = (0..shape.pods).map(attach).collect();
        Fleet { index: Arc::new(index), pods, block_size: shape.block_size }
    }

    /// `tokens` of a block by its local hash; none where blocks are named by their hashes alone.
    fn event(&self, change: Change<'_>, tokens: Option<impl Fn(u64) -> Vec<u32>>) -> Event {
        let mut batch = BatchBuilder::new(0.0, None);
        let hashes = |blocks: &[u64]| blocks.iter().map(|b| EngineHash(*b)).collect::<Vec<_>>();
        let pod = match change {
            Change::Stored { pod, parent, position, blocks } => {
                let content = if tokens.is_some() { Content::Complete } else { Content::Canonical };
                let fields = StoredFields {
                    parent: parent.map(EngineHash),
                    block_size: self.block_size,
                    content,
                    base_block: Some(position),
                    ..StoredFields::default()
                };
                let names: Vec<_> = blocks.iter().map(|[_, sequence]| EngineHash(*sequence)).collect();
                let tokens =
                    tokens.map_or(Vec::new(), |of| blocks.iter().flat_map(|[local, _]| of(*local)).collect());
                batch.stored(fields, &names, &tokens, &[]);
                pod
            }
            Change::Removed { pod, blocks, copies } => {
                batch.removed(&hashes(blocks), Tier::Gpu, 0);
                if !copies.is_empty() {
                    batch.removed(&hashes(copies), Tier::Gpu, 0);
                }
                pod
            }
            Change::Cleared { pod } => {
                batch.cleared(None);
                pod
            }
        };
        (self.pods[pod as usize], batch.build())
    }

    fn ingest(&self, events: Vec<Event>) -> usize {
        // What was refused, or could not be placed, or was not there to be removed.
        let refused = |(pod, batch): &Event| {
            let done = self.index.apply(*pod, batch);
            (done.refused + done.orphans + done.unknown_removed) as usize
        };
        events.iter().map(refused).sum()
    }
}

fn ask(index: &Index, prompt: Prompt<'_>) -> Hit {
    let mut hit = Hit::default();
    for score in index.query(&Query::new(TENANT, MODEL, prompt)).scores {
        hit.add(score.cached);
    }
    hit
}

/// Blocks by sequence hash.
pub struct BySequence(Fleet);

impl Peer for BySequence {
    const NAME: &'static str = "kvd";
    const KEY: Key = Key::Sequence;
    type Event = Event;
    type Block = SeqHash;

    fn new(shape: Shape) -> Self {
        BySequence(Fleet::new(shape))
    }
    fn event(&self, change: Change<'_>) -> Event {
        self.0.event(change, None::<fn(u64) -> Vec<u32>>)
    }
    fn block(_local: u64, sequence: u64) -> SeqHash {
        SeqHash(sequence)
    }
    fn ingest(&mut self, events: Vec<Event>) -> usize {
        self.0.ingest(events)
    }
    fn query(&mut self, prompt: &[SeqHash]) -> Hit {
        ask(&self.0.index, Prompt::Canonical(prompt))
    }
    fn reader(&self) -> Option<Reader<SeqHash>> {
        let index = self.0.index.clone();
        Some(Box::new(move |prompt| ask(&index, Prompt::Canonical(prompt))))
    }
    fn note(&self) -> String {
        format!("{:?}", self.0.index.stats())
    }
}

/// Blocks of `N` token ids each: what a service does whose engines and askers speak of tokens.
pub struct ByTokens<const N: usize>(Fleet);

/// Token ids that are another block's where the local hash is another.
fn tokens<const N: usize>(local: u64) -> [u32; N] {
    let mut at = 0;
    [(); N].map(|()| {
        let token = match at {
            0 => local as u32,
            1 => (local >> 32) as u32,
            n => mix(local.wrapping_add(n)) as u32,
        };
        at += 1;
        token
    })
}

impl<const N: usize> Peer for ByTokens<N> {
    const NAME: &'static str = "kvd-tokens";
    const KEY: Key = Key::Tokens;
    type Event = Event;
    type Block = [u32; N];

    fn new(shape: Shape) -> Self {
        assert_eq!(shape.block_size as usize, N, "tokens per block");
        ByTokens(Fleet::new(shape))
    }
    fn event(&self, change: Change<'_>) -> Event {
        self.0.event(change, Some(|local| tokens::<N>(local).to_vec()))
    }
    fn block(local: u64, _sequence: u64) -> [u32; N] {
        tokens(local)
    }
    fn ingest(&mut self, events: Vec<Event>) -> usize {
        self.0.ingest(events)
    }
    fn query(&mut self, prompt: &[[u32; N]]) -> Hit {
        ask(&self.0.index, Prompt::tokens(prompt.as_flattened()))
    }
    fn reader(&self) -> Option<Reader<[u32; N]>> {
        let index = self.0.index.clone();
        Some(Box::new(move |prompt| ask(&index, Prompt::tokens(prompt.as_flattened()))))
    }
    fn note(&self) -> String {
        format!("{:?}", self.0.index.stats())
    }
}
