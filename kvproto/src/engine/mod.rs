//! What does this payload say happened? One decoder per engine.
//!
//! ```text
//! payload ─ batch.rs ─▶ one event ─ fields.rs ─▶ one field ─ values.rs ─▶ Batch
//!                                      └ vllm.rs | sglang.rs | mooncake.rs: names, order, meaning
//!           all of them read one value at a time, straight from the bytes: msgpack.rs
//! ```
//!
//! A batch is an array `[ts, events, rank]`; elements after these are ignored and the rank
//! may be missing. An event is an array that begins with its tag, a map that holds the tag
//! under a key, or a byte string that holds one of these encoded. Every field may be
//! missing, which says the same as nil; keys and elements without a name here are ignored.
//!
//! An event that does not fit is left out and counted in [`crate::event::Skipped`], and its
//! neighbours stay. Only msgpack that is broken as such loses the batch, because then
//! nothing tells where the next event begins.

mod batch;
mod fields;
mod mooncake;
mod msgpack;
mod sglang;
#[cfg(test)]
mod testing;
mod values;
mod vllm;

pub use msgpack::Broken;

use crate::event::Batch;

/// Whose events a payload holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// vLLM from 0.9 to 0.33, and what speaks its format.
    Vllm,
    /// SGLang.
    Sglang,
    /// The envelope of RFC #1527, as Mooncake's master publishes it.
    Mooncake,
}

/// A payload that is no batch of events, so that nothing of it can be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes are no msgpack from here on.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The payload is longer than a batch can refer to.
    #[error("payload of {len} bytes is longer than 4 GiB")]
    TooLong {
        /// Length in bytes.
        len: usize,
    },
    /// The outermost array lacks the timestamp or the events.
    #[error("batch has {len} elements, expected at least 2")]
    TooShort {
        /// Elements it has.
        len: u32,
    },
    /// A part of the batch itself has another type than it must have.
    #[error("{field}: expected {expected}, found {found}")]
    Unfit {
        /// Which part.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}

/// Decodes one payload of `engine`.
///
/// Memory is bounded by the payload's length, whatever lengths are claimed inside. Bytes
/// after the batch are ignored.
pub fn decode<'p>(engine: Engine, payload: &'p [u8]) -> Result<Batch<'p>, BatchError> {
    match engine {
        Engine::Vllm => batch::decode::<vllm::Vllm>(payload),
        Engine::Sglang => batch::decode::<sglang::Sglang>(payload),
        Engine::Mooncake => batch::decode::<mooncake::Mooncake>(payload),
    }
}
