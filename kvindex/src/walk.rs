//! From a prompt to what each candidate has of it.

use std::sync::atomic::Ordering;

use kvproto::hash::canonical::{MmForm, MmItem, Namespace, PromptExtras, Seed, prompt_hashes};
use kvproto::hash::vllm;
use kvproto::{EngineHash, ExtraKey, SeqHash};
use rustc_hash::FxHashSet;

use crate::forest::{Chain, Forest, Guard, Place, ROOT, Slot, Step, words};
use crate::pool::{CANONICAL, Member, Pool, Seat};
use crate::profile::{Mask, Profile};
use crate::reach::{Found, Tiers};
use crate::runs::Runs;
use crate::score::held_or_announced;
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
    /// Whether it was looked up by the engine's own hashes.
    by_engine_hash: bool,
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

/// The blocks of a prompt of tokens, hashed as they are asked for.
pub(crate) struct Tokens<'a> {
    seed: Seed,
    tokens: &'a [u32],
    block_size: usize,
    extras: PromptExtras<'a>,
    keys: Vec<ExtraKey<'a>>,
    blocks: usize,
    hashed: Vec<u64>,
}

impl<'a> Tokens<'a> {
    /// At most `max_blocks` whole blocks; `hashed` is room to be used.
    pub fn new(
        seed: Seed,
        tokens: &'a [u32],
        block_size: u32,
        extras: PromptExtras<'a>,
        max_blocks: Option<u32>,
        mut hashed: Vec<u64>,
    ) -> Tokens<'a> {
        let block_size = block_size as usize;
        let blocks = (tokens.len() / block_size).min(max_blocks.map_or(usize::MAX, |n| n as usize));
        hashed.clear();
        Tokens { seed, tokens, block_size, extras, keys: Vec::new(), blocks, hashed }
    }

    /// The room back.
    pub fn into_room(self) -> Vec<u64> {
        self.hashed
    }
}

impl Chain for Tokens<'_> {
    fn upto(&mut self, n: usize) -> &[u64] {
        let n = n.min(self.blocks);
        for i in self.hashed.len()..n {
            let start = i * self.block_size;
            self.keys.clear();
            if i == 0 || !self.extras.items.is_empty() {
                // Items that are over are not looked at again: a prompt of many items and many blocks
                // must not cost their product.
                let over = |m: &&MmItem<'_>| u64::from(m.offset) + u64::from(m.length) <= start as u64;
                self.extras.items = &self.extras.items[self.extras.items.iter().take_while(over).count()..];
                self.extras.of_block(start as u64, self.block_size as u32, &mut self.keys);
            }
            let tokens = &self.tokens[start..start + self.block_size];
            self.hashed.push(self.seed.local(tokens, &self.keys).0);
        }
        &self.hashed
    }
}

/// Finds what the query's candidates among the `seats` of `pool` have of its prompt.
pub(crate) fn walk<'s>(pool: &Pool, seats: &'s [Seat], query: &Query<'_>, guard: &Guard) -> Walk<'s> {
    walk_with(pool, seats, query, guard, &Tiers::of(seats))
}

