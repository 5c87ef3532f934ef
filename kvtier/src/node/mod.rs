//! What a node's tiers do together: RAM, disk and shared storage behind one question.
//!
//! ```text
//!   engines ──▶ Tiers ──▶ pool: planner decides ──▶ schedule ──▶ mover ──▶ arena, store, shared
//!                            ▲                                      │
//!                            └──── what is really there ◀───────────┤
//!                                                                   └──▶ streams ──▶ subscribers
//! ```
//!
//! Threads, sockets and the clock are the caller's: some of its threads run [`Node::work`], one calls
//! [`Node::commit`] every 50 ms or so and [`Node::probe`] now and then.
//!
//! Read `api` for what an engine may ask, `pool` for what is decided and what is there, `offers` for
//! what engines bring, `jobs`, `pins` and `hints` for what others ask for, `lend` for other nodes, `schedule` for the order of moves, `mover` for their I/O, `streams` for what is told, `catalog` for what is
//! written down beside the blocks, `restore` for what a restart finds.

mod api;
mod catalog;
mod change;
#[cfg(test)]
mod faults;
mod hints;
mod jobs;
mod lend;
mod memory;
mod mover;
mod names;
#[expect(clippy::module_inception, reason = "the node itself beside its parts")]
mod node;
mod offers;
mod open;
mod pins;
mod pool;
mod restore;
mod schedule;
mod streams;
#[cfg(test)]
pub(crate) mod tests;
mod tiers;
mod usage;
mod wire;

pub use api::{Loads, OwnersFull, PoolError, PoolId, Stored, Tiers, Where};
pub use catalog::CatalogError;
pub use hints::{Hinted, Holding};
pub use jobs::Progress;
pub(crate) use lend::Lacking;
pub use memory::MemoryTiers;
pub use names::short as short_hash;
pub use node::{Clock, MakeShared, Node, NodeConfig, NodeError, Scrubbed};
pub use pool::Moves;
pub use streams::{Numbered, Publish, StreamStats, Unheard};
pub use usage::PoolUsage;
