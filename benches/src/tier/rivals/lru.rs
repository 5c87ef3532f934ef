//! Least recently used.

use super::Cache;
use super::list::List;

/// See the module.
pub struct Lru {
    capacity: usize,
    list: List,
}

impl Lru {
    pub fn new(capacity: usize, blocks: usize) -> Lru {
        Lru { capacity, list: List::new(blocks) }
    }
}

impl Cache for Lru {
    fn has(&self, block: u32) -> bool {
        self.list.has(block)
    }

    fn access(&mut self, block: u32) {
        if !self.list.remove(block) && self.list.len() == self.capacity {
            self.list.pop();
        }
        self.list.push(block);
    }
}
