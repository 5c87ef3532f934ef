//! What should be kept where? Decisions only: nothing here reads, writes, waits or looks at a
//! clock.
//!
//! ```text
//!   lookup, store, prefetch, pin ──▶ Planner ──▶ Vec<Move> ──▶ whoever does the I/O
//!                                       ▲                            │
//!                                       └────────── lost ◀───────────┘
//! ```
//!
//! A [`Planner`] is told what engines ask for and offer, and answers with [`Move`]s that the
//! caller carries out in their order. It takes for granted that they succeed; where one does not,
//! [`Planner::lost`] says so. All blocks of one planner have the same size: where groups of layers
//! differ, each has a planner of its own.
//!
//! A block leaves a tier only after its children have (`evict`), because a prefix is of use from
//! its root on only. Which leaf goes is the [`Ranking`]'s choice; [`Shadows`] tells how the other
//! rankings would have done.
//!
//! Read `planner` for what happens on a request, `wanted` and `pins` for what somebody asks by name, `room` for how place is made, `reuse` for what is
//! learned, `blocks` for what is remembered.
//!
//! ```
//! use kvtier::policy::{BlockId, Config, Move, Owner, Planner, Tier};
//!
//! let mut planner = Planner::new(Config { cpu: 2, disk: 8, ..Config::default() });
//! let (chain, mut moves) = ([BlockId(1), BlockId(2)], Vec::new());
//! assert_eq!(planner.lookup(0, &chain, &mut moves).total(), 0);
//! planner.store(0, None, &chain, Owner(0), &mut moves);
//! assert_eq!(moves[0], Move::Take { id: BlockId(1), to: Tier::Cpu });
//! assert_eq!(planner.lookup(60_000, &chain, &mut moves).cpu, 2);
//!
//! // A third block needs room: the end of the first prompt goes to disk.
//! moves.clear();
//! planner.store(90_000, None, &[BlockId(3)], Owner(0), &mut moves);
//! assert_eq!(moves[0], Move::Copy { id: BlockId(2), from: Tier::Cpu, to: Tier::Disk });
//! assert_eq!(moves[1], Move::Drop { id: BlockId(2), from: Tier::Cpu });
//! ```

mod admit;
mod blocks;
mod evict;
mod pins;
mod planner;
pub(crate) mod random;
#[cfg(test)]
mod reference;
mod reuse;
mod room;
mod shadow;
#[cfg(test)]
mod tests;
mod wanted;

pub use admit::{Rate, worth_loading};
pub use pins::{PinError, PinId};
pub use planner::{Found, Planner, Stats};
pub use shadow::{Shadow, Shadows};

/// A block's short name: 128 bits of a hash over its whole key, so that two blocks of one name
/// are as good as impossible. Bytes are never returned on its word alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u128);

/// Whose block it is, as far as quotas go: a model and cache salt, numbered by the caller from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub u16);

/// Where a copy lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// In this node's RAM.
    Cpu,
    /// On this node's disk.
    Disk,
    /// In storage that other nodes reach, too.
    Shared,
}

impl Tier {
    /// Its place in arrays over the local tiers. Shared storage has no bounds here and so none.
    pub(crate) fn at(self) -> usize {
        match self {
            Tier::Cpu => 0,
            Tier::Disk | Tier::Shared => 1,
        }
    }

    pub(crate) fn flag(self) -> u8 {
        match self {
            Tier::Cpu => blocks::flag::CPU,
            Tier::Disk => blocks::flag::DISK,
            Tier::Shared => blocks::flag::SHARED,
        }
    }
}

/// A decision. To be carried out after those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Take the block from the engine that offers it.
    Take {
        /// The block.
        id: BlockId,
        /// Where it is to lie.
        to: Tier,
    },
    /// Copy it from one tier to another.
    Copy {
        /// The block.
        id: BlockId,
        /// Where it lies.
        from: Tier,
        /// Where it is to lie as well.
        to: Tier,
    },
    /// Give the copy in a tier up.
    Drop {
        /// The block.
        id: BlockId,
        /// Where it lies no more.
        from: Tier,
    },
}

/// In which order leaves are evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ranking {
    /// The least likely to be used again while it would stay, as learned from all blocks that are
    /// remembered.
    #[default]
    Hazard,
    /// The least recently used.
    Lru,
    /// By two first-in-first-out queues, the small one for newcomers.
    S3Fifo,
    /// The greatest age over 1 + reuse; nothing is learned.
    AgeOverReuse,
}

impl Ranking {
    /// All of them.
    pub const ALL: [Ranking; 4] = [Ranking::Hazard, Ranking::Lru, Ranking::S3Fifo, Ranking::AgeOverReuse];
}

/// What a planner has to do with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The order of eviction.
    pub ranking: Ranking,
    /// Blocks that RAM holds; 0 where there is no such tier.
    pub cpu: u32,
    /// Blocks that the disk holds; 0 where there is no such tier.
    pub disk: u32,
    /// Blocks without a copy that are remembered.
    pub remembered: u32,
    /// Blocks that may be pinned at a time.
    pub pinned: u32,
    /// How fast the disk may be written; `None` for as fast as blocks come.
    pub disk_writes: Option<Rate>,
    /// How fast shared storage may be written; `None` where there is none.
    pub shared_writes: Option<Rate>,
    /// Reuses that make a block worth copying to shared storage.
    pub share_from: u8,
    /// Where random numbers begin.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            ranking: Ranking::Hazard,
            cpu: 0,
            disk: 0,
            remembered: 50_000,
            pinned: u32::MAX,
            disk_writes: None,
            shared_writes: None,
            share_from: 2,
            seed: 1,
        }
    }
}
