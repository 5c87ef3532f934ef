//! What an index shares that keeps somewhere else what engines hold.
//!
//! ```text
//! Batch ─▶ changes (canonical, owned) ─▶ Engine::learn ─▶ whoever keeps masks by block
//! Query ─▶ Engine::chain (what to look up) ─▶ masks ─▶ Engine::score
//! ```
//!
//! Nothing here remembers blocks: that is the keeper's part. What a block is called, what an engine's events
//! tell of it and how it counts is the same as in [`crate::Index`], by the same code.

use std::sync::Arc;

use kvproto::event::Content;
use kvproto::hash::canonical::{MmForm, Namespace, PromptExtras, Seed, prompt_hashes};
use kvproto::hash::vllm;
use kvproto::{Batch, EngineHash, Event, ExtraKey, GroupKind, GroupSpec, LocalHash, SeqHash, Stored, Tier};
use parking_lot::Mutex;

use crate::announce::{Announcements, Board};
use crate::profile::{Group, Lesson, MAX_GROUPS, Mask, Profile};
use crate::runs::Runs;
use crate::score::{Terms, held_or_announced, score};
use crate::types::{HolderId, HolderSpec, Prompt, Query, Score};

/// The bit of a mask that stands for a copy in `tier` and, on the device, in `group`; `None` where the group
/// is out of range.
pub fn mask_bit(tier: Tier, group: u32) -> Option<u8> {
    (group < MAX_GROUPS).then(|| Mask::bit(tier, group).0.trailing_zeros() as u8)
}

/// Whether a bit of a mask stands for a copy in `tier`.
pub fn bit_is_of(bit: u8, tier: Tier) -> bool {
    bit < 32 && Mask(1 << bit).has_tier(tier)
}

/// One event, owned and without its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Blocks came into a tier.
    Store(Store),
    /// Copies left.
    Remove {
        /// What the engine calls the blocks.
        names: Vec<EngineHash>,
        /// From where.
        tier: Tier,
        /// From which group.
        group: u32,
    },
    /// A tier, or all of them, was emptied.
    Clear(Option<Tier>),
}

/// Blocks that came into a tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// What the engine calls them, in the order of the sequence.
    pub names: Vec<EngineHash>,
    /// The block before the first; `None` at the root.
    pub parent: Option<EngineHash>,
    /// Each block's own hash; empty where the event does not tell what is in them.
    pub locals: Vec<LocalHash>,
    /// What their hashes begin with.
    pub seed: Seed,
    lesson: Lesson,
}

impl Store {
    /// Where the copies lie.
    pub fn tier(&self) -> Tier {
        self.lesson.tier
    }

    /// Tokens per block; 0 where the event does not say.
    pub fn block_size(&self) -> u32 {
        self.lesson.block_size
    }

    /// In which group.
    pub fn group(&self) -> u32 {
        self.lesson.group
    }
}

/// What may be believed of the names of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tells {
    /// What is in the blocks and where they stand.
    Blocks,
    /// Only that blocks of these names are there.
    Names,
    /// The names are canonical hashes and stand for themselves.
    Canonical,
    /// Nothing: a field is out of range.
    Nothing,
}

/// The events of a batch of the engine `spec`, in order.
pub fn changes(spec: &HolderSpec, batch: &Batch<'_>) -> Vec<Change> {
    batch
        .events()
        .map(|event| match event {
            Event::Stored(s) => Change::Store(store(spec, &s)),
            Event::Removed(r) => Change::Remove { names: r.hashes.to_vec(), tier: r.tier, group: r.group },
            Event::Cleared(c) => Change::Clear(c.tier),
        })
        .collect()
}

fn store(spec: &HolderSpec, s: &Stored<'_>) -> Store {
    let lora = s.lora.or(spec.lora.as_deref());
    let seed = Namespace { salt: &spec.salt, model: &spec.model, lora }.seed();
    let locals = match s.content {
        Content::Complete if s.is_dense() => own_hashes(s, seed),
        Content::Hashed if s.locals.len() == s.hashes.len() => s.locals.to_vec(),
        Content::Complete | Content::Hashed | Content::HashOnly | Content::Canonical => Vec::new(),
    };
    Store { names: s.hashes.to_vec(), parent: s.parent, locals, seed, lesson: Lesson::of(s) }
}

