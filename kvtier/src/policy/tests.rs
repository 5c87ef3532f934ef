//! The policy against its reference, and its rules one by one.

use std::collections::{BTreeMap, BTreeSet};

use super::random::Random;
use super::reference::{Known, Reference};
use super::*;

const MINUTE: u64 = 60_000;

fn ids(range: std::ops::Range<u128>) -> Vec<BlockId> {
    range.map(BlockId).collect()
}

/// A planner, the moves it made, and the truth.
struct Bench {
    planner: Planner,
    reference: Reference,
    random: Random,
    now: u64,
    moves: Vec<Move>,
    pins: BTreeMap<PinId, (u64, Vec<BlockId>)>,
    ranking: Ranking,
}

impl Bench {
    fn new(config: Config) -> Bench {
        let capacity = [(Tier::Cpu, config.cpu as usize), (Tier::Disk, config.disk as usize)];
        let (seed, ranking) = (config.seed, config.ranking);
        Bench {
            planner: Planner::new(config),
            reference: Reference { capacity: capacity.into(), disk_writable: true, ..Reference::default() },
            random: Random::new(seed + 1000),
            now: 0,
            moves: vec![],
            pins: BTreeMap::new(),
            ranking,
        }
    }

    /// A random path through a fixed forest: a block's id says its parent's.
    fn chain(&mut self) -> (Vec<BlockId>, Owner) {
        let tree = 1 + self.random.below(3);
        let owner = Owner(tree as u16 % 2);
        let mut id = u128::from(tree);
        let mut chain = vec![BlockId(id)];
        for _ in 0..self.random.below(8) {
            id = id * 4 + u128::from(self.random.below(3)) + 1;
            chain.push(BlockId(id));
        }
        (chain, owner)
    }

    fn learn_parents(&mut self, chain: &[BlockId], owner: Owner) {
        for (at, id) in chain.iter().enumerate() {
            let known = self.reference.blocks.entry(*id).or_default();
            known.parent = at.checked_sub(1).map(|at| chain[at]);
            known.owner = owner;
        }
    }

    fn protect(&mut self, chain: &[BlockId]) {
        self.pins.retain(|_, (until, _)| *until > self.now);
        let pinned = self.pins.values().flat_map(|(_, blocks)| blocks);
        self.reference.protected = pinned.chain(chain).copied().collect();
    }

    fn apply(&mut self, what: &str) {
        for step in std::mem::take(&mut self.moves) {
            if self.ranking == Ranking::Lru
                && let Move::Drop { id, from } = step
            {
                self.is_least_recent(id, from);
            }
            let owner = match step {
                Move::Take { id, .. } | Move::Copy { id, .. } | Move::Drop { id, .. } => {
                    self.reference.blocks[&id].owner
                }
            };
            if let Err(broken) = self.reference.apply(step, owner) {
                panic!("{what}: {step:?}: {broken}");
            }
        }
        let stats = self.planner.stats();
        let held = |tier| self.reference.held(tier, None) as u32;
        assert_eq!((stats.cpu, stats.disk), (held(Tier::Cpu), held(Tier::Disk)), "{what}");
    }

    /// Without quotas and with a disk that takes everything, LRU's choice can be told exactly.
    fn is_least_recent(&self, victim: BlockId, tier: Tier) {
        if tier != Tier::Cpu || !self.reference.quota.is_empty() || self.reference.capacity[&Tier::Disk] > 0 {
            return;
        }
        let tick = |id: &BlockId| self.reference.blocks[id].last / 16;
        for id in self.reference.blocks.keys() {
            let leaf = self.reference.is_in(*id, tier) && !self.reference.has_child_in(*id, tier);
            if leaf && !self.reference.protected.contains(id) {
                assert!(tick(&victim) <= tick(id), "{victim:?} went before {id:?}");
            }
        }
    }

