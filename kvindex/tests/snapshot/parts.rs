//! One holder at a time, while others go on: in the index it is cut from, and in the one it is put into.

use std::sync::Arc;

use kvindex::snapshot::{Cursor, CutError, Refusal, Restore, RestoreError, Restored, Writer};
use kvindex::{HolderId, HolderSpec, Index, IndexConfig, Prompt, Query};
use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::hash::llmd::{Algo, Llmd, RequestKey};
use kvproto::{EngineHash, LocalHash, Tier};

use crate::engines::{Engine, Rng};
use crate::replant::{alike, replant, restore, snapshot};
use crate::rich::chain;

const FIELDS: StoredFields<'static> = StoredFields {
    parent: None,
    block_size: 16,
    tier: Tier::Gpu,
    group: 0,
    spec: None,
    lora: None,
    cache_salt: None,
    content: kvproto::event::Content::Hashed,
    base_block: None,
};

fn store(
    index: &Index,
    pod: HolderId,
    parent: Option<EngineHash>,
    (names, locals): &(Vec<EngineHash>, Vec<LocalHash>),
) {
    let mut b = BatchBuilder::new(0.0, None);
    b.hashed(StoredFields { parent, ..FIELDS }, names, locals);
    index.apply(pod, &b.build());
}

fn remove(index: &Index, pod: HolderId, names: &[EngineHash]) {
    let mut b = BatchBuilder::new(0.0, None);
    b.removed(names, Tier::Gpu, 0);
    index.apply(pod, &b.build());
}

fn attach(index: &Index, n: usize) -> Vec<HolderId> {
    (0..n).map(|i| index.attach(HolderSpec::new("t", "m", &format!("pod{i}"), 0))).collect()
}

fn locals(c: u64, n: u64) -> Vec<u64> {
    (0..n).map(|i| c << 20 | i).collect()
}

/// Every pod is cut in small steps, and between these the others go on. Each is put back as it was when
/// its own part began.
#[test]
fn what_others_do_between_the_steps_does_not_show() {
    for seed in 1..=4u64 {
        let index = Arc::new(Index::new(IndexConfig::default()));
        let pods = attach(&index, 5);
        let mut rng = Rng(seed * 77 + 1);
        let engine = |mode| Engine { mode, block: 2, hash_seed: seed, stored: vec![], adapters: 2 };
        let mut engines: Vec<Engine> = (0..5).map(|i| engine(i % 4)).collect();
        let mut go_on = |rng: &mut Rng, but: Option<usize>, n: u64| {
            for i in (0..5).filter(|i| Some(*i) != but) {
                let mut b = BatchBuilder::new(0.0, None);
                (0..n).for_each(|_| engines[i].event(rng, &mut b));
                index.apply(pods[i], &b.build());
            }
        };
        go_on(&mut rng, None, 80);
        let (mut writer, mut bytes) = (Writer::new(index.clone()), Vec::new());
        let mut digests = Vec::new();
        let mut stats = Vec::new();
        let mut steps = 0;
        for (i, pod) in pods.iter().enumerate() {
            writer.begin(*pod, &(i as u32).to_le_bytes(), Cursor { seq: Some(i as u64), ts: 0.0 }).unwrap();
            go_on(&mut rng, Some(i), 4);
            while writer.step(1, &mut bytes).unwrap().is_more() {
                steps += 1;
                go_on(&mut rng, Some(i), 2);
            }
            digests.push(index.digest(*pod).unwrap());
            stats.push(index.holder_stats(*pod).unwrap());
            go_on(&mut rng, None, 20);
        }
        writer.begin_ghosts().unwrap();
        while writer.step(1, &mut bytes).unwrap().is_more() {
            go_on(&mut rng, None, 1);
        }
        writer.finish(&mut bytes).unwrap();
        assert!(steps > 5, "{steps} steps with others between");
        let new = Arc::new(Index::new(IndexConfig::default()));
        let ids = attach(&new, 5);
        restore(&bytes, 100, &new, &ids);
        for (i, id) in ids.iter().enumerate() {
            let got = new.digest(*id).unwrap();
            assert_eq!(got, digests[i], "seed {seed}, pod {i}");
            assert_eq!(new.holder_stats(*id).unwrap(), stats[i], "seed {seed}, pod {i}");
        }
    }
}

