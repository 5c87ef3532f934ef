//! Random events against the reference model: after each batch every answer must be equal.

#[path = "support/agree.rs"]
mod agree;
#[path = "support/engines.rs"]
mod engines;

use agree::Seen;
use engines::{Engine, FLAVOURS, ROOTED, Rng};
use kvindex::reference::Reference;
use kvindex::{HolderId, HolderSpec, Index, IndexConfig, Prompt, Query};
use kvproto::event::{BatchBuilder, Content, StoredFields};
use kvproto::hash::canonical::MmItem;
use kvproto::{EngineHash, Tier};

fn run(seed: u64, batches: usize, seen: &mut Seen) {
    let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let index = Index::new(IndexConfig::default());
    let mut fleet: Vec<(HolderId, Engine, Reference)> = (0..5)
        .map(|mode| {
            let mut spec = HolderSpec::new("t", "m", &format!("pod{mode}"), 0);
            spec.attention_chunk = Some(6);
            let block = if mode == 4 { 4 } else { 2 };
            // Two engines agree on their hashes, the others do not.
            let hash_seed = seed + mode;
            let engine = Engine { mode, block, hash_seed, stored: vec![], adapters: 1 };
            (index.attach(spec.clone()), engine, Reference::new(spec))
        })
        .collect();
    for n in 0..batches {
        for (id, engine, reference) in &mut fleet {
            let mut b = BatchBuilder::new(n as f64, None);
            for _ in 0..=rng.below(3) {
                engine.event(&mut rng, &mut b);
            }
            let batch = b.build();
            index.apply(*id, &batch);
            reference.apply(&batch);
        }
        for _ in 0..4 {
            let f = FLAVOURS[rng.below(5) as usize];
            let tokens: Vec<u32> = (0..rng.below(18)).map(|_| u32::from(rng.one_in(9))).collect();
            let items: Vec<MmItem<'_>> = f.item.into_iter().collect();
            let prompt = Prompt::Tokens { tokens: &tokens, lora: f.lora, cache_salt: f.salt, items: &items };
            let mut query = Query::new("t", "m", prompt);
            query.block_size = [None, Some(2), Some(4), Some(3), Some(1)][rng.below(5) as usize];
            let answer = index.query(&query);
            for (id, engine, reference) in &fleet {
                let got =
                    answer.scores.iter().find(|s| s.holder == *id).expect("every engine is a candidate");
                let want = reference.expect(&query);
                let at = format!("seed {seed}, batch {n}, mode {}, {query:?}", engine.mode);
                seen.compare(got, &want, &at);
            }
        }
    }
    // All memory comes back when everything goes.
    for (id, _, _) in &fleet {
        index.detach(*id);
    }
    let s = index.stats();
    assert_eq!((s.holders, s.blocks, s.entries), (0, 0, 0), "seed {seed}");
}

#[test]
fn every_answer_equals_the_reference_after_random_events() {
    let mut seen = Seen::default();
    for seed in 1..=60 {
        run(seed, 60, &mut seen);
    }
    seen.assert_more_than(200);
}

/// A longer run by hand: `KVINDEX_SEEDS=1000 cargo test -p kvindex --release --test random -- --ignored`.
#[test]
#[ignore = "long; for a machine with time"]
fn many_seeds() {
    let seeds = std::env::var("KVINDEX_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(500);
    for seed in 1000..1000 + seeds {
        run(seed, 120, &mut Seen::default());
    }
}

/// One event of a node's tiers: bare names, of blocks that some engine calls so.
fn tiers_event(
    rng: &mut Rng,
    engines: &[Engine],
    stored: &mut Vec<(EngineHash, Tier, u32)>,
) -> BatchBuilder<'static> {
    let mut b = BatchBuilder::new(0.0, None);
    if rng.one_in(3) && !stored.is_empty() {
        let (hash, tier, group) = stored.swap_remove(rng.below(stored.len() as u64) as usize);
        b.removed(&[hash], tier, group);
    } else if rng.one_in(40) {
        b.cleared(Some(Tier::Cpu));
        stored.retain(|(_, tier, _)| *tier != Tier::Cpu);
    } else {
        let engine = &engines[rng.below(engines.len() as u64) as usize];
        let f = FLAVOURS[rng.below(5) as usize];
        let total = 1 + rng.below(6) as usize;
        let tokens: Vec<u32> = (0..total * engine.block as usize).map(|_| u32::from(rng.one_in(9))).collect();
        let hashes: Vec<EngineHash> = (0..total).map(|i| engine.hash(&tokens, &f, i, 0)).collect();
        let tier = [Tier::Cpu, Tier::Disk, Tier::Shared][rng.below(3) as usize];
        let fields = StoredFields { tier, content: Content::HashOnly, ..StoredFields::default() };
        b.stored(fields, &hashes, &[], &[]);
        stored.extend(hashes.iter().map(|h| (*h, tier, 0)));
    }
    b
}

