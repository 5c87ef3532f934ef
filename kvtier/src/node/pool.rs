//! Blocks of one size: what the policy decided, and what is really where.
//!
//! The planner takes for granted that its moves succeed and says at once where blocks are to lie.
//! What is really in RAM and on disk follows, move by move; when nothing is under way for a block
//! any more, the two are compared and the planner is told what it does not have.
//!
//! One lock guards all of it and is never held during I/O.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use super::api::Where;
use super::change::{Change, Journal};
use super::names::Names;
use super::schedule::{Lane, Schedule};
use crate::policy::{BlockId, Config, Move, Owner, Planner, Tier};
use crate::shared::Shared;
use crate::slot::lock;
use crate::store::{Get, Read, Store, StoreKey};
use crate::{Arena, Key, Lease, SlotId};

/// What a pool has done beside what its planner, arena and store count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Blocks copied to RAM.
    pub up: u64,
    /// Blocks copied to disk.
    pub down: u64,
    /// Blocks copied to shared storage.
    pub out: u64,
    /// Copies that could not be made.
    pub failed: u64,
    /// Blocks refused because no slot was free in time.
    pub crowded: u64,
    /// Bytes copied in memory on the way to engines. What is read from disk into an engine's
    /// memory is not.
    pub copied_bytes: u64,
    /// Blocks loaded, by [`Tier`]: RAM, disk, shared storage.
    pub loaded: [u64; 3],
    /// Blocks given to other nodes.
    pub lent: u64,
    /// Blocks taken from other nodes.
    pub pulled: u64,
}

/// What is really where, and what is to be.
#[derive(Debug)]
pub(super) struct State {
    pub planner: Planner,
    pub schedule: Schedule,
    /// Blocks in RAM.
    pub ram: HashMap<BlockId, InRam>,
    /// Blocks that this node knows to be in shared storage.
    pub shared: HashMap<BlockId, StoreKey>,
    /// Blocks in any tier, by 64 bits of their hashes.
    pub names: Names,
    pub moves: Moves,
    /// The disk's blocks are all known to the planner.
    pub restored: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct InRam {
    pub key: StoreKey,
    pub slot: SlotId,
}

/// Blocks of one size.
#[derive(Debug)]
pub(super) struct Pool {
    pub block_bytes: usize,
    pub arena: Option<Arena>,
    /// Set when it is open; `None` inside where this pool has no disk.
    pub store: OnceLock<Option<Store>>,
    pub shared: Option<Arc<dyn Shared>>,
    pub journal: Arc<dyn Journal>,
    pub state: Mutex<State>,
    /// Told whenever a move was made.
    pub made: Condvar,
    /// How long an engine's offer waits for a slot.
    pub patience: Duration,
}

/// The arena's name of a block.
pub(super) fn short(id: BlockId) -> Key {
    Key(id.0 as u64 ^ (id.0 >> 64) as u64)
}

impl Pool {
    pub fn new(
        block_bytes: usize,
        config: Config,
        arena: Option<Arena>,
        shared: Option<Arc<dyn Shared>>,
        journal: Arc<dyn Journal>,
        patience: Duration,
    ) -> Pool {
        let state = State {
            planner: Planner::new(config),
            schedule: Schedule::default(),
            ram: HashMap::new(),
            shared: HashMap::new(),
            names: Names::default(),
            moves: Moves::default(),
            restored: false,
        };
        let (state, made, store) = (Mutex::new(state), Condvar::new(), OnceLock::new());
        Pool { block_bytes, arena, store, shared, journal, state, made, patience }
    }

    /// The disk, where there is one and it is open.
    pub fn disk(&self) -> Option<&Store> {
        self.store.get()?.as_ref()
    }

