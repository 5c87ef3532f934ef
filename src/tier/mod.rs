//! `kvd tier`: the process that runs a node's tiers below the GPU.
//!
//! ```text
//!  engines ─▶ agent (Unix socket) ─▶ kvtier::node::Node ─▶ publish: PUB and ROUTER per model ─▶ kvd
//!                                        ▲    │
//!             movers, commit, probe ─────┘    ├─▶ HTTP: metrics, health
//!                                             └◀─▶ pull: other nodes
//! ```
//!
//! The library decides and moves; this gives it threads, a clock and sockets. Read `config` for what
//! can be set, `run` for what is started and in which order it ends.

pub mod config;
mod grpc;
mod jobs;
pub mod metrics;
pub mod publish;
pub mod pull;
pub mod run;

pub use config::{TierArgs, TierConfig};
