//! What goes in and out of an index: holders, prompts, scores.

use kvproto::hash::canonical::MmItem;
use kvproto::hash::llmd::RequestKey;
use kvproto::{EngineHash, LocalHash, SeqHash, Tier};

/// One engine as the index knows it: an instance and its data-parallel rank.
///
/// Ids are handed out by [`crate::Index::attach`] and never used twice, so a pod that comes
/// back is a new holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HolderId(pub u32);

/// Who a holder is and what must be known of its engine to count as it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderSpec {
    /// Tenant that the engine serves.
    pub tenant: String,
    /// Model name.
    pub model: String,
    /// What a scheduler routes to, usually `ip:port`.
    pub instance: String,
    /// Data-parallel rank.
    pub rank: u32,
    /// The deployment's salt, part of every block's name.
    pub salt: String,
    /// Adapter of events that name none.
    pub lora: Option<String>,
    /// Tokens per chunk of chunked local attention; the engine's events do not tell.
    pub attention_chunk: Option<u32>,
    /// Device blocks per offload chunk, where known; otherwise learnt from the events.
    pub offload_chunk: Option<u32>,
    /// The engine's own block hash, for models without a full-attention group: their
    /// events do not tell positions, so a prompt is looked up by the engine's hashes.
    pub hashing: Option<EngineHashing>,
    /// The machine it runs on, where known.
    pub node: Option<String>,
    /// It is no engine but the tiers that a node's engines have in common: no candidate, but its
    /// RAM and disk are within reach of all engines of `node`, and what it has in shared storage is
    /// within reach of all engines of the model.
    pub tiers: bool,
}

impl HolderSpec {
    /// A holder of whose engine nothing special is known.
    pub fn new(tenant: &str, model: &str, instance: &str, rank: u32) -> HolderSpec {
        HolderSpec {
            tenant: tenant.to_owned(),
            model: model.to_owned(),
            instance: instance.to_owned(),
            rank,
            salt: String::new(),
            lora: None,
            attention_chunk: None,
            offload_chunk: None,
            hashing: None,
            node: None,
            tiers: false,
        }
    }

    /// The tiers of a node, of which nothing special is known.
    pub fn tiers(tenant: &str, model: &str, node: &str) -> HolderSpec {
        HolderSpec { node: Some(node.to_owned()), tiers: true, ..HolderSpec::new(tenant, model, node, 0) }
    }
}

/// The engine's block-hash algorithm and the seed of its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineHashing {
    /// Which of vLLM's algorithms.
    pub algo: kvproto::hash::vllm::Algo,
    /// `PYTHONHASHSEED`; `None` where unset (vLLM 0.29 and later: a fixed default).
    pub seed: Option<String>,
}

/// What is asked about.
#[derive(Clone, Copy, Debug)]
pub enum Prompt<'a> {
    /// Token ids and what else names the blocks.
    Tokens {
        /// The prompt.
        tokens: &'a [u32],
        /// LoRA adapter.
        lora: Option<&'a str>,
        /// Cache salt.
        cache_salt: Option<&'a str>,
        /// Multimodal items, in order of their offset.
        items: &'a [MmItem<'a>],
    },
    /// Each block's own hash, computed for `Query::block_size` as [`kvproto::hash::canonical`] lays
    /// down.
    Local(&'a [LocalHash]),
    /// Canonical rolling hashes from the root, computed for `Query::block_size`.
    Canonical(&'a [SeqHash]),
    /// The engine's own hashes from the root.
    Engine(&'a [EngineHash]),
    /// llm-d's request keys from the root, where the index is configured with their seed. They
    /// must be computed for the engine's block size. A block whose parent arrived after it is
    /// not known by such a key.
    Llmd(&'a [RequestKey]),
}

impl<'a> Prompt<'a> {
    /// A prompt of plain tokens.
    pub fn tokens(tokens: &'a [u32]) -> Prompt<'a> {
        Prompt::Tokens { tokens, lora: None, cache_salt: None, items: &[] }
    }
}

/// How much a block counts by the best tier it is in, for `weighted_blocks`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TierWeights {
    /// By [`Tier::ALL`]'s order.
    pub by_tier: [f64; 5],
}

impl Default for TierWeights {
    /// gpu 1.0, cpu 0.8, disk 0.5, shared 0.4, unknown 0.
    fn default() -> Self {
        TierWeights { by_tier: [1.0, 0.8, 0.5, 0.4, 0.0] }
    }
}

impl TierWeights {
    /// The weight of `tier`.
    pub fn of(&self, tier: Tier) -> f64 {
        self.by_tier[tier as usize]
    }
}

/// A question about one prompt.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Tenant asked for.
    pub tenant: &'a str,
    /// Model asked for.
    pub model: &'a str,
    /// The prompt.
    pub prompt: Prompt<'a>,
    /// Tokens per block that counts are given in; `None` = each engine's own.
    pub block_size: Option<u32>,
    /// Only these instances; empty = all of the model.
    pub instances: &'a [&'a str],
    /// Only holders with this deployment salt, where given.
    pub salt: Option<&'a str>,
    /// Look no further than this many blocks of the engine.
    pub max_blocks: Option<u32>,
    /// Count blocks that routing announced.
    pub speculative: bool,
    /// Weights of the tiers.
    pub weights: TierWeights,
}

impl<'a> Query<'a> {
    /// A question about every engine of a model, in the engines' own blocks.
    pub fn new(tenant: &'a str, model: &'a str, prompt: Prompt<'a>) -> Query<'a> {
        Query {
            tenant,
            model,
            prompt,
            block_size: None,
            instances: &[],
            salt: None,
            max_blocks: None,
            speculative: false,
            weights: TierWeights::default(),
        }
    }
}

/// What one holder has of the prompt. Blocks are of `block_size` tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Who.
    pub holder: HolderId,
    /// Tokens per block of every count here.
    pub block_size: u32,
    /// Contiguous blocks from the root, in any tier.
    pub cached: u32,
    /// Contiguous blocks from the root within each tier alone, by [`Tier::ALL`]'s order.
    pub by_tier: [u32; 5],
    /// Contiguous blocks from the root in this tier or one before it.
    pub cumulative: [u32; 5],
    /// Contiguous blocks from the root within disk and shared storage taken together.
    pub below_ram: u32,
    /// Sum over `cached` of the best tier's weight.
    pub weighted: f64,
    /// Tokens that the engine itself would report as cached.
    pub cached_tokens: u64,
    /// Contiguous blocks when those that routing announced are counted too; at least `cached`.
    pub speculative: u32,
    /// Matched blocks that contain multimodal tokens.
    pub mm_matched: u32,
    /// Contiguous blocks when those count too that were held before a loss and may be gone since; at
    /// least `cached`.
    pub suspect: u32,
    /// The index dropped some of what this holder has to stay within its budget: it may have more.
    pub partial: bool,
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// No holder of this tenant and model is attached.
    pub unknown_model: bool,
    /// One per candidate, in the order they were attached.
    pub scores: Vec<Score>,
    /// Candidates left out because the hashes asked by are of another block size.
    pub block_size_mismatch: Vec<HolderId>,
}

/// What applying a batch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Copies of blocks that came in.
    pub stored: u32,
    /// Copies of blocks that left.
    pub removed: u32,
    /// Clears.
    pub cleared: u32,
    /// Removals of blocks that were not held; normal after a late subscription.
    pub unknown_removed: u32,
    /// Blocks stored after a parent that is not known: held, but at no known position yet.
    pub orphans: u32,
    /// Blocks refused because the holder's budget is full or a field is out of range.
    pub refused: u32,
}

