//! What does an answer look like in JSON? All counts are tokens.

use std::collections::BTreeMap;

use kvproto::Tier;
use serde::Serialize;

use crate::serve::Asked;

/// Mooncake Conductor's shape: by tenant, then instance.
pub(super) type ByTenant<'a> = BTreeMap<&'a str, BTreeMap<&'a str, InstanceMatch>>;

/// What one instance holds of the prompt: the most that any of its ranks holds.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct InstanceMatch {
    longest_matched: u64,
    #[serde(rename = "GPU")]
    gpu: u64,
    #[serde(rename = "CPU")]
    cpu: u64,
    #[serde(rename = "DISK")]
    disk: u64,
    /// `longest_matched` by rank.
    #[serde(rename = "DP")]
    by_rank: BTreeMap<u32, u64>,
    cached_tokens: u64,
    cached_tokens_dp: BTreeMap<u32, u64>,
    /// `longest_matched` if nothing is gone that is in doubt since batches were lost; left out where
    /// nothing is.
    #[serde(rename = "suspect_matched", skip_serializing_if = "is_zero")]
    suspect: u64,
}

/// `asked` in Conductor's shape; without any key where nobody serves the model.
pub(super) fn conductor<'a>(tenant: &'a str, asked: &'a Asked) -> ByTenant<'a> {
    let mut out = ByTenant::new();
    if asked.answer.unknown_model {
        return out;
    }
    let instances = out.entry(tenant).or_default();
    for (score, holder) in asked.answer.scores.iter().zip(&asked.holders) {
        let tokens = |blocks: u32| u64::from(blocks) * u64::from(score.block_size);
        let i = instances.entry(holder.instance()).or_default();
        raise(&mut i.longest_matched, tokens(score.cached));
        raise(&mut i.gpu, tokens(score.by_tier[Tier::Gpu as usize]));
        raise(&mut i.cpu, tokens(score.by_tier[Tier::Cpu as usize]));
        raise(&mut i.disk, tokens(score.below_ram));
        raise(&mut i.cached_tokens, score.cached_tokens);
        if score.suspect > score.cached {
            raise(&mut i.suspect, tokens(score.suspect));
        }
        raise(i.by_rank.entry(holder.spec.rank).or_default(), tokens(score.cached));
        raise(i.cached_tokens_dp.entry(holder.spec.rank).or_default(), score.cached_tokens);
    }
    out
}

/// The shape of Dynamo's standalone indexer.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct DynamoAnswer<'a> {
    /// Tokens on the device, by instance and rank.
    scores: BTreeMap<&'a str, BTreeMap<u32, u64>>,
    /// How often blocks were asked for, which kvd does not count.
    frequencies: [u32; 0],
    instances: BTreeMap<&'a str, DynamoInstance>,
}

/// What one instance holds, each tier together with the faster ones.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct DynamoInstance {
    longest_matched: u64,
    gpu: u64,
    dp: BTreeMap<u32, u64>,
    cpu: u64,
    disk: u64,
}

/// `asked` in Dynamo's shape.
pub(super) fn dynamo(asked: &Asked) -> DynamoAnswer<'_> {
    let mut out = DynamoAnswer::default();
    for (score, holder) in asked.answer.scores.iter().zip(&asked.holders) {
        let tokens = |blocks: u32| u64::from(blocks) * u64::from(score.block_size);
        let up_to = |tier: Tier| tokens(score.cumulative[tier as usize]);
        let ranks = out.scores.entry(holder.instance()).or_default();
        raise(ranks.entry(holder.spec.rank).or_default(), up_to(Tier::Gpu));
        let i = out.instances.entry(holder.instance()).or_default();
        raise(&mut i.longest_matched, tokens(score.cached));
        raise(&mut i.gpu, up_to(Tier::Gpu));
        raise(&mut i.cpu, up_to(Tier::Cpu));
        // Dynamo has one tier below host memory.
        raise(&mut i.disk, up_to(Tier::Shared));
        raise(i.dp.entry(holder.spec.rank).or_default(), tokens(score.cached));
    }
    out
}

fn is_zero(tokens: &u64) -> bool {
    *tokens == 0
}

fn raise(to: &mut u64, tokens: u64) {
    *to = tokens.max(*to);
}
