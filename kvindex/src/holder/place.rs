//! Where does a block stand, and who is told when that changes?
//!
//! Names come in any order: a child may come before its parent, a bare hash before its content,
//! a window group's word before that of the full-attention group, which counts. Nodes wait under
//! their parent's hash until it is placed.

use kvproto::EngineHash;
use kvproto::SeqHash;

use super::{Changes, Holder, Name, Named, Node, Place, UNKNOWN_DEPTH};
use crate::profile::{Mask, gcd};
use crate::types::Applied;

impl Holder {
    /// Records what block `h` is, and places it if what precedes it is placed.
    pub(super) fn name(&mut self, h: EngineHash, name: Name, out: &mut impl Changes, done: &mut Applied) {
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
    pub(super) fn publish(&mut self, h: EngineHash, place: Place, mask: Mask, out: &mut impl Changes) {
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
    pub(super) fn learn_chunk(&mut self, h: EngineHash) {
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
}
