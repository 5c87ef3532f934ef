//! What ends an object: which blocks it has, and whether it is whole.
//!
//! An object that was cut short, or is not ours, has no valid end and is as good as not there.

use twox_hash::XxHash3_64;

use crate::policy::BlockId;
use crate::store::{KEY_BYTES, StoreKey};

/// Bytes of the footer: length of the trailer, its checksum, and what says that it is one.
pub(super) const FOOTER: usize = 20;
const MAGIC: u64 = 0x6b76_7469_6572_6f31;
const ROW: usize = KEY_BYTES + 8 + 8 + 17;
/// Blocks in one object, at most.
pub(super) const MOST: usize = 4096;

/// One block of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub key: StoreKey,
    pub offset: u64,
    /// Checksum of the payload, keyed with the name.
    pub checksum: u64,
    pub after: Option<BlockId>,
}

/// The trailer and footer for blocks of `block_bytes` each.
pub(super) fn encode(rows: &[Row], block_bytes: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + rows.len() * ROW + FOOTER);
    bytes.extend((block_bytes as u64).to_le_bytes());
    for row in rows {
        bytes.extend(row.key.bytes());
        bytes.extend(row.offset.to_le_bytes());
        bytes.extend(row.checksum.to_le_bytes());
        bytes.push(u8::from(row.after.is_some()));
        bytes.extend(row.after.map_or(0, |id| id.0).to_le_bytes());
    }
    let (length, sum) = (bytes.len() as u32, XxHash3_64::oneshot(&bytes));
    bytes.extend(length.to_le_bytes());
    bytes.extend(sum.to_le_bytes());
    bytes.extend(MAGIC.to_le_bytes());
    bytes
}

/// How many bytes before the footer the trailer has; `None` where this is no footer.
pub(super) fn length(footer: &[u8]) -> Option<usize> {
    let footer: &[u8; FOOTER] = footer.last_chunk()?;
    let length = u32::from_le_bytes(*footer.first_chunk()?) as usize;
    let ours = footer[12..] == MAGIC.to_le_bytes();
    (ours && length >= 8 && (length - 8).is_multiple_of(ROW) && (length - 8) / ROW <= MOST).then_some(length)
}

/// The rows of an object of `object_bytes` that ends in `end`, and its blocks' size; `None` where it is
/// damaged or says what cannot be.
pub(super) fn decode(end: &[u8], object_bytes: u64) -> Option<(Vec<Row>, usize)> {
    let (rest, footer) = end.split_last_chunk::<FOOTER>()?;
    let length = length(footer)?;
    let trailer = rest.get(rest.len().checked_sub(length)?..)?;
    if footer[4..12] != XxHash3_64::oneshot(trailer).to_le_bytes() {
        return None;
    }
    let (block_bytes, rows) = trailer.split_first_chunk::<8>()?;
    let block_bytes = u64::from_le_bytes(*block_bytes);
    let payloads = object_bytes.checked_sub((length + FOOTER) as u64)?;
    let row = |row: &[u8]| {
        let (key, rest) = row.split_first_chunk::<KEY_BYTES>()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (checksum, rest) = rest.split_first_chunk()?;
        let (has, after) = rest.split_first()?;
        let after = u128::from_le_bytes(after.try_into().ok()?);
        let offset = u64::from_le_bytes(*offset);
        (offset.checked_add(block_bytes)? <= payloads).then_some(())?;
        Some(Row {
            key: StoreKey::from_bytes(key)?,
            offset,
            checksum: u64::from_le_bytes(*checksum),
            after: (*has == 1).then_some(BlockId(after)),
        })
    };
    let rows: Option<Vec<Row>> = rows.chunks(ROW).map(row).collect();
    Some((rows?, usize::try_from(block_bytes).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailer_survives_its_bytes_and_no_damage_does() {
        let key = |n| StoreKey::new(9, 1, &[n; 32]).unwrap();
        let rows = [
            Row { key: key(1), offset: 0, checksum: 5, after: None },
            Row { key: key(2), offset: 100, checksum: 6, after: Some(key(1).id()) },
        ];
        let end = encode(&rows, 100);
        let whole = 200 + end.len() as u64;
        assert_eq!(decode(&end, whole), Some((rows.to_vec(), 100)));
        // Payloads that would not fit, as when the beginning was cut off.
        assert_eq!(decode(&end, whole - 1), None);
        for bit in 0..end.len() * 8 {
            let mut end = end.clone();
            end[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&end, whole), None, "bit {bit}");
        }
        for cut in 0..end.len() {
            assert_eq!(decode(&end[..cut], whole), None);
        }
    }
}
