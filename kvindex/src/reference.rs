//! The truth: one engine's cache in the slowest and most obvious way.
//!
//! Blocks are remembered by what is in them (parent hash, tokens, adapter, extra keys), copies
//! by counting, prompts by walking block after block. Nothing is shared with the index but the
//! types of [`crate::types`]: not a hash, not a mask, not a run. Tests compare the two after
//! random events, and this model with what real engines reported.

use std::collections::{BTreeMap, HashMap};

use kvproto::event::Content;
use kvproto::{Batch, EngineHash, Event, ExtraKey, GroupKind, Stored, Tier};

use crate::types::{HolderSpec, Prompt, Query};

/// The numbers of a [`crate::Score`], without who.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// See [`crate::Score::cached`].
    pub cached: u32,
    /// See [`crate::Score::by_tier`].
    pub by_tier: [u32; 5],
    /// See [`crate::Score::cumulative`].
    pub cumulative: [u32; 5],
    /// See [`crate::Score::below_ram`].
    pub below_ram: u32,
    /// See [`crate::Score::weighted`].
    pub weighted: f64,
    /// See [`crate::Score::cached_tokens`].
    pub cached_tokens: u64,
}

/// What is in a block.
type Content4 = (Option<EngineHash>, Vec<u32>, Option<String>, Vec<Extra>);

/// How often each block is held, by tier and group.
type Copies = HashMap<(Tier, u32, EngineHash), u32>;

/// An owned [`ExtraKey`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Extra {
    Text(String),
    Item(String, i64),
    Digest(Vec<u8>),
}

/// One engine.
#[derive(Clone, Debug)]
pub struct Reference {
    spec: HolderSpec,
    copies: Copies,
    /// What it held before losses, the latest first.
    doubted: Vec<Copies>,
    named: HashMap<Content4, Vec<EngineHash>>,
    depth: HashMap<EngineHash, u32>,
    /// Kind, window and block size by group.
    groups: BTreeMap<u32, (GroupKind, Option<u32>, u32)>,
    block_size: Option<u32>,
    sizes: Vec<u32>,
    sized_by_full: bool,
    chunk_described: u32,
    chunk_by_depth: u32,
}

impl Reference {
    /// An engine that holds nothing yet.
    pub fn new(spec: HolderSpec) -> Reference {
        Reference {
            spec,
            copies: HashMap::new(),
            doubted: Vec::new(),
            named: HashMap::new(),
            depth: HashMap::new(),
            groups: BTreeMap::new(),
            block_size: None,
            sizes: Vec::new(),
            sized_by_full: false,
            chunk_described: 0,
            chunk_by_depth: 0,
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Reference::new(self.spec.clone());
    }

    /// Holds nothing for certain any more; see [`crate::Index::doubt`].
    pub fn doubt(&mut self) {
        self.doubted.insert(0, std::mem::take(&mut self.copies));
        self.doubted.truncate(3);
    }

    /// See [`crate::Index::drop_suspects`].
    pub fn forget_doubted(&mut self) {
        self.doubted.clear();
    }

    /// See [`crate::Score::suspect`]. The query's prompt must be tokens.
    pub fn suspect(&self, query: &Query<'_>) -> u32 {
        let mut all = self.clone();
        for (key, n) in all.doubted.drain(..).flatten() {
            *all.copies.entry(key).or_default() += n;
        }
        all.expect(query).cached
    }

    /// The engine with all that it can load without having stored it: what `tiers` hold, which it
    /// knows by the names that it and `kin` (engines that call blocks alike) told.
    pub fn within_reach(&self, tiers: &[&Reference], kin: &[&Reference]) -> Reference {
        let mut all = self.clone();
        for tiers in tiers {
            let here = self.spec.node.is_some() && self.spec.node == tiers.spec.node;
            for ((tier, group, name), n) in &tiers.copies {
                let reached = match tier {
                    Tier::Cpu | Tier::Disk => here,
                    Tier::Shared => true,
                    Tier::Gpu | Tier::Unknown => false,
                };
                if reached {
                    *all.copies.entry((*tier, *group, *name)).or_default() += n;
                }
            }
        }
        for (content, names) in kin.iter().flat_map(|kin| &kin.named) {
            let known = all.named.entry(content.clone()).or_default();
            names
                .iter()
                .filter(|name| !known.contains(name))
                .copied()
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|name| known.push(name));
        }
        all
    }

