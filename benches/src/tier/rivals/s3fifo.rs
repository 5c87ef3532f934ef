//! S3-FIFO (Yang et al. 2023): a small queue of a tenth, a main queue, a queue of ghosts.

use super::Cache;
use super::list::List;

/// See the module.
pub struct S3Fifo {
    capacity: usize,
    small: List,
    main: List,
    ghosts: List,
    uses: Vec<u8>,
}

impl S3Fifo {
    pub fn new(capacity: usize, blocks: usize) -> S3Fifo {
        let list = || List::new(blocks);
        S3Fifo { capacity, small: list(), main: list(), ghosts: list(), uses: vec![0; blocks] }
    }

    fn evict(&mut self) {
        let small = (self.capacity / 10).max(1);
        loop {
            if self.small.len() >= small || self.main.len() == 0 {
                let Some(block) = self.small.pop() else { return };
                if std::mem::take(&mut self.uses[block as usize]) > 0 {
                    self.main.push(block);
                    continue;
                }
                self.ghosts.push(block);
                if self.ghosts.len() > self.capacity - small {
                    self.ghosts.pop();
                }
                return;
            }
            let Some(block) = self.main.pop() else { return };
            if self.uses[block as usize] == 0 {
                return;
            }
            self.uses[block as usize] -= 1;
            self.main.push(block);
        }
    }
}

impl Cache for S3Fifo {
    fn has(&self, block: u32) -> bool {
        self.small.has(block) || self.main.has(block)
    }

    fn access(&mut self, block: u32) {
        let uses = &mut self.uses[block as usize];
        if self.small.has(block) || self.main.has(block) {
            *uses = (*uses + 1).min(3);
            return;
        }
        *uses = 0;
        while self.small.len() + self.main.len() >= self.capacity {
            self.evict();
        }
        if self.ghosts.remove(block) { self.main.push(block) } else { self.small.push(block) }
    }
}
