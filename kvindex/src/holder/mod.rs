//! What each event of one engine changes.
//!
//! What an engine holds lies in the forest of its hash domain as intervals. Kept here is only what
//! does not fit there: blocks that are held but stand nowhere yet, or that the engine calls by a second
//! name ([`odd`]), and what its events tell of it ([`learn`]).
//!
//! An engine begins in the domain that most use. As soon as it calls a block of another engine by
//! another name it moves to a domain whose names agree with its own, or to a new one ([`domain`]);
//! once it has called another's block by the same name it stays.

mod carry;
mod domain;
mod inspect;
mod learn;
mod odd;
mod store;

use kvproto::hash::canonical::Seed;
use kvproto::hash::llmd::Llmd;
use kvproto::{Batch, EngineHash, Event, Removed, Tier};

use crate::forest::{Guard, Pen, Place, Plane, Slot, Span, Writer};
use crate::pool::{CANONICAL, Forests};
use crate::profile::{Mask, Profile};
use crate::types::{Applied, HolderSpec, HolderStats};

pub(crate) use carry::{Learnt, Misfits, OddBlock, OddKnown};

use odd::Odd;

/// One engine.
#[derive(Debug)]
pub(crate) struct Holder {
    spec: std::sync::Arc<HolderSpec>,
    slot: Slot,
    /// A number for what it tells until it is reset.
    creator: u32,
    /// Batches since it has this number.
    applied: u64,
    max_blocks: usize,
    /// Names blocks by llm-d's request keys too, where the deployment asks by them.
    llmd: Option<Llmd>,
    /// Its hash domain.
    domain: usize,
    /// Whether it has called another engine's block by the same name.
    agreed: bool,
    /// Strands that it holds or held something of, by domain: the canonical one and its own.
    strands: [Strands; 2],
    odd: Odd,
    /// Seeds by LoRA name.
    seeds: Vec<(Option<String>, Seed)>,
    profile: Profile,
    profile_changed: bool,
    stats: HolderStats,
    told: store::Scratch,
}

/// Blocks of one strand that an event removes.
struct Run<'g> {
    domain: usize,
    strand: u32,
    span: Span,
    /// What the strand's blocks are called.
    names: &'g [u64],
}

/// Strands of one domain that a holder is or was in.
#[derive(Debug, Default)]
struct Strands {
    all: Vec<u32>,
    /// How many of them it may have left.
    left: usize,
}

/// What a holder's events are applied to.
pub(crate) struct Desk<'a> {
    pub forests: &'a Forests,
    pub writers: &'a mut Vec<Writer>,
    pub guard: &'a Guard,
    /// A number that no holder had.
    pub next_creator: &'a mut u32,
    /// Set where it may be certain of others than before whose the names in a domain are.
    pub stirred: &'a mut bool,
}

impl Desk<'_> {
    pub fn pen(&mut self, domain: usize) -> Pen<'_> {
        if self.writers.len() <= domain {
            self.writers.resize_with(domain + 1, Writer::new);
        }
        let (forest, w) = (self.forests.get(domain), &mut self.writers[domain]);
        Pen { forest, w, guard: self.guard, stirred: self.stirred }
    }

    /// One engine more is in a domain.
    fn join(&mut self, domain: usize) {
        *self.stirred = true;
        self.forests.join(domain);
    }

    /// One engine less is in a domain.
    fn part(&mut self, domain: usize) {
        *self.stirred = true;
        self.forests.part(domain);
    }
}

impl Holder {
    pub fn new(
        spec: std::sync::Arc<HolderSpec>,
        slot: Slot,
        max_blocks: usize,
        llmd: Option<Llmd>,
        desk: &mut Desk<'_>,
    ) -> Holder {
        *desk.next_creator += 1;
        let domain = desk.forests.busiest();
        // Tiers have no names of their own.
        if !spec.tiers {
            desk.join(domain);
        }
        Holder {
            spec,
            slot,
            creator: *desk.next_creator,
            applied: 0,
            max_blocks,
            llmd,
            domain,
            agreed: false,
            strands: Default::default(),
            odd: Odd::default(),
            seeds: Vec::new(),
            profile: Profile::default(),
            profile_changed: false,
            stats: HolderStats::default(),
            told: store::Scratch::default(),
        }
    }

    /// The same engine with nothing held, in another slot: what was learnt of it stays.
    pub fn successor(&self, slot: Slot, desk: &mut Desk<'_>) -> Holder {
        let new = Holder::new(self.spec.clone(), slot, self.max_blocks, self.llmd, desk);
        if !self.spec.tiers {
            desk.part(new.domain);
            desk.join(self.domain);
        }
        let HolderStats { refused, dropped, .. } = self.stats;
        Holder {
            domain: self.domain,
            agreed: self.agreed,
            seeds: self.seeds.clone(),
            profile: self.profile.clone(),
            stats: HolderStats { refused, dropped, ..HolderStats::default() },
            ..new
        }
    }

