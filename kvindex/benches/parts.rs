//! The parts of the index, each by itself: `cargo bench -p kvindex`.
//!
//! One forest of 64 pods that share the beginnings of long prompts, and fresh batches for each
//! iteration that changes something. What a real stream costs is benches/peers' to say; this is to see which
//! part a change touched. Every question's answer is checked once before it is timed.

use divan::{Bencher, black_box};
use kvindex::{Blocks, HolderId, HolderSpec, Index, IndexConfig, Prompt, Query};
use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::hash::canonical::{Namespace, PromptExtras, prompt_hashes};
use kvproto::{Batch, EngineHash, LocalHash, SeqHash, Tier};

fn main() {
    divan::main();
}

const BLOCK: usize = 16;
const PODS: usize = 64;
/// Blocks that all prompts begin with, and blocks of each prompt.
const SHARED: usize = 64;
const LENGTHS: [usize; 3] = [24, 767, 8192];

/// Tokens of prompt `n` with `blocks` blocks.
fn tokens(n: u64, blocks: usize) -> Vec<u32> {
    let token = |i: usize| {
        let own = if i < SHARED * BLOCK { 0 } else { n + 1 };
        (own.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (i as u64).wrapping_mul(0xFF51_AFD7_ED55_8CCD)) as u32
            >> 15
    };
    (0..blocks * BLOCK).map(token).collect()
}

fn names(tokens: &[u32]) -> Vec<EngineHash> {
    let mut h = 7u64;
    let chain = tokens.chunks_exact(BLOCK).map(|block| {
        for t in block {
            h = (h ^ u64::from(*t)).wrapping_mul(0xFF51_AFD7_ED55_8CCD).rotate_left(29);
        }
        EngineHash(h)
    });
    chain.collect()
}

fn stored(tokens: &[u32]) -> Batch<'static> {
    let mut batch = BatchBuilder::new(0.0, None);
    let fields = StoredFields { block_size: BLOCK as u32, ..StoredFields::default() };
    batch.stored(fields, &names(tokens), tokens, &[]);
    batch.build()
}

fn removed(names: &[EngineHash]) -> Batch<'static> {
    let mut batch = BatchBuilder::new(0.0, None);
    batch.removed(names, Tier::Gpu, 0);
    batch.build()
}

struct Fleet {
    index: Index,
    pods: Vec<HolderId>,
}

/// Pod `p` holds the first (p + 1) / 64 of one prompt, and prompts of its own.
fn fleet(blocks: usize) -> Fleet {
    let index = Index::new(IndexConfig::default());
    let pods: Vec<HolderId> =
        (0..PODS).map(|p| index.attach(HolderSpec::new("t", "m", &format!("p{p}"), 0))).collect();
    let asked = tokens(0, blocks);
    for (p, pod) in pods.iter().enumerate() {
        let held = (blocks * (p + 1) / PODS).max(1);
        index.apply(*pod, &stored(&asked[..held * BLOCK]));
        for own in 0..4 {
            index.apply(*pod, &stored(&tokens(1 + own + 4 * p as u64, 767)));
        }
    }
    Fleet { index, pods }
}

fn chain(tokens: &[u32]) -> (Vec<LocalHash>, Vec<SeqHash>) {
    let seed = Namespace { salt: "", model: "m", lora: None }.seed();
    let locals = tokens.chunks_exact(BLOCK).map(|t| seed.local(t, &[])).collect();
    (locals, prompt_hashes(seed, tokens, BLOCK as u32, PromptExtras::default()).collect())
}

#[divan::bench(args = LENGTHS)]
fn question_by_local_hash(bencher: Bencher<'_, '_>, blocks: usize) {
    let fleet = fleet(blocks);
    let (locals, _) = chain(&tokens(0, blocks));
    let mut matcher = fleet.index.matcher("t", "m", "").expect("pods are attached");
    assert_eq!(matcher.ask(Blocks::Local(&locals)).best(), blocks as u32);
    bencher.bench_local(|| matcher.ask(Blocks::Local(black_box(&locals))).best());
}

#[divan::bench(args = LENGTHS)]
fn question_by_sequence_hash(bencher: Bencher<'_, '_>, blocks: usize) {
    let fleet = fleet(blocks);
    let (_, seqs) = chain(&tokens(0, blocks));
    let mut matcher = fleet.index.matcher("t", "m", "").expect("pods are attached");
    assert_eq!(matcher.ask(Blocks::Canonical(&seqs)).best(), blocks as u32);
    bencher.bench_local(|| matcher.ask(Blocks::Canonical(black_box(&seqs))).best());
}

#[divan::bench(args = LENGTHS)]
fn query_by_tokens(bencher: Bencher<'_, '_>, blocks: usize) {
    let fleet = fleet(blocks);
    let asked = tokens(0, blocks);
    let query = Query::new("t", "m", Prompt::tokens(&asked));
    assert_eq!(fleet.index.query(&query).scores[PODS - 1].cached, blocks as u32);
    bencher.bench_local(|| fleet.index.query(black_box(&query)));
}

/// Blocks that nobody had.
#[divan::bench(args = [1, 16, 64])]
fn store_new_blocks(bencher: Bencher<'_, '_>, blocks: usize) {
    let fleet = fleet(767);
    let mut next = 1 << 20;
    bencher
        .with_inputs(|| {
            next += 1;
            // Beyond the shared beginning, so that every block is new.
            let all = tokens(next, SHARED + blocks);
            stored(&all[SHARED * BLOCK..])
        })
        .bench_local_values(|batch| fleet.index.apply(fleet.pods[0], &batch));
}

/// Blocks that another pod has.
#[divan::bench(args = [1, 16, 64])]
fn store_blocks_of_another(bencher: Bencher<'_, '_>, blocks: usize) {
    let fleet = fleet(767);
    let all = tokens(1, 767);
    let (batch, gone) = (stored(&all[..blocks * BLOCK]), removed(&names(&all[..blocks * BLOCK])));
    bencher
        .with_inputs(|| {
            fleet.index.apply(fleet.pods[63], &gone);
        })
        .bench_local_values(|()| fleet.index.apply(fleet.pods[63], black_box(&batch)));
}

/// Removed one event a block, from the end, as an engine evicts.
#[divan::bench]
fn remove_from_the_end(bencher: Bencher<'_, '_>) {
    let fleet = fleet(767);
    let all = tokens(1, 767);
    let held = stored(&all);
    let last = names(&all)[700..].iter().rev().map(|n| removed(&[*n])).collect::<Vec<_>>();
    bencher
        .with_inputs(|| {
            fleet.index.apply(fleet.pods[0], &held);
        })
        .bench_local_values(|()| {
            for batch in &last {
                fleet.index.apply(fleet.pods[0], batch);
            }
        });
}
