//! What was held before a loss never counts as certain, and is told as suspect.

use kvindex::reference::Reference;
use kvindex::{HolderId, HolderSpec, Index, IndexConfig, Prompt, Query};
use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::{EngineHash, Tier};

const BLOCK: usize = 4;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}

/// One of few sequences, which share prefixes, and the engine's names of its blocks.
fn sequence(rng: &mut Rng) -> (Vec<u32>, Vec<EngineHash>) {
    let n = 1 + rng.below(6) as usize;
    let tokens: Vec<u32> = (0..n).flat_map(|_| [rng.below(2) as u32; BLOCK]).collect();
    let mut h = 7u64;
    let names = tokens.chunks(BLOCK).map(|b| {
        h = (h ^ u64::from(b[0] + 3)).wrapping_mul(0xFF51_AFD7_ED55_8CCD).rotate_left(29);
        EngineHash(h)
    });
    (tokens.clone(), names.collect())
}

struct Pod {
    id: HolderId,
    truth: Reference,
    held: Vec<(EngineHash, Tier)>,
}

fn check(index: &Index, pods: &[Pod], rng: &mut Rng, what: &str) {
    for _ in 0..8 {
        let (mut tokens, _) = sequence(rng);
        tokens.push(9);
        let query = Query::new("t", "m", Prompt::tokens(&tokens));
        let answer = index.query(&query);
        assert_eq!(answer.scores.len(), pods.len(), "{what}: what is in doubt is no candidate");
        for (score, pod) in answer.scores.iter().zip(pods) {
            assert_eq!(score.holder, pod.id, "{what}");
            let want = pod.truth.expect(&query);
            assert_eq!(score.cached, want.cached, "{what}: {tokens:?}");
            assert_eq!(score.cached_tokens, want.cached_tokens, "{what}: {tokens:?}");
            assert_eq!(score.suspect, pod.truth.suspect(&query), "{what}: suspect of {tokens:?}");
        }
        let mut matcher = index.matcher("t", "m", "").unwrap();
        let blocks = kvindex::Blocks::Tokens {
            tokens: &tokens,
            block_size: BLOCK as u32,
            lora: None,
            cache_salt: None,
            items: &[],
        };
        let mut most = 0;
        matcher.ask(blocks).each(|_, n| most = most.max(n));
        assert_eq!(most, answer.scores.iter().map(|s| s.cached).max().unwrap(), "{what}: the short question");
    }
}

#[test]
fn after_losses_the_certain_and_the_suspect_are_those_of_the_reference() {
    for seed in 1..80 {
        let mut rng = Rng(0x9E37_79B9_7F4A_7C15u64.wrapping_mul(seed));
        let index = Index::new(IndexConfig::default());
        let mut pods: Vec<Pod> = (0..3)
            .map(|i| {
                let spec = HolderSpec::new("t", "m", &format!("p{i}"), 0);
                Pod { id: index.attach(spec.clone()), truth: Reference::new(spec), held: Vec::new() }
            })
            .collect();
        for step in 0..60 {
            let which = rng.below(3) as usize;
            let pod = &mut pods[which];
            let mut batch = BatchBuilder::new(0.0, None);
            match rng.below(24) {
                0 | 1 => {
                    index.doubt(pod.id);
                    pod.truth.doubt();
                }
                2 => {
                    index.drop_suspects(pod.id);
                    pod.truth.forget_doubted();
                }
                3 => {
                    let tier = [None, Some(Tier::Cpu)][rng.below(2) as usize];
                    batch.cleared(tier);
                    pod.held.retain(|(_, t)| tier.is_some_and(|x| x != *t));
                }
                4..=11 if !pod.held.is_empty() => {
                    let at = rng.below(pod.held.len() as u64) as usize;
                    let (h, tier) = pod.held.swap_remove(at);
                    batch.removed(&[h], tier, 0);
                }
                _ => {
                    let (tokens, names) = sequence(&mut rng);
                    let tier = if rng.below(4) == 0 { Tier::Cpu } else { Tier::Gpu };
                    let fields = StoredFields { block_size: BLOCK as u32, tier, ..StoredFields::default() };
                    batch.stored(fields, &names, &tokens, &[]);
                    pod.held.extend(names.iter().map(|h| (*h, tier)));
                }
            }
            let batch = batch.build();
            index.apply(pod.id, &batch);
            pod.truth.apply(&batch);
            check(&index, &pods, &mut rng, &format!("seed {seed} step {step}"));
        }
    }
}

#[test]
fn what_was_in_doubt_leaves_with_its_holder_and_gives_its_memory_back() {
    let index = Index::new(IndexConfig::default());
    let mut rng = Rng(5);
    let id = index.attach(HolderSpec::new("t", "m", "p", 0));
    for _ in 0..10 {
        for _ in 0..20 {
            let (tokens, names) = sequence(&mut rng);
            let mut batch = BatchBuilder::new(0.0, None);
            let fields = StoredFields { block_size: BLOCK as u32, ..StoredFields::default() };
            batch.stored(fields, &names, &tokens, &[]);
            index.apply(id, &batch.build());
        }
        index.doubt(id);
        let stats = index.holder_stats(id).unwrap();
        assert_eq!(stats.blocks, 0);
        assert!(stats.suspect > 0);
    }
    assert!(index.detach(id));
    let stats = index.stats();
    assert_eq!((stats.holders, stats.blocks, stats.entries), (0, 0, 0));
}

#[test]
fn a_feed_made_before_a_loss_goes_on_with_its_holder() {
    let index = Index::new(IndexConfig::default());
    let id = index.attach(HolderSpec::new("t", "m", "p", 0));
    let feed = index.feed(id).unwrap();
    let (tokens, names) = sequence(&mut Rng(3));
    let fields = StoredFields { block_size: BLOCK as u32, ..StoredFields::default() };
    for _ in 0..2 {
        let mut batch = BatchBuilder::new(0.0, None);
        batch.stored(fields, &names, &tokens, &[]);
        feed.apply(&batch.build());
        assert_eq!(index.holder_stats(id).unwrap().blocks, names.len() as u64);
        index.doubt(id);
        assert_eq!(index.holder_stats(id).unwrap().blocks, 0);
    }
}
