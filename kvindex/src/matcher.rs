//! The short question: how many blocks of a prompt does each pod hold, from the root without a gap?
//!
//! [`Index::query`](crate::Index::query) answers with everything that is known of every candidate. A
//! scheduler that asks thousands of times a second and wants the few best pods asks a [`Matcher`]: it
//! keeps its room from question to question, and its answer is a list of levels (so many blocks, these
//! pods) from which only what is wanted is made.

use std::sync::Arc;

use kvproto::hash::canonical::{MmItem, Namespace, PromptExtras};
use kvproto::{LocalHash, SeqHash};

use crate::forest::{Chain, Guard, Place, ROOT, Reach, Slot, pin, words};
use crate::pool::{CANONICAL, Pool, Seat};
use crate::score::held;
use crate::types::{HolderId, Prompt, Query};
use crate::walk::{Tokens, walk};

/// What a short question gives the prompt by.
#[derive(Clone, Copy, Debug)]
pub enum Blocks<'a> {
    /// Each block's own hash, as [`kvproto::hash::canonical`] lays down.
    Local(&'a [LocalHash]),
    /// Canonical rolling hashes from the root.
    Canonical(&'a [SeqHash]),
    /// Token ids, to be cut into blocks of `block_size`.
    Tokens {
        /// The prompt.
        tokens: &'a [u32],
        /// Tokens per block; pods of other block sizes match nothing.
        block_size: u32,
        /// LoRA adapter.
        lora: Option<&'a str>,
        /// Cache salt.
        cache_salt: Option<&'a str>,
        /// Multimodal items, in order of their offset.
        items: &'a [MmItem<'a>],
    },
}

/// Asks one model's pods. One per thread; made by [`Index::matcher`](crate::Index::matcher).
#[derive(Debug)]
pub struct Matcher {
    pool: Arc<Pool>,
    tenant: String,
    model: String,
    salt: String,
    seats: Arc<Vec<Seat>>,
    seated: u64,
    /// Whether some of the seats are of what may be gone.
    doubt: bool,
    slots: usize,
    reach: Reach,
    /// Scores of a question that levels could not answer.
    scored: Vec<(u32, Slot)>,
    hashed: Vec<u64>,
    asked: u32,
}

/// Where a prompt's known blocks end: what a conversation's next turn goes on from.
///
/// It is of one [`Matcher`]'s model and index, and worth nothing once the blocks there were dropped:
/// then [`Matcher::resume`] says so and the prompt is asked whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Continuation {
    domain: u32,
    strand: u32,
    offset: u32,
    generation: u32,
    /// Blocks up to here.
    pub blocks: u32,
}

/// The answer to a short question.
#[derive(Debug)]
pub struct Matched<'m> {
    matcher: &'m Matcher,
    levels: bool,
    /// Where the next turn can go on; `None` where nothing matches, or pods of several hash
    /// domains may.
    pub continuation: Option<Continuation>,
}

impl Matcher {
    pub(crate) fn new(pool: Arc<Pool>, tenant: &str, model: &str, salt: &str) -> Matcher {
        let (seated, seats) = (pool.seated(), pool.seats());
        Matcher {
            seated,
            doubt: doubt(&seats),
            slots: slots(&seats),
            pool,
            tenant: tenant.to_owned(),
            model: model.to_owned(),
            salt: salt.to_owned(),
            seats,
            reach: Reach::default(),
            scored: Vec::new(),
            hashed: Vec::new(),
            asked: 0,
        }
    }