    /// Applies the events in order.
    pub fn apply(&mut self, batch: &Batch<'_>) {
        for event in batch.events() {
            match event {
                Event::Stored(s) => self.stored(&s),
                Event::Removed(r) => {
                    for &h in r.hashes {
                        let key = (r.tier, r.group, h);
                        let mut everything = std::iter::once(&mut self.copies).chain(&mut self.doubted);
                        if let Some(copies) = everything.find(|c| c.contains_key(&key))
                            && let Some(n) = copies.get_mut(&key)
                        {
                            *n -= 1;
                            if *n == 0 {
                                copies.remove(&key);
                            }
                        }
                    }
                }
                Event::Cleared(c) => {
                    for copies in std::iter::once(&mut self.copies).chain(&mut self.doubted) {
                        copies.retain(|(t, _, _), _| c.tier.is_some_and(|x| x != *t));
                    }
                }
            }
        }
    }

    fn stored(&mut self, s: &Stored<'_>) {
        for &h in s.hashes {
            *self.copies.entry((s.tier, s.group, h)).or_default() += 1;
        }
        let described = !s.tokens.is_empty() && !s.hashes.is_empty();
        if s.tier != Tier::Gpu && described && s.content == Content::HashOnly {
            self.chunk_described = crate::profile::gcd(self.chunk_described, s.hashes.len() as u32);
        }
        let first_seen_below = described && self.block_size.is_none() && s.content == Content::Complete;
        if s.tier == Tier::Gpu || first_seen_below {
            let known = self.groups.get(&s.group).copied();
            let (kind, window) = match (s.spec, known) {
                (Some(spec), _) => (spec.kind, spec.window),
                (None, Some((kind, window, _))) => (kind, window),
                (None, None) => (GroupKind::Full, None),
            };
            let size = known.map(|k| k.2).filter(|&n| n > 0).unwrap_or(s.block_size);
            self.groups.insert(s.group, (kind, window, size));
            if s.block_size > 0 {
                // A full-attention group has the last word on what the chain's blocks are.
                let full = kind == GroupKind::Full;
                if full && !self.sized_by_full {
                    self.sized_by_full = true;
                    self.sizes.clear();
                    self.block_size = None;
                }
                if full || !self.sized_by_full {
                    self.block_size = self.block_size.or(Some(s.block_size));
                    self.sizes.push(s.block_size);
                }
            }
        }
        let n = s.block_size as usize;
        if s.content == Content::Complete && n > 0 && s.hashes.len() * n == s.tokens.len() {
            let mut parent = s.parent;
            for (i, &h) in s.hashes.iter().enumerate() {
                let mut extras: Vec<Extra> = s.extras(i).iter().map(Extra::from).collect();
                if let (None, Some(salt)) = (parent, s.cache_salt) {
                    extras.push(Extra::Text(salt.to_owned()));
                }
                let lora = s.lora.map(str::to_owned).or(self.spec.lora.clone());
                let block = (parent, s.tokens[i * n..(i + 1) * n].to_vec(), lora, extras);
                let hashes = self.named.entry(block).or_default();
                if !hashes.contains(&h) {
                    hashes.push(h);
                }
                parent = Some(h);
            }
            self.measure();
        }
        if self.chunk_described == 0 && s.tier != Tier::Gpu {
            for h in s.hashes {
                let depth = self.depth.get(h).copied().unwrap_or(0);
                self.chunk_by_depth = crate::profile::gcd(self.chunk_by_depth, depth);
            }
        }
    }

    /// Finds the depth of every block that hangs, over any number of steps, from the root.
    fn measure(&mut self) {
        loop {
            let before = self.depth.len();
            for ((parent, _, _, _), hashes) in &self.named {
                let depth = match parent {
                    None => 0,
                    Some(p) => match self.depth.get(p) {
                        Some(d) => *d,
                        None => continue,
                    },
                };
                for h in hashes {
                    let lower = self.copies.keys().any(|(t, _, x)| x == h && *t != Tier::Gpu);
                    if self.depth.insert(*h, depth + 1).is_none() && lower && self.chunk_described == 0 {
                        self.chunk_by_depth = crate::profile::gcd(self.chunk_by_depth, depth + 1);
                    }
                }
            }
            if self.depth.len() == before {
                return;
            }
        }
    }

