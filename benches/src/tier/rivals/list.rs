//! A queue of blocks from whose middle one can be taken.

const NONE: u32 = u32::MAX;

/// Each block at most once.
#[derive(Debug)]
pub struct List {
    before: Vec<u32>,
    after: Vec<u32>,
    held: Vec<bool>,
    first: u32,
    last: u32,
    len: usize,
}

impl List {
    /// For blocks numbered below `blocks`.
    pub fn new(blocks: usize) -> List {
        let none = vec![NONE; blocks];
        List { before: none.clone(), after: none, held: vec![false; blocks], first: NONE, last: NONE, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn has(&self, block: u32) -> bool {
        self.held[block as usize]
    }

    /// Puts a block that is not in it at the end.
    pub fn push(&mut self, block: u32) {
        let at = block as usize;
        (self.before[at], self.after[at], self.held[at]) = (self.last, NONE, true);
        match self.last {
            NONE => self.first = block,
            last => self.after[last as usize] = block,
        }
        self.last = block;
        self.len += 1;
    }

    /// Takes a block out; false where it is not in it.
    pub fn remove(&mut self, block: u32) -> bool {
        let at = block as usize;
        if !std::mem::take(&mut self.held[at]) {
            return false;
        }
        let (before, after) = (self.before[at], self.after[at]);
        match before {
            NONE => self.first = after,
            before => self.after[before as usize] = after,
        }
        match after {
            NONE => self.last = before,
            after => self.before[after as usize] = before,
        }
        self.len -= 1;
        true
    }

    /// Takes the first block out.
    pub fn pop(&mut self) -> Option<u32> {
        let first = self.first()?;
        self.remove(first);
        Some(first)
    }

    pub fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    /// The block behind one that is in it.
    pub fn behind(&self, block: u32) -> Option<u32> {
        let after = self.after[block as usize];
        (after != NONE).then_some(after)
    }
}