/// A strand grows after the first of its holders was cut, and others hang on what it grew by.
#[test]
fn a_strand_that_grew_since_it_was_written_is_written_on() {
    let index = Arc::new(Index::new(IndexConfig::default()));
    let pods = attach(&index, 3);
    let whole = chain(1, None, &locals(1, 33));
    let part = |from: usize, to: usize| (whole.0[from..to].to_vec(), whole.1[from..to].to_vec());
    let (mut writer, mut bytes) = (Writer::new(index.clone()), Vec::new());
    let mut digests = Vec::new();
    for (i, pod) in pods.iter().enumerate() {
        match i {
            0 => store(&index, *pod, None, &part(0, 20)),
            1 => {
                store(&index, pods[0], Some(whole.0[19]), &part(20, 33));
                store(&index, *pod, None, &part(0, 30));
            }
            // Holds nothing of the strand itself.
            _ => store(&index, *pod, Some(whole.0[31]), &chain(1, Some(whole.0[31].0), &[7, 8])),
        }
        writer.begin(*pod, &(i as u32).to_le_bytes(), Cursor { seq: Some(i as u64), ts: 0.0 }).unwrap();
        while writer.step(1, &mut bytes).unwrap().is_more() {}
        digests.push(index.digest(*pod).unwrap());
    }
    let totals = writer.finish(&mut bytes).unwrap();
    assert_eq!((totals.strands, totals.blocks), (2, 35), "each block once");
    let new = Arc::new(Index::new(IndexConfig::default()));
    let ids = attach(&new, 3);
    restore(&bytes, 64, &new, &ids);
    for (id, digest) in ids.iter().zip(&digests) {
        assert_eq!(new.digest(*id).as_ref(), Some(digest));
    }
    let rows = new.dump(ids[2], None, 9);
    assert_eq!(
        rows.iter().filter_map(|r| r.depth).collect::<std::collections::BTreeSet<_>>(),
        [32, 33].into()
    );
}

#[test]
fn a_holder_that_changes_or_goes_while_it_is_cut_is_void_and_can_be_cut_again() {
    let index = Arc::new(Index::new(IndexConfig::default()));
    let pods = attach(&index, 3);
    for pod in &pods {
        for c in 0..200 {
            store(&index, *pod, None, &chain(1, None, &locals(c, 20)));
        }
    }
    let (mut writer, mut bytes) = (Writer::new(index.clone()), Vec::new());
    let label = |i: u32| i.to_le_bytes();
    writer.begin(pods[0], &label(0), Cursor::default()).unwrap();
    assert!(writer.step(2000, &mut bytes).unwrap().is_more());
    assert_eq!(writer.begin(pods[1], &label(1), Cursor::default()), Err(CutError::Unfinished));
    assert_eq!(writer.finish(&mut bytes), Err(CutError::Unfinished));
    store(&index, pods[0], None, &chain(1, None, &locals(900, 1)));
    assert_eq!(writer.step(2000, &mut bytes), Err(CutError::Changed(pods[0])));
    // One that is cleared has changed, too.
    writer.begin(pods[1], &label(1), Cursor::default()).unwrap();
    assert!(writer.step(2000, &mut bytes).unwrap().is_more());
    index.clear(pods[1]);
    assert_eq!(writer.step(2000, &mut bytes), Err(CutError::Changed(pods[1])));
    writer.begin(pods[2], &label(2), Cursor::default()).unwrap();
    assert!(writer.step(2000, &mut bytes).unwrap().is_more());
    index.detach(pods[2]);
    assert_eq!(writer.step(2000, &mut bytes), Err(CutError::Gone(pods[2])));
    assert_eq!(writer.begin(pods[2], &label(2), Cursor::default()), Err(CutError::Gone(pods[2])));
    writer.begin(pods[1], &label(1), Cursor::default()).unwrap();
    writer.abandon();
    for i in [0, 1] {
        writer.begin(pods[i], &label(i as u32), Cursor { seq: Some(i as u64), ts: 0.0 }).unwrap();
        while writer.step(2000, &mut bytes).unwrap().is_more() {}
    }
    writer.finish(&mut bytes).unwrap();
    assert_eq!(writer.begin_ghosts(), Err(CutError::Finished));
    let new = Arc::new(Index::new(IndexConfig::default()));
    let ids = attach(&new, 2);
    restore(&bytes, 999, &new, &ids);
    for i in [0, 1] {
        alike((&index, pods[i]), (&new, ids[i]), "after two tries");
    }
    assert_eq!(new.holder_stats(ids[0]).unwrap().blocks, 4001);
}

