//! Random events against the reference model: after each batch every answer must be equal.

use kvindex::reference::Reference;
use kvindex::{HolderId, HolderSpec, Index, IndexConfig, Prompt, Query};
use kvproto::event::{BatchBuilder, Content, StoredFields};
use kvproto::hash::canonical::MmItem;
use kvproto::{EngineHash, ExtraKey, GroupKind, GroupSpec, Tier};

/// xorshift64*: small, seeded, the same everywhere.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What names a sequence besides its tokens.
#[derive(Clone, Copy)]
struct Flavour {
    lora: Option<&'static str>,
    salt: Option<&'static str>,
    item: Option<MmItem<'static>>,
}

const FLAVOURS: [Flavour; 5] = [
    Flavour { lora: None, salt: None, item: None },
    Flavour { lora: None, salt: None, item: None },
    Flavour { lora: Some("a"), salt: None, item: None },
    Flavour { lora: None, salt: Some("s"), item: None },
    Flavour { lora: None, salt: None, item: Some(MmItem { identifier: "img", offset: 3, length: 4 }) },
];

/// The mode of an engine that tells every sequence from its root.
const ROOTED: u64 = 5;

/// An engine of the kind given by `mode`; its hashes are a function of content and `hash_seed`.
struct Engine {
    mode: u64,
    block: u32,
    hash_seed: u64,
    stored: Vec<(EngineHash, Tier, u32)>,
}

impl Engine {
    fn keys(&self, f: &Flavour, i: usize) -> Vec<ExtraKey<'static>> {
        let mut keys = vec![];
        let from = (i as u32 * self.block) as i64;
        if let Some(m) = f.item {
            let at = i64::from(m.offset);
            if at < from + i64::from(self.block) && at + i64::from(m.length) > from {
                keys.push(ExtraKey::Item { identifier: m.identifier, offset: at - from });
            }
        }
        if let (0, Some(s)) = (i, f.salt) {
            keys.push(ExtraKey::Text(s));
        }
        keys
    }

    /// The engine's hash of block `i` and its prefix.
    fn hash(&self, tokens: &[u32], f: &Flavour, i: usize) -> EngineHash {
        // Far apart for seeds that are not: names of engines with other seeds never meet.
        let mut h = (self.hash_seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31);
        let mut mix = |x: u64| h = (h ^ x).wrapping_mul(0xFF51_AFD7_ED55_8CCD).rotate_left(29);
        mix(f.lora.map_or(1, |_| 2));
        mix(f.salt.map_or(1, |_| 2));
        for t in &tokens[..(i + 1) * self.block as usize] {
            mix(u64::from(*t) + 7);
        }
        for b in 0..=i {
            for k in self.keys(f, b) {
                if let ExtraKey::Item { offset, .. } = k {
                    mix((offset as u64).wrapping_add(100));
                }
            }
        }
        EngineHash(h)
    }

    /// One random event into `b`.
    fn event(&mut self, rng: &mut Rng, b: &mut BatchBuilder<'static>) {
        match rng.below(20) {
            0 if rng.one_in(4) => {
                let tier = [None, Some(Tier::Gpu), Some(Tier::Cpu)][rng.below(3) as usize];
                b.cleared(tier);
                self.stored.retain(|(_, t, _)| tier.is_some_and(|x| x != *t));
            }
            0..=8 if !self.stored.is_empty() => {
                let at = rng.below(self.stored.len() as u64) as usize;
                let (h, tier, group) = self.stored.swap_remove(at);
                b.removed(&[h], tier, group);
            }
            9 => {
                b.removed(&[EngineHash(rng.next())], Tier::Gpu, 0);
            }
            _ => self.store(rng, b),
        }
    }

    fn store(&mut self, rng: &mut Rng, b: &mut BatchBuilder<'static>) {
        let f = FLAVOURS[rng.below(5) as usize];
        let total = 1 + rng.below(6) as usize;
        let n = self.block as usize;
        // Few distinct tokens, so that sequences share prefixes.
        let tokens: Vec<u32> = (0..total * n).map(|_| u32::from(rng.one_in(9))).collect();
        // One that tells every sequence from its root leaves no block without a place.
        let first = if self.mode == ROOTED { 0 } else { rng.below(total as u64) as usize };
        let hashes: Vec<EngineHash> = (first..total).map(|i| self.hash(&tokens, &f, i)).collect();
        let extras: Vec<Vec<ExtraKey<'static>>> = (first..total).map(|i| self.keys(&f, i)).collect();
        let fields = StoredFields {
            parent: (first > 0).then(|| self.hash(&tokens, &f, first - 1)),
            block_size: self.block,
            lora: f.lora,
            ..StoredFields::default()
        };
        let body = &tokens[first * n..];
        let full = GroupSpec { kind: GroupKind::Full, window: None };
        match (self.mode, rng.below(5)) {
            // A hybrid model: every step stores in both groups, the window group the tail only.
            (1, _) => {
                b.stored(StoredFields { group: 1, spec: Some(full), ..fields }, &hashes, body, &extras);
                self.stored.extend(hashes.iter().map(|h| (*h, Tier::Gpu, 1)));
                let spec = match rng.below(2) {
                    _ if self.hash_seed.is_multiple_of(2) => {
                        GroupSpec { kind: GroupKind::Mamba, window: None }
                    }
                    _ => GroupSpec { kind: GroupKind::SlidingWindow, window: Some(2 * self.block + 1) },
                };
                let keep = rng.below(hashes.len() as u64 + 1) as usize;
                let (h, x) = (&hashes[keep..], &extras[keep..]);
                b.stored(StoredFields { group: 0, spec: Some(spec), ..fields }, h, body, x);
                self.stored.extend(h.iter().map(|h| (*h, Tier::Gpu, 0)));
            }
            // Chunked local attention beside full attention.
            (2, 0..=1) => {
                let spec = Some(GroupSpec { kind: GroupKind::ChunkedLocal, window: None });
                b.stored(StoredFields { group: 0, spec, ..fields }, &hashes, body, &extras);
                self.stored.extend(hashes.iter().map(|h| (*h, Tier::Gpu, 0)));
            }
            (2, _) => {
                b.stored(StoredFields { group: 1, spec: Some(full), ..fields }, &hashes, body, &extras);
                self.stored.extend(hashes.iter().map(|h| (*h, Tier::Gpu, 1)));
            }
            // Bare hashes of an offload tier, the last of each chunk of two.
            (3, 0..=1) => {
                let fields =
                    StoredFields { tier: Tier::Cpu, content: Content::HashOnly, ..StoredFields::default() };
                let ends: Vec<EngineHash> =
                    (first..total).filter(|i| i % 2 == 1).map(|i| self.hash(&tokens, &f, i)).collect();
                b.stored(fields, &ends, &[], &[]);
                self.stored.extend(ends.iter().map(|h| (*h, Tier::Cpu, 0)));
            }
            // Lower tiers that describe their blocks.
            (4, 0..=2) => {
                let tier = [Tier::Cpu, Tier::Disk, Tier::Shared, Tier::Unknown][rng.below(4) as usize];
                b.stored(StoredFields { tier, ..fields }, &hashes, body, &extras);
                self.stored.extend(hashes.iter().map(|h| (*h, tier, 0)));
            }
            _ => {
                b.stored(fields, &hashes, body, &extras);
                self.stored.extend(hashes.iter().map(|h| (*h, Tier::Gpu, 0)));
            }
        }
    }
}

