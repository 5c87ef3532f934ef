//! What is said over a connection, as bytes. Pure.
//!
//! A frame is its length (4 bytes), its kind, and what belongs to that kind; numbers are
//! little-endian. What is longer than it may be, or not what it says it is, is no frame, and the
//! connection ends. Layouts: docs/formats.md.

use super::secret::{Nonce, Proof};
use crate::policy::BlockId;
use crate::store::{KEY_BYTES, StoreKey};

/// What a connection begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"kvpull01");
/// Fingerprints in one question.
pub(super) const MOST_MODELS: usize = 16;
/// Blocks in one question or request.
pub(super) const MOST_NAMES: usize = 256;
/// Blocks in the answer to a question: of each name one per group and fingerprint.
pub(super) const MOST_ROWS: usize = 1024;
/// Bytes of a cache salt; blocks under longer ones stay where they are.
pub(crate) const MOST_SALT: usize = 255;
/// Bytes of a frame but for payloads.
pub(super) const MOST_BYTES: usize = 1 + 2 + MOST_ROWS * MOST_ROW;
/// Bytes of a frame before its payload: kind, place, whether it is there, checksum.
pub(super) const BLOCK_HEAD: usize = 1 + 2 + 1 + 8;
const MOST_ROW: usize = KEY_BYTES + 4 + 17 + 1 + MOST_SALT;

/// What kind a frame is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Hello = 1,
    Challenge = 2,
    Proof = 3,
    Welcome = 4,
    Find = 5,
    Found = 6,
    Get = 7,
    Block = 8,
}

/// What may be said but for a block with its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The puller begins.
    Hello(Nonce),
    /// The source wants to know whether it has the secret.
    Challenge(Nonce),
    /// The puller's proof.
    Proof(Proof),
    /// The source's proof.
    Welcome(Proof),
    /// Which blocks of these fingerprints go by these 64 bits?
    Find {
        /// Fingerprints.
        models: Vec<u128>,
        /// 64 bits of hashes.
        shorts: Vec<u64>,
    },
    /// These.
    Found(Vec<Lendable>),
    /// Give these, each of so many bytes.
    Get {
        /// Bytes of a payload.
        block_bytes: u32,
        /// Whole names.
        keys: Vec<StoreKey>,
    },
}

/// A block that a node can give to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lendable {
    /// Its whole name.
    pub key: StoreKey,
    /// Bytes of its payload.
    pub block_bytes: u32,
    /// The block before it, if that is known.
    pub after: Option<BlockId>,
    /// The cache salt that it counts against.
    pub salt: String,
}

/// What goes before a payload, or says that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockHead {
    /// Which of the blocks asked for.
    pub at: u16,
    /// Checksum of the payload that follows; `None` where the source does not have the block.
    pub checksum: Option<u64>,
}

