//! What a stored block is called.

use twox_hash::{XxHash3_64, XxHash3_128};

use crate::policy::BlockId;

/// Longest hash an engine may have for a block, in bytes.
pub const HASH_BYTES: usize = 32;

/// A hash is empty or longer than [`HASH_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block hash of {bytes} bytes, 1 to 32 wanted")]
pub struct HashLength {
    /// Its length.
    pub bytes: usize,
}

/// A block's whole name: what its engine calls it, and which of its engine's worlds that is in.
///
/// Bytes are returned only for the name they were stored under, so 64 bits of hash are not enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreKey {
    /// Fingerprint of everything that makes two blocks' bytes differ beside the hash: model,
    /// data type, layout, ranks.
    pub model: u128,
    /// The group of layers.
    pub group: u32,
    hash: [u8; HASH_BYTES],
    hash_bytes: u8,
}

impl StoreKey {
    /// The name of the block that the engine calls `hash`.
    ///
    /// # Errors
    ///
    /// [`HashLength`] where `hash` is empty or longer than [`HASH_BYTES`].
    pub fn new(model: u128, group: u32, hash: &[u8]) -> Result<StoreKey, HashLength> {
        let mut padded = [0; HASH_BYTES];
        match padded.get_mut(..hash.len()) {
            Some(start) if !hash.is_empty() => start.copy_from_slice(hash),
            Some(_) | None => return Err(HashLength { bytes: hash.len() }),
        }
        Ok(StoreKey { model, group, hash: padded, hash_bytes: hash.len() as u8 })
    }

    /// The engine's hash.
    pub fn hash(&self) -> &[u8] {
        &self.hash[..usize::from(self.hash_bytes)]
    }

    /// The short name that the policy knows the block by.
    pub fn id(&self) -> BlockId {
        BlockId(XxHash3_128::oneshot(&self.bytes()))
    }

    /// What payload checksums begin from: a payload of another block, or of another time, does not
    /// verify.
    pub(super) fn checksum(&self, generation: u64, payload: &[u8]) -> u64 {
        let name = XxHash3_64::oneshot_with_seed(generation, &self.bytes());
        XxHash3_64::oneshot_with_seed(name, payload)
    }

    /// All of it, in one form only.
    pub(crate) fn bytes(&self) -> [u8; KEY_BYTES] {
        let mut bytes = [0; KEY_BYTES];
        bytes[..16].copy_from_slice(&self.model.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.group.to_le_bytes());
        bytes[20..52].copy_from_slice(&self.hash);
        bytes[52] = self.hash_bytes;
        bytes
    }

    /// The reverse of [`bytes`](Self::bytes).
    pub(crate) fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Option<StoreKey> {
        let (model, rest) = bytes.split_first_chunk::<16>()?;
        let (group, rest) = rest.split_first_chunk::<4>()?;
        let (hash, rest) = rest.split_first_chunk::<HASH_BYTES>()?;
        let hash = hash.get(..usize::from(*rest.first()?))?;
        StoreKey::new(u128::from_le_bytes(*model), u32::from_le_bytes(*group), hash).ok()
    }
}

/// Bytes of a key in a record.
pub(crate) const KEY_BYTES: usize = 53;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_bytes_and_bad_hashes_are_refused() {
        for bytes in 1..=HASH_BYTES {
            let key = StoreKey::new(7 << 90, 3, &vec![9; bytes]).unwrap();
            assert_eq!(StoreKey::from_bytes(&key.bytes()), Some(key));
        }
        assert_eq!(StoreKey::new(0, 0, &[]), Err(HashLength { bytes: 0 }));
        assert_eq!(StoreKey::new(0, 0, &[0; 33]), Err(HashLength { bytes: 33 }));
        let mut bad = StoreKey::new(0, 0, &[1]).unwrap().bytes();
        bad[52] = 33;
        assert_eq!(StoreKey::from_bytes(&bad), None);
    }

    #[test]
    fn keys_that_differ_anywhere_have_other_ids_and_checksums() {
        let key = |model, group, hash: &[u8]| StoreKey::new(model, group, hash).unwrap();
        let keys = [key(0, 0, &[1]), key(1, 0, &[1]), key(0, 1, &[1]), key(0, 0, &[2]), key(0, 0, &[1, 0])];
        for (at, a) in keys.iter().enumerate() {
            for b in &keys[..at] {
                assert_ne!(a.id(), b.id());
                assert_ne!(a.checksum(1, b"payload"), b.checksum(1, b"payload"));
            }
        }
        assert_ne!(keys[0].checksum(1, b"payload"), keys[0].checksum(2, b"payload"));
    }
}
