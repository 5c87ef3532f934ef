//! What the policy remembers of each block: 48 bytes, and 5 to 11 more to find it by id.
//!
//! Blocks form a forest by their parents. A block with a copy below the GPU is *resident*; one
//! without is *remembered* a while, because what happens to it next is what the policy learns
//! from. Per tier, the blocks that may go are kept in a list to draw from: the leaves.

mod leaves;

use hashbrown::HashTable;

use self::leaves::Leaves;
use super::{BlockId, Owner, Tier};

/// A block's number in [`Blocks`], while it is known.
pub(crate) type No = u32;

/// No block.
pub(crate) const NONE: No = u32::MAX;

/// What is true of a block: bits of [`Block::flags`].
pub(crate) mod flag {
    /// It has a copy in RAM.
    pub const CPU: u8 = 1;
    /// It has a copy on disk.
    pub const DISK: u8 = 1 << 1;
    /// It has a copy in shared storage.
    pub const SHARED: u8 = 1 << 2;
    /// The request at hand names it.
    pub const BUSY: u8 = 1 << 3;
    /// Somebody pinned it.
    pub const PINNED: u8 = 1 << 4;
    /// It had been here before it was stored this time.
    pub const RETURNED: u8 = 1 << 5;
    /// It entered RAM (this bit) or disk (the next) with the request at hand.
    pub const NEW: [u8; 2] = [1 << 6, 1 << 7];
    /// A copy on this node.
    pub const LOCAL: u8 = CPU | DISK;
}

/// One known block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub id: BlockId,
    pub parent: No,
    /// Children with a copy in RAM, children with a copy on disk.
    pub held: [u32; 2],
    /// Children that are known.
    pub children: u32,
    /// Last access, in ticks.
    pub last: u32,
    /// Resident: its place in either tier's leaves, or [`NONE`]. Remembered: its neighbours in the
    /// order of forgetting. Free: the next free number.
    links: [u32; 2],
    pub owner: Owner,
    pub past: Past,
    pub flags: u8,
}

/// What of a block's past tells about its future.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Past(u8);

impl Past {
    /// Accesses after the first, up to 63.
    pub fn reuse(self) -> u8 {
        self.0 >> 2
    }

    /// Turns of its conversation before it was first seen, up to 3.
    pub fn turns(self) -> u8 {
        self.0 & 3
    }

    /// One more access.
    pub fn again(self) -> Past {
        if self.reuse() == 63 { self } else { Past(self.0 + 4) }
    }

    /// A number below [`Past::CLASSES`]: reuse is told apart up to 3.
    pub fn class(self) -> usize {
        usize::from(self.reuse().min(3) << 2 | self.turns())
    }

    /// How many [`class`](Past::class)es there are; those that differ by turns only are neighbours.
    pub const CLASSES: usize = 16;
}

