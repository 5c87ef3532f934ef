//! Gives holders back what a snapshot says they had.
//!
//! A chunk is read whole before any of it is put in, and a holder whose part is not complete is left with
//! nothing. Blocks go into the forest strand by strand, holders take them as they take what events
//! tell, and all that lies there counts against the index's own limits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvproto::EngineHash;
use rustc_hash::FxHashMap;

use super::cut::{header, spec_seed};
use super::frame::Unframer;
use super::record::{Decoder, Head, Kin, Record, Tail, Totals};
use super::target::{Room, Target};
use super::{Cursor, FormatError};
use crate::Index;
use crate::forest::{DEVICE, Stretch};
use crate::holder::{Desk, Holder, OddBlock, OddKnown};
use crate::pool::{Member, Pool};
use crate::types::HolderId;

/// Strands that are let go before others may write.
const AT_ONCE: usize = 1024;

/// Whose part of a snapshot begins.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// What it was labelled when it was cut.
    pub label: &'a [u8],
    /// Its tenant.
    pub tenant: &'a str,
    /// Its model.
    pub model: &'a str,
    /// Where in its stream it was.
    pub cursor: Cursor,
}

/// A holder whose part of a snapshot is complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Restored {
    /// Who.
    pub holder: HolderId,
    /// Where in its stream it is now.
    pub cursor: Cursor,
    /// How much of it is back; `Err` where it has nothing.
    pub outcome: Result<Kept, Refusal>,
}

/// How much of a holder is back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Blocks that it holds now.
    pub blocks: u64,
    /// Blocks that it held when it was cut. Where it holds fewer it is marked partial: the index's
    /// limit took some, or others of the same model changed what they lay on meanwhile.
    pub of: u64,
}

/// Why a holder did not get what is in the snapshot. It has nothing then, or what it had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not attached, or not any more.
    #[error("it is not attached")]
    Gone,
    /// Something was told of it before, or while it was being put back.
    #[error("it has been told something already")]
    NotFresh,
    /// It is of another tenant or model than the one that was cut.
    #[error("it is of another tenant or model")]
    Elsewhere,
    /// Its deployment salt or adapter differ from those of the one that was cut.
    #[error("its salt or adapter differ, so its blocks are named otherwise")]
    OtherNames,
    /// It would hold more than a holder may.
    #[error("it holds more than {max} blocks")]
    TooManyBlocks {
        /// How many a holder may.
        max: usize,
    },
    /// No more hash domains can be told apart.
    #[error("there are too many hash domains")]
    NoDomain,
}

/// Why a snapshot is not read on. Holders restored before stay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Its bytes are not those of a snapshot.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Its blocks have request keys of another kind than this index asks for, or none.
    #[error("its request keys (llm-d) are not those that this index is configured for")]
    OtherKeys,
}

/// Reads a snapshot into an index, from pieces of any length.
///
/// Every holder that is to be restored must be attached before the first piece comes, and nothing may be
/// applied to it until it is [`restored`](Self::restored). Others may go on.
#[derive(Debug)]
pub struct Restore {
    index: Arc<Index>,
    unframer: Unframer,
    decoder: Option<Decoder>,
    pools: Vec<Place>,
    forests: Vec<Target>,
    current: u32,
    section: Option<Section>,
    restored: VecDeque<Restored>,
    room: Room,
    failed: Option<RestoreError>,
}

/// A pool of the snapshot, and which it is here.
#[derive(Debug)]
struct Place {
    tenant: String,
    model: String,
    pool: Option<Arc<Pool>>,
    /// Who tells here, by who told when it was written, and whether a holder has that number.
    creators: FxHashMap<u32, (u32, bool)>,
}

/// The part of a holder that is being restored.
#[derive(Debug)]
struct Section {
    id: HolderId,
    member: Arc<Member>,
    cursor: Cursor,
    chained: u32,
    ghosts: Vec<EngineHash>,
    lost: u64,
    /// Changes when something is applied to it.
    stamp: (u32, u64),
    refused: Option<Refusal>,
}

impl Restore {
    /// Begins to read.
    pub fn new(index: Arc<Index>) -> Restore {
        Restore {
            index,
            unframer: Unframer::default(),
            decoder: None,
            pools: Vec::new(),
            forests: Vec::new(),
            current: 0,
            section: None,
            restored: VecDeque::new(),
            room: Room::default(),
            failed: None,
        }
    }

