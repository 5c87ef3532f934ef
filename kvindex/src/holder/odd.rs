//! Blocks that do not fit into the forest: held, but standing nowhere yet, or called by a second name.
//!
//! A child can come before its parent, a bare name before its content; they wait here, under the
//! parent's name or their own. And one content can have several names at one engine (two adapters of
//! one name): then every name that this engine has for the block is counted here, and the forest knows
//! only that it holds it. Blocks that lost their last copy stay a while, as [`Known`] goes on to say
//! what they are.

use std::collections::VecDeque;

use kvproto::hash::canonical::Seed;
use kvproto::{EngineHash, LocalHash, Tier};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::store::{Copy, Put, after};
use super::{Desk, Holder};
use crate::forest::{Held, How, Look, Piece, Place, Plane, Slot, Span, Told};
use crate::profile::Mask;
use crate::types::Applied;

/// Blocks without a copy that are kept.
const MAX_GHOSTS: usize = 1 << 14;

/// A holder's odd blocks.
#[derive(Debug, Default)]
pub(super) struct Odd {
    nodes: FxHashMap<EngineHash, Node>,
    /// Parent → those that wait for it.
    waiting: FxHashMap<EngineHash, Vec<EngineHash>>,
    /// Places that have second names, and all names this holder has for them.
    at: FxHashMap<(usize, Place), SmallVec<[EngineHash; 2]>>,
    ghosts: VecDeque<EngineHash>,
    held: usize,
}

#[derive(Debug)]
pub(super) struct Node {
    pub known: Known,
    pub copies: Copies,
}

/// How often a block lies in each tier and group.
pub(super) type Copies = Vec<(Copy, u32)>;

/// What is known of an odd block.
#[derive(Clone, Copy, Debug)]
pub(super) enum Known {
    /// Only its name.
    Nothing,
    /// What is in it and what comes before it, but not where that is.
    Orphan { parent: EngineHash, seed: Seed, local: LocalHash, block_size: u32 },
    /// Where it is. The number is the strand's generation.
    Placed { domain: usize, place: Place, generation: u32 },
}

fn mask(copies: &Copies) -> Mask {
    copies.iter().fold(Mask::default(), |m, (c, _)| m.union(Mask::bit(c.tier, c.group)))
}

