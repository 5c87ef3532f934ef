//! What does each holder have, at its cursor?
//!
//! The writer goes through one holder's strands at a time, each step under the pool's lock for a moment.
//! Between the steps other holders' batches go on: what they change is not this holder's, and strands
//! that it has stay. What the writer has written of each strand it remembers, by the strand's number
//! and generation, so that the next holder costs a few bytes for each strand they share.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvproto::EngineHash;
use kvproto::hash::canonical::Namespace;

use super::frame::{Framer, Header, MAX_CHUNK};
use super::record::{Blocks, Encoder, Head, Kin, MAX_TEXT, Tail, Totals};
use super::{Cursor, record};
use crate::forest::{DEVICE, Facts, Kind, Place, ROOT, Stretch, UNKNOWN_DEPTH};
use crate::holder::{Desk, Holder, OddKnown};
use crate::pool::{CANONICAL, Member, Pool};
use crate::types::HolderId;
use crate::{Index, IndexConfig};

/// Payload that a chunk has, unless one record is longer.
const CHUNK: usize = 64 << 10;
/// What one step may be asked for.
const MIN_STEP: usize = 1 << 10;
const MAX_STEP: usize = MAX_CHUNK / 2;
/// Strands looked at in one step, whatever they have.
const MAX_LOOKS: usize = 2048;

/// Why a holder could not be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// It is not attached, or not any more. What was written of it counts for nothing.
    #[error("holder {} is not attached", .0.0)]
    Gone(HolderId),
    /// Something was applied to it, or it was cleared, between two steps. What was written of it counts
    /// for nothing; it can be cut again.
    #[error("holder {} changed while it was being cut", .0.0)]
    Changed(HolderId),
    /// Another part is not finished.
    #[error("the part before is not finished")]
    Unfinished,
    /// A label, tenant or model name is too long for the format.
    #[error("a name of {len} bytes, {MAX_TEXT} are allowed")]
    Name {
        /// How long it is.
        len: usize,
    },
    /// The snapshot has its end.
    #[error("the snapshot is finished")]
    Finished,
}

/// Whether a part is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to write.
    More,
    /// All of it is written.
    Done,
}

impl Step {
    /// Whether there is more to write.
    pub fn is_more(self) -> bool {
        self == Step::More
    }
}

/// Writes a snapshot, part by part.
#[derive(Debug)]
pub struct Writer {
    index: Arc<Index>,
    framer: Framer,
    encoder: Encoder,
    /// Framed, not handed out yet.
    ready: Vec<u8>,
    pools: Vec<Arc<Pool>>,
    forests: Vec<Written>,
    /// The forest that records speak of.
    current: Option<u32>,
    part: Option<Part>,
    /// How much may be written until the step ends.
    step_ends: usize,
    finished: bool,
}

/// What was written of one forest.
#[derive(Debug)]
struct Written {
    pool: u32,
    domain: usize,
    /// By strand.
    strands: Vec<Mark>,
    /// Strands that have a number.
    count: u32,
}

/// What was written of a strand: its number in the snapshot and its first blocks.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    generation: u32,
    number: u32,
    len: u32,
}

/// What is being written.
#[derive(Debug)]
enum Part {
    Holder(Box<HolderPart>),
    /// Strands by forest, and those to be written before the next one; the next ones last.
    Ghosts {
        forests: Vec<(u32, Vec<u32>)>,
        way: Vec<u32>,
    },
}

#[derive(Debug)]
struct HolderPart {
    id: HolderId,
    member: Arc<Member>,
    pool: u32,
    stamp: (u32, u64),
    /// Forests and the strands to be looked at, the next one last.
    strands: Vec<(u32, Vec<u32>)>,
    /// The forest of its domain.
    chained: u32,
    /// Strands to be written before the next one can be, the first one last.
    way: Vec<u32>,
    odd_places: Vec<(usize, Place)>,
    odd: Vec<EngineHash>,
}

impl Writer {
    /// A snapshot of nothing yet.
    pub fn new(index: Arc<Index>) -> Writer {
        let (mut framer, mut ready) = (Framer::default(), Vec::new());
        framer.header(header(index.config()), &mut ready);
        Writer {
            index,
            framer,
            encoder: Encoder::default(),
            ready,
            pools: Vec::new(),
            forests: Vec::new(),
            current: None,
            part: None,
            step_ends: 0,
            finished: false,
        }
    }

    /// Begins to write what `holder` has. `label` is for whoever restores it to know whose it is.
    ///
    /// To be called by who applies the holder's batches, when all up to `cursor` are applied; no other
    /// may be applied until [`step`](Self::step) says that it is done.
    pub fn begin(&mut self, holder: HolderId, label: &[u8], cursor: Cursor) -> Result<(), CutError> {
        self.is_idle()?;
        let Some((pool, member)) = self.index.member(holder) else { return Err(CutError::Gone(holder)) };
        let spec = member.spec.clone();
        for len in [label.len(), spec.tenant.len(), spec.model.len()] {
            if len > MAX_TEXT {
                return Err(CutError::Name { len });
            }
        }
        let number = self.pool(&pool, &spec.tenant, &spec.model);
        let taken = pool.write(|holders, _| {
            let h = holders.get(member.slot as usize)?.as_ref()?;
            let strands = [true, false].map(|canonical| h.strands_in(canonical).to_vec());
            Some((h.domain(), h.stamp(), strands, h.odd_places(), h.odd_hashes()))
        });
        let Some((domain, stamp, [canonical, chained], odd_places, mut odd)) = taken else {
            return Err(CutError::Gone(holder));
        };
        let in_chained = self.forest(number, Kind::Chained, domain);
        let mut strands = vec![(in_chained, chained)];
        let mut in_canonical = None;
        if !canonical.is_empty() {
            let forest = self.forest(number, Kind::Canonical, CANONICAL);
            in_canonical = Some(forest);
            strands.push((forest, canonical));
        }
        for (_, list) in &mut strands {
            // The oldest are taken first: a strand's parent is mostly one of them.
            list.sort_unstable_by(|a, b| b.cmp(a));
            list.dedup();
        }
        odd.reverse();
        let seed = spec_seed(&member);
        self.encoder.holder(&Head {
            label,
            cursor,
            chained: in_chained,
            canonical: in_canonical,
            creator: stamp.0,
            seed,
        });
        self.part = Some(Part::Holder(Box::new(HolderPart {
            id: holder,
            member,
            pool: number,
            stamp,
            strands,
            chained: in_chained,
            way: Vec::new(),
            odd_places,
            odd,
        })));
        Ok(())
    }

