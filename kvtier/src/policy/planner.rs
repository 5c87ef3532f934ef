//! What happens on a request: look up, promote, learn; store, and make room.

use super::admit::Budget;
use super::blocks::{Block, Blocks, NONE, No, flag};
use super::evict::{Order, order};
use super::pins::Pins;
use super::random::Random;
use super::reuse::{Reuse, Worth};
use super::room::Residence;
use super::{BlockId, Config, Move, Owner, Tier};

/// Time is counted in ticks of 4 ms: 32 bits of them are half a year.
const TICK_MS: u64 = 4;

/// The part of a chain that is below the GPU, contiguous from its root. Each block counts once,
/// in the fastest tier it was in when asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Blocks in RAM.
    pub cpu: u32,
    /// Blocks on disk.
    pub disk: u32,
    /// Blocks in shared storage.
    pub shared: u32,
}

impl Found {
    /// Blocks in any tier.
    pub fn total(self) -> u32 {
        self.cpu + self.disk + self.shared
    }
}

/// What a planner knows and has decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks in RAM.
    pub cpu: u32,
    /// Blocks on disk.
    pub disk: u32,
    /// Blocks that are remembered without a copy on this node.
    pub remembered: usize,
    /// Blocks pinned.
    pub pinned: usize,
    /// Blocks looked up.
    pub asked: u64,
    /// Blocks of those that were found, contiguous from the root.
    pub found: u64,
    /// Blocks copied to RAM from below.
    pub promoted: u64,
    /// Blocks copied from RAM to disk.
    pub demoted: u64,
    /// Blocks copied to shared storage.
    pub shared: u64,
    /// Blocks that left this node's tiers altogether.
    pub evicted: u64,
    /// Blocks that the disk was not given, because others are worth more or it may not be written.
    pub not_admitted: u64,
    /// Blocks that engines offered and no tier had room for.
    pub refused: u64,
    /// Copies that [`Planner::lost`] told of.
    pub lost: u64,
}

/// Decides what is kept where, for blocks of one size.
#[derive(Debug)]
pub struct Planner {
    pub(super) config: Config,
    pub(super) blocks: Blocks,
    pub(super) orders: [Box<dyn Order>; 2],
    reuse: Reuse,
    /// By local tier.
    pub(super) worth: [Box<Worth>; 2],
    pub(super) residence: [Residence; 2],
    /// By owner: blocks held and allowed in either local tier.
    pub(super) held: Vec<[u32; 2]>,
    pub(super) quota: Vec<[u32; 2]>,
    pub(super) used: [u32; 2],
    pub(super) pins: Pins,
    pub(super) disk_writable: bool,
    pub(super) disk_budget: Option<Budget>,
    pub(super) shared_budget: Option<Budget>,
    pub(super) random: Random,
    pub(super) stats: Stats,
    /// The present, in ms and ticks.
    pub(super) now: u64,
    pub(super) tick: u32,
    /// Blocks of the request at hand, root first.
    busy: Vec<No>,
}

impl Planner {
    /// A planner that knows nothing yet.
    pub fn new(config: Config) -> Planner {
        let reuse = Reuse::new();
        Planner {
            blocks: Blocks::new(),
            orders: [order(config.ranking, config.cpu), order(config.ranking, config.disk)],
            worth: [0; 2].map(|_| Box::new(reuse.worth(1))),
            reuse,
            residence: [Residence::new(config.cpu), Residence::new(config.disk)],
            held: Vec::new(),
            quota: Vec::new(),
            used: [0; 2],
            pins: Pins::default(),
            disk_writable: true,
            disk_budget: config.disk_writes.map(Budget::new),
            shared_budget: config.shared_writes.map(Budget::new),
            random: Random::new(config.seed),
            stats: Stats::default(),
            now: 0,
            tick: 0,
            busy: Vec::new(),
            config,
        }
    }

