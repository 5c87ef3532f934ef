//! What engines offer: taken into RAM, or to disk where there is none.

use std::collections::HashMap;
use std::sync::PoisonError;

use super::api::Stored;
use super::change::Change;
use super::pool::{InRam, Pool, State, short};
use super::schedule::Lane;
use crate::policy::{BlockId, Move, Tier};
use crate::slot::lock;
use crate::store::{Put, PutError};
use crate::{Reserved, SlotId};

impl Pool {
    /// Offers blocks: chains, root first.
    pub fn store(&self, now: u64, blocks: &[Put<'_>]) -> Vec<Stored> {
        let mut results = vec![Stored::Refused; blocks.len()];
        let mut first = 0;
        for chain in blocks.chunk_by(|a, b| b.after == Some(a.key.id()) && a.owner == b.owner) {
            let range = first..first + chain.len();
            first = range.end;
            self.store_chain(now, chain, &mut results[range]);
        }
        results
    }

    fn store_chain(&self, now: u64, chain: &[Put<'_>], results: &mut [Stored]) {
        for (put, result) in chain.iter().zip(results.iter_mut()) {
            if put.payload.len() != self.block_bytes {
                *result = Stored::Size;
            }
        }
        // What follows a block that cannot be stored would be of no use.
        let good = results.iter().take_while(|r| **r != Stored::Size).count();
        let chain = &chain[..good];
        let Some(first) = chain.first() else { return };
        let ids: Vec<BlockId> = chain.iter().map(|put| put.key.id()).collect();
        let by_id: HashMap<BlockId, usize> = ids.iter().enumerate().map(|(at, id)| (*id, at)).collect();

        let mut moves = Vec::new();
        let mut state = lock(&self.state);
        let kept = state.planner.store(now, first.after, &ids, first.owner, &mut moves);
        results[..kept as usize].fill(Stored::Known);
        let mut taken: Vec<(usize, Tier)> = Vec::new();
        for step in &moves {
            if let Move::Take { id, to } = *step {
                let Some(&at) = by_id.get(&id) else { continue };
                if state.schedule.hold(id) {
                    taken.push((at, to));
                } else {
                    // It is just leaving. The planner is told when it has.
                    results[at] = Stored::Refused;
                }
            }
        }
        self.plan(&mut state, moves);
        drop(state);
        let to_disk = taken.iter().any(|(_, to)| *to == Tier::Disk);
        let at: Vec<usize> = taken.into_iter().map(|(at, _)| at).collect();
        if to_disk {
            self.take_to_disk(chain, &ids, &at, results);
        } else {
            self.take_to_ram(chain, &ids, &at, results);
        }
    }

    fn take_to_ram(&self, chain: &[Put<'_>], ids: &[BlockId], at: &[usize], results: &mut [Stored]) {
        let mut arrived: Vec<(usize, Option<SlotId>)> = Vec::new();
        for &at in at {
            let slot = self.reserve().map(|mut slot| {
                slot[..self.block_bytes].copy_from_slice(chain[at].payload);
                slot.commit(short(ids[at]))
            });
            arrived.push((at, slot));
        }
        let mut state = lock(&self.state);
        let mut changes = Vec::new();
        for (at, slot) in arrived {
            let key = chain[at].key;
            results[at] = match slot {
                Some(slot) => {
                    state.ram.insert(ids[at], InRam { key, slot });
                    changes.push(Change::came(key, Tier::Cpu));
                    Stored::Kept
                }
                None => {
                    state.moves.crowded += 1;
                    Stored::Refused
                }
            };
        }
        self.tell(&mut state, &changes);
        for &at in at {
            if state.schedule.release(ids[at]) {
                self.reconcile(&mut state, ids[at]);
            }
        }
        self.drops(&mut state);
        drop(state);
        self.made.notify_all();
    }

    fn take_to_disk(&self, chain: &[Put<'_>], ids: &[BlockId], at: &[usize], results: &mut [Stored]) {
        let puts: Vec<Put<'_>> = at.iter().map(|at| chain[*at]).collect();
        let had = self.on_disk(&puts);
        let written = match self.disk() {
            Some(disk) => disk.put_held_back(&puts),
            None => puts.iter().map(|_| Err(PutError::ReadOnly)).collect(),
        };
        let mut state = lock(&self.state);
        let mut changes = Vec::new();
        for ((&at, written), had) in at.iter().zip(written).zip(had) {
            results[at] = match written {
                // From before a restart; the planner had not heard of it yet.
                Ok(()) if had => Stored::Known,
                Ok(()) => {
                    changes.push(Change::came(chain[at].key, Tier::Disk));
                    Stored::Kept
                }
                Err(PutError::Full) => Stored::Refused,
                Err(PutError::Size { .. } | PutError::ReadOnly | PutError::Io { .. }) => Stored::Failed,
            };
        }
        self.tell(&mut state, &changes);
        if let Some(disk) = self.disk() {
            // Written down before that, a process killed in between would never tell of them.
            disk.release(changes.iter().map(|change| change.key));
        }
        for &at in at {
            if state.schedule.release(ids[at]) {
                self.reconcile(&mut state, ids[at]);
            }
        }
        self.heed_disk(&mut state);
        self.drops(&mut state);
        drop(state);
        self.made.notify_all();
    }

    /// Which of some blocks the disk has.
    pub fn on_disk(&self, puts: &[Put<'_>]) -> Vec<bool> {
        let had = |put: &Put<'_>| self.disk().is_some_and(|disk| disk.has(put.key));
        puts.iter().map(had).collect()
    }

    /// A slot to write to, waiting for one while copies on their way to disk still need theirs.
    fn reserve(&self) -> Option<Reserved> {
        let arena = self.arena.as_ref()?;
        if let Some(slot) = arena.reserve() {
            return Some(slot);
        }
        let state = lock(&self.state);
        let crowded = |state: &mut State| arena.stats().idle == 0 && state.schedule.len(Lane::Down) > 0;
        let waited = self.made.wait_timeout_while(state, self.patience, crowded);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        arena.reserve()
    }
}
