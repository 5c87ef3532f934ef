//! Which strand is written next, and how much of it is not written yet?
//!
//! A strand is written after what it hangs on, whoever has that.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{CutError, HolderPart, Mark, Writer};
use crate::forest::{DEVICE, Facts, Place, ROOT, Stretch, UNKNOWN_DEPTH};
use crate::holder::{Desk, Holder, OddKnown};
use crate::pool::CANONICAL;
use crate::snapshot::record::{Blocks, Kin, Tail};

/// Payload that a chunk has, unless one record is longer.
const CHUNK: usize = 64 << 10;
/// Strands looked at in one step, whatever they have.
const MAX_LOOKS: usize = 2048;

impl Writer {
    pub(super) fn holder_step(&mut self, part: &mut HolderPart) -> Result<bool, CutError> {
        match self.index.member(part.id) {
            None => return Err(CutError::Gone(part.id)),
            // What it held is in doubt since.
            Some((_, m)) if !Arc::ptr_eq(&m, &part.member) => return Err(CutError::Changed(part.id)),
            Some(_) => {}
        }
        let pool = self.pools[part.pool as usize].clone();
        pool.write(|holders, desk| {
            let Some(Some(holder)) = holders.get(part.member.slot as usize) else {
                return Err(CutError::Gone(part.id));
            };
            if holder.stamp() != part.stamp {
                return Err(CutError::Changed(part.id));
            }
            let mut looks = MAX_LOOKS;
            let done =
                self.strands(part, holder, desk, &mut looks) && self.odd(part, holder, desk, &mut looks);
            if done {
                let ghosts: Vec<u64> = holder.odd_ghosts().map(|h| h.0).collect();
                self.encoder.ghosts(&ghosts);
                let partial = part.member.partial.load(Ordering::Relaxed);
                let blocks = holder.stats().blocks;
                self.encoder.holder_end(&Tail { learnt: holder.learnt(), partial, blocks });
            }
            Ok(done)
        })
    }

    /// Writes strands and what the holder has of them. False where there are more.
    fn strands(
        &mut self,
        part: &mut HolderPart,
        holder: &Holder,
        desk: &mut Desk<'_>,
        looks: &mut usize,
    ) -> bool {
        let mut stretches: Vec<Stretch> = Vec::new();
        while let Some((forest, list)) = part.strands.last_mut() {
            let (forest, Some(strand)) = (*forest, list.last().copied()) else {
                part.strands.pop();
                continue;
            };
            if !self.lead(forest, strand, &mut part.way, desk, looks) {
                return false;
            }
            list.pop();
            let domain = self.forests[forest as usize].domain;
            holder.stretches(domain, strand, &part.odd_places, desk, &mut stretches);
            self.write(forest, strand, &stretches, desk);
        }
        true
    }

    /// Writes odd blocks, and first where they lie. False where there are more.
    fn odd(
        &mut self,
        part: &mut HolderPart,
        holder: &Holder,
        desk: &mut Desk<'_>,
        looks: &mut usize,
    ) -> bool {
        while let Some(hash) = part.odd.last().copied() {
            let block = holder.odd_block(hash, desk);
            if let Some(OddKnown::Placed(place)) = block.as_ref().map(|b| b.known) {
                if !self.lead(part.chained, place.strand, &mut part.way, desk, looks) {
                    return false;
                }
                self.write(part.chained, place.strand, &[], desk);
            } else if !self.may_go_on(looks) {
                return false;
            }
            part.odd.pop();
            let Some(mut block) = block else { continue };
            if let OddKnown::Placed(place) = block.known {
                self.go_to(part.chained);
                let number = self.forests[part.chained as usize].strands[place.strand as usize].number;
                block.known = OddKnown::Placed(Place { strand: number, ..place });
            }
            self.encoder.odd(&block);
        }
        true
    }

    /// Writes ghosts. Whether that was all.
    pub(super) fn ghost_step(&mut self, forests: &mut Vec<(u32, Vec<u32>)>, way: &mut Vec<u32>) -> bool {
        let mut looks = MAX_LOOKS;
        while let Some((forest, list)) = forests.last_mut() {
            let forest = *forest;
            let pool = self.pools[self.forests[forest as usize].pool as usize].clone();
            let all = pool.write(|_, desk| {
                while let Some(strand) = list.last().copied() {
                    if !self.lead(forest, strand, way, desk, &mut looks) {
                        return false;
                    }
                    self.write(forest, strand, &[], desk);
                    list.pop();
                }
                true
            });
            if !all {
                return false;
            }
            forests.pop();
        }
        true
    }

    /// Counts one look at a strand; makes a chunk where it is time to. False where the step ends.
    fn may_go_on(&mut self, looks: &mut usize) -> bool {
        if self.encoder.payload.len() >= CHUNK {
            self.flush();
        }
        *looks = looks.saturating_sub(1);
        *looks > 0 && self.written() < self.step_ends
    }

