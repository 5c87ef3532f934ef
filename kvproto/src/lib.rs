//! What travels on the wire: what do engines say, and what are a prompt's blocks called?
//!
//! ```text
//! ZMQ frames ─ frames.rs ─▶ payload ─ engine/*.rs ─▶ Batch of Event ─▶ kvindex
//! prompt tokens ─ hash/*.rs ─▶ block hashes ───────────────────────────▶ kvindex
//! ```
//!
//! Read [`event`] first: the closed [`Event`] enum is the waist of kvd. Then
//! [`engine`] (one decoder per engine in front of it), [`frames`] and [`hash`].
//! With the feature `rpc`, module `rpc` holds kvd's own gRPC messages.

pub mod engine;
pub mod event;
pub mod frames;
pub mod hash;
#[cfg(feature = "rpc")]
pub mod rpc;

pub use event::{
    Batch, Cleared, EngineHash, Event, ExtraKey, GroupKind, GroupSpec, LocalHash, Removed, SeqHash, Stored,
    Tier,
};
