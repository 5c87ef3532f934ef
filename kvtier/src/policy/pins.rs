//! Blocks that may not leave, and until when; and those that are wanted before they are asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::blocks::{No, flag};
use super::planner::Planner;
use super::{BlockId, Move};

/// Names a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PinId(pub u64);

/// A pin that cannot be. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// More would be pinned than is allowed at a time.
    #[error("{wanted} more blocks to pin beside {pinned}, of {allowed} allowed")]
    TooMany {
        /// Blocks that this pin would add.
        wanted: usize,
        /// Blocks pinned already.
        pinned: usize,
        /// Blocks that may be pinned.
        allowed: usize,
    },
    /// It was never given, was taken back, or its time is over.
    #[error("no pin {}", .0.0)]
    Unknown(PinId),
    /// It could not be written down, and so would not survive a restart.
    #[error("the pin could not be written down")]
    Unwritten,
}

impl Planner {
    /// Copies up to `most` blocks of `chain`, from its root on, to RAM before they are asked for,
    /// and pins what is there until `until` (ms). Not a use: nothing is learned from it.
    ///
    /// # Errors
    ///
    /// [`PinError::TooMany`]; then nothing is copied either.
    pub fn prefetch(
        &mut self,
        now: u64,
        chain: &[BlockId],
        most: u32,
        until: u64,
        moves: &mut Vec<Move>,
    ) -> Result<PinId, PinError> {
        let pin = self.pin(now, chain, until)?;
        let mut left = most;
        for &id in chain {
            let Some(no) = self.blocks.find(id) else { break };
            let block = *self.blocks.get(no);
            let absent = !block.has(flag::CPU);
            if !block.has(flag::LOCAL | flag::SHARED) || (absent && left == 0) {
                break;
            }
            self.hold(no);
            if !self.promote(no, moves) {
                break;
            }
            left -= u32::from(absent);
        }
        self.finish(false);
        Ok(pin)
    }

    /// Pins those blocks of `chain` that are below the GPU, contiguous from its root, until
    /// `until` (ms): they keep the copies they have.
    ///
    /// # Errors
    ///
    /// [`PinError::TooMany`].
    pub fn pin(&mut self, now: u64, chain: &[BlockId], until: u64) -> Result<PinId, PinError> {
        self.advance(now);
        let known = chain.iter().map_while(|&id| self.blocks.find(id));
        let there = known.take_while(|&no| self.blocks.get(no).has(flag::LOCAL | flag::SHARED));
        let blocks: Vec<No> = there.collect();
        let pin = self.pins.add(until, blocks.clone(), self.config.pinned as usize)?;
        for no in blocks {
            self.mark(no, flag::PINNED, true);
        }
        Ok(pin)
    }

    /// Moves a pin's end to `until` (ms).
    ///
    /// # Errors
    ///
    /// [`PinError::Unknown`].
    pub fn renew(&mut self, now: u64, pin: PinId, until: u64) -> Result<(), PinError> {
        self.advance(now);
        self.pins.renew(pin, until)
    }

    /// Takes a pin back.
    ///
    /// # Errors
    ///
    /// [`PinError::Unknown`].
    pub fn unpin(&mut self, pin: PinId) -> Result<(), PinError> {
        for no in self.pins.remove(pin)? {
            self.mark(no, flag::PINNED, false);
        }
        Ok(())
    }

    /// Blocks that a pin holds.
    pub fn pinned(&self, pin: PinId) -> usize {
        self.pins.of.get(&pin).map_or(0, |(_, blocks)| blocks.len())
    }

    /// Pins from now on are numbered from `first` on.
    pub fn number_pins(&mut self, first: u64) {
        self.pins.next = self.pins.next.max(first);
    }

