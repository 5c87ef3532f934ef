//! The requests of a conversation service: a recorded trace, or one made up in its place.

use std::path::Path;

use anyhow::{Context, Result};

use crate::hash::Random;

/// Tokens per block of a trace.
pub const BLOCK: u32 = 512;

/// The longest made-up prompt, in blocks.
const MAX_BLOCKS: usize = 240;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Request {
    /// Equal ids are equal blocks of 512 tokens with equal prefixes.
    pub hash_ids: Vec<u64>,
    /// Tokens of output.
    #[serde(default)]
    pub output_length: u64,
}

/// Reads a trace in the form of Mooncake's: a JSON object per line.
pub fn read(path: &Path) -> Result<Vec<Request>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read the trace {}", path.display()))?;
    let parse =
        |(i, line)| serde_json::from_str(line).with_context(|| format!("line {} of the trace", i + 1));
    text.lines().enumerate().map(parse).collect()
}

/// Makes up conversations: prompts begin with one common block, a third of the requests are a
/// further turn of a recent one, lengths and outputs have long tails. About as Mooncake's
/// conversation trace is: 24 blocks a prompt, more than a third of them seen before.
pub fn invent(requests: usize, seed: u64) -> Vec<Request> {
    let mut random = Random(seed);
    let mut next_id = 1;
    let mut recent: Vec<Vec<u64>> = Vec::new();
    (0..requests)
        .map(|_| {
            let further = recent.len() > 16 && random.unit() < 0.4;
            let mut ids = match further {
                true => {
                    let mut ids = recent.swap_remove(random.below(recent.len()));
                    // The last block was not full, so the answer and the next turn change it.
                    ids.pop();
                    ids
                }
                false => vec![0],
            };
            let mean = if further { 3.0 } else { 19.0 };
            let fresh = 1 + long_tailed(&mut random, mean) as usize;
            let fresh = fresh.min(MAX_BLOCKS.saturating_sub(ids.len()).max(1));
            ids.extend(next_id..next_id + fresh as u64);
            next_id += fresh as u64;
            recent.push(ids.clone());
            if recent.len() > 512 {
                let at = random.below(recent.len());
                recent.swap_remove(at);
            }
            Request { hash_ids: ids, output_length: 1 + long_tailed(&mut random, 342.0) as u64 }
        })
        .collect()
}

fn long_tailed(random: &mut Random, mean: f64) -> f64 {
    -mean * (1.0 - random.unit()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn made_up_conversations_are_about_as_long_and_as_alike_as_recorded_ones() {
        let trace = invent(4000, 5);
        assert_eq!(trace, invent(4000, 5));
        assert_ne!(trace, invent(4000, 6));
        let blocks: usize = trace.iter().map(|r| r.hash_ids.len()).sum();
        let distinct = trace.iter().flat_map(|r| &r.hash_ids).collect::<HashSet<_>>().len();
        assert!((18 * 4000..32 * 4000).contains(&blocks), "{blocks} blocks");
        assert!((50..70).contains(&(100 * distinct / blocks)), "{distinct} of {blocks} are distinct");
        assert!(trace.iter().all(|r| r.hash_ids.len() <= MAX_BLOCKS));
    }
}