impl Odd {
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
    pub fn knows(&self, h: EngineHash) -> bool {
        self.nodes.contains_key(&h)
    }
    /// Whether any copy of `h` is held.
    pub fn holds(&self, h: EngineHash) -> bool {
        self.nodes.get(&h).is_some_and(|n| !n.copies.is_empty())
    }
    /// Blocks held.
    pub fn held(&self) -> usize {
        self.held
    }
    /// Places held.
    pub fn places(&self) -> usize {
        self.at.values().filter(|names| names.iter().any(|h| self.holds(*h))).count()
    }
    pub fn is_at(&self, domain: usize, place: Place) -> bool {
        !self.at.is_empty() && self.at.contains_key(&(domain, place))
    }
    pub fn iter(&self) -> impl Iterator<Item = (EngineHash, &Node)> {
        self.nodes.iter().map(|(h, n)| (*h, n))
    }
    pub fn node(&self, h: EngineHash) -> Option<&Node> {
        self.nodes.get(&h)
    }
    /// All names; those that wait for one parent in their order.
    pub fn hashes(&self) -> Vec<EngineHash> {
        let waits = |n: &Node| matches!(n.known, Known::Orphan { .. });
        let others = self.nodes.iter().filter(|(_, n)| !waits(n)).map(|(h, _)| *h);
        self.waiting.values().flatten().copied().chain(others).collect()
    }
    pub fn ghosts(&self) -> impl Iterator<Item = EngineHash> + '_ {
        self.ghosts.iter().copied()
    }
    pub fn set_ghosts(&mut self, ghosts: Vec<EngineHash>) {
        self.ghosts = ghosts.into();
    }
    /// Places that have second names.
    pub fn at_places(&self) -> impl Iterator<Item = (usize, Place)> + '_ {
        self.at.keys().copied()
    }
    pub fn mask_of(&self, h: EngineHash) -> Mask {
        self.nodes.get(&h).map_or(Mask::default(), |n| mask(&n.copies))
    }

    /// Where `h` is, if that still is what it was.
    pub fn place(&self, h: EngineHash, domain: usize, desk: &Desk<'_>) -> Option<Place> {
        match self.nodes.get(&h)?.known {
            Known::Placed { domain: d, place, generation } if d == domain => {
                desk.forests.get(d).is_there(desk.guard, place, generation).then_some(place)
            }
            Known::Placed { .. } | Known::Nothing | Known::Orphan { .. } => None,
        }
    }
    pub fn is_placed(&self, h: EngineHash, domain: usize, desk: &Desk<'_>) -> bool {
        self.place(h, domain, desk).is_some()
    }

    pub fn insert(&mut self, h: EngineHash, known: Known) {
        self.nodes.insert(h, Node { known, copies: Vec::new() });
    }

    /// Adds a block that waits for its parent.
    pub fn insert_orphan(
        &mut self,
        h: EngineHash,
        parent: EngineHash,
        seed: Seed,
        local: LocalHash,
        block_size: u32,
    ) {
        self.insert(h, Known::Orphan { parent, seed, local, block_size });
        self.waiting.entry(parent).or_default().push(h);
    }

    /// Notes that `h` waits for its parent. False where it did already.
    pub fn wait(&mut self, h: EngineHash, parent: Option<EngineHash>, told: &Told<'_>) -> bool {
        let Some(parent) = parent else { return false };
        let known = Known::Orphan {
            parent,
            seed: Seed(told.seed),
            local: LocalHash(told.locals[0]),
            block_size: told.block_size,
        };
        let node = self.nodes.entry(h).or_insert(Node { known: Known::Nothing, copies: Vec::new() });
        let waits = matches!(node.known, Known::Orphan { parent: p, .. } if p == parent);
        let before = std::mem::replace(&mut node.known, known);
        if waits {
            return false;
        }
        self.unlink(h, before);
        self.waiting.entry(parent).or_default().push(h);
        true
    }

    /// Takes `h` out.
    pub fn take(&mut self, h: EngineHash) -> Option<Node> {
        let node = self.nodes.remove(&h)?;
        self.unlink(h, node.known);
        Some(node)
    }

    fn unlink(&mut self, h: EngineHash, known: Known) {
        match known {
            Known::Nothing => {}
            Known::Orphan { parent, .. } => {
                if let Some(waiting) = self.waiting.get_mut(&parent) {
                    waiting.retain(|w| *w != h);
                    if waiting.is_empty() {
                        self.waiting.remove(&parent);
                    }
                }
            }
            Known::Placed { domain, place, .. } => {
                if let Some(names) = self.at.get_mut(&(domain, place)) {
                    names.retain(|n| *n != h);
                    if names.is_empty() {
                        self.at.remove(&(domain, place));
                    }
                }
            }
        }
    }

    /// Takes what is counted here out of what the forest says of a span.
    pub fn discount(
        &self,
        domain: usize,
        strand: u32,
        span: Span,
        slot: Slot,
        look: &Look<'_>,
        held: &mut Held,
    ) {
        for (d, p) in self.at.keys() {
            if *d == domain && p.strand == strand && p.offset >= span.0 && p.offset < span.1 {
                let here = look.held(slot, (p.offset, p.offset + 1));
                held.any -= here.any;
                held.by_tier.iter_mut().zip(here.by_tier).for_each(|(n, m)| *n -= m);
            }
        }
    }

    /// Forgets where blocks are that the index drops.
    pub fn forget_places(&mut self, domain: usize, strand: u32, span: Span) {
        let gone: Vec<_> = self
            .at
            .keys()
            .filter(|(d, p)| *d == domain && p.strand == strand && p.offset >= span.0 && p.offset < span.1)
            .copied()
            .collect();
        for key in gone {
            for h in self.at.remove(&key).unwrap_or_default() {
                if let Some(node) = self.nodes.get_mut(&h) {
                    node.known = Known::Nothing;
                }
            }
        }
    }
}

