//! What does a store tell of its engine, besides its blocks?

use kvproto::hash::canonical::{Namespace, Seed};
use kvproto::hash::llmd::RequestKey;
use kvproto::{ExtraKey, GroupKind, Stored};
use smallvec::SmallVec;

use super::{Desk, Holder};
use crate::forest::UNKNOWN_DEPTH;
use crate::profile::Lesson;

impl Holder {
    /// Takes in what a store says of the engine; returns the kind of its group.
    pub(super) fn learn(&mut self, s: &Stored<'_>) -> GroupKind {
        let (kind, changed) = self.profile.learn(&Lesson::of(s));
        self.profile_changed |= changed;
        kind
    }

    /// What llm-d calls each block of a store, where the deployment asks by that; 0 for a block that
    /// is not known from the root on without a break.
    pub(super) fn llmd_keys(&self, s: &Stored<'_>, desk: &Desk<'_>, out: &mut Vec<u64>) {
        out.clear();
        let Some(llmd) = &self.llmd else { return };
        let mut before = match s.parent {
            None => Some(llmd.root(s.lora.or(self.spec.lora.as_deref()).unwrap_or(&self.spec.model))),
            Some(p) => desk.forests.get(self.domain).key_of(desk.guard, p.0).map(RequestKey),
        };
        let n = s.block_size as usize;
        for i in 0..s.hashes.len() {
            let texts: SmallVec<[&str; 4]> = s
                .extras(i)
                .iter()
                .filter_map(|k| match k {
                    ExtraKey::Text(t) => Some(*t),
                    ExtraKey::Item { identifier, .. } => Some(*identifier),
                    ExtraKey::Digest(_) => None,
                })
                .chain(s.cache_salt.filter(|_| i == 0 && s.parent.is_none()))
                .collect();
            let tokens = s.tokens.get(i * n..(i + 1) * n).filter(|t| !t.is_empty());
            before = before.zip(tokens).map(|(b, tokens)| llmd.next(b, tokens, &texts));
            out.push(before.map_or(0, |k| k.0));
        }
    }

    /// Learns the offload chunk from where blocks in a lower tier stand: of bare hashes only the last
    /// block of a chunk is announced there, so every depth is a multiple of the chunk.
    pub(super) fn learn_chunks(&mut self, s: &Stored<'_>, desk: &Desk<'_>) {
        for &h in s.hashes {
            if self.profile.chunk_described != 0 || self.profile.chunk_by_depth == 1 {
                return;
            }
            let place = match self.odd.place(h, self.domain, desk) {
                Some(place) => Some((self.domain, place)),
                None if self.odd.knows(h) => None,
                None => self.find(h, desk),
            };
            if let Some((domain, p)) = place {
                let depth = desk.forests.get(domain).depth(p.strand);
                self.learn_depth(if depth == UNKNOWN_DEPTH { depth } else { depth.saturating_add(p.offset) });
            }
        }
    }

    /// The same from one block before which `depth` blocks stand.
    pub(super) fn learn_depth(&mut self, depth: u32) {
        if depth != UNKNOWN_DEPTH {
            self.profile_changed |= self.profile.learn_depth(depth);
        }
    }

    pub(super) fn seed(&mut self, lora: Option<String>) -> Seed {
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
}