    /// Takes the next bytes and puts in what is complete. `who` says which holder a part is for; it is
    /// passed over where it says none.
    ///
    /// After an error nothing more is read; what [`restored`](Self::restored) tells stays.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut who: impl FnMut(&Found<'_>) -> Option<HolderId>,
    ) -> Result<(), RestoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let fed = self.take(&mut bytes, &mut who);
        if let Err(error) = &fed {
            self.failed = Some(error.clone());
            self.give_up();
        }
        fed
    }

    /// Holders whose parts are complete since this was last asked.
    pub fn restored(&mut self) -> impl Iterator<Item = Restored> + '_ {
        self.restored.drain(..)
    }

    /// Ends reading. An error where the snapshot did not say that it is complete.
    pub fn finish(mut self) -> Result<Totals, RestoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match &self.decoder {
            Some(decoder) if decoder.is_complete() && self.unframer.pending() == 0 => Ok(decoder.totals()),
            Some(_) | None => {
                self.give_up();
                let at = self.unframer.at() + self.unframer.pending();
                Err(FormatError::Truncated { at }.into())
            }
        }
    }

    fn take(
        &mut self,
        bytes: &mut &[u8],
        who: &mut dyn FnMut(&Found<'_>) -> Option<HolderId>,
    ) -> Result<(), RestoreError> {
        while let Some((at, payload)) = self.unframer.next(bytes)? {
            let header_here = header(self.index.config());
            let found = self.unframer.header().unwrap_or_default();
            if found != header_here {
                return Err(RestoreError::OtherKeys);
            }
            let decoder = self.decoder.get_or_insert_with(|| Decoder::new(found.keys.is_some()));
            let records = decoder.read(&payload, at)?;
            self.apply(&records, who);
        }
        Ok(())
    }

    fn apply(&mut self, records: &[Record<'_>], who: &mut dyn FnMut(&Found<'_>) -> Option<HolderId>) {
        let mut i = 0;
        while i < records.len() {
            match &records[i] {
                Record::Pool { tenant, model } => {
                    let pool = self.index.pool(tenant, model);
                    let (tenant, model) = ((*tenant).to_owned(), (*model).to_owned());
                    self.pools.push(Place { tenant, model, pool, creators: FxHashMap::default() });
                }
                Record::Forest { pool, kind, domain } => {
                    self.forests.push(Target::new(*pool, *kind, *domain));
                }
                Record::In { forest } => self.current = *forest,
                Record::Holder(head) => self.begin(head, &records[i + 1..], who),
                Record::HolderEnd(tail) => self.end(tail),
                Record::Void => self.clear_section(),
                Record::End(_) => self.let_go(),
                Record::Strand { .. }
                | Record::More { .. }
                | Record::Held { .. }
                | Record::Odd(_)
                | Record::Ghosts(_) => {
                    i += self.blocks(&records[i..]);
                    continue;
                }
            }
            i += 1;
        }
    }

    /// Begins the part of a holder.
    fn begin(
        &mut self,
        head: &Head<'_>,
        coming: &[Record<'_>],
        who: &mut dyn FnMut(&Found<'_>) -> Option<HolderId>,
    ) {
        let number = self.forests[head.chained as usize].pool as usize;
        let place = &self.pools[number];
        let found =
            Found { label: head.label, tenant: &place.tenant, model: &place.model, cursor: head.cursor };
        let Some(id) = who(&found) else { return };
        let refuse = |refusal| Restored { holder: id, cursor: head.cursor, outcome: Err(refusal) };
        let Some((pool, member)) = self.index.member(id) else {
            self.restored.push_back(refuse(Refusal::Gone));
            return;
        };
        let place = &mut self.pools[number];
        let same = (&member.spec.tenant, &member.spec.model) == (&place.tenant, &place.model);
        if !same || !Arc::ptr_eq(place.pool.get_or_insert_with(|| pool.clone()), &pool) {
            self.restored.push_back(refuse(Refusal::Elsewhere));
            return;
        }
        if spec_seed(&member) != head.seed {
            self.restored.push_back(refuse(Refusal::OtherNames));
            return;
        }
        let stamp = pool.write(|holders, desk| {
            let Some(Some(holder)) = holders.get_mut(member.slot as usize) else {
                return Err(Refusal::Gone);
            };
            if !holder.is_fresh() {
                return Err(Refusal::NotFresh);
            }
            self.sweep(holders, desk);
            let Some(Some(holder)) = holders.get_mut(member.slot as usize) else {
                return Err(Refusal::Gone);
            };
            if !self.choose(head.chained, coming, desk) {
                return Err(Refusal::NoDomain);
            }
            let domain = self.forests[head.chained as usize].domain.unwrap_or(holder.domain());
            let creators = &mut self.pools[number].creators;
            let creator = match creators.entry(head.creator).or_insert((holder.stamp().0, false)) {
                (creator, claimed @ false) => {
                    *claimed = true;
                    *creator
                }
                (_, true) => holder.stamp().0,
            };
            holder.settle_in(domain, creator, desk);
            Ok(holder.stamp())
        });
        match stamp {
            Err(refusal) => self.restored.push_back(refuse(refusal)),
            Ok(stamp) => {
                self.section = Some(Section {
                    id,
                    member,
                    cursor: head.cursor,
                    chained: head.chained,
                    ghosts: Vec::new(),
                    lost: 0,
                    stamp,
                    refused: None,
                });
            }
        }
    }

    /// Takes out what is left where nobody holds anything: after a snapshot that was damaged further on, and
    /// whose holders were cleared, it would be joined as if others were there.
    fn sweep(&self, holders: &[Option<Holder>], desk: &mut Desk<'_>) {
        let ours = self.forests.iter().filter_map(|t| t.domain);
        let used: Vec<usize> =
            holders.iter().flatten().filter(|h| !h.is_fresh()).map(Holder::domain).chain(ours).collect();
        let left: Vec<usize> = desk.forests.domains().filter(|d| !used.contains(d)).collect();
        left.into_iter().for_each(|d| desk.pen(d).settle_all());
    }

    /// Chooses the domain of a forest where that has none yet. False where there are no more.
    fn choose(&mut self, forest: u32, coming: &[Record<'_>], desk: &mut Desk<'_>) -> bool {
        let (before, rest) = self.forests.split_at_mut(forest as usize);
        let Some((target, after)) = rest.split_first_mut() else { return false };
        let pool = target.pool;
        let others = || before.iter().chain(after.iter()).filter(|t| t.pool == pool);
        let listed = 1 + others().count();
        target.choose(coming, listed, |d| others().any(|t| t.domain == Some(d)), desk)
    }

    /// Puts in blocks, up to the first record that tells of something else. Returns how many records.
    fn blocks(&mut self, records: &[Record<'_>]) -> usize {
        let number = self.forests[self.current as usize].pool as usize;
        let Some(pool) = self.pools[number].pool.clone() else {
            return self.pass_over(records);
        };
        let done = pool.write(|holders, desk| {
            let mut done = 0;
            for record in records {
                match record {
                    Record::Strand { at, kin, depth, lanes, held } => {
                        let coming = &records[done..];
                        let f = self.current;
                        if !self.choose(f, coming, desk) {
                            self.forests[f as usize].skip(*kin, lanes);
                        } else {
                            let kin = Kin { creator: self.creator(number, kin.creator, desk), ..*kin };
                            let target = &mut self.forests[f as usize];
                            target.plant(*at, kin, *depth, lanes, &mut self.room, desk);
                        }
                        if *held {
                            let target = &self.forests[f as usize];
                            let strand = target.count() - 1;
                            let all = [Stretch { bit: DEVICE, copies: 1, span: (0, target.len(strand)) }];
                            self.give(strand, &all, holders, desk);
                        }
                    }
                    Record::More { strand, lanes } => {
                        let target = &mut self.forests[self.current as usize];
                        target.grow(*strand, lanes, &mut self.room, desk);
                    }
                    Record::Held { strand, stretches } => self.give(*strand, stretches, holders, desk),
                    Record::Odd(block) => self.give_odd(block, holders, desk),
                    Record::Ghosts(hashes) => {
                        if let Some(s) = &mut self.section {
                            s.ghosts.extend(hashes.iter().map(EngineHash));
                        }
                    }
                    Record::Pool { .. }
                    | Record::Forest { .. }
                    | Record::In { .. }
                    | Record::Holder(_)
                    | Record::HolderEnd(_)
                    | Record::Void
                    | Record::End(_) => break,
                }
                done += 1;
            }
            done
        });
        // As after a batch, but that a chunk can bring more than one.
        for _ in 0..done.div_ceil(64) {
            self.index.keep_budget(&pool);
        }
        done
    }

    /// Counts the strands of a model that nobody is attached for.
    fn pass_over(&mut self, records: &[Record<'_>]) -> usize {
        let target = &mut self.forests[self.current as usize];
        match &records[0] {
            Record::Strand { kin, lanes, .. } => target.skip(*kin, lanes),
            Record::More { strand, lanes } => target.lengthen(*strand, lanes),
            _ => {}
        }
        1
    }

    /// The number here of who told of blocks.
    fn creator(&mut self, pool: usize, was: u32, desk: &mut Desk<'_>) -> u32 {
        let creators = &mut self.pools[pool].creators;
        creators
            .entry(was)
            .or_insert_with(|| {
                *desk.next_creator += 1;
                (*desk.next_creator, false)
            })
            .0
    }

    /// The holder of the section, where that may be given something.
    fn taker<'h>(section: &mut Section, holders: &'h mut [Option<Holder>]) -> Option<&'h mut Holder> {
        let holder = holders.get_mut(section.member.slot as usize).and_then(Option::as_mut);
        match holder {
            _ if section.refused.is_some() => None,
            None => {
                section.refused = Some(Refusal::Gone);
                None
            }
            Some(h) if h.stamp() != section.stamp => {
                section.refused = Some(Refusal::NotFresh);
                None
            }
            Some(h) if h.is_over() => {
                section.refused = Some(Refusal::TooManyBlocks { max: h.max_blocks() });
                None
            }
            Some(h) => Some(h),
        }
    }

    fn give(
        &mut self,
        strand: u32,
        stretches: &[Stretch],
        holders: &mut [Option<Holder>],
        desk: &mut Desk<'_>,
    ) {
        let Some(section) = &mut self.section else { return };
        let Some(holder) = Restore::taker(section, holders) else { return };
        section.lost += self.forests[self.current as usize].give(holder, strand, stretches, desk);
    }

    fn give_odd(&mut self, block: &OddBlock, holders: &mut [Option<Holder>], desk: &mut Desk<'_>) {
        let Some(section) = &mut self.section else { return };
        let Some(holder) = Restore::taker(section, holders) else { return };
        let mut block = block.clone();
        if let OddKnown::Placed(place) = block.known {
            let at = self.forests[section.chained as usize].place_of(place, desk);
            block.known = at.map_or(OddKnown::Nothing, OddKnown::Placed);
        }
        holder.take_odd(block, desk);
    }

    /// Ends the part of a holder.
    fn end(&mut self, tail: &Tail) {
        let Some(mut section) = self.section.take() else { return };
        let joined = self.forests[section.chained as usize].joined;
        let (member, id) = (section.member.clone(), section.id);
        let Some((pool, _)) = self.index.member(id).filter(|(_, m)| Arc::ptr_eq(m, &member)) else {
            // What it held meanwhile is in doubt, where it is there at all.
            self.index.clear(id);
            let outcome = Err(Refusal::Gone);
            self.restored.push_back(Restored { holder: id, cursor: section.cursor, outcome });
            return;
        };
        let kept = pool.write(|holders, _| {
            let holder = Restore::taker(&mut section, holders)?;
            let mut learnt = tail.learnt.clone();
            learnt.agreed |= joined;
            // What the index's limit took meanwhile is counted there already.
            learnt.dropped += holder.learnt().dropped + section.lost;
            holder.put_back(learnt, std::mem::take(&mut section.ghosts));
            let partial = tail.partial || section.lost > 0;
            member.partial.fetch_or(partial, Ordering::Relaxed);
            member.odd.store(holder.is_odd(), Ordering::Release);
            if let Some(p) = holder.changed_profile() {
                pool.set_profile(&member, p);
            }
            Some(Kept { blocks: holder.stats().blocks, of: tail.blocks })
        });
        let outcome = kept.ok_or(section.refused.unwrap_or(Refusal::Gone));
        if outcome.is_ok() {
            // What it has is certain now.
            self.index.drop_suspects(id);
        } else {
            self.index.clear(id);
        }
        self.restored.push_back(Restored { holder: id, cursor: section.cursor, outcome });
    }

    /// Leaves the holder of an unfinished part with nothing.
    fn clear_section(&mut self) {
        if let Some(section) = self.section.take() {
            self.index.clear(section.id);
        }
    }

    /// Lets go of what nobody took: it stays as long as blocks do that lost their last holder.
    fn let_go(&mut self) {
        for target in &mut self.forests {
            let Some(pool) = &self.pools[target.pool as usize].pool else { continue };
            let count = target.count() as usize;
            for from in (0..count).step_by(AT_ONCE) {
                pool.write(|_, desk| target.let_go(from, count.min(from + AT_ONCE), desk));
            }
            self.index.keep_budget(pool);
        }
        self.forests.clear();
    }

    fn give_up(&mut self) {
        self.clear_section();
        self.let_go();
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        self.give_up();
    }
}
