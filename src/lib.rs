//! kvd, the service: engines' event streams in, exact prefix answers out.
//!
//! ```text
//! ingest/  ZMQ sockets ─▶ lanes ─▶ kvindex::Index ◀─ serve/  gRPC and HTTP
//!                           └──▶ outcome/ ◀────────────┘  what engines really had
//! ```
//!
//! Read [`publisher`] (who is followed), then [`ingest`], [`serve`] and [`outcome`].

pub mod args;
pub mod cluster;
pub mod config;
pub mod ctl;
pub mod discovery;
pub mod guard;
pub mod hints;
pub mod ingest;
pub mod liveness;
pub mod metrics;
mod nodes;
pub mod outcome;
pub mod peers;
pub mod publisher;
pub mod registration;
pub mod serve;
pub mod shared;
pub mod snapshot;
pub mod state;
pub mod tier;
pub mod traces;
pub mod traffic;
pub mod transfer;
mod wall;
pub mod warmup;
