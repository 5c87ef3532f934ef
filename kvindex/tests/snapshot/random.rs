//! Random events, a snapshot at random moments, and the same further events to both.

use std::sync::Arc;

use kvindex::reference::Reference;
use kvindex::{HolderId, HolderSpec, Index, IndexConfig, Prompt, Query};
use kvproto::event::BatchBuilder;
use kvproto::hash::canonical::MmItem;

use crate::engines::{Engine, FLAVOURS, Rng};
use crate::replant::{alike, replant};

/// An engine, and what each index calls it.
struct Pod {
    engine: Engine,
    reference: Reference,
    spec: HolderSpec,
    old: HolderId,
    new: Option<HolderId>,
}

struct Fleet {
    rng: Rng,
    seed: u64,
    old: Arc<Index>,
    new: Option<Arc<Index>>,
    pods: Vec<Pod>,
    n: u32,
}

/// How often something worth comparing was there.
#[derive(Default, Debug)]
struct Seen {
    held: u32,
    unplaced: u64,
    lower: u64,
    domains: u64,
    restarts: u32,
}

impl Fleet {
    /// Pods of five kinds, some of which call blocks alike.
    fn new(seed: u64, config: IndexConfig) -> Fleet {
        let old = Arc::new(Index::new(config));
        let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let pods = (0..8)
            .map(|i| {
                let mode = i % 5;
                let mut spec = HolderSpec::new("t", "m", &format!("pod{i}"), 0);
                spec.attention_chunk = Some(6);
                let block = if mode == 4 { 4 } else { 2 };
                let hash_seed = hash_seed(&mut rng, seed, i);
                let engine = Engine { mode, block, hash_seed, stored: vec![], adapters: 1 + seed % 2 };
                Pod {
                    old: old.attach(spec.clone()),
                    new: None,
                    engine,
                    reference: Reference::new(spec.clone()),
                    spec,
                }
            })
            .collect();
        Fleet { rng, seed, old, new: None, pods, n: 0 }
    }

    fn indexes(&self) -> impl Iterator<Item = &Index> {
        std::iter::once(&*self.old).chain(self.new.as_deref())
    }

    /// Whether engines call blocks alike, and restart: then more may be known of one than it told,
    /// which the reference does not model.
    fn shares_names(&self) -> bool {
        self.seed % 2 == 1
    }

    /// A batch of every engine to both indexes; now and then one restarts or is replaced.
    fn go_on(&mut self, seen: &mut Seen) {
        self.n += 1;
        let restarts = self.shares_names();
        let Fleet { rng, old, new, pods, .. } = self;
        for (i, pod) in pods.iter_mut().enumerate() {
            if restarts && rng.one_in(60) {
                seen.restarts += 1;
                old.clear(pod.old);
                if let (Some(new), Some(id)) = (&new, pod.new) {
                    new.clear(id);
                }
                pod.reference.clear();
                pod.engine.stored.clear();
                // It may come back with another hash seed.
                pod.engine.hash_seed = hash_seed(rng, self.seed, i as u64);
            }
            let mut b = BatchBuilder::new(0.0, None);
            for _ in 0..=rng.below(3) {
                pod.engine.event(rng, &mut b);
            }
            let batch = b.build();
            if !restarts {
                pod.reference.apply(&batch);
            }
            let done = old.apply(pod.old, &batch);
            if let (Some(new), Some(id)) = (&new, pod.new) {
                assert_eq!(new.apply(id, &batch), done, "seed {}, batch {}", self.seed, self.n);
            }
        }
    }