    fn step(&mut self, what: &str, faults: bool) {
        let (chain, owner) = self.chain();
        self.now += u64::from(self.random.below(3)) * u64::from(self.random.below(4000));
        let now = self.now;
        self.learn_parents(&chain, owner);
        match self.random.below(if faults { 18 } else { 12 }) {
            0..=4 => {
                self.protect(&chain);
                let found = self.planner.lookup(now, &chain, &mut self.moves);
                let (seen, rest) = chain.split_at(found.total() as usize);
                assert_eq!(found, self.reference.found(seen), "{what}");
                // The planner may have forgotten what only shared storage still has.
                if let Some(Known { tiers, .. }) =
                    rest.first().and_then(|id| self.reference.blocks.get_mut(id))
                {
                    assert!(!tiers.contains(&Tier::Cpu) && !tiers.contains(&Tier::Disk), "{what}");
                    tiers.clear();
                }
                for id in &chain {
                    self.reference.blocks.get_mut(id).unwrap().last = now;
                }
                self.apply(what);
            }
            5..=7 => {
                let from = self.random.below(chain.len() as u32) as usize;
                let known = from > 0 && self.reference.found_here(&chain[..from]) == from;
                let (after, offered) =
                    if known { (Some(chain[from - 1]), &chain[from..]) } else { (None, &chain[..]) };
                self.protect(offered);
                for id in offered {
                    let block = self.reference.blocks.get_mut(id).unwrap();
                    if block.last == 0 {
                        block.last = now;
                    }
                }
                let stored = self.planner.store(now, after, offered, owner, &mut self.moves);
                self.apply(what);
                let there = offered.iter().take_while(|id| {
                    self.reference.is_in(**id, Tier::Cpu) || self.reference.is_in(**id, Tier::Disk)
                });
                assert_eq!(stored as usize, there.count(), "{what}");
            }
            8 => {
                let most = self.random.below(4);
                let there = self.reference.found_here(&chain);
                self.protect(&chain[..there]);
                let until = now + u64::from(self.random.below(9000));
                if let Ok(pin) = self.planner.prefetch(now, &chain, most, until, &mut self.moves) {
                    self.pins.insert(pin, (until, chain[..there].to_vec()));
                    assert!(
                        self.moves.iter().filter(|m| matches!(m, Move::Copy { to: Tier::Cpu, .. })).count()
                            <= most as usize
                    );
                    self.apply(what);
                }
            }
            9 => {
                let ended: Vec<PinId> = self.pins.keys().copied().collect();
                if let Some(&pin) = ended.first() {
                    let held = self.pins.remove(&pin).is_some_and(|(until, _)| until > now);
                    let taken = self.planner.renew(now, pin, now + 1).and_then(|()| self.planner.unpin(pin));
                    assert_eq!(taken.is_ok(), held, "{what}");
                }
            }
            10 => {
                self.protect(&chain);
                let to = [Tier::Cpu, Tier::Disk, Tier::Shared][self.random.below(3) as usize];
                let count = self.planner.copy(now, &chain, to, &mut self.moves);
                self.apply(what);
                let there = chain.iter().filter(|id| self.reference.is_in(**id, to)).count();
                // Of shared storage the planner may have forgotten some.
                assert!(count == there || (to == Tier::Shared && count < there), "{what}: {count}, {there}");
            }
            11 => {
                self.protect(&[]);
                let from = [Tier::Cpu, Tier::Disk][self.random.below(2) as usize];
                let there = |reference: &Reference| {
                    chain.iter().filter(|id| !reference.blocks[*id].tiers.is_empty()).count()
                };
                let before = there(&self.reference);
                for id in chain.iter().rev() {
                    self.planner.leave(*id, from, &mut self.moves);
                }
                self.apply(what);
                assert_eq!(there(&self.reference), before, "{what}: a last copy was given up");
            }
            12 | 13 => {
                let all: Vec<BlockId> = self.reference.blocks.keys().copied().collect();
                let id = all[self.random.below(all.len() as u32) as usize];
                let tier = [Tier::Cpu, Tier::Disk, Tier::Shared][self.random.below(3) as usize];
                self.planner.lost(id, tier);
                self.reference.blocks.get_mut(&id).unwrap().tiers.remove(&tier);
            }
            14 => {
                self.reference.disk_writable = self.random.below(3) > 0;
                self.planner.set_disk_writable(self.reference.disk_writable);
            }
            15 => {
                let (owner, tier) = (
                    Owner(self.random.below(2) as u16),
                    [Tier::Cpu, Tier::Disk][self.random.below(2) as usize],
                );
                let blocks = 2 + self.random.below(12);
                self.protect(&[]);
                self.planner.set_quota(owner, tier, blocks, &mut self.moves);
                self.apply(what);
                self.reference
                    .quota
                    .insert((owner, tier), self.reference.held(tier, Some(owner)).max(blocks as usize));
            }
            16 => {
                let there = self.reference.found_here(&chain);
                let until = now + u64::from(self.random.below(9000));
                match self.planner.pin(now, &chain, until) {
                    Ok(pin) => drop(self.pins.insert(pin, (until, chain[..there].to_vec()))),
                    Err(error) => assert!(matches!(error, PinError::TooMany { .. })),
                }
            }
            _ => {
                self.planner.restore(chain[0], None, owner, Tier::Shared);
                self.reference.blocks.get_mut(&chain[0]).unwrap().tiers.insert(Tier::Shared);
            }
        }
    }
}