fn own_hashes(s: &Stored<'_>, seed: Seed) -> Vec<LocalHash> {
    let mut keys: Vec<ExtraKey<'_>> = Vec::new();
    let blocks = s.tokens.chunks_exact(s.block_size as usize).enumerate();
    blocks
        .map(|(i, tokens)| {
            keys.clear();
            keys.extend_from_slice(s.extras(i));
            if let (0, None, Some(salt)) = (i, s.parent, s.cache_salt) {
                keys.push(ExtraKey::Text(salt));
            }
            seed.local(tokens, &keys)
        })
        .collect()
}

/// What to look up of a prompt, root first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain {
    /// Canonical hashes.
    Canonical(Vec<SeqHash>),
    /// The engine's own names.
    Engine(Vec<EngineHash>),
    /// The prompt is given by hashes of blocks of a size that the engine does not use.
    OtherBlockSize,
}

/// A question that an index kept elsewhere cannot answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// The prompt is given by each block's own hash.
    #[error("prompts given by each block's own hash")]
    LocalHashes,
    /// The prompt is given by llm-d's request keys.
    #[error("prompts given by llm-d's request keys")]
    LlmdKeys,
}

/// One engine: who it is and what its events told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    spec: Arc<HolderSpec>,
    profile: Profile,
}

impl Engine {
    /// An engine of which nothing was told yet.
    pub fn new(spec: Arc<HolderSpec>) -> Engine {
        Engine { spec, profile: Profile::default() }
    }

    /// Who it is.
    pub fn spec(&self) -> &Arc<HolderSpec> {
        &self.spec
    }

    /// Tokens per block of its events; 0 before the first store.
    pub fn block_size(&self) -> u32 {
        self.profile.block_size
    }

    /// Takes in what a store tells of the engine, and says what to believe of its blocks.
    pub fn learn(&mut self, s: &Store) -> Tells {
        if s.lesson.group >= MAX_GROUPS {
            return Tells::Nothing;
        }
        let (kind, _) = self.profile.learn(&s.lesson);
        // A full-attention group has the last word on what a block is: others' events may leave
        // blocks out, or count in blocks of their own.
        let tells = kind == GroupKind::Full || !self.profile.has_full_group();
        match s.lesson.content {
            Content::Complete | Content::Hashed if tells && !s.locals.is_empty() => Tells::Blocks,
            Content::Canonical => Tells::Canonical,
            Content::Complete | Content::Hashed | Content::HashOnly => Tells::Names,
        }
    }

    /// Takes in that a block before which `depth` others stand lies in a lower tier.
    pub fn learn_depth(&mut self, depth: u32) {
        self.profile.learn_depth(depth);
    }

    /// Whether blocks after the first gap can matter to the score.
    pub fn sees_past_gaps(&self) -> bool {
        self.profile.sees_past_gaps(self.spec.offload_chunk)
    }

    /// Whether [`chain`](Self::chain) is the same for both, whatever the question.
    pub fn names_alike(&self, other: &Engine) -> bool {
        let of = |e: &Engine| {
            let p = &e.profile;
            (p.block_size, p.sizes.clone(), p.form, p.has_full_group())
        };
        of(self) == of(other) && self.spec.salt == other.spec.salt && self.spec.hashing == other.spec.hashing
    }

    /// What to look up to answer `query`.
    ///
    /// # Errors
    /// For prompts that do not tell canonical hashes.
    pub fn chain(&self, query: &Query<'_>) -> Result<Chain, Unsupported> {
        let asked = query.block_size.filter(|&b| b > 0);
        let most = query.max_blocks.map_or(usize::MAX, |n| n as usize);
        let other_size =
            asked.is_some_and(|n| self.profile.block_size != 0 && !self.profile.sizes.contains(&n));
        let block_size = self.profile.block_size_for(asked);
        match query.prompt {
            Prompt::Local(_) => Err(Unsupported::LocalHashes),
            Prompt::Llmd(_) => Err(Unsupported::LlmdKeys),
            Prompt::Canonical(_) | Prompt::Engine(_) if other_size => Ok(Chain::OtherBlockSize),
            _ if block_size == 0 => Ok(Chain::Canonical(Vec::new())),
            Prompt::Canonical(hashes) => Ok(Chain::Canonical(hashes[..hashes.len().min(most)].to_vec())),
            Prompt::Engine(hashes) => Ok(Chain::Engine(hashes[..hashes.len().min(most)].to_vec())),
            Prompt::Tokens { tokens, lora, cache_salt, items } => {
                // As the engine's events of such a model do not tell positions.
                if let Some(h) = &self.spec.hashing
                    && lora.is_none()
                    && items.is_empty()
                    && !self.profile.has_full_group()
                {
                    let (mut names, seed) = (Vec::new(), h.seed.as_deref());
                    if vllm::prompt_hashes(h.algo, seed, tokens, block_size, cache_salt, &mut names).is_ok() {
                        names.truncate(most);
                        return Ok(Chain::Engine(names));
                    }
                }
                Ok(Chain::Canonical(self.names_of(query, block_size)))
            }
        }
    }

