//! The short question gives what the full one gives, whatever it is asked by.

use kvindex::{Blocks, HolderId, HolderSpec, Index, IndexConfig, Prompt, Query};
use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::hash::canonical::{Namespace, PromptExtras, prompt_hashes};
use kvproto::{EngineHash, LocalHash, SeqHash, Tier};

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// A fleet whose pods share prefixes, evict from anywhere and offload.
struct Fleet {
    index: Index,
    pods: Vec<HolderId>,
    rng: Rng,
    held: Vec<(HolderId, EngineHash, Tier)>,
}

const BLOCK: usize = 4;

impl Fleet {
    fn new(seed: u64, pods: usize) -> Fleet {
        let index = Index::new(IndexConfig::default());
        let pods =
            (0..pods).map(|p| index.attach(HolderSpec::new("t", "m", &format!("pod{p}"), 0))).collect();
        Fleet { index, pods, rng: Rng(seed), held: Vec::new() }
    }

    /// A prompt of few distinct beginnings.
    fn prompt(&mut self) -> Vec<u32> {
        let (a, b) = (self.rng.below(3) as u32, self.rng.below(4) as u32);
        let (shared, own) = (self.rng.below(60) as usize, self.rng.below(80) as usize);
        let token = |i: usize| if i < shared * BLOCK { a } else { 10 + b };
        (0..(shared + own) * BLOCK + 1).map(token).collect()
    }

    fn names(&self, tokens: &[u32]) -> Vec<EngineHash> {
        let mut h = 7u64;
        let chain = tokens.chunks_exact(BLOCK).map(|b| {
            b.iter()
                .for_each(|t| h = (h ^ u64::from(*t)).wrapping_mul(0xFF51_AFD7_ED55_8CCD).rotate_left(29));
            EngineHash(h)
        });
        chain.collect()
    }

    /// One pod stores a prompt or loses some blocks. `tiers` says whether memory holds some too.
    fn step(&mut self, tiers: bool) {
        let mut b = BatchBuilder::new(0.0, None);
        if self.rng.below(3) == 0 && !self.held.is_empty() {
            let at = self.rng.below(self.held.len() as u64) as usize;
            let (pod, name, tier) = self.held.swap_remove(at);
            b.removed(&[name], tier, 0);
            self.index.apply(pod, &b.build());
            return;
        }
        let tokens = self.prompt();
        let pod = self.pods[self.rng.below(self.pods.len() as u64) as usize];
        let names = self.names(&tokens);
        let tier = if tiers && self.rng.below(3) == 0 { Tier::Cpu } else { Tier::Gpu };
        let fields = StoredFields { block_size: BLOCK as u32, tier, ..Default::default() };
        b.stored(fields, &names, &tokens[..names.len() * BLOCK], &[]);
        self.index.apply(pod, &b.build());
        self.held.extend(names.iter().map(|n| (pod, *n, tier)));
    }
}

fn run(seed: u64, pods: usize, tiers: bool) -> u32 {
    let mut fleet = Fleet::new(seed, pods);
    let space = Namespace { salt: "", model: "m", lora: None }.seed();
    let mut matcher = fleet.index.matcher("t", "m", "").expect("pods are attached");
    let mut resumed = 0;
    for _ in 0..150 {
        fleet.step(tiers);
        let tokens = fleet.prompt();
        let answer = fleet.index.query(&Query::new("t", "m", Prompt::tokens(&tokens)));
        let mut want: Vec<(HolderId, u32)> =
            answer.scores.iter().filter(|s| s.cached > 0).map(|s| (s.holder, s.cached)).collect();
        want.sort_by_key(|(id, n)| (std::cmp::Reverse(*n), *id));

        let seqs: Vec<SeqHash> =
            prompt_hashes(space, &tokens, BLOCK as u32, PromptExtras::default()).collect();
        let locals: Vec<LocalHash> = tokens.chunks_exact(BLOCK).map(|b| space.local(b, &[])).collect();
        let by_tokens = Blocks::Tokens {
            tokens: &tokens,
            block_size: BLOCK as u32,
            lora: None,
            cache_salt: None,
            items: &[],
        };
        for blocks in [Blocks::Local(&locals), Blocks::Canonical(&seqs), by_tokens] {
            assert_eq!(matcher.ask(blocks).top(usize::MAX), want, "seed {seed}, {blocks:?}");
        }
        let mut each = Vec::new();
        matcher.ask_each(&[Blocks::Local(&locals), Blocks::Local(&locals[..1.min(locals.len())])], |i, m| {
            each.push((i, m.top(usize::MAX)));
        });
        assert_eq!(each[0], (0, want.clone()), "seed {seed}");
        assert!(each.len() == 2 && each[1].1.iter().all(|(_, n)| *n == 1), "seed {seed}");
        // By the full question too.
        let by = |prompt| {
            let scores = fleet.index.query(&Query::new("t", "m", prompt)).scores;
            scores.into_iter().map(|s| s.cached).collect::<Vec<_>>()
        };
        let cached: Vec<u32> = answer.scores.iter().map(|s| s.cached).collect();
        assert_eq!(by(Prompt::Local(&locals)), cached, "seed {seed}");
        assert_eq!(by(Prompt::Canonical(&seqs)), cached, "seed {seed}");
        assert_eq!(by(Prompt::Engine(&fleet.names(&tokens))), cached, "seed {seed}");

        // A conversation that goes on from any point of it.
        let first = fleet.rng.below(locals.len() as u64 + 1) as usize;
        let from = matcher.ask(Blocks::Local(&locals[..first])).continuation;
        let Some(from) = from else { continue };
        let after = from.blocks as usize;
        if let Some(matched) = matcher.resume(&from, &locals[after..]) {
            resumed += 1;
            assert_eq!(matched.top(usize::MAX), want, "seed {seed}, resumed after {after} blocks");
        } else {
            assert!(tiers, "levels tell all where there is one tier");
        }
    }
    resumed
}

#[test]
fn the_short_question_is_the_full_one() {
    let mut resumed = 0;
    for seed in 0..30 {
        resumed += run(seed, 1 + seed as usize % 7 * 12, seed % 3 == 2);
    }
    assert!(resumed > 500, "only {resumed} conversations went on");
}

#[test]
fn a_continuation_of_dropped_blocks_is_no_more() {
    let mut fleet = Fleet::new(1, 2);
    let (pod, tokens) = (fleet.pods[0], (0..40u32).collect::<Vec<_>>());
    let names = fleet.names(&tokens);
    let mut b = BatchBuilder::new(0.0, None);
    let fields = StoredFields { block_size: BLOCK as u32, ..Default::default() };
    b.stored(fields, &names, &tokens, &[]);
    fleet.index.apply(pod, &b.build());
    let space = Namespace { salt: "", model: "m", lora: None }.seed();
    let locals: Vec<LocalHash> = tokens.chunks_exact(BLOCK).map(|b| space.local(b, &[])).collect();
    let mut matcher = fleet.index.matcher("t", "m", "").expect("pods are attached");
    let from = matcher.ask(Blocks::Local(&locals[..6])).continuation.expect("six blocks are known");
    assert_eq!(from.blocks, 6);
    assert_eq!(matcher.resume(&from, &locals[6..]).expect("still known").top(1), [(pod, 10)]);
    for pod in std::mem::take(&mut fleet.pods) {
        fleet.index.detach(pod);
    }
    assert!(matcher.resume(&from, &locals[6..]).is_none());
}
