//! An index that has something of everything a snapshot can say.

use std::sync::Arc;

use kvindex::{HolderId, HolderSpec, Index, IndexConfig};
use kvproto::event::{BatchBuilder, Content, StoredFields};
use kvproto::{EngineHash, ExtraKey, GroupKind, GroupSpec, LocalHash, Tier};

/// What an engine of hash seed `seed` calls the block with `local` after `parent`.
fn name(seed: u64, parent: u64, local: u64) -> u64 {
    let mix = |x: u64| (x ^ x >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9).rotate_left(31);
    mix(mix(seed ^ parent) ^ local) | 1
}

/// Names and own hashes of a chain of blocks `locals` after `parent`.
pub fn chain(seed: u64, parent: Option<u64>, locals: &[u64]) -> (Vec<EngineHash>, Vec<LocalHash>) {
    let mut last = parent.unwrap_or(0);
    let names = locals.iter().map(|l| {
        last = name(seed, last, *l);
        EngineHash(last)
    });
    (names.collect(), locals.iter().map(|l| LocalHash(*l)).collect())
}

/// The index and its holders.
pub fn rich(config: IndexConfig) -> (Arc<Index>, Vec<HolderId>) {
    let index = Arc::new(Index::new(config));
    let spec = |name: &str| HolderSpec::new("t", "m", name, 0);
    let pods: Vec<HolderId> = ["a", "b", "c", "d"].iter().map(|n| index.attach(spec(n))).collect();
    let other = index.attach(HolderSpec::new("t2", "other model", "e", 1));
    let fields = StoredFields { block_size: 16, ..Default::default() };
    let send = |pod: HolderId, make: &dyn Fn(&mut BatchBuilder<'static>)| {
        let mut b = BatchBuilder::new(0.0, None);
        make(&mut b);
        index.apply(pod, &b.build());
    };
    let long: Vec<u64> = (1000..1040).collect();
    let (names, locals) = chain(1, None, &long);
    // Two that share a chain, with a hole, a branch, copies and lower tiers.
    for pod in &pods[..2] {
        send(*pod, &|b| {
            b.hashed(fields, &names, &locals);
        });
    }
    let parent = Some(names[19]);
    let (branch, branch_locals) = chain(1, Some(names[19].0), &[7, 8, 9]);
    send(pods[1], &|b| {
        b.hashed(StoredFields { parent, ..fields }, &branch, &branch_locals);
        b.removed(&names[5..7], Tier::Gpu, 0);
    });
    send(pods[0], &|b| {
        b.hashed(fields, &names[..10], &locals[..10]);
        b.hashed(fields, &names[..4], &locals[..4]);
        let lower = StoredFields { tier: Tier::Cpu, content: Content::HashOnly, ..Default::default() };
        b.stored(lower, &names[3..4], &[], &[]);
        b.stored(lower, &[names[7], EngineHash(0xABCD)], &[], &[]);
        b.hashed(
            StoredFields { parent: Some(EngineHash(0x5EED)), ..fields },
            &[EngineHash(0x0C1), EngineHash(0x0C2)],
            &[LocalHash(1), LocalHash(2)],
        );
        b.stored(lower, &[EngineHash(0x6057)], &[], &[]);
        b.removed(&[EngineHash(0x6057)], Tier::Cpu, 0);
        // All of a chain comes and goes: ghosts.
        let (gone, gone_locals) = chain(1, None, &[50, 51, 52]);
        b.hashed(fields, &gone, &gone_locals);
        b.removed(&gone, Tier::Gpu, 0);
        // A second name of one content.
        b.hashed(fields, &[EngineHash(0x2AD)], &locals[..1]);
    });
    // Another hash domain, a hybrid engine, items without a place, and a name with two block sizes.
    let (names, locals) = chain(2, None, &long);
    let kind = |kind, window| Some(GroupSpec { kind, window });
    send(pods[2], &|b| {
        let full = StoredFields { group: 1, spec: kind(GroupKind::Full, None), ..fields };
        let window = kind(GroupKind::SlidingWindow, Some(u32::MAX));
        b.hashed(full, &names, &locals);
        b.hashed(StoredFields { spec: window, ..fields }, &names[30..], &locals[30..]);
        let bare = vec![vec![], vec![ExtraKey::Text("img")]];
        b.stored(
            StoredFields { block_size: 2, ..fields },
            &[EngineHash(71), EngineHash(72)],
            &[1, 2, 3, 4],
            &bare,
        );
        b.hashed(StoredFields { block_size: 32, ..full }, &names[..1], &[LocalHash(99)]);
    });
    // Blocks that stand for themselves.
    send(pods[3], &|b| {
        let canonical = StoredFields { content: Content::Canonical, ..fields };
        let hashes: Vec<_> = (1..=6).map(|h| EngineHash(h << 40)).collect();
        b.stored(canonical, &hashes[..4], &[], &[]);
        let after = Some(EngineHash(77));
        b.stored(StoredFields { parent: after, base_block: Some(9), ..canonical }, &hashes[4..], &[], &[]);
    });
    send(other, &|b| {
        b.stored(fields, &[EngineHash(5)], &(0..16).collect::<Vec<u32>>(), &[]);
    });
    (index, [pods, vec![other]].concat())
}
