//! How do the caches of a fleet of engines change, and what is asked about them?
//!
//! [`cache`] is one engine's block cache, [`fleet`] routes requests to several and writes down what
//! happens; [`mooncake`], [`deep`] and [`adversarial`] are what is requested. The same seed gives
//! the same stream.

pub mod adversarial;
mod cache;
pub mod deep;
pub mod filler;
mod fleet;
pub mod mooncake;
pub mod trace;

use clap::ValueEnum;

/// Which end of a finished request's blocks a cache lets go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Eviction {
    /// The end, as vLLM does: no block outlives the ones before it.
    Tail,
    /// The beginning: pods keep blocks whose prefix they have lost, and store it anew over them.
    Head,
}
