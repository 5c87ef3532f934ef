//! What has been learnt of one engine from its events: block size, groups, offload chunk.

use kvproto::event::Content;
use kvproto::hash::canonical::MmForm;
use kvproto::{ExtraKey, GroupKind, GroupSpec, Stored, Tier};
use smallvec::SmallVec;

/// KV-cache groups that one engine may have; events of further groups are refused.
pub(crate) const MAX_GROUPS: u32 = 28;

/// Where one holder has a block: one bit per device group and one per lower tier.
///
/// Bits 0 to 3 are CPU, disk, shared, unknown; bit 4 + g is device group g.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mask(pub u32);

impl Mask {
    /// Lower tiers that an engine can load from.
    const LOADABLE: u32 = 0b0111;
    const LOWER: u32 = 0b1111;

    /// The bit of a copy in `tier` (and device group `group`, which is below [`MAX_GROUPS`]).
    pub fn bit(tier: Tier, group: u32) -> Mask {
        match tier {
            Tier::Gpu => Mask(1 << (4 + group)),
            Tier::Cpu | Tier::Disk | Tier::Shared | Tier::Unknown => Mask(1 << (tier as u32 - 1)),
        }
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn union(self, other: Mask) -> Mask {
        Mask(self.0 | other.0)
    }

    pub fn contains(self, all: Mask) -> bool {
        self.0 & all.0 == all.0
    }

    /// Whether a copy lies in `tier`, in any group.
    pub fn has_tier(self, tier: Tier) -> bool {
        match tier {
            Tier::Gpu => self.0 & !Self::LOWER != 0,
            Tier::Cpu | Tier::Disk | Tier::Shared | Tier::Unknown => !self.is_disjoint(Mask::bit(tier, 0)),
        }
    }

    fn is_disjoint(self, other: Mask) -> bool {
        self.0 & other.0 == 0
    }

    /// Whether a tier that an engine can load from has it.
    pub fn loadable(self) -> bool {
        self.0 & Self::LOADABLE != 0
    }

    /// Device groups that have it.
    pub fn groups(self) -> impl Iterator<Item = u32> {
        (0..MAX_GROUPS).filter(move |g| self.0 & (1 << (4 + g)) != 0)
    }
}

/// One KV-cache group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub spec: GroupSpec,
    /// Tokens per block of this group; a multiple of the engine's hash block.
    pub block_size: u32,
}

/// What is known of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Profile {
    /// Tokens per block of the hash chain; 0 before the first store.
    pub block_size: u32,
    /// Whether `block_size` comes from a full-attention group, which has the last word.
    pub block_size_is_full: bool,
    /// Every block size seen, the first one first: those of full-attention groups where there
    /// are any, because a window group's larger blocks are not what the chain is made of.
    pub sizes: SmallVec<[u32; 2]>,
    /// By group index; `None` where no store has named it yet.
    pub groups: SmallVec<[Option<Group>; 2]>,
    /// How extra keys name multimodal items.
    pub form: MmForm,
    /// Blocks per offload chunk as events that describe themselves tell; 0 = none seen.
    pub chunk_described: u32,
    /// The same as the depths of bare hashes suggest: their greatest common divisor.
    pub chunk_by_depth: u32,
}

/// What a store tells of its engine, besides its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lesson {
    pub tier: Tier,
    /// Below [`MAX_GROUPS`].
    pub group: u32,
    pub spec: Option<GroupSpec>,
    pub block_size: u32,
    pub content: Content,
    /// How many blocks it names.
    pub blocks: u32,
    /// Whether there are tokens, too.
    pub has_tokens: bool,
    pub form: MmForm,
}