    /// Its place among the pool's holders.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// Applies the events in order.
    pub fn apply(&mut self, batch: &Batch<'_>, desk: &mut Desk<'_>) -> Applied {
        let mut done = Applied::default();
        self.begin(desk);
        batch.events().for_each(|event| self.apply_event(&event, desk, &mut done));
        self.stats.refused += u64::from(done.refused);
        done
    }

    /// Time goes on by a batch.
    pub fn begin(&mut self, desk: &mut Desk<'_>) {
        self.applied += 1;
        desk.pen(self.domain).tick();
    }

    /// Applies one event of a batch.
    pub fn apply_event(&mut self, event: &Event<'_>, desk: &mut Desk<'_>, done: &mut Applied) {
        match event {
            Event::Stored(s) => self.stored(s, desk, done),
            Event::Removed(r) => self.removed(r, desk, done),
            Event::Cleared(c) => {
                done.cleared += 1;
                self.clear_tier(c.tier, desk);
            }
        }
    }

    /// Forgets everything, also what was learnt of the engine.
    pub fn reset(&mut self, desk: &mut Desk<'_>) {
        self.leave(desk);
        let HolderStats { refused, dropped, .. } = self.stats;
        let stats = HolderStats { refused, dropped, ..HolderStats::default() };
        let new = Holder::new(self.spec.clone(), self.slot, self.max_blocks, self.llmd, desk);
        *self = Holder { stats, profile_changed: true, ..new };
    }

    /// Lets everything go, for good.
    pub fn leave(&mut self, desk: &mut Desk<'_>) {
        self.clear_tier(None, desk);
        if !self.spec.tiers {
            desk.part(self.domain);
        }
    }

    /// What was learnt, if it changed since this was last asked.
    pub fn changed_profile(&mut self) -> Option<Profile> {
        std::mem::take(&mut self.profile_changed).then(|| self.profile.clone())
    }

    fn removed(&mut self, r: &Removed<'_>, desk: &mut Desk<'_>, done: &mut Applied) {
        if r.group >= crate::profile::MAX_GROUPS {
            done.unknown_removed += r.hashes.len() as u32;
            return;
        }
        let plane = Plane::of(Mask::bit(r.tier, r.group));
        // Blocks of one sequence follow each other, from either end: the next one is looked for
        // beside the last before it is looked up.
        let mut run: Option<Run<'_>> = None;
        let guard = desk.guard;
        let forests = desk.forests;
        for &h in r.hashes {
            if !self.odd.is_empty() && self.odd.knows(h) {
                self.let_run_go(run.take(), plane, desk, done);
                self.odd_removed(h, r.tier, r.group, desk, done);
                continue;
            }
            if let Some(Run { names, span, .. }) = &mut run {
                if names.get(span.1 as usize) == Some(&h.0) {
                    span.1 += 1;
                    continue;
                }
                if span.0 > 0 && names[span.0 as usize - 1] == h.0 {
                    span.0 -= 1;
                    continue;
                }
            }
            self.let_run_go(run.take(), plane, desk, done);
            run = self.find(h, desk).and_then(|(domain, p)| {
                let names = forests.get(domain).names(forests.get(domain).look(guard, p.strand)?);
                Some(Run { domain, strand: p.strand, span: (p.offset, p.offset + 1), names })
            });
            done.unknown_removed += u32::from(run.is_none());
        }
        self.let_run_go(run, plane, desk, done);
    }

    fn let_run_go(&mut self, run: Option<Run<'_>>, plane: Plane, desk: &mut Desk<'_>, done: &mut Applied) {
        let Some(Run { domain, strand, span, .. }) = run else { return };
        let look = desk.forests.get(domain).look(desk.guard, strand);
        let plain = plane == Plane::of(Mask::bit(Tier::Gpu, 0)) && self.odd.is_empty();
        let dropped = if plain && look.is_some_and(|l| l.planes.is_none()) {
            // By far the most often: nothing but the device's one group.
            let (dropped, last) = desk.pen(domain).drop_copy(self.slot, plane, strand, span);
            self.stats.blocks -= u64::from(last);
            self.stats.by_tier[0] -= u64::from(last);
            dropped
        } else {
            self.changing(domain, strand, span, desk, |pen, slot| pen.drop_copy(slot, plane, strand, span)).0
        };
        done.removed += dropped;
        done.unknown_removed += span.1 - span.0 - dropped;
        self.gone_from(domain, strand, desk);
    }