#[test]
fn random_requests_and_faults_break_no_rule() {
    for seed in 1..=16 {
        let ranking = Ranking::ALL[seed as usize % 4];
        let disk = [0, 12, 40][seed as usize % 3];
        let config = Config {
            ranking,
            cpu: 9,
            disk,
            remembered: 30,
            pinned: 6,
            shared_writes: Some(Rate { per_second: 1, burst: 2 }),
            disk_writes: (seed % 2 == 0).then_some(Rate { per_second: 3, burst: 5 }),
            share_from: 1,
            seed,
        };
        let mut bench = Bench::new(config);
        let faults = seed > 8;
        for step in 0..700 {
            bench.step(&format!("seed {seed}, {ranking:?}, step {step}"), faults);
        }
        let stats = bench.planner.stats();
        assert!(stats.found > 0 && stats.evicted > 0, "seed {seed} never got there: {stats:?}");
        assert!(disk == 0 || (stats.demoted > 0 && stats.promoted > 0), "seed {seed}: {stats:?}");
        assert!(stats.remembered <= 30 + stats.cpu as usize + stats.disk as usize, "{stats:?}");
    }
}

#[test]
fn the_same_events_lead_to_the_same_moves() {
    let run = || {
        let mut planner = Planner::new(Config { cpu: 20, disk: 30, ..Config::default() });
        let (mut random, mut moves) = (Random::new(7), Vec::new());
        for at in 0..400 {
            let first = u128::from(random.below(12)) * 100;
            let chain = ids(first..first + 1 + u128::from(random.below(9)));
            planner.lookup(at * 700, &chain, &mut moves);
            planner.store(at * 700, None, &chain, Owner(0), &mut moves);
        }
        moves
    };
    assert_eq!(run(), run());
}

#[test]
fn requests_of_one_moment_are_one_after_the_other() {
    for ranking in Ranking::ALL {
        let mut planner = Planner::new(Config { cpu: 2, ranking, ..Config::default() });
        let mut moves = Vec::new();
        for id in 1..3 {
            planner.lookup(7, &[BlockId(id)], &mut moves);
            planner.store(7, None, &[BlockId(id)], Owner(0), &mut moves);
        }
        planner.lookup(7, &ids(1..2), &mut moves);
        planner.lookup(7, &ids(3..4), &mut moves);
        moves.clear();
        planner.store(7, None, &ids(3..4), Owner(0), &mut moves);
        assert_eq!(moves[0], Move::Drop { id: BlockId(2), from: Tier::Cpu }, "{ranking:?}");
    }
}

#[test]
fn a_prompt_longer_than_the_tier_keeps_its_beginning() {
    let mut planner = Planner::new(Config { cpu: 4, ..Config::default() });
    let mut moves = Vec::new();
    assert_eq!(planner.store(0, None, &ids(0..9), Owner(0), &mut moves), 4);
    assert_eq!(planner.lookup(1, &ids(0..9), &mut moves).cpu, 4);
    assert_eq!(planner.stats().refused, 1);
}

