//! A conversation service's requests, each block of the trace split into smaller ones.

use super::Eviction;
use super::fleet::Fleet;
use super::trace::{BLOCK, Request};
use crate::hash::{content, sequence_hashes};
use crate::stream::Stream;

/// Blocks of output, in tokens, decoded between two requests: about a request's own.
const OUTPUT_PER_REQUEST: u32 = 343;

/// Serves the trace in blocks of `block_size` tokens, a divisor of the trace's 512, with caches of
/// `capacity` blocks.
pub fn stream(
    trace: &[Request],
    block_size: u32,
    pods: u32,
    capacity: usize,
    eviction: Eviction,
    seed: u64,
) -> Stream {
    let split = u64::from(BLOCK / block_size);
    let mut fleet = Fleet::new(pods, capacity, block_size, eviction, seed);
    for request in trace {
        let parts = |id: &u64| {
            let id = *id + 1;
            (0..split).map(move |k| content(seed, id, k))
        };
        let locals: Vec<u64> = request.hash_ids.iter().flat_map(parts).collect();
        let sequence = sequence_hashes(&locals);
        let scored = fleet.score(&sequence);
        fleet.stream.ask(&locals, scored.hit);
        let pod = fleet.route(&scored, locals.len());
        let output = (request.output_length / u64::from(block_size)) as u32;
        fleet.serve(pod, &locals, &sequence, output);
        if output > 0 {
            fleet.decode((OUTPUT_PER_REQUEST / block_size).max(1) as usize);
        }
    }
    fleet.stream
}
