//! Carries moves out: the I/O between what the schedule gives out and what is told when it is done.

use super::change::Change;
use super::pool::{InRam, Pool, State, short};
use super::schedule::Lane;
use crate::policy::{BlockId, Move, Tier};
use crate::slot::lock;
use crate::store::{Buffer, Get, Put, Read, StoreKey, TOGETHER, slot_bytes};
use crate::{Lease, Reserved};

/// Batches of a lane that are under way at a time.
fn at_once(lane: Lane) -> usize {
    match lane {
        // Two threads read while one writes; more would only wait in the disk's queue.
        Lane::Up => 8,
        Lane::Down => 4,
        Lane::Out => 2,
        Lane::Drop => usize::MAX,
    }
}

/// A copy to be made to RAM, and the slot for it.
struct Coming {
    id: BlockId,
    key: StoreKey,
    slot: Reserved,
}

impl Pool {
    /// Makes the next moves of a lane. False where there are none that can be made now.
    pub fn step(&self, lane: Lane) -> bool {
        let together = (TOGETHER / self.block_bytes.max(1)).max(1);
        let mut state = lock(&self.state);
        let mut most = together;
        if lane == Lane::Up {
            let idle = self.arena.as_ref().map_or(0, |arena| arena.stats().idle);
            if idle == 0 && state.schedule.len(Lane::Down) > 0 {
                // What goes down makes room. Without that, waiting would not help.
                return false;
            }
            most = most.min(idle.max(1));
        }
        let steps = state.schedule.begin(lane, most, at_once(lane) * together);
        if steps.is_empty() {
            return false;
        }
        match lane {
            Lane::Up => self.bring_up(state, &steps),
            Lane::Down => self.write_down(state, &steps),
            Lane::Out => self.share(state, &steps),
            Lane::Drop => {}
        }
        let mut state = lock(&self.state);
        for step in steps {
            let (Move::Copy { id, .. } | Move::Drop { id, .. } | Move::Take { id, .. }) = step;
            if state.schedule.done(step) {
                self.reconcile(&mut state, id);
            }
        }
        self.drops(&mut state);
        drop(state);
        self.made.notify_all();
        true
    }

    fn bring_up(&self, state: std::sync::MutexGuard<'_, State>, steps: &[Move]) {
        let (mut from_disk, mut from_shared) = (Vec::new(), Vec::new());
        for step in steps {
            let Move::Copy { id, from, .. } = *step else { continue };
            if state.ram.contains_key(&id) {
                continue;
            }
            let on_disk = self.disk().and_then(|disk| disk.name(id));
            let key = on_disk.or_else(|| state.shared.get(&id).copied());
            let slot = self.arena.as_ref().and_then(crate::Arena::reserve);
            let (Some(key), Some(slot)) = (key, slot) else { continue };
            let list =
                if on_disk.is_some() && from != Tier::Shared { &mut from_disk } else { &mut from_shared };
            list.push(Coming { id, key, slot });
        }
        drop(state);
        for (mut coming, tier) in [(from_disk, Tier::Disk), (from_shared, Tier::Shared)] {
            if coming.is_empty() {
                continue;
            }
            let block_bytes = self.block_bytes;
            let mut gets: Vec<Get<'_>> =
                coming.iter_mut().map(|c| Get { key: c.key, into: &mut c.slot[..block_bytes] }).collect();
            let reads = self.read_below(tier, &mut gets);
            self.arrive(tier, coming, &reads);
        }
    }

    fn arrive(&self, from: Tier, coming: Vec<Coming>, reads: &[Read]) {
        // The payload is summed up on commit, which must not happen under the lock.
        let ready: Vec<_> = coming
            .into_iter()
            .zip(reads)
            .map(|(c, read)| (c.id, c.key, *read, (*read == Read::Hit).then(|| c.slot.commit(short(c.id)))))
            .collect();
        let mut state = lock(&self.state);
        for (id, key, read, slot) in ready {
            if let Some(slot) = slot {
                self.tell(&mut state, &[Change::came(key, Tier::Cpu)]);
                state.ram.insert(id, InRam { key, slot });
                state.moves.up += 1;
            } else {
                state.moves.failed += 1;
                self.lost_below(&mut state, from, key, read);
            }
        }
    }

    fn write_down(&self, state: std::sync::MutexGuard<'_, State>, steps: &[Move]) {
        let mut leases: Vec<(StoreKey, Lease)> = Vec::new();
        let mut origins = Vec::new();
        for step in steps {
            let Move::Copy { id, .. } = *step else { continue };
            let Some(held) = state.ram.get(&id) else { continue };
            let Some(lease) = self.arena.as_ref().and_then(|arena| arena.lease(held.slot)) else { continue };
            leases.push((held.key, lease));
            origins.push(state.planner.origin(id).unwrap_or_default());
        }
        drop(state);
        let blocks = leases.iter().zip(origins);
        let puts: Vec<Put<'_>> = blocks
            .map(|((key, lease), (after, owner))| Put {
                key: *key,
                after,
                owner,
                payload: unpadded(lease, self.block_bytes),
            })
            .collect();
        let Some(disk) = self.disk() else { return };
        let had = self.on_disk(&puts);
        let written = disk.put_held_back(&puts);
        let mut state = lock(&self.state);
        for (((key, _), written), had) in leases.iter().zip(written).zip(had) {
            if written.is_ok() {
                if had {
                    continue;
                }
                self.tell(&mut state, &[Change::came(*key, Tier::Disk)]);
                // Written down before that, a process killed in between would never tell of it.
                disk.release([*key]);
                state.moves.down += 1;
            } else {
                state.moves.failed += 1;
            }
        }
        self.heed_disk(&mut state);
    }

