//! What was held before a loss that nothing repairs.
//!
//! A lost batch may have said that any of it is gone, so it does not count. It may as well still be
//! there: it stays aside, as a member that is no candidate, and answers tell beside the certain number
//! what it would be if nothing had gone. What the engine says to remove and is not known to have
//! otherwise goes from there, too.

use std::sync::atomic::Ordering;

use kvproto::{Batch, Event, Removed};

use crate::Index;
use crate::pool::{Member, Pool};
use crate::score::held;
use crate::types::{Applied, HolderId};
use crate::walk::Column;

/// Losses in a row after each of which what was held is remembered.
const MOST: usize = 3;

impl Index {
    /// Doubts all that a holder holds: it counts as [`suspect`](crate::Score::suspect) and no more as
    /// held, until the engine stores it again. What was learnt of the engine stays.
    pub fn doubt(&self, id: HolderId) {
        let Some((pool, member)) = self.member(id) else { return };
        let Some((fresh, old)) = pool.doubt(&member) else { return self.clear(id) };
        let mut dir = self.directory.write();
        dir.members.insert(id, (pool.clone(), fresh));
        let suspects = dir.suspects.entry(id).or_default();
        suspects.insert(0, old);
        let forgotten = suspects.split_off(suspects.len().min(MOST));
        drop(dir);
        forgotten.iter().for_each(|m| {
            pool.remove(m);
        });
    }

    /// Forgets what a holder held before losses. Returns whether there was any.
    pub fn drop_suspects(&self, id: HolderId) -> bool {
        let mut dir = self.directory.write();
        let Some(suspects) = dir.suspects.remove(&id) else { return false };
        let Some((pool, member)) = dir.members.get(&id).cloned() else { return false };
        drop(dir);
        member.doubted.store(false, Ordering::Relaxed);
        suspects.iter().for_each(|m| {
            pool.remove(m);
        });
        true
    }

    /// Who holds what `id` held before losses, the latest first.
    pub(crate) fn suspects(&self, id: HolderId) -> Vec<std::sync::Arc<Member>> {
        self.directory.read().suspects.get(&id).cloned().unwrap_or_default()
    }

    /// Applies a batch of a holder that is doubted.
    pub(crate) fn apply_doubted(&self, pool: &Pool, member: &Member, batch: &Batch<'_>) -> Applied {
        let suspects = self.suspects(member.id);
        let mut all_gone = false;
        let mut done = Applied::default();
        pool.write(|holders, desk| {
            let slots: Vec<usize> = std::iter::once(member)
                .chain(suspects.iter().map(|m| &**m))
                .map(|m| m.slot as usize)
                .collect();
            if let Some(Some(holder)) = holders.get_mut(slots[0]) {
                holder.begin(desk);
            }
            for event in batch.events() {
                match event {
                    Event::Stored(_) => {
                        if let Some(Some(holder)) = holders.get_mut(slots[0]) {
                            holder.apply_event(&event, desk, &mut done);
                        }
                    }
                    // The certain copy goes first: what is left of the others stays in doubt.
                    Event::Removed(r) => {
                        for i in 0..r.hashes.len() {
                            let one = Event::Removed(Removed { hashes: &r.hashes[i..=i], ..r });
                            let mut gone = Applied::default();
                            for &slot in &slots {
                                if let Some(Some(holder)) = holders.get_mut(slot)
                                    && gone.removed == 0
                                {
                                    gone = Applied::default();
                                    holder.apply_event(&one, desk, &mut gone);
                                }
                            }
                            done.removed += gone.removed;
                            done.unknown_removed += gone.unknown_removed;
                        }
                    }
                    Event::Cleared(c) => {
                        for &slot in &slots {
                            if let Some(Some(holder)) = holders.get_mut(slot) {
                                holder.apply_event(&event, desk, &mut Applied::default());
                            }
                        }
                        done.cleared += 1;
                        all_gone |= c.tier.is_none();
                    }
                }
            }
            for m in std::iter::once(member).chain(suspects.iter().map(|m| &**m)) {
                if let Some(Some(holder)) = holders.get_mut(m.slot as usize) {
                    m.show(holder, desk);
                }
            }
            if let Some(Some(holder)) = holders.get_mut(slots[0]) {
                holder.count_refused(done.refused);
                if let Some(p) = holder.changed_profile() {
                    pool.set_profile(member, p);
                }
            }
        });
        if all_gone {
            self.drop_suspects(member.id);
        }
        self.keep_budget(pool);
        done
    }
}

/// The columns of what candidates held before losses.
pub(crate) struct Suspects<'a, 's>(Vec<&'a Column<'s>>);

impl<'a, 's> Suspects<'a, 's> {
    pub fn of(columns: &'a [Column<'s>]) -> Suspects<'a, 's> {
        Suspects(columns.iter().filter(|c| c.member.suspect_of.is_some()).collect())
    }

    /// Blocks from the root without a gap that the candidate of `column` holds if nothing it held is
    /// gone. `None` where nothing is in doubt.
    pub fn held(&self, column: &Column<'_>) -> Option<u32> {
        let mut runs = None;
        let its = |c: &&&Column<'_>| {
            c.member.suspect_of == Some(column.member.id) && c.block_size == column.block_size
        };
        for c in self.0.iter().filter(its) {
            let runs = runs.get_or_insert_with(|| column.runs.clone());
            c.runs.iter().for_each(|r| runs.add(r.from, r.to, r.mask));
        }
        runs.map(|runs| held(&runs, column.profile.device_mask()))
    }
}
