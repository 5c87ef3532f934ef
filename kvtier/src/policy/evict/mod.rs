//! In which order do blocks leave a tier?
//!
//! Whatever the order, only leaves are evicted: blocks without a child in the tier. A tier tells
//! its order what happens and asks it for a victim.

mod age;
mod hazard;
mod s3fifo;

use super::Ranking;
use super::blocks::{Block, Blocks, No};
use super::random::Random;
use super::reuse::Worth;
use super::{Owner, Tier};

/// What an order may look at when it chooses.
pub(crate) struct View<'a> {
    pub blocks: &'a Blocks,
    pub worth: &'a Worth,
    pub tier: Tier,
    /// The present, in ticks.
    pub now: u32,
}

/// An order of eviction from one tier.
pub(crate) trait Order: std::fmt::Debug + Send {
    /// A block has come to the tier. Of one request, the last block first.
    fn entered(&mut self, _no: No, _block: &Block) {}
    /// A block of the tier was accessed. Of one request, the last block first.
    fn touched(&mut self, _no: No) {}
    /// A block has left the tier.
    fn left(&mut self, _no: No) {}
    /// A block may be evicted from now on.
    fn freed(&mut self, _no: No, _block: &Block) {}
    /// A block may not be evicted any more. Told before anything else about the block changes.
    fn held(&mut self, _no: No, _block: &Block) {}
    /// The leaf to go next, of one owner or of all; `None` where there is none.
    fn victim(&mut self, view: &View<'_>, owner: Option<Owner>, random: &mut Random) -> Option<No>;
    /// Heap memory, in bytes.
    fn memory(&self) -> usize {
        0
    }
}

/// The order that `ranking` names, for a tier of `capacity` blocks.
pub(crate) fn order(ranking: Ranking, capacity: u32) -> Box<dyn Order> {
    match ranking {
        Ranking::Hazard => Box::new(hazard::Hazard::default()),
        Ranking::Lru => Box::new(age::ByAge::new(0)),
        Ranking::AgeOverReuse => Box::new(age::ByAge::new(15)),
        Ranking::S3Fifo => Box::new(s3fifo::S3Fifo::new(capacity)),
    }
}
