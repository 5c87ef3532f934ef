//! One engine's block cache: least recently used first out.

use rustc_hash::FxHashMap;

const NIL: u32 = u32::MAX;

/// A place in the cache's order.
pub type Place = u32;

#[derive(Clone, Copy, Debug)]
struct Node {
    block: u64,
    older: Place,
    newer: Place,
}

/// Blocks by sequence hash, in a linked list from the oldest to the newest.
#[derive(Debug)]
pub struct Cache {
    places: FxHashMap<u64, Place>,
    nodes: Vec<Node>,
    free: Vec<Place>,
    oldest: Place,
    newest: Place,
    /// Blocks that fit.
    pub capacity: usize,
}

impl Cache {
    /// An empty cache for `capacity` blocks.
    pub fn new(capacity: usize) -> Cache {
        let places = FxHashMap::default();
        Cache { places, nodes: Vec::new(), free: Vec::new(), oldest: NIL, newest: NIL, capacity }
    }

    /// Blocks in it.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Where a block is.
    pub fn place(&self, block: u64) -> Option<Place> {
        self.places.get(&block).copied()
    }

    /// Adds a block that has no place in the order yet.
    pub fn insert(&mut self, block: u64) -> Place {
        let node = Node { block, older: NIL, newer: NIL };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        self.places.insert(block, at);
        at
    }

    /// Takes a block out of the order: nothing evicts it.
    pub fn pin(&mut self, at: Place) {
        let Node { older, newer, .. } = self.nodes[at as usize];
        match older {
            NIL => self.oldest = newer,
            o => self.nodes[o as usize].newer = newer,
        }
        match newer {
            NIL => self.newest = older,
            n => self.nodes[n as usize].older = older,
        }
    }

    /// Puts a block that is in no order at the newest end.
    pub fn make_newest(&mut self, at: Place) {
        self.nodes[at as usize].older = self.newest;
        self.nodes[at as usize].newer = NIL;
        match self.newest {
            NIL => self.oldest = at,
            n => self.nodes[n as usize].newer = at,
        }
        self.newest = at;
    }

    /// Puts a block that is in no order just before another, so that it is evicted first.
    pub fn make_older_than(&mut self, at: Place, other: Place) {
        let older = self.nodes[other as usize].older;
        self.nodes[at as usize].older = older;
        self.nodes[at as usize].newer = other;
        self.nodes[other as usize].older = at;
        match older {
            NIL => self.oldest = at,
            o => self.nodes[o as usize].newer = at,
        }
    }

    /// Drops the oldest blocks until `room` more fit; what was dropped.
    pub fn make_room(&mut self, room: usize) -> Vec<u64> {
        let mut gone = Vec::new();
        while self.len() + room > self.capacity && self.oldest != NIL {
            let at = self.oldest;
            let block = self.nodes[at as usize].block;
            self.pin(at);
            self.forget(block);
            gone.push(block);
        }
        gone
    }

    /// Drops a block.
    pub fn remove(&mut self, block: u64) {
        if let Some(at) = self.place(block) {
            self.pin(at);
            self.forget(block);
        }
    }

    /// Drops a block that is in no order.
    fn forget(&mut self, block: u64) {
        self.free.extend(self.places.remove(&block));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_unless_it_is_pinned() {
        let mut c = Cache::new(3);
        for block in [1, 2] {
            let at = c.insert(block);
            c.make_newest(at);
        }
        let at = c.insert(3);
        c.make_older_than(at, c.place(2).unwrap());
        c.pin(c.place(1).unwrap());
        assert_eq!(c.make_room(1), [3]);
        assert_eq!((c.len(), c.place(3)), (2, None));
    }
}
