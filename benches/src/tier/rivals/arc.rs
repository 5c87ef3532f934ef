//! Adaptive replacement cache (Megiddo and Modha 2003).

use super::Cache;
use super::list::List;

/// See the module.
pub struct Arc {
    capacity: usize,
    /// How much of the capacity `once` should have.
    target: usize,
    once: List,
    often: List,
    once_gone: List,
    often_gone: List,
}

impl Arc {
    pub fn new(capacity: usize, blocks: usize) -> Arc {
        let list = || List::new(blocks);
        Arc { capacity, target: 0, once: list(), often: list(), once_gone: list(), often_gone: list() }
    }

    fn replace(&mut self, was_often: bool) {
        let over = self.once.len() > self.target || (was_often && self.once.len() == self.target);
        if self.once.len() > 0 && over {
            if let Some(victim) = self.once.pop() {
                self.once_gone.push(victim);
            }
        } else if let Some(victim) = self.often.pop() {
            self.often_gone.push(victim);
        }
    }
}

impl Cache for Arc {
    fn has(&self, block: u32) -> bool {
        self.once.has(block) || self.often.has(block)
    }

    fn access(&mut self, block: u32) {
        if self.once.remove(block) || self.often.remove(block) {
            self.often.push(block);
            return;
        }
        let (gone_once, gone_often) = (self.once_gone.len().max(1), self.often_gone.len().max(1));
        if self.once_gone.remove(block) {
            self.target = (self.target + (gone_often / gone_once).max(1)).min(self.capacity);
            self.replace(false);
            self.often.push(block);
        } else if self.often_gone.remove(block) {
            self.target = self.target.saturating_sub((gone_once / gone_often).max(1));
            self.replace(true);
            self.often.push(block);
        } else {
            let first = self.once.len() + self.once_gone.len();
            let all = first + self.often.len() + self.often_gone.len();
            if first == self.capacity {
                if self.once.len() < self.capacity {
                    self.once_gone.pop();
                    self.replace(false);
                } else {
                    self.once.pop();
                }
            } else if all >= self.capacity {
                if all == 2 * self.capacity {
                    self.often_gone.pop();
                }
                self.replace(false);
            }
            self.once.push(block);
        }
    }
}
