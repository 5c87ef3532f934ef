//! Which payloads does this node keep below the GPU, and where do they lie?
//!
//! [`policy`] decides what is kept in which tier and returns [`policy::Move`]s. [`store`] keeps
//! blocks on disk and never returns a wrong byte. An [`Arena`] holds blocks in RAM, in slots of
//! one size, each for one KV block:
//!
//! ```text
//!            reserve           commit             free, last lease dropped
//!   idle ───────────▶ Reserved ──────▶ held ─────────────────────────────▶ idle
//!                     (written)        (leased, read, verified)
//! ```
//!
//! A full arena refuses; what to free is the policy's decision. A [`node`] ties all of that together,
//! carries moves out and tells of them; [`pull`] brings blocks
//! that other nodes have.
//!
//! ```
//! use kvtier::{Arena, Key};
//!
//! let arena = Arena::new(4096, 8)?;
//! let mut reserved = arena.reserve().expect("8 slots are idle");
//! reserved.fill(7);
//! let id = reserved.commit(Key(0xb10c));
//!
//! let lease = arena.lease(id).expect("just committed");
//! arena.free(id);
//! // Gone for others, but this lease still reads what it was given.
//! assert!(arena.lease(id).is_none());
//! lease.verify(Key(0xb10c))?;
//! assert_eq!(lease[0], 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod agent;
mod arena;
pub mod node;
pub mod policy;
pub mod pull;
pub mod shared;
mod slot;
pub mod store;

pub use arena::{Arena, ArenaError, Stats};
pub use slot::{Corrupt, Key, Lease, Reserved, SlotId};
