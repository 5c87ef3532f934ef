//! The policy decides, the store keeps, and a restart finds it all again: how the parts go
//! together.

use std::collections::HashMap;

use kvtier::policy::{BlockId, Config, Move, Owner, Planner, Tier};
use kvtier::store::{Backend, Get, Layout, Put, Read, Store, StoreKey, parents_first};

const LAYOUT: Layout = Layout { block_bytes: 8192, slots: 40, segment_slots: 16 };
const CONFIG: Config = Config {
    cpu: 12,
    disk: LAYOUT.slots,
    remembered: 200,
    ranking: kvtier::policy::Ranking::Hazard,
    pinned: 10,
    disk_writes: None,
    shared_writes: None,
    share_from: 2,
    seed: 1,
};

/// A block that is fully told by its number.
fn key(number: u64) -> StoreKey {
    StoreKey::new(42, 0, &number.to_be_bytes()).unwrap()
}

fn payload(number: u64) -> Vec<u8> {
    number.to_be_bytes().repeat(LAYOUT.block_bytes / 8)
}

/// Does the I/O that a planner decides on.
struct Mover {
    planner: Planner,
    store: Store,
    ram: HashMap<BlockId, Vec<u8>>,
    numbers: HashMap<BlockId, u64>,
    moved: u64,
}

impl Mover {
    fn request(&mut self, now: u64, numbers: &[u64]) -> u32 {
        let chain: Vec<BlockId> = numbers.iter().map(|n| key(*n).id()).collect();
        self.numbers.extend(chain.iter().copied().zip(numbers.iter().copied()));
        let mut moves = Vec::new();
        let found = self.planner.lookup(now, &chain, &mut moves);
        self.carry_out(&mut moves);
        for (id, number) in chain.iter().zip(numbers).take(found.total() as usize) {
            assert_eq!(self.ram[id], payload(*number));
        }
        self.planner.store(now, None, &chain, Owner(0), &mut moves);
        self.carry_out(&mut moves);
        found.total()
    }

    fn carry_out(&mut self, moves: &mut Vec<Move>) {
        for step in moves.drain(..) {
            self.moved += 1;
            match step {
                Move::Take { id, to: Tier::Cpu } => {
                    assert!(self.ram.insert(id, payload(self.numbers[&id])).is_none());
                }
                Move::Copy { id, from: Tier::Cpu, to: Tier::Disk } => {
                    let (after, owner) = self.planner.origin(id).unwrap();
                    let put = Put { key: key(self.numbers[&id]), after, owner, payload: &self.ram[&id] };
                    if self.store.put(&[put])[0].is_err() {
                        self.planner.lost(id, Tier::Disk);
                    }
                }
                Move::Copy { id, from: Tier::Disk, to: Tier::Cpu } => {
                    let mut into = vec![0; LAYOUT.block_bytes];
                    let read = self.store.get(&mut [Get { key: key(self.numbers[&id]), into: &mut into }]);
                    assert_eq!(read, [Read::Hit]);
                    assert!(self.ram.insert(id, into).is_none());
                }
                Move::Drop { id, from: Tier::Cpu } => assert!(self.ram.remove(&id).is_some()),
                Move::Drop { id, from: Tier::Disk } => assert!(self.store.remove(key(self.numbers[&id]))),
                Move::Take { .. } | Move::Copy { .. } | Move::Drop { .. } => panic!("{step:?} on this node"),
            }
        }
        assert_eq!(self.planner.stats().cpu as usize, self.ram.len());
        assert_eq!(self.planner.stats().disk as usize, self.store.stats().blocks);
    }
}

#[test]
fn what_the_policy_moves_is_what_the_store_has_before_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder.path(), LAYOUT, Backend::Auto).unwrap();
    let (planner, ram, numbers) = (Planner::new(CONFIG), HashMap::new(), HashMap::new());
    let mut mover = Mover { planner, store, ram, numbers, moved: 0 };
    let mut found = 0;
    for at in 0..600u64 {
        // Fifteen conversations behind one prompt, each a block longer every time it returns.
        let talk = at * 7 % 15;
        let turns = 1 + at / 150;
        let chain: Vec<u64> =
            [1, 2].into_iter().chain((0..turns).map(|turn| talk * 100 + turn + 10)).collect();
        found += mover.request(at * 1000, &chain);
    }
    assert!(found > 1200 && mover.moved > 1000, "{found} found, {} moves", mover.moved);

    mover.store.commit().unwrap();
    let on_disk = mover.planner.stats().disk;
    drop(mover.store);
    let (store, records) = Store::open(folder.path(), LAYOUT, Backend::Auto).unwrap();
    let mut planner = Planner::new(CONFIG);
    for record in &parents_first(&records) {
        let id = record.key.id();
        assert!(planner.restore(id, record.after, record.owner, Tier::Disk));
        let there = record.after.filter(|after| records.iter().any(|r| r.key.id() == *after));
        assert_eq!(planner.origin(id), Some((there, record.owner)));
    }
    assert_eq!((records.len() as u32, planner.stats().disk), (on_disk, on_disk));
    let mut mover = Mover { planner, store, ram: HashMap::new(), ..mover };
    let chains = (0..15).map(|talk| mover.request(700_000, &[1, 2, talk * 100 + 10]));
    assert!(chains.sum::<u32>() > 15);
}
