//! A node in use, on a real file system: what it returns is what it was given, what it tells is
//! what it has, and a restart changes neither.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvproto::Event;
use kvproto::engine::{Engine, decode};

#[cfg(feature = "objects")]
mod shared;
mod wanted;

use super::*;
use crate::policy::random::Random;
use crate::policy::{Config, Owner, Tier};
use crate::slot::lock;
use crate::store::{Backend, Get, Put, Read, StoreKey};

pub(crate) const BYTES: usize = 4096;

/// Who listens to a node: what it says is where, counted as an index counts it.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    pub heard: Mutex<BTreeMap<(u64, kvproto::Tier), i64>>,
    pub last: AtomicU64,
}

impl Listener {
    pub fn take(&self, payload: &[u8]) {
        let batch = decode(Engine::Vllm, payload).unwrap();
        assert_eq!(batch.skipped.malformed, 0, "{:?}", batch.skipped.first);
        let mut heard = lock(&self.heard);
        for event in batch.events() {
            match event {
                Event::Stored(stored) => {
                    stored.hashes.iter().for_each(|h| *heard.entry((h.0, stored.tier)).or_default() += 1);
                }
                Event::Removed(removed) => {
                    removed.hashes.iter().for_each(|h| *heard.entry((h.0, removed.tier)).or_default() -= 1);
                }
                Event::Cleared(cleared) => {
                    heard.retain(|(_, tier), _| cleared.tier.is_some_and(|cleared| cleared != *tier));
                }
            }
        }
        heard.retain(|_, count| *count != 0);
    }

    /// Blocks said to be in a tier, each once.
    pub fn said(&self, tier: kvproto::Tier) -> Vec<u64> {
        let heard = lock(&self.heard);
        assert!(heard.values().all(|count| *count == 1), "{heard:?}");
        heard.keys().filter(|(_, t)| *t == tier).map(|(hash, _)| *hash).collect()
    }
}

impl Publish for Listener {
    fn publish(&self, stream: u32, seq: u64, payload: &[u8]) {
        assert_eq!((stream, seq), (0, self.last.fetch_add(1, Ordering::Relaxed)));
        self.take(payload);
    }
}

pub(crate) fn config(folder: &Path, ram: u64, disk: u64, now: &Arc<AtomicU64>) -> NodeConfig {
    let now = now.clone();
    NodeConfig {
        name: "n1".into(),
        folder: folder.to_owned(),
        ram_bytes: ram * BYTES as u64,
        disk_bytes: disk * BYTES as u64,
        pools: 2,
        backend: Backend::Auto,
        policy: Config { remembered: 300, pinned: 20, ..Config::default() },
        patience: Duration::from_millis(1),
        clock: Arc::new(move || now.load(Ordering::Relaxed)),
        shared: None,
    }
}

pub(crate) fn key(number: u64) -> StoreKey {
    StoreKey::new(42, 0, &number.to_be_bytes()).unwrap()
}

pub(crate) fn payload(number: u64) -> Vec<u8> {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes().repeat(BYTES / 8)
}

/// Offers a chain of blocks.
pub(crate) fn store(node: &Node, pool: PoolId, owner: Owner, numbers: &[u64]) -> Vec<Stored> {
    let payloads: Vec<Vec<u8>> = numbers.iter().map(|n| payload(*n)).collect();
    let after = |at: usize| at.checked_sub(1).map(|at| key(numbers[at]).id());
    let puts: Vec<Put<'_>> = (0..numbers.len())
        .map(|at| Put { key: key(numbers[at]), after: after(at), owner, payload: &payloads[at] })
        .collect();
    node.store(pool, &puts)
}

/// Loads blocks and checks the bytes of those that hit.
pub(crate) fn load(node: &Node, pool: PoolId, numbers: &[u64]) -> Vec<Read> {
    let mut bytes = vec![0; numbers.len() * BYTES];
    let mut gets: Vec<Get<'_>> =
        bytes.chunks_mut(BYTES).zip(numbers).map(|(into, n)| Get { key: key(*n), into }).collect();
    let reads = node.load(pool, &mut gets);
    for ((get, read), n) in gets.iter().zip(&reads).zip(numbers) {
        assert!(*read != Read::Hit || *get.into == payload(*n), "wrong bytes of {n}");
    }
    reads
}

/// What the node says it has, by asking for all.
fn has(node: &Node, pool: PoolId, tier: Tier) -> Vec<u64> {
    let keys: Vec<StoreKey> = (0..2000).map(key).collect();
    let found = node.lookup(pool, &keys);
    (0..2000).filter(|n| found[*n as usize] == Where::In(tier)).collect()
}

fn settle(node: &Node) {
    while node.step() {}
}

fn open(folder: &Path, ram: u64, disk: u64, now: &Arc<AtomicU64>, listener: &Arc<Listener>) -> Node {
    let node = Node::open(config(folder, ram, disk, now), listener.clone()).unwrap();
    node.recover().unwrap();
    node
}