    /// Begins to write blocks that nobody holds but that a lower tier may still name, of every domain
    /// that a holder written so far is in.
    pub fn begin_ghosts(&mut self) -> Result<(), CutError> {
        self.is_idle()?;
        let ghosts = |w: &Written| {
            self.pools[w.pool as usize].write(|_, desk| {
                let mut strands = desk.pen(w.domain).ghosts();
                strands.reverse();
                strands
            })
        };
        let all = (0..).zip(&self.forests).map(|(f, w)| (f, ghosts(w))).collect();
        self.part = Some(Part::Ghosts { forests: all, way: Vec::new() });
        Ok(())
    }

    /// Goes on with what was begun: appends about `max_bytes` of whole chunks to `out`.
    ///
    /// On an error the part counts for nothing and the snapshot can go on with another.
    pub fn step(&mut self, max_bytes: usize, out: &mut Vec<u8>) -> Result<Step, CutError> {
        let Some(mut part) = self.part.take() else { return Ok(Step::Done) };
        self.step_ends = self.written() + max_bytes.clamp(MIN_STEP, MAX_STEP);
        let done = match &mut part {
            Part::Holder(holder) => self.holder_step(holder),
            Part::Ghosts { forests, way } => Ok(self.ghost_step(forests, way)),
        };
        match done {
            Ok(true) => {}
            Ok(false) => self.part = Some(part),
            Err(_) => self.encoder.void(),
        }
        self.flush();
        out.append(&mut self.ready);
        done.map(|done| if done { Step::Done } else { Step::More })
    }

    /// Gives up the part that is not finished, if any: it counts for nothing.
    pub fn abandon(&mut self) {
        if let Some(Part::Holder(_)) = self.part.take() {
            self.encoder.void();
        }
    }

    /// Ends the snapshot and says what it has. Without this it is not complete.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<Totals, CutError> {
        self.is_idle()?;
        self.finished = true;
        self.encoder.end();
        self.flush();
        out.append(&mut self.ready);
        Ok(self.encoder.totals)
    }

    fn is_idle(&self) -> Result<(), CutError> {
        match (&self.part, self.finished) {
            (_, true) => Err(CutError::Finished),
            (Some(_), false) => Err(CutError::Unfinished),
            (None, false) => Ok(()),
        }
    }

    fn pool(&mut self, pool: &Arc<Pool>, tenant: &str, model: &str) -> u32 {
        let known = self.pools.iter().position(|p| Arc::ptr_eq(p, pool));
        known.unwrap_or_else(|| {
            self.encoder.pool(tenant, model);
            self.pools.push(pool.clone());
            self.pools.len() - 1
        }) as u32
    }

    fn forest(&mut self, pool: u32, kind: Kind, domain: usize) -> u32 {
        let known = self.forests.iter().position(|w| (w.pool, w.domain) == (pool, domain));
        known.unwrap_or_else(|| {
            self.encoder.forest(pool, kind, domain as u32);
            self.forests.push(Written { pool, domain, strands: Vec::new(), count: 0 });
            self.forests.len() - 1
        }) as u32
    }

    /// Bytes that wait to be handed out.
    fn written(&self) -> usize {
        self.ready.len() + self.encoder.payload.len()
    }

    fn flush(&mut self) {
        if !self.encoder.payload.is_empty() {
            self.framer.chunk(&self.encoder.payload, &mut self.ready);
            self.encoder.payload.clear();
        }
    }

    fn holder_step(&mut self, part: &mut HolderPart) -> Result<bool, CutError> {
        let attached = self.index.member(part.id).is_some_and(|(_, m)| Arc::ptr_eq(&m, &part.member));
        if !attached {
            return Err(CutError::Gone(part.id));
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
    fn ghost_step(&mut self, forests: &mut Vec<(u32, Vec<u32>)>, way: &mut Vec<u32>) -> bool {
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

/// What the snapshots of an index with this configuration begin with.
pub(super) fn header(config: &IndexConfig) -> Header {
    // The key of what comes before a first block tells algorithm and seed apart.
    Header { keys: config.llmd.map(|l| l.root("").0) }
}

/// Tells apart holders that name the same blocks otherwise.
pub(super) fn spec_seed(member: &Member) -> u64 {
    let s = &member.spec;
    Namespace { salt: &s.salt, model: &s.model, lora: s.lora.as_deref() }.seed().0
}

const _: () = assert!(MAX_STEP + record::MAX_GHOSTS * 8 < MAX_CHUNK);
