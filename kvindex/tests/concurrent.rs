//! Readers beside writers: no answer says more than was stored or less than was visible before.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use kvindex::{HolderSpec, Index, IndexConfig, Prompt, Query};
use kvproto::EngineHash;
use kvproto::event::{BatchBuilder, StoredFields};

const BLOCKS: u32 = 1500;
const WRITERS: usize = 3;

#[test]
fn a_growing_prefix_is_seen_to_grow_and_never_ahead_of_its_events() {
    let index = Index::new(IndexConfig::default());
    let pods: Vec<_> =
        (0..WRITERS).map(|w| index.attach(HolderSpec::new("t", "m", &format!("pod{w}"), 0))).collect();
    let tokens: Vec<u32> = (0..BLOCKS * 2 + 1).collect();
    // Blocks whose events were handed over, and blocks whose events were applied.
    let begun: Vec<AtomicU32> = (0..WRITERS).map(|_| AtomicU32::new(0)).collect();
    let done: Vec<AtomicU32> = (0..WRITERS).map(|_| AtomicU32::new(0)).collect();
    std::thread::scope(|scope| {
        for w in 0..WRITERS {
            let (index, begun, done, tokens, pod) = (&index, &begun[w], &done[w], &tokens, pods[w]);
            scope.spawn(move || {
                for i in 0..BLOCKS {
                    let hash = |i: u32| EngineHash(u64::from(i) * 31 + w as u64 * 1_000_003 + 1);
                    let mut b = BatchBuilder::new(f64::from(i), None);
                    let parent = i.checked_sub(1).map(hash);
                    let at = 2 * i as usize;
                    let fields = StoredFields { parent, block_size: 2, ..StoredFields::default() };
                    b.stored(fields, &[hash(i)], &tokens[at..at + 2], &[]);
                    begun.store(i + 1, SeqCst);
                    index.apply(pod, &b.build());
                    done.store(i + 1, SeqCst);
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let mut before = [0; WRITERS];
                while before != [BLOCKS; WRITERS] {
                    let visible: Vec<u32> = done.iter().map(|n| n.load(SeqCst)).collect();
                    let answer = index.query(&Query::new("t", "m", Prompt::tokens(&tokens)));
                    for (w, s) in answer.scores.iter().enumerate() {
                        let at_most = begun[w].load(SeqCst);
                        assert!(s.cached >= visible[w].max(before[w]), "{} of {visible:?}", s.cached);
                        assert!(s.cached <= at_most, "{} of {at_most}", s.cached);
                        before[w] = s.cached;
                    }
                }
            });
        }
    });
    // While pods come and go, others are answered for.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..200 {
                let pod = index.attach(HolderSpec::new("t", "m", &format!("short{n}"), 0));
                let mut b = BatchBuilder::new(0.0, None);
                let fields = StoredFields { block_size: 2, ..StoredFields::default() };
                b.stored(fields, &[EngineHash(1), EngineHash(2)], &tokens[..4], &[]);
                index.apply(pod, &b.build());
                assert!(index.detach(pod));
            }
        });
        for _ in 0..200 {
            let answer = index.query(&Query::new("t", "m", Prompt::tokens(&tokens[..101])));
            let held = |pod| answer.scores.iter().find(|s| s.holder == pod).map(|s| s.cached);
            assert!(pods.iter().all(|&pod| held(pod) == Some(50)));
            assert!(answer.scores.iter().all(|s| pods.contains(&s.holder) || s.cached <= 2));
        }
    });
    let s = index.stats();
    // Engines that call blocks differently are domains of their own.
    assert_eq!((s.holders, s.blocks), (WRITERS as u64, WRITERS as u64 * u64::from(BLOCKS)));
}
