//! Everything that can happen to a KV cache, as engines tell it.
//!
//! Decoders in [`crate::engine`] produce a [`Batch`]; only `kvindex` consumes its
//! [`Event`]s. A batch owns three flat arenas (hashes, tokens, extra keys) and
//! borrows its strings from the payload, so that decoding costs a handful of
//! allocations per batch, whatever it holds.

mod builder;

use std::ops::Range;

pub use builder::{BatchBuilder, StoredFields};

/// A block's hash as its engine says it, 64 bits.
///
/// Integers are taken as they are (signed ones by their bits); of byte strings the
/// last 8 bytes, big-endian, which is the number vLLM would have sent instead.
/// Meaningful only together with the publisher it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct EngineHash(pub u64);

/// kvd's hash of one block's own content (tokens and extra keys), see [`crate::hash::canonical`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct LocalHash(pub u64);

/// kvd's hash of a block and its whole prefix, see [`crate::hash::canonical`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct SeqHash(pub u64);

/// Where a copy of a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// The engine's own device pool ("GPU" also on CPU builds).
    Gpu,
    /// Host memory.
    Cpu,
    /// A disk of the node.
    Disk,
    /// Storage that other nodes reach too.
    Shared,
    /// A medium kvd has no name for.
    Unknown,
}

impl Tier {
    /// Every tier, fastest first.
    pub const ALL: [Tier; 5] = [Tier::Gpu, Tier::Cpu, Tier::Disk, Tier::Shared, Tier::Unknown];

    /// The tier's name in kvd's configuration, answers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Gpu => "gpu",
            Tier::Cpu => "cpu",
            Tier::Disk => "disk",
            Tier::Shared => "shared",
            Tier::Unknown => "unknown",
        }
    }

    /// The tier that an event's `medium` speaks of, whatever its case. No medium
    /// means the device.
    ///
    /// Names seen: vLLM `GPU`, `CPU`, `STORAGE` (0.26: `FS`, `OBJ`); SGLang `GPU`,
    /// `CPU_PINNED`, `CPU_TIER1`, `DISK`, `EXTERNAL`; llm-d's file connector
    /// `SHARED_STORAGE`, `OBJECT_STORE`; LMCache and Mooncake `cpu`, `disk`.
    pub fn from_medium(medium: Option<&str>) -> Tier {
        const NAMES: [(&str, Tier); 17] = [
            ("gpu", Tier::Gpu),
            ("device", Tier::Gpu),
            ("hbm", Tier::Gpu),
            ("npu", Tier::Gpu),
            ("cpu", Tier::Cpu),
            ("cpu_pinned", Tier::Cpu),
            ("cpu_tier1", Tier::Cpu),
            ("dram", Tier::Cpu),
            ("memory", Tier::Cpu),
            ("disk", Tier::Disk),
            ("storage", Tier::Disk),
            ("fs", Tier::Disk),
            ("ssd", Tier::Disk),
            ("obj", Tier::Shared),
            ("external", Tier::Shared),
            ("shared_storage", Tier::Shared),
            ("object_store", Tier::Shared),
        ];
        match medium {
            None => Tier::Gpu,
            Some(m) => {
                NAMES.iter().find(|(name, _)| m.eq_ignore_ascii_case(name)).map_or(Tier::Unknown, |&(_, t)| t)
            }
        }
    }
}

/// How a KV-cache group attends, which decides what of it must be held for a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GroupKind {
    /// Every block from the root.
    Full,
    /// Only the last `window` tokens.
    SlidingWindow,
    /// Only the state at the end.
    Mamba,
    /// Only the chunk that the end lies in.
    ChunkedLocal,
    /// Attends to something else than the prompt's own blocks (encoder, cross attention).
    Other,
}

