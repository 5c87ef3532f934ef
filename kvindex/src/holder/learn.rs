//! What does a store tell of its engine, besides its blocks?

use kvproto::event::Content;
use kvproto::hash::canonical::{MmForm, Namespace, Seed};
use kvproto::hash::llmd::RequestKey;
use kvproto::{EngineHash, ExtraKey, GroupKind, Stored, Tier};
use smallvec::SmallVec;

use super::Holder;
use crate::profile::gcd;

impl Holder {
    /// Takes in what a store says of the engine; returns the kind of its group.
    pub(super) fn learn(&mut self, s: &Stored<'_>) -> GroupKind {
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
    pub(super) fn llmd_key(
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