#[test]
fn what_is_told_is_what_is_there_in_random_use_and_after_restarts() {
    for (seed, ram, disk) in [(1, 12, 40), (2, 0, 30), (3, 20, 0), (4, 5, 60)] {
        let folder = tempfile::tempdir().unwrap();
        let (now, listener) = (Arc::new(AtomicU64::new(1_000_000)), Arc::new(Listener::default()));
        let mut node = open(folder.path(), ram, disk, &now, &listener);
        let mut random = Random::new(seed);
        let (mut hits, mut kept) = (0, 0);
        let mut pins = Vec::new();
        for step in 0..500u64 {
            now.fetch_add(1000, Ordering::Relaxed);
            let pool = node.pool(BYTES).unwrap();
            let owner = node.owner("llama", "").unwrap();
            let talk = u64::from(random.below(15));
            let turns = 1 + u64::from(random.below(8));
            let chain: Vec<u64> = [1, 2].into_iter().chain((0..turns).map(|t| 10 + talk * 20 + t)).collect();
            let keys: Vec<StoreKey> = chain.iter().map(|n| key(*n)).collect();
            let ids: Vec<_> = keys.iter().map(StoreKey::id).collect();
            match random.below(12) {
                0..=4 => {
                    node.touch(pool, &keys);
                    if random.below(2) == 0 {
                        settle(&node);
                    }
                    hits += load(&node, pool, &chain).iter().filter(|r| **r == Read::Hit).count();
                    kept += store(&node, pool, owner, &chain).iter().filter(|s| **s == Stored::Kept).count();
                }
                5 => drop(node.step()),
                6 if random.below(2) == 0 => drop(node.evict(pool, &keys[keys.len() - 1..])),
                6 => {
                    let (to, from) =
                        [(Tier::Cpu, Tier::Disk), (Tier::Disk, Tier::Cpu)][random.below(2) as usize];
                    node.transfer(pool, &keys, to, Some(from), |_| true);
                }
                7 => pins.extend(node.pin(pool, &ids, 20_000)),
                8 => pins.extend(node.prefetch(pool, &ids, 3, 20_000)),
                9 => drop(pins.pop().map(|pin| node.unpin(pool, pin))),
                10 => assert!(node.commit().is_ok()),
                _ => {
                    settle(&node);
                    let usage = node.usage()[0];
                    let cpu = has(&node, pool, Tier::Cpu);
                    assert_eq!(cpu, listener.said(kvproto::Tier::Cpu), "seed {seed}, step {step}");
                    assert_eq!(cpu.len(), usage.policy.cpu as usize);
                    let on_disk = listener.said(kvproto::Tier::Disk);
                    assert_eq!(usage.policy.disk as usize, on_disk.len(), "seed {seed}, step {step}");
                    assert_eq!(usage.disk.map_or(0, |d| d.blocks), on_disk.len());
                    assert!(has(&node, pool, Tier::Disk).iter().all(|n| on_disk.contains(n)));
                }
            }
            if step % 97 == 96 {
                // Sometimes what was done last is not written down.
                if step % 2 == 0 {
                    node.commit().unwrap();
                }
                drop(node);
                pins.clear();
                node = open(folder.path(), ram, disk, &now, &listener);
                assert_eq!(node.usage()[0].policy.disk as usize, listener.said(kvproto::Tier::Disk).len());
                assert_eq!(listener.said(kvproto::Tier::Cpu), [0; 0]);
            }
        }
        assert!(hits > 300 && kept > 40, "seed {seed}: {hits} hits, {kept} kept");
    }
}

#[test]
fn who_missed_batches_gets_them_again_and_a_newcomer_gets_all_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let (now, listener) = (Arc::new(AtomicU64::new(0)), Arc::new(Listener::default()));
    let node = open(folder.path(), 8, 16, &now, &listener);
    let (pool, owner) = (node.pool(BYTES).unwrap(), node.owner("llama", "").unwrap());
    for first in (0..60).step_by(4) {
        store(&node, pool, owner, &[first, first + 1, first + 2, first + 3]);
        settle(&node);
    }
    let told = listener.last.load(Ordering::Relaxed);
    assert_eq!((node.streams()[0].model.as_str(), node.streams()[0].next), ("llama", told));
    let all = node.replay(0, 0, usize::MAX).unwrap();
    assert!(all.iter().map(|(seq, _)| *seq).eq(0..told));
    assert_eq!(node.replay(0, 3, 2).unwrap(), all[3..5]);
    assert_eq!(node.replay(0, told, 2).unwrap(), []);
    // Of what is not there to be replayed, what stands for it.
    for batches in [all, node.replay(0, told + 1, 2).unwrap()] {
        let late = Listener::default();
        assert_eq!(batches.last().unwrap().0, told - 1);
        batches.iter().for_each(|(_, payload)| late.take(payload));
        assert_eq!(*lock(&late.heard), *lock(&listener.heard));
    }
}

