//! Which part of an answer does not count, because reports contradict it?

use std::time::Instant;

use kvindex::{Answer, HolderId, Query, Score};
use rustc_hash::FxHashMap;

use crate::serve::Service;

/// What does not count of a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// Blocks that would count otherwise.
    pub blocks: u32,
    /// Cached tokens if they did.
    pub cached_tokens: u64,
}

impl Service {
    /// Takes blocks that reports contradict, and what comes after them, out of an answer.
    pub(in crate::serve) fn hold_back(
        &self,
        query: &Query<'_>,
        answer: &mut Answer,
    ) -> FxHashMap<HolderId, HeldBack> {
        let mut held_back = FxHashMap::default();
        if self.publishers.distrusted() == 0 {
            return held_back;
        }
        for score in answer.scores.iter_mut().filter(|s| s.cached > 0 || s.cached_tokens > 0) {
            if let Some(less) = self.without_distrusted(query, score) {
                let blocks = score.cached.saturating_sub(less.cached);
                let cached_tokens = score.cached_tokens;
                held_back.insert(score.holder, HeldBack { blocks, cached_tokens });
                *score = less;
            }
        }
        held_back
    }

    fn without_distrusted(&self, query: &Query<'_>, score: &Score) -> Option<Score> {
        let account = self.publishers.account(score.holder).filter(|a| a.has_distrusted())?;
        let names = self.index.named(query, score.holder);
        let first = account.first_distrusted(&names, Instant::now())?;
        let spec = self.index.spec(score.holder)?;
        let most = query.max_blocks.map_or(first, |n| n.min(first));
        let query = Query { instances: &[&spec.instance], max_blocks: Some(most), ..*query };
        self.index.query(&query).scores.into_iter().find(|s| s.holder == score.holder)
    }
}
