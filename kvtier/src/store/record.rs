//! What is written down of a slot: 128 bytes that check themselves.

use twox_hash::XxHash3_64;

use super::key::{KEY_BYTES, StoreKey};
use crate::policy::{BlockId, Owner};

/// Bytes of a record.
pub(super) const RECORD_BYTES: usize = 128;
/// Begins every record and says which form it has.
const FORM: u32 = 0x6b76_7401;

/// A block in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub key: StoreKey,
    /// Which of the store's writes it was.
    pub generation: u64,
    /// Checksum of the payload, keyed with name and generation.
    pub checksum: u64,
    /// The block before it, so that the policy finds the chain again.
    pub after: Option<BlockId>,
    /// Whose quota it counts against.
    pub owner: Owner,
}

impl Record {
    /// Its bytes, for one slot: in another's place they are not valid.
    pub(super) fn encode(&self, slot: u32) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..4].copy_from_slice(&FORM.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.generation.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[20..22].copy_from_slice(&self.owner.0.to_le_bytes());
        bytes[22] = u8::from(self.after.is_some());
        bytes[23..39].copy_from_slice(&self.after.map_or(0, |id| id.0).to_le_bytes());
        bytes[39..39 + KEY_BYTES].copy_from_slice(&self.key.bytes());
        let sum = XxHash3_64::oneshot_with_seed(slot.into(), &bytes[..SUM_AT]);
        bytes[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The record of `slot`; `None` where there is none or it is damaged.
    pub(super) fn decode(bytes: &[u8], slot: u32) -> Option<Record> {
        let bytes: &[u8; RECORD_BYTES] = bytes.try_into().ok()?;
        let sum = XxHash3_64::oneshot_with_seed(slot.into(), &bytes[..SUM_AT]);
        if u64_at(bytes, SUM_AT) != sum || bytes[..4] != FORM.to_le_bytes() {
            return None;
        }
        let after = bytes[23..39].try_into().map(u128::from_le_bytes).ok()?;
        Some(Record {
            key: StoreKey::from_bytes(bytes[39..].first_chunk()?)?,
            generation: u64_at(bytes, 4),
            checksum: u64_at(bytes, 12),
            after: (bytes[22] == 1).then_some(BlockId(after)),
            owner: Owner(u16::from_le_bytes([bytes[20], bytes[21]])),
        })
    }
}

const SUM_AT: usize = RECORD_BYTES - 8;

/// The number at `at`, where there are eight bytes.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            key: StoreKey::new(1 << 100, 2, &[3; 32]).unwrap(),
            generation: 4,
            checksum: 5,
            after: Some(BlockId(6)),
            owner: Owner(7),
        }
    }

    #[test]
    fn a_record_survives_its_bytes() {
        for after in [None, Some(BlockId(0)), Some(BlockId(u128::MAX))] {
            let record = Record { after, ..record() };
            assert_eq!(Record::decode(&record.encode(9), 9), Some(record));
        }
    }

    #[test]
    fn a_flipped_bit_another_slot_or_nothing_is_no_record() {
        let bytes = record().encode(9);
        for bit in 0..RECORD_BYTES * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&bytes, 9), None, "bit {bit}");
        }
        assert_eq!(Record::decode(&bytes, 10), None);
        assert_eq!(Record::decode(&[0; RECORD_BYTES], 0), None);
        assert_eq!(Record::decode(&bytes[1..], 9), None);
    }
}
