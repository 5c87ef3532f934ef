//! May a holder have what its part says, and what does it get of it?
//!
//! What happens to the holder meanwhile is looked for before each thing that it is given; from then on its
//! part is passed over.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvproto::EngineHash;

use super::{Found, Kept, Refusal, Restore, Restored};
use crate::forest::Stretch;
use crate::holder::{Desk, Holder, OddBlock, OddKnown};
use crate::pool::Member;
use crate::snapshot::Cursor;
use crate::snapshot::cut::spec_seed;
use crate::snapshot::record::{Head, Record, Tail};
use crate::types::HolderId;

/// The part of a holder that is being restored.
#[derive(Debug)]
pub(super) struct Section {
    id: HolderId,
    member: Arc<Member>,
    cursor: Cursor,
    chained: u32,
    pub(super) ghosts: Vec<EngineHash>,
    lost: u64,
    /// Changes when something is applied to it.
    stamp: (u32, u64),
    refused: Option<Refusal>,
}

impl Restore {
    /// Begins the part of a holder.
    pub(super) fn begin(
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

    pub(super) fn give(
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

    pub(super) fn give_odd(&mut self, block: &OddBlock, holders: &mut [Option<Holder>], desk: &mut Desk<'_>) {
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
    pub(super) fn end(&mut self, tail: &Tail) {
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
        let kept = pool.write(|holders, desk| {
            let holder = Restore::taker(&mut section, holders)?;
            let mut learnt = tail.learnt.clone();
            learnt.agreed |= joined;
            // What the index's limit took meanwhile is counted there already.
            learnt.dropped += holder.learnt().dropped + section.lost;
            holder.put_back(learnt, std::mem::take(&mut section.ghosts));
            let partial = tail.partial || section.lost > 0;
            member.partial.fetch_or(partial, Ordering::Relaxed);
            member.show(holder, desk);
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
    pub(super) fn clear_section(&mut self) {
        if let Some(section) = self.section.take() {
            self.index.clear(section.id);
        }
    }
}