    /// Where each of `keys` can be had.
    pub fn lookup(&self, keys: &[StoreKey]) -> Vec<Where> {
        let nowhere = if self.store.get().is_some() { Where::Nowhere } else { Where::Unknown };
        let ids: Vec<BlockId> = keys.iter().map(StoreKey::id).collect();
        let mut found = vec![nowhere; keys.len()];
        let state = lock(&self.state);
        for ((id, key), found) in ids.iter().zip(keys).zip(&mut found) {
            if state.ram.get(id).is_some_and(|held| held.key == *key) {
                *found = Where::In(Tier::Cpu);
            } else if state.shared.get(id) == Some(key) {
                *found = Where::In(Tier::Shared);
            }
        }
        // A block leaves RAM only after it is on disk, so none is missed between the two.
        let on_disk = self.disk().map(|disk| disk.have(ids.iter().zip(keys)));
        drop(state);
        for (at, there) in on_disk.into_iter().flatten().enumerate() {
            if there && found[at] != Where::In(Tier::Cpu) {
                found[at] = Where::In(Tier::Disk);
            }
        }
        found
    }

    /// A request wants `chain`.
    pub fn touch(&self, now: u64, chain: &[BlockId]) {
        let mut moves = Vec::new();
        let mut state = lock(&self.state);
        state.planner.lookup(now, chain, &mut moves);
        self.plan(&mut state, moves);
    }

    /// A block in RAM.
    pub fn lease(&self, key: StoreKey) -> Option<Lease> {
        let id = key.id();
        let slot = lock(&self.state).ram.get(&id).filter(|held| held.key == key)?.slot;
        self.arena.as_ref()?.lease(slot)
    }

