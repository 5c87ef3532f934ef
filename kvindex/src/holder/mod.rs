//! What one engine holds, by its own hashes, and what each event changes.
//!
//! Pure state: events go in, changes of (canonical block, mask) come out through a callback
//! that the caller carries over into the shared map. Engine hashes mean something only within
//! one publisher, so the resolution from engine hash to canonical block lives here.
//!
//! A node outlives its last copy for a while as a *ghost*: offload tiers announce bare hashes,
//! and a tier may announce a block after the device has dropped it.
//!
//! This file counts copies; [`place`] finds where a block stands, [`learn`] what a store tells
//! of the engine, [`inspect`] looks in.

mod inspect;
mod learn;
mod place;

use std::collections::VecDeque;

use kvproto::event::Content;
use kvproto::hash::canonical::Seed;
use kvproto::hash::llmd::{Llmd, RequestKey};
use kvproto::{Batch, EngineHash, Event, ExtraKey, GroupKind, LocalHash, Removed, SeqHash, Stored, Tier};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::profile::{MAX_GROUPS, Mask, Profile};
use crate::types::{Applied, HolderSpec, HolderStats};

/// Ghosts kept per holder.
const MAX_GHOSTS: usize = 1 << 14;

/// The depth of a block that stands for itself but does not say where it is.
const UNKNOWN_DEPTH: u32 = u32::MAX;

/// One engine's blocks.
#[derive(Debug)]
pub(crate) struct Holder {
    spec: std::sync::Arc<HolderSpec>,
    max_blocks: usize,
    /// Names blocks by llm-d's request keys too, where the deployment asks by them.
    llmd: Option<Llmd>,
    nodes: FxHashMap<EngineHash, Node>,
    /// Parent hash not placed yet → nodes that wait for it.
    waiting: FxHashMap<EngineHash, Vec<EngineHash>>,
    /// Canonical block → the nodes that stand for it, nearly always one.
    placed: FxHashMap<SeqHash, SmallVec<[EngineHash; 2]>>,
    ghosts: VecDeque<EngineHash>,
    /// Seeds by LoRA name.
    seeds: Vec<(Option<String>, Seed)>,
    profile: Profile,
    profile_changed: bool,
    stats: HolderStats,
}

#[derive(Debug)]
struct Node {
    place: Place,
    parent: Option<EngineHash>,
    llmd_key: Option<RequestKey>,
    block_size: u32,
    /// Whether a full-attention group named it, which has the last word.
    named_by_full: bool,
    copies: SmallVec<[Copies; 2]>,
}

/// How often a block lies in one tier and group.
#[derive(Clone, Copy, Debug)]
struct Copies {
    tier: Tier,
    group: u8,
    count: u32,
}

/// Where a node stands in its sequence.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// `depth` blocks precede it.
    Known { seq: SeqHash, depth: u32 },
    /// Its content is known, what precedes it is not.
    Orphan { seed: Seed, local: LocalHash },
    /// Only its hash is known.
    Nameless,
}

/// What a store says a block is.
struct Name {
    parent: Option<EngineHash>,
    seed: Seed,
    content: Named,
    llmd_key: Option<RequestKey>,
    block_size: u32,
    by_full: bool,
}

enum Named {
    Local(LocalHash),
    /// The hash stands for itself.
    Canonical {
        seq: SeqHash,
        depth: Option<u32>,
    },
}

/// Carries changes out: from now on this holder has `seq`, which llm-d calls `key`, in `mask`;
/// empty = not at all.
pub(crate) trait Changes {
    fn set(&mut self, seq: SeqHash, mask: Mask, key: Option<RequestKey>);
}

impl Holder {
    pub fn new(spec: std::sync::Arc<HolderSpec>, max_blocks: usize, llmd: Option<Llmd>) -> Holder {
        Holder {
            spec,
            max_blocks,
            llmd,
            nodes: FxHashMap::default(),
            waiting: FxHashMap::default(),
            placed: FxHashMap::default(),
            ghosts: VecDeque::new(),
            seeds: Vec::new(),
            profile: Profile::default(),
            profile_changed: false,
            stats: HolderStats::default(),
        }
    }