fn feed_all(
    index: &Arc<Index>,
    bytes: &[u8],
    ids: &[Option<HolderId>],
) -> (Result<(), RestoreError>, Vec<Restored>) {
    let mut restore = Restore::new(index.clone());
    let fed = restore.feed(bytes, |f| ids[u32::from_le_bytes(f.label.try_into().unwrap()) as usize]);
    let done = restore.restored().collect();
    (fed, done)
}

#[test]
fn a_holder_is_repaired_from_a_replica_among_others_that_go_on() {
    // Two replicas that heard the same, the publishers in another order.
    let replicas = [0, 1].map(|_| Arc::new(Index::new(IndexConfig::default())));
    let pods = replicas.each_ref().map(|r| attach(r, 6));
    let shared = chain(1, None, &locals(1, 30));
    for (r, index) in replicas.iter().enumerate() {
        for i in 0..6 {
            let i = if r == 0 { i } else { 5 - i };
            let seed = 1 + i as u64 / 4;
            let shared = chain(seed, None, &locals(1, 30));
            store(index, pods[r][i], None, &shared);
            let own = chain(seed, Some(shared.0[10 + i].0), &locals(10 + i as u64, 40));
            store(index, pods[r][i], Some(shared.0[10 + i]), &own);
            remove(index, pods[r][i], &own.0[5..7]);
        }
    }
    for (a, b) in pods[0].iter().zip(&pods[1]) {
        assert_eq!(replicas[0].digest(*a), replicas[1].digest(*b));
    }
    assert_eq!(replicas[1].stats().domains, 2);
    let blocks = replicas[1].stats().blocks;
    for i in 0..6 {
        replicas[1].clear(pods[1][i]);
        let bytes = snapshot(&replicas[0], &pods[0][i..=i], 1000);
        restore(&bytes, 300, &replicas[1], &pods[1][i..=i]);
        let (whole, repaired) = ((&*replicas[0], pods[0][i]), (&*replicas[1], pods[1][i]));
        alike(whole, repaired, "repaired");
        // It lies with those who call blocks alike, and goes on like them.
        let s = replicas[1].stats();
        assert_eq!((s.domains, s.blocks), (2, blocks), "pod {i}");
        for (r, index) in replicas.iter().enumerate() {
            let seed = 1 + i as u64 / 4;
            store(
                index,
                pods[r][i],
                Some(chain(seed, None, &locals(1, 30)).0[29]),
                &chain(seed, Some(3), &[5, 6]),
            );
            remove(index, pods[r][i], &chain(seed, None, &locals(1, 30)).0[..3]);
        }
        alike(whole, repaired, "and goes on");
        for (r, index) in replicas.iter().enumerate() {
            store(index, pods[r][i], None, &chain(1 + i as u64 / 4, None, &locals(1, 3)));
            remove(index, pods[r][i], &chain(1 + i as u64 / 4, Some(3), &[5, 6]).0);
        }
    }
    let query = |index: &Index| {
        let prompt: Vec<LocalHash> = shared.1.clone();
        let scores = index.query(&Query::new("t", "m", Prompt::Local(&prompt))).scores;
        scores.iter().map(|s| (s.cached, s.cached_tokens)).collect::<Vec<_>>()
    };
    assert_eq!(query(&replicas[0]), query(&replicas[1]));
}