/// The same with what the tiers among the `seats` are asked.
pub(crate) fn walk_with<'s>(
    pool: &Pool,
    seats: &'s [Seat],
    query: &Query<'_>,
    guard: &Guard,
    tiers: &Tiers<'_>,
) -> Walk<'s> {
    let mut out = candidates(seats, query);
    let slots = seats.last().map_or(0, |s| s.member.slot as usize + 1);
    let most = query.max_blocks.map_or(usize::MAX, |n| n as usize);
    match query.prompt {
        Prompt::Tokens { tokens, lora, cache_salt, items } => {
            let shared = by_engine_hash(
                pool,
                tiers,
                &mut out.columns,
                tokens,
                lora,
                cache_salt,
                items,
                query.max_blocks,
                guard,
            );
            let speculative = query.speculative && !pool.announced.is_empty();
            if speculative && shared.len() < out.columns.len() {
                for c in out.columns.iter_mut().filter(|c| c.by_engine_hash && c.block_size > 0) {
                    let seed = Namespace { salt: &c.member.spec.salt, model: query.model, lora }.seed();
                    let extras = PromptExtras { cache_salt, items, form: c.profile.form };
                    c.look_up_announced(pool, prompt_hashes(seed, tokens, c.block_size, extras));
                }
            }
            for v in variants(&out.columns, &shared, query.model, lora) {
                let extras = PromptExtras { cache_salt, items, form: v.form };
                let mut to = Columns::new(&mut out.columns, &v.columns, slots);
                let mut chain =
                    Tokens::new(v.seed, tokens, v.block_size, extras, query.max_blocks, Vec::new());
                let root = Place { strand: ROOT, offset: 0 };
                for d in pool.forests.domains() {
                    let (forest, mut reach) = (pool.forests.get(d), tiers.found());
                    forest.by_locals(guard, root, &mut chain, |step| to.take_both(&step, forest, &mut reach));
                    reach.give(pool, d, to.columns, &v.columns);
                }
                let seqs = || prompt_hashes(v.seed, tokens, v.block_size, extras).take(most);
                if pool.forests.has_canonical() {
                    let names: Vec<u64> = seqs().map(|s| s.0).collect();
                    pool.forests.get(CANONICAL).by_names(guard, &names, |step| to.take(&step));
                }
                if speculative {
                    to.announced(pool, seqs());
                }
            }
        }
        Prompt::Local(locals) => {
            let all: Vec<usize> = (0..out.columns.len()).collect();
            let locals = words(&locals[..locals.len().min(most)]);
            let mut to = Columns::new(&mut out.columns, &all, slots);
            let root = Place { strand: ROOT, offset: 0 };
            for d in pool.forests.domains() {
                let (forest, mut reach) = (pool.forests.get(d), tiers.found());
                forest.by_locals(guard, root, &mut &*locals, |step| to.take_both(&step, forest, &mut reach));
                reach.give(pool, d, to.columns, &all);
            }
        }
        Prompt::Canonical(hashes) => {
            let all: Vec<usize> = (0..out.columns.len()).collect();
            let hashes = &hashes[..hashes.len().min(most)];
            let mut to = Columns::new(&mut out.columns, &all, slots);
            for d in pool.forests.domains() {
                let (forest, mut reach) = (pool.forests.get(d), tiers.found());
                forest.by_seqs(guard, hashes, |step| to.take_both(&step, forest, &mut reach));
                reach.give(pool, d, to.columns, &all);
            }
            if pool.forests.has_canonical() {
                pool.forests.get(CANONICAL).by_names(guard, words(hashes), |step| to.take(&step));
            }
            if query.speculative && !pool.announced.is_empty() {
                to.announced(pool, hashes.iter().copied());
            }
        }
        Prompt::Llmd(keys) => {
            let all: Vec<usize> = (0..out.columns.len()).collect();
            let keys: Vec<u64> = keys.iter().take(most).map(|k| k.0).collect();
            let mut to = Columns::new(&mut out.columns, &all, slots);
            for d in pool.forests.domains() {
                let (forest, mut reach) = (pool.forests.get(d), tiers.found());
                forest.by_keys(guard, &keys, |step| to.take_both(&step, forest, &mut reach));
                reach.give(pool, d, to.columns, &all);
                if query.speculative && !pool.announced.is_empty() {
                    to.announced(pool, forest.seqs_by_keys(guard, &keys).into_iter());
                }
            }
        }
        Prompt::Engine(hashes) => {
            let all: Vec<usize> = (0..out.columns.len()).collect();
            look_up(pool, tiers, &mut out.columns, &all, slots, &hashes[..hashes.len().min(most)], guard);
        }
    }
    out
}

fn candidates<'s>(seats: &'s [Seat], query: &Query<'_>) -> Walk<'s> {
    let mut out = Walk { columns: Vec::with_capacity(seats.len()), ..Walk::default() };
    let wanted: FxHashSet<&str> = query.instances.iter().copied().collect();
    let by_hash = !matches!(query.prompt, Prompt::Tokens { .. });
    for Seat { member, profile } in seats {
        if member.spec.tiers {
            continue;
        }
        let asked = wanted.is_empty() || wanted.contains(member.spec.instance.as_str());
        if !asked || query.salt.is_some_and(|s| s != member.spec.salt) {
            continue;
        }
        if by_hash
            && let Some(asked) = query.block_size
            && profile.block_size != 0
            && !profile.sizes.contains(&asked)
        {
            if member.suspect_of.is_none() {
                out.block_size_mismatch.push(member.id);
            }
            continue;
        }
        out.columns.push(Column {
            member,
            profile,
            block_size: profile.block_size_for(query.block_size),
            runs: Runs::default(),
            announced: Runs::default(),
            by_engine_hash: false,
        });
    }
    out
}

/// Some of the columns, by the slots of their members.
struct Columns<'c, 's> {
    columns: &'c mut [Column<'s>],
    of_slot: Vec<u32>,
}

const NONE: u32 = u32::MAX;

