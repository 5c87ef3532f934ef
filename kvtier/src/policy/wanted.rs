//! Moves that somebody asked for by name: made whatever the blocks are worth, within the same bounds.

use super::blocks::{No, flag};
use super::planner::Planner;
use super::{BlockId, Move, Tier};

impl Planner {
    /// Copies those of `chain` that are below the GPU to a tier, with the copies that this needs on
    /// the way: disk is written from RAM, shared storage from disk. Returns how many are to be there
    /// afterwards.
    pub fn copy(&mut self, now: u64, chain: &[BlockId], to: Tier, moves: &mut Vec<Move>) -> usize {
        self.advance(now);
        let mut there = Vec::with_capacity(chain.len());
        for &id in chain {
            let known = self.blocks.find(id);
            if let Some(no) = known.filter(|&no| self.blocks.get(no).has(flag::LOCAL | flag::SHARED)) {
                // None of them makes room for another.
                self.hold(no);
                there.push(no);
            }
        }
        let count = there.into_iter().filter(|&no| self.bring(no, to, moves)).count();
        self.finish(false);
        count
    }

    fn bring(&mut self, no: No, to: Tier, moves: &mut Vec<Move>) -> bool {
        let block = *self.blocks.get(no);
        if block.has(to.flag()) {
            return true;
        }
        match to {
            Tier::Cpu => self.promote(no, moves),
            Tier::Disk => {
                self.disk_writable
                    && (block.has(flag::CPU) || self.promote(no, moves))
                    && self.write_to_disk(no, moves)
            }
            Tier::Shared => {
                let may = self.shared_budget.is_some() && self.bring(no, Tier::Disk, moves);
                if may {
                    self.copy_to_shared(no, moves);
                }
                may
            }
        }
    }

    /// Copies a block that is in RAM alone to disk. False where it need not or cannot be.
    pub fn save(&mut self, id: BlockId, moves: &mut Vec<Move>) -> bool {
        let Some(no) = self.blocks.find(id) else { return false };
        let block = self.blocks.get(no);
        let wanted = block.has(flag::CPU) && !block.has(flag::DISK) && self.disk_writable;
        wanted && self.write_to_disk(no, moves)
    }

    fn write_to_disk(&mut self, no: No, moves: &mut Vec<Move>) -> bool {
        let block = *self.blocks.get(no);
        if !self.room(Tier::Disk, block.owner, moves) {
            return false;
        }
        moves.push(Move::Copy { id: block.id, from: Tier::Cpu, to: Tier::Disk });
        self.arrive(no, Tier::Disk);
        self.enter_at_once(no, Tier::Disk);
        true
    }

    /// Gives up the copy in a tier of a block that has another one. False where it has none, is
    /// pinned, or what follows it needs it there.
    pub fn leave(&mut self, id: BlockId, from: Tier, moves: &mut Vec<Move>) -> bool {
        let Some(no) = self.blocks.find(id) else { return false };
        let block = self.blocks.get(no);
        let stays = match block.has(flag::LOCAL & !from.flag()) {
            true => true,
            // Nothing on this node may follow a block that only shared storage has.
            false => block.has(flag::SHARED) && block.held == [0, 0],
        };
        let may = stays && self.may_leave(no, from);
        if may {
            self.drop_copy(no, from, moves);
        }
        may
    }

    /// Gives a copy up. False where there is none, or it is pinned.
    pub fn evict_block(&mut self, id: BlockId, tier: Tier, moves: &mut Vec<Move>) -> bool {
        let Some(no) = self.blocks.find(id) else { return false };
        let block = self.blocks.get(no);
        let may = block.has(tier.flag()) && !block.has(flag::PINNED);
        if may {
            self.drop_copy(no, tier, moves);
        }
        may
    }
}
