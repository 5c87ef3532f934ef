//! What does a store tell of its engine, besides its blocks?

use kvproto::event::Content;
use kvproto::hash::canonical::{MmForm, Namespace, Seed};
use kvproto::hash::llmd::RequestKey;
use kvproto::{ExtraKey, GroupKind, Stored, Tier};
use smallvec::SmallVec;

use super::{Desk, Holder};
use crate::forest::UNKNOWN_DEPTH;
use crate::profile::gcd;

impl Holder {
    /// Takes in what a store says of the engine; returns the kind of its group.
    pub(super) fn learn(&mut self, s: &Stored<'_>) -> GroupKind {
        let p = &mut self.profile;
        if s.tier == Tier::Gpu {
            self.profile_changed |= p.learn_group(s.group, s.spec, s.block_size);
        } else if (!s.tokens.is_empty() || s.content == Content::Hashed) && !s.hashes.is_empty() {
            match s.content {
                // An offload connector's event is a chunk; an engine that names its blocks fully
                // in every tier moves them one by one and may be seen there first.
                Content::HashOnly => {
                    let n = gcd(p.chunk_described, s.hashes.len() as u32);
                    self.profile_changed |= n != p.chunk_described;
                    p.chunk_described = n;
                }
                Content::Complete | Content::Hashed if p.block_size == 0 => {
                    self.profile_changed |= p.learn_group(s.group, s.spec, s.block_size);
                }
                Content::Complete | Content::Hashed | Content::Canonical => {}
            }
        }
        if p.form == MmForm::Placed && names_items_barely(s) {
            p.form = MmForm::Bare;
            self.profile_changed = true;
        }
        p.groups.get(s.group as usize).copied().flatten().map_or(GroupKind::Full, |g| g.spec.kind)
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
        if self.profile.chunk_described == 0 && depth != UNKNOWN_DEPTH {
            let n = gcd(self.profile.chunk_by_depth, depth.saturating_add(1));
            self.profile_changed |= n != self.profile.chunk_by_depth;
            self.profile.chunk_by_depth = n;
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

/// Whether extra keys name multimodal items by identifier alone, as up to vLLM 0.18: text on a
/// block that is not the first, where no salt can be.
fn names_items_barely(s: &Stored<'_>) -> bool {
    (0..s.hashes.len()).any(|i| {
        let texts = s.extras(i).iter().filter(|k| matches!(k, ExtraKey::Text(_))).count();
        texts > usize::from(i == 0 && s.parent.is_none())
    })
}
