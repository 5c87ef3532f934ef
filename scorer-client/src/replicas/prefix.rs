//! Which servers were sent prompts that begin like this one?
//!
//! What a scheduler can know without asking anybody: it remembers, per server, the blocks of the prompts
//! that it routed there, and forgets those used longest ago. Nobody tells it what an engine evicted or
//! what others routed, so its answers are guesses; llm-d's `approx-prefix-cache-producer` works alike.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::RangeBounds;

/// Blocks of routed prompts, by server. A block's name stands for it and all before it.
#[derive(Debug)]
pub struct PrefixMemory<S> {
    room: usize,
    servers: BTreeMap<S, Recent>,
}

/// Blocks in the order of their last use.
#[derive(Debug, Default)]
struct Recent {
    used: HashMap<u64, u64>,
    /// Uses, oldest first; those that are not the last one of their block are skipped.
    order: VecDeque<(u64, u64)>,
    uses: u64,
}

impl<S: Ord + Clone> PrefixMemory<S> {
    /// Remembers up to so many blocks of each server.
    pub fn new(blocks_per_server: usize) -> PrefixMemory<S> {
        PrefixMemory { room: blocks_per_server, servers: BTreeMap::new() }
    }

    /// A prompt of these blocks, from the root, went to `server`.
    pub fn note(&mut self, server: &S, chain: &[u64]) {
        if !self.servers.contains_key(server) {
            self.servers.insert(server.clone(), Recent::default());
        }
        let recent = self.servers.get_mut(server).expect("it was put there");
        // The root is used last: without it, nothing after it counts.
        for block in chain.iter().take(self.room).rev() {
            recent.touch(*block);
        }
        recent.shrink(self.room);
    }

    /// Blocks of `chain`, from the root, that were sent to `server`.
    pub fn depth(&self, server: &S, chain: &[u64]) -> usize {
        self.servers.get(server).map_or(0, |recent| recent.depth(chain))
    }

    /// The same for every server in `range`, in order.
    pub fn depths<'a>(
        &'a self,
        range: impl RangeBounds<S> + 'a,
        chain: &'a [u64],
    ) -> impl Iterator<Item = (&'a S, usize)> + 'a {
        self.servers.range(range).map(|(server, recent)| (server, recent.depth(chain)))
    }

    /// Forgets a server.
    pub fn forget(&mut self, server: &S) {
        self.servers.remove(server);
    }

    /// How many servers are remembered.
    pub fn servers(&self) -> usize {
        self.servers.len()
    }
}

impl Recent {
    fn touch(&mut self, block: u64) {
        self.uses += 1;
        self.used.insert(block, self.uses);
        self.order.push_back((block, self.uses));
    }

    fn depth(&self, chain: &[u64]) -> usize {
        chain.iter().take_while(|b| self.used.contains_key(*b)).count()
    }

    fn shrink(&mut self, room: usize) {
        while self.used.len() > room {
            let Some((block, use_)) = self.order.pop_front() else { break };
            if self.used.get(&block) == Some(&use_) {
                self.used.remove(&block);
            }
        }
        // Uses of blocks that were used again since are let go of in one sweep now and then.
        if self.order.len() > 2 * self.used.len() + 64 {
            let used = &self.used;
            self.order.retain(|(block, use_)| used.get(block) == Some(use_));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_to_a_server_counts_there_from_the_root() {
        let mut m = PrefixMemory::new(100);
        m.note(&"a", &[1, 2, 3]);
        m.note(&"b", &[1, 7]);
        assert_eq!((m.depth(&"a", &[1, 2, 3, 4]), m.depth(&"b", &[1, 2, 3, 4])), (3, 1));
        assert_eq!((m.depth(&"a", &[2, 3]), m.depth(&"c", &[1])), (2, 0));
        assert_eq!(m.depths(.., &[1, 7]).collect::<Vec<_>>(), [(&"a", 1), (&"b", 2)]);
        m.forget(&"a");
        assert_eq!((m.depth(&"a", &[1]), m.servers()), (0, 1));
    }

    #[test]
    fn the_blocks_used_longest_ago_go_first_and_of_one_prompt_the_last() {
        let mut m = PrefixMemory::new(4);
        m.note(&0, &[1, 2, 3]);
        m.note(&0, &[10, 11]);
        assert_eq!((m.depth(&0, &[1, 2, 3]), m.depth(&0, &[10, 11])), (2, 2));
        m.note(&0, &[1, 2]);
        m.note(&0, &[20, 21]);
        assert_eq!((m.depth(&0, &[1, 2, 3]), m.depth(&0, &[10, 11]), m.depth(&0, &[20, 21])), (2, 0, 2));
    }

    #[test]
    fn memory_stays_bounded_however_often_a_prompt_comes() {
        let mut m = PrefixMemory::new(8);
        for i in 0..10_000u64 {
            m.note(&0, &[1, 2, 3, i % 5]);
        }
        assert!(m.servers[&0].order.len() <= 2 * 8 + 64 + 8);
        m.note(&0, &(100..200).collect::<Vec<_>>());
        assert_eq!(m.depth(&0, &(100..200).collect::<Vec<_>>()), 8);
        assert_eq!(m.servers[&0].used.len(), 8);
    }
}