impl Holder {
    /// Takes what was counted of a node that is odd no more out of the counts; returns its copies.
    pub(super) fn forget_odd(&mut self, node: Node) -> Copies {
        self.count_odd(&node.known, mask(&node.copies), Mask::default());
        node.copies
    }

    /// Keeps the counts in step with an odd block whose mask changed.
    fn count_odd(&mut self, known: &Known, before: Mask, after: Mask) {
        let step = |n: &mut u64, before: bool, after: bool| match (before, after) {
            (false, true) => *n += 1,
            (true, false) => *n -= 1,
            (true, true) | (false, false) => {}
        };
        let (was, is) = (!before.is_empty(), !after.is_empty());
        step(&mut self.stats.blocks, was, is);
        if !matches!(known, Known::Placed { .. }) {
            step(&mut self.stats.unplaced, was, is);
        }
        for (n, tier) in self.stats.by_tier.iter_mut().zip(Tier::ALL) {
            step(n, before.has_tier(tier), after.has_tier(tier));
        }
        match (was, is) {
            (false, true) => self.odd.held += 1,
            (true, false) => self.odd.held -= 1,
            (true, true) | (false, false) => {}
        }
    }

    /// One more copy of an odd block.
    pub(super) fn odd_stored(&mut self, h: EngineHash, copy: Copy, desk: &mut Desk<'_>, done: &mut Applied) {
        self.odd_add(h, copy, 1, desk);
        done.stored += 1;
    }

    pub(super) fn odd_add(&mut self, h: EngineHash, copy: Copy, times: u32, desk: &mut Desk<'_>) {
        let Some(node) = self.odd.nodes.get_mut(&h) else { return };
        let before = mask(&node.copies);
        match node.copies.iter_mut().find(|(c, _)| (c.tier, c.group) == (copy.tier, copy.group)) {
            Some((_, n)) => *n = n.saturating_add(times),
            None => node.copies.push((copy, times)),
        }
        let (known, after) = (node.known, mask(&node.copies));
        self.count_odd(&known, before, after);
        if let Known::Placed { domain, place, .. } = known
            && after != before
        {
            self.show(domain, place, copy.plane(), desk);
        }
    }

