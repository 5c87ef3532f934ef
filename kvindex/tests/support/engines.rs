//! Engines of five kinds that make up events from a seed.

use kvproto::event::{BatchBuilder, Content, StoredFields};
use kvproto::hash::canonical::MmItem;
use kvproto::{EngineHash, ExtraKey, GroupKind, GroupSpec, Tier};

/// xorshift64*: small, seeded, the same everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What names a sequence besides its tokens.
#[derive(Clone, Copy)]
pub struct Flavour {
    pub lora: Option<&'static str>,
    pub salt: Option<&'static str>,
    pub item: Option<MmItem<'static>>,
}

pub const FLAVOURS: [Flavour; 5] = [
    Flavour { lora: None, salt: None, item: None },
    Flavour { lora: None, salt: None, item: None },
    Flavour { lora: Some("a"), salt: None, item: None },
    Flavour { lora: None, salt: Some("s"), item: None },
    Flavour { lora: None, salt: None, item: Some(MmItem { identifier: "img", offset: 3, length: 4 }) },
];

/// The mode of an engine that tells every sequence from its root.
pub const ROOTED: u64 = 5;

/// An engine of the kind given by `mode`; its hashes are a function of content and `hash_seed`.
pub struct Engine {
    pub mode: u64,
    pub block: u32,
    pub hash_seed: u64,
    /// Copies it has.
    pub stored: Vec<(EngineHash, Tier, u32)>,
    /// Adapters that go by one name: each makes another hash of the same content.
    pub adapters: u64,
}

