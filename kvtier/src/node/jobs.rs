//! Blocks that are copied or moved because somebody asked for them by name.
//!
//! A job gives the planner a stretch at a time and waits for its moves, so that what engines want
//! meanwhile is not behind all of it. When whoever asked does not want to go on, it ends with the
//! stretch at hand.

use std::sync::atomic::Ordering;

use super::api::{PoolId, Tiers, Where};
use super::node::Node;
use super::pool::Pool;
use crate::policy::{BlockId, Tier};
use crate::slot::lock;
use crate::store::StoreKey;

/// Blocks that a job has under way at once, at most: they cannot make room for each other.
const STRETCH: usize = 64;

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Blocks of those named that were in any tier when the job began.
    pub found: u64,
    /// Blocks that were in the tier wanted when their stretch was done.
    pub done: u64,
    /// Blocks that were not: there was no room, or they could not be read or written.
    pub failed: u64,
    /// Copies given up where the blocks were moved from.
    pub left: u64,
}

impl Node {
    /// Copies those of `keys` that are here to a tier; a chain is named root first. With `leave`,
    /// their copies there are given up then, unless they are pinned or what follows them needs them.
    /// `go_on` is asked between steps.
    pub fn transfer(
        &self,
        pool: PoolId,
        keys: &[StoreKey],
        to: Tier,
        leave: Option<Tier>,
        mut go_on: impl FnMut(Progress) -> bool,
    ) -> Progress {
        let mut progress = Progress::default();
        let places = self.lookup(pool, keys);
        let here = |(key, place): (&StoreKey, Where)| matches!(place, Where::In(_)).then_some(*key);
        let keys: Vec<StoreKey> = keys.iter().zip(places).filter_map(here).collect();
        progress.found = keys.len() as u64;
        let Some(pool) = self.at(pool) else { return progress };
        // Half of RAM at most: what is on its way through it must not be in its own way.
        let stretch = match lock(&pool.state).planner.ram_blocks() as usize {
            0 => STRETCH,
            blocks => (blocks / 2).clamp(1, STRETCH),
        };
        for keys in keys.chunks(stretch) {
            let ids: Vec<BlockId> = keys.iter().map(StoreKey::id).collect();
            if !go_on(progress) {
                return progress;
            }
            pool.copy(self.now(), &ids, to);
            self.ring();
            while !self.closed.load(Ordering::Acquire) && pool.is_busy(&ids) {
                // Made here if no thread makes them.
                if !self.step() {
                    pool.wait();
                }
                if !go_on(progress) {
                    return progress;
                }
            }
            let there = pool.count_in(keys, to) as u64;
            progress.done += there;
            progress.failed += keys.len() as u64 - there;
        }
        if let Some(from) = leave.filter(|from| *from != to) {
            // What follows goes before what it follows.
            for keys in keys.rchunks(stretch) {
                if !go_on(progress) {
                    return progress;
                }
                progress.left += pool.leave(keys, to, from) as u64;
                self.ring();
            }
        }
        progress
    }
}

impl Pool {
    fn copy(&self, now: u64, ids: &[BlockId], to: Tier) {
        let mut moves = Vec::new();
        let mut state = lock(&self.state);
        state.planner.copy(now, ids, to, &mut moves);
        self.plan(&mut state, moves);
    }

    fn is_busy(&self, ids: &[BlockId]) -> bool {
        let state = lock(&self.state);
        ids.iter().any(|id| state.schedule.is_busy(*id))
    }

    fn count_in(&self, keys: &[StoreKey], tier: Tier) -> usize {
        let state = lock(&self.state);
        let is_in = |key: &&StoreKey| self.held_in(&state, key.id(), tier) == Some(**key);
        keys.iter().filter(is_in).count()
    }

    /// Gives up the copies in `from` of blocks that are in `to`.
    fn leave(&self, keys: &[StoreKey], to: Tier, from: Tier) -> usize {
        let mut moves = Vec::new();
        let mut state = lock(&self.state);
        for key in keys.iter().rev() {
            if self.held_in(&state, key.id(), to) == Some(*key) {
                state.planner.leave(key.id(), from, &mut moves);
            }
        }
        let count = moves.len();
        self.plan(&mut state, moves);
        count
    }
}
