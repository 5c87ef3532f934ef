//! What does an engine hold? vLLM's block pool.
//!
//! Physical blocks wait in the order they became free and keep what is in them until they are taken
//! again; the one that became free longest ago goes first. One content may lie in several blocks,
//! and each is announced and removed on its own.

use std::collections::{BTreeMap, VecDeque};

use crate::wire::Said;

/// A physical block.
#[derive(Clone, Debug, Default)]
struct Block {
    users: u32,
    content: Option<(u32, u64)>,
}

/// The blocks of one engine's device. What happens to them is written to `said`.
#[derive(Clone, Debug)]
pub struct Pool {
    blocks: Vec<Block>,
    free: VecDeque<usize>,
    /// By group and hash: the blocks with that content, the first cached first.
    cached: BTreeMap<(u32, u64), Vec<usize>>,
    /// What is to be announced with the next batch.
    pub said: Vec<Said>,
}

impl Pool {
    /// A pool of `n` empty blocks.
    pub fn new(n: usize) -> Pool {
        Pool {
            blocks: vec![Block::default(); n],
            free: (0..n).collect(),
            cached: BTreeMap::new(),
            said: Vec::new(),
        }
    }

    /// Whether a block of `group` has this content.
    pub fn has(&self, group: u32, hash: u64) -> bool {
        self.cached.contains_key(&(group, hash))
    }

    /// Blocks that could be taken.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Uses a cached block, so that it is not taken.
    pub fn touch(&mut self, group: u32, hash: u64) -> Option<usize> {
        let id = *self.cached.get(&(group, hash))?.first()?;
        if self.blocks[id].users == 0 {
            self.free.retain(|&b| b != id);
        }
        self.blocks[id].users += 1;
        Some(id)
    }

    /// Takes the block that became free longest ago; what was in it is gone.
    pub fn take(&mut self) -> Option<usize> {
        let id = self.free.pop_front()?;
        if let Some((group, hash)) = self.blocks[id].content.take() {
            let same = self.cached.get_mut(&(group, hash)).expect("a block with content is listed under it");
            same.retain(|&b| b != id);
            if same.is_empty() {
                self.cached.remove(&(group, hash));
            }
            self.said.push(Said::Removed { cpu: false, group, hashes: vec![hash] });
        }
        self.blocks[id].users = 1;
        Some(id)
    }

    /// Notes what a block in use contains from now on.
    pub fn cache(&mut self, id: usize, group: u32, hash: u64) {
        self.blocks[id].content = Some((group, hash));
        self.cached.entry((group, hash)).or_default().push(id);
    }

    /// Gives back blocks, the one to be taken first at the front.
    pub fn release(&mut self, ids: impl Iterator<Item = usize>) {
        for id in ids {
            self.blocks[id].users -= 1;
            if self.blocks[id].users == 0 {
                self.free.push_back(id);
            }
        }
    }

    /// Forgets what is in all blocks, none of which may be in use.
    pub fn reset(&mut self) {
        self.cached.clear();
        for block in &mut self.blocks {
            debug_assert_eq!(block.users, 0, "a reset waits for requests to end");
            block.content = None;
        }
        self.said.push(Said::Cleared);
    }

    /// Every content held, for comparing with a dump.
    pub fn contents(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.cached.keys().copied()
    }
}

/// The tier below: whole chunks of blocks, the one used longest ago goes first.
#[derive(Clone, Debug)]
pub struct Offload {
    /// Device blocks per chunk.
    pub chunk: usize,
    /// Chunks there is room for.
    room: usize,
    /// Whether events describe the blocks, or have only each chunk's last hash.
    describes: bool,
    /// Announced hashes by chunk, the chunk used longest ago first.
    chunks: VecDeque<Vec<u64>>,
}

impl Offload {
    /// An empty tier.
    pub fn new(chunk: usize, room: usize, describes: bool) -> Offload {
        Offload { chunk, room, describes, chunks: VecDeque::new() }
    }

    /// Whether `hash` was announced and not removed.
    pub fn has(&self, hash: u64) -> bool {
        self.chunks.iter().any(|c| c.contains(&hash))
    }

    /// Notes a use of the chunk that ends with `hash`.
    pub fn touch(&mut self, hash: u64) {
        if let Some(at) = self.chunks.iter().position(|c| c.last() == Some(&hash)) {
            let chunk = self.chunks.remove(at).expect("just found");
            self.chunks.push_back(chunk);
        }
    }

    /// Copies a chunk of a sequence: its hashes, its tokens and the hash before it.
    pub fn store(
        &mut self,
        hashes: &[u64],
        tokens: &[u32],
        parent: Option<u64>,
        block: u32,
        said: &mut Vec<Said>,
    ) {
        let Some(&last) = hashes.last() else { return };
        if self.has(last) {
            return self.touch(last);
        }
        if self.chunks.len() == self.room {
            let hashes = self.chunks.pop_front().expect("there is room for at least one");
            said.push(Said::Removed { cpu: true, group: 0, hashes });
        }
        if self.describes {
            said.push(Said::Described { parent, hashes: hashes.to_vec(), tokens: tokens.to_vec(), block });
            self.chunks.push_back(hashes.to_vec());
        } else {
            said.push(Said::Bare { hash: last });
            self.chunks.push_back(vec![last]);
        }
    }

    /// Forgets everything, without a word of its own.
    pub fn reset(&mut self) {
        self.chunks.clear();
    }

    /// Every hash announced and not removed.
    pub fn contents(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.iter().flatten().copied()
    }
}
