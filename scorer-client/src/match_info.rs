//! An answer in the form that llm-d's endpoint picker keeps per endpoint.

use std::ops::AddAssign;

use kvproto::Tier;

use crate::{Endpoint, EndpointScore, Scores};

/// What llm-d's `PrefixCacheMatchInfo` says of one endpoint. All counts are in blocks of `block_size_tokens`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MatchInfo {
    /// Blocks matched from the root, weighted by tier, truncated.
    pub match_blocks: u32,
    /// Whole blocks of the prompt, or of all prompts.
    pub total_blocks: u32,
    /// Tokens per block.
    pub block_size_tokens: u32,
    /// Contiguous blocks from the root, in any tier, not weighted.
    pub cached_blocks: u32,
    /// Contiguous blocks from the root within each tier alone, those that are more than none, and under
    /// `speculative` those of requests that were routed there, where these were asked for. Empty where nothing is
    /// known of tiers.
    pub cached_by_tier: Vec<(&'static str, u32)>,
    /// Matched blocks that contain multimodal tokens.
    pub mm_match_blocks: u32,
}

/// Under which announced blocks are listed.
const SPECULATIVE: &str = "speculative";

impl Scores {
    /// What every endpoint has, in this form.
    pub fn match_infos(&self) -> impl Iterator<Item = (&Endpoint, MatchInfo)> {
        self.endpoints.iter().map(|e| (&e.endpoint, e.match_info(self)))
    }
}

impl EndpointScore {
    /// This form of it; `scores` is the answer that it is part of.
    pub fn match_info(&self, scores: &Scores) -> MatchInfo {
        let tokens = u64::from(scores.total_blocks) * u64::from(scores.block_size);
        let total = match self.block_size {
            0 => 0,
            // An engine's own blocks, where no size was asked for.
            size => u32::try_from(tokens / u64::from(size)).unwrap_or(u32::MAX),
        };
        let tiers = Tier::ALL.iter().map(|tier| (tier_name(*tier), self.by_tier[*tier as usize]));
        let speculative = (SPECULATIVE, self.speculative_blocks);
        MatchInfo {
            match_blocks: self.match_blocks,
            total_blocks: total,
            block_size_tokens: self.block_size,
            cached_blocks: self.cached_blocks,
            cached_by_tier: tiers.chain([speculative]).filter(|(_, blocks)| *blocks > 0).collect(),
            mm_match_blocks: self.mm_match_blocks,
        }
    }
}

/// Sums up over the prompts of a request that has several, as llm-d does. Multimodal blocks are said of single
/// prompts only.
impl AddAssign for MatchInfo {
    fn add_assign(&mut self, other: MatchInfo) {
        self.match_blocks += other.match_blocks;
        self.total_blocks += other.total_blocks;
        self.block_size_tokens = self.block_size_tokens.max(other.block_size_tokens);
        self.cached_blocks += other.cached_blocks;
        for (tier, blocks) in other.cached_by_tier {
            match self.cached_by_tier.iter_mut().find(|(name, _)| *name == tier) {
                Some((_, sum)) => *sum += blocks,
                None => self.cached_by_tier.push((tier, blocks)),
            }
        }
        self.mm_match_blocks = 0;
    }
}

fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Gpu => "gpu",
        Tier::Cpu => "cpu",
        Tier::Disk => "disk",
        Tier::Shared => "shared_storage",
        Tier::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Freshness;

    fn score(block_size: u32) -> EndpointScore {
        EndpointScore {
            endpoint: Endpoint { instance: "a".into(), rank: 0 },
            block_size,
            cached_blocks: 5,
            by_tier: [2, 4, 0, 0, 0],
            cumulative_by_tier: [2, 5, 5, 5, 5],
            weighted_blocks: 4.4,
            match_blocks: 4,
            cached_tokens: 80,
            speculative_blocks: 6,
            mm_match_blocks: 1,
            suspect_blocks: 0,
            distrusted_blocks: 0,
            freshness: Freshness::default(),
        }
    }

    #[test]
    fn an_endpoint_in_llm_ds_form_has_its_own_blocks() {
        let scores = Scores { total_blocks: 10, block_size: 16, ..Scores::default() };
        let info = score(32).match_info(&scores);
        let want = MatchInfo {
            match_blocks: 4,
            total_blocks: 5,
            block_size_tokens: 32,
            cached_blocks: 5,
            cached_by_tier: vec![("gpu", 2), ("cpu", 4), ("speculative", 6)],
            mm_match_blocks: 1,
        };
        assert_eq!(info, want);
        assert_eq!(score(0).match_info(&scores).total_blocks, 0);
    }

    #[test]
    fn prompts_of_one_request_are_summed_up() {
        let scores = Scores { total_blocks: 10, block_size: 16, ..Scores::default() };
        let mut sum = MatchInfo::default();
        sum += score(16).match_info(&scores);
        sum += EndpointScore { by_tier: [0, 1, 1, 0, 0], ..score(16) }.match_info(&scores);
        assert_eq!((sum.match_blocks, sum.total_blocks, sum.cached_blocks), (8, 20, 10));
        assert_eq!(sum.cached_by_tier, [("gpu", 2), ("cpu", 5), ("speculative", 12), ("disk", 1)]);
        assert_eq!((sum.block_size_tokens, sum.mm_match_blocks), (16, 0));
    }
}
