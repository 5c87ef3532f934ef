//! What does it cost to compute a prefix, and what to move one?
//!
//! ```text
//! config.json ─▶ Geometry   bytes of tokens k..n, how attention grows with context
//! reports     ─▶ CostBook   seconds per token of a pod, bytes per second of a link, who has shaken hands
//! ```
//!
//! The formulas are in `docs/transfers.md`. Pure: time comes in as an argument.

pub mod book;
pub mod config_json;
pub mod ewma;
pub mod geometry;
pub mod table;

pub use book::{CostBook, LinkCost, PodCost, Starting};
pub use geometry::{Geometry, Group, GroupKind};