/// A holder that lost batches for good is certain again when it has what a replica has.
#[test]
fn a_holder_in_doubt_is_certain_again_from_a_snapshot() {
    let replicas = [0, 1].map(|_| Arc::new(Index::new(IndexConfig::default())));
    let pods = replicas.each_ref().map(|r| attach(r, 1)[0]);
    for (index, pod) in replicas.iter().zip(pods) {
        for c in 0..50 {
            store(index, pod, None, &chain(1, None, &locals(c, 20)));
        }
    }
    let (mut writer, mut bytes) = (Writer::new(replicas[1].clone()), Vec::new());
    writer.begin(pods[1], &0u32.to_le_bytes(), Cursor::default()).unwrap();
    assert!(writer.step(2000, &mut bytes).unwrap().is_more());
    replicas[1].doubt(pods[1]);
    assert_eq!(writer.step(2000, &mut bytes), Err(CutError::Changed(pods[1])));
    let score = |suspect| {
        let prompt: Vec<LocalHash> = locals(3, 20).into_iter().map(LocalHash).collect();
        let s = replicas[1].query(&Query::new("t", "m", Prompt::Local(&prompt))).scores[0].clone();
        assert_eq!((s.cached, s.suspect), suspect);
    };
    score((0, 20));
    restore(&snapshot(&replicas[0], &pods[..1], 500), 100, &replicas[1], &pods[1..]);
    alike((&replicas[0], pods[0]), (&replicas[1], pods[1]), "in doubt before");
    score((20, 20));
    remove(&replicas[1], pods[1], &chain(1, None, &locals(3, 20)).0);
    score((0, 0));
}

/// Blocks that others there call otherwise, or whose names others have: held, and never said to be
/// where they are not.
#[test]
fn what_does_not_fit_into_a_domain_is_kept_beside_it() {
    let old = Arc::new(Index::new(IndexConfig::default()));
    let new = Arc::new(Index::new(IndexConfig::default()));
    let (a, b) = (attach(&old, 1)[0], attach(&new, 2));
    let agreed = chain(1, None, &[1, 2, 3]);
    store(&old, a, None, &agreed);
    store(&new, b[0], None, &agreed);
    // One content with two names, one name with two contents.
    store(
        &old,
        a,
        Some(agreed.0[2]),
        &(vec![EngineHash(10), EngineHash(11)], vec![LocalHash(4), LocalHash(5)]),
    );
    store(&new, b[0], Some(agreed.0[2]), &(vec![EngineHash(20)], vec![LocalHash(4)]));
    store(&old, a, None, &(vec![EngineHash(30), EngineHash(31)], vec![LocalHash(6), LocalHash(7)]));
    store(&new, b[0], None, &(vec![EngineHash(30)], vec![LocalHash(8)]));
    let (fed, done) = feed_all(&new, &snapshot(&old, &[a], 4096), &[Some(b[1])]);
    fed.unwrap();
    assert_eq!(done[0].outcome.unwrap().blocks, 7);
    assert_eq!(old.digest(a).unwrap().held, new.digest(b[1]).unwrap().held);
    let held = |locals: &[u64]| {
        let prompt: Vec<LocalHash> = locals.iter().map(|l| LocalHash(*l)).collect();
        let scores = new.query(&Query::new("t", "m", Prompt::Local(&prompt))).scores;
        scores.iter().map(|s| s.cached).collect::<Vec<_>>()
    };
    assert_eq!(held(&[1, 2, 3, 4, 5]), [4, 5]);
    // Nowhere, as its name is another's here.
    assert_eq!(held(&[6, 7]), [0, 0]);
    assert_eq!(held(&[8]), [1, 0]);
    remove(&new, b[1], &[agreed.0[0], EngineHash(10), EngineHash(11), EngineHash(30), EngineHash(31)]);
    assert_eq!(new.holder_stats(b[1]).unwrap().blocks, 2);
    assert_eq!(held(&[1, 2, 3, 4]), [4, 0]);
}