    /// A request wants `chain`, root first, at `now` (ms). What is found below RAM is copied up.
    ///
    /// Call it once per request: every call counts as a use of the blocks.
    pub fn lookup(&mut self, now: u64, chain: &[BlockId], moves: &mut Vec<Move>) -> Found {
        self.advance(now);
        // Requests of one moment are still one after the other. Where time stands still, it is
        // counted in requests.
        self.tick = self.tick.wrapping_add(1);
        let (mut found, mut contiguous) = (Found::default(), true);
        for &id in chain {
            // Without its parent no block is known.
            let Some(no) = self.blocks.find(id) else { break };
            if !self.hold(no) {
                continue;
            }
            let tick = self.tick;
            let block = self.blocks.get_mut(no);
            self.reuse.again(block.past, tick.wrapping_sub(block.last));
            (block.last, block.past) = (tick, block.past.again());
            let block = *block;
            contiguous &= block.has(flag::LOCAL | flag::SHARED);
            if contiguous {
                found.note(&block);
            }
        }
        for at in 0..found.total() as usize {
            if !self.promote(self.busy[at], moves) {
                break;
            }
        }
        self.stats.asked += chain.len() as u64;
        self.stats.found += u64::from(found.total());
        self.finish(true);
        self.learn(chain.len() as u32);
        found
    }

    /// An engine offers the blocks of `chain`, which follow the block `after` or begin a prompt. An
    /// `after` that is not known is as good as none: its blocks are then kept as if a prompt began.
    ///
    /// Returns how many of them, from the first, have a copy on this node afterwards.
    pub fn store(
        &mut self,
        now: u64,
        after: Option<BlockId>,
        chain: &[BlockId],
        owner: Owner,
        moves: &mut Vec<Move>,
    ) -> u32 {
        self.advance(now);
        let mut parent = after.and_then(|id| self.blocks.find(id)).unwrap_or(NONE);
        if parent != NONE {
            self.hold(parent);
        }
        // All are held before room is made for any: a block later in the chain may be on disk only.
        let first = self.busy.len();
        for &id in chain {
            parent = self.know(id, parent, owner);
            self.hold(parent);
        }
        let tier = if self.config.cpu > 0 { Tier::Cpu } else { Tier::Disk };
        let mut stored = 0;
        for at in first..self.busy.len() {
            let no = self.busy[at];
            let block = *self.blocks.get(no);
            if !block.has(tier.flag()) {
                let may = tier == Tier::Cpu || self.admit(no);
                if may && self.room(tier, block.owner, moves) {
                    moves.push(Move::Take { id: block.id, to: tier });
                    self.arrive(no, tier);
                } else if !block.has(flag::LOCAL) {
                    // Its descendants would be of no use.
                    self.stats.refused += 1;
                    break;
                }
            }
            stored += 1;
        }
        self.finish(false);
        stored
    }

    /// A copy is not there: it did not verify, its disk failed, or a move could not be made.
    pub fn lost(&mut self, id: BlockId, tier: Tier) {
        if let Some(no) = self.blocks.find(id)
            && self.blocks.get(no).has(tier.flag())
        {
            self.stats.lost += 1;
            self.give_up(no, tier);
        }
    }

    /// A copy is there from before this planner began. To be told of a block before those that
    /// follow it. False where the tier is full.
    pub fn restore(&mut self, id: BlockId, after: Option<BlockId>, owner: Owner, tier: Tier) -> bool {
        let parent = after.and_then(|id| self.blocks.find(id)).unwrap_or(NONE);
        let full = match tier {
            Tier::Cpu => self.used[0] >= self.config.cpu,
            Tier::Disk => self.used[1] >= self.config.disk,
            Tier::Shared => false,
        };
        if full {
            return false;
        }
        let no = self.know(id, parent, owner);
        if !self.blocks.get(no).has(tier.flag()) {
            self.hold(no);
            self.gain(no, tier);
            self.finish(false);
        }
        self.pin_again(id, no);
        true
    }

