//! The answers: what each candidate holds, and how far that can be trusted.

use std::time::Duration;

use kvproto::Tier;
use kvproto::rpc::kv;

/// An engine that requests are routed to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// As it is registered, usually `ip:port`.
    pub instance: String,
    /// Data-parallel rank.
    pub rank: u32,
}

/// The answer to a [`ScoreCall`](crate::ScoreCall).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// The call's name.
    pub request_id: String,
    /// Whole blocks in the prompt.
    pub total_blocks: u32,
    /// Tokens per block of `total_blocks`: as asked for, otherwise the smallest among the
    /// endpoints, 0 where none is known.
    pub block_size: u32,
    /// One per candidate and rank; best first if only the best were asked for.
    pub endpoints: Vec<EndpointScore>,
    /// Candidates asked for that are not registered.
    pub missing_candidates: Vec<String>,
    /// Candidates left out because the hashes are for another block size than theirs.
    pub block_size_mismatch: Vec<String>,
    /// No engine of this model and tenant is registered.
    pub unknown_model: bool,
    /// Some candidate is missing or not followed without loss.
    pub degraded: bool,
    /// Part of the candidates, missing ones included, that are followed without loss, 0 to 1.
    pub coverage: f64,
    /// Stands for the prompt in [`Prompt::scored`](crate::Prompt::scored), if asked for.
    pub score_token: Option<String>,
}

/// What one engine holds of the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointScore {
    /// Who.
    pub endpoint: Endpoint,
    /// Tokens per block of every count here.
    pub block_size: u32,
    /// Contiguous blocks from the root, in any tier.
    pub cached_blocks: u32,
    /// Contiguous blocks from the root within each tier alone, by [`Tier::ALL`]'s order.
    pub by_tier: [u32; 5],
    /// Contiguous blocks from the root in this tier or a faster one, by [`Tier::ALL`]'s order.
    pub cumulative_by_tier: [u32; 5],
    /// Sum over `cached_blocks` of the best tier's weight.
    pub weighted_blocks: f64,
    /// The same, truncated.
    pub match_blocks: u32,
    /// Tokens that this engine itself would report as cached for this prompt.
    pub cached_tokens: u64,
    /// Contiguous blocks when those that routing announced count too; 0 unless asked for.
    pub speculative_blocks: u32,
    /// Matched blocks that contain multimodal tokens.
    pub mm_match_blocks: u32,
    /// Contiguous blocks when those count too that may be gone since batches were lost for good; 0
    /// where nothing is in doubt. No other count includes them.
    pub suspect_blocks: u32,
    /// Blocks after `cached_blocks` that do not count, because outcomes reported of other requests
    /// contradict the first of them.
    pub distrusted_blocks: u32,
    /// How far all this can be trusted.
    pub freshness: Freshness,
}

/// How well kvd follows an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PublisherState {
    /// Registered, nothing received yet; also where the server does not say.
    #[default]
    Connecting,
    /// Asking for what was missed.
    Replaying,
    /// Followed without a loss.
    Live,
    /// Followed, but what was stored before the first batch seen is not known.
    Partial,
    /// Not connected: what is known of it is as of the last batch that came.
    Unreachable,
    /// Taken for dead: nothing of it is held any more.
    Dead,
}

/// How far an answer about one engine can be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// How well kvd follows it.
    pub state: PublisherState,
    /// Since its last message; idle engines are silent.
    pub silent: Duration,
    /// How long its oldest batch not yet applied has been waiting.
    pub staleness: Duration,
    /// Whether the whole history of the engine is known.
    pub complete: bool,
    /// Last batch applied.
    pub last_seq: Option<u64>,
}

/// What came of a [`RoutingCall`](crate::RoutingCall).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routed {
    /// (Block, endpoint) pairs noted; 0 also where the server's budget for them is used up.
    pub recorded_blocks: u32,
    /// Endpoints that are not registered.
    pub missing_endpoints: Vec<Endpoint>,
}

impl From<kv::ScoreResponse> for Scores {
    fn from(r: kv::ScoreResponse) -> Self {
        Scores {
            request_id: r.request_id,
            total_blocks: r.total_blocks,
            block_size: r.block_size_tokens,
            endpoints: r.endpoints.into_iter().map(Into::into).collect(),
            missing_candidates: r.missing_candidates,
            block_size_mismatch: r.block_size_mismatch,
            unknown_model: r.unknown_model,
            degraded: r.degraded,
            coverage: r.coverage,
            score_token: (!r.score_token.is_empty()).then_some(r.score_token),
        }
    }
}

impl From<kv::EndpointScore> for EndpointScore {
    fn from(e: kv::EndpointScore) -> Self {
        EndpointScore {
            endpoint: Endpoint { instance: e.instance_id, rank: e.dp_rank },
            block_size: e.block_size_tokens,
            cached_blocks: e.cached_blocks,
            by_tier: counts(&e.by_tier),
            cumulative_by_tier: counts(&e.cumulative_by_tier),
            weighted_blocks: e.weighted_blocks,
            match_blocks: e.match_blocks,
            cached_tokens: e.cached_tokens,
            speculative_blocks: e.speculative_blocks,
            mm_match_blocks: e.mm_match_blocks,
            suspect_blocks: e.suspect_blocks,
            distrusted_blocks: e.distrusted_blocks,
            freshness: e.freshness.map(Into::into).unwrap_or_default(),
        }
    }
}

impl From<kv::Freshness> for Freshness {
    fn from(f: kv::Freshness) -> Self {
        Freshness {
            state: match f.state() {
                kv::PublisherState::Unspecified | kv::PublisherState::Connecting => {
                    PublisherState::Connecting
                }
                kv::PublisherState::Replaying => PublisherState::Replaying,
                kv::PublisherState::Live => PublisherState::Live,
                kv::PublisherState::Partial => PublisherState::Partial,
                kv::PublisherState::Unreachable => PublisherState::Unreachable,
                kv::PublisherState::Dead => PublisherState::Dead,
            },
            silent: Duration::from_millis(f.silent_ms),
            staleness: Duration::from_millis(f.staleness_ms),
            complete: f.complete,
            last_seq: f.last_seq,
        }
    }
}

impl From<kv::RecordRoutingResponse> for Routed {
    fn from(r: kv::RecordRoutingResponse) -> Self {
        let missing = r.missing_endpoints.into_iter();
        Routed {
            recorded_blocks: r.recorded_blocks,
            missing_endpoints: missing
                .map(|e| Endpoint { instance: e.instance_id, rank: e.dp_rank })
                .collect(),
        }
    }
}

fn counts(by_tier: &[kv::TierCount]) -> [u32; 5] {
    let mut out = [0; 5];
    for c in by_tier {
        let tier = match c.tier() {
            kv::Tier::Gpu => Tier::Gpu,
            kv::Tier::Cpu => Tier::Cpu,
            kv::Tier::Disk => Tier::Disk,
            kv::Tier::Shared => Tier::Shared,
            kv::Tier::Unspecified | kv::Tier::Unknown => Tier::Unknown,
        };
        out[tier as usize] = c.blocks;
    }
    out
}
