//! W-TinyLFU (Einziger et al. 2017): a window of 1 %, a segmented LRU, admission by a sketch of
//! recent frequencies.

use super::Cache;
use super::list::List;

/// See the module.
pub struct WTinyLfu {
    capacity: usize,
    window: List,
    probation: List,
    protected: List,
    sketch: Sketch,
}

impl WTinyLfu {
    pub fn new(capacity: usize, blocks: usize) -> WTinyLfu {
        let list = || List::new(blocks);
        WTinyLfu {
            capacity,
            window: list(),
            probation: list(),
            protected: list(),
            sketch: Sketch::new(capacity),
        }
    }
}

impl Cache for WTinyLfu {
    fn has(&self, block: u32) -> bool {
        self.window.has(block) || self.probation.has(block) || self.protected.has(block)
    }

    fn access(&mut self, block: u32) {
        self.sketch.add(block);
        let window = (self.capacity / 100).max(1);
        let protected = (self.capacity - window) * 4 / 5;
        if self.window.remove(block) {
            self.window.push(block);
        } else if self.protected.remove(block) {
            self.protected.push(block);
        } else if self.probation.remove(block) {
            self.protected.push(block);
            if self.protected.len() > protected
                && let Some(demoted) = self.protected.pop()
            {
                self.probation.push(demoted);
            }
        } else {
            self.window.push(block);
            if self.window.len() <= window {
                return;
            }
            let Some(candidate) = self.window.pop() else { return };
            if self.probation.len() + self.protected.len() < self.capacity - window {
                self.probation.push(candidate);
                return;
            }
            let Some(victim) = self.probation.first().or(self.protected.first()) else { return };
            if self.sketch.count(candidate) > self.sketch.count(victim) {
                let _ = self.probation.remove(victim) || self.protected.remove(victim);
                self.probation.push(candidate);
            }
        }
    }
}

/// How often blocks were used lately, about: four counters each up to 15, halved now and then.
struct Sketch {
    counters: Vec<u8>,
    additions: usize,
    period: usize,
}

impl Sketch {
    fn new(capacity: usize) -> Sketch {
        let width = (capacity * 16).next_power_of_two();
        Sketch { counters: vec![0; width], additions: 0, period: capacity * 10 }
    }

    fn places(&self, block: u32) -> [usize; 4] {
        let mask = self.counters.len() - 1;
        [0x9e37_79b9_7f4a_7c15u64, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0xd6e8_feb8_6659_fd93]
            .map(|k| ((u64::from(block) + 1).wrapping_mul(k) >> 32) as usize & mask)
    }

    fn count(&self, block: u32) -> u8 {
        self.places(block).into_iter().map(|p| self.counters[p]).min().unwrap_or(0)
    }

    fn add(&mut self, block: u32) {
        let least = self.count(block);
        for place in self.places(block) {
            if self.counters[place] == least && least < 15 {
                self.counters[place] += 1;
            }
        }
        self.additions += 1;
        if self.additions == self.period {
            self.additions /= 2;
            self.counters.iter_mut().for_each(|c| *c /= 2);
        }
    }
}
