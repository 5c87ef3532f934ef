//! What engines can load without having stored it: the tiers of their node, and shared storage.
//!
//! A node's tiers are a holder, too, but no candidate. Where a prompt's way through a forest leads past
//! blocks that they have, the candidates that reach them have those as well:
//!
//! ```text
//!   tiers of node n:  RAM, disk ──▶ engines of node n          shared ──▶ engines of the model
//! ```
//!
//! Tiers know blocks by the engines' names alone, and equal names of two engines mean the same only if
//! the two call blocks alike. So what is found in a hash domain is for the engines that are certain to
//! belong there: an answer may be too small for a while, never too large. A name that the tiers told
//! before any engine told what is in it stands in no forest; it is looked up by the names along the way.

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use kvproto::{EngineHash, Tier};
use smallvec::SmallVec;

use crate::forest::{Forest, Step};
use crate::pool::{Member, Pool, Seat};
use crate::profile::Mask;
use crate::runs::Runs;
use crate::types::Below;
use crate::walk::Column;

/// The tiers whose blocks a query's candidates may reach.
pub(crate) struct Tiers<'s> {
    all: SmallVec<[&'s Member; 4]>,
    /// Whether some have blocks that stand in no forest.
    odd: bool,
    /// What is noted of candidates, and the notes.
    notes: Option<(Wanted, RefCell<Vec<Below>>)>,
}

/// Which blocks are noted of a candidate, that are not on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Those that its node would have to bring up to RAM.
    Below,
    /// Those that its node has in RAM or on disk.
    Within,
}

/// What they have of one prompt in one hash domain.
pub(crate) struct Found<'t, 's> {
    tiers: &'t Tiers<'s>,
    runs: SmallVec<[Runs; 4]>,
    /// Names along the way, where they are needed: place in the prompt and name.
    names: Vec<(u32, u64)>,
}

/// Whether a holder is a node's tiers: no candidate.
pub(crate) fn is_tiers(seat: &Seat) -> bool {
    seat.member.spec.tiers
}

impl<'s> Tiers<'s> {
    pub fn of(seats: &'s [Seat]) -> Tiers<'s> {
        let tiers = seats.iter().filter(|seat| is_tiers(seat) && seat.member.suspect_of.is_none());
        let all: SmallVec<[&Member; 4]> = tiers.map(|seat| &*seat.member).collect();
        let odd = all.iter().any(|member| member.odd.load(Ordering::Acquire));
        Tiers { all, odd, notes: None }
    }

    /// As if there were none.
    pub fn none() -> Tiers<'s> {
        Tiers { all: SmallVec::new(), odd: false, notes: None }
    }

    /// Notes what is wanted of candidates. `None` where there are no tiers.
    pub fn noting(self, wanted: Wanted) -> Option<Tiers<'s>> {
        (!self.all.is_empty()).then(|| Tiers { notes: Some((wanted, RefCell::default())), ..self })
    }

    /// What was noted.
    pub fn noted(self) -> Vec<Below> {
        self.notes.map(|(_, notes)| notes.into_inner()).unwrap_or_default()
    }

    pub fn found(&self) -> Found<'_, 's> {
        Found { tiers: self, runs: self.all.iter().map(|_| Runs::default()).collect(), names: Vec::new() }
    }
}

impl Found<'_, '_> {
    /// Notes what the tiers have of a step.
    pub fn take(&mut self, step: &Step<'_>, forest: &Forest) {
        let (lo, hi) = (step.offset, step.offset + step.n);
        if self.tiers.all.is_empty() {
            return;
        }
        step.look.each(|plane, slot, (from, to)| {
            let (from, to) = (from.max(lo), to.min(hi));
            let at = self.tiers.all.iter().position(|member| member.slot == u32::from(slot));
            if let Some(at) = at.filter(|_| from < to) {
                self.runs[at].add(step.from + from - lo, step.from + to - lo, plane.mask());
            }
        });
        if self.tiers.odd || self.tiers.notes.is_some() {
            let names = forest.names(step.look);
            let along = names.get(lo as usize..hi as usize).unwrap_or_default();
            self.names.extend((step.from..).zip(along.iter().copied()));
        }
    }