#[test]
fn a_holder_that_cannot_take_its_part_says_why_and_the_others_get_theirs() {
    let old = Arc::new(Index::new(IndexConfig::default()));
    let olds = attach(&old, 7);
    for (i, pod) in olds.iter().enumerate() {
        store(&old, *pod, None, &chain(1, None, &locals(i as u64, if i == 5 { 50 } else { 20 })));
    }
    let bytes = snapshot(&old, &olds, 4096);
    let new = Arc::new(Index::new(IndexConfig { max_blocks_per_holder: 30, ..IndexConfig::default() }));
    let spec = |name: &str| HolderSpec::new("t", "m", name, 0);
    let told = new.attach(spec("told"));
    store(&new, told, None, &chain(1, None, &locals(77, 1)));
    let elsewhere = new.attach(HolderSpec::new("t", "another", "pod1", 0));
    let salted = new.attach(HolderSpec { salt: "s".to_owned(), ..spec("pod2") });
    let gone = new.attach(spec("gone"));
    new.detach(gone);
    let (large, fine) = (new.attach(spec("pod5")), new.attach(spec("pod6")));
    let ids = [Some(told), Some(elsewhere), Some(salted), Some(gone), None, Some(large), Some(fine)];
    let (fed, done) = feed_all(&new, &bytes, &ids);
    fed.unwrap();
    let outcomes: Vec<_> = done.iter().map(|d| (d.holder, d.outcome.map(|k| k.blocks))).collect();
    assert_eq!(
        outcomes,
        [
            (told, Err(Refusal::NotFresh)),
            (elsewhere, Err(Refusal::Elsewhere)),
            (salted, Err(Refusal::OtherNames)),
            (gone, Err(Refusal::Gone)),
            (large, Err(Refusal::TooManyBlocks { max: 30 })),
            (fine, Ok(20)),
        ]
    );
    assert_eq!(new.holder_stats(told).unwrap().blocks, 1, "what it was told stays");
    for id in [elsewhere, salted, large] {
        assert_eq!(new.digest(id).unwrap(), Default::default());
    }
    alike((&old, olds[6]), (&new, fine), "among those refused");
    // Blocks of those that are not there any more are remembered as those that lost their last holder.
    assert_eq!(new.stats().entries, 21);
}

#[test]
fn over_its_bytes_the_index_drops_what_comes_from_a_snapshot_too_and_says_so() {
    let old = Arc::new(Index::new(IndexConfig::default()));
    let olds = attach(&old, 4);
    for c in 0..800 {
        store(&old, olds[c as usize % 4], None, &chain(1, None, &locals(c, 200)));
    }
    let bytes = snapshot(&old, &olds, 1 << 16);
    let max_bytes = 1 << 20;
    let new = Arc::new(Index::new(IndexConfig { max_bytes, ..IndexConfig::default() }));
    let ids = attach(&new, 4);
    let (fed, done) = feed_all(&new, &bytes, &ids.iter().map(|i| Some(*i)).collect::<Vec<_>>());
    fed.unwrap();
    let s = new.stats();
    assert!(s.bytes <= max_bytes + (1 << 20), "{s:?}");
    let mut known = 0;
    for d in done {
        let (kept, stats) = (d.outcome.unwrap(), new.holder_stats(d.holder).unwrap());
        assert!(kept.blocks < kept.of && stats.partial, "{kept:?} {stats:?}");
        assert_eq!(stats.blocks + stats.dropped, kept.of, "{stats:?}");
        known += stats.blocks;
    }
    assert_eq!(s.entries, known);
    // That some was dropped is known after the next snapshot, too.
    replant(&new, &ids);
}

#[test]
fn what_nobody_takes_is_let_go_like_what_lost_its_last_holder() {
    let old = Arc::new(Index::new(IndexConfig::default()));
    let olds = attach(&old, 2);
    for c in 0..1000 {
        store(&old, olds[1], None, &chain(1, None, &locals(c, 200)));
    }
    let bytes = snapshot(&old, &olds, 1 << 16);
    for whole in [true, false] {
        let new = Arc::new(Index::new(IndexConfig::default()));
        let ids = attach(&new, 2);
        let bytes = if whole { &bytes[..] } else { &bytes[..bytes.len() - 60] };
        // The one it is of is not asked for, or the snapshot is not complete.
        let (fed, _) = feed_all(&new, bytes, &[Some(ids[0]), (!whole).then_some(ids[1])]);
        fed.unwrap();
        let s = new.stats();
        assert_eq!((s.blocks, s.entries), (0, 0), "whole: {whole}");
        // Of 200,000 blocks as many as are kept without a holder, and tables that do not shrink at once.
        assert!(s.bytes < 7 << 19, "{s:?}, whole: {whole}");
    }
}