    /// Applies the events in order.
    pub fn apply(&mut self, batch: &Batch<'_>, out: &mut impl Changes) -> Applied {
        let mut done = Applied::default();
        for event in batch.events() {
            match event {
                Event::Stored(s) => self.stored(&s, out, &mut done),
                Event::Removed(r) => self.removed(&r, out, &mut done),
                Event::Cleared(c) => {
                    done.cleared += 1;
                    self.drop_copies(c.tier, out);
                }
            }
        }
        self.stats.refused += u64::from(done.refused);
        done
    }

    /// Forgets everything, also what was learnt of the engine.
    pub fn reset(&mut self, out: &mut impl Changes) {
        self.drop_copies(None, out);
        *self = Holder {
            stats: HolderStats { refused: self.stats.refused, ..HolderStats::default() },
            profile_changed: true,
            ..Holder::new(self.spec.clone(), self.max_blocks, self.llmd)
        };
    }

    /// What was learnt, if it changed since this was last asked.
    pub fn changed_profile(&mut self) -> Option<Profile> {
        std::mem::take(&mut self.profile_changed).then(|| self.profile.clone())
    }

    fn stored(&mut self, s: &Stored<'_>, out: &mut impl Changes, done: &mut Applied) {
        if s.group >= MAX_GROUPS {
            done.refused += s.hashes.len() as u32;
            return;
        }
        let kind = self.learn(s);
        let by_full = kind == GroupKind::Full;
        let lora = s.lora.or(self.spec.lora.as_deref());
        let seed = self.seed(lora.map(str::to_owned));
        let dense = s.is_dense();
        let mut parent = s.parent;
        let mut keys: Vec<ExtraKey<'_>> = Vec::new();
        for (i, &h) in s.hashes.iter().enumerate() {
            let settled = self
                .nodes
                .get(&h)
                .is_some_and(|n| matches!(n.place, Place::Known { .. }) && (n.named_by_full || !by_full));
            let content = match s.content {
                _ if settled => None,
                Content::Complete if dense => {
                    keys.clear();
                    keys.extend_from_slice(s.extras(i));
                    if parent.is_none()
                        && let Some(salt) = s.cache_salt
                    {
                        keys.push(ExtraKey::Text(salt));
                    }
                    let at = i * s.block_size as usize;
                    let tokens = &s.tokens[at..at + s.block_size as usize];
                    Some(Named::Local(seed.local(tokens, &keys)))
                }
                Content::Canonical => Some(Named::Canonical {
                    seq: SeqHash(h.0),
                    depth: s.base_block.map(|b| b.saturating_add(i as u32)),
                }),
                Content::Complete | Content::HashOnly => None,
            };
            let llmd_key = content.as_ref().and_then(|_| self.llmd_key(s, i, parent, &keys));
            let name = content.map(|content| Name {
                parent,
                seed,
                content,
                llmd_key,
                block_size: s.block_size,
                by_full,
            });
            self.hold(h, s.tier, s.group, name, out, done);
            parent = Some(h);
        }
    }

    fn removed(&mut self, r: &Removed<'_>, out: &mut impl Changes, done: &mut Applied) {
        for &h in r.hashes {
            let Some(node) = self.nodes.get_mut(&h) else {
                done.unknown_removed += 1;
                continue;
            };
            let before = node.mask();
            let at = node.copies.iter().position(|c| c.tier == r.tier && u32::from(c.group) == r.group);
            let Some(at) = at else {
                done.unknown_removed += 1;
                continue;
            };
            done.removed += 1;
            if node.copies[at].count > 1 {
                node.copies[at].count -= 1;
                continue;
            }
            node.copies.remove(at);
            let after = node.mask();
            let place = node.place;
            self.count(before, after, place);
            self.publish(h, place, after, out);
            if after.is_empty() {
                self.haunt(h);
            }
        }
    }

