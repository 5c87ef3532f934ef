//! Conversations with a follower: what it is told, what it tells the index.
//!
//! `3@100` is batch 3 of the engine that was started at 100.

mod connections;
mod deaths;
mod history;
mod losses;
mod noise;
mod restarts;
mod silence;
mod snapshots;
