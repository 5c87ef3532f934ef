//! What one engine holds, by its own hashes, and what each event changes.
//!
//! Pure state: events go in, changes of (canonical block, mask) come out through a callback
//! that the caller carries over into the shared map. Engine hashes mean something only within
//! one publisher, so the resolution from engine hash to canonical block lives here.
//!
//! A node outlives its last copy for a while as a *ghost*: offload tiers announce bare hashes,
//! and a tier may announce a block after the device has dropped it.

use std::collections::VecDeque;

use kvproto::event::Content;
use kvproto::hash::canonical::{MmForm, Namespace, Seed};
use kvproto::hash::llmd::{Llmd, RequestKey};
use kvproto::{Batch, EngineHash, Event, ExtraKey, GroupKind, LocalHash, Removed, SeqHash, Stored, Tier};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::profile::{MAX_GROUPS, Mask, Profile, gcd};
use crate::types::{Applied, DumpRow, HolderId, HolderSpec, HolderStats};

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

    pub fn stats(&self) -> HolderStats {
        HolderStats { block_size: self.profile.block_size, ..self.stats }
    }

    /// Where the engine's own hash `h` lies.
    pub fn mask_of(&self, h: EngineHash) -> Mask {
        self.nodes.get(&h).map_or(Mask::default(), Node::mask)
    }

    /// Rows in ascending (block, tier) order after `after`, at most `limit`.
    pub fn dump(&self, id: HolderId, after: Option<(EngineHash, Tier)>, limit: usize) -> Vec<DumpRow> {
        let mut rows: Vec<DumpRow> = Vec::new();
        for (&block, node) in &self.nodes {
            for tier in Tier::ALL {
                let held = node.copies.iter().any(|c| c.tier == tier);
                if held && after.is_none_or(|a| (block, tier) > a) {
                    let depth = match node.place {
                        Place::Known { depth, .. } if depth != UNKNOWN_DEPTH => Some(depth),
                        Place::Known { .. } | Place::Orphan { .. } | Place::Nameless => None,
                    };
                    let block_size =
                        if node.block_size > 0 { node.block_size } else { self.profile.block_size };
                    rows.push(DumpRow { holder: id, tier, block, depth, parent: node.parent, block_size });
                }
            }
        }
        // Only the first `limit` are wanted: select before sorting keeps a page of a large
        // holder linear.
        if rows.len() > limit {
            rows.select_nth_unstable_by_key(limit, |r| (r.block, r.tier));
            rows.truncate(limit);
        }
        rows.sort_unstable_by_key(|r| (r.block, r.tier));
        rows
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

    /// Takes in what a store says of the engine; returns the kind of its group.
    fn learn(&mut self, s: &Stored<'_>) -> GroupKind {
        let p = &mut self.profile;
        if s.tier == Tier::Gpu {
            self.profile_changed |= p.learn_group(s.group, s.spec, s.block_size);
        } else if !s.tokens.is_empty() && !s.hashes.is_empty() {
            match s.content {
                // An offload connector's event is a chunk; an engine that names its blocks fully
                // in every tier moves them one by one and may be seen there first.
                Content::HashOnly => {
                    let n = gcd(p.chunk_described, s.hashes.len() as u32);
                    self.profile_changed |= n != p.chunk_described;
                    p.chunk_described = n;
                }
                Content::Complete if p.block_size == 0 => {
                    self.profile_changed |= p.learn_group(s.group, s.spec, s.block_size);
                }
                Content::Complete | Content::Canonical => {}
            }
        }
        if p.form == MmForm::Placed && names_items_barely(s) {
            p.form = MmForm::Bare;
            self.profile_changed = true;
        }
        p.groups.get(s.group as usize).copied().flatten().map_or(GroupKind::Full, |g| g.spec.kind)
    }

    /// What llm-d calls block `i` of a store: known from the root on without a break.
    fn llmd_key(
        &self,
        s: &Stored<'_>,
        i: usize,
        parent: Option<EngineHash>,
        keys: &[ExtraKey<'_>],
    ) -> Option<RequestKey> {
        let llmd = self.llmd.as_ref().filter(|_| s.is_dense())?;
        let before = match parent {
            None => llmd.root(s.lora.or(self.spec.lora.as_deref()).unwrap_or(&self.spec.model)),
            Some(p) => self.nodes.get(&p)?.llmd_key?,
        };
        let texts: SmallVec<[&str; 4]> = keys
            .iter()
            .filter_map(|k| match k {
                ExtraKey::Text(t) => Some(*t),
                ExtraKey::Item { identifier, .. } => Some(*identifier),
                ExtraKey::Digest(_) => None,
            })
            .collect();
        let at = i * s.block_size as usize;
        Some(llmd.next(before, &s.tokens[at..at + s.block_size as usize], &texts))
    }

    fn seed(&mut self, lora: Option<String>) -> Seed {
        if let Some((_, seed)) = self.seeds.iter().find(|(l, _)| *l == lora) {
            return *seed;
        }
        let seed = Namespace { salt: &self.spec.salt, model: &self.spec.model, lora: lora.as_deref() }.seed();
        // The cache is bounded: a publisher may name any number of adapters.
        if self.seeds.len() >= 64 {
            self.seeds.clear();
        }
        self.seeds.push((lora, seed));
        seed
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

    /// Records what block `h` is, and places it if what precedes it is placed.
    fn name(&mut self, h: EngineHash, name: Name, out: &mut impl Changes, done: &mut Applied) {
        let parent_place = match name.parent {
            None => Some(None),
            Some(p) => self.nodes.get(&p).and_then(|n| match n.place {
                Place::Known { seq, depth } => Some(Some((seq, depth))),
                Place::Orphan { .. } | Place::Nameless => None,
            }),
        };
        let place = match (name.content, parent_place) {
            (Named::Canonical { seq, depth }, at) => {
                let depth = depth.or(match at {
                    Some(None) => Some(0),
                    Some(Some((_, d))) => Some(d.saturating_add(1)),
                    None => None,
                });
                Place::Known { seq, depth: depth.unwrap_or(UNKNOWN_DEPTH) }
            }
            (Named::Local(local), Some(None)) => Place::Known { seq: name.seed.chain(None, local), depth: 0 },
            (Named::Local(local), Some(Some((seq, depth)))) => {
                Place::Known { seq: name.seed.chain(Some(seq), local), depth: depth.saturating_add(1) }
            }
            (Named::Local(local), None) => Place::Orphan { seed: name.seed, local },
        };
        let Some(node) = self.nodes.get_mut(&h) else { return };
        // What is known of its position (from a group that does not have the last word) is kept
        // while the new name adds nothing to it.
        if matches!((&place, &node.place), (Place::Orphan { .. }, Place::Known { .. })) {
            return;
        }
        let same_parent = node.parent == name.parent;
        node.parent = name.parent;
        node.llmd_key = name.llmd_key;
        node.block_size = name.block_size;
        node.named_by_full = name.by_full;
        match place {
            Place::Known { seq, depth } => self.place(h, seq, depth, out),
            Place::Orphan { .. } => {
                if let Some(parent) = name.parent
                    && !(same_parent && matches!(node.place, Place::Orphan { .. }))
                {
                    self.waiting.entry(parent).or_default().push(h);
                    done.orphans += 1;
                }
                node.place = place;
            }
            Place::Nameless => {}
        }
    }

    /// Puts `h` and all that waited for it where they belong.
    fn place(&mut self, h: EngineHash, seq: SeqHash, depth: u32, out: &mut impl Changes) {
        let mut todo = vec![(h, seq, depth)];
        while let Some((h, seq, depth)) = todo.pop() {
            let Some(node) = self.nodes.get_mut(&h) else { continue };
            let (old, mask) = (node.place, node.mask());
            if matches!(old, Place::Known { seq: s, .. } if s == seq) {
                continue;
            }
            let new = Place::Known { seq, depth };
            // Leaving an old place first, so that two places never claim one node.
            self.publish(h, old, Mask::default(), out);
            if let Some(node) = self.nodes.get_mut(&h) {
                node.place = new;
            }
            if !mask.is_empty() {
                if !matches!(old, Place::Known { .. }) {
                    self.stats.unplaced -= 1;
                }
                self.publish(h, new, mask, out);
            }
            if mask.lower() {
                self.learn_chunk(h);
            }
            for child in self.waiting.remove(&h).unwrap_or_default() {
                if let Some(Node { place: Place::Orphan { seed, local }, parent, .. }) =
                    self.nodes.get(&child)
                    && *parent == Some(h)
                {
                    todo.push((child, seed.chain(Some(seq), *local), depth.saturating_add(1)));
                }
            }
        }
    }

    /// Tells the shared map that node `h` at `place` now has `mask`.
    fn publish(&mut self, h: EngineHash, place: Place, mask: Mask, out: &mut impl Changes) {
        let Place::Known { seq, .. } = place else { return };
        if mask.is_empty() {
            let Some(here) = self.placed.get_mut(&seq) else { return };
            here.retain(|o| *o != h);
            if here.is_empty() {
                self.placed.remove(&seq);
                out.set(seq, Mask::default(), None);
                return;
            }
        } else {
            let here = self.placed.entry(seq).or_default();
            if !here.contains(&h) {
                here.push(h);
            }
        }
        // More than one engine hash stands for the same content where adapters share a name or
        // the wire version leaves out what tells the blocks apart.
        let here = &self.placed[&seq];
        let union = match here.as_slice() {
            [one] if *one == h => mask,
            many => many.iter().fold(Mask::default(), |m, o| m.union(self.mask_of(*o))),
        };
        let key = self.nodes.get(&h).and_then(|n| n.llmd_key);
        out.set(seq, union, key);
    }

    /// Learns the offload chunk from the depth of a bare hash in a lower tier: only the last
    /// block of a chunk is announced there, so every depth is a multiple of the chunk.
    fn learn_chunk(&mut self, h: EngineHash) {
        if self.profile.chunk_described != 0 {
            return;
        }
        if let Some(Node { place: Place::Known { depth, .. }, .. }) = self.nodes.get(&h)
            && *depth != UNKNOWN_DEPTH
        {
            let n = gcd(self.profile.chunk_by_depth, depth.saturating_add(1));
            self.profile_changed |= n != self.profile.chunk_by_depth;
            self.profile.chunk_by_depth = n;
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

/// Whether extra keys name multimodal items by identifier alone, as up to vLLM 0.18: text on a
/// block that is not the first, where no salt can be.
fn names_items_barely(s: &Stored<'_>) -> bool {
    (0..s.hashes.len()).any(|i| {
        let texts = s.extras(i).iter().filter(|k| matches!(k, ExtraKey::Text(_))).count();
        texts > usize::from(i == 0 && s.parent.is_none())
    })
}
