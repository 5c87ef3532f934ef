//! From a prompt to what each candidate has of it.

use kvproto::hash::canonical::{MmForm, MmItem, Namespace, PromptExtras, Seed, prompt_hashes};
use kvproto::hash::vllm;
use kvproto::{EngineHash, SeqHash};
use rustc_hash::FxHashSet;

use crate::pool::{Member, Pool, Seat};
use crate::profile::{Mask, Profile};
use crate::runs::Runs;
use crate::score::best_tier;
use crate::types::{HolderId, HolderSpec, Prompt, Query};

/// One candidate and what it has of the prompt.
#[derive(Debug)]
pub(crate) struct Column<'s> {
    pub member: &'s Member,
    pub profile: &'s Profile,
    /// Tokens per block of the runs.
    pub block_size: u32,
    pub runs: Runs,
    pub announced: Runs,
    /// Whether it was looked up by the engine's own hashes instead of in the shared map.
    by_engine_hash: bool,
    /// The block after the last one seen, and whether later ones can still matter.
    end: u32,
    open: bool,
    /// Blocks in a row that may be missing before later ones cannot matter.
    patience: u32,
}

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Walk<'s> {
    pub columns: Vec<Column<'s>>,
    pub block_size_mismatch: Vec<HolderId>,
}

/// How one group of candidates names the prompt's blocks.
struct Variant<'s> {
    seed: Seed,
    block_size: u32,
    form: MmForm,
    /// Indices into the columns.
    columns: Vec<usize>,
    spec: &'s HolderSpec,
}

/// Finds what the query's candidates among the `seats` of `pool` have of its prompt.
pub(crate) fn walk<'s>(pool: &Pool, seats: &'s [Seat], query: &Query<'_>) -> Walk<'s> {
    let mut out = Walk::default();
    let wanted: FxHashSet<&str> = query.instances.iter().copied().collect();
    for Seat { member, profile } in seats {
        let asked = wanted.is_empty() || wanted.contains(member.spec.instance.as_str());
        if !asked || query.salt.is_some_and(|s| s != member.spec.salt) {
            continue;
        }
        let by_hash = !matches!(query.prompt, Prompt::Tokens { .. });
        if by_hash
            && let Some(asked) = query.block_size
            && profile.block_size != 0
            && !profile.sizes.contains(&asked)
        {
            out.block_size_mismatch.push(member.id);
            continue;
        }
        out.columns.push(Column::new(member, profile, query));
    }
    let slots = seats.last().map_or(0, |s| s.member.slot as usize + 1);

    match query.prompt {
        Prompt::Tokens { tokens, lora, cache_salt, items } => {
            let shared = by_engine_hash(&mut out.columns, tokens, lora, cache_salt, items, query.max_blocks);
            if query.speculative && shared.len() < out.columns.len() {
                for c in out.columns.iter_mut().filter(|c| c.by_engine_hash && c.block_size > 0) {
                    let seed = Namespace { salt: &c.member.spec.salt, model: query.model, lora }.seed();
                    let extras = PromptExtras { cache_salt, items, form: c.profile.form };
                    c.look_up_announced(pool, prompt_hashes(seed, tokens, c.block_size, extras));
                }
            }
            for v in variants(&out.columns, &shared, query.model, lora) {
                let extras = PromptExtras { cache_salt, items, form: v.form };
                let hashes = prompt_hashes(v.seed, tokens, v.block_size, extras);
                let hashes = hashes.take(query.max_blocks.map_or(usize::MAX, |n| n as usize));
                probe(pool, slots, &mut out.columns, &v.columns, hashes.map(Some), query.speculative);
            }
        }
        Prompt::Canonical(hashes) => {
            let all: Vec<usize> = (0..out.columns.len()).collect();
            let hashes = hashes.iter().copied().take(query.max_blocks.map_or(usize::MAX, |n| n as usize));
            probe(pool, slots, &mut out.columns, &all, hashes.map(Some), query.speculative);
        }
        Prompt::Llmd(keys) => {
            let all: Vec<usize> = (0..out.columns.len()).collect();
            let keys = keys.iter().take(query.max_blocks.map_or(usize::MAX, |n| n as usize));
            let hashes = keys.map(|k| pool.llmd_keys.get(k).map(|s| *s));
            probe(pool, slots, &mut out.columns, &all, hashes, query.speculative);
        }
        Prompt::Engine(hashes) => {
            let n = query.max_blocks.map_or(hashes.len(), |n| hashes.len().min(n as usize));
            for c in &mut out.columns {
                c.look_up(&hashes[..n]);
            }
        }
    }
    out
}

