//! How do engines on this node reach its tiers?
//!
//! ```text
//!  engine                          agent
//!  ┌───────────┐  SOCK_SEQPACKET  ┌────────┐ Request ┌─────────┐ Step ┌────────┐
//!  │ lookup    │─────────────────▶│ codec  │────────▶│ session │─────▶│ server │──▶ Tiers
//!  │ load      │◀─────────────────│        │◀────────│         │◀─────│ work   │
//!  │ ┌───────┐ │     frames       └────────┘ Answer  └─────────┘ Word └────────┘
//!  │ │region │◀┼───────────────── file descriptor, mapped ────────────────┘
//!  └─┴───────┴─┘                  disk ⇄ region, no copy
//! ```
//!
//! Read `frame` for what can be said, `session` for what follows from it (pure), `server` and `peer`
//! for the loop around it, `work` for how bytes are moved, `region` and `guard` for why an engine's
//! memory cannot hurt the agent. `docs/formats.md` has the frames, `docs/engines.md` how engines
//! are set up.
//!
//! What holds:
//!
//! - A slot is written to only while a load that names it runs, and a job ends exactly once.
//! - An engine's memory stays mapped until its last job has ended; only then is its socket closed.
//! - Nothing an engine says or leaves unread takes more than [`Bounds`].

mod client;
mod codec;
mod counts;
mod frame;
mod guard;
mod leases;
mod peer;
mod region;
mod server;
mod session;
mod socket;
#[cfg(test)]
mod tests;
mod work;

pub use client::{Client, ClientError, Connect};
pub use codec::{FrameError, Reply, decode_answer, decode_request, encode_answer, encode_request};
pub use counts::Stats;
pub use frame::{
    Answer, Ended, FRAME_BYTES, FRAME_KEYS, GROUP_BYTES, Hello, Keys, Leased, Outcome, Reason, Request,
    SlotList, VERSION, Welcome, features, place,
};
pub use region::RegionError;
pub use server::{Agent, Config};
pub use session::{Bounds, Refusal, Session, Step, Way, Work};