    /// Writes what `strand` hangs on. False where the step ends before that is done.
    fn lead(
        &mut self,
        forest: u32,
        strand: u32,
        way: &mut Vec<u32>,
        desk: &mut Desk<'_>,
        looks: &mut usize,
    ) -> bool {
        loop {
            if !self.may_go_on(looks) {
                return false;
            }
            let next = way.last().copied().unwrap_or(strand);
            match (self.parent_to_write(forest, next, desk), way.pop()) {
                (None, None) => return true,
                (None, Some(strand)) => self.write(forest, strand, &[], desk),
                (Some(parent), popped) => way.extend(popped.into_iter().chain([parent])),
            }
        }
    }

    /// The strand that `strand` hangs on, where that is not written as far as needed.
    fn parent_to_write(&self, forest: u32, strand: u32, desk: &Desk<'_>) -> Option<u32> {
        let w = &self.forests[forest as usize];
        let at = desk.forests.get(w.domain).facts(desk.guard, strand)?.at;
        let hangs = at.strand != ROOT && w.domain != CANONICAL;
        (hangs && !self.has(forest, at, desk)).then_some(at.strand)
    }

    /// Whether the first `end.offset` blocks of a strand are written.
    fn has(&self, forest: u32, end: Place, desk: &Desk<'_>) -> bool {
        let w = &self.forests[forest as usize];
        let live = desk.forests.get(w.domain).generation(end.strand);
        let mark = w.strands.get(end.strand as usize);
        mark.is_some_and(|m| m.len > 0 && m.len >= end.offset && m.generation == live)
    }

    /// Writes what is not written yet of a strand whose parent is, and `stretches` of it.
    fn write(&mut self, forest: u32, strand: u32, stretches: &[Stretch], desk: &mut Desk<'_>) {
        let domain = self.forests[forest as usize].domain;
        let (forests, guard) = (desk.forests, desk.guard);
        let Some(facts) = forests.get(domain).facts(guard, strand) else { return };
        let creator = desk.pen(domain).creator(strand);
        let len = facts.names.len() as u32;
        let marks = &mut self.forests[forest as usize].strands;
        if marks.len() <= strand as usize {
            marks.resize(strand as usize + 1, Mark::default());
        }
        let mark = Some(marks[strand as usize]).filter(|m| m.len > 0 && m.generation == facts.generation);
        let from = mark.map_or(0, |m| m.len.min(len));
        if mark.is_some() && from == len && stretches.is_empty() {
            return;
        }
        self.go_to(forest);
        let unnamed = desk.pen(domain).unnamed(strand, from, facts.names);
        let blocks = blocks(&facts, from as usize, domain, &unnamed);
        let mark = match mark {
            None => {
                let all = stretches == [Stretch { bit: DEVICE, copies: 1, span: (0, len) }];
                let mark = self.write_new(forest, (strand, creator), &facts, &blocks, all);
                if all {
                    return;
                }
                mark
            }
            Some(mark) if from < len => {
                self.encoder.more(mark.number, &blocks);
                Mark { len, ..mark }
            }
            Some(mark) => mark,
        };
        self.forests[forest as usize].strands[strand as usize] = mark;
        self.encoder.held(mark.number, mark.len, stretches);
    }

    fn write_new(
        &mut self,
        forest: u32,
        (strand, creator): (u32, u32),
        facts: &Facts<'_>,
        blocks: &Blocks<'_>,
        all_held: bool,
    ) -> Mark {
        let w = &mut self.forests[forest as usize];
        let mark = Mark { generation: facts.generation, number: w.count, len: facts.names.len() as u32 };
        w.count += 1;
        w.strands[strand as usize] = mark;
        let canonical = w.domain == CANONICAL;
        let at = (facts.at.strand != ROOT && !canonical)
            .then(|| Place { strand: w.strands[facts.at.strand as usize].number, ..facts.at });
        let kin = Kin { seed: facts.seed, block_size: facts.block_size, creator };
        let depth = Some(facts.depth).filter(|d| canonical && *d != UNKNOWN_DEPTH);
        self.encoder.strand((forest, mark.number), at, kin, depth, blocks, all_held);
        mark
    }

    fn go_to(&mut self, forest: u32) {
        if self.current != Some(forest) {
            self.current = Some(forest);
            self.encoder.go_to(forest);
        }
    }
}

fn blocks<'a>(facts: &Facts<'a>, from: usize, domain: usize, unnamed: &'a [u32]) -> Blocks<'a> {
    Blocks {
        locals: if domain == CANONICAL { &[] } else { &facts.locals[from..] },
        names: &facts.names[from..],
        keys: facts.keys.get(from..).unwrap_or_default(),
        unnamed,
    }
}
