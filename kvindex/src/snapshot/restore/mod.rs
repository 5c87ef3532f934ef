//! Gives holders back what a snapshot says they had.
//!
//! A chunk is read whole before any of it is put in, and a holder whose part is not complete is left with
//! nothing. Blocks go into the forest strand by strand, holders take them as they take what events
//! tell, and all that lies there counts against the index's own limits.

mod part;

use std::collections::VecDeque;
use std::sync::Arc;

use kvproto::EngineHash;
use rustc_hash::FxHashMap;

use super::cut::header;
use super::frame::Unframer;
use super::record::{Decoder, Kin, Record, Totals};
use super::target::{Room, Target};
use super::{Cursor, FormatError};
use crate::Index;
use crate::forest::{DEVICE, Stretch};
use crate::holder::{Desk, Holder};
use crate::pool::Pool;
use crate::types::HolderId;
use part::Section;

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
