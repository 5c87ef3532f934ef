//! What a digest tells apart, and what it does not.

use std::collections::{BTreeSet, HashMap};

use kvindex::snapshot::Digest;
use kvindex::{HolderId, HolderSpec, Index, IndexConfig};
use kvproto::event::{BatchBuilder, Content, StoredFields};
use kvproto::{EngineHash, Event, LocalHash, Tier};

use crate::engines::{Engine, Rng};

/// An index with two pods, of which the first gets what `make` says.
fn with(make: impl Fn(&mut BatchBuilder<'static>)) -> Digest {
    let index = Index::new(IndexConfig::default());
    let pods = ["a", "b"].map(|n| index.attach(HolderSpec::new("t", "m", n, 0)));
    let mut b = BatchBuilder::new(0.0, None);
    make(&mut b);
    index.apply(pods[0], &b.build());
    assert_eq!(index.digest(pods[1]), Some(Digest::default()));
    index.digest(pods[0]).expect("attached")
}

const FIELDS: StoredFields<'static> = StoredFields {
    parent: None,
    block_size: 16,
    tier: Tier::Gpu,
    group: 0,
    spec: None,
    lora: None,
    cache_salt: None,
    content: Content::Hashed,
    base_block: None,
};

#[test]
fn whatever_differs_in_what_is_held_differs_in_the_digest() {
    let names: Vec<EngineHash> = (1..=20).map(EngineHash).collect();
    let locals: Vec<LocalHash> = (101..=120).map(LocalHash).collect();
    let store = |b: &mut BatchBuilder<'static>| {
        b.hashed(FIELDS, &names, &locals);
    };
    let base = with(store);
    assert_eq!((base.entries, with(store)), (20, base.clone()));
    let bucket = |h: u64| vec![Digest::bucket_of(EngineHash(h))];
    let name_only = StoredFields { content: Content::HashOnly, ..FIELDS };
    type Make<'m> = &'m dyn Fn(&mut BatchBuilder<'static>);
    let others: [(&str, u64, Make<'_>); 6] = [
        ("one less", 20, &|b| {
            b.hashed(FIELDS, &names[..19], &locals[..19]);
        }),
        ("a copy more", 7, &|b| {
            store(b);
            b.hashed(StoredFields { parent: Some(names[5]), ..FIELDS }, &names[6..7], &locals[6..7]);
        }),
        ("in a lower tier too", 7, &|b| {
            store(b);
            b.stored(StoredFields { tier: Tier::Cpu, ..name_only }, &names[6..7], &[], &[]);
        }),
        ("in another group too", 7, &|b| {
            store(b);
            b.stored(StoredFields { group: 1, ..name_only }, &names[6..7], &[], &[]);
        }),
        ("a block without a place", 1000, &|b| {
            store(b);
            b.stored(name_only, &[EngineHash(1000)], &[], &[]);
        }),
        ("a hole", 7, &|b| {
            store(b);
            b.removed(&names[6..7], Tier::Gpu, 0);
        }),
    ];
    let mut all = vec![base.held];
    for (what, block, make) in others {
        let other = with(make);
        assert!(!all.contains(&other.held), "{what}");
        all.push(other.held);
        assert_eq!(base.differing(&other).collect::<Vec<_>>(), bucket(block), "{what}");
    }
    // The same names for other content.
    let other = with(|b| {
        b.hashed(FIELDS, &names, &[&locals[..19], &[LocalHash(999)]].concat());
    });
    assert!(other.held == base.held && other.content != base.content);
    let other = with(|b| {
        b.hashed(StoredFields { block_size: 32, ..FIELDS }, &names, &locals);
    });
    assert!(other.held == base.held && other.content != base.content);
}

/// The same batches of each publisher, merged in two orders, beside publishers that only one of the two
/// indexes hears.
#[test]
fn it_does_not_depend_on_the_order_of_publishers_or_on_others() {
    let (mut domains, mut entries) = (0, 0);
    for seed in 1..=20u64 {
        let indexes = [0, 1].map(|_| Index::new(IndexConfig::default()));
        let attach = |i: &Index, n: &str| i.attach(HolderSpec::new("t", "m", n, 0));
        let names = ["a", "b", "c", "d", "e", "f"];
        let pods = indexes.each_ref().map(|i| names.map(|n| attach(i, n)));
        let mut rng = Rng(seed * 31 + 7);
        let engine = |i: u64| Engine { mode: i % 4, block: 2, hash_seed: i % 2, stored: vec![], adapters: 2 };
        let mut engines: Vec<Engine> = (0..6).map(engine).collect();
        // By pod, what it sends.
        let sent: Vec<Vec<_>> = engines
            .iter_mut()
            .map(|e| {
                (0..40)
                    .map(|_| {
                        let mut b = BatchBuilder::new(0.0, None);
                        (0..3).for_each(|_| e.event(&mut rng, &mut b));
                        b.build()
                    })
                    .collect()
            })
            .collect();
        for ((index, pods), heard) in indexes.iter().zip(&pods).zip([4..6, 0..0]) {
            let mut next = [0; 6];
            let others = |p: usize| p < 4 || heard.contains(&p);
            while let Some(p) = {
                let left: Vec<usize> = (0..6).filter(|p| others(*p) && next[*p] < 40).collect();
                (!left.is_empty()).then(|| left[rng.below(left.len() as u64) as usize])
            } {
                index.apply(pods[p], &sent[p][next[p]]);
                next[p] += 1;
            }
        }
        let [here, there] = pods;
        for (p, (id, id_there)) in here.into_iter().zip(there).take(4).enumerate() {
            let (x, y) = (indexes[0].digest(id), indexes[1].digest(id_there));
            let (x, y) = (x.expect("attached"), y.expect("attached"));
            assert_eq!(
                (x.entries, x.held, &x.buckets),
                (y.entries, y.held, &y.buckets),
                "seed {seed}, pod {p}"
            );
            // Blocks that a pod only names (2 and 3 do) are known where others told of them.
            assert!(p >= 2 || x.content == y.content, "seed {seed}, pod {p}");
            entries += x.entries;
        }
        domains += indexes[0].stats().domains;
    }
    assert!(domains > 25 && entries > 1000, "{domains} domains and {entries} entries in 20 runs");
}

/// Whatever others call blocks, and wherever it goes because of that: an engine holds what its own events
/// stored and did not remove, copy by copy.
#[test]
fn no_copy_is_lost_or_left_behind_between_hash_domains() {
    let mut domains = 0;
    for seed in 1..=40u64 {
        let index = Index::new(IndexConfig::default());
        let attach = |n| index.attach(HolderSpec::new("t", "m", &format!("pod{n}"), 0));
        let pods = [0, 1, 2, 3, 4, 5].map(attach);
        let mut rng = Rng(seed * 31 + 7);
        let engine = |i: u64| Engine { mode: i % 4, block: 2, hash_seed: i % 2, stored: vec![], adapters: 2 };
        let mut engines: Vec<Engine> = (0..6).map(engine).collect();
        let mut held: Vec<HashMap<(EngineHash, Tier, u32), u32>> = vec![HashMap::new(); 6];
        for n in 0..180 {
            let p = rng.below(6) as usize;
            let mut b = BatchBuilder::new(0.0, None);
            engines[p].event(&mut rng, &mut b);
            let batch = b.build();
            for event in batch.events() {
                match event {
                    Event::Stored(s) => {
                        s.hashes.iter().for_each(|h| *held[p].entry((*h, s.tier, s.group)).or_default() += 1);
                    }
                    Event::Removed(r) => {
                        let mut take = |h| held[p].get_mut(&(h, r.tier, r.group)).map(|n| *n -= 1);
                        r.hashes.iter().for_each(|h| take(*h).unwrap_or_default());
                    }
                    Event::Cleared(c) => held[p].retain(|(_, t, _), _| c.tier.is_some_and(|x| x != *t)),
                }
            }
            held[p].retain(|_, n| *n > 0);
            index.apply(pods[p], &batch);
            let at = format!("seed {seed}, event {n}, pod {p}");
            assert_eq!(index.digest(pods[p]).expect("attached").entries, held[p].len() as u64, "{at}");
            let rows = index.dump(pods[p], None, usize::MAX).into_iter().map(|r| (r.block, r.tier));
            let want: BTreeSet<_> = held[p].keys().map(|(h, t, _)| (*h, *t)).collect();
            assert_eq!(rows.collect::<BTreeSet<_>>(), want, "{at}");
        }
        domains += index.stats().domains;
    }
    assert!(domains > 80, "{domains} domains in 40 runs");
}

#[test]
fn a_holder_that_is_not_attached_has_none() {
    assert_eq!(Index::new(IndexConfig::default()).digest(HolderId(7)), None);
}
