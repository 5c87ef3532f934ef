//! Frames to bytes and back. A frame is a msgpack array: a number for its kind, then its fields.
//!
//! Lengths are compared with what is there before anything is taken or allocated, and what follows
//! the last field is an error, but for a hello: a later version may say more there.

mod read;
mod reply;
mod write;

pub use read::decode_request;
pub use reply::{Reply, decode_answer};
pub use write::{encode_answer, encode_request};

use super::frame::FRAME_BYTES;

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// More than a frame may have.
    #[error("frame of {0} bytes, at most {FRAME_BYTES} wanted")]
    Long(usize),
    /// Not what belongs there, or less than is announced.
    #[error("{0}: not what belongs there")]
    Field(&'static str),
    /// A kind that this version does not have.
    #[error("unknown kind {0}")]
    Kind(u64),
    /// Another number of fields than this kind has.
    #[error("kind {kind} with {got} fields")]
    Fields {
        /// The kind.
        kind: u64,
        /// How many.
        got: usize,
    },
    /// Outside of what is allowed.
    #[error("{field} is {value}, {allowed} wanted")]
    Range {
        /// Which field.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// Bytes behind the last field.
    #[error("{0} bytes behind the frame")]
    Behind(usize),
}

const HELLO: u64 = 1;
const LOOKUP: u64 = 2;
const TOUCH: u64 = 3;
const LOAD: u64 = 4;
const STORE: u64 = 5;
const POLL: u64 = 6;
const LEASE: u64 = 7;
const RELEASE: u64 = 8;
const STATS: u64 = 9;
const GOODBYE: u64 = 10;
const WELCOME: u64 = 129;
const PLACES: u64 = 130;
const DONE: u64 = 134;
const LEASES: u64 = 135;
const COUNTS: u64 = 137;
const REFUSED: u64 = 255;
/// Fields of a hello; there may be more behind them.
const HELLO_FIELDS: usize = 12;
