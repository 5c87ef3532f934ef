//! What the agent says.

use super::Leased;

/// Where a block can be had, a byte each in [`Answer::Places`].
pub mod place {
    /// Nowhere.
    pub const NOWHERE: u8 = 0;
    /// In RAM.
    pub const RAM: u8 = 1;
    /// On disk.
    pub const DISK: u8 = 2;
    /// In shared storage.
    pub const SHARED: u8 = 3;
    /// The agent does not know yet; to be asked again.
    pub const UNKNOWN: u8 = 255;
}

/// What became of a block of a job, a byte each in [`Ended`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// Loaded, and right; or stored.
    Ok = 0,
    /// Not stored, because it was there.
    Known = 1,
    /// It is not here.
    Miss = 2,
    /// It was here, and is not any more.
    Lost = 3,
    /// Not stored: there is no room, or what is there is worth more.
    Refused = 4,
    /// Reading or writing failed.
    Failed = 5,
    /// Too much waits already.
    Busy = 6,
}

impl Outcome {
    /// The outcome that goes over the socket as `byte`.
    pub fn from_byte(byte: u8) -> Option<Outcome> {
        use Outcome::*;
        [Ok, Known, Miss, Lost, Refused, Failed, Busy].get(usize::from(byte)).copied()
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The engine's number for it.
    pub job: u64,
    /// What became of each of its blocks, in their order.
    pub outcomes: Vec<Outcome>,
    /// Microseconds from the frame to the end.
    pub micros: u64,
}

/// What the agent offers, and what it bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// [`VERSION`](super::VERSION) of the agent's side.
    pub version: u64,
    /// The [`features`](super::features) that both have.
    pub features: u64,
    /// Most jobs that have not been polled yet.
    pub jobs: usize,
    /// Most leases at a time.
    pub leases: usize,
    /// Milliseconds until a lease ends by itself.
    pub lease_ms: u64,
    /// Bytes of the arena's file, 0 for none.
    pub arena_bytes: u64,
    /// Whether the region cannot be cut, so that no guard is needed.
    pub sealed: bool,
}

/// Why the agent ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// A frame cannot be read.
    Frame = 0,
    /// The two versions do not go together.
    Version = 1,
    /// A frame comes too early, or a second hello.
    Order = 2,
    /// The region is not what it is said to be.
    Region = 3,
    /// A slot is out of range, or in use by a job that excludes this.
    Slot = 4,
    /// A key has no group, or a number was used twice.
    Name = 5,
    /// More jobs or leases than was agreed.
    TooMany = 6,
    /// There is no room for this model's blocks.
    Room = 7,
    /// File descriptors where none belong, or not those that do.
    Descriptors = 8,
    /// The agent ends.
    Closing = 9,
}

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To a hello. With it come the read end of a pipe that has a byte when jobs have ended, and
    /// the arena if there is one.
    Welcome(Welcome),
    /// To a lookup: a [`place`] per key.
    Places {
        /// The lookup's.
        seq: u64,
        /// In the keys' order.
        places: Vec<u8>,
    },
    /// To a poll.
    Done {
        /// The poll's.
        seq: u64,
        /// Whether there are more that did not fit.
        more: bool,
        /// Each is told once.
        ended: Vec<Ended>,
    },
    /// To a lease, one per key.
    Leases {
        /// The lease request's.
        seq: u64,
        /// In the keys' order.
        leases: Vec<Leased>,
    },
    /// To a stats request.
    Stats {
        /// The request's.
        seq: u64,
        /// Names and counts.
        counts: Vec<(&'static str, u64)>,
    },
    /// Instead of an answer; the agent closes the socket once its jobs in the region have ended.
    Refused {
        /// Which kind.
        reason: Reason,
        /// For people.
        text: String,
    },
}