    /// The block before a known block, if it is known, and whose it is: what to write down beside
    /// its bytes, for [`restore`](Self::restore).
    pub fn origin(&self, id: BlockId) -> Option<(Option<BlockId>, Owner)> {
        let block = self.blocks.get(self.blocks.find(id)?);
        let after = (block.parent != NONE).then(|| self.blocks.get(block.parent).id);
        Some((after, block.owner))
    }

    /// Whether a block has a copy in a tier, as far as was decided.
    pub fn has(&self, id: BlockId, tier: Tier) -> bool {
        self.blocks.find(id).is_some_and(|no| self.blocks.get(no).has(tier.flag()))
    }

    /// Blocks that RAM is to hold.
    pub fn ram_blocks(&self) -> u32 {
        self.config.cpu
    }

    /// What the planner knows and has decided.
    pub fn stats(&self) -> Stats {
        Stats {
            cpu: self.used[0],
            disk: self.used[1],
            remembered: self.blocks.remembered(),
            pinned: self.pins.blocks(),
            ..self.stats
        }
    }

    /// Heap memory for what is known of blocks, in bytes, and the number of blocks known.
    pub fn memory(&self) -> (usize, usize) {
        let orders: usize = self.orders.iter().map(|o| o.memory()).sum();
        (self.blocks.memory() + orders, self.blocks.known())
    }

    pub(super) fn advance(&mut self, now: u64) {
        // Time does not go back, even if the caller's clock does.
        self.now = self.now.max(now);
        let tick = (self.now / TICK_MS) as u32;
        // Ahead of it by the requests of this moment, at most half of what fits.
        if tick.wrapping_sub(self.tick) < u32::MAX / 2 {
            self.tick = tick;
        }
        self.end_pins();
    }

    /// The number of a block, which is known from now on.
    fn know(&mut self, id: BlockId, parent: No, owner: Owner) -> No {
        if let Some(no) = self.blocks.find(id) {
            if parent != NONE {
                self.blocks.adopt(no, parent);
                self.settle(parent);
            }
            return no;
        }
        let at = usize::from(owner.0);
        if self.held.len() <= at {
            self.held.resize(at + 1, [0; 2]);
        }
        self.blocks.add(id, parent, owner, self.tick)
    }

    /// Keeps a block of the request at hand from being evicted by it. False where it is so already.
    pub(super) fn hold(&mut self, no: No) -> bool {
        let fresh = !self.blocks.get(no).has(flag::BUSY);
        if fresh {
            self.mark(no, flag::BUSY, true);
            self.busy.push(no);
        }
        fresh
    }

    /// Ends a request. The last block first, so that orders by time see parents after children.
    pub(super) fn finish(&mut self, used: bool) {
        let mut busy = std::mem::take(&mut self.busy);
        for &no in busy.iter().rev() {
            let block = *self.blocks.get(no);
            for (at, tier) in [Tier::Cpu, Tier::Disk].into_iter().enumerate() {
                if block.has(flag::NEW[at]) {
                    self.orders[at].entered(no, &block);
                } else if used && block.has(tier.flag()) {
                    self.orders[at].touched(no);
                }
            }
            self.blocks.get_mut(no).flags &= !(flag::NEW[0] | flag::NEW[1]);
            self.mark(no, flag::BUSY, false);
        }
        busy.clear();
        self.busy = busy;
        while self.blocks.remembered() > self.config.remembered as usize && self.blocks.forget() {}
    }

    fn learn(&mut self, accesses: u32) {
        if self.reuse.measure(accesses, self.tick, &self.blocks, &mut self.random) {
            for (residence, worth) in self.residence.iter_mut().zip(&mut self.worth) {
                **worth = self.reuse.worth(residence.ticks());
                residence.decay();
            }
        }
    }
}

impl Found {
    fn note(&mut self, block: &Block) {
        match () {
            () if block.has(flag::CPU) => self.cpu += 1,
            () if block.has(flag::DISK) => self.disk += 1,
            () => self.shared += 1,
        }
    }
}
