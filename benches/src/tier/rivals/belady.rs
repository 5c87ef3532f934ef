//! What a cache could reach that knows the future.

use std::collections::{BTreeSet, HashMap};

use kvd::ctl::simulate::trace::Trace;

/// The hit ratio of keeping, after each prompt, the blocks that are asked for again soonest. Of
/// blocks asked for by the same prompt, those nearer to the root.
pub fn belady(trace: &Trace, capacity: usize) -> f64 {
    let mut soonest: HashMap<u32, usize> = HashMap::new();
    let mut next: Vec<Vec<usize>> = Vec::with_capacity(trace.requests.len());
    for (at, request) in trace.requests.iter().enumerate().rev() {
        let after = |block: &u32| soonest.get(block).copied().unwrap_or(usize::MAX);
        next.push(request.chain.iter().map(after).collect());
        soonest.extend(request.chain.iter().map(|b| (*b, at)));
    }
    next.reverse();
    let mut kept: BTreeSet<(usize, usize, u32)> = BTreeSet::new();
    let mut order: HashMap<u32, (usize, usize, u32)> = HashMap::new();
    let mut hits = 0;
    for (request, next) in trace.requests.iter().zip(&next) {
        hits += request.chain.iter().take_while(|b| order.contains_key(b)).count();
        for (depth, (&block, &next)) in request.chain.iter().zip(next).enumerate() {
            if let Some(old) = order.remove(&block) {
                kept.remove(&old);
            }
            if next != usize::MAX {
                order.insert(block, (next, depth, block));
                kept.insert((next, depth, block));
            }
        }
        while kept.len() > capacity
            && let Some((_, _, block)) = kept.pop_last()
        {
            order.remove(&block);
        }
    }
    hits as f64 / trace.accesses() as f64
}