    /// Every answer of both indexes to some questions, against each other and the reference.
    fn ask(&mut self, seen: &mut Seen) {
        let at = format!("seed {}, batch {}", self.seed, self.n);
        for _ in 0..3 {
            let f = FLAVOURS[self.rng.below(5) as usize];
            let tokens: Vec<u32> = (0..self.rng.below(18)).map(|_| u32::from(self.rng.one_in(9))).collect();
            let items: Vec<MmItem<'_>> = f.item.into_iter().collect();
            let prompt = Prompt::Tokens { tokens: &tokens, lora: f.lora, cache_salt: f.salt, items: &items };
            let mut query = Query::new("t", "m", prompt);
            query.block_size = [None, Some(2), Some(4)][self.rng.below(3) as usize];
            let answers: Vec<_> = self.indexes().map(|i| i.query(&query)).collect();
            for (p, pod) in self.pods.iter().enumerate() {
                let numbers = |s: &kvindex::Score| kvindex::Score { holder: HolderId(0), ..s.clone() };
                for answer in &answers {
                    let (old, new) = (&answers[0].scores[p], &answer.scores[p]);
                    assert_eq!(numbers(old), numbers(new), "{at} {p} {query:?}");
                }
                seen.held += u32::from(answers[0].scores[p].cached > 0);
                if self.shares_names() {
                    continue;
                }
                let want = pod.reference.expect(&query);
                for answer in &answers {
                    let got = &answer.scores[p];
                    assert_eq!(got.cached, want.cached, "cached: {at} {p} {query:?}");
                    assert_eq!(got.by_tier, want.by_tier, "by_tier: {at} {p} {query:?}");
                    assert_eq!(got.cached_tokens, want.cached_tokens, "cached_tokens: {at} {p} {query:?}");
                }
            }
            let counts = |i: &Index| {
                let located = i.locate(&query).into_iter();
                located
                    .map(|p| (p.seq, p.holders.iter().map(|h| h.1).collect::<Vec<_>>()))
                    .collect::<Vec<_>>()
            };
            let located: Vec<_> = self.indexes().map(counts).collect();
            assert!(located.windows(2).all(|w| w[0] == w[1]), "locate: {at} {query:?}");
        }
        if let Some(new) = &self.new {
            for pod in &self.pods {
                let (old, new) = ((&*self.old, pod.old), (&**new, pod.new.expect("attached to both")));
                alike(old, new, &format!("{at} {}", pod.spec.instance));
            }
            let (a, b) = (self.old.stats(), new.stats());
            let sums = |s: kvindex::IndexStats| (s.holders, s.entries, s.domains, s.dropped);
            assert_eq!(sums(a), sums(b), "{at}");
            seen.domains = seen.domains.max(a.domains);
        }
        for pod in &self.pods {
            let s = self.old.holder_stats(pod.old).expect("attached");
            seen.unplaced += s.unplaced;
            seen.lower += s.by_tier[1..].iter().sum::<u64>();
        }
    }

    fn replant(&mut self) {
        let ids: Vec<HolderId> = self.pods.iter().map(|p| p.old).collect();
        let (new, ids) = replant(&self.old, &ids);
        self.new = Some(new);
        self.pods.iter_mut().zip(ids).for_each(|(p, id)| p.new = Some(id));
    }
}

/// What pod `i` hashes with.
fn hash_seed(rng: &mut Rng, seed: u64, i: u64) -> u64 {
    match (seed % 2, i % 5) {
        (0, _) => seed + i,
        // Blocks of another size are called otherwise; now and then they are not.
        (_, 4) if seed % 4 == 1 => 100,
        (_, _) => rng.below(3),
    }
}

#[test]
fn an_index_put_back_answers_and_goes_on_as_the_original() {
    let mut seen = Seen::default();
    // Few with the reference, which is slow.
    for seed in (1..32).step_by(2).chain([2, 4, 6]) {
        let mut fleet = Fleet::new(seed, IndexConfig::default());
        for _ in 0..4 {
            let (before, after) = (5 + fleet.rng.below(25), 5 + fleet.rng.below(15));
            for _ in 0..before {
                fleet.go_on(&mut seen);
            }
            fleet.replant();
            fleet.ask(&mut seen);
            for _ in 0..after {
                fleet.go_on(&mut seen);
                fleet.ask(&mut seen);
            }
        }
    }
    let Seen { held, unplaced, lower, domains, restarts } = seen;
    assert!(held > 1000 && unplaced > 100 && lower > 1000 && restarts > 20, "too tame: {seen:?}");
    assert!(domains > 2, "too tame: {seen:?}");
}