impl<'s> Column<'s> {
    fn new(member: &'s Member, profile: &'s Profile, query: &Query<'_>) -> Column<'s> {
        let block_size = profile.block_size_for(query.block_size);
        let chunk = profile.chunk(member.spec.offload_chunk);
        // Past the full-attention groups' first gap only whole offload chunks can matter, and
        // a gap as long as a chunk ends those too. Without such a group anything may.
        let patience = if profile.has_full_group() || profile.groups.is_empty() { chunk } else { u32::MAX };
        Column {
            member,
            profile,
            block_size,
            runs: Runs::default(),
            announced: Runs::default(),
            by_engine_hash: false,
            end: 0,
            open: block_size > 0,
            patience,
        }
    }

    /// Looks the engine's own hashes up among what this holder has.
    fn look_up(&mut self, hashes: &[EngineHash]) {
        let state = self.member.state.lock();
        for (i, &h) in hashes.iter().enumerate() {
            let mask = state.holder.mask_of(h);
            if !mask.is_empty() {
                self.runs.push(i as u32, mask);
            }
        }
    }

    /// Looks up which of the prompt's blocks routing announced for this holder.
    fn look_up_announced(&mut self, pool: &Pool, hashes: impl Iterator<Item = SeqHash>) {
        for (i, seq) in hashes.enumerate() {
            let announced = pool.announced.get(&seq);
            if announced.is_some_and(|at| at.iter().any(|a| a.holder == self.member.id)) {
                self.announced.push(i as u32, Mask(1));
            }
        }
    }

    /// Contiguous blocks from the root that are held or announced.
    pub fn held_or_announced(&self) -> u32 {
        let device = self.profile.device_mask();
        let mut end = 0;
        loop {
            let next = self.runs.contiguous(end, u32::MAX, |m| best_tier(m, device).is_some());
            let next = self.announced.contiguous(next, u32::MAX, |_| true);
            if next == end {
                return end;
            }
            end = next;
        }
    }
}

/// Answers for models whose events carry no positions, by the engine's own hashes. Returns the
/// columns that are left for the shared map.
fn by_engine_hash(
    columns: &mut [Column<'_>],
    tokens: &[u32],
    lora: Option<&str>,
    cache_salt: Option<&str>,
    items: &[MmItem<'_>],
    max_blocks: Option<u32>,
) -> Vec<usize> {
    let mut rest = Vec::with_capacity(columns.len());
    let mut hashes = Vec::new();
    for (i, c) in columns.iter_mut().enumerate() {
        let hashing = match &c.member.spec.hashing {
            // The adapter's path and items of several forms are part of the engine's hash and
            // not known here.
            Some(h) if lora.is_none() && items.is_empty() && !c.profile.has_full_group() => h,
            Some(_) | None => {
                rest.push(i);
                continue;
            }
        };
        if c.block_size == 0 {
            continue;
        }
        let seed = hashing.seed.as_deref();
        if vllm::prompt_hashes(hashing.algo, seed, tokens, c.block_size, cache_salt, &mut hashes).is_ok() {
            hashes.truncate(max_blocks.map_or(usize::MAX, |n| n as usize));
            c.look_up(&hashes);
            c.by_engine_hash = true;
        } else {
            rest.push(i);
        }
    }
    rest
}

/// Groups `which` columns by how they name the prompt's blocks; nearly always one group.
fn variants<'s>(
    columns: &[Column<'s>],
    which: &[usize],
    model: &str,
    lora: Option<&str>,
) -> Vec<Variant<'s>> {
    let mut out: Vec<Variant<'s>> = Vec::new();
    for &i in which {
        let c = &columns[i];
        if c.block_size == 0 {
            continue;
        }
        let spec: &'s HolderSpec = &c.member.spec;
        let form = c.profile.form;
        // Nearly all salts are empty, and comparing nothing with memcmp can cost a hundred
        // nanoseconds: a masked load from a dangling pointer is slow on some processors.
        let same_salt = |a: &str, b: &str| a.len() == b.len() && (a.is_empty() || a == b);
        let same = |v: &Variant<'_>| {
            v.block_size == c.block_size && v.form == form && same_salt(&v.spec.salt, &spec.salt)
        };
        match out.iter_mut().find(|v| same(v)) {
            Some(v) => v.columns.push(i),
            None => {
                let seed = Namespace { salt: &spec.salt, model, lora }.seed();
                let columns = vec![i];
                out.push(Variant { seed, block_size: c.block_size, form, columns, spec });
            }
        }
    }
    out
}

/// Blocks looked up at a time: few at first, as many prompts end early, then more.
const FIRST_STRETCH: usize = 16;
const LONGEST_STRETCH: usize = 128;

/// Walks the shared map from the root until no candidate can gain any more. `None` among the
/// hashes is a block that nobody has.
fn probe(
    pool: &Pool,
    slots: usize,
    columns: &mut [Column<'_>],
    which: &[usize],
    mut hashes: impl Iterator<Item = Option<SeqHash>>,
    speculative: bool,
) {
    const NONE: u32 = u32::MAX;
    let speculative = speculative && !pool.announced.is_empty();
    let mut column_of = vec![NONE; slots];
    let mut open = 0usize;
    for &i in which {
        if columns[i].open {
            column_of[columns[i].member.slot as usize] = i as u32;
            open += 1;
        }
    }
    let mut first = 0;
    let mut length = FIRST_STRETCH;
    while open > 0 {
        let stretch: Vec<Option<SeqHash>> = hashes.by_ref().take(length).collect();
        if stretch.is_empty() {
            return;
        }
        pool.with_blocks(&stretch, |found| {
            for ((&seq, b), block) in stretch.iter().zip(found).zip(first..) {
                if open == 0 {
                    return;
                }
                let mut seen = 0;
                if let Some(b) = b {
                    for &(slot, mask) in &b.at {
                        // A slot given out after the members were read has no column.
                        let Some(&i) = column_of.get(slot as usize) else { continue };
                        if i == NONE {
                            continue;
                        }
                        let c = &mut columns[i as usize];
                        if c.open {
                            c.runs.push(block, mask);
                            c.end = block + 1;
                            seen += 1;
                        }
                    }
                }
                if speculative && let Some(at) = seq.and_then(|seq| pool.announced.get(&seq)) {
                    for a in at.iter() {
                        let Some(&i) = column_of.get(a.slot as usize) else { continue };
                        if i == NONE {
                            continue;
                        }
                        let c = &mut columns[i as usize];
                        if c.open && c.member.id == a.holder {
                            c.announced.push(block, Mask(1));
                            seen += usize::from(c.end != block + 1);
                            c.end = block + 1;
                        }
                    }
                }
                if seen < open {
                    for &i in which {
                        let c = &mut columns[i];
                        if c.open && block + 1 - c.end >= c.patience {
                            c.open = false;
                            open -= 1;
                        }
                    }
                }
            }
        });
        first += stretch.len() as u32;
        length = LONGEST_STRETCH.min(length * 4);
    }
}