impl<'c, 's> Columns<'c, 's> {
    fn new(columns: &'c mut [Column<'s>], which: &[usize], slots: usize) -> Columns<'c, 's> {
        let mut of_slot = vec![NONE; slots];
        for &i in which {
            if columns[i].block_size > 0 {
                of_slot[columns[i].member.slot as usize] = i as u32;
            }
        }
        Columns { columns, of_slot }
    }

    /// The column of a slot. A slot given out after the members were read has none.
    fn get(&mut self, slot: Slot) -> Option<&mut Column<'s>> {
        let i = *self.of_slot.get(slot as usize)?;
        self.columns.get_mut(i as usize)
    }

    /// Notes who holds what of a step.
    fn take(&mut self, step: &Step<'_>) -> bool {
        let (lo, hi) = (step.offset, step.offset + step.n);
        step.look.each(|plane, slot, (from, to)| {
            let (from, to) = (from.max(lo), to.min(hi));
            if from < to
                && let Some(c) = self.get(slot)
            {
                c.runs.add(step.from + from - lo, step.from + to - lo, plane.mask());
            }
        });
        true
    }

    /// Notes who holds what of a step, and what is there for those who reach it.
    fn take_both(&mut self, step: &Step<'_>, forest: &Forest, reach: &mut Found<'_, '_>) -> bool {
        reach.take(step, forest);
        self.take(step)
    }

    /// Notes which blocks routing announced for whom.
    fn announced(&mut self, pool: &Pool, hashes: impl Iterator<Item = SeqHash>) {
        for (i, seq) in hashes.enumerate() {
            let Some(at) = pool.announced.get(seq) else { continue };
            for a in at.iter() {
                if let Some(c) = Slot::try_from(a.slot).ok().and_then(|s| self.get(s))
                    && c.member.id == a.holder
                {
                    c.announced.push(i as u32, Mask(1));
                }
            }
        }
    }
}

impl Column<'_> {
    /// Looks up which of the prompt's blocks routing announced for this holder.
    fn look_up_announced(&mut self, pool: &Pool, hashes: impl Iterator<Item = SeqHash>) {
        self.announced = pool.announced.of_holder(self.member.id, hashes);
    }

    /// Contiguous blocks from the root that are held or announced.
    pub fn held_or_announced(&self) -> u32 {
        held_or_announced(&self.runs, &self.announced, self.profile.device_mask())
    }
}

/// Looks the engines' own hashes up: in the forests, and among the odd blocks of those who have any.
fn look_up(
    pool: &Pool,
    tiers: &Tiers<'_>,
    columns: &mut [Column<'_>],
    which: &[usize],
    slots: usize,
    hashes: &[EngineHash],
    guard: &Guard,
) {
    let names: Vec<u64> = hashes.iter().map(|h| h.0).collect();
    let mut to = Columns::new(columns, which, slots);
    for (d, forest) in pool.forests.iter() {
        let mut reach = tiers.found();
        forest.by_names(guard, &names, |step| to.take_both(&step, forest, &mut reach));
        if d != CANONICAL {
            reach.give(pool, d, to.columns, which);
        }
    }
    for &i in which.iter().filter(|i| columns[**i].member.odd.load(Ordering::Acquire)).collect::<Vec<_>>() {
        let c = &mut columns[i];
        pool.write(|holders, _| {
            let Some(Some(holder)) = holders.get(c.member.slot as usize) else { return };
            for (b, &h) in hashes.iter().enumerate() {
                let mask = holder.odd_mask(h);
                if !mask.is_empty() {
                    c.runs.add(b as u32, b as u32 + 1, mask);
                }
            }
        });
    }
}

/// Answers for models whose events carry no positions, by the engine's own hashes. Returns the
/// columns that are left to be looked up by content.
#[expect(clippy::too_many_arguments, reason = "the parts of one prompt")]
fn by_engine_hash(
    pool: &Pool,
    tiers: &Tiers<'_>,
    columns: &mut [Column<'_>],
    tokens: &[u32],
    lora: Option<&str>,
    cache_salt: Option<&str>,
    items: &[MmItem<'_>],
    max_blocks: Option<u32>,
    guard: &Guard,
) -> Vec<usize> {
    let mut rest = Vec::with_capacity(columns.len());
    let mut hashes = Vec::new();
    for i in 0..columns.len() {
        let c = &mut columns[i];
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
            c.by_engine_hash = true;
            let slots = c.member.slot as usize + 1;
            look_up(pool, tiers, columns, &[i], slots, &hashes, guard);
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