/// Three engines that call blocks alike and one that does not, on two nodes with tiers.
fn run_tiers(seed: u64, batches: usize, reached: &mut u32) {
    let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let index = Index::new(IndexConfig::default());
    let mut tiers: Vec<_> = ["n0", "n1"]
        .into_iter()
        .map(|node| {
            let spec = HolderSpec::tiers("t", "m", node);
            (index.attach(spec.clone()), Vec::new(), Reference::new(spec))
        })
        .collect();
    let mut engines: Vec<Engine> = Vec::new();
    let mut pods: Vec<(HolderId, Reference)> = Vec::new();
    for (at, hash_seed) in [7, 7, 7, 8].into_iter().enumerate() {
        let mut spec = HolderSpec::new("t", "m", &format!("pod{at}"), 0);
        spec.node = Some(format!("n{}", at % 2));
        engines.push(Engine { mode: ROOTED, block: 2, hash_seed, stored: vec![], adapters: 1 });
        pods.push((index.attach(spec.clone()), Reference::new(spec)));
    }
    // A block that all have makes certain who calls blocks alike; the first learns of it last.
    for at in [0, 1, 2, 3, 0] {
        let mut b = BatchBuilder::new(0.0, None);
        let plain = FLAVOURS[0];
        let hash = engines[at].hash(&[5, 5], &plain, 0, 0);
        b.stored(StoredFields { block_size: 2, ..StoredFields::default() }, &[hash], &[5, 5], &[vec![]]);
        let batch = b.build();
        index.apply(pods[at].0, &batch);
        pods[at].1.apply(&batch);
    }
    for n in 0..batches {
        for ((id, reference), engine) in pods.iter_mut().zip(&mut engines) {
            let mut b = BatchBuilder::new(n as f64, None);
            engine.event(&mut rng, &mut b);
            let batch = b.build();
            index.apply(*id, &batch);
            reference.apply(&batch);
        }
        for (id, stored, reference) in &mut tiers {
            let batch = tiers_event(&mut rng, &engines, stored).build();
            index.apply(*id, &batch);
            reference.apply(&batch);
        }
        let below: Vec<&Reference> = tiers.iter().map(|(_, _, reference)| reference).collect();
        for _ in 0..4 {
            let f = FLAVOURS[rng.below(5) as usize];
            let tokens: Vec<u32> = (0..rng.below(18)).map(|_| u32::from(rng.one_in(9))).collect();
            let items: Vec<MmItem<'_>> = f.item.into_iter().collect();
            let prompt = Prompt::Tokens { tokens: &tokens, lora: f.lora, cache_salt: f.salt, items: &items };
            let query = Query::new("t", "m", prompt);
            let answer = index.query(&query);
            assert_eq!(answer.scores.len(), pods.len(), "tiers are no candidates");
            for (at, (id, reference)) in pods.iter().enumerate() {
                let kin: Vec<&Reference> = pods
                    .iter()
                    .zip(&engines)
                    .filter(|(_, e)| e.hash_seed == engines[at].hash_seed)
                    .map(|((_, reference), _)| reference)
                    .collect();
                let got = answer.scores.iter().find(|s| s.holder == *id).expect("every engine");
                let want = reference.within_reach(&below, &kin).expect(&query);
                let say = format!("seed {seed}, batch {n}, pod {at}, {query:?}");
                *reached += u32::from(want.cached > reference.expect(&query).cached);
                assert_eq!((got.cached, got.by_tier), (want.cached, want.by_tier), "{say}");
                assert_eq!((got.cumulative, got.below_ram), (want.cumulative, want.below_ram), "{say}");
                assert_eq!(got.cached_tokens, want.cached_tokens, "{say}");
            }
        }
    }
    pods.iter().map(|p| p.0).chain(tiers.iter().map(|t| t.0)).for_each(|id| assert!(index.detach(id)));
    let s = index.stats();
    assert_eq!((s.holders, s.blocks, s.entries), (0, 0, 0), "seed {seed}");
}

#[test]
fn what_a_node_s_tiers_hold_counts_for_who_can_load_it() {
    let mut reached = 0;
    for seed in 1..=15 {
        run_tiers(seed, 50, &mut reached);
    }
    assert!(reached > 1000, "only {reached} scores were more than the engine's own");
}
