//! Which holders have which blocks of which prefix: a forest of *strands*.
//!
//! A strand is a stretch of one chain of blocks, of which it keeps each block's own hash and the name
//! that the engines call it by. It is never split: another chain that goes on differently after some
//! of its blocks is a strand of its own that hangs there. Who holds what is kept as intervals
//! ([`cover`]), so a block costs its two words and a slot in the table of names, however many hold it.
//!
//! ```text
//!   children: (strand, offset, next block) ─▶ strand       names: engine hash ─▶ (strand, offset)
//!
//!   strand 1  ■■■■■■■■■■■■■■■■  w1 all, w2 0..7
//!                    └─ strand 2  ■■■■■■■■  w2 all
//! ```
//!
//! One writer at a time changes a forest ([`Pen`]): [`store`] what blocks there are, [`hold`] who has
//! them, [`settle`] which nobody needs any more. Any number of readers look meanwhile ([`find`],
//! [`levels`]); what they may be looking at is freed when they have gone ([`raw`]). A strand's blocks
//! only ever grow at the end or are replaced together, so a reader sees blocks and holders that
//! belong together.
//!
//! A forest is one *hash domain*: its names mean the same to all of its members. Blocks that stand for
//! themselves (canonical hashes without tokens) have a forest of another kind, without hashes of their
//! own and without children: any block may begin a strand, and the next one is found by its name.

mod budget;
mod cover;
mod facts;
mod find;
mod grown;
mod hold;
mod levels;
mod raw;
mod settle;
mod store;
mod sync;
mod table;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

pub(crate) use budget::Loss;
pub(crate) use cover::{Slot, Span, Spans, View, count, gaps, join};
pub(crate) use facts::Facts;
pub(crate) use find::{Chain, Kind, Step};
pub(crate) use grown::Grown;
pub(crate) use hold::{DEVICE, Held, MAX_LEVEL, Plane, Stretch};
pub(crate) use levels::Reach;
pub(crate) use raw::{Guard, pin, words};
pub(crate) use store::{Clash, How, Piece, Told};
pub(crate) use table::{MAX_LEN, Place};

use cover::Edit;
use raw::{Blocks, Cell, Limbo, Loaded, Retired};
use rustc_hash::{FxHashMap, FxHashSet};
use table::Table;

/// The strand before every first block; it has no blocks.
pub(crate) const ROOT: u32 = 0;
/// Blocks without a holder that are kept at least.
pub(crate) const LEAST_GHOSTS: usize = 1 << 14;
/// A depth that nobody has told.
pub(crate) const UNKNOWN_DEPTH: u32 = u32::MAX;

/// The blocks of one hash domain and who holds them.
#[derive(Debug)]
pub(crate) struct Forest {
    kind: Kind,
    /// Whether blocks have llm-d's request keys too.
    keyed: bool,
    heads: Grown<Head>,
    /// [`child_key`] → strand.
    children: Table,
    /// The canonical hash of a strand's first block → strand.
    firsts: Table,
    /// The engines' name of a block → where it lies.
    names: Table,
    /// llm-d's request key of a block → where it lies.
    keys: Table,
    /// Bytes of everything above.
    bytes: AtomicUsize,
    /// Ticks once for every batch.
    clock: AtomicU32,
}

/// What readers see of a strand.
#[derive(Debug)]
#[repr(align(64))]
struct Head {
    /// [`Blocks`]; a number where the strand is no more.
    blocks: Cell,
    /// Who has what on the device in group 0.
    cover: Cell,
    /// Who has what elsewhere; see [`hold`].
    planes: Cell,
    /// Who has more than one copy; only the writer looks.
    copies: Cell,
    /// Seed of the canonical chain; in a canonical forest the name of the block before the first.
    seed: AtomicU64,
    /// The strand it hangs on, and after how many of its blocks.
    parent: AtomicU32,
    at: AtomicU32,
    /// Blocks before its first.
    depth: AtomicU32,
    generation: AtomicU32,
    /// When it was last stored to or asked for, by the writer's clock.
    touched: AtomicU32,
    /// Tokens per block.
    block_size: AtomicU32,
}

impl Head {
    fn new() -> Head {
        Head {
            blocks: Cell::new(0),
            cover: Cell::new(0),
            planes: Cell::new(0),
            copies: Cell::new(0),
            seed: AtomicU64::new(0),
            parent: AtomicU32::new(0),
            at: AtomicU32::new(0),
            depth: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            touched: AtomicU32::new(0),
            block_size: AtomicU32::new(0),
        }
    }
}

/// A strand as it was at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Look<'g> {
    blocks: Blocks<'g>,
    pub len: u32,
    pub cover: View<'g>,
    /// Other planes than the device's group 0.
    pub planes: Option<&'g [AtomicU64]>,
}

impl<'g> Look<'g> {
    /// The blocks' own hashes.
    #[inline]
    pub fn locals(self) -> &'g [u64] {
        self.blocks.first_lane(self.len as usize)
    }
    fn lane(self, lane: usize) -> &'g [u64] {
        self.blocks.lane(lane, self.len as usize)
    }
    /// llm-d's request keys, of a forest that has them.
    pub fn keys(self) -> &'g [u64] {
        self.lane(2)
    }
    fn checks(self) -> &'g [u64] {
        self.blocks.checks(self.len as usize)
    }
}

