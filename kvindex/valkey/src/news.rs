//! What is in a routing's key and in the stream, little-endian.

use std::sync::Arc;

use kvproto::SeqHash;

use crate::bytes::Bytes;
use crate::record::Foreign;

/// Stands for a request's id.
pub(crate) type Tag = u128;

/// A word of the stream: this routing is new, or it is taken back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Word {
    pub tag: Tag,
    pub version: u64,
    /// Milliseconds; 0 = it is taken back.
    pub ttl: u32,
}

impl Word {
    pub fn encode(&self) -> [u8; 28] {
        let mut out = [0; 28];
        out[..16].copy_from_slice(&self.tag.to_le_bytes());
        out[16..24].copy_from_slice(&self.version.to_le_bytes());
        out[24..].copy_from_slice(&self.ttl.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Word> {
        let (tag, rest) = bytes.split_first_chunk()?;
        let (version, ttl) = rest.split_first_chunk()?;
        let ttl = u32::from_le_bytes(ttl.try_into().ok()?);
        Some(Word { tag: Tag::from_le_bytes(*tag), version: u64::from_le_bytes(*version), ttl })
    }
}

/// A routing: the blocks that a request will store, by publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Routing {
    /// Tells it from one that replaced it.
    pub version: u64,
    /// By the publisher's id, as it is in keys.
    pub blocks: Vec<(String, Arc<[SeqHash]>)>,
}

const VERSION: u8 = 1;

impl Routing {
    /// Publishers that name the blocks alike share one list.
    pub fn encode(&self) -> Vec<u8> {
        let mut lists: Vec<&Arc<[SeqHash]>> = Vec::new();
        let mut places = Vec::with_capacity(self.blocks.len());
        for (_, seqs) in &self.blocks {
            let same = lists.iter().position(|l| l == &seqs);
            places.push(same.unwrap_or_else(|| {
                lists.push(seqs);
                lists.len() - 1
            }) as u16);
        }
        let mut out = vec![VERSION];
        out.extend(self.version.to_le_bytes());
        out.extend((lists.len() as u16).to_le_bytes());
        for seqs in lists {
            out.extend((seqs.len() as u32).to_le_bytes());
            seqs.iter().for_each(|s| out.extend(s.0.to_le_bytes()));
        }
        for ((id, _), place) in self.blocks.iter().zip(places) {
            out.extend(place.to_le_bytes());
            out.extend((id.len() as u16).to_le_bytes());
            out.extend(id.as_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Routing, Foreign> {
        let mut b = Bytes(bytes);
        if b.take()? != [VERSION] {
            return Err(Foreign);
        }
        let version = b.word()?;
        let mut lists: Vec<Arc<[SeqHash]>> = Vec::new();
        for _ in 0..u16::from_le_bytes(b.take()?) {
            let n = b.number()? as usize;
            let seqs = b.part(n.checked_mul(8).ok_or(Foreign)?)?;
            lists.push(seqs.as_chunks().0.iter().map(|s| SeqHash(u64::from_le_bytes(*s))).collect());
        }
        let mut blocks = Vec::new();
        while !b.0.is_empty() {
            let place = usize::from(u16::from_le_bytes(b.take()?));
            let id = String::from_utf8(b.counted()?.to_vec()).map_err(|_| Foreign)?;
            blocks.push((id, Arc::clone(lists.get(place).ok_or(Foreign)?)));
        }
        Ok(Routing { version, blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read_and_nothing_shorter_is() {
        let word = Word { tag: 7 << 90, version: 9, ttl: 2000 };
        assert_eq!(Word::decode(&word.encode()), Some(word));
        assert!((0..28).all(|n| Word::decode(&word.encode()[..n]).is_none()));
        let seqs = |n: u64| -> Arc<[SeqHash]> { (0..n).map(SeqHash).collect() };
        let blocks = vec![("a".to_owned(), seqs(3)), ("b".to_owned(), seqs(2)), ("c".to_owned(), seqs(3))];
        let routing = Routing { version: 5, blocks };
        let bytes = routing.encode();
        assert_eq!(Routing::decode(&bytes), Ok(routing));
        // 2 lists for 3 publishers; cut between publishers it is a shorter routing, which no writer leaves.
        let head = 1 + 8 + 2 + (4 + 24) + (4 + 16);
        let whole = [head, head + 5, head + 10, head + 15];
        assert_eq!(bytes.len(), head + 15);
        assert!((0..bytes.len()).all(|n| Routing::decode(&bytes[..n]).is_err() != whole.contains(&n)));
    }
}