    fn share(&self, state: std::sync::MutexGuard<'_, State>, steps: &[Move]) {
        let (Some(shared), Some(disk)) = (&self.shared, self.disk()) else { return };
        let mut named = Vec::new();
        for step in steps {
            let Move::Copy { id, .. } = *step else { continue };
            if let Some(key) = disk.name(id) {
                named.push((id, key, state.planner.origin(id).unwrap_or_default()));
            }
        }
        drop(state);
        let stride = slot_bytes(self.block_bytes);
        let Ok(mut bytes) = Buffer::new(named.len() * stride) else { return };
        let mut gets: Vec<Get<'_>> = bytes
            .chunks_mut(stride)
            .zip(&named)
            .map(|(into, (_, key, _))| Get { key: *key, into: &mut into[..self.block_bytes] })
            .collect();
        let reads = disk.get(&mut gets);
        let good: Vec<usize> = (0..named.len()).filter(|at| reads[*at] == Read::Hit).collect();
        let put = |at: &usize| {
            let (_, key, (after, owner)) = named[*at];
            Put { key, after, owner, payload: &bytes[at * stride..][..self.block_bytes] }
        };
        let puts: Vec<Put<'_>> = good.iter().map(put).collect();
        let put = shared.put(&puts);
        let mut state = lock(&self.state);
        for (at, there) in good.iter().zip(put) {
            let (id, key, (_, owner)) = named[*at];
            if there {
                if state.shared.insert(id, key).is_none() {
                    self.tell(&mut state, &[Change::came(key, Tier::Shared)]);
                    self.journal.shared(self.block_bytes, &key, Some(owner));
                }
                state.moves.out += 1;
            } else {
                state.moves.failed += 1;
            }
        }
        for (at, read) in reads.iter().enumerate().filter(|(_, read)| **read != Read::Hit) {
            state.moves.failed += 1;
            self.lost_below(&mut state, Tier::Disk, named[at].1, *read);
        }
    }

    /// Reads blocks for an engine from below RAM: from disk straight into its memory.
    pub fn load_below(&self, blocks: &mut [Get<'_>], at: &[usize], reads: &mut [Read]) {
        let mut left = at.to_vec();
        for tier in [Tier::Disk, Tier::Shared] {
            if left.is_empty() {
                return;
            }
            let mut wanted = left.iter().peekable();
            let mut gets: Vec<Get<'_>> = blocks
                .iter_mut()
                .enumerate()
                .filter(|(at, _)| wanted.next_if_eq(&at).is_some())
                .map(|(_, get)| Get { key: get.key, into: &mut *get.into })
                .collect();
            let came = self.read_below(tier, &mut gets);
            let keys: Vec<StoreKey> = gets.iter().map(|get| get.key).collect();
            drop(gets);
            let mut state = lock(&self.state);
            let mut missed = Vec::new();
            for ((at, read), key) in left.into_iter().zip(came).zip(keys) {
                // What the disk has lost may still be in shared storage.
                reads[at] = if read == Read::Miss { reads[at] } else { read };
                if read == Read::Hit {
                    state.moves.loaded[if tier == Tier::Disk { 1 } else { 2 }] += 1;
                } else {
                    missed.push(at);
                    self.lost_below(&mut state, tier, key, read);
                }
            }
            left = missed;
        }
    }

    /// Reads blocks from disk to see whether they are still what was written. In memory of its own.
    pub fn read_disk(&self, keys: &[StoreKey]) -> Vec<Read> {
        let stride = slot_bytes(self.block_bytes);
        let Ok(mut bytes) = Buffer::new(keys.len() * stride) else { return vec![] };
        let mut gets: Vec<Get<'_>> = bytes
            .chunks_mut(stride)
            .zip(keys)
            .map(|(into, key)| Get { key: *key, into: &mut into[..self.block_bytes] })
            .collect();
        self.read_own_disk(&mut gets)
    }

    /// Reads blocks from disk, and gives up those that are not what was written.
    pub fn read_own_disk(&self, gets: &mut [Get<'_>]) -> Vec<Read> {
        let reads = self.read_below(Tier::Disk, gets);
        let mut state = lock(&self.state);
        for (get, read) in gets.iter().zip(&reads) {
            self.lost_below(&mut state, Tier::Disk, get.key, *read);
        }
        reads
    }

    fn read_below(&self, tier: Tier, gets: &mut [Get<'_>]) -> Vec<Read> {
        let missed = |gets: &[Get<'_>]| vec![Read::Miss; gets.len()];
        match (tier, self.disk(), &self.shared) {
            (Tier::Disk, Some(disk), _) => disk.get(gets),
            (Tier::Shared, _, Some(shared)) => shared.get(gets),
            (Tier::Cpu | Tier::Disk | Tier::Shared, _, _) => missed(gets),
        }
    }

    /// A block could not be read from below RAM.
    fn lost_below(&self, state: &mut State, tier: Tier, key: StoreKey, read: Read) {
        let id = key.id();
        let told = match tier {
            Tier::Cpu => false,
            // A miss was told when the block was given up.
            Tier::Disk => read == Read::Lost,
            Tier::Shared => state.shared.remove(&id).is_some(),
        };
        if tier == Tier::Shared && told {
            self.journal.shared(self.block_bytes, &key, None);
        }
        if told {
            self.tell(state, &[Change::left(key, tier)]);
            if !state.schedule.is_busy(id) {
                self.reconcile(state, id);
            }
        }
    }
}

/// A payload without what fills its slot.
fn unpadded(lease: &Lease, bytes: usize) -> &[u8] {
    lease.get(..bytes).unwrap_or(lease)
}