    /// Reads blocks from wherever they are.
    pub fn load(&self, blocks: &mut [Get<'_>]) -> Vec<Read> {
        let mut reads = vec![Read::Miss; blocks.len()];
        let mut rest: Vec<usize> = Vec::new();
        let mut copied = 0;
        for (at, get) in blocks.iter_mut().enumerate() {
            if get.into.len() != self.block_bytes {
                reads[at] = Read::Size;
            } else if let Some(lease) = self.lease(get.key) {
                get.into.copy_from_slice(&lease);
                copied += 1;
                reads[at] = Read::Hit;
            } else {
                rest.push(at);
            }
        }
        if copied > 0 {
            let mut state = lock(&self.state);
            state.moves.loaded[0] += copied;
            state.moves.copied_bytes += copied * self.block_bytes as u64;
        }
        if !rest.is_empty() {
            self.load_below(blocks, &rest, &mut reads);
        }
        reads
    }

    /// Takes moves up, and gives up what is to be given up.
    pub fn plan(&self, state: &mut State, moves: Vec<Move>) {
        moves.into_iter().for_each(|step| state.schedule.add(step));
        self.drops(state);
    }

    /// Gives up the copies that are to be given up now. That they are gone is told before their
    /// slots can be used again.
    pub fn drops(&self, state: &mut State) {
        loop {
            let steps = state.schedule.begin(Lane::Drop, usize::MAX, usize::MAX);
            if steps.is_empty() {
                return;
            }
            let named = |step: &Move| match *step {
                Move::Drop { id, from: Tier::Cpu } => Some((state.ram.get(&id)?.key, Tier::Cpu)),
                Move::Drop { id, from: Tier::Disk } => Some((self.disk()?.name(id)?, Tier::Disk)),
                Move::Drop { from: Tier::Shared, .. } | Move::Take { .. } | Move::Copy { .. } => None,
            };
            let gone: Vec<(StoreKey, Tier)> = steps.iter().filter_map(named).collect();
            let changes: Vec<Change> = gone.iter().map(|(key, tier)| Change::left(*key, *tier)).collect();
            self.tell(state, &changes);
            for (key, tier) in gone {
                self.free(state, key, tier);
            }
            for step in steps {
                if let Move::Drop { id, .. } = step
                    && state.schedule.done(step)
                {
                    self.reconcile(state, id);
                }
            }
        }
    }

    fn free(&self, state: &mut State, key: StoreKey, tier: Tier) {
        match tier {
            Tier::Cpu => {
                if let Some(held) = state.ram.remove(&key.id())
                    && let Some(arena) = &self.arena
                {
                    arena.free(held.slot);
                }
            }
            Tier::Disk => {
                if let Some(disk) = self.disk() {
                    disk.remove(key);
                }
            }
            Tier::Shared => {
                state.shared.remove(&key.id());
                self.journal.shared(self.block_bytes, &key, None);
            }
        }
    }

    /// Tells of changes, in their order.
    pub fn tell(&self, state: &mut State, changes: &[Change]) {
        for Change { key, tier, came } in changes {
            let others = [Tier::Cpu, Tier::Disk, Tier::Shared].into_iter().filter(|other| other != tier);
            let mut others = others.map(|tier| self.held_in(state, key.id(), tier));
            if others.all(|held| held.is_none()) {
                if *came { state.names.add(key) } else { state.names.remove(key) }
            }
        }
        self.journal.tell(changes);
    }

    /// The whole name of the block that is really in a tier under a short one.
    pub fn held_in(&self, state: &State, id: BlockId, tier: Tier) -> Option<StoreKey> {
        match tier {
            Tier::Cpu => state.ram.get(&id).map(|held| held.key),
            Tier::Disk => self.disk().and_then(|disk| disk.name(id)),
            Tier::Shared => state.shared.get(&id).copied(),
        }
    }

    /// Nothing is under way for a block: what was decided and what is there must agree.
    pub fn reconcile(&self, state: &mut State, id: BlockId) {
        for tier in [Tier::Cpu, Tier::Disk, Tier::Shared] {
            match (state.planner.has(id, tier), self.held_in(state, id, tier)) {
                (true, None) => state.planner.lost(id, tier),
                // On disk it may be from before the planner began, which learns of it later; shared
                // storage has no bound and keeps what it has.
                (false, Some(key)) if tier == Tier::Cpu || (tier == Tier::Disk && state.restored) => {
                    self.tell(state, &[Change::left(key, tier)]);
                    self.free(state, key, tier);
                }
                (true, Some(_)) | (false, None | Some(_)) => {}
            }
        }
    }

    /// Tells the planner whether the disk takes writes.
    pub fn heed_disk(&self, state: &mut State) {
        if let Some(disk) = self.disk() {
            state.planner.set_disk_writable(disk.stats().writable);
        }
    }

    /// Gives blocks up wherever they are, unless they are pinned. How many copies.
    pub fn evict(&self, keys: &[StoreKey]) -> usize {
        let mut moves = Vec::new();
        let mut state = lock(&self.state);
        for key in keys {
            for tier in [Tier::Cpu, Tier::Disk] {
                state.planner.evict_block(key.id(), tier, &mut moves);
            }
        }
        let count = moves.len();
        self.plan(&mut state, moves);
        count
    }

    /// Has what is in RAM alone copied to disk. How many copies are to be made.
    pub fn drain(&self) -> usize {
        let mut moves = Vec::new();
        let mut state = lock(&self.state);
        let ids: Vec<BlockId> = state.ram.keys().copied().collect();
        for id in ids {
            state.planner.save(id, &mut moves);
        }
        self.plan(&mut state, moves);
        state.schedule.len(Lane::Down)
    }

    /// Whether moves are decided and not made yet.
    pub fn is_moving(&self) -> bool {
        !lock(&self.state).schedule.is_idle()
    }

    /// Waits a moment for a move to be made.
    pub fn wait(&self) {
        let state = lock(&self.state);
        if !state.schedule.is_idle() {
            drop(self.made.wait_timeout(state, Duration::from_millis(10)));
        }
    }

    /// Allows an owner so many blocks in a tier.
    pub fn set_quota(&self, owner: Owner, tier: Tier, blocks: u32) {
        let mut moves = Vec::new();
        let mut state = lock(&self.state);
        state.planner.set_quota(owner, tier, blocks, &mut moves);
        self.plan(&mut state, moves);
    }

    /// All blocks that are here, tier by tier.
    pub fn all(&self, state: &State) -> Vec<(StoreKey, Tier)> {
        let ram = state.ram.values().map(|held| (held.key, Tier::Cpu));
        let shared = state.shared.values().map(|key| (*key, Tier::Shared));
        let disk = self.disk().map(Store::names).unwrap_or_default();
        ram.chain(disk.into_iter().map(|key| (key, Tier::Disk))).chain(shared).collect()
    }
}
