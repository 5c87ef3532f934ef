//! What a node's tiers do together: RAM, disk and shared storage behind one question.
//!
//! Read `api` for what an engine may ask.

mod api;
mod memory;

pub use api::{OwnersFull, PoolError, PoolId, Stored, Tiers, Where};
pub use memory::MemoryTiers;