impl Frame {
    /// With its length.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        match self {
            Frame::Hello(nonce) => {
                out.push(Kind::Hello as u8);
                out.extend(MAGIC.to_le_bytes());
                out.extend(nonce);
            }
            Frame::Challenge(nonce) => {
                out.push(Kind::Challenge as u8);
                out.extend(nonce);
            }
            Frame::Proof(proof) => {
                out.push(Kind::Proof as u8);
                out.extend(proof);
            }
            Frame::Welcome(proof) => {
                out.push(Kind::Welcome as u8);
                out.extend(proof);
            }
            Frame::Find { models, shorts } => {
                out.push(Kind::Find as u8);
                out.extend((models.len() as u16).to_le_bytes());
                models.iter().for_each(|model| out.extend(model.to_le_bytes()));
                out.extend((shorts.len() as u16).to_le_bytes());
                shorts.iter().for_each(|short| out.extend(short.to_le_bytes()));
            }
            Frame::Found(rows) => {
                out.push(Kind::Found as u8);
                out.extend((rows.len() as u16).to_le_bytes());
                rows.iter().for_each(|row| row.encode(&mut out));
            }
            Frame::Get { block_bytes, keys } => {
                out.push(Kind::Get as u8);
                out.extend(block_bytes.to_le_bytes());
                out.extend((keys.len() as u16).to_le_bytes());
                keys.iter().for_each(|key| out.extend(key.bytes()));
            }
        }
        let length = (out.len() - 4) as u32;
        out[..4].copy_from_slice(&length.to_le_bytes());
        out
    }

    /// What was said, from a frame without its length; `None` where it is none of these.
    pub fn decode(bytes: &[u8]) -> Option<Frame> {
        let (kind, rest) = bytes.split_first()?;
        let mut rest = Rest(rest);
        let frame = match *kind {
            kind if kind == Kind::Hello as u8 => {
                (rest.number::<8>().map(u64::from_le_bytes)? == MAGIC).then_some(())?;
                Frame::Hello(rest.number()?)
            }
            kind if kind == Kind::Challenge as u8 => Frame::Challenge(rest.number()?),
            kind if kind == Kind::Proof as u8 => Frame::Proof(rest.number()?),
            kind if kind == Kind::Welcome as u8 => Frame::Welcome(rest.number()?),
            kind if kind == Kind::Find as u8 => {
                let models = rest.list(MOST_MODELS, |rest| rest.number().map(u128::from_le_bytes))?;
                let shorts = rest.list(MOST_NAMES, |rest| rest.number().map(u64::from_le_bytes))?;
                Frame::Find { models, shorts }
            }
            kind if kind == Kind::Found as u8 => Frame::Found(rest.list(MOST_ROWS, Lendable::decode)?),
            kind if kind == Kind::Get as u8 => {
                let block_bytes = rest.number().map(u32::from_le_bytes)?;
                let keys = rest.list(MOST_NAMES, |rest| StoreKey::from_bytes(&rest.number()?))?;
                Frame::Get { block_bytes, keys }
            }
            _ => return None,
        };
        rest.0.is_empty().then_some(frame)
    }
}

impl Lendable {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.key.bytes());
        out.extend(self.block_bytes.to_le_bytes());
        out.push(u8::from(self.after.is_some()));
        out.extend(self.after.map_or(0, |id| id.0).to_le_bytes());
        out.push(self.salt.len() as u8);
        out.extend(self.salt.as_bytes());
    }

    fn decode(rest: &mut Rest<'_>) -> Option<Lendable> {
        let key = StoreKey::from_bytes(&rest.number()?)?;
        let block_bytes = rest.number().map(u32::from_le_bytes)?;
        let [has] = rest.number()?;
        let after = rest.number().map(u128::from_le_bytes)?;
        let [length] = rest.number()?;
        let salt = std::str::from_utf8(rest.take(usize::from(length))?).ok()?.to_owned();
        let after = match has {
            0 => None,
            1 => Some(BlockId(after)),
            _ => return None,
        };
        Some(Lendable { key, block_bytes, after, salt })
    }
}

impl BlockHead {
    /// With the frame's length, before `payload` bytes.
    pub fn encode(&self, payload: usize) -> [u8; 4 + BLOCK_HEAD] {
        let mut out = [0; 4 + BLOCK_HEAD];
        out[..4].copy_from_slice(&((BLOCK_HEAD + payload) as u32).to_le_bytes());
        out[4] = Kind::Block as u8;
        out[5..7].copy_from_slice(&self.at.to_le_bytes());
        out[7] = u8::from(self.checksum.is_some());
        out[8..].copy_from_slice(&self.checksum.unwrap_or_default().to_le_bytes());
        out
    }

    /// What goes before a payload of `block_bytes`; `None` where it is no such thing, or says another
    /// length.
    pub fn decode(bytes: &[u8; 4 + BLOCK_HEAD], block_bytes: usize) -> Option<BlockHead> {
        let mut rest = Rest(bytes);
        let length = rest.number().map(u32::from_le_bytes)? as usize;
        let [kind] = rest.number()?;
        let at = rest.number().map(u16::from_le_bytes)?;
        let [has] = rest.number()?;
        let checksum = rest.number().map(u64::from_le_bytes)?;
        let (checksum, payload) = match has {
            0 => (None, 0),
            1 => (Some(checksum), block_bytes),
            _ => return None,
        };
        (kind == Kind::Block as u8 && length == BLOCK_HEAD + payload).then_some(BlockHead { at, checksum })
    }
}