impl GroupKind {
    /// From vLLM's `kv_cache_spec_kind`.
    pub fn from_spec_kind(kind: &str) -> GroupKind {
        match kind {
            "sliding_window" | "sliding_window_mla" => GroupKind::SlidingWindow,
            "mamba" => GroupKind::Mamba,
            "chunked_local_attention" => GroupKind::ChunkedLocal,
            "encoder_only_attention" | "cross_attention" => GroupKind::Other,
            // "full_attention", "mla_attention", "sink_full_attention", "unknown" and names yet
            // to come: a block counts only if the whole prefix is there, which never overstates.
            _ => GroupKind::Full,
        }
    }
}

/// What a store event says of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupSpec {
    /// How the group attends.
    pub kind: GroupKind,
    /// Window in tokens, for sliding windows.
    pub window: Option<u32>,
}

/// Something besides tokens that makes a block differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtraKey<'a> {
    /// A cache salt (first block), or up to vLLM 0.18 a multimodal identifier.
    Text(&'a str),
    /// A multimodal item that touches the block; `offset` is its start minus the block's.
    Item {
        /// What the item is.
        identifier: &'a str,
        /// Tokens from the block's start to the item's; negative if it began earlier.
        offset: i64,
    },
    /// A digest of prompt embeddings.
    Digest(&'a [u8]),
}

/// One engine step's events, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch<'p> {
    /// When the engine made the batch, seconds since 1970 by its clock.
    pub ts: f64,
    /// The data-parallel rank the batch says it is from.
    pub rank: Option<u32>,
    /// Events that were left out because they made no sense.
    pub skipped: Skipped,
    pub(crate) events: Vec<RawEvent<'p>>,
    pub(crate) hashes: Vec<EngineHash>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) locals: Vec<LocalHash>,
    pub(crate) extras: Vec<ExtraKey<'p>>,
    /// Per hash of a store with extra keys: its range in `extras`.
    pub(crate) extra_ranges: Vec<Range<u32>>,
}

/// Events a decoder left out, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Tags this version does not know.
    pub unknown: u32,
    /// Known tags with fields that do not fit.
    pub malformed: u32,
    /// What was wrong with the first of them, in words.
    pub first: Option<String>,
}

/// An event whose slices are still ranges into the batch's arenas.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RawEvent<'p> {
    Stored(RawStored<'p>),
    Removed { hashes: Range<u32>, tier: Tier, group: u32 },
    Cleared(Cleared),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RawStored<'p> {
    pub hashes: Range<u32>,
    pub parent: Option<EngineHash>,
    pub tokens: Range<u32>,
    /// Range in `locals`: empty, or one per hash.
    pub locals: Range<u32>,
    pub block_size: u32,
    pub tier: Tier,
    pub group: u32,
    pub spec: Option<GroupSpec>,
    pub lora: Option<&'p str>,
    pub cache_salt: Option<&'p str>,
    /// Range in `extra_ranges`: empty, or one per hash.
    pub extras: Range<u32>,
    pub content: Content,
    pub base_block: Option<u32>,
}

/// Everything that can happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// Blocks came into a tier.
    Stored(Stored<'a>),
    /// Copies of blocks left a tier.
    Removed(Removed<'a>),
    /// A whole cache was emptied.
    Cleared(Cleared),
}

/// How much a store event says about what its blocks contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Tokens and every extra key are there: the blocks can be named from the event alone.
    Complete,
    /// The event cannot tell the blocks' content (no tokens, or tiers that leave out extra
    /// keys); only the hash says what they are.
    HashOnly,
    /// Each block's own hash stands beside its engine hash, for whoever has hashed the tokens
    /// already ([`BatchBuilder::hashed`]).
    Hashed,
    /// The hashes are the standardised rolling hashes of RFC #1527 and stand for themselves.
    Canonical,
}