impl Engine {
    fn keys(&self, f: &Flavour, i: usize) -> Vec<ExtraKey<'static>> {
        let mut keys = vec![];
        let from = (i as u32 * self.block) as i64;
        if let Some(m) = f.item {
            let at = i64::from(m.offset);
            if at < from + i64::from(self.block) && at + i64::from(m.length) > from {
                keys.push(ExtraKey::Item { identifier: m.identifier, offset: at - from });
            }
        }
        if let (0, Some(s)) = (i, f.salt) {
            keys.push(ExtraKey::Text(s));
        }
        keys
    }

    /// The engine's hash of block `i` and its prefix.
    pub fn hash(&self, tokens: &[u32], f: &Flavour, i: usize, adapter: u64) -> EngineHash {
        // Far apart for seeds that are not: names of engines with other seeds never meet.
        let mut h = (self.hash_seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31);
        let mut mix = |x: u64| h = (h ^ x).wrapping_mul(0xFF51_AFD7_ED55_8CCD).rotate_left(29);
        mix(f.lora.map_or(1, |_| 2 + adapter));
        mix(f.salt.map_or(1, |_| 2));
        for t in &tokens[..(i + 1) * self.block as usize] {
            mix(u64::from(*t) + 7);
        }
        for b in 0..=i {
            for k in self.keys(f, b) {
                if let ExtraKey::Item { offset, .. } = k {
                    mix((offset as u64).wrapping_add(100));
                }
            }
        }
        EngineHash(h)
    }

    /// One random event into `b`.
    pub fn event(&mut self, rng: &mut Rng, b: &mut BatchBuilder<'static>) {
        match rng.below(20) {
            0 if rng.one_in(4) => {
                let tier = [None, Some(Tier::Gpu), Some(Tier::Cpu)][rng.below(3) as usize];
                b.cleared(tier);
                self.stored.retain(|(_, t, _)| tier.is_some_and(|x| x != *t));
            }
            0..=8 if !self.stored.is_empty() => {
                let at = rng.below(self.stored.len() as u64) as usize;
                let (h, tier, group) = self.stored.swap_remove(at);
                b.removed(&[h], tier, group);
            }
            9 => {
                b.removed(&[EngineHash(rng.next())], Tier::Gpu, 0);
            }
            _ => self.store(rng, b),
        }
    }

    fn store(&mut self, rng: &mut Rng, b: &mut BatchBuilder<'static>) {
        let f = FLAVOURS[rng.below(5) as usize];
        let adapter = if self.adapters > 1 { rng.below(self.adapters) } else { 0 };
        let total = 1 + rng.below(6) as usize;
        let n = self.block as usize;
        // Few distinct tokens, so that sequences share prefixes.
        let tokens: Vec<u32> = (0..total * n).map(|_| u32::from(rng.one_in(9))).collect();
        // One that tells every sequence from its root leaves no block without a place.
        let first = if self.mode == ROOTED { 0 } else { rng.below(total as u64) as usize };
        let hashes: Vec<EngineHash> = (first..total).map(|i| self.hash(&tokens, &f, i, adapter)).collect();
        let extras: Vec<Vec<ExtraKey<'static>>> = (first..total).map(|i| self.keys(&f, i)).collect();
        let fields = StoredFields {
            parent: (first > 0).then(|| self.hash(&tokens, &f, first - 1, adapter)),
            block_size: self.block,
            lora: f.lora,
            ..StoredFields::default()
        };
        let body = &tokens[first * n..];
        let full = GroupSpec { kind: GroupKind::Full, window: None };
        match (self.mode, rng.below(5)) {
            // A hybrid model: every step stores in both groups, the window group the tail only.
            (1, _) => {
                b.stored(StoredFields { group: 1, spec: Some(full), ..fields }, &hashes, body, &extras);
                self.stored.extend(hashes.iter().map(|h| (*h, Tier::Gpu, 1)));
                let spec = match rng.below(2) {
                    _ if self.hash_seed.is_multiple_of(2) => {
                        GroupSpec { kind: GroupKind::Mamba, window: None }
                    }
                    _ => GroupSpec { kind: GroupKind::SlidingWindow, window: Some(2 * self.block + 1) },
                };
                let keep = rng.below(hashes.len() as u64 + 1) as usize;
                let (h, x) = (&hashes[keep..], &extras[keep..]);
                b.stored(StoredFields { group: 0, spec: Some(spec), ..fields }, h, body, x);
                self.stored.extend(h.iter().map(|h| (*h, Tier::Gpu, 0)));
            }
            // Chunked local attention beside full attention.
            (2, 0..=1) => {
                let spec = Some(GroupSpec { kind: GroupKind::ChunkedLocal, window: None });
                b.stored(StoredFields { group: 0, spec, ..fields }, &hashes, body, &extras);
                self.stored.extend(hashes.iter().map(|h| (*h, Tier::Gpu, 0)));
            }
            (2, _) => {
                b.stored(StoredFields { group: 1, spec: Some(full), ..fields }, &hashes, body, &extras);
                self.stored.extend(hashes.iter().map(|h| (*h, Tier::Gpu, 1)));
            }
            // Bare hashes of an offload tier, the last of each chunk of two.
            (3, 0..=1) => {
                let fields =
                    StoredFields { tier: Tier::Cpu, content: Content::HashOnly, ..StoredFields::default() };
                let ends: Vec<EngineHash> = (first..total)
                    .filter(|i| i % 2 == 1)
                    .map(|i| self.hash(&tokens, &f, i, adapter))
                    .collect();
                b.stored(fields, &ends, &[], &[]);
                self.stored.extend(ends.iter().map(|h| (*h, Tier::Cpu, 0)));
            }
            // Lower tiers that describe their blocks.
            (4, 0..=2) => {
                let tier = [Tier::Cpu, Tier::Disk, Tier::Shared, Tier::Unknown][rng.below(4) as usize];
                b.stored(StoredFields { tier, ..fields }, &hashes, body, &extras);
                self.stored.extend(hashes.iter().map(|h| (*h, tier, 0)));
            }
            _ => {
                b.stored(fields, &hashes, body, &extras);
                self.stored.extend(hashes.iter().map(|h| (*h, Tier::Gpu, 0)));
            }
        }
    }
}
