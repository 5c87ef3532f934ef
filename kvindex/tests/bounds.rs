//! Memory stays bounded and comes back, and what had to be dropped is never said to be held.

use kvindex::{HolderId, HolderSpec, Index, IndexConfig, Prompt, Query};
use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::{EngineHash, LocalHash, Tier};

const CHAIN: u64 = 512;

/// The own hash and the engine's name of block `i` of chain `c`.
fn block(c: u64, i: u64) -> (LocalHash, EngineHash) {
    let mix = |x: u64| (x ^ x >> 31).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29) | 1;
    (LocalHash(mix(c << 20 | i)), EngineHash(mix(mix(c << 20 | i) ^ 77)))
}

fn store(index: &Index, pod: HolderId, chain: u64, blocks: u64) {
    let (locals, names): (Vec<_>, Vec<_>) = (0..blocks).map(|i| block(chain, i)).unzip();
    let mut b = BatchBuilder::new(0.0, None);
    b.hashed(StoredFields { block_size: 16, ..Default::default() }, &names, &locals);
    index.apply(pod, &b.build());
}

fn remove(index: &Index, pod: HolderId, chain: u64, blocks: u64) {
    let names: Vec<_> = (0..blocks).rev().map(|i| block(chain, i).1).collect();
    let mut b = BatchBuilder::new(0.0, None);
    b.removed(&names, Tier::Gpu, 0);
    index.apply(pod, &b.build());
}

fn held(index: &Index, chain: u64) -> Vec<(u32, bool)> {
    let locals: Vec<_> = (0..CHAIN).map(|i| block(chain, i).0).collect();
    let answer = index.query(&Query::new("t", "m", Prompt::Local(&locals)));
    answer.scores.iter().map(|s| (s.cached, s.partial)).collect()
}

fn attach(index: &Index, n: usize) -> Vec<HolderId> {
    (0..n).map(|p| index.attach(HolderSpec::new("t", "m", &format!("pod{p}"), 0))).collect()
}

#[test]
fn memory_comes_back_however_often_blocks_come_and_go() {
    let index = Index::new(IndexConfig::default());
    let pods = attach(&index, 4);
    let empty = index.stats().bytes;
    let mut after = Vec::new();
    for round in 0..12u64 {
        for chain in 0..200 {
            let pod = pods[(chain % 4) as usize];
            store(&index, pod, round * 1000 + chain, CHAIN);
        }
        let full = index.stats().bytes;
        assert!(full > empty + 200 * CHAIN * 16, "{full} bytes hold {} blocks", 200 * CHAIN);
        for chain in 0..200 {
            remove(&index, pods[(chain % 4) as usize], round * 1000 + chain, CHAIN);
        }
        assert_eq!((index.stats().blocks, index.stats().entries), (0, 0));
        after.push(index.stats().bytes);
    }
    // What stays are the ghosts, which are as many after every round.
    let (first, last) = (after[2], after[11]);
    assert!(last <= first + first / 4, "{after:?} bytes after each round");
    for pod in pods {
        index.detach(pod);
    }
    assert_eq!(index.stats().bytes, 0);
}

#[test]
fn a_pod_that_goes_takes_only_its_own_along() {
    let index = Index::new(IndexConfig::default());
    let pods = attach(&index, 3);
    for chain in 0..100 {
        store(&index, pods[0], chain, CHAIN);
        store(&index, pods[1], chain, CHAIN / 2);
        store(&index, pods[2], 5000 + chain, CHAIN);
    }
    index.detach(pods[0]);
    let answer = held(&index, 7);
    assert_eq!(answer, [(CHAIN as u32 / 2, false), (0, false)]);
    assert_eq!(held(&index, 5007), [(0, false), (CHAIN as u32, false)]);
    // A pod that comes back is a new one and holds nothing yet.
    attach(&index, 1);
    assert_eq!(held(&index, 7).last(), Some(&(0, false)));
    let s = index.stats();
    assert_eq!((s.blocks, s.entries), (100 * CHAIN * 3 / 2, 100 * CHAIN * 3 / 2));
}

#[test]
fn over_its_budget_the_index_drops_old_ends_and_says_so() {
    let max_bytes = 8 << 20;
    let index = Index::new(IndexConfig { max_bytes, ..IndexConfig::default() });
    let pods = attach(&index, 4);
    for chain in 0..4000u64 {
        store(&index, pods[(chain % 4) as usize], chain, CHAIN);
        let bytes = index.stats().bytes;
        assert!(bytes <= max_bytes + (1 << 20), "{bytes} bytes after {chain} chains");
    }
    let s = index.stats();
    assert!(s.dropped > 1_000_000 && s.entries + s.dropped == 4000 * CHAIN, "{s:?}");
    let (mut known, mut young) = (0, 0);
    for chain in 0..4000u64 {
        let answer = held(&index, chain);
        for (pod, (blocks, partial)) in answer.iter().enumerate() {
            assert!(*partial, "every pod lost something, and that is told");
            let mine = chain % 4 == pod as u64;
            assert!(mine || *blocks == 0, "nobody is said to hold another's");
        }
        let blocks: u32 = answer.iter().map(|a| a.0).sum();
        known += u64::from(blocks);
        young += if chain >= 3900 { u64::from(blocks) } else { 0 };
    }
    assert_eq!(known, s.entries, "what is counted is what is answered");
    assert!(young > 100 * CHAIN * 3 / 4, "the youngest are dropped last: {young} of {}", 100 * CHAIN);
    // What was dropped can be removed and stored again without harm.
    for chain in 0..4000u64 {
        remove(&index, pods[(chain % 4) as usize], chain, CHAIN);
    }
    assert_eq!(index.stats().entries, 0);
    index.clear(pods[0]);
    store(&index, pods[0], 0, 10);
    assert_eq!(held(&index, 0)[0], (10, false));
}

#[test]
fn thousands_of_holders_are_told_apart() {
    let index = Index::new(IndexConfig::default());
    let pods = attach(&index, 5000);
    for (p, pod) in pods.iter().enumerate() {
        store(&index, *pod, 1, 1 + p as u64 % 300);
    }
    let answer = held(&index, 1);
    assert_eq!(answer.len(), 5000);
    assert!(answer.iter().enumerate().all(|(p, a)| a.0 == 1 + p as u32 % 300));
    let mut matcher = index.matcher("t", "m", "").expect("pods are attached");
    let locals: Vec<_> = (0..CHAIN).map(|i| block(1, i).0).collect();
    let matched = matcher.ask(kvindex::Blocks::Local(&locals));
    let mut pods_seen = 0;
    matched.each(|id, blocks| {
        let p = pods.iter().position(|x| *x == id).expect("one of them");
        assert_eq!(blocks, 1 + p as u32 % 300);
        pods_seen += 1;
    });
    assert_eq!((pods_seen, matched.best()), (5000, 300));
    let best: Vec<_> = (1..=3).map(|n| (pods[300 * n - 1], 300)).collect();
    assert_eq!(matched.top(3), best);
}