    fn has(&self, h: EngineHash, tier: Tier, group: Option<u32>) -> bool {
        self.copies.keys().any(|(t, g, x)| *t == tier && *x == h && group.is_none_or(|want| want == *g))
    }

    fn held(&self, h: EngineHash) -> bool {
        self.copies.keys().any(|(_, _, x)| *x == h)
    }

    /// The engine's hashes of the prompt's known blocks, from the root.
    fn chain(&self, prompt: &Prompt<'_>, n: usize) -> Vec<EngineHash> {
        let Prompt::Tokens { tokens, lora, cache_salt, items } = *prompt else { return Vec::new() };
        let mut out: Vec<EngineHash> = Vec::new();
        for (i, block) in tokens.chunks_exact(n).enumerate() {
            let (from, to) = ((i * n) as i64, ((i + 1) * n) as i64);
            let mut extras: Vec<Extra> = items
                .iter()
                .map(|m| (m, i64::from(m.offset)))
                .filter(|(m, at)| *at < to && at + i64::from(m.length) > from)
                .map(|(m, at)| Extra::Item(m.identifier.to_owned(), at - from))
                .collect();
            if let (0, Some(salt)) = (i, cache_salt) {
                extras.push(Extra::Text(salt.to_owned()));
            }
            let key = (out.last().copied(), block.to_vec(), lora.map(str::to_owned), extras);
            let Some(hashes) = self.named.get(&key) else { break };
            let live = hashes.iter().copied().find(|&h| self.held(h));
            out.push(live.unwrap_or(hashes[0]));
        }
        out
    }

    /// What this engine has of the query's prompt, which must be tokens.
    pub fn expect(&self, query: &Query<'_>) -> Expected {
        let query = &Query { block_size: query.block_size.filter(|&b| b > 0), ..*query };
        let own = match (self.block_size, query.block_size) {
            (_, Some(asked)) if self.sizes.contains(&asked) => asked,
            (Some(own), _) => own,
            (None, _) => 0,
        };
        let hashes = if own == 0 { Vec::new() } else { self.chain(&query.prompt, own as usize) };
        let asked = query.block_size.unwrap_or(own);
        let whole = |blocks: usize| (blocks as u32 * own).checked_div(asked).unwrap_or(0);
        let run = |ok: &dyn Fn(EngineHash) -> bool| hashes.iter().take_while(|h| ok(**h)).count();

        let full: Vec<u32> = match self.groups.iter().filter(|(_, g)| g.0 == GroupKind::Full).count() {
            0 if self.groups.is_empty() => vec![0],
            0 => self.groups.keys().copied().collect(),
            _ => self.groups.iter().filter(|(_, g)| g.0 == GroupKind::Full).map(|(i, _)| *i).collect(),
        };
        let within = |h: EngineHash, tier: Tier| match tier {
            Tier::Gpu => full.iter().all(|&g| self.has(h, Tier::Gpu, Some(g))),
            Tier::Cpu | Tier::Disk | Tier::Shared | Tier::Unknown => self.has(h, tier, None),
        };
        let best = |h: EngineHash| Tier::ALL.into_iter().find(|&t| within(h, t));

        let held = run(&|h| best(h).is_some());
        let cached = whole(held);
        let mut weighted = 0.0;
        for block in 0..cached {
            let (from, to) = (block * asked, (block + 1) * asked);
            let least = (0..held as u32)
                .filter(|i| i * own < to && (i + 1) * own > from)
                .map(|i| best(hashes[i as usize]).map_or(0.0, |t| query.weights.of(t)))
                .fold(f64::INFINITY, f64::min);
            weighted += least;
        }
        let mut by_tier = [0; 5];
        let mut cumulative = [0; 5];
        for (i, tier) in Tier::ALL.into_iter().enumerate() {
            by_tier[i] = whole(run(&|h| within(h, tier)));
            cumulative[i] = whole(run(&|h| Tier::ALL[..=i].iter().any(|&t| within(h, t))));
        }
        let prompt_tokens = match query.prompt {
            Prompt::Tokens { tokens, .. } => tokens.len() as u64,
            Prompt::Local(_) | Prompt::Canonical(_) | Prompt::Engine(_) | Prompt::Llmd(_) => 0,
        };
        Expected {
            cached,
            by_tier,
            cumulative,
            below_ram: whole(run(&|h| within(h, Tier::Disk) || within(h, Tier::Shared))),
            weighted,
            cached_tokens: if own == 0 {
                0
            } else {
                self.engine_tokens(&hashes, prompt_tokens, u64::from(own))
            },
        }
    }

