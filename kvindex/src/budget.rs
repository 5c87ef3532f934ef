//! Keeps the index within its bytes.
//!
//! Blocks without a holder go first, then the ends of the sequences that were in use longest ago,
//! from whoever holds them: an index that must forget forgets what is asked for least, says how much,
//! and never says of a block that it is held when it does not know.

use std::sync::atomic::Ordering;

use crate::Index;
use crate::pool::Pool;

/// Strands dropped at the most after one batch: the rest is left to the next ones.
const AT_ONCE: usize = 256;

impl Index {
    /// Bytes of all pools, now that `pool` has changed.
    fn count_bytes(&self, pool: &Pool) -> u64 {
        let now = pool.forests.bytes() as u64;
        let before = pool.counted.swap(now, Ordering::Relaxed);
        // Wrapping: a pool that shrinks adds what wraps around to less.
        let more = now.wrapping_sub(before);
        self.bytes.fetch_add(more, Ordering::Relaxed).wrapping_add(more)
    }

    /// Drops what is over the budget, of the pool that has just grown.
    pub(crate) fn keep_budget(&self, pool: &Pool) {
        for _ in 0..AT_ONCE {
            if self.count_bytes(pool) <= self.config.max_bytes || !self.drop_oldest(pool) {
                return;
            }
        }
    }

    /// Lets the oldest end go. False where there is none.
    fn drop_oldest(&self, pool: &Pool) -> bool {
        let members = pool.seats();
        pool.write(|holders, desk| {
            let domains: Vec<usize> = (0..).zip(desk.forests.iter()).map(|(d, _)| d).collect();
            if domains.iter().any(|d| desk.pen(*d).has_ghosts() && desk.pen(*d).settle_oldest()) {
                return true;
            }
            // The largest forest has most to give.
            let Some(domain) = domains.into_iter().max_by_key(|d| desk.forests.get(*d).bytes()) else {
                return false;
            };
            let Some((strand, span)) = desk.pen(domain).pick_old() else { return false };
            let losses = desk.pen(domain).holders_of(strand, span);
            for loss in losses {
                if let Some(Some(holder)) = holders.get_mut(loss.slot as usize) {
                    let dropped = holder.stats().dropped;
                    holder.lose(domain, loss, desk);
                    if let Ok(i) = members.binary_search_by_key(&u32::from(loss.slot), |s| s.member.slot) {
                        members[i].member.partial.store(true, Ordering::Relaxed);
                    }
                    self.dropped.fetch_add(holder.stats().dropped - dropped, Ordering::Relaxed);
                }
            }
            desk.pen(domain).drop_end(strand);
            true
        })
    }
}