    /// Gives what was found in hash domain `domain` to those of `columns` that reach it.
    pub fn give(mut self, pool: &Pool, domain: usize, columns: &mut [Column<'_>], which: &[usize]) {
        if self.tiers.all.is_empty() {
            return;
        }
        self.look_up_names(pool);
        for &i in which {
            let column = &mut columns[i];
            if column.member.domain.load(Ordering::Acquire) != domain || column.block_size == 0 {
                continue;
            }
            for (member, runs) in self.tiers.all.iter().zip(&self.runs) {
                let reached = reached(&column.member.spec.node, &member.spec.node);
                for run in runs.iter() {
                    let mask = Mask(run.mask.0 & reached.0);
                    if !mask.is_empty() {
                        column.runs.add(run.from, run.to, mask);
                    }
                }
            }
            self.note(column);
        }
    }

    /// Notes what is wanted of a candidate whose node has tiers.
    fn note(&self, column: &Column<'_>) {
        let Some((wanted, notes)) = &self.tiers.notes else { return };
        let node = &column.member.spec.node;
        let is_own = |member: &Member| node.is_some() && *node == member.spec.node;
        let Some(own) = self.tiers.all.iter().position(|member| is_own(member)) else { return };
        let noted = match wanted {
            Wanted::Below => self.below(column, own),
            Wanted::Within => vec![(own, self.within(column, own))],
        };
        for (at, names) in noted.into_iter().filter(|(_, names)| !names.is_empty()) {
            let hashes = names.into_iter().map(|(_, name)| EngineHash(name)).collect();
            let (tiers, at) = (self.tiers.all[own].id, self.tiers.all[at].id);
            notes.borrow_mut().push(Below { engine: column.member.id, tiers, at, hashes });
        }
    }

    /// What the node with tiers `own` has in RAM or on disk and the candidate not on its device: place in the
    /// prompt and name.
    fn within(&self, column: &Column<'_>, own: usize) -> Vec<(u32, u64)> {
        let has = |&(at, _): &(u32, u64)| {
            let held = self.runs[own].at(at);
            (held.has_tier(Tier::Cpu) || held.has_tier(Tier::Disk)) && !column.runs.at(at).has_tier(Tier::Gpu)
        };
        self.names.iter().copied().filter(has).collect()
    }

    /// Which blocks a candidate's node is to bring up, and from which tiers: those that are neither in its RAM nor
    /// on the candidate's device, and that it or another node has.
    fn below(&self, column: &Column<'_>, own: usize) -> Vec<(usize, Vec<(u32, u64)>)> {
        let is_own = |member: &Member| self.tiers.all[own].spec.node == member.spec.node;
        let (mut here, mut elsewhere) = (Vec::new(), Vec::new());
        for &(at, name) in &self.names {
            let held = self.runs[own].at(at);
            if held.has_tier(Tier::Cpu) || column.runs.at(at).has_tier(Tier::Gpu) {
                continue;
            }
            // What another node has in RAM or on disk is nearer than shared storage.
            match held.has_tier(Tier::Disk) {
                true => here.push((at, name)),
                false => elsewhere.push((at, name)),
            }
        }
        let has = |tiers: usize, at: u32| {
            let held = self.runs[tiers].at(at);
            held.has_tier(Tier::Cpu) || held.has_tier(Tier::Disk)
        };
        let mut noted = Vec::new();
        while !elsewhere.is_empty() {
            // As few nodes as can be: who has most of it is asked first.
            let others = (0..self.runs.len()).filter(|i| !is_own(self.tiers.all[*i]));
            let count = |i: usize| elsewhere.iter().filter(|(at, _)| has(i, *at)).count();
            let counts = others.map(|i| (count(i), i));
            let Some((1.., most)) = counts.max_by_key(|(n, i)| (*n, std::cmp::Reverse(*i))) else { break };
            noted.push((most, elsewhere.extract_if(.., |(at, _)| has(most, *at)).collect::<Vec<_>>()));
        }
        here.extend(elsewhere.into_iter().filter(|(at, _)| self.runs[own].at(*at).has_tier(Tier::Shared)));
        here.sort_by_key(|(at, _)| *at);
        noted.insert(0, (own, here));
        noted
    }

    fn look_up_names(&mut self, pool: &Pool) {
        if self.names.is_empty() || !self.tiers.odd {
            return;
        }
        pool.write(|holders, _| {
            for (member, runs) in self.tiers.all.iter().zip(&mut self.runs) {
                let Some(Some(holder)) = holders.get(member.slot as usize) else { continue };
                for &(at, name) in &self.names {
                    let mask = holder.odd_mask(EngineHash(name));
                    if !mask.is_empty() {
                        runs.add(at, at + 1, mask);
                    }
                }
            }
        });
    }
}

/// In which tiers of one node an engine of another, or the same, can load blocks.
fn reached(engine: &Option<String>, tiers: &Option<String>) -> Mask {
    let shared = Mask::bit(Tier::Shared, 0);
    match engine.is_some() && engine == tiers {
        true => shared.union(Mask::bit(Tier::Cpu, 0)).union(Mask::bit(Tier::Disk, 0)),
        false => shared,
    }
}