/// What one holder has in the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HolderStats {
    /// Distinct blocks held in any tier.
    pub blocks: u64,
    /// Distinct blocks by tier, by [`Tier::ALL`]'s order.
    pub by_tier: [u64; 5],
    /// Blocks held whose position from the root is not known.
    pub unplaced: u64,
    /// Block size of the engine's events; 0 before the first store.
    pub block_size: u32,
    /// Distinct blocks that were held before a loss and may be gone since; in none of the above.
    pub suspect: u64,
    /// Blocks refused so far.
    pub refused: u64,
    /// Blocks dropped so far to stay within the index's budget.
    pub dropped: u64,
    /// Whether any were since the holder was last cleared: it may have more than is known.
    pub partial: bool,
}

/// What the whole index holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Holders attached.
    pub holders: u64,
    /// Distinct prefix blocks.
    pub blocks: u64,
    /// (Block, holder) pairs.
    pub entries: u64,
    /// Speculative (block, holder) pairs.
    pub speculative: u64,
    /// Bytes of blocks, tables and holders.
    pub bytes: u64,
    /// Hash domains that any holder is in.
    pub domains: u64,
    /// (Block, holder) pairs dropped so far to stay within the budget.
    pub dropped: u64,
}

/// One line of a dump: a block that a holder has in a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpRow {
    /// Who.
    pub holder: HolderId,
    /// Where; cache groups are joined.
    pub tier: Tier,
    /// The engine's hash.
    pub block: EngineHash,
    /// Position from the root, from 0, where known.
    pub depth: Option<u32>,
    /// The engine's hash of the block before it, where known.
    pub parent: Option<EngineHash>,
    /// Tokens per block.
    pub block_size: u32,
}

/// Blocks of a prompt that an engine will have to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Below {
    /// The engine.
    pub engine: HolderId,
    /// The tiers of its node, which are to bring them up.
    pub tiers: HolderId,
    /// The tiers that have them: those of its node, below RAM, or another node's, in RAM or on disk.
    pub at: HolderId,
    /// What the engine calls them, root first.
    pub hashes: Vec<EngineHash>,
}

/// Who holds one block of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Canonical hash of the block and its prefix; `None` when asked by engine hashes.
    pub seq: Option<SeqHash>,
    /// Holders and the tiers they have it in.
    pub holders: Vec<(HolderId, TierSet)>,
}

/// A set of tiers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TierSet(pub u8);

impl TierSet {
    /// Whether `tier` is in the set.
    pub fn has(self, tier: Tier) -> bool {
        self.0 & (1 << tier as u8) != 0
    }

    /// The set with `tier` added.
    pub fn with(self, tier: Tier) -> TierSet {
        TierSet(self.0 | (1 << tier as u8))
    }

    /// The tiers in the set, fastest first.
    pub fn iter(self) -> impl Iterator<Item = Tier> {
        Tier::ALL.into_iter().filter(move |t| self.has(*t))
    }
}

/// Block by block, how a holder came by its score. Blocks are the engine's own.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The score explained.
    pub score: Score,
    /// Each block of the prompt.
    pub blocks: Vec<ExplainedBlock>,
    /// From the blocks to `cached_tokens`, a sentence each.
    pub steps: Vec<String>,
}

/// One block of an [`Explanation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedBlock {
    /// Canonical hash; `None` when asked by engine hashes.
    pub seq: Option<SeqHash>,
    /// Where the holder has it.
    pub tiers: TierSet,
    /// KV-cache groups that have it on the device.
    pub gpu_groups: Vec<u32>,
    /// Whether routing announced it.
    pub speculative: bool,
}
