//! Chunks with checksums: bytes in pieces of any length, in and out.
//!
//! Each checksum begins with the one before it, so a chunk that is missing, repeated, moved or of
//! another snapshot is seen like one that was changed.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::FormatError;

pub(super) const MAGIC: [u8; 8] = *b"kvdsnap\0";
pub(super) const VERSION: u32 = 1;
/// Bytes of the header.
pub(super) const HEADER: usize = 32;
/// Bytes before a chunk's payload.
pub(super) const CHUNK_HEAD: usize = 12;
/// Bytes of a payload.
pub(super) const MAX_CHUNK: usize = 1 << 20;

/// What the header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// Which request keys of llm-d blocks have, where they have any.
    pub keys: Option<u64>,
}

fn checksum(before: u64, len: [u8; 4], payload: &[u8]) -> u64 {
    let mut h = Xxh3::with_seed(before);
    h.update(&len);
    h.update(payload);
    h.digest()
}

/// Writes the header and chunks.
#[derive(Debug, Default)]
pub(super) struct Framer {
    sum: u64,
}

impl Framer {
    pub fn header(&mut self, header: Header, out: &mut Vec<u8>) {
        let at = out.len();
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(u32::from(header.keys.is_some()).to_le_bytes());
        out.extend(header.keys.unwrap_or(0).to_le_bytes());
        self.sum = xxh3_64(&out[at..]);
        out.extend(self.sum.to_le_bytes());
    }

    /// `payload` has 1 to [`MAX_CHUNK`] bytes.
    pub fn chunk(&mut self, payload: &[u8], out: &mut Vec<u8>) {
        debug_assert!(!payload.is_empty() && payload.len() <= MAX_CHUNK);
        let len = (payload.len() as u32).to_le_bytes();
        self.sum = checksum(self.sum, len, payload);
        out.extend(len);
        out.extend(self.sum.to_le_bytes());
        out.extend(payload);
    }
}

/// Puts pieces together to the header and chunks.
#[derive(Debug, Default)]
pub(super) struct Unframer {
    /// Of a header or chunk that is not complete yet.
    held: Vec<u8>,
    /// Bytes before those.
    at: u64,
    sum: u64,
    header: Option<Header>,
}

impl Unframer {
    /// Bytes that were made whole so far.
    pub fn at(&self) -> u64 {
        self.at
    }
    /// Bytes of what is not whole yet.
    pub fn pending(&self) -> u64 {
        self.held.len() as u64
    }
    pub fn header(&self) -> Option<Header> {
        self.header
    }

    /// Takes of `bytes` what the next header or chunk needs. A chunk comes back with where its payload
    /// began, once it is whole and as it was written; `None` where more is needed.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<(u64, Vec<u8>)>, FormatError> {
        if self.header.is_none() {
            if !self.fill(HEADER, bytes) {
                self.check_magic()?;
                return Ok(None);
            }
            self.check_magic()?;
            self.header = Some(self.read_header()?);
        }
        if !self.fill(CHUNK_HEAD, bytes) {
            return Ok(None);
        }
        let len_bytes = [self.held[0], self.held[1], self.held[2], self.held[3]];
        let len = u32::from_le_bytes(len_bytes);
        if len == 0 || len as usize > MAX_CHUNK {
            return Err(FormatError::ChunkLength { at: self.at, len });
        }
        if !self.fill(CHUNK_HEAD + len as usize, bytes) {
            return Ok(None);
        }
        let said = word(&self.held[4..]);
        let mut payload = std::mem::take(&mut self.held);
        payload.drain(..CHUNK_HEAD);
        self.sum = checksum(self.sum, len_bytes, &payload);
        if self.sum != said {
            return Err(FormatError::Checksum { at: self.at });
        }
        let at = self.at + CHUNK_HEAD as u64;
        self.at = at + payload.len() as u64;
        Ok(Some((at, payload)))
    }

    /// Whether `n` bytes are there now. Room grows as bytes come, never by what they say.
    fn fill(&mut self, n: usize, bytes: &mut &[u8]) -> bool {
        let (now, later) = bytes.split_at(bytes.len().min(n.saturating_sub(self.held.len())));
        self.held.extend_from_slice(now);
        *bytes = later;
        self.held.len() >= n
    }

    fn check_magic(&self) -> Result<(), FormatError> {
        let n = self.held.len().min(MAGIC.len());
        if self.held[..n] == MAGIC[..n] {
            return Ok(());
        }
        let mut found = [0; 8];
        found[..n].copy_from_slice(&self.held[..n]);
        Err(FormatError::Magic { found })
    }

    fn read_header(&mut self) -> Result<Header, FormatError> {
        let held = std::mem::take(&mut self.held);
        let version = word(&held[8..]) as u32;
        if version != VERSION {
            return Err(FormatError::Version { found: version });
        }
        let flags = word(&held[8..]) >> 32;
        self.sum = xxh3_64(&held[..24]);
        if self.sum != word(&held[24..]) {
            return Err(FormatError::Checksum { at: 0 });
        }
        self.at = HEADER as u64;
        match (flags, word(&held[16..])) {
            (0, 0) => Ok(Header { keys: None }),
            (1, keys) => Ok(Header { keys: Some(keys) }),
            _ => Err(FormatError::Malformed { at: 12, what: "flags that no writer sets" }),
        }
    }
}

/// The first 8 bytes as a number.
pub(super) fn word(bytes: &[u8]) -> u64 {
    let mut w = [0; 8];
    w.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(w)
}