#[test]
fn a_pinned_block_stays_until_its_pin_ends() {
    let mut planner = Planner::new(Config { cpu: 2, ..Config::default() });
    let mut moves = Vec::new();
    planner.store(0, None, &ids(0..2), Owner(0), &mut moves);
    let pin = planner.pin(0, &ids(0..2), MINUTE).unwrap();
    assert_eq!(planner.store(1, None, &ids(5..6), Owner(0), &mut moves), 0);
    planner.renew(MINUTE - 1, pin, 2 * MINUTE).unwrap();
    assert_eq!(planner.store(MINUTE, None, &ids(5..6), Owner(0), &mut moves), 0);
    assert_eq!(planner.store(2 * MINUTE, None, &ids(5..6), Owner(0), &mut moves), 1);
    assert_eq!(planner.unpin(pin), Err(PinError::Unknown(pin)));
}

#[test]
fn a_pin_from_before_holds_the_blocks_that_are_restored_and_only_those() {
    let mut planner = Planner::new(Config { cpu: 2, ..Config::default() });
    let (mut moves, ram) = (Vec::new(), Tier::Cpu);
    planner.expect_pin(PinId(7), MINUTE, &ids(0..2));
    assert!(planner.restore(BlockId(0), None, Owner(0), ram));
    assert!(planner.restore(BlockId(9), None, Owner(0), ram));
    planner.expect_no_more();
    assert_eq!((planner.pinned(PinId(7)), planner.stats().pinned), (1, 1));
    // The other makes room, the pinned one does not; what comes again later is not pinned.
    assert_eq!(planner.store(1, None, &ids(1..2), Owner(0), &mut moves), 1);
    assert_eq!(moves[0], Move::Drop { id: BlockId(9), from: ram });
    assert_eq!((planner.pinned(PinId(7)), planner.has(BlockId(0), ram)), (1, true));
    // Numbers go on behind it, and it ends like any other.
    assert_eq!(planner.pin(2, &ids(0..1), 5), Ok(PinId(8)));
    assert_eq!(planner.ended_pins(MINUTE), [PinId(8), PinId(7)]);
    assert_eq!((planner.ended_pins(MINUTE), planner.stats().pinned), (vec![], 0));
}

#[test]
fn what_is_wanted_elsewhere_goes_there_by_the_way_there_is() {
    let shared_writes = Some(Rate { per_second: 1, burst: 1 });
    let mut planner = Planner::new(Config { cpu: 3, disk: 3, shared_writes, ..Config::default() });
    let (mut moves, (ram, disk, shared)) = (Vec::new(), (Tier::Cpu, Tier::Disk, Tier::Shared));
    planner.store(0, None, &ids(0..2), Owner(0), &mut moves);
    moves.clear();
    let copy = |id, from, to| Move::Copy { id: BlockId(id), from, to };
    assert_eq!(planner.copy(1, &ids(0..3), shared, &mut moves), 2);
    let expected = [copy(0, ram, disk), copy(0, disk, shared), copy(1, ram, disk), copy(1, disk, shared)];
    assert_eq!(moves, expected);
    moves.clear();
    // What another block needs stays, and so does a last copy.
    assert!(!planner.leave(BlockId(0), ram, &mut moves));
    assert!(planner.leave(BlockId(1), ram, &mut moves) && planner.leave(BlockId(0), ram, &mut moves));
    planner.leave(BlockId(1), disk, &mut moves);
    planner.pin(2, &ids(0..1), MINUTE).unwrap();
    assert!(!planner.leave(BlockId(0), disk, &mut moves), "it is pinned");
    moves.clear();
    // From shared storage alone the way to disk leads through RAM.
    assert_eq!(planner.copy(3, &ids(1..2), disk, &mut moves), 1);
    assert_eq!(moves, [copy(1, shared, ram), copy(1, ram, disk)]);
}

#[test]
fn an_owner_over_its_quota_makes_room_from_its_own_blocks() {
    let mut planner = Planner::new(Config { cpu: 10, ..Config::default() });
    let mut moves = Vec::new();
    planner.store(0, None, &ids(0..4), Owner(0), &mut moves);
    planner.set_quota(Owner(1), Tier::Cpu, 2, &mut moves);
    planner.store(1, None, &ids(10..12), Owner(1), &mut moves);
    planner.store(2, None, &ids(20..21), Owner(1), &mut moves);
    assert_eq!(planner.lookup(3, &ids(0..4), &mut moves).cpu, 4);
    assert_eq!(planner.lookup(3, &ids(10..12), &mut moves).cpu, 1);
    planner.set_quota(Owner(1), Tier::Cpu, 0, &mut moves);
    assert_eq!(planner.stats().cpu, 4);
}

