//! Blocks of one pool: least recently used goes first, nothing that is in use.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

/// A change that the engine announces.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Which block.
    pub block: u32,
    /// Stored, or removed.
    pub stored: bool,
}

/// A pool of so many blocks.
#[derive(Debug, Default)]
pub struct Cache {
    room: usize,
    held: FxHashMap<u32, Held>,
    /// By last use; entries that are out of date are skipped.
    order: BinaryHeap<Reverse<(u64, u32)>>,
    uses: u64,
    /// Blocks in use that nobody can share: partial ones and answers.
    private: usize,
    in_use: usize,
    /// What changed since it was last taken.
    pub changes: Vec<Change>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    users: u32,
    used: u64,
}

impl Cache {
    /// An empty pool.
    pub fn new(room: usize) -> Cache {
        Cache { room, ..Cache::default() }
    }

    /// Blocks of `chain` that are here without a gap from its start.
    pub fn prefix(&self, chain: &[u32]) -> usize {
        chain.iter().take_while(|b| self.held.contains_key(*b)).count()
    }

    /// Whether so many blocks more may be in use.
    pub fn has_room(&self, blocks: usize) -> bool {
        self.in_use + self.private + blocks <= self.room
    }

    /// Puts blocks to use, storing those that are not here, with some that nobody can share.
    pub fn take(&mut self, chain: &[u32], private: usize) {
        for block in chain {
            let new = !self.held.contains_key(block);
            let held = self.held.entry(*block).or_insert(Held { users: 0, used: 0 });
            held.users += 1;
            self.in_use += usize::from(held.users == 1);
            if new {
                self.changes.push(Change { block: *block, stored: true });
            }
        }
        self.private += private;
        self.shrink();
    }

    /// Gives them back. The end of a chain goes first, as engines free it.
    pub fn give_back(&mut self, chain: &[u32], private: usize) {
        for block in chain.iter().rev() {
            self.uses += 1;
            let uses = self.uses;
            if let Some(held) = self.held.get_mut(block) {
                held.users -= 1;
                held.used = uses;
                if held.users == 0 {
                    self.in_use -= 1;
                    self.order.push(Reverse((uses, *block)));
                }
            }
        }
        self.private -= private;
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.held.len() + self.private > self.room {
            let Some(Reverse((used, block))) = self.order.pop() else { break };
            if self.held.get(&block).is_some_and(|h| h.users == 0 && h.used == used) {
                self.held.remove(&block);
                self.changes.push(Change { block, stored: false });
            }
        }
    }
}

impl Cache {
    /// Part of the pool that is in use.
    pub fn usage(&self) -> f64 {
        (self.in_use + self.private) as f64 / self.room.max(1) as f64
    }
}
