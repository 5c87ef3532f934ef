//! What another node has in RAM or on disk and this one lacks, brought here over TCP.
//!
//! ```text
//!  wish (who has what, by 64 bits) ──▶ Puller ── which blocks are these? ──▶ Source ──▶ its Node
//!                                        │  ◀── whole names ───────────────────┤
//!                                        │ ─── give me these ─────────────────▶│
//!        Node ◀── verified blocks ───────┘  ◀── payload, checksum ─────────────┘ verified when read
//! ```
//!
//! Who has what is told by others (kvd's index) and is a hint. A node asks for whole names of its own
//! engines' fingerprints alone, and takes nothing else. The other side is never told where something
//! lies, and nothing that it says is a place in memory or on disk.
//!
//! Both sides prove that they know a secret, and payloads carry a checksum keyed with their name, the
//! connection and the request. Nothing is encrypted: who can change packets on their way can change
//! payloads, so the network between nodes is to be trusted or to be a tunnel.
//!
//! Read `frame` for what is said, `session` for how it begins, `source` and `fetch` for the two sides,
//! `puller` for when and how much, `sources` for who is left alone. Nothing waits longer than it was told to: `wire`.

mod fetch;
mod frame;
mod puller;
mod secret;
mod session;
mod source;
mod sources;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use frame::MOST_SALT;
pub use frame::{Frame, Lendable};
pub use puller::{PullConfig, PullCounts, Pulled, Puller, Wish};
pub use secret::{LEAST_SECRET, Secret, ShortSecret};
pub use source::{Source, SourceConfig, SourceCounts};
pub use wire::WireError;
