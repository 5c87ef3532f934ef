//! What was asked when a transfer was planned?
//!
//! Kept in memory only and within a bound: while the transfer is live, to notice that its source lost
//! what was to be read; and beyond that, as long as there is room, to plan again for one that failed.
//! Who is not kept is not watched, which is all.

use std::collections::VecDeque;
use std::sync::Arc;

use kvproto::Tier;
use rustc_hash::{FxHashMap, FxHashSet};

use super::plan::PlanAsk;
use crate::transfer::ledger::TransferId;
use crate::transfer::types::Endpoint;

/// Questions of live transfers.
pub(super) struct Prompts {
    max_bytes: usize,
    bytes: usize,
    kept: FxHashMap<TransferId, Kept>,
    /// Of transfers that failed, the oldest first. Some may be gone already.
    failed: VecDeque<TransferId>,
}

/// What one transfer was planned for.
#[derive(Clone)]
pub(super) struct Kept {
    pub ask: Arc<PlanAsk>,
    pub source: Option<Source>,
    /// Whether the index was asked about the source since it was kept.
    pub looked: bool,
}

/// What a plan wants to read, before anything is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub from: Endpoint,
    pub tier: Tier,
    /// Tokens from the start of the prompt that have to stay there.
    pub tokens: u32,
}

impl Prompts {
    pub fn new(max_bytes: usize) -> Prompts {
        Prompts { max_bytes, bytes: 0, kept: FxHashMap::default(), failed: VecDeque::new() }
    }

    /// Keeps `kept` if there is room.
    pub fn keep(&mut self, id: TransferId, kept: Kept) {
        self.forget(id);
        let bytes = kept.ask.bytes();
        while self.bytes + bytes > self.max_bytes
            && let Some(oldest) = self.failed.pop_front()
        {
            self.forget(oldest);
        }
        if self.bytes + bytes <= self.max_bytes {
            self.bytes += bytes;
            self.kept.insert(id, kept);
        }
    }

    pub fn get(&self, id: TransferId) -> Option<Kept> {
        self.kept.get(&id).cloned()
    }

    /// The transfer failed: it is not watched any more, but may be planned again.
    pub fn failed(&mut self, id: TransferId) {
        if let Some(kept) = self.kept.get_mut(&id) {
            kept.source = None;
            self.failed.push_back(id);
        }
    }

    pub fn forget(&mut self, id: TransferId) {
        if let Some(kept) = self.kept.remove(&id) {
            self.bytes -= kept.ask.bytes();
        }
    }

    /// Transfers that want to read from pods that `moved`, or were not looked after yet.
    pub fn unattended(&mut self, moved: &FxHashSet<Endpoint>) -> Vec<(TransferId, Arc<PlanAsk>, Source)> {
        let mut found = vec![];
        for (id, kept) in &mut self.kept {
            let Some(source) = &kept.source else { continue };
            if !kept.looked || moved.contains(&source.from) {
                kept.looked = true;
                found.push((*id, Arc::clone(&kept.ask), source.clone()));
            }
        }
        found
    }
}
