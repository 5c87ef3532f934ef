//! What routing announced: blocks that a request is about to store where it was sent.
//!
//! An announcement lies beside the index, never in it: the engine hashes of the blocks to come
//! are not known, and an announcement that does not come true must leave no trace.

use std::collections::BTreeSet;
use std::sync::Arc;

use kvproto::SeqHash;
use rustc_hash::FxHashMap;

use crate::pool::Pool;
use crate::types::HolderId;

/// Announcements by request.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    by_request: FxHashMap<Arc<str>, Announcement>,
    by_expiry: BTreeSet<(u64, Arc<str>)>,
    /// (Block, holder) pairs announced.
    pub pairs: usize,
}

#[derive(Debug)]
struct Announcement {
    pool: Arc<Pool>,
    expires: u64,
    blocks: Vec<(HolderId, Vec<SeqHash>)>,
}

impl Announcements {
    /// Records a request's blocks; `slots` gives each holder's slot. Returns the pairs noted, 0
    /// where they would exceed `max`.
    pub fn add(
        &mut self,
        request: &str,
        pool: &Arc<Pool>,
        blocks: Vec<(HolderId, u32, Vec<SeqHash>)>,
        expires: u64,
        max: usize,
    ) -> usize {
        self.remove(request);
        let pairs: usize = blocks.iter().map(|(_, _, seqs)| seqs.len()).sum();
        if pairs == 0 || self.pairs + pairs > max {
            return 0;
        }
        for (holder, slot, seqs) in &blocks {
            for &seq in seqs {
                pool.announce(seq, *slot, *holder);
            }
        }
        let request: Arc<str> = request.into();
        let blocks = blocks.into_iter().map(|(holder, _, seqs)| (holder, seqs)).collect();
        self.by_expiry.insert((expires, request.clone()));
        self.by_request.insert(request, Announcement { pool: pool.clone(), expires, blocks });
        self.pairs += pairs;
        pairs
    }

    /// Takes a request's blocks back. False where there are none.
    pub fn remove(&mut self, request: &str) -> bool {
        let Some((request, a)) = self.by_request.remove_entry(request) else { return false };
        self.by_expiry.remove(&(a.expires, request));
        for (holder, seqs) in &a.blocks {
            self.pairs -= seqs.len();
            for &seq in seqs {
                a.pool.retract(seq, *holder);
            }
        }
        true
    }

    /// Takes back all that is due at `now`; returns how many requests.
    pub fn expire(&mut self, now: u64) -> usize {
        let mut n = 0;
        while let Some((expires, request)) = self.by_expiry.first().cloned()
            && expires <= now
        {
            self.remove(&request);
            n += 1;
        }
        n
    }
}