/// Odd blocks without a copy go when there are too many, the same as if there had been no snapshot.
#[test]
fn what_waits_without_a_copy_goes_in_its_turn() {
    let index = Arc::new(Index::new(IndexConfig::default()));
    let pods = attach(&index, 1);
    let come_and_go = |index: &Index, pod, name: u64| {
        let mut b = BatchBuilder::new(0.0, None);
        let after = StoredFields { parent: Some(EngineHash(1)), ..FIELDS };
        b.hashed(after, &[EngineHash(name)], &[LocalHash(name)]);
        b.removed(&[EngineHash(name)], Tier::Gpu, 0);
        // An orphan is counted when it was not known to be one.
        index.apply(pod, &b.build()).orphans
    };
    for name in 100..200 {
        assert_eq!(come_and_go(&index, pods[0], name), 1);
        assert_eq!(come_and_go(&index, pods[0], name), 0);
    }
    let (new, ids) = replant(&index, &pods);
    for name in 1000..1000 + (1 << 14) - 150 {
        for (index, pod) in [(&index, pods[0]), (&new, ids[0])] {
            assert_eq!(come_and_go(index, pod, name), 1);
        }
    }
    let known = |index: &Index, pod| (100..200).map(|n| come_and_go(index, pod, n)).collect::<Vec<_>>();
    let (old, new) = (known(&index, pods[0]), known(&new, ids[0]));
    assert_eq!(old, new);
    assert!(old.contains(&0) && old.contains(&1), "some are known yet");
}

#[test]
fn request_keys_come_back_for_the_deployment_that_they_are_of() {
    let llmd = Llmd::new(Algo::CborFnv, "42");
    let config = IndexConfig { llmd: Some(llmd), ..IndexConfig::default() };
    let old = Arc::new(Index::new(config));
    let olds = attach(&old, 2);
    let tokens: Vec<u32> = (0..64).collect();
    let names: Vec<EngineHash> = (1..=16).map(EngineHash).collect();
    for (pod, n) in olds.iter().zip([16, 9]) {
        let mut b = BatchBuilder::new(0.0, None);
        b.stored(StoredFields { block_size: 4, ..Default::default() }, &names[..n], &tokens[..4 * n], &[]);
        old.apply(*pod, &b.build());
    }
    let mut keys: Vec<RequestKey> = Vec::new();
    llmd.prompt_keys("m", &tokens, 4, &[], &mut keys).unwrap();
    let held = |index: &Index| {
        let scores = index.query(&Query::new("t", "m", Prompt::Llmd(&keys))).scores;
        scores.iter().map(|s| s.cached).collect::<Vec<_>>()
    };
    assert_eq!(held(&old), [16, 9]);
    let bytes = snapshot(&old, &olds, 4096);
    let new = Arc::new(Index::new(config));
    restore(&bytes, 50, &new, &attach(&new, 2));
    assert_eq!(held(&new), [16, 9]);
    for other in [None, Some(Llmd::new(Algo::CborFnv, "43")), Some(Llmd::new(Algo::Xxh64, "42"))] {
        let new = Arc::new(Index::new(IndexConfig { llmd: other, ..config }));
        let ids = attach(&new, 2);
        let (fed, done) = feed_all(&new, &bytes, &[Some(ids[0]), Some(ids[1])]);
        assert_eq!((fed, done), (Err(RestoreError::OtherKeys), vec![]), "{other:?}");
    }
}

#[test]
fn a_block_costs_its_two_words_and_little_more() {
    let index = Arc::new(Index::new(IndexConfig::default()));
    let pods = attach(&index, 8);
    // The worst there is: every block hangs on its own, in a strand of one block.
    let root = chain(1, None, &locals(0, 3000));
    store(&index, pods[0], None, &root);
    for (i, name) in root.0.iter().enumerate() {
        store(&index, pods[0], Some(*name), &chain(1, Some(name.0), &[1 << 40 | i as u64]));
    }
    let one = snapshot(&index, &pods[..1], 1 << 16).len() as f64 / 6000.0;
    assert!(one < 24.0, "{one} bytes a block");
    // Conversations that eight pods hold.
    let index = Arc::new(Index::new(IndexConfig::default()));
    let pods = attach(&index, 8);
    for pod in &pods {
        for c in 0..50 {
            store(&index, *pod, None, &chain(1, None, &locals(c, 400)));
        }
    }
    let bytes = snapshot(&index, &pods, 1 << 16).len() as f64;
    assert!(bytes / 20_000.0 < 16.2, "{} bytes a block", bytes / 20_000.0);
}