    /// Makes the forest know that this holder has a block in a plane.
    fn show(&mut self, domain: usize, place: Place, plane: Plane, desk: &mut Desk<'_>) {
        let span = (place.offset, place.offset + 1);
        let held = |desk: &Desk<'_>| {
            desk.forests.get(domain).look(desk.guard, place.strand).map(|l| {
                let mut here = l.planes().filter(|(p, _)| *p == plane);
                let here = here.any(|(_, v)| !v.held(self.slot, span, l.len).is_empty());
                (l.has(self.slot), here)
            })
        };
        if let Some((in_strand, here)) = held(desk) {
            if !in_strand {
                self.strands[1].all.push(place.strand);
            }
            if !here {
                desk.pen(domain).hold(self.slot, plane, place.strand, span);
            }
        }
    }

    pub(super) fn odd_removed(
        &mut self,
        h: EngineHash,
        tier: Tier,
        group: u32,
        desk: &mut Desk<'_>,
        done: &mut Applied,
    ) {
        let Some(node) = self.odd.nodes.get_mut(&h) else { return };
        let at = node.copies.iter().position(|(c, _)| c.tier == tier && c.group == group);
        let Some(at) = at else {
            done.unknown_removed += 1;
            return;
        };
        done.removed += 1;
        if node.copies[at].1 > 1 {
            node.copies[at].1 -= 1;
            return;
        }
        let before = mask(&node.copies);
        let (copy, _) = node.copies.remove(at);
        let (known, after) = (node.known, mask(&node.copies));
        self.count_odd(&known, before, after);
        self.hide(known, copy.plane(), desk);
        if after.is_empty() {
            self.haunt(h);
        }
    }

    /// Takes a block out of a plane in the forest, unless another name of it is there.
    fn hide(&mut self, known: Known, plane: Plane, desk: &mut Desk<'_>) {
        let Known::Placed { domain, place, .. } = known else { return };
        let names = self.odd.at.get(&(domain, place));
        let other = names.is_some_and(|n| n.iter().any(|h| self.odd.mask_of(*h).contains(plane.mask())));
        if !other {
            let span = (place.offset, place.offset + 1);
            desk.pen(domain).drop_copy(self.slot, plane, place.strand, span);
            self.gone_from(domain, place.strand, desk);
        }
    }

    pub(super) fn odd_cleared(&mut self, tier: Option<Tier>, desk: &mut Desk<'_>) {
        let all: Vec<EngineHash> = self.odd.nodes.keys().copied().collect();
        for h in all {
            let Some(node) = self.odd.nodes.get_mut(&h) else { continue };
            let before = mask(&node.copies);
            let gone: Copies =
                node.copies.extract_if(.., |(c, _)| tier.is_none_or(|t| t == c.tier)).collect();
            let (known, after) = (node.known, mask(&node.copies));
            self.count_odd(&known, before, after);
            for (copy, _) in gone {
                self.hide(known, copy.plane(), desk);
            }
            if after.is_empty() && !before.is_empty() {
                self.haunt(h);
            }
        }
    }

    /// Keeps a node that lost its last copy for a while, and lets the oldest such node go.
    fn haunt(&mut self, h: EngineHash) {
        self.odd.ghosts.push_back(h);
        while self.odd.ghosts.len() > MAX_GHOSTS {
            let Some(old) = self.odd.ghosts.pop_front() else { return };
            if !self.odd.holds(old) {
                self.odd.take(old);
            }
        }
    }

    /// From now on `h` is a name of the block at `place` beside others, all of which are counted here.
    pub(super) fn odd_named(&mut self, h: EngineHash, place: Place, copies: Copies, desk: &mut Desk<'_>) {
        let domain = self.domain;
        if !self.odd.is_at(domain, place) {
            // What the forest's own name of it counted is counted here from now on.
            let regular = self.copies_at(place, desk);
            if !regular.is_empty() {
                let forest = desk.forests.get(domain);
                let look = forest.look(desk.guard, place.strand);
                let name = look.and_then(|l| forest.names(l).get(place.offset as usize).copied());
                self.drop_at(place, desk);
                if let Some(name) = name {
                    self.place_odd(EngineHash(name), place, desk);
                    regular.into_iter().for_each(|(c, n)| self.odd_add(EngineHash(name), c, n, desk));
                }
            }
        }
        if !self.odd.knows(h) || !self.odd.is_placed(h, domain, desk) {
            self.place_odd(h, place, desk);
        }
        copies.into_iter().for_each(|(c, n)| self.odd_add(h, c, n, desk));
    }

    fn place_odd(&mut self, h: EngineHash, place: Place, desk: &mut Desk<'_>) {
        let domain = self.domain;
        let copies = self.odd.take(h).map(|n| self.forget_odd(n)).unwrap_or_default();
        let generation = desk.forests.get(domain).generation(place.strand);
        self.odd.insert(h, Known::Placed { domain, place, generation });
        self.odd.at.entry((domain, place)).or_default().push(h);
        copies.into_iter().for_each(|(c, n)| self.odd_add(h, c, n, desk));
    }

    /// The copies that the forest counts for this holder at a place of its domain.
    pub(super) fn copies_at(&self, place: Place, desk: &mut Desk<'_>) -> Copies {
        let Some(look) = desk.forests.get(self.domain).look(desk.guard, place.strand) else { return vec![] };
        let span = (place.offset, place.offset + 1);
        let pen = desk.pen(self.domain);
        let here = look.planes().filter(|(_, v)| !v.held(self.slot, span, look.len).is_empty());
        here.map(|(p, _)| {
            let mask = p.mask();
            let tier = Tier::ALL.into_iter().find(|t| mask.has_tier(*t)).unwrap_or(Tier::Unknown);
            let group = mask.groups().next().unwrap_or(0);
            (Copy { tier, group }, pen.copies(self.slot, place.strand, p.bit, place.offset))
        })
        .collect()
    }

    /// Takes all copies at a place of this holder's domain out of the forest.
    pub(super) fn drop_at(&mut self, place: Place, desk: &mut Desk<'_>) {
        let span = (place.offset, place.offset + 1);
        let loss = crate::forest::Loss { slot: self.slot, strand: place.strand, span };
        self.changing(self.domain, place.strand, span, desk, |pen, _| pen.lose(loss));
        self.gone_from(self.domain, place.strand, desk);
    }

    /// Makes the name of a block free for another block.
    pub(super) fn rename(&mut self, place: Place, h: EngineHash, desk: &mut Desk<'_>) {
        desk.pen(self.domain).forget_name(h.0, place);
    }

    /// Gives the forest copies that were counted here.
    pub(super) fn hold_copies(&mut self, h: EngineHash, piece: Piece, copies: &Copies, desk: &mut Desk<'_>) {
        let place = Place { strand: piece.strand, offset: piece.span.0 };
        let mut piece = piece;
        let mut done = Applied::default();
        for (copy, n) in copies {
            if self.odd.is_at(self.domain, place) {
                self.odd_named(h, place, vec![(*copy, *n)], desk);
                continue;
            }
            for _ in 0..*n {
                self.hold(self.domain, piece, *copy, desk, &mut done);
                piece.how = How::Found;
            }
        }
        if copies.iter().any(|(c, _)| c.tier != Tier::Gpu) {
            self.learn_depth(desk.forests.get(self.domain).depth(place.strand).saturating_add(place.offset));
        }
    }

    /// Makes `h` wait for its parent, with copies that it has already.
    pub(super) fn odd_waits(
        &mut self,
        h: EngineHash,
        parent: Option<EngineHash>,
        told: &Told<'_>,
        copies: Copies,
        desk: &mut Desk<'_>,
    ) {
        self.odd.wait(h, parent, told);
        copies.into_iter().for_each(|(c, n)| self.odd_add(h, c, n, desk));
    }

    /// Puts all that waited for `h`, which is placed now, where they belong.
    pub(super) fn wake(&mut self, h: EngineHash, desk: &mut Desk<'_>, done: &mut Applied) {
        let mut todo = self.odd.waiting.remove(&h).unwrap_or_default();
        let mut pieces = Vec::new();
        while let Some(h) = todo.pop() {
            let Some(Node { known: Known::Orphan { parent, seed, local, block_size }, .. }) =
                self.odd.nodes.get(&h)
            else {
                continue;
            };
            let (parent, seed, local, block_size) = (*parent, *seed, *local, *block_size);
            let Some(at) = self.place_after(Some(parent), desk) else { continue };
            let Some(node) = self.odd.nodes.remove(&h) else { continue };
            let copies = self.forget_odd(node);
            let told = Told {
                locals: &[local.0],
                names: &[h.0],
                keys: if self.llmd.is_some() { &[0] } else { &[] },
                seed: seed.0,
                block_size,
                creator: self.creator,
                slot: self.slot,
                device: false,
                unnamed: &[],
            };
            match self.put_one(at, &told, false, &mut pieces, desk, done) {
                Some(Put::At(piece)) => {
                    self.hold_copies(h, piece, &copies, desk);
                    let place = Place { strand: piece.strand, offset: piece.span.0 };
                    debug_assert_eq!(after(place).offset, piece.span.1);
                    desk.pen(self.domain).let_go(piece.strand);
                }
                Some(Put::SecondName(place)) => self.odd_named(h, place, copies, desk),
                Some(Put::Nowhere) => {
                    self.odd_waits(h, Some(parent), &told, copies, desk);
                    continue;
                }
                None => {}
            }
            todo.extend(self.odd.waiting.remove(&h).unwrap_or_default());
        }
    }
}