    /// What the engine itself would report as cached.
    fn engine_tokens(&self, hashes: &[EngineHash], prompt_tokens: u64, own: u64) -> u64 {
        let device = self.device_hit(hashes, prompt_tokens, own);
        let chunk = match (self.spec.offload_chunk, self.chunk_described, self.chunk_by_depth) {
            (Some(n), _, _) => n,
            (None, 0, 0) => 1,
            (None, 0, n) | (None, n, _) => n,
        };
        let per = u64::from(chunk) * own;
        let top = prompt_tokens / per * per;
        if top < device + per {
            return device;
        }
        let loadable = |chunk_idx: u64| {
            let last = (chunk_idx + 1) * u64::from(chunk) - 1;
            hashes.get(last as usize).is_some_and(|&h| {
                [Tier::Cpu, Tier::Disk, Tier::Shared].into_iter().any(|t| self.has(h, t, None))
            })
        };
        let start = device / per;
        let mut end = start;
        while (end + 1) * per <= top && loadable(end) {
            end += 1;
        }
        if end > start && end * per >= device + per { end * per } else { device }
    }

    fn device_hit(&self, hashes: &[EngineHash], prompt_tokens: u64, own: u64) -> u64 {
        let mut kinds: BTreeMap<(bool, GroupKind, Option<u32>), Vec<u32>> = BTreeMap::new();
        for (g, (kind, window, _)) in &self.groups {
            let later = matches!(kind, GroupKind::SlidingWindow | GroupKind::Mamba | GroupKind::ChunkedLocal);
            kinds.entry((later, *kind, *window)).or_default().push(*g);
        }
        let Some(mut length) = prompt_tokens.checked_sub(1) else { return 0 };
        loop {
            let mut now = length;
            for ((_, kind, window), groups) in &kinds {
                let ok = |i: u64| {
                    hashes
                        .get(i as usize)
                        .is_some_and(|&h| groups.iter().all(|&g| self.has(h, Tier::Gpu, Some(g))))
                };
                let top = now / own;
                let leading = |from: u64| (from..top).take_while(|&i| ok(i)).count() as u64;
                now = own
                    * match (kind, window, self.spec.attention_chunk) {
                        (GroupKind::SlidingWindow, Some(w), _) => {
                            let need = u64::from(w - 1).div_ceil(own).max(1);
                            // The largest end with `need` blocks held right before it; a shorter
                            // stretch counts only from the root.
                            let ends = |end: &u64| *end >= need && (end - need..*end).all(ok);
                            (1..=top).rev().find(ends).unwrap_or_else(|| leading(0))
                        }
                        (GroupKind::Mamba, _, _) => (1..=top).rev().find(|end| ok(end - 1)).unwrap_or(0),
                        (GroupKind::ChunkedLocal, _, Some(chunk)) => {
                            let from = now / u64::from(chunk) * u64::from(chunk) / own;
                            from + leading(from)
                        }
                        _ => leading(0),
                    };
            }
            if now >= length || kinds.len() <= 1 {
                return now;
            }
            length = now;
        }
    }
}

impl From<&ExtraKey<'_>> for Extra {
    fn from(k: &ExtraKey<'_>) -> Extra {
        match k {
            ExtraKey::Text(s) => Extra::Text((*s).to_owned()),
            ExtraKey::Item { identifier, offset } => Extra::Item((*identifier).to_owned(), *offset),
            ExtraKey::Digest(d) => Extra::Digest(d.to_vec()),
        }
    }
}