impl Block {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// All known blocks.
#[derive(Debug)]
pub(crate) struct Blocks {
    all: Vec<Block>,
    by_id: HashTable<No>,
    free: No,
    leaves: [Leaves; 2],
    /// The remembered blocks, the one to be forgotten first at the front.
    oldest: No,
    newest: No,
    remembered: usize,
}

/// Ids may be chosen by whoever sends prompts, or count from 0.
fn hash(id: BlockId) -> u64 {
    let folded = (id.0 as u64 ^ (id.0 >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    folded ^ (folded >> 32)
}

impl Blocks {
    pub fn new() -> Blocks {
        Blocks {
            all: Vec::new(),
            by_id: HashTable::new(),
            free: NONE,
            leaves: Default::default(),
            oldest: NONE,
            newest: NONE,
            remembered: 0,
        }
    }

    pub fn get(&self, no: No) -> &Block {
        &self.all[no as usize]
    }

    pub fn get_mut(&mut self, no: No) -> &mut Block {
        &mut self.all[no as usize]
    }

    pub fn find(&self, id: BlockId) -> Option<No> {
        self.by_id.find(hash(id), |&no| self.all[no as usize].id == id).copied()
    }

    /// Known blocks, resident or remembered.
    pub fn known(&self) -> usize {
        self.by_id.len()
    }

    /// Blocks without a copy on this node.
    pub fn remembered(&self) -> usize {
        self.remembered
    }

    /// Heap memory, in bytes.
    pub fn memory(&self) -> usize {
        let lists: usize = self.leaves.iter().map(Leaves::memory).sum();
        self.all.capacity() * size_of::<Block>() + self.by_id.allocation_size() + lists
    }

    /// Any number below which all blocks' numbers are, for drawing one at random.
    pub fn span(&self) -> u32 {
        self.all.len() as u32
    }

    /// The block at a number drawn, unless it is free.
    pub fn drawn(&self, no: No) -> Option<&Block> {
        self.all.get(no as usize).filter(|b| b.last != NEVER || b.children != FREE)
    }

    /// Learns of a block. It is remembered, not resident.
    pub fn add(&mut self, id: BlockId, parent: No, owner: Owner, last: u32) -> No {
        let block = Block {
            id,
            parent,
            held: [0; 2],
            children: 0,
            last,
            links: [NONE; 2],
            owner,
            past: Past(self.turns_after(parent, last)),
            flags: 0,
        };
        let no = if self.free == NONE {
            // In small steps: doubling would leave half of it unused.
            if self.all.len() == self.all.capacity() {
                self.all.reserve_exact(self.all.len() / 32 + 32);
            }
            self.all.push(block);
            (self.all.len() - 1) as No
        } else {
            let no = self.free;
            self.free = self.get(no).links[0];
            *self.get_mut(no) = block;
            no
        };
        let all = &self.all;
        self.by_id.insert_unique(hash(id), no, |&n| hash(all[n as usize].id));
        if parent != NONE {
            self.get_mut(parent).children += 1;
        }
        self.remember(no);
        no
    }

    /// The turn that a new block behind `parent` is of. A prompt goes on with an earlier one where
    /// nothing else does, or only that one's last, partial block; where many prompts part, each
    /// is a conversation of its own.
    fn turns_after(&self, parent: No, now: u32) -> u8 {
        if parent == NONE {
            return 0;
        }
        let above = self.get(parent);
        match above.children {
            0 if above.last == now && above.past.reuse() == 0 => above.past.turns(),
            0 | 1 => (above.past.turns() + 1).min(3),
            _ => 0,
        }
    }

    /// Gives a block that was first seen without a parent its place.
    pub fn adopt(&mut self, no: No, parent: No) {
        let block = *self.get(no);
        // Without children it is nobody's ancestor, so no circle can close.
        if block.parent != NONE || block.children != 0 || parent == no {
            return;
        }
        self.get_mut(no).parent = parent;
        let above = self.get_mut(parent);
        above.children += 1;
        for tier in [Tier::Cpu, Tier::Disk] {
            above.held[tier.at()] += u32::from(block.has(tier.flag()));
        }
    }

    /// Notes a new copy of a block.
    pub fn gain(&mut self, no: No, tier: Tier) {
        if !self.get(no).has(flag::LOCAL) && tier != Tier::Shared {
            self.unlink(no);
        }
        let block = self.get_mut(no);
        block.flags |= tier.flag();
        let parent = block.parent;
        if parent != NONE && tier != Tier::Shared {
            self.get_mut(parent).held[tier.at()] += 1;
        }
    }

    /// Notes that a block's copy is gone. It must be no leaf of that tier any more.
    pub fn lose(&mut self, no: No, tier: Tier) {
        let block = self.get_mut(no);
        block.flags &= !tier.flag();
        if tier == Tier::Shared {
            return;
        }
        let (parent, local) = (block.parent, block.has(flag::LOCAL));
        if parent != NONE {
            self.get_mut(parent).held[tier.at()] -= 1;
        }
        if !local {
            self.remember(no);
        }
    }

    /// Forgets the block that has been without a copy for longest. Blocks with known children
    /// stay: the children go first. False where the oldest all have to stay.
    pub fn forget(&mut self) -> bool {
        for _ in 0..4 {
            let no = self.oldest;
            if no == NONE {
                return false;
            }
            self.unlink(no);
            let block = *self.get(no);
            if block.children > 0 || block.has(flag::PINNED | flag::BUSY) {
                self.remember(no);
                continue;
            }
            if block.parent != NONE {
                self.get_mut(block.parent).children -= 1;
            }
            if let Ok(found) = self.by_id.find_entry(hash(block.id), |&n| n == no) {
                found.remove();
            }
            let free = self.free;
            let slot = self.get_mut(no);
            (slot.links, slot.last, slot.children) = ([free, NONE], NEVER, FREE);
            self.free = no;
            return true;
        }
        false
    }

    fn remember(&mut self, no: No) {
        let newest = self.newest;
        self.get_mut(no).links = [newest, NONE];
        match newest {
            NONE => self.oldest = no,
            before => self.get_mut(before).links[1] = no,
        }
        self.newest = no;
        self.remembered += 1;
    }

    /// Takes a block out of the order of forgetting; its links are free for the leaves.
    fn unlink(&mut self, no: No) {
        let [before, after] = std::mem::replace(&mut self.get_mut(no).links, [NONE; 2]);
        match before {
            NONE => self.oldest = after,
            before => self.get_mut(before).links[1] = after,
        }
        match after {
            NONE => self.newest = before,
            after => self.get_mut(after).links[0] = before,
        }
        self.remembered -= 1;
    }
}

/// With [`FREE`], marks a number that is free.
const NEVER: u32 = u32::MAX;
const FREE: u32 = u32::MAX;
