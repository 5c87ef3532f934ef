//! A block that an engine reads where it lies.

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
