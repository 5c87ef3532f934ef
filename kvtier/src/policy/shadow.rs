//! How would the other rankings have done?
//!
//! Each is run on one block in [`ONE_IN`], in a tier as much smaller, without payloads: a sample
//! by hash keeps the reuse of each block in it whole, so hit ratios carry over.

use super::planner::Planner;
use super::{BlockId, Config, Move, Owner, Ranking};

/// Of how many blocks one is in the sample.
const ONE_IN: u32 = 16;

/// How a ranking would have done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shadow {
    /// Which.
    pub ranking: Ranking,
    /// Blocks of the sample looked up.
    pub asked: u64,
    /// The part of all blocks that would have been found, 0 to 1, as far as the sample tells.
    pub hit_ratio: f64,
}

/// All rankings side by side, on a sample of the blocks.
#[derive(Debug)]
pub struct Shadows {
    planners: Vec<(Ranking, Planner)>,
    sample: Vec<BlockId>,
    /// Blocks looked up, in the sample or not.
    asked: u64,
    moves: Vec<Move>,
}

impl Shadows {
    /// Shadows of a node that keeps `blocks` blocks and remembers `remembered` more. Their memory
    /// is bounded by a sixteenth of that, times the number of rankings.
    pub fn new(blocks: u32, remembered: u32) -> Shadows {
        let planner = |ranking| {
            let cpu = (blocks / ONE_IN).max(1);
            Planner::new(Config { ranking, cpu, remembered: remembered / ONE_IN, ..Config::default() })
        };
        let planners = Ranking::ALL.map(|r| (r, planner(r))).into();
        Shadows { planners, sample: Vec::new(), asked: 0, moves: Vec::new() }
    }

    /// A request looked `chain` up at `now` (ms), and what is missing was stored after it.
    pub fn request(&mut self, now: u64, chain: &[BlockId]) {
        self.asked += chain.len() as u64;
        self.sample.clear();
        self.sample.extend(chain.iter().filter(|id| sampled(**id)));
        if self.sample.is_empty() {
            return;
        }
        for (_, planner) in &mut self.planners {
            planner.lookup(now, &self.sample, &mut self.moves);
            planner.store(now, None, &self.sample, Owner(0), &mut self.moves);
            self.moves.clear();
        }
    }

    /// How each ranking has done so far.
    pub fn so_far(&self) -> impl Iterator<Item = Shadow> {
        self.planners.iter().map(|(ranking, planner)| {
            let stats = planner.stats();
            // A few blocks are asked for by nearly every prompt, and hit. The sample has too many
            // or too few of those, by as much as it is larger or smaller than it should be.
            let expected = self.asked as f64 / f64::from(ONE_IN);
            let found = stats.found as f64 + expected - stats.asked as f64;
            let hit_ratio = if expected > 0.0 { (found / expected).clamp(0.0, 1.0) } else { 0.0 };
            Shadow { ranking: *ranking, asked: stats.asked, hit_ratio }
        })
    }
}

/// By other bits of the id than tables are indexed by.
fn sampled(id: BlockId) -> bool {
    let mixed = ((id.0 >> 64) as u64 ^ id.0 as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 40).is_multiple_of(u64::from(ONE_IN))
}
