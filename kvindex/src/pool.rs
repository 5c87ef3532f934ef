//! The holders of one tenant's model and the map from canonical block to who has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use kvproto::SeqHash;
use kvproto::hash::llmd::{Llmd, RequestKey};
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use crate::holder::{Changes, Holder};
use crate::profile::{Mask, Profile};
use crate::types::{HolderId, HolderSpec};

/// Everything of one (tenant, model).
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// By slot. A slot is used again after its holder has gone and its blocks with it.
    pub members: RwLock<Vec<Option<Arc<Member>>>>,
    /// Canonical block → slots that have it, and where.
    pub blocks: DashMap<SeqHash, Block, FxBuildHasher>,
    /// llm-d's name of a block → ours, where the deployment asks by them.
    pub llmd_keys: DashMap<RequestKey, SeqHash, FxBuildHasher>,
    /// Canonical block → holders that routing announced it for, and how often.
    pub announced: DashMap<SeqHash, SmallVec<[Announced; 1]>, FxBuildHasher>,
    /// (Block, holder) pairs.
    pub entries: AtomicU64,
}

/// Who has a block, and what llm-d calls it.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub at: SmallVec<[(u32, Mask); 2]>,
    llmd_key: Option<RequestKey>,
}

/// A block announced for a holder by `count` requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announced {
    pub slot: u32,
    pub holder: HolderId,
    pub count: u32,
}

/// One attached holder.
#[derive(Debug)]
pub(crate) struct Member {
    pub id: HolderId,
    pub spec: Arc<HolderSpec>,
    pub slot: u32,
    /// What the events have told so far, for readers.
    pub profile: RwLock<Arc<Profile>>,
    pub state: Mutex<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub holder: Holder,
    /// Set when the holder is detached: a batch that comes after it changes nothing.
    pub gone: bool,
}

impl Pool {
    /// Adds a holder in the first free slot.
    pub fn add(
        &self,
        id: HolderId,
        spec: Arc<HolderSpec>,
        max_blocks: usize,
        llmd: Option<Llmd>,
    ) -> Arc<Member> {
        let mut members = self.members.write();
        let slot = members.iter().position(Option::is_none).unwrap_or_else(|| {
            members.push(None);
            members.len() - 1
        });
        let holder = Holder::new(spec.clone(), max_blocks, llmd);
        let member = Arc::new(Member {
            id,
            spec,
            slot: slot as u32,
            profile: RwLock::default(),
            state: Mutex::new(State { holder, gone: false }),
        });
        members[slot] = Some(member.clone());
        member
    }

    /// Takes a holder and its blocks out. Returns whether the pool is empty now.
    pub fn remove(&self, member: &Member) -> bool {
        {
            let mut state = member.state.lock();
            state.gone = true;
            state.holder.reset(&mut self.changes(member.slot));
        }
        // Only now may the slot be given to another.
        let mut members = self.members.write();
        members[member.slot as usize] = None;
        while matches!(members.last(), Some(None)) {
            members.pop();
        }
        members.is_empty()
    }

    /// Where changes of the holder in `slot` go.
    pub fn changes(&self, slot: u32) -> PoolChanges<'_> {
        PoolChanges { pool: self, slot }
    }

    /// Where the holder in `slot` has `seq`.
    pub fn announce(&self, seq: SeqHash, slot: u32, holder: HolderId) {
        let mut at = self.announced.entry(seq).or_default();
        match at.iter_mut().find(|a| a.holder == holder) {
            Some(a) => a.count += 1,
            None => at.push(Announced { slot, holder, count: 1 }),
        }
    }

    /// Takes one announcement of `seq` for `holder` back.
    pub fn retract(&self, seq: SeqHash, holder: HolderId) {
        self.announced.remove_if_mut(&seq, |_, at| {
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

/// Carries one holder's changes into the shared map.
pub(crate) struct PoolChanges<'a> {
    pool: &'a Pool,
    slot: u32,
}

impl Changes for PoolChanges<'_> {
    fn set(&mut self, seq: SeqHash, mask: Mask, key: Option<RequestKey>) {
        if mask.is_empty() {
            let mut removed = false;
            let gone = self.pool.blocks.remove_if_mut(&seq, |_, b| {
                if let Some(i) = b.at.iter().position(|(s, _)| *s == self.slot) {
                    b.at.swap_remove(i);
                    removed = true;
                }
                b.at.is_empty()
            });
            if removed {
                self.pool.entries.fetch_sub(1, Ordering::Relaxed);
            }
            if let Some((_, Block { llmd_key: Some(key), .. })) = gone {
                self.pool.llmd_keys.remove_if(&key, |_, s| *s == seq);
            }
            return;
        }
        let mut block = self.pool.blocks.entry(seq).or_default();
        match block.at.iter_mut().find(|(s, _)| *s == self.slot) {
            Some((_, m)) => *m = mask,
            None => {
                block.at.push((self.slot, mask));
                self.pool.entries.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let (Some(key), None) = (key, block.llmd_key) {
            block.llmd_key = Some(key);
            self.pool.llmd_keys.insert(key, seq);
        }
    }
}
