//! What an engine and the agent say to each other. One message of the socket is one frame.
//!
//! Everything borrows from the message it was read from; keys and slots stay packed until someone
//! needs one of them.

mod answer;
mod leased;
mod request;

pub use answer::{Answer, Ended, Outcome, Reason, Welcome, place};
pub use leased::Leased;
pub use request::{Hello, Keys, Request, SlotList};

/// The version of everything here. It goes up when an older peer would misread a frame.
pub const VERSION: u64 = 1;
/// Longest frame, in bytes. Less than a socket's default buffer, so that a frame always fits.
pub const FRAME_BYTES: usize = 192 << 10;
/// Most keys in a frame.
pub const FRAME_KEYS: usize = 4096;
/// Bytes of the group number behind each key's hash, as vLLM has it.
pub const GROUP_BYTES: usize = 4;

/// What an engine may want beyond the rest; bits of [`Hello::features`].
pub mod features {
    /// Blocks in the agent's RAM, read where they lie.
    pub const LEASES: u64 = 1;
}