    /// A pin holds from before this planner began: its blocks are pinned as they are restored. Which
    /// of them were allowed is not asked again.
    pub fn expect_pin(&mut self, pin: PinId, until: u64, blocks: &[BlockId]) {
        self.pins.of.insert(pin, (until, vec![]));
        self.pins.by_end.insert((until, pin));
        self.pins.next = self.pins.next.max(pin.0 + 1);
        blocks.iter().for_each(|id| self.pins.expected.entry(*id).or_default().push(pin));
    }

    /// All is restored: what is expected still is not there any more.
    pub fn expect_no_more(&mut self) {
        self.pins.expected = HashMap::new();
    }

    /// Pins the block that a pin from before expects.
    pub(super) fn pin_again(&mut self, id: BlockId, no: No) {
        for pin in self.pins.expected.remove(&id).unwrap_or_default() {
            // Taken back meanwhile, or over.
            let Some((_, blocks)) = self.pins.of.get_mut(&pin) else { continue };
            blocks.push(no);
            *self.pins.count.entry(no).or_default() += 1;
            self.mark(no, flag::PINNED, true);
        }
    }

    /// Takes back the pins whose time is over at `now` (ms). Returns all whose time was over since
    /// this was last asked.
    pub fn ended_pins(&mut self, now: u64) -> Vec<PinId> {
        self.advance(now);
        std::mem::take(&mut self.pins.over)
    }

    /// Takes back the pins whose time is over.
    pub(super) fn end_pins(&mut self) {
        while let Some(pin) = self.pins.ended(self.now) {
            // Unknown it cannot be: it was just found.
            let _ = self.unpin(pin);
            self.pins.over.push(pin);
        }
    }
}

/// All pins that hold.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    next: u64,
    of: BTreeMap<PinId, (u64, Vec<No>)>,
    by_end: BTreeSet<(u64, PinId)>,
    /// How many pins a block has.
    count: HashMap<No, u32>,
    /// Pins from before, by blocks that are not restored yet.
    expected: HashMap<BlockId, Vec<PinId>>,
    /// Pins whose time is over, until somebody asks.
    over: Vec<PinId>,
}

impl Pins {
    /// Pins blocks until `until`. Some may be pinned already.
    pub fn add(&mut self, until: u64, blocks: Vec<No>, allowed: usize) -> Result<PinId, PinError> {
        let fresh: BTreeSet<No> = blocks.iter().copied().filter(|no| !self.count.contains_key(no)).collect();
        let (wanted, pinned) = (fresh.len(), self.count.len());
        if wanted + pinned > allowed {
            return Err(PinError::TooMany { wanted, pinned, allowed });
        }
        for &no in &blocks {
            *self.count.entry(no).or_default() += 1;
        }
        let id = PinId(self.next);
        self.next += 1;
        self.of.insert(id, (until, blocks));
        self.by_end.insert((until, id));
        Ok(id)
    }

    /// Moves a pin's end.
    pub fn renew(&mut self, id: PinId, until: u64) -> Result<(), PinError> {
        let pin = self.of.get_mut(&id).ok_or(PinError::Unknown(id))?;
        self.by_end.remove(&(pin.0, id));
        self.by_end.insert((until, id));
        pin.0 = until;
        Ok(())
    }

    /// Takes a pin back; returns the blocks that are not pinned any more.
    pub fn remove(&mut self, id: PinId) -> Result<Vec<No>, PinError> {
        let (until, blocks) = self.of.remove(&id).ok_or(PinError::Unknown(id))?;
        self.by_end.remove(&(until, id));
        let last = |no: &No| match self.count.get_mut(no) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            Some(_) => self.count.remove(no).is_some(),
            None => false,
        };
        Ok(blocks.into_iter().filter(last).collect())
    }

    /// The pin that ended longest before or at `now`.
    pub fn ended(&self, now: u64) -> Option<PinId> {
        self.by_end.first().filter(|(until, _)| *until <= now).map(|&(_, id)| id)
    }

    /// Blocks pinned.
    pub fn blocks(&self) -> usize {
        self.count.len()
    }
}
