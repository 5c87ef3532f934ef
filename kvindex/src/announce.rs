//! What routing announced: blocks that a request is about to store where it was sent.
//!
//! An announcement lies beside the index, never in it: the engine hashes of the blocks to come
//! are not known, and an announcement that does not come true must leave no trace.

use std::collections::BTreeSet;
use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::one::Ref;
use kvproto::SeqHash;
use rustc_hash::{FxBuildHasher, FxHashMap};
use smallvec::SmallVec;

use crate::profile::Mask;
use crate::runs::Runs;
use crate::types::HolderId;

/// Canonical block → holders that routing announced it for, and how often. Read without a lock on all.
#[derive(Debug, Default)]
pub(crate) struct Board(DashMap<SeqHash, SmallVec<[Announced; 1]>, FxBuildHasher>);

/// A block announced for a holder by `count` requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announced {
    pub slot: u32,
    pub holder: HolderId,
    pub count: u32,
}

impl Board {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For whom a block is announced.
    pub fn get(&self, seq: SeqHash) -> Option<Ref<'_, SeqHash, SmallVec<[Announced; 1]>>> {
        self.0.get(&seq)
    }

    /// Which of `hashes` are announced for a holder, by their place.
    pub fn of_holder(&self, holder: HolderId, hashes: impl Iterator<Item = SeqHash>) -> Runs {
        let mut runs = Runs::default();
        for (i, seq) in hashes.enumerate() {
            if self.get(seq).is_some_and(|at| at.iter().any(|a| a.holder == holder)) {
                runs.push(i as u32, Mask(1));
            }
        }
        runs
    }

    fn announce(&self, seq: SeqHash, slot: u32, holder: HolderId) {
        let mut at = self.0.entry(seq).or_default();
        match at.iter_mut().find(|a| a.holder == holder) {
            Some(a) => a.count += 1,
            None => at.push(Announced { slot, holder, count: 1 }),
        }
    }

    /// Takes one announcement of `seq` for `holder` back.
    fn retract(&self, seq: SeqHash, holder: HolderId) {
        self.0.remove_if_mut(&seq, |_, at| {
            if let Some(i) = at.iter().position(|a| a.holder == holder) {
                at[i].count -= 1;
                if at[i].count == 0 {
                    at.swap_remove(i);
                }
            }
            at.is_empty()
        });
    }
}

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
    board: Arc<Board>,
    expires: u64,
    blocks: Vec<(HolderId, Vec<SeqHash>)>,
}

impl Announcements {
    /// Records a request's blocks; `slots` gives each holder's slot. Returns the pairs noted, 0
    /// where they would exceed `max`.
    pub fn add(
        &mut self,
        request: &str,
        board: &Arc<Board>,
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
                board.announce(seq, *slot, *holder);
            }
        }
        let request: Arc<str> = request.into();
        let blocks = blocks.into_iter().map(|(holder, _, seqs)| (holder, seqs)).collect();
        self.by_expiry.insert((expires, request.clone()));
        self.by_request.insert(request, Announcement { board: board.clone(), expires, blocks });
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
                a.board.retract(seq, *holder);
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