    /// The canonical names of a prompt of tokens.
    fn names_of(&self, query: &Query<'_>, block_size: u32) -> Vec<SeqHash> {
        let Prompt::Tokens { tokens, lora, cache_salt, items } = query.prompt else { return Vec::new() };
        let most = query.max_blocks.map_or(usize::MAX, |n| n as usize);
        let seed = Namespace { salt: &self.spec.salt, model: query.model, lora }.seed();
        let extras = PromptExtras { cache_salt, items, form: self.profile.form };
        prompt_hashes(seed, tokens, block_size, extras).take(most).collect()
    }

    /// What schedulers announced of the prompt, whose chain is `chain`; nothing unless the query counts it.
    pub fn announced(
        &self,
        holder: HolderId,
        query: &Query<'_>,
        chain: &Chain,
        routings: &Routings,
    ) -> Announced {
        if !query.speculative || routings.board.is_empty() {
            return Announced::default();
        }
        let block_size = self.profile.block_size_for(query.block_size.filter(|&b| b > 0));
        Announced(match chain {
            Chain::Canonical(seqs) => routings.board.of_holder(holder, seqs.iter().copied()),
            Chain::Engine(_) if block_size > 0 => {
                routings.board.of_holder(holder, self.names_of(query, block_size).into_iter())
            }
            Chain::Engine(_) | Chain::OtherBlockSize => Runs::default(),
        })
    }

    /// Contiguous blocks of the chain that are held or announced.
    pub fn reach(&self, masks: &[u32], announced: &Announced) -> usize {
        held_or_announced(&runs_of(masks), &announced.0, self.profile.device_mask()) as usize
    }

    /// The score of the engine, which has block `i` of the chain in `masks[i]`.
    pub fn score(&self, holder: HolderId, query: &Query<'_>, masks: &[u32], announced: &Announced) -> Score {
        let query = &crate::in_blocks(query);
        let block_size = self.profile.block_size_for(query.block_size);
        let runs = runs_of(masks);
        let reach = match query.speculative {
            true => held_or_announced(&runs, &announced.0, self.profile.device_mask()),
            false => 0,
        };
        let terms = Terms {
            block_size: query.block_size,
            prompt_tokens: crate::prompt_tokens(query, block_size),
            weights: &query.weights,
            items: crate::items(query),
        };
        score(holder, &self.spec, &self.profile, block_size, &runs, reach, &terms)
    }

    /// What was learnt, to be kept beside the blocks.
    pub fn encode(&self) -> Vec<u8> {
        let p = &self.profile;
        let mut out = vec![1, u8::from(p.block_size_is_full), u8::from(p.form == MmForm::Bare)];
        for n in [p.block_size, p.chunk_described, p.chunk_by_depth] {
            out.extend(n.to_le_bytes());
        }
        out.push(p.sizes.len() as u8);
        p.sizes.iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.push(p.groups.len() as u8);
        for g in &p.groups {
            let Some(g) = g else {
                out.push(0);
                continue;
            };
            out.push(1 + KINDS.iter().position(|k| *k == g.spec.kind).unwrap_or(0) as u8);
            out.extend(g.spec.window.unwrap_or(u32::MAX).to_le_bytes());
            out.extend(g.block_size.to_le_bytes());
        }
        out
    }

