//! Moves a job's bytes: cut to parts for several threads, put together again when the last has
//! ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::counts::{Counts, add};
use super::frame::Outcome;
use super::region::Region;
use super::session::{Way, Work};
use crate::node::{PoolId, Stored, Tiers};
use crate::policy::{BlockId, Owner};
use crate::slot::lock;
use crate::store::{Get, Jobs, Put, Read, StoreKey, Urgency};

/// What all jobs of one session share.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub tiers: Arc<dyn Tiers>,
    pub pool: PoolId,
    pub owner: Owner,
    pub region: Arc<Region>,
    /// Whether the engine is still there. Parts that begin afterwards are not done.
    pub alive: Arc<AtomicBool>,
    pub counts: Arc<Counts>,
}

/// A job's outcomes as its parts end.
struct Gather<F> {
    outcomes: Mutex<Vec<Outcome>>,
    left: AtomicUsize,
    done: Mutex<Option<F>>,
}

impl<F: FnOnce(Vec<Outcome>)> Gather<F> {
    fn part(&self, at: usize, outcomes: &[Outcome]) {
        lock(&self.outcomes)[at..at + outcomes.len()].copy_from_slice(outcomes);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let outcomes = std::mem::take(&mut *lock(&self.outcomes));
            if let Some(done) = lock(&self.done).take() {
                done(outcomes);
            }
        }
    }
}

/// Queues `work`, in parts of about `part_bytes`, and calls `done` once when nothing touches its
/// slots any more.
pub(super) fn start(
    jobs: &Jobs,
    site: &Site,
    work: Work,
    part_bytes: usize,
    block_bytes: usize,
    done: impl FnOnce(Vec<Outcome>) + Send + 'static,
) {
    let blocks = work.keys.len();
    // A chain is stored by one thread, root first: a block behind one that is not there yet would
    // be an orphan to the policy.
    let part = match work.way {
        Way::Load => (part_bytes / block_bytes).max(1),
        Way::Store(_) => blocks,
    };
    let gather = Arc::new(Gather {
        outcomes: Mutex::new(vec![Outcome::Busy; blocks]),
        left: AtomicUsize::new(blocks.div_ceil(part)),
        done: Mutex::new(Some(done)),
    });
    for (at, (keys, slots)) in work.keys.chunks(part).zip(work.slots.chunks(part)).enumerate() {
        let (keys, slots, way) = (keys.to_vec(), slots.to_vec(), work.way);
        let count = keys.len();
        let (site_of, gather_of) = (site.clone(), gather.clone());
        let run = move || {
            let outcomes = site_of.run(way, &keys, &slots);
            gather_of.part(at * part, &outcomes);
        };
        let urgency = match way {
            Way::Load => Urgency::Read,
            Way::Store(_) => Urgency::Write,
        };
        if !jobs.submit(urgency, run) {
            add(&site.counts.parts_busy, 1);
            gather.part(at * part, &vec![Outcome::Busy; count]);
        }
    }
}

impl Site {
    fn run(&self, way: Way, keys: &[StoreKey], slots: &[u32]) -> Vec<Outcome> {
        if !self.alive.load(Ordering::Acquire) {
            add(&self.counts.parts_dropped, 1);
            return vec![Outcome::Failed; keys.len()];
        }
        let all = || match way {
            Way::Load => self.load(keys, slots),
            Way::Store(after) => self.store(after, keys, slots),
        };
        // A job must end, whatever happens: its slots stay in use until then.
        let outcomes = catch_unwind(AssertUnwindSafe(all)).unwrap_or_default();
        let broken = self.region.is_broken();
        if broken && way != Way::Load {
            // Zeros may have been stored.
            self.tiers.disown(self.pool, keys);
        }
        let whole = outcomes.len() == keys.len() && !broken;
        if whole { outcomes } else { vec![Outcome::Failed; keys.len()] }
    }

    fn load(&self, keys: &[StoreKey], slots: &[u32]) -> Vec<Outcome> {
        let get = |(key, slot): (&StoreKey, &u32)| {
            // SAFETY: the session gives a slot to one load at a time and to no store meanwhile,
            // until the job has ended.
            Get { key: *key, into: unsafe { self.region.slot_mut(*slot) } }
        };
        let mut blocks: Vec<Get<'_>> = keys.iter().zip(slots).map(get).collect();
        let bytes = blocks.first().map_or(0, |block| block.into.len());
        let outcome = |read: Read| match read {
            Read::Hit => Outcome::Ok,
            Read::Miss => Outcome::Miss,
            Read::Lost => Outcome::Lost,
            Read::Size => Outcome::Failed,
        };
        let outcomes: Vec<Outcome> =
            self.tiers.load(self.pool, &mut blocks).into_iter().map(outcome).collect();
        let hits = outcomes.iter().filter(|o| **o == Outcome::Ok).count();
        add(&self.counts.loaded_blocks, hits);
        add(&self.counts.loaded_bytes, hits * bytes);
        add(&self.counts.missed_blocks, keys.len() - hits);
        outcomes
    }

    fn store(&self, after: Option<BlockId>, keys: &[StoreKey], slots: &[u32]) -> Vec<Outcome> {
        let mut before = after;
        let put = |(key, slot): (&StoreKey, &u32)| {
            // SAFETY: the session lets no load have the slot until the job has ended.
            let payload = unsafe { self.region.slot(*slot) };
            Put { key: *key, after: before.replace(key.id()), owner: self.owner, payload }
        };
        let blocks: Vec<Put<'_>> = keys.iter().zip(slots).map(put).collect();
        let outcome = |stored: Stored| match stored {
            Stored::Kept => Outcome::Ok,
            Stored::Known => Outcome::Known,
            Stored::Refused => Outcome::Refused,
            Stored::Failed | Stored::Size => Outcome::Failed,
        };
        let outcomes: Vec<Outcome> = self.tiers.store(self.pool, &blocks).into_iter().map(outcome).collect();
        let kept = outcomes.iter().filter(|o| **o == Outcome::Ok).count();
        add(&self.counts.stored_blocks, kept);
        add(&self.counts.stored_bytes, kept * blocks.first().map_or(0, |block| block.payload.len()));
        outcomes
    }
}
