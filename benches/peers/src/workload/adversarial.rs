//! Hard on whatever assumes that a pod holds a prefix: blocks are evicted anywhere, holes are
//! healed one block at a time, suffixes stored over what is still there, whole caches cleared.

use rustc_hash::FxHashSet;

use super::Eviction;
use super::fleet::Fleet;
use crate::hash::{content, sequence_hashes};
use crate::stream::Stream;

const CHAINS: u64 = 64;
const BLOCKS: usize = 64;
/// Blocks that two chains each have in common.
const SHARED: u64 = 24;

/// `rounds` things that happen, about a quarter of them questions.
pub fn stream(pods: u32, rounds: usize, seed: u64) -> Stream {
    let mut fleet = Fleet::new(pods, usize::MAX, 16, Eviction::Tail, seed);
    let chains: Vec<(Vec<u64>, Vec<u64>)> = (0..CHAINS)
        .map(|c| {
            let tag = |k| if k < SHARED { c / 2 + 1 } else { c + 1000 };
            let locals: Vec<u64> = (0..BLOCKS as u64).map(|k| content(seed, tag(k), k)).collect();
            let sequence = sequence_hashes(&locals);
            (locals, sequence)
        })
        .collect();
    let mut held: Vec<FxHashSet<u64>> = vec![FxHashSet::default(); pods as usize];
    for _ in 0..rounds {
        let (locals, sequence) = &chains[fleet.random.below(chains.len())];
        let pod = fleet.random.below(pods as usize) as u32;
        let has = &mut held[pod as usize];
        match fleet.random.below(100) {
            // A request: everything after its contiguous hit is stored, held or not.
            0..30 => {
                let n = 1 + fleet.random.below(BLOCKS);
                let hit = sequence[..n].iter().take_while(|b| has.contains(b)).count();
                fleet.store(pod, locals, sequence, hit..n);
                has.extend(&sequence[hit..n]);
            }
            // One block is evicted, wherever it is.
            30..60 => {
                let block = sequence[fleet.random.below(BLOCKS)];
                if has.remove(&block) {
                    fleet.stream.remove(pod, &[block]);
                    fleet.unhold(block, pod);
                }
            }
            // One missing block whose parent is held is stored alone.
            60..75 => {
                let heals = |i: &usize| !has.contains(&sequence[*i]) && has.contains(&sequence[i - 1]);
                let holes: Vec<usize> = (1..BLOCKS).filter(heals).collect();
                if !holes.is_empty() {
                    let i = holes[fleet.random.below(holes.len())];
                    fleet.store(pod, locals, sequence, i..i + 1);
                    has.insert(sequence[i]);
                }
            }
            75 if fleet.random.below(20) == 0 => {
                fleet.stream.clear(pod);
                for block in std::mem::take(has) {
                    fleet.unhold(block, pod);
                }
            }
            _ => {
                let n = 1 + fleet.random.below(BLOCKS);
                let scored = fleet.score(&sequence[..n]);
                fleet.stream.ask(&locals[..n], scored.hit);
            }
        }
    }
    fleet.stream
}
