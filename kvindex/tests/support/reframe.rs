//! Takes the frames off a snapshot and puts them on again, so that what is in them can be made wrong.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The header and the payloads of a snapshot's chunks.
pub fn payloads(snapshot: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (header, mut rest) = snapshot.split_at(32);
    let mut out = Vec::new();
    while !rest.is_empty() {
        let len = u32::from_le_bytes(rest[..4].try_into().expect("4 bytes")) as usize;
        out.push(rest[12..12 + len].to_vec());
        rest = &rest[12 + len..];
    }
    (header.to_vec(), out)
}

/// A snapshot of these payloads, with checksums that fit.
pub fn reframe(header: &[u8], payloads: &[Vec<u8>]) -> Vec<u8> {
    let mut out = header[..24].to_vec();
    let mut sum = xxh3_64(&out);
    out.extend(sum.to_le_bytes());
    for payload in payloads {
        let len = (payload.len() as u32).to_le_bytes();
        let mut h = Xxh3::with_seed(sum);
        h.update(&len);
        h.update(payload);
        sum = h.digest();
        out.extend(len);
        out.extend(sum.to_le_bytes());
        out.extend(payload);
    }
    out
}
