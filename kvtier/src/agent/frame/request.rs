//! What an engine says.

use std::fmt;

/// How an engine introduces itself. The file descriptor of its region comes with it if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// [`VERSION`](super::VERSION) of the engine's side.
    pub version: u64,
    /// Which [`features`](super::features) it wants.
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
    /// Read blocks to slots of the region. Ends as an entry of [`Answer::Done`](super::Answer::Done).
    Load {
        /// The engine's number for it.
        job: u64,
        /// What to read.
        keys: Keys<'a>,
        /// Where to.
        slots: SlotList<'a>,
    },
    /// Take blocks from slots of the region, a chain in order. Ends as an entry of
    /// [`Answer::Done`](super::Answer::Done).
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
        /// Packed [`Leased`](super::Leased)s, as they were given.
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