    /// The engine `spec` with what [`encode`](Self::encode) kept; `None` where those bytes make no sense.
    pub fn decode(spec: Arc<HolderSpec>, bytes: &[u8]) -> Option<Engine> {
        let mut b = Bytes(bytes);
        let [1, full, bare] = b.take()? else { return None };
        let mut p = Profile {
            block_size_is_full: full == 1,
            form: if bare == 1 { MmForm::Bare } else { MmForm::Placed },
            block_size: b.number()?,
            chunk_described: b.number()?,
            chunk_by_depth: b.number()?,
            ..Profile::default()
        };
        let [sizes] = b.take()?;
        for _ in 0..sizes.min(16) {
            p.sizes.push(b.number()?);
        }
        let [groups] = b.take()?;
        for _ in 0..u32::from(groups).min(MAX_GROUPS) {
            let [kind] = b.take()?;
            p.groups.push(match usize::from(kind).checked_sub(1) {
                None => None,
                Some(kind) => {
                    let (kind, window) = (*KINDS.get(kind)?, b.number()?);
                    let window = (window != u32::MAX).then_some(window);
                    Some(Group { spec: GroupSpec { kind, window }, block_size: b.number()? })
                }
            });
        }
        b.0.is_empty().then_some(Engine { spec, profile: p })
    }
}

/// Blocks of one prompt that schedulers announced for one holder.
#[derive(Clone, Debug, Default)]
pub struct Announced(Runs);

impl Announced {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.end() == 0
    }
}

/// What schedulers announced, kept as [`crate::Index`] keeps it, for who keeps blocks elsewhere.
#[derive(Debug, Default)]
pub struct Routings {
    board: Arc<Board>,
    all: Mutex<Announcements>,
}

impl Routings {
    /// Notes a request's blocks until [`expire`](Self::expire) is called with a `now` of at least `expires`.
    /// Replaces what was noted for it. Returns the (block, holder) pairs, 0 where there would be more than `most`.
    pub fn note(
        &self,
        request: &str,
        blocks: &[(HolderId, Arc<[SeqHash]>)],
        expires: u64,
        most: usize,
    ) -> usize {
        let blocks = blocks.iter().map(|(holder, seqs)| (*holder, 0, seqs.to_vec())).collect();
        self.all.lock().add(request, &self.board, blocks, expires, most)
    }

    /// Takes a request's blocks back. False where there are none.
    pub fn forget(&self, request: &str) -> bool {
        self.all.lock().remove(request)
    }

    /// Takes back all that is due at `now`; returns how many requests'.
    pub fn expire(&self, now: u64) -> usize {
        self.all.lock().expire(now)
    }

    /// (Block, holder) pairs noted.
    pub fn pairs(&self) -> usize {
        self.all.lock().pairs
    }
}

fn runs_of(masks: &[u32]) -> Runs {
    let mut runs = Runs::default();
    let held = (0..).zip(masks).filter(|(_, mask)| **mask != 0);
    held.for_each(|(i, &mask)| runs.push(i, Mask(mask)));
    runs
}

/// In the order of their number on the wire.
const KINDS: [GroupKind; 5] =
    [GroupKind::Full, GroupKind::SlidingWindow, GroupKind::Mamba, GroupKind::ChunkedLocal, GroupKind::Other];

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn number(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use kvproto::event::{BatchBuilder, StoredFields};

    use super::*;

    fn engine() -> Engine {
        let spec = Arc::new(HolderSpec::new("t", "m", "i", 0));
        let mut b = BatchBuilder::new(0.0, None);
        let window = Some(GroupSpec { kind: GroupKind::SlidingWindow, window: Some(9) });
        let fields = StoredFields { block_size: 2, group: 2, spec: window, ..StoredFields::default() };
        b.stored(fields, &[EngineHash(1)], &[1, 2], &[]);
        b.stored(StoredFields { spec: None, group: 0, ..fields }, &[EngineHash(1)], &[1, 2], &[]);
        let batch = b.build();
        let mut engine = Engine::new(spec.clone());
        for change in changes(&spec, &batch) {
            let Change::Store(s) = change else { panic!("only stores") };
            engine.learn(&s);
        }
        engine
    }

    #[test]
    fn what_was_learnt_survives_being_written_down() {
        let engine = engine();
        let bytes = engine.encode();
        let back = Engine::decode(engine.spec.clone(), &bytes).expect("our own bytes");
        assert_eq!(back.profile, engine.profile);
        assert_eq!((back.profile.groups.len(), back.block_size()), (3, 2));
        for n in 0..bytes.len() {
            assert!(Engine::decode(engine.spec.clone(), &bytes[..n]).is_none(), "{n} bytes");
        }
    }

    #[test]
    fn a_window_sees_past_gaps_and_full_attention_alone_does_not() {
        assert!(engine().sees_past_gaps());
        assert!(!Engine::new(Arc::new(HolderSpec::new("t", "m", "i", 0))).sees_past_gaps());
    }
}
