//! Nothing but entries, for measuring memory.

use crate::hash::{chain, content};

const BLOCKS: usize = 512;

/// Chains of 512 blocks, each held whole by `share` pods, `entries` (block, pod) pairs in all.
/// `store` gets the pod and the (local, sequence) pairs of one chain.
pub fn fill(entries: usize, share: usize, pods: u32, mut store: impl FnMut(u32, &[[u64; 2]])) {
    let mut blocks = vec![[0; 2]; BLOCKS];
    for c in 0..entries / (BLOCKS * share) {
        let mut last = None;
        for (i, b) in blocks.iter_mut().enumerate() {
            let local = content(0, 0xF111_0000_0000_0000 + c as u64, i as u64);
            let sequence = last.map_or(local, |before| chain(before, local));
            last = Some(sequence);
            *b = [local, sequence];
        }
        for k in 0..share {
            store(((c * 7 + k) % pods as usize) as u32, &blocks);
        }
    }
}