/// Bytes that were not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// A count, and so many of what `read` reads.
    fn list<T>(&mut self, most: usize, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = usize::from(u16::from_le_bytes(self.number()?));
        if count > most {
            return None;
        }
        (0..count).map(|_| read(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::random::Random;

    fn key(n: u8) -> StoreKey {
        StoreKey::new(7, 1, &[n; 32]).unwrap()
    }

    fn all() -> Vec<Frame> {
        let row = |n, after, salt: &str| Lendable { key: key(n), block_bytes: 9, after, salt: salt.into() };
        vec![
            Frame::Hello([1; 32]),
            Frame::Challenge([2; 32]),
            Frame::Proof([3; 32]),
            Frame::Welcome([4; 32]),
            Frame::Find { models: vec![1, u128::MAX], shorts: vec![5, 6, 7] },
            Frame::Find { models: vec![9; MOST_MODELS], shorts: vec![1; MOST_NAMES] },
            Frame::Found(vec![row(1, None, ""), row(2, Some(key(1).id()), "salt")]),
            Frame::Found(vec![row(3, None, &"s".repeat(MOST_SALT)); MOST_ROWS]),
            Frame::Get { block_bytes: 4096, keys: vec![key(1); MOST_NAMES] },
        ]
    }

    #[test]
    fn frames_survive_their_bytes_and_are_no_longer_than_they_may_be() {
        for frame in all() {
            let bytes = frame.encode();
            assert_eq!(u32::from_le_bytes(*bytes.first_chunk().unwrap()) as usize, bytes.len() - 4);
            assert!(bytes.len() - 4 <= MOST_BYTES);
            assert_eq!(Frame::decode(&bytes[4..]), Some(frame));
        }
    }

    #[test]
    fn what_was_cut_or_added_to_is_no_frame() {
        for frame in all() {
            let bytes = frame.encode();
            for cut in (4..bytes.len()).rev().take(300) {
                assert_eq!(Frame::decode(&bytes[4..cut]), None, "cut to {cut}");
            }
            assert_eq!(Frame::decode(&[&bytes[4..], &[0]].concat()), None);
        }
        let too_many = Frame::Find { models: vec![1], shorts: vec![1; MOST_NAMES + 1] };
        assert_eq!(Frame::decode(&too_many.encode()[4..]), None);
    }

    #[test]
    fn bytes_that_changed_are_another_frame_or_none() {
        let mut random = Random::new(5);
        let frames: Vec<Frame> = all().into_iter().filter(|frame| frame.encode().len() < 1000).collect();
        for _ in 0..20_000 {
            let mut bytes = frames[random.below(frames.len() as u32) as usize].encode();
            for _ in 0..=random.below(3) {
                let at = 4 + random.below(bytes.len() as u32 - 4) as usize;
                bytes[at] = random.below(256) as u8;
            }
            if let Some(frame) = Frame::decode(&bytes[4..]) {
                // What is taken is said in one way only.
                assert_eq!(Frame::decode(&frame.encode()[4..]), Some(frame));
            }
        }
    }

    #[test]
    fn a_block_s_head_says_how_long_it_is_and_nothing_else() {
        let head = BlockHead { at: 3, checksum: Some(77) };
        let bytes = head.encode(4096);
        assert_eq!(BlockHead::decode(&bytes, 4096), Some(head));
        assert_eq!(BlockHead::decode(&bytes, 4095), None);
        let missing = BlockHead { at: 3, checksum: None };
        assert_eq!(BlockHead::decode(&missing.encode(0), 4096), Some(missing));
        assert_eq!(BlockHead::decode(&missing.encode(1), 4096), None);
        for at in [4, 7] {
            let mut bytes = bytes;
            bytes[at] = 9;
            assert_eq!(BlockHead::decode(&bytes, 4096), None);
        }
    }
}
