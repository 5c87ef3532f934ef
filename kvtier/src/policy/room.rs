//! How place is made in a tier, and where what leaves it goes.

use super::blocks::{NONE, No, flag};
use super::evict::View;
use super::planner::Planner;
use super::{Move, Owner, Tier};

/// Disk leaves that a block is compared with before it takes the place of one.
const COMPARED: u32 = 8;
/// Victims that turn out to be needed, before giving up on making room.
const TRIES: usize = 8;

/// How long a block stays in a tier: capacity over the rate at which blocks come.
///
/// Not measured from evictions: what is evicted depends on it, and a tier that admits little
/// would come to admit nothing.
#[derive(Debug)]
pub(super) struct Residence {
    capacity: u32,
    entered: f32,
    /// Ticks over which they did.
    passed: f32,
    since: Option<u32>,
}

impl Residence {
    pub fn new(capacity: u32) -> Residence {
        Residence { capacity, entered: 0.0, passed: 0.0, since: None }
    }

    fn entered(&mut self, now: u32) {
        self.entered += 1.0;
        let since = *self.since.get_or_insert(now);
        self.passed += now.wrapping_sub(since) as f32;
        self.since = Some(now);
    }

    /// Makes the past count less.
    pub fn decay(&mut self) {
        self.entered *= 0.9;
        self.passed *= 0.9;
    }

    /// In ticks, at least one.
    pub fn ticks(&self) -> u32 {
        let ticks = self.passed * self.capacity as f32 / self.entered.max(1.0);
        (ticks as u32).clamp(1, u32::MAX / 2)
    }
}

impl Planner {
    /// Allows an owner at most `blocks` in RAM or on disk. What is too much leaves at once.
    pub fn set_quota(&mut self, owner: Owner, tier: Tier, blocks: u32, moves: &mut Vec<Move>) {
        let (at, of) = (tier.at(), usize::from(owner.0));
        if tier == Tier::Shared {
            return;
        }
        if self.quota.len() <= of {
            self.quota.resize(of + 1, [u32::MAX; 2]);
        }
        self.quota[of][at] = blocks;
        while self.held_by(owner, tier) > blocks && self.evict(tier, Some(owner), moves) {}
    }

    /// Says whether the disk takes writes. While it does not, what leaves RAM is gone, and RAM
    /// keeps what descendants on disk need. Takes time for every block known when it changes.
    pub fn set_disk_writable(&mut self, writable: bool) {
        if std::mem::replace(&mut self.disk_writable, writable) != writable {
            for no in 0..self.blocks.span() {
                if self.blocks.drawn(no).is_some() {
                    self.settle(no);
                }
            }
        }
    }

    fn held_by(&self, owner: Owner, tier: Tier) -> u32 {
        self.held.get(usize::from(owner.0)).map_or(0, |h| h[tier.at()])
    }

    fn capacity(&self, tier: Tier) -> u32 {
        match tier {
            Tier::Cpu => self.config.cpu,
            Tier::Disk => self.config.disk,
            Tier::Shared => u32::MAX,
        }
    }

    /// Makes room for one block of `owner`. False where nothing may go.
    pub(super) fn room(&mut self, tier: Tier, owner: Owner, moves: &mut Vec<Move>) -> bool {
        let allowed = self.quota.get(usize::from(owner.0)).map_or(u32::MAX, |q| q[tier.at()]);
        let capacity = self.capacity(tier);
        if allowed == 0 || capacity == 0 {
            return false;
        }
        while self.held_by(owner, tier) >= allowed {
            if !self.evict(tier, Some(owner), moves) {
                return false;
            }
        }
        while self.used[tier.at()] >= capacity {
            if !self.evict(tier, None, moves) {
                return false;
            }
        }
        true
    }

    /// Brings a block up to RAM, if it is not there. False where there is no room.
    pub(super) fn promote(&mut self, no: No, moves: &mut Vec<Move>) -> bool {
        let block = *self.blocks.get(no);
        if block.has(flag::CPU) {
            return true;
        }
        let from = if block.has(flag::DISK) { Tier::Disk } else { Tier::Shared };
        if !self.room(Tier::Cpu, block.owner, moves) {
            return false;
        }
        moves.push(Move::Copy { id: block.id, from, to: Tier::Cpu });
        self.stats.promoted += 1;
        self.arrive(no, Tier::Cpu);
        true
    }