fn view(loaded: Loaded<'_>) -> View<'_> {
    match loaded {
        Loaded::Number(n) => View::Few(n),
        Loaded::Words(w) => View::Many(w.all()),
    }
}

fn planes(loaded: Loaded<'_>) -> Option<&[AtomicU64]> {
    match loaded {
        Loaded::Number(_) => None,
        Loaded::Words(w) => Some(w.all()),
    }
}

impl Head {
    /// Blocks and holders that belong together; `None` where the strand is no more.
    #[inline]
    fn look<'g>(&'g self, guard: &'g Guard) -> Option<Look<'g>> {
        loop {
            let Loaded::Words(words) = self.blocks.load(guard) else { return None };
            // The length before the holders: who is said to hold all of a strand may be of later
            // than the length, never of earlier.
            let blocks = Blocks::of(words);
            let len = blocks.len() as u32;
            let cover = self.cover.load(guard);
            let planes = planes(self.planes.load(guard));
            // A block that moves between tiers must be seen in one of them.
            if self.blocks.is(Loaded::Words(words)) && self.cover.is(cover) {
                return Some(Look { blocks, len, cover: view(cover), planes });
            }
        }
    }

    fn parent(&self) -> Place {
        Place { strand: self.parent.load(Ordering::Relaxed), offset: self.at.load(Ordering::Relaxed) }
    }
    fn depth(&self) -> u32 {
        self.depth.load(Ordering::Relaxed)
    }
}

/// What the writer alone knows of a strand.
#[derive(Clone, Copy, Debug, Default)]
struct Meta {
    /// Strands that hang on it.
    children: u32,
    /// Who told of its blocks: a number that no other holder had or will have.
    creator: u32,
    /// Its end was cut off: nothing is added to it, so that no reader sees other blocks there.
    sealed: bool,
    /// Waits among the ghosts.
    ghost: bool,
    live: bool,
    /// Canonical hash of its last block.
    tip: u64,
}

/// The writer's side of a forest.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    meta: Vec<Meta>,
    bin: Bin,
    edit: Edit,
    words: Vec<u64>,
    checks: Vec<u64>,
    /// Strands with blocks that nobody holds, and how many; the oldest first.
    ghosts: VecDeque<(u32, u32, u32)>,
    ghost_blocks: usize,
    /// Blocks without a holder that are kept.
    pub max_ghosts: usize,
    /// For sampling strands.
    random: u64,
    /// Those of whom somebody else called a block by the same name.
    agreed_with: FxHashSet<u32>,
    /// Whose blocks are here, and in how many strands.
    tellers: FxHashMap<u32, u32>,
    /// Whether any block ever lost its name to another.
    renamed: bool,
}

impl Writer {
    pub fn new() -> Writer {
        Writer { max_ghosts: LEAST_GHOSTS, ..Writer::default() }
    }
}

/// Numbers that are given out again when nobody looks at what had them any more.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    limbo: Limbo,
    free: Vec<u32>,
}

impl Numbers {
    pub fn give(&mut self, number: u32) {
        self.limbo.add(Retired::number(number), &mut self.free);
    }
    pub fn take(&mut self) -> Option<u32> {
        self.limbo.collect(&mut self.free);
        self.free.pop()
    }
}

/// What was taken out of readers' sight, and what it makes free.
#[derive(Debug, Default)]
pub(crate) struct Bin {
    limbo: Limbo,
    strands: Vec<u32>,
    /// Bytes taken less bytes given back since [`Bin::balance`] was asked.
    balance: isize,
}

impl Bin {
    fn retire(&mut self, retired: Retired) {
        self.balance -= retired.bytes() as isize;
        self.limbo.add(retired, &mut self.strands);
    }
    fn grew(&mut self, bytes: usize) {
        self.balance += bytes as isize;
    }
}

/// What changes a forest.
pub(crate) struct Pen<'a> {
    pub forest: &'a Forest,
    pub w: &'a mut Writer,
    pub guard: &'a Guard,
    /// Set where it may be certain of others than before whose the names here are.
    pub stirred: &'a mut bool,
}

impl Drop for Pen<'_> {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.w.bin.balance);
        let now = self.forest.bytes.load(Ordering::Relaxed);
        self.forest.bytes.store(now.saturating_add_signed(bytes), Ordering::Relaxed);
    }
}

impl Forest {
    /// Nothing but the root.
    pub fn new(kind: Kind, keyed: bool) -> Forest {
        let heads = Grown::new();
        heads.push(Head::new);
        Forest {
            kind,
            keyed,
            heads,
            children: Table::new(4),
            firsts: Table::new(4),
            names: Table::new(8),
            keys: Table::new(8),
            bytes: AtomicUsize::new(0),
            clock: AtomicU32::new(0),
        }
    }