    /// Drops every copy in `tier`, or in all of them, in time proportional to this holder.
    fn clear_tier(&mut self, tier: Option<Tier>, desk: &mut Desk<'_>) {
        for which in 0..2 {
            let domain = self.domain_of(which);
            let mut strands = std::mem::take(&mut self.strands[which].all);
            strands.sort_unstable();
            strands.dedup();
            for &strand in &strands {
                let Some(look) = desk.forests.get(domain).look(desk.guard, strand) else { continue };
                self.changing(domain, strand, (0, look.len), desk, |pen, slot| {
                    pen.drop_all(slot, strand, (0, look.len), |p| tier.is_none_or(|t| p.mask().has_tier(t)));
                });
                desk.pen(domain).let_go(strand);
            }
            strands.retain(|s| desk.holds(domain, *s, self.slot));
            self.strands[which] = Strands { all: strands, left: 0 };
        }
        self.odd_cleared(tier, desk);
    }

    /// Keeps the counts in step with what `change` does to `span` of a strand.
    fn changing<R>(
        &mut self,
        domain: usize,
        strand: u32,
        span: Span,
        desk: &mut Desk<'_>,
        change: impl FnOnce(&mut Pen<'_>, Slot) -> R,
    ) -> R {
        let forest = desk.forests.get(domain);
        let held = |desk: &Desk<'_>| match forest.look(desk.guard, strand) {
            Some(look) => {
                let mut held = look.held(self.slot, span);
                self.odd.discount(domain, strand, span, self.slot, &look, &mut held);
                held
            }
            None => Default::default(),
        };
        let before = held(desk);
        let out = change(&mut desk.pen(domain), self.slot);
        let after = held(desk);
        let step = |n: &mut u64, a: u32, b: u32| *n = n.wrapping_add(u64::from(b)).wrapping_sub(u64::from(a));
        step(&mut self.stats.blocks, before.any, after.any);
        for (n, (a, b)) in self.stats.by_tier.iter_mut().zip(before.by_tier.into_iter().zip(after.by_tier)) {
            step(n, a, b);
        }
        out
    }

    /// After this holder let go of some of a strand.
    fn gone_from(&mut self, domain: usize, strand: u32, desk: &mut Desk<'_>) {
        desk.pen(domain).let_go(strand);
        if !desk.holds(domain, strand, self.slot) {
            let which = usize::from(domain != CANONICAL);
            let strands = &mut self.strands[which];
            strands.left += 1;
            if strands.left > 64 && strands.left > strands.all.len() / 2 {
                strands.all.sort_unstable();
                strands.all.dedup();
                strands.all.retain(|s| desk.holds(domain, *s, self.slot));
                strands.left = 0;
            }
        }
    }

    /// Where the engine's block `h` lies: its domain and place.
    fn find(&self, h: EngineHash, desk: &Desk<'_>) -> Option<(usize, Place)> {
        let find = |domain| Some((domain, desk.forests.get(domain).find_name(desk.guard, h.0)?));
        let canonical = || if self.strands[0].all.is_empty() { None } else { find(CANONICAL) };
        find(self.domain).or_else(canonical)
    }

    fn domain_of(&self, which: usize) -> usize {
        if which == 0 { CANONICAL } else { self.domain }
    }

    /// What the index dropped of this holder to stay within its budget.
    pub fn lose(&mut self, domain: usize, loss: crate::forest::Loss, desk: &mut Desk<'_>) {
        let before = self.stats.blocks;
        self.odd.forget_places(domain, loss.strand, loss.span);
        self.changing(domain, loss.strand, loss.span, desk, |pen, _| pen.lose(loss));
        self.stats.dropped += before - self.stats.blocks;
        self.gone_from(domain, loss.strand, desk);
    }

    /// (Block, holder) pairs at known places, each place once.
    pub fn entries(&self) -> u64 {
        self.stats.blocks - self.odd.held() as u64 + self.odd.places() as u64
    }

    /// Counts blocks refused by events that were applied one by one.
    pub fn count_refused(&mut self, n: u32) {
        self.stats.refused += u64::from(n);
    }

    /// Its hash domain, if the names there are certain to be its own: nobody else is there or told anything, or it
    /// and another have called a block by the same name. Until then it is there on trial only.
    pub fn own_domain(&self, desk: &mut Desk<'_>) -> Option<usize> {
        let alone = desk.forests.engines(self.domain) == 1;
        let pen = desk.pen(self.domain);
        let certain = self.agreed || alone || pen.is_of_one(self.creator) || pen.is_agreed_with(self.creator);
        certain.then_some(self.domain)
    }

    /// Whether something of this holder is not in its forest.
    pub fn is_odd(&self) -> bool {
        !self.odd.is_empty()
    }
}

impl Desk<'_> {
    fn holds(&self, domain: usize, strand: u32, slot: Slot) -> bool {
        self.forests.get(domain).look(self.guard, strand).is_some_and(|l| l.has(slot))
    }
}