    /// Whether the disk should be given a block that it does not have.
    pub(super) fn admit(&mut self, no: No) -> bool {
        let block = *self.blocks.get(no);
        let needed = block.held[Tier::Disk.at()] > 0;
        let wanted = self.config.disk > 0
            && self.disk_writable
            && (needed
                || self.used[Tier::Disk.at()] < self.config.disk
                || block.past.reuse() > 0
                || block.has(flag::RETURNED)
                || self.worth(no, Tier::Disk) > self.worth_of_a_victim(Tier::Disk));
        let may = wanted && self.disk_budget.as_mut().is_none_or(|b| b.take(self.now, needed));
        self.stats.not_admitted += u64::from(!may && self.config.disk > 0);
        may
    }

    fn worth(&self, no: No, tier: Tier) -> f32 {
        let block = self.blocks.get(no);
        let age = self.tick.wrapping_sub(block.last);
        self.worth[tier.at()].of(block.past, age)
    }

    fn worth_of_a_victim(&mut self, tier: Tier) -> f32 {
        let leaves = self.blocks.leaves(tier, None) as u32;
        let mut least = f32::INFINITY;
        for _ in 0..leaves.min(COMPARED) {
            let place = self.random.below(leaves) as usize;
            if let Some(no) = self.blocks.leaf(tier, None, place) {
                least = least.min(self.worth(no, tier));
            }
        }
        least
    }

    /// Evicts one leaf, of one owner or of all. False where none may go.
    fn evict(&mut self, tier: Tier, owner: Option<Owner>, moves: &mut Vec<Move>) -> bool {
        let mut aside: Vec<No> = Vec::new();
        let mut evicted = false;
        while aside.len() < TRIES && !evicted {
            let Some(no) = self.victim(tier, owner) else { break };
            match tier {
                Tier::Cpu => evicted = self.leave_cpu(no, moves),
                Tier::Disk => evicted = self.leave_disk(no, moves),
                Tier::Shared => break,
            }
            if !evicted {
                self.mark(no, flag::BUSY, true);
                aside.push(no);
            }
        }
        for no in aside {
            let block = *self.blocks.get(no);
            self.orders[tier.at()].entered(no, &block);
            self.mark(no, flag::BUSY, false);
        }
        evicted
    }

    fn victim(&mut self, tier: Tier, owner: Option<Owner>) -> Option<No> {
        let worth = &self.worth[tier.at()];
        let view = View { blocks: &self.blocks, worth, tier, now: self.tick };
        self.orders[tier.at()].victim(&view, owner, &mut self.random)
    }

    /// Evicts from RAM, to disk if that is worth it. False where the block has to stay, because
    /// the disk has its descendants and takes no more.
    fn leave_cpu(&mut self, no: No, moves: &mut Vec<Move>) -> bool {
        let block = *self.blocks.get(no);
        if !block.has(flag::DISK) {
            if self.admit(no) && self.room(Tier::Disk, block.owner, moves) {
                moves.push(Move::Copy { id: block.id, from: Tier::Cpu, to: Tier::Disk });
                self.stats.demoted += 1;
                self.arrive(no, Tier::Disk);
                self.enter_at_once(no, Tier::Disk);
            } else if self.blocks.get(no).held[Tier::Disk.at()] > 0 {
                return false;
            }
        }
        self.drop_copy(no, Tier::Cpu, moves);
        true
    }

    /// Evicts from disk, to shared storage if that is worth it.
    fn leave_disk(&mut self, no: No, moves: &mut Vec<Move>) -> bool {
        let block = *self.blocks.get(no);
        let worth = block.past.reuse() >= self.config.share_from && !block.has(flag::SHARED);
        if worth && self.shared_budget.as_mut().is_some_and(|b| b.take(self.now, false)) {
            self.copy_to_shared(no, moves);
        }
        self.drop_copy(no, Tier::Disk, moves);
        true
    }