    /// Blocks that each pod holds of the prompt, in any tier, from the root without a gap.
    pub fn ask(&mut self, blocks: Blocks<'_>) -> Matched<'_> {
        let guard = pin();
        self.begin();
        let root = Place { strand: ROOT, offset: 0 };
        let mut continuation = None;
        match blocks {
            Blocks::Local(locals) => {
                continuation = self.follow(&guard, root, &mut words(locals));
            }
            Blocks::Canonical(seqs) => {
                let Matcher { pool, reach, .. } = self;
                for d in pool.forests.domains() {
                    pool.forests.get(d).by_seqs(&guard, seqs, |step| reach.pass(&step));
                    reach.next();
                }
                if pool.forests.has_canonical() {
                    let canonical = pool.forests.get(CANONICAL);
                    canonical.by_names(&guard, words(seqs), |step| reach.pass(&step));
                    reach.next();
                }
            }
            Blocks::Tokens { tokens, block_size, lora, cache_salt, items } => {
                if block_size > 0 {
                    let extras = PromptExtras { cache_salt, items, ..PromptExtras::default() };
                    let seed = Namespace { salt: &self.salt, model: &self.model, lora }.seed();
                    let room = std::mem::take(&mut self.hashed);
                    let mut chain = Tokens::new(seed, tokens, block_size, extras, None, room);
                    continuation = self.follow(&guard, root, &mut chain);
                    self.hashed = chain.into_room();
                }
            }
        }
        // Several tiers or groups, blocks that stand for themselves beside others, other forms of
        // items: the long way tells.
        let items = matches!(blocks, Blocks::Tokens { items: [_, ..], .. });
        let unsure = matches!(blocks, Blocks::Tokens { .. }) && self.pool.forests.has_canonical();
        let levels = !self.reach.other_planes && !items && !unsure && !self.doubt;
        if !levels {
            self.ask_long(blocks, &guard);
        }
        drop(guard);
        Matched { matcher: self, levels, continuation }
    }

    /// Asks about several prompts; while one is answered, what the next begins with is fetched.
    pub fn ask_each(&mut self, prompts: &[Blocks<'_>], mut each: impl FnMut(usize, Matched<'_>)) {
        for (i, blocks) in prompts.iter().enumerate() {
            if let Some(Blocks::Local([first, ..])) = prompts.get(i + 1) {
                let guard = pin();
                for d in self.pool.forests.domains() {
                    self.pool.forests.get(d).expect_first(&guard, first.0);
                }
            }
            each(i, self.ask(*blocks));
        }
    }

    /// The same for a prompt that goes on with blocks `more` after those that `from` stands for.
    /// `None` where those are not known any more, or more than levels are needed to tell.
    pub fn resume(&mut self, from: &Continuation, more: &[LocalHash]) -> Option<Matched<'_>> {
        let guard = pin();
        self.begin();
        let place = Place { strand: from.strand, offset: from.offset };
        let last = Place { offset: from.offset.checked_sub(1)?, ..place };
        let forest = self.pool.forests.get(from.domain as usize);
        if !forest.is_there(&guard, last, from.generation) {
            return None;
        }
        let mut all = true;
        for step in forest.path(&guard, place)? {
            all = self.reach.pass(&step);
            if !all {
                break;
            }
        }
        let mut end = (place, from.blocks as usize);
        if all {
            // Hashes are counted from the root; those before are not looked at.
            let mut chain = After { before: from.blocks as usize, more: words(more) };
            let reach = &mut self.reach;
            end = forest.by_locals(&guard, place, &mut chain, |step| reach.pass(&step));
        }
        self.reach.next();
        if self.reach.other_planes || self.doubt {
            return None;
        }
        let continuation = Some(self.continuation(from.domain as usize, end));
        drop(guard);
        Some(Matched { matcher: self, levels: true, continuation })
    }

    fn begin(&mut self) {
        let seated = self.pool.seated();
        if seated != self.seated {
            self.seats = self.pool.seats();
            self.seated = seated;
            self.slots = slots(&self.seats);
            self.doubt = doubt(&self.seats);
        }
        self.reach.begin(self.slots);
        self.asked = self.asked.wrapping_add(1);
    }

    fn follow(&mut self, guard: &Guard, root: Place, chain: &mut impl Chain) -> Option<Continuation> {
        let Matcher { pool, reach, asked, .. } = self;
        let mut found: Option<(usize, (Place, usize))> = None;
        let mut several = false;
        for d in pool.forests.domains() {
            let forest = pool.forests.get(d);
            let end = forest.by_locals(guard, root, chain, |step| {
                forest.note_use(step.strand, *asked);
                reach.pass(&step)
            });
            reach.next();
            if end.1 > 0 {
                several |= found.is_some();
                found = Some((d, end));
            }
        }
        let (domain, end) = found.filter(|_| !several)?;
        Some(self.continuation(domain, end))
    }

