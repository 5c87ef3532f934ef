//! What an engine and the agent say to each other. One message of the socket is one frame.
//!
//! Everything borrows from the message it was read from; keys and slots stay packed until someone
//! needs one of them.

use std::fmt;

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

/// How an engine introduces itself. The file descriptor of its region comes with it if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// [`VERSION`] of the engine's side.
    pub version: u64,
    /// Which [`features`] it wants.
    pub features: u64,
    /// What it calls itself; for people.
    pub engine: &'a str,
    /// The model, whose quota counts.
    pub model: &'a str,
    /// The cache salt, whose quota counts.
    pub salt: &'a str,
    /// Everything that makes two blocks' bytes differ beside their hash.
    pub fingerprint: u128,
    /// Bytes of each block's hash.
    pub hash_bytes: usize,
    /// Tokens per block of each group.
    pub groups: Vec<u32>,
    /// Bytes per block.
    pub block_bytes: usize,
    /// Slots of the engine's region, 0 for none.
    pub slots: u32,
    /// Bytes from one slot to the next.
    pub stride: usize,
    /// Bytes before the first slot.
    pub offset: u64,
}

/// Keys in a row, each a hash and a big-endian group number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Keys<'a>(pub &'a [u8]);

/// Slot numbers in a row, 4 bytes each, little-endian.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SlotList<'a>(pub &'a [u8]);

impl SlotList<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
    }
}

impl fmt::Debug for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({} bytes)", self.0.len())
    }
}

impl fmt::Debug for SlotList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// From an engine. Those with a `seq` are answered, in the order they came; the others are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// First, and once.
    Hello(Hello<'a>),
    /// Where can these be had?
    Lookup {
        /// Repeated in the answer.
        seq: u64,
        /// Of any groups.
        keys: Keys<'a>,
    },
    /// A request wants this chain, root first.
    Touch {
        /// Of one group.
        keys: Keys<'a>,
    },
    /// Read blocks to slots of the region. Ends as an entry of [`Answer::Done`].
    Load {
        /// The engine's number for it.
        job: u64,
        /// What to read.
        keys: Keys<'a>,
        /// Where to.
        slots: SlotList<'a>,
    },
    /// Take blocks from slots of the region, a chain in order. Ends as an entry of
    /// [`Answer::Done`].
    Store {
        /// The engine's number for it.
        job: u64,
        /// The block before the first.
        after: Option<Keys<'a>>,
        /// What to store.
        keys: Keys<'a>,
        /// Where from.
        slots: SlotList<'a>,
    },
    /// Which jobs have ended?
    Poll {
        /// Repeated in the answer.
        seq: u64,
    },
    /// Let these be read in the agent's RAM.
    Lease {
        /// Repeated in the answer.
        seq: u64,
        /// Of any groups.
        keys: Keys<'a>,
    },
    /// These leases are not needed any more.
    Release {
        /// Packed [`Leased`]s, as they were given.
        leases: &'a [u8],
    },
    /// What has the agent done?
    Stats {
        /// Repeated in the answer.
        seq: u64,
    },
    /// The last frame.
    Goodbye,
}

/// Where a block lies in the agent's RAM, and which of all leases this is. Packed: offset, place,
/// turn, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leased {
    /// Offset in the arena's file. `u64::MAX` where the block is not in RAM.
    pub offset: u64,
    /// Which place of the session's table.
    pub place: u32,
    /// Which of the leases that had this place, from 1.
    pub turn: u32,
}

impl Leased {
    /// Bytes of a packed lease.
    pub const BYTES: usize = 16;
    /// For a block that is not in RAM.
    pub const NONE: Leased = Leased { offset: u64::MAX, place: 0, turn: 0 };

    /// As it goes over the socket.
    pub fn pack(self) -> [u8; Leased::BYTES] {
        let mut bytes = [0; Leased::BYTES];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.place.to_le_bytes());
        bytes[12..].copy_from_slice(&self.turn.to_le_bytes());
        bytes
    }

    /// The reverse.
    pub fn unpack(bytes: &[u8; Leased::BYTES]) -> Leased {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let offset = u64::from(word(0)) | u64::from(word(4)) << 32;
        Leased { offset, place: word(8), turn: word(12) }
    }
}

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
    /// [`VERSION`] of the agent's side.
    pub version: u64,
    /// The [`features`] that both have.
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