    /// Whether any strand was ever made.
    pub fn is_used(&self) -> bool {
        self.heads.len() > 1
    }

    /// Bytes of blocks, tables and holders.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed) + self.heads.len() * size_of::<Head>()
    }

    /// Lanes of a strand's blocks: own hashes, names, request keys.
    fn lanes(&self) -> usize {
        match self.kind {
            Kind::Canonical => 1,
            Kind::Chained => 2 + usize::from(self.keyed),
        }
    }
    fn name_lane(&self) -> usize {
        self.lanes().min(2) - 1
    }

    #[inline]
    fn head(&self, strand: u32) -> Option<&Head> {
        self.heads.get(strand as usize)
    }

    #[inline]
    pub fn look<'g>(&'g self, guard: &'g Guard, strand: u32) -> Option<Look<'g>> {
        self.head(strand)?.look(guard)
    }

    /// What the engines call a strand's blocks.
    pub fn names<'g>(&self, look: Look<'g>) -> &'g [u64] {
        look.lane(self.name_lane())
    }

    /// Blocks before a strand's first, or [`UNKNOWN_DEPTH`].
    pub fn depth(&self, strand: u32) -> u32 {
        self.head(strand).map_or(UNKNOWN_DEPTH, Head::depth)
    }

    /// Tokens per block of a strand.
    pub fn block_size(&self, strand: u32) -> u32 {
        self.head(strand).map_or(0, |h| h.block_size.load(Ordering::Relaxed))
    }

    /// What the block before a strand's first is called, where there is one and it is known.
    pub fn name_before(&self, guard: &Guard, strand: u32) -> Option<u64> {
        let head = self.head(strand)?;
        match self.kind {
            Kind::Canonical => Some(head.seed.load(Ordering::Relaxed)).filter(|n| *n != 0),
            Kind::Chained => {
                let Place { strand, offset } = head.parent();
                let look = self.look(guard, strand)?;
                self.names(look).get(offset.checked_sub(1)? as usize).copied()
            }
        }
    }

    /// Asks for where prompts lie that begin with `local`.
    pub fn expect_first(&self, guard: &Guard, local: u64) {
        self.children.prefetch(guard, child_key(Place { strand: ROOT, offset: 0 }, local));
    }

    /// Asks for what a store of blocks called `names` will look at.
    pub fn expect(&self, guard: &Guard, parent: Option<u64>, names: &[u64]) {
        for name in parent.iter().chain(names.iter().take(store::AHEAD)) {
            self.names.prefetch(guard, *name);
        }
    }

    /// Where the engines' block `name` lies.
    #[inline]
    pub fn find_name(&self, guard: &Guard, name: u64) -> Option<Place> {
        self.names.find(guard, name, |p| self.is_in_lane(guard, p, self.name_lane(), name))
    }

    #[inline]
    fn is_in_lane(&self, guard: &Guard, place: Place, lane: usize, word: u64) -> bool {
        let Some(Loaded::Words(w)) = self.head(place.strand).map(|h| h.blocks.load(guard)) else {
            return false;
        };
        let blocks = Blocks::of(w);
        blocks.lane(lane, blocks.len()).get(place.offset as usize) == Some(&word)
    }

    /// The strand that goes on with block `local` after `at`.
    #[inline]
    fn find_child<'g>(&'g self, guard: &'g Guard, at: Place, local: u64) -> Option<(u32, Look<'g>)> {
        let mut found = None;
        let is = |p: Place| {
            found = self.head(p.strand).filter(|h| h.parent() == at).and_then(|h| h.look(guard));
            found.is_some_and(|l| l.locals().first() == Some(&local))
        };
        let strand = self.children.find(guard, child_key(at, local), is)?.strand;
        Some((strand, found?))
    }

    /// llm-d's request key of the engines' block `name`.
    pub fn key_of(&self, guard: &Guard, name: u64) -> Option<u64> {
        let p = self.find_name(guard, name)?;
        let keys = self.look(guard, p.strand)?.keys();
        keys.get(p.offset as usize).copied().filter(|k| *k != 0)
    }

    /// Seed of a strand's canonical chain.
    pub fn seed(&self, strand: u32) -> u64 {
        self.head(strand).map_or(0, |h| h.seed.load(Ordering::Relaxed))
    }

    /// Distinct blocks that anyone holds. Looks at every strand.
    pub fn held_blocks(&self, guard: &Guard) -> u64 {
        (1..self.heads.len() as u32)
            .filter_map(|s| self.look(guard, s))
            .map(|look| {
                let mut spans: Vec<Span> = Vec::new();
                look.each(|_, _, span| spans.push(span));
                spans.sort_unstable();
                let mut joined = Spans::new();
                spans.into_iter().for_each(|s| join(&mut joined, s));
                u64::from(count(&joined))
            })
            .sum()
    }
}

/// The key of the strand that goes on with block `local` at `at`.
#[inline(always)]
fn child_key(at: Place, local: u64) -> u64 {
    let place = u64::from(at.strand) << 32 | u64::from(at.offset);
    local ^ place.wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_left(31)
}