    fn continuation(&self, domain: usize, (place, blocks): (Place, usize)) -> Continuation {
        Continuation {
            domain: domain as u32,
            strand: place.strand,
            offset: place.offset,
            generation: self.pool.forests.get(domain).generation(place.strand),
            blocks: blocks as u32,
        }
    }

    fn ask_long(&mut self, blocks: Blocks<'_>, guard: &Guard) {
        let (prompt, block_size) = match blocks {
            Blocks::Local(locals) => (Prompt::Local(locals), None),
            Blocks::Canonical(seqs) => (Prompt::Canonical(seqs), None),
            Blocks::Tokens { tokens, block_size, lora, cache_salt, items } => {
                (Prompt::Tokens { tokens, lora, cache_salt, items }, Some(block_size))
            }
        };
        let query = Query { block_size, ..Query::new(&self.tenant, &self.model, prompt) };
        let seats = self.seats.clone();
        let found = walk(&self.pool, &seats, &query, guard);
        self.scored.clear();
        for c in &found.columns {
            let n = held(&c.runs, c.profile.device_mask());
            if n > 0
                && c.member.suspect_of.is_none()
                && c.block_size == block_size.unwrap_or(c.block_size)
                && let Ok(slot) = Slot::try_from(c.member.slot)
            {
                self.scored.push((n, slot));
            }
        }
    }
}

/// Slots that seats may be in.
fn slots(seats: &[Seat]) -> usize {
    seats.last().map_or(0, |s| s.member.slot as usize + 1)
}

fn doubt(seats: &[Seat]) -> bool {
    seats.iter().any(|s| s.member.suspect_of.is_some() || s.member.spec.tiers)
}

/// A prompt's hashes of which the first are not given.
struct After<'a> {
    before: usize,
    more: &'a [u64],
}

impl Chain for After<'_> {
    fn upto(&mut self, _: usize) -> &[u64] {
        self.more
    }
    fn first(&self) -> usize {
        self.before
    }
}

impl Matched<'_> {
    /// Calls `each` with levels: blocks, and how many pods hold just so many; in no order, a number
    /// possibly twice.
    pub fn levels(&self, mut each: impl FnMut(u32, u32)) {
        match self.levels {
            true => self.matcher.reach.counts(each),
            false => self.matcher.scored.iter().for_each(|(blocks, _)| each(*blocks, 1)),
        }
    }

    fn singles(&self) -> impl Iterator<Item = (u32, Slot)> {
        let m = self.matcher;
        let stopped = m.reach.singles().filter(|_| self.levels);
        stopped.chain(m.scored.iter().copied().filter(|_| !self.levels))
    }

    /// The most blocks that any pod holds.
    pub fn best(&self) -> u32 {
        let mut best = 0;
        self.levels(|blocks, _| best = best.max(blocks));
        best
    }

    /// Every pod that holds the first block, and how many blocks; in no order.
    pub fn each(&self, mut each: impl FnMut(HolderId, u32)) {
        let seats = &self.matcher.seats;
        let mut say = |slot: Slot, blocks: u32| {
            // Seats are in the order of their slots.
            if let Ok(i) = seats.binary_search_by_key(&u32::from(slot), |s| s.member.slot) {
                each(seats[i].member.id, blocks);
            }
        };
        if self.levels {
            for (blocks, set) in self.matcher.reach.sets() {
                for (i, mut word) in set.iter().copied().enumerate() {
                    while word != 0 {
                        say((i * 64) as Slot + word.trailing_zeros() as Slot, blocks);
                        word &= word - 1;
                    }
                }
            }
        }
        self.singles().for_each(|(blocks, slot)| say(slot, blocks));
    }

    /// The `k` pods that hold most, the best first; those that hold as much in the order they were
    /// attached.
    pub fn top(&self, k: usize) -> Vec<(HolderId, u32)> {
        let mut all = Vec::new();
        self.each(|id, blocks| all.push((id, blocks)));
        all.sort_unstable_by_key(|(id, blocks)| (std::cmp::Reverse(*blocks), *id));
        all.truncate(k);
        all
    }
}