/// Consecutive blocks of one sequence came into a tier.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<'a> {
    /// One per block. May be fewer than `tokens` covers (window groups announce only what
    /// they keep), even none.
    pub hashes: &'a [EngineHash],
    /// The block before the first; `None` at the root.
    pub parent: Option<EngineHash>,
    /// Tokens of the whole range.
    pub tokens: &'a [u32],
    /// Each block's own hash, where the content is [`Content::Hashed`].
    pub locals: &'a [LocalHash],
    /// Tokens per block; 0 where the event does not say.
    pub block_size: u32,
    /// Where the copies lie.
    pub tier: Tier,
    /// KV-cache group, 0 where the engine has one.
    pub group: u32,
    /// What the event says of the group.
    pub spec: Option<GroupSpec>,
    /// LoRA adapter name.
    pub lora: Option<&'a str>,
    /// Salt of the sequence, where the event names it apart from the extra keys (SGLang).
    pub cache_salt: Option<&'a str>,
    /// What the hashes can be taken for.
    pub content: Content,
    /// Depth of the first block, where the event says it (RFC #1527).
    pub base_block: Option<u32>,
    extras: &'a [ExtraKey<'a>],
    extra_ranges: &'a [Range<u32>],
}

impl<'a> Stored<'a> {
    /// Extra keys of block `i`, in the engine's order, without the LoRA name.
    pub fn extras(&self, i: usize) -> &'a [ExtraKey<'a>] {
        match self.extra_ranges.get(i) {
            Some(r) => &self.extras[r.start as usize..r.end as usize],
            None => &[],
        }
    }

    /// Whether each hash stands for one block of `tokens`, so that positions are known.
    pub fn is_dense(&self) -> bool {
        self.block_size > 0
            && !self.hashes.is_empty()
            && self.hashes.len() as u64 * u64::from(self.block_size) == self.tokens.len() as u64
    }
}

/// Copies of blocks left a tier: one per hash, each counted on its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Removed<'a> {
    /// Which blocks.
    pub hashes: &'a [EngineHash],
    /// From which tier.
    pub tier: Tier,
    /// From which KV-cache group.
    pub group: u32,
}

/// A cache was emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleared {
    /// The tier that was emptied; `None` where the event does not say, which must be taken
    /// for all of them.
    pub tier: Option<Tier>,
}

impl Batch<'_> {
    /// The events, in the order they happened.
    pub fn events(&self) -> impl ExactSizeIterator<Item = Event<'_>> {
        self.events.iter().map(|e| match e {
            RawEvent::Stored(s) => Event::Stored(Stored {
                hashes: self.hashes_at(&s.hashes),
                parent: s.parent,
                tokens: &self.tokens[s.tokens.start as usize..s.tokens.end as usize],
                locals: &self.locals[s.locals.start as usize..s.locals.end as usize],
                block_size: s.block_size,
                tier: s.tier,
                group: s.group,
                spec: s.spec,
                lora: s.lora,
                cache_salt: s.cache_salt,
                content: s.content,
                base_block: s.base_block,
                extras: &self.extras,
                extra_ranges: &self.extra_ranges[s.extras.start as usize..s.extras.end as usize],
            }),
            RawEvent::Removed { hashes, tier, group } => {
                Event::Removed(Removed { hashes: self.hashes_at(hashes), tier: *tier, group: *group })
            }
            RawEvent::Cleared(c) => Event::Cleared(*c),
        })
    }

    /// Number of events that [`events`](Self::events) yields.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether the batch has no event that can be applied.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    fn hashes_at(&self, r: &Range<u32>) -> &[EngineHash] {
        &self.hashes[r.start as usize..r.end as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_medium_is_known_whatever_its_case_and_none_is_the_device() {
        assert_eq!(Tier::from_medium(None), Tier::Gpu);
        assert_eq!(Tier::from_medium(Some("cpu")), Tier::from_medium(Some("CPU")));
        assert_eq!(Tier::from_medium(Some("CPU_PINNED")), Tier::Cpu);
        assert_eq!(Tier::from_medium(Some("tape")), Tier::Unknown);
    }
}