    /// Copies a block that is on disk to shared storage.
    pub(super) fn copy_to_shared(&mut self, no: No, moves: &mut Vec<Move>) {
        moves.push(Move::Copy { id: self.blocks.get(no).id, from: Tier::Disk, to: Tier::Shared });
        self.stats.shared += 1;
        self.gain(no, Tier::Shared);
    }

    pub(super) fn drop_copy(&mut self, no: No, from: Tier, moves: &mut Vec<Move>) {
        moves.push(Move::Drop { id: self.blocks.get(no).id, from });
        self.give_up(no, from);
        self.stats.evicted += u64::from(!self.blocks.get(no).has(flag::LOCAL));
    }

    /// A block that comes outside of its own request enters the order without waiting for its end.
    pub(super) fn enter_at_once(&mut self, no: No, tier: Tier) {
        let at = tier.at();
        let block = self.blocks.get_mut(no);
        block.flags &= !flag::NEW[at];
        let block = *block;
        self.orders[at].entered(no, &block);
    }

    /// Notes a new copy, as one of those that come at some rate.
    pub(super) fn arrive(&mut self, no: No, tier: Tier) {
        self.residence[tier.at()].entered(self.tick);
        self.gain(no, tier);
    }

    /// Notes a new copy.
    pub(super) fn gain(&mut self, no: No, tier: Tier) {
        let (at, block) = (tier.at(), *self.blocks.get(no));
        self.blocks.gain(no, tier);
        if tier == Tier::Shared {
            return;
        }
        if !block.has(flag::LOCAL) && (block.last != self.tick || block.past.reuse() > 0) {
            self.blocks.get_mut(no).flags |= flag::RETURNED;
        }
        self.blocks.get_mut(no).flags |= flag::NEW[at];
        self.used[at] += 1;
        self.held[usize::from(block.owner.0)][at] += 1;
        self.settle(no);
        self.settle(block.parent);
    }

    /// Notes that a copy is gone.
    pub(super) fn give_up(&mut self, no: No, tier: Tier) {
        let (at, block) = (tier.at(), *self.blocks.get(no));
        if tier == Tier::Shared {
            self.blocks.lose(no, tier);
            return;
        }
        if self.blocks.is_leaf(no, tier) {
            self.set_leaf(no, tier, false);
        }
        self.orders[at].left(no);
        if !block.has(flag::LOCAL & !tier.flag()) {
            self.blocks.get_mut(no).flags &= !flag::RETURNED;
        }
        self.blocks.lose(no, tier);
        self.used[at] -= 1;
        self.held[usize::from(block.owner.0)][at] -= 1;
        self.settle(no);
        self.settle(block.parent);
    }

    pub(super) fn mark(&mut self, no: No, flag: u8, on: bool) {
        if on {
            self.blocks.get_mut(no).flags |= flag;
        } else {
            self.blocks.get_mut(no).flags &= !flag;
        }
        self.settle(no);
    }

    /// Puts a block among the leaves where it belongs, after something about it changed.
    pub(super) fn settle(&mut self, no: No) {
        if no == NONE || !self.blocks.get(no).has(flag::LOCAL) {
            return;
        }
        for tier in [Tier::Cpu, Tier::Disk] {
            let leaf = self.may_leave(no, tier);
            if leaf != self.blocks.is_leaf(no, tier) {
                self.set_leaf(no, tier, leaf);
            }
        }
    }

    fn set_leaf(&mut self, no: No, tier: Tier, leaf: bool) {
        let block = *self.blocks.get(no);
        self.blocks.set_leaf(no, tier, leaf);
        let order = &mut self.orders[tier.at()];
        if leaf { order.freed(no, &block) } else { order.held(no, &block) }
    }

    /// Whether a block may be evicted from a tier: no descendant must be cut off by it.
    pub(super) fn may_leave(&self, no: No, tier: Tier) -> bool {
        let block = self.blocks.get(no);
        if !block.has(tier.flag()) || block.has(flag::BUSY | flag::PINNED) {
            return false;
        }
        let [in_cpu, on_disk] = block.held;
        match tier {
            Tier::Cpu => in_cpu == 0 && (block.has(flag::DISK) || on_disk == 0 || self.disk_writable),
            Tier::Disk => on_disk == 0 && (block.has(flag::CPU) || in_cpu == 0),
            Tier::Shared => false,
        }
    }
}
