//! SIEVE (Zhang et al. 2024): a queue, a bit per block, a hand.

use super::Cache;
use super::list::List;

/// See the module.
pub struct Sieve {
    capacity: usize,
    list: List,
    visited: Vec<bool>,
    hand: Option<u32>,
}

impl Sieve {
    pub fn new(capacity: usize, blocks: usize) -> Sieve {
        Sieve { capacity, list: List::new(blocks), visited: vec![false; blocks], hand: None }
    }

    fn evict(&mut self) {
        let mut at = self.hand.or(self.list.first());
        while let Some(block) = at {
            let behind = self.list.behind(block);
            if !std::mem::take(&mut self.visited[block as usize]) {
                self.hand = behind;
                self.list.remove(block);
                return;
            }
            at = behind.or(self.list.first());
        }
    }
}

impl Cache for Sieve {
    fn has(&self, block: u32) -> bool {
        self.list.has(block)
    }

    fn access(&mut self, block: u32) {
        if self.list.has(block) {
            self.visited[block as usize] = true;
            return;
        }
        if self.list.len() == self.capacity {
            self.evict();
        }
        self.visited[block as usize] = false;
        self.list.push(block);
    }
}
