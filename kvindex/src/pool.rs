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
#[derive(Debug)]
pub(crate) struct Pool {
    /// By slot. A slot is used again after its holder has gone and its blocks with it.
    pub members: RwLock<Vec<Option<Arc<Member>>>>,
    /// The members as a query needs them, made anew when they change, which is rare: a query
    /// takes one lock here instead of several for each of them.
    seats: RwLock<Arc<Vec<Seat>>>,
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

/// A member, and what its events have told when the seat was made.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub member: Arc<Member>,
    pub profile: Arc<Profile>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub holder: Holder,
    /// Set when the holder is detached: a batch that comes after it changes nothing.
    pub gone: bool,
}

/// Parts of the block map that are locked apart.
const SHARDS: usize = 32;

impl Default for Pool {
    fn default() -> Self {
        Pool {
            members: RwLock::default(),
            seats: RwLock::default(),
            blocks: DashMap::with_hasher_and_shard_amount(FxBuildHasher, SHARDS),
            llmd_keys: DashMap::default(),
            announced: DashMap::default(),
            entries: AtomicU64::new(0),
        }
    }
}

impl Pool {
    /// Looks a stretch of blocks up at once. With a lock for each, the processor would wait for
    /// one block's memory before it asks for the next one's; under one lock they come together.
    pub fn with_blocks<R>(&self, seqs: &[Option<SeqHash>], read: impl FnOnce(&[Option<&Block>]) -> R) -> R {
        let shards: Vec<_> = self.blocks.shards().iter().map(|shard| shard.read()).collect();
        let find = |seq: &Option<SeqHash>| {
            let seq = (*seq)?;
            let hash = self.blocks.hash_usize(&seq);
            let shard = &shards[self.blocks.determine_shard(hash)];
            shard.get(hash as u64, |(key, _)| *key == seq).map(|(_, block)| block.get())
        };
        let found: Vec<Option<&Block>> = seqs.iter().map(find).collect();
        // Lists of holders that lie apart are called for here, before they are read.
        for block in found.iter().flatten() {
            std::hint::black_box((block.at.first(), block.at.last()));
        }
        read(&found)
    }

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
        self.reseat(&members);
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
        self.reseat(&members);
        members.is_empty()
    }

    /// The members, by slot.
    pub fn seats(&self) -> Arc<Vec<Seat>> {
        self.seats.read().clone()
    }

    /// Tells readers what the events of `member` have told.
    pub fn set_profile(&self, member: &Member, profile: Profile) {
        // The lock keeps two that change at once from undoing each other.
        let members = self.members.write();
        *member.profile.write() = Arc::new(profile);
        self.reseat(&members);
    }

    fn reseat(&self, members: &[Option<Arc<Member>>]) {
        let seat = |m: &Arc<Member>| Seat { member: m.clone(), profile: m.profile.read().clone() };
        *self.seats.write() = Arc::new(members.iter().flatten().map(seat).collect());
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
