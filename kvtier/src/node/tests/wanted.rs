//! What somebody asks for by name: jobs, pins that outlive the process, hints.

use super::*;
use crate::policy::{BlockId, PinError};

fn keys(numbers: &[u64]) -> Vec<StoreKey> {
    numbers.iter().map(|n| key(*n)).collect()
}

fn ids(numbers: &[u64]) -> Vec<BlockId> {
    numbers.iter().map(|n| key(*n).id()).collect()
}

struct Bench {
    folder: tempfile::TempDir,
    now: Arc<AtomicU64>,
    listener: Arc<Listener>,
    blocks: (u64, u64),
}

impl Bench {
    fn new(ram: u64, disk: u64) -> Bench {
        let (now, listener) = (Arc::new(AtomicU64::new(1_000_000)), Arc::default());
        Bench { folder: tempfile::tempdir().unwrap(), now, listener, blocks: (ram, disk) }
    }

    fn open(&self) -> (Node, PoolId, Owner) {
        let node = open(self.folder.path(), self.blocks.0, self.blocks.1, &self.now, &self.listener);
        let (pool, owner) = (node.pool(BYTES).unwrap(), node.owner("llama", "").unwrap());
        (node, pool, owner)
    }

    fn said(&self) -> [Vec<u64>; 2] {
        [kvproto::Tier::Cpu, kvproto::Tier::Disk].map(|tier| self.listener.said(tier))
    }
}

#[test]
fn blocks_are_copied_and_moved_where_somebody_wants_them_and_it_is_told() {
    let bench = Bench::new(8, 20);
    let (node, pool, owner) = bench.open();
    store(&node, pool, owner, &[1, 2, 3, 4]);
    let mut seen = Vec::new();
    let copied = node.transfer(pool, &keys(&[1, 2, 3, 9]), Tier::Disk, None, |progress| {
        seen.push(progress.done);
        true
    });
    assert_eq!(copied, Progress { found: 3, done: 3, failed: 0, left: 0 });
    assert_eq!(bench.said(), [vec![1, 2, 3, 4], vec![1, 2, 3]]);
    assert!(seen.is_sorted() && seen[0] == 0, "{seen:?}");
    // 4 is in RAM alone and follows 3, which has to stay where 4 is; 1 to 3 stay with it.
    let moved = node.transfer(pool, &keys(&[1, 2, 3]), Tier::Disk, Some(Tier::Cpu), |_| true);
    assert_eq!(moved, Progress { found: 3, done: 3, failed: 0, left: 0 });
    let moved = node.transfer(pool, &keys(&[1, 2, 3, 4]), Tier::Disk, Some(Tier::Cpu), |_| true);
    assert_eq!(moved, Progress { found: 4, done: 4, failed: 0, left: 4 });
    assert_eq!(bench.said(), [vec![], vec![1, 2, 3, 4]]);
    let moved = node.transfer(pool, &keys(&[1, 2]), Tier::Cpu, Some(Tier::Disk), |_| true);
    assert_eq!((moved.done, moved.left), (2, 0), "3 on disk needs them there");
    assert_eq!(load(&node, pool, &[1, 2, 3, 4]), [Read::Hit; 4]);
    // There is nowhere to share them.
    let shared = node.transfer(pool, &keys(&[1, 2]), Tier::Shared, None, |_| true);
    assert_eq!(shared, Progress { found: 2, done: 0, failed: 2, left: 0 });
}