    /// Drops every copy in `tier`, or in all of them, in time proportional to this holder.
    fn drop_copies(&mut self, tier: Option<Tier>, out: &mut impl Changes) {
        let mut emptied = Vec::new();
        for (&h, node) in &mut self.nodes {
            let before = node.mask();
            if before.is_empty() {
                continue;
            }
            node.copies.retain(|c| tier.is_some_and(|t| t != c.tier));
            let after = node.mask();
            if after != before {
                emptied.push((h, before, after, node.place));
            }
        }
        for (h, before, after, place) in emptied {
            self.count(before, after, place);
            self.publish(h, place, after, out);
            if after.is_empty() {
                self.haunt(h);
            }
        }
    }

    /// One more copy of `h`.
    fn hold(
        &mut self,
        h: EngineHash,
        tier: Tier,
        group: u32,
        name: Option<Name>,
        out: &mut impl Changes,
        done: &mut Applied,
    ) {
        let full = self.stats.blocks as usize >= self.max_blocks;
        let node = match self.nodes.entry(h) {
            std::collections::hash_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::hash_map::Entry::Vacant(_) if full => {
                done.refused += 1;
                return;
            }
            std::collections::hash_map::Entry::Vacant(e) => e.insert(Node::nameless()),
        };
        let before = node.mask();
        if before.is_empty() && full {
            done.refused += 1;
            return;
        }
        match node.copies.iter_mut().find(|c| c.tier == tier && u32::from(c.group) == group) {
            Some(c) => c.count = c.count.saturating_add(1),
            None => node.copies.push(Copies { tier, group: group as u8, count: 1 }),
        }
        done.stored += 1;
        let after = node.mask();
        let place = node.place;
        self.count(before, after, place);
        if after != before {
            self.publish(h, place, after, out);
        }
        if let Some(name) = name {
            self.name(h, name, out, done);
        }
        if tier != Tier::Gpu {
            self.learn_chunk(h);
        }
    }

    /// Keeps a node that lost its last copy for a while, and lets the oldest such node go.
    fn haunt(&mut self, h: EngineHash) {
        self.ghosts.push_back(h);
        while self.ghosts.len() > MAX_GHOSTS {
            let Some(old) = self.ghosts.pop_front() else { return };
            if self.nodes.get(&old).is_none_or(|n| !n.mask().is_empty()) {
                continue;
            }
            if let Some(Node { place: Place::Orphan { .. }, parent: Some(p), .. }) = self.nodes.remove(&old)
                && let Some(waiting) = self.waiting.get_mut(&p)
            {
                waiting.retain(|w| *w != old);
                if waiting.is_empty() {
                    self.waiting.remove(&p);
                }
            }
        }
    }

    /// Keeps the counts of distinct blocks in step with a node whose mask changed.
    fn count(&mut self, before: Mask, after: Mask, place: Place) {
        let step = |n: &mut u64, before: bool, after: bool| match (before, after) {
            (false, true) => *n += 1,
            (true, false) => *n -= 1,
            (true, true) | (false, false) => {}
        };
        let (was, is) = (!before.is_empty(), !after.is_empty());
        step(&mut self.stats.blocks, was, is);
        if !matches!(place, Place::Known { .. }) {
            step(&mut self.stats.unplaced, was, is);
        }
        for (n, tier) in self.stats.by_tier.iter_mut().zip(Tier::ALL) {
            step(n, before.has_tier(tier), after.has_tier(tier));
        }
    }
}

impl Node {
    fn nameless() -> Node {
        Node {
            place: Place::Nameless,
            parent: None,
            llmd_key: None,
            block_size: 0,
            named_by_full: false,
            copies: SmallVec::new(),
        }
    }

    fn mask(&self) -> Mask {
        self.copies.iter().fold(Mask::default(), |m, c| m.union(Mask::bit(c.tier, u32::from(c.group))))
    }
}
