//! kvd's own index, through its public API: a batch per event, as an engine step with one event, and
//! the short question ([`kvindex::Matcher`]).
//!
//! Four ways. Blocks named by their own hashes and asked for by those (`kvd-local`) or by canonical
//! rolling hashes (`kvd-seq`), which is what the index has to do when tokens are hashed beforehand, as
//! the published indexes demand. Blocks named by the streams' sequence hashes alone
//! (`kvd-canonical`). And blocks of token ids that kvd hashes itself, on the way in and in every
//! question (`kvd-tokens`).

use std::sync::Arc;

use kvindex::{Blocks, HolderId, HolderSpec, Index, IndexConfig, Matched, Matcher};
use kvproto::event::{BatchBuilder, Content, StoredFields};
use kvproto::hash::canonical::Namespace;
use kvproto::{Batch, EngineHash, LocalHash, SeqHash, Tier};

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
pub type Event = (u32, Batch<'static>);

/// What a store says of its blocks besides their names.
enum Told {
    Nothing,
    Locals,
    Tokens(fn(u64) -> Vec<u32>),
}

impl Fleet {
    fn new(shape: Shape) -> Fleet {
        let index = Index::new(IndexConfig::default());
        let attach = |p| {
            index.attach(HolderSpec::new(TENANT, MODEL, &format!("10.0.{}.{}:8000", p / 256, p % 256), 0))
        };
        let pods = (0..shape.pods).map(attach).collect();
        Fleet { index: Arc::new(index), pods, block_size: shape.block_size }
    }

    fn event(&self, change: Change<'_>, told: Told) -> Event {
        let mut batch = BatchBuilder::new(0.0, None);
        let hashes = |blocks: &[u64]| blocks.iter().map(|b| EngineHash(*b)).collect::<Vec<_>>();
        let pod = match change {
            Change::Stored { pod, parent, position, blocks } => {
                let fields = StoredFields {
                    parent: parent.map(EngineHash),
                    block_size: self.block_size,
                    base_block: Some(position),
                    ..StoredFields::default()
                };
                let names: Vec<_> = blocks.iter().map(|[_, sequence]| EngineHash(*sequence)).collect();
                match told {
                    Told::Nothing => {
                        let fields = StoredFields { content: Content::Canonical, ..fields };
                        batch.stored(fields, &names, &[], &[]);
                    }
                    Told::Locals => {
                        let locals: Vec<_> = blocks.iter().map(|[local, _]| LocalHash(*local)).collect();
                        batch.hashed(fields, &names, &locals);
                    }
                    Told::Tokens(of) => {
                        let tokens: Vec<u32> = blocks.iter().flat_map(|[local, _]| of(*local)).collect();
                        batch.stored(fields, &names, &tokens, &[]);
                    }
                }
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
        (pod, batch.build())
    }

    fn ingest(&self, events: Vec<Event>) -> usize {
        // What was refused, or could not be placed, or was not there to be removed.
        let refused = |(pod, batch): &Event| {
            let done = self.index.apply(self.pods[*pod as usize], batch);
            (done.refused + done.orphans + done.unknown_removed) as usize
        };
        events.iter().map(refused).sum()
    }

    fn matcher(&self) -> Matcher {
        self.index.matcher(TENANT, MODEL, "").expect("pods are attached")
    }

    fn note(&self) -> String {
        format!("{:?}", self.index.stats())
    }
}

fn hit(matched: Matched<'_>) -> Hit {
    let mut hit = Hit::default();
    matched.levels(|blocks, pods| hit.add_level(blocks, pods));
    hit
}

/// A peer of each way: its name and key, what stores tell, and how it asks.
macro_rules! way {
    ($(#[$doc:meta])* $peer:ident $(<const $n:ident>)?, $name:expr, $key:expr, $block:ty, $told:expr,
     $as_block:expr, $asked:expr $(, $prompt:item)?) => {
        $(#[$doc])*
        pub struct $peer $(<const $n: usize>)? {
            fleet: Fleet,
            matcher: Matcher,
        }

        impl $(<const $n: usize>)? Peer for $peer $(<$n>)? {
            const NAME: &'static str = $name;
            const KEY: Key = $key;
            type Event = Event;
            type Block = $block;

            fn new(shape: Shape) -> Self {
                let fleet = Fleet::new(shape);
                let matcher = fleet.matcher();
                $peer { fleet, matcher }
            }
            fn event(&self, change: Change<'_>) -> Event {
                self.fleet.event(change, $told)
            }
            fn block(local: u64, sequence: u64) -> $block {
                let as_block: fn(u64, u64) -> $block = $as_block;
                as_block(local, sequence)
            }
            $($prompt)?
            fn ingest(&mut self, events: Vec<Event>) -> usize {
                self.fleet.ingest(events)
            }
            fn query(&mut self, prompt: &[$block]) -> Hit {
                let asked: fn(&[$block]) -> Blocks<'_> = $asked;
                hit(self.matcher.ask(asked(prompt)))
            }
            fn reader(&self) -> Option<Reader<$block>> {
                let asked: fn(&[$block]) -> Blocks<'_> = $asked;
                let mut matcher = self.fleet.matcher();
                Some(Box::new(move |prompt| hit(matcher.ask(asked(prompt)))))
            }
            fn note(&self) -> String {
                self.fleet.note()
            }
        }
    };
}

way!(
    /// By blocks' own hashes.
    ByLocal, "kvd-local", Key::Local, LocalHash, Told::Locals,
    |local, _| LocalHash(local), |prompt| Blocks::Local(prompt)
);

way!(
    /// By canonical hashes of blocks that came by their own hashes.
    BySequence, "kvd-seq", Key::Sequence, SeqHash, Told::Locals,
    |_, _| unreachable!("a block's canonical hash is told by all before it"),
    |prompt| Blocks::Canonical(prompt),
    fn prompt(locals: &[u64], _: &[u64], out: &mut Vec<SeqHash>) {
        // kvd chains with its namespace's seed, the streams with the published indexes'.
        let seed = Namespace { salt: "", model: MODEL, lora: None }.seed();
        let mut last = None;
        out.extend(locals.iter().map(|l| *last.insert(seed.chain(last, LocalHash(*l)))));
    }
);

way!(
    /// By hashes that stand for themselves; nothing else is known of a block.
    Canonical, "kvd-canonical", Key::Sequence, SeqHash, Told::Nothing,
    |_, sequence| SeqHash(sequence), |prompt| Blocks::Canonical(prompt)
);

way!(
    /// By `N` token ids a block: what a service does whose engines and askers speak of tokens.
    ByTokens<const N>, "kvd-tokens", Key::Tokens, [u32; N], Told::Tokens(|local| tokens::<N>(local).to_vec()),
    |local, _| tokens(local),
    |prompt| Blocks::Tokens {
        tokens: prompt.as_flattened(),
        block_size: N as u32,
        lora: None,
        cache_salt: None,
        items: &[],
    }
);

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