#[test]
fn a_job_ends_when_nobody_wants_to_know_and_fails_where_there_is_no_room() {
    let bench = Bench::new(4, 300);
    let (node, pool, owner) = bench.open();
    let all: Vec<u64> = (0..100).collect();
    for chain in all.chunks(2) {
        store(&node, pool, owner, chain);
        node.transfer(pool, &keys(chain), Tier::Disk, None, |_| true);
    }
    let mut asked = 0;
    let ended = node.transfer(pool, &keys(&all), Tier::Disk, Some(Tier::Cpu), |_| {
        asked += 1;
        asked < 3
    });
    assert!(ended.found == 100 && ended.done < 10 && ended.left == 0, "{ended:?}");
    // Pinned blocks fill RAM: nothing else comes up.
    settle(&node);
    node.transfer(pool, &keys(&all[..4]), Tier::Cpu, None, |_| true);
    let pinned = all.iter().copied().filter(|n| node.lookup(pool, &[key(*n)]) == [Where::In(Tier::Cpu)]);
    let pinned: Vec<u64> = pinned.collect();
    assert_eq!(pinned.len(), 4);
    for n in &pinned {
        node.pin(pool, &ids(&[*n]), 60_000).unwrap();
    }
    let refused = node.transfer(pool, &keys(&all[50..60]), Tier::Cpu, None, |_| true);
    assert_eq!((refused.found, refused.done, refused.failed), (10, 0, 10));
}

#[test]
fn a_pin_holds_until_its_end_whatever_becomes_of_the_process() {
    let bench = Bench::new(0, 6);
    let (node, pool, owner) = bench.open();
    store(&node, pool, owner, &[1, 2, 3]);
    let until_later = node.pin(pool, &ids(&[1, 2, 9]), 50_000).unwrap();
    let short = node.pin(pool, &ids(&[1]), 5_000).unwrap();
    let taken_back = node.pin(pool, &ids(&[1, 2, 3]), 50_000).unwrap();
    node.unpin(pool, taken_back).unwrap();
    let renewed = node.pin(pool, &ids(&[1]), 5_000).unwrap();
    node.renew(pool, renewed, 60_000).unwrap();
    node.commit().unwrap();
    drop(node);

    bench.now.fetch_add(10_000, Ordering::Relaxed);
    let (node, pool, owner) = bench.open();
    assert_eq!(node.usage()[0].policy.pinned, 2);
    for n in 100..140 {
        bench.now.fetch_add(100, Ordering::Relaxed);
        // Asked for again, it is worth more than what is there.
        node.touch(pool, &keys(&[n]));
        store(&node, pool, owner, &[n]);
        node.touch(pool, &keys(&[n]));
        store(&node, pool, owner, &[n]);
    }
    settle(&node);
    let there = has(&node, pool, Tier::Disk);
    assert!(there.starts_with(&[1, 2]) && !there.contains(&3) && there.len() == 6, "{there:?}");
    // Its name is still good, and nobody else gets it.
    assert_eq!(node.unpin(pool, short), Err(PinError::Unknown(short)));
    assert_eq!(node.unpin(pool, taken_back), Err(PinError::Unknown(taken_back)));
    let next = node.pin(pool, &ids(&[1]), 1000).unwrap();
    assert!(![until_later, short, taken_back, renewed].contains(&next) && next > renewed);
    node.unpin(pool, until_later).unwrap();
    assert_eq!(node.usage()[0].policy.pinned, 1);
    // What is over is forgotten, in memory and in what is written down.
    bench.now.fetch_add(60_000, Ordering::Relaxed);
    node.probe();
    assert_eq!(node.usage()[0].policy.pinned, 0);
    assert_eq!(node.catalog.pins(BYTES).unwrap(), []);
    assert_eq!(node.renew(pool, renewed, 1), Err(PinError::Unknown(renewed)));
}

/// The 64 bits that events call these blocks by.
fn told(numbers: &[u64]) -> Vec<u64> {
    numbers.to_vec()
}