#[test]
fn a_block_on_its_way_down_can_be_loaded_all_the_time() {
    let folder = tempfile::tempdir().unwrap();
    let (now, listener) = (Arc::new(AtomicU64::new(0)), Arc::new(Listener::default()));
    let node = open(folder.path(), 2, 16, &now, &listener);
    let (pool, owner) = (node.pool(BYTES).unwrap(), node.owner("llama", "").unwrap());
    for n in 0..10 {
        assert_eq!(store(&node, pool, owner, &[n]), [Stored::Kept]);
    }
    let all: Vec<u64> = (0..10).collect();
    assert_eq!(node.usage()[0].waiting, [0, 8, 0]);
    assert_eq!(load(&node, pool, &all), [Read::Hit; 10]);
    // More than RAM and what it has to spare.
    assert_eq!(store(&node, pool, owner, &[10]), [Stored::Refused]);
    assert!(node.step());
    assert_eq!(load(&node, pool, &all), [Read::Hit; 10]);
    assert_eq!(store(&node, pool, owner, &[11]), [Stored::Kept]);
    assert!(node.flush(pool));
    assert_eq!(node.usage()[0].moves.crowded, 1);
}

#[test]
fn quotas_and_owners_hold_after_a_restart_and_a_drain_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (now, listener) = (Arc::new(AtomicU64::new(0)), Arc::new(Listener::default()));
    let node = open(folder.path(), 8, 16, &now, &listener);
    let pool = node.pool(BYTES).unwrap();
    let (a, b) = (node.owner("llama", "a").unwrap(), node.owner("llama", "b").unwrap());
    node.set_quota(pool, b, Tier::Disk, 2).unwrap();
    store(&node, pool, a, &[1, 2, 3]);
    store(&node, pool, b, &[11, 12, 13]);
    node.drain();
    settle(&node);
    assert_eq!(store(&node, pool, a, &[4]), [Stored::Refused]);
    node.commit().unwrap();
    drop(node);
    let node = open(folder.path(), 8, 16, &now, &listener);
    let pool = node.pool(BYTES).unwrap();
    assert_eq!((node.owner("llama", "b"), node.owner("llama", "a")), (Ok(b), Ok(a)));
    assert_eq!(has(&node, pool, Tier::Disk).iter().filter(|n| **n < 10).count(), 3);
    assert_eq!(has(&node, pool, Tier::Disk).iter().filter(|n| **n > 10).count(), 2);
    store(&node, pool, b, &[21, 22, 23, 24]);
    node.drain();
    settle(&node);
    let of_b = listener.said(kvproto::Tier::Disk).iter().filter(|n| **n > 10).count();
    assert_eq!(of_b, 2, "the quota holds after a restart");
}

#[test]
fn a_node_that_has_not_read_its_disk_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let (now, listener) = (Arc::new(AtomicU64::new(0)), Arc::new(Listener::default()));
    let node = open(folder.path(), 0, 16, &now, &listener);
    let (pool, owner) = (node.pool(BYTES).unwrap(), node.owner("llama", "").unwrap());
    store(&node, pool, owner, &[1]);
    node.commit().unwrap();
    drop(node);
    let node = Node::open(config(folder.path(), 0, 16, &now), listener.clone()).unwrap();
    let pool = node.pool(BYTES).unwrap();
    assert_eq!(node.lookup(pool, &[key(1)]), [Where::Unknown]);
    assert_eq!(load(&node, pool, &[1]), [Read::Miss]);
    node.recover().unwrap();
    assert_eq!(node.lookup(pool, &[key(1), key(2)]), [Where::In(Tier::Disk), Where::Nowhere]);
    assert_eq!(load(&node, pool, &[1]), [Read::Hit]);
}

#[test]
fn threads_that_work_and_engines_that_ask_do_not_get_in_each_others_way() {
    let folder = tempfile::tempdir().unwrap();
    let (now, listener) = (Arc::new(AtomicU64::new(0)), Arc::new(Listener::default()));
    let node = open(folder.path(), 10, 40, &now, &listener);
    let (pool, owner) = (node.pool(BYTES).unwrap(), node.owner("llama", "").unwrap());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| node.work());
        }
        let engines: Vec<_> = (0..3u64)
            .map(|engine| {
                let (node, now) = (&node, &now);
                scope.spawn(move || {
                    let mut random = Random::new(engine + 1);
                    for _ in 0..150 {
                        now.fetch_add(100, Ordering::Relaxed);
                        let first = u64::from(random.below(12)) * 10;
                        let chain: Vec<u64> = (first..first + 1 + u64::from(random.below(6))).collect();
                        let keys: Vec<StoreKey> = chain.iter().map(|n| key(*n)).collect();
                        node.touch(pool, &keys);
                        load(node, pool, &chain);
                        store(node, pool, owner, &chain);
                        if random.below(10) == 0 {
                            node.evict(pool, &keys);
                        }
                    }
                })
            })
            .collect();
        engines.into_iter().for_each(|engine| engine.join().unwrap());
        assert!(node.flush(pool));
        node.close();
    });
    assert_eq!(has(&node, pool, Tier::Cpu), listener.said(kvproto::Tier::Cpu));
    let usage = node.usage()[0];
    assert_eq!(usage.policy.cpu as usize, listener.said(kvproto::Tier::Cpu).len());
    assert_eq!(usage.policy.disk as usize, listener.said(kvproto::Tier::Disk).len());
}