#[test]
fn a_full_disk_takes_no_block_that_was_never_used_again_and_is_worth_less() {
    let mut planner = Planner::new(Config { cpu: 1, disk: 2, ..Config::default() });
    let mut moves = Vec::new();
    for at in 0..3 {
        planner.store(at, None, &[BlockId(at.into())], Owner(0), &mut moves);
    }
    // All are equally new: nothing is gained by replacing one with another.
    moves.clear();
    planner.store(3, None, &ids(3..4), Owner(0), &mut moves);
    assert_eq!(moves[0], Move::Drop { id: BlockId(2), from: Tier::Cpu });
    planner.lookup(4, &ids(3..4), &mut moves);
    moves.clear();
    planner.store(5, None, &ids(4..5), Owner(0), &mut moves);
    assert!(moves.contains(&Move::Copy { id: BlockId(3), from: Tier::Cpu, to: Tier::Disk }));
}

#[test]
fn what_leaves_the_disk_and_was_used_again_goes_to_shared_storage() {
    let shared_writes = Some(Rate { per_second: 10, burst: 10 });
    let mut planner = Planner::new(Config { disk: 1, share_from: 1, shared_writes, ..Config::default() });
    let mut moves = Vec::new();
    planner.store(0, None, &ids(0..1), Owner(0), &mut moves);
    planner.lookup(1, &ids(0..1), &mut moves);
    planner.lookup(2, &ids(1..2), &mut moves);
    // Block 1 was asked for and not known, so it comes back in place of the older block 0.
    planner.restore(BlockId(1), None, Owner(0), Tier::Shared);
    planner.lookup(3, &ids(1..2), &mut moves);
    moves.clear();
    planner.store(MINUTE, None, &ids(1..2), Owner(0), &mut moves);
    assert_eq!(moves[0], Move::Copy { id: BlockId(0), from: Tier::Disk, to: Tier::Shared });
    assert_eq!(planner.lookup(MINUTE, &ids(0..1), &mut moves).shared, 1);
}

#[test]
fn a_block_in_ram_that_the_disk_copy_of_its_child_needs_outlives_a_disk_that_takes_nothing() {
    let mut planner = Planner::new(Config { cpu: 2, disk: 8, ..Config::default() });
    let mut moves = Vec::new();
    planner.store(0, None, &ids(0..2), Owner(0), &mut moves);
    planner.store(1, None, &ids(7..8), Owner(0), &mut moves);
    assert_eq!(planner.lookup(2, &ids(0..1), &mut moves), Found { cpu: 1, ..Found::default() });
    planner.set_disk_writable(false);
    planner.store(3, None, &ids(8..10), Owner(0), &mut moves);
    assert_eq!(planner.lookup(4, &ids(0..1), &mut moves).total(), 1);
    planner.set_disk_writable(true);
    planner.store(5, None, &ids(8..10), Owner(0), &mut moves);
    assert_eq!(planner.lookup(6, &ids(0..2), &mut moves).total(), 2);
}

#[test]
fn a_block_first_seen_without_its_parent_finds_it_later() {
    let mut planner = Planner::new(Config { cpu: 3, ..Config::default() });
    let mut moves = Vec::new();
    planner.store(0, None, &ids(2..3), Owner(0), &mut moves);
    planner.store(1, None, &ids(1..3), Owner(0), &mut moves);
    moves.clear();
    planner.store(2, None, &ids(8..10), Owner(0), &mut moves);
    assert!(moves.contains(&Move::Drop { id: BlockId(2), from: Tier::Cpu }));
    // A chain that contradicts itself is no reason to hang or to panic.
    let circle = [BlockId(1), BlockId(2), BlockId(1)];
    planner.store(3, None, &circle, Owner(0), &mut moves);
    planner.store(4, Some(BlockId(2)), &ids(1..2), Owner(0), &mut moves);
    assert!(planner.store(5, None, &ids(20..23), Owner(0), &mut moves) > 0);
}