#[test]
fn a_hint_brings_up_what_is_known_by_64_bits_and_at_most_its_part_of_ram() {
    let bench = Bench::new(8, 40);
    let (node, pool, owner) = bench.open();
    let chain: Vec<u64> = (1..=12).collect();
    for part in [&chain[..6], &chain[6..]] {
        store(&node, pool, owner, part);
        node.transfer(pool, &keys(part), Tier::Disk, Some(Tier::Cpu), |_| true);
    }
    settle(&node);
    assert_eq!(bench.said(), [vec![], chain.clone()]);
    let hinted = node.hint("llama", &told(&[1, 2, 777, 3]), 100, 5_000);
    assert_eq!(hinted, Hinted { known: 3, unknown: 1, copied: 3, refused: 0 });
    settle(&node);
    assert_eq!(bench.said(), [vec![1, 2, 3], chain.clone()]);
    assert_eq!(node.usage()[0].policy.asked, 0, "a hint is no use");
    // Half of 8 slots are for hints, three are taken.
    let hinted = node.hint("llama", &told(&[7, 8, 9]), 100, 5_000);
    assert_eq!(hinted, Hinted { known: 3, unknown: 0, copied: 1, refused: 2 });
    assert_eq!(node.hint("llama", &told(&[10]), 100, 5_000).refused, 1);
    bench.now.fetch_add(6_000, Ordering::Relaxed);
    node.probe();
    assert_eq!(node.hint("llama", &told(&[10]), 100, 5_000).copied, 1);
    assert_eq!(node.hint("nobody", &told(&[10]), 100, 5_000), Hinted { unknown: 1, ..Hinted::default() });
    assert_eq!(node.hinted(), Hinted { known: 8, unknown: 2, copied: 5, refused: 3 });
    node.commit().unwrap();
    drop(node);
    // A restart finds the names again.
    let (node, _, _) = bench.open();
    assert_eq!(node.hint("llama", &told(&[1, 2]), 100, 5_000).copied, 2);
    settle(&node);
    assert_eq!(bench.said()[0], [1, 2]);
}

#[test]
fn where_two_blocks_share_64_bits_a_hint_means_neither() {
    let bench = Bench::new(8, 40);
    let (node, pool, owner) = bench.open();
    let twin = |front: u8| StoreKey::new(42, 0, &[&[front; 24][..], &7u64.to_be_bytes()].concat()).unwrap();
    let payload = payload(7);
    for front in [1, 2] {
        node.store(pool, &[Put { key: twin(front), after: None, owner, payload: &payload }]);
        node.transfer(pool, &[twin(front)], Tier::Disk, Some(Tier::Cpu), |_| true);
    }
    assert_eq!(node.hint("llama", &[7], 9, 5_000), Hinted { unknown: 1, ..Hinted::default() });
}

#[test]
fn what_is_held_by_64_bits_stays_until_its_time_is_over_or_it_is_let_go() {
    let bench = Bench::new(0, 8);
    let (node, pool, owner) = bench.open();
    let told = |numbers: &[u64]| numbers.iter().map(|n| short_hash(&key(*n)).unwrap()).collect::<Vec<u64>>();
    let there = |node: &Node| load(node, pool, &[1, 2, 3]) == [Read::Hit; 3];
    store(&node, pool, owner, &[1, 2, 3]);
    let holding = node.hold("llama", &told(&[1, 2, 3, 99]), 5_000).unwrap();
    assert_eq!((holding.pins.len(), holding.held), (1, 3));
    let push_out = |node: &Node, from: u64| {
        for n in from..from + 40 {
            store(node, pool, owner, &[n]);
            node.touch(pool, &keys(&[n]));
            store(node, pool, owner, &[n]);
        }
    };
    push_out(&node, 100);
    assert!(there(&node), "held blocks were pushed out");
    // Also by another process on the same disk.
    node.commit().unwrap();
    drop(node);
    let (node, ..) = bench.open();
    push_out(&node, 200);
    assert!(there(&node), "blocks held before were pushed out");
    let (of, pin) = holding.pins[0];
    node.unpin(of, pin).unwrap();
    push_out(&node, 300);
    assert!(!there(&node), "nobody holds them any more");
    assert_eq!(node.hold("llama", &told(&[1234]), 5_000).unwrap(), Holding::default());
    assert_eq!(node.hold("nobody", &told(&[1]), 5_000).unwrap(), Holding::default());
}