/// How often answers were of each interesting kind, so that a test that compares zeros is seen.
#[derive(Default, Debug)]
struct Seen {
    held: u32,
    lower_tier: u32,
    engine_less_than_held: u32,
    engine_more_than_device: u32,
}

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
            let engine = Engine { mode, block, hash_seed, stored: vec![] };
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
                let bs = u64::from(got.block_size);
                seen.held += u32::from(want.cached > 0);
                seen.lower_tier += u32::from(want.by_tier[0] < want.cached);
                seen.engine_less_than_held += u32::from(want.cached_tokens < u64::from(want.cached) * bs);
                seen.engine_more_than_device +=
                    u32::from(want.cached_tokens > u64::from(want.by_tier[0]) * bs && bs == 2);
                assert_eq!(got.cached, want.cached, "cached: {at}");
                assert_eq!(got.by_tier, want.by_tier, "by_tier: {at}");
                assert_eq!(got.cumulative, want.cumulative, "cumulative: {at}");
                assert_eq!(got.below_ram, want.below_ram, "below_ram: {at}");
                assert!((got.weighted - want.weighted).abs() < 1e-9, "weighted: {at}");
                assert_eq!(got.cached_tokens, want.cached_tokens, "cached_tokens: {at}");
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
    let kinds = [seen.held, seen.lower_tier, seen.engine_less_than_held, seen.engine_more_than_device];
    assert!(kinds.iter().all(|&n| n > 200), "the events made up are too tame: {seen:?}");
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
        let hashes: Vec<EngineHash> = (0..total).map(|i| engine.hash(&tokens, &f, i)).collect();
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
        engines.push(Engine { mode: ROOTED, block: 2, hash_seed, stored: vec![] });
        pods.push((index.attach(spec.clone()), Reference::new(spec)));
    }
    // A block that all have makes certain who calls blocks alike; the first learns of it last.
    for at in [0, 1, 2, 3, 0] {
        let mut b = BatchBuilder::new(0.0, None);
        let plain = FLAVOURS[0];
        let hash = engines[at].hash(&[5, 5], &plain, 0);
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