#[test]
fn a_prefetch_copies_no_more_than_asked_for_and_keeps_it_a_while() {
    let mut planner = Planner::new(Config { cpu: 3, disk: 9, ..Config::default() });
    let mut moves = Vec::new();
    planner.store(0, None, &ids(0..3), Owner(0), &mut moves);
    planner.store(1, None, &ids(10..13), Owner(0), &mut moves);
    moves.clear();
    planner.prefetch(2, &ids(0..3), 2, MINUTE, &mut moves).unwrap();
    let copies = moves.iter().filter(|m| matches!(m, Move::Copy { to: Tier::Cpu, .. })).count();
    assert_eq!(copies, 2);
    planner.store(3, None, &ids(20..23), Owner(0), &mut moves);
    assert_eq!(planner.lookup(4, &ids(0..3), &mut moves), Found { cpu: 2, disk: 1, shared: 0 });
}

#[test]
fn a_remembered_block_takes_64_bytes_at_most_and_no_more_are_remembered_than_allowed() {
    for remembered in [500, 3_000, 5_000] {
        let mut planner = Planner::new(Config { cpu: 1000, remembered, ..Config::default() });
        let mut moves = Vec::new();
        for at in 0..1200u64 {
            let first = u128::from(at) * 1000;
            planner.store(at * 1000, None, &ids(first..first + 10), Owner(0), &mut moves);
            moves.clear();
            let (bytes, known) = planner.memory();
            assert!(known as u32 <= 1000 + remembered);
            assert!(known < 1000 || bytes <= 64 * known, "{bytes} bytes for {known} blocks");
        }
    }
}

#[test]
fn hazard_learns_that_blocks_come_back_after_a_pause() {
    // Half of all prompts return once, after ten minutes. By then LRU has seen too many others.
    let planner = |ranking| Planner::new(Config { cpu: 200, ranking, ..Config::default() });
    let mut planners = [planner(Ranking::Hazard), planner(Ranking::Lru)];
    let mut random = Random::new(3);
    let mut due: BTreeSet<(u64, u128)> = BTreeSet::new();
    for at in 0..6_000u64 {
        let now = at * 2000;
        let id = match due.first() {
            Some(&(when, id)) if when <= now => {
                due.remove(&(when, id));
                id
            }
            Some(_) | None => {
                let id = u128::from(at) + 1;
                if random.below(2) == 0 {
                    due.insert((now + 10 * MINUTE, id));
                }
                id
            }
        };
        for planner in &mut planners {
            planner.lookup(now, &[BlockId(id)], &mut vec![]);
            planner.store(now, None, &[BlockId(id)], Owner(0), &mut vec![]);
        }
    }
    let [hazard, lru] = planners.map(|p| p.stats().found);
    assert!(hazard > 300 && lru == 0, "{hazard} {lru}");
}

#[test]
fn a_shadow_tells_about_what_a_full_run_finds() {
    let mut shadows = Shadows::new(1600, 16_000);
    let planner =
        |ranking| Planner::new(Config { cpu: 1600, remembered: 16_000, ranking, ..Config::default() });
    let mut full = Ranking::ALL.map(planner);
    let mut random = Random::new(5);
    for at in 0..2000u64 {
        let popular = (random.below(100) * random.below(100)) as u128 / 20;
        let first = if random.below(3) > 0 { popular << 20 } else { u128::from(at) << 40 };
        let chain = ids(first..first + 30);
        let spread = |id: BlockId| BlockId(id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        let chain: Vec<BlockId> = chain.into_iter().map(spread).collect();
        shadows.request(at * 100, &chain);
        for planner in &mut full {
            planner.lookup(at * 100, &chain, &mut vec![]);
            planner.store(at * 100, None, &chain, Owner(0), &mut vec![]);
        }
    }
    for (shadow, full) in shadows.so_far().zip(&full) {
        let ratio = full.stats().found as f64 / full.stats().asked as f64;
        assert!((shadow.hit_ratio - ratio).abs() < 0.05, "{shadow:?}, in full {ratio}");
    }
}
