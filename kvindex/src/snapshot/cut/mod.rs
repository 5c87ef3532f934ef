//! What does each holder have, at its cursor?
//!
//! The writer goes through one holder's strands at a time, each step under the pool's lock for a moment.
//! Between the steps other holders' batches go on: what they change is not this holder's, and strands
//! that it has stay. What the writer has written of each strand it remembers, by the strand's number
//! and generation, so that the next holder costs a few bytes for each strand they share.

mod strands;

use std::sync::Arc;

use kvproto::EngineHash;
use kvproto::hash::canonical::Namespace;

use super::frame::{Framer, Header, MAX_CHUNK};
use super::record::{Encoder, Head, MAX_TEXT, Totals};
use super::{Cursor, record};
use crate::forest::{Kind, Place};
use crate::pool::{CANONICAL, Member, Pool};
use crate::types::HolderId;
use crate::{Index, IndexConfig};

/// What one step may be asked for.
const MAX_STEP: usize = MAX_CHUNK / 2;

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

    /// Begins to write blocks that nobody holds but that a lower tier may still name, of every model
    /// that a holder written so far is of.
    pub fn begin_ghosts(&mut self) -> Result<(), CutError> {
        self.is_idle()?;
        let mut forests = Vec::new();
        for (number, pool) in (0..).zip(self.pools.clone()) {
            for (domain, kind) in domains(&pool) {
                let mut strands = pool.write(|_, desk| desk.pen(domain).ghosts());
                strands.reverse();
                if !strands.is_empty() {
                    forests.push((self.forest(number, kind, domain), strands));
                }
            }
        }
        self.part = Some(Part::Ghosts { forests, way: Vec::new() });
        Ok(())
    }

    /// Goes on with what was begun: appends about `max_bytes` of whole chunks to `out`, and at least one
    /// strand's worth.
    ///
    /// On an error the part counts for nothing and the snapshot can go on with another.
    pub fn step(&mut self, max_bytes: usize, out: &mut Vec<u8>) -> Result<Step, CutError> {
        let Some(mut part) = self.part.take() else { return Ok(Step::Done) };
        self.step_ends = self.written() + max_bytes.clamp(1, MAX_STEP);
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
        if let Some(known) = known {
            return known as u32;
        }
        self.encoder.pool(tenant, model);
        self.pools.push(pool.clone());
        let number = self.pools.len() as u32 - 1;
        // All of them, in order: whoever restores them can give them the numbers that they have.
        for (domain, kind) in domains(pool) {
            self.forest(number, kind, domain);
        }
        number
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
}

/// The domains of a pool.
fn domains(pool: &Pool) -> Vec<(usize, Kind)> {
    let kind = |domain| if domain == CANONICAL { Kind::Canonical } else { Kind::Chained };
    pool.forests.iter().map(|(domain, _)| (domain, kind(domain))).collect()
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