impl Lesson {
    pub fn of(s: &Stored<'_>) -> Lesson {
        Lesson {
            tier: s.tier,
            group: s.group,
            spec: s.spec,
            block_size: s.block_size,
            content: s.content,
            blocks: s.hashes.len() as u32,
            has_tokens: !s.tokens.is_empty(),
            form: if names_items_barely(s) { MmForm::Bare } else { MmForm::Placed },
        }
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

impl Profile {
    /// Takes in what a store says; returns the kind of its group, and whether anything changed.
    pub fn learn(&mut self, s: &Lesson) -> (GroupKind, bool) {
        let mut changed = false;
        if s.tier == Tier::Gpu {
            changed |= self.learn_group(s.group, s.spec, s.block_size);
        } else if (s.has_tokens || s.content == Content::Hashed) && s.blocks > 0 {
            match s.content {
                // An offload connector's event is a chunk; an engine that names its blocks fully
                // in every tier moves them one by one and may be seen there first.
                Content::HashOnly => {
                    let n = gcd(self.chunk_described, s.blocks);
                    changed |= n != self.chunk_described;
                    self.chunk_described = n;
                }
                Content::Complete | Content::Hashed if self.block_size == 0 => {
                    changed |= self.learn_group(s.group, s.spec, s.block_size);
                }
                Content::Complete | Content::Hashed | Content::Canonical => {}
            }
        }
        if self.form == MmForm::Placed && s.form == MmForm::Bare {
            self.form = MmForm::Bare;
            changed = true;
        }
        let group = self.groups.get(s.group as usize).copied().flatten();
        (group.map_or(GroupKind::Full, |g| g.spec.kind), changed)
    }

    /// Learns the offload chunk from one block of a lower tier before which `depth` blocks stand. Returns
    /// whether anything changed.
    pub fn learn_depth(&mut self, depth: u32) -> bool {
        if self.chunk_described != 0 {
            return false;
        }
        let n = gcd(self.chunk_by_depth, depth.saturating_add(1));
        let changed = n != self.chunk_by_depth;
        self.chunk_by_depth = n;
        changed
    }

    /// Whether blocks after a gap can matter to what the engine would count as cached.
    pub fn sees_past_gaps(&self, configured_chunk: Option<u32>) -> bool {
        let plain = |g: &Group| {
            g.spec.kind == GroupKind::Full && (g.block_size == 0 || g.block_size == self.block_size)
        };
        !self.groups.iter().flatten().all(plain) || self.chunk(configured_chunk) > 1
    }

    /// Takes in what a device store of `group` says. Returns whether anything changed.
    pub fn learn_group(&mut self, group: u32, spec: Option<GroupSpec>, block_size: u32) -> bool {
        let g = group as usize;
        if self.groups.len() <= g {
            self.groups.resize(g + 1, None);
        }
        let known = self.groups[g];
        let spec =
            spec.or(known.map(|k| k.spec)).unwrap_or(GroupSpec { kind: GroupKind::Full, window: None });
        let size = match known {
            Some(k) if k.block_size > 0 => k.block_size,
            _ => block_size,
        };
        let now = Some(Group { spec, block_size: size });
        let mut changed = known != now;
        self.groups[g] = now;
        if block_size > 0 {
            let full = spec.kind == GroupKind::Full;
            if full && !self.block_size_is_full {
                self.sizes.clear();
            }
            let counts = full || !self.block_size_is_full;
            if counts && !self.sizes.contains(&block_size) && self.sizes.len() < 16 {
                self.sizes.push(block_size);
                changed = true;
            }
            if self.block_size == 0 || (full && !self.block_size_is_full) {
                self.block_size = block_size;
                self.block_size_is_full = full;
                changed = true;
            }
        }
        changed
    }

    /// The block size to hash a prompt with: the one asked for where this engine uses it.
    pub fn block_size_for(&self, asked: Option<u32>) -> u32 {
        match asked {
            Some(bs) if self.sizes.contains(&bs) => bs,
            _ => self.block_size,
        }
    }

    pub fn has_full_group(&self) -> bool {
        self.groups.iter().flatten().any(|g| g.spec.kind == GroupKind::Full)
    }

    /// The device bits that must all be there for a block to count as held on the device:
    /// those of the full-attention groups, or of all groups where there are none.
    pub fn device_mask(&self) -> Mask {
        let of = |full_only: bool| {
            self.groups
                .iter()
                .enumerate()
                .filter_map(|(i, g)| g.map(|g| (i as u32, g)))
                .filter(|(_, g)| !full_only || g.spec.kind == GroupKind::Full)
                .fold(Mask::default(), |m, (i, _)| m.union(Mask::bit(Tier::Gpu, i)))
        };
        match of(true) {
            Mask(0) => match of(false) {
                Mask(0) => Mask::bit(Tier::Gpu, 0),
                all => all,
            },
            full => full,
        }
    }

    /// Blocks per offload chunk.
    pub fn chunk(&self, configured: Option<u32>) -> u32 {
        match (configured, self.chunk_described, self.chunk_by_depth) {
            (Some(n), _, _) => n.max(1),
            (None, 0, 0) => 1,
            (None, 0, n) | (None, n, _) => n,
        }
    }
}

/// Greatest common divisor; 0 is neutral.
pub(crate) fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
