//! What is in the hashes: fields and values, little-endian.
//!
//! ```text
//! names    m                 cursor and what was learnt of the engine, see [`Meta`]
//!          n ENGINE_HASH     what a name stands for and its copies, see [`Name`]
//!          w ENGINE_HASH     names that wait for this one to be told
//! blocks   CANONICAL_HASH    (name, mask) for each name of the block that has copies
//! ```
//!
//! Written by kvd alone, yet read with care: what makes no sense is an error, never a guess.

use kvproto::hash::canonical::Seed;
use kvproto::{EngineHash, LocalHash, SeqHash};

use crate::bytes::Bytes;

/// Where a publisher's stream stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cursor {
    /// The last batch whose events are all in.
    pub seq: Option<u64>,
    /// When the engine made it.
    pub ts: f64,
    /// Whatever else the follower needs to go on, at most [`MAX_NOTE`] bytes.
    pub note: Vec<u8>,
}

/// Bytes of a cursor's note.
pub const MAX_NOTE: usize = 256;

/// How far a publisher's writer vouches for what is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The stream is followed and nothing known is missing.
    pub live: bool,
    /// Everything that the engine stored since its start is known.
    pub complete: bool,
}

/// The field `m`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    /// Counts clears: copies and blocks of another incarnation do not count.
    pub incarnation: u32,
    /// Where the stream stands.
    pub cursor: Cursor,
    /// What the writer says.
    pub health: Health,
    /// Blocks were refused to stay within the limit.
    pub partial: bool,
    /// Names that have copies.
    pub held: u64,
    /// Which server process the writer wrote to, 40 hexadecimal digits. On another one these may not be the
    /// last words: a replica that took over may not have heard them.
    pub run: String,
    /// What was learnt of the engine.
    pub engine: Vec<u8>,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A block at a known position.
    Known {
        /// Its canonical hash.
        seq: SeqHash,
        /// Blocks before it.
        depth: u32,
        /// Tokens per block.
        block_size: u32,
    },
    /// A block whose content was told and whose parent was not.
    Waiting {
        /// The parent.
        parent: EngineHash,
        /// Its own hash.
        local: LocalHash,
        /// What its hashes begin with.
        seed: Seed,
        /// Tokens per block.
        block_size: u32,
    },
    /// A name of which nothing was told.
    Bare,
}

/// The field `n`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// What it stands for.
    pub place: Place,
    /// Seconds since 1970, when it was last written.
    pub touched: u32,
    /// The incarnation that `copies` are of.
    pub incarnation: u32,
    /// How often it is held, by bit of the mask.
    pub copies: Vec<(u8, u16)>,
}

impl Name {
    /// A name of which nothing is known.
    pub fn new(incarnation: u32) -> Name {
        Name { place: Place::Bare, touched: 0, incarnation, copies: Vec::new() }
    }

    /// Where it is held.
    pub fn mask(&self) -> u32 {
        self.copies.iter().fold(0, |mask, (bit, _)| mask | 1 << bit)
    }

    /// One more copy.
    pub fn add(&mut self, bit: u8) {
        match self.copies.iter_mut().find(|(b, _)| *b == bit) {
            Some((_, n)) => *n = n.saturating_add(1),
            None => self.copies.push((bit, 1)),
        }
    }

    /// One copy less. False where there was none.
    pub fn take(&mut self, bit: u8) -> bool {
        let Some(at) = self.copies.iter().position(|(b, _)| *b == bit) else { return false };
        self.copies[at].1 -= 1;
        if self.copies[at].1 == 0 {
            self.copies.swap_remove(at);
        }
        true
    }
}

/// Bytes that are none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a value that kvd did not write")]
pub struct Foreign;

const VERSION: u8 = 1;

impl Meta {
    /// As it is kept.
    pub fn encode(&self) -> Vec<u8> {
        let flags = u8::from(self.health.live)
            | u8::from(self.health.complete) << 1
            | u8::from(self.partial) << 2
            | u8::from(self.cursor.seq.is_some()) << 3;
        let mut out = vec![VERSION, flags];
        out.extend(self.incarnation.to_le_bytes());
        out.extend(self.cursor.seq.unwrap_or(0).to_le_bytes());
        out.extend(self.cursor.ts.to_le_bytes());
        out.extend(self.held.to_le_bytes());
        for part in [self.run.as_bytes(), &self.cursor.note, &self.engine] {
            out.extend((part.len() as u16).to_le_bytes());
            out.extend(part);
        }
        out
    }

    /// Back from it.
    ///
    /// # Errors
    /// For bytes that [`encode`](Self::encode) does not make.
    pub fn decode(bytes: &[u8]) -> Result<Meta, Foreign> {
        let mut b = Bytes(bytes);
        let [VERSION, flags] = b.take()? else { return Err(Foreign) };
        let incarnation = b.number()?;
        let seq = u64::from_le_bytes(b.take()?);
        let ts = f64::from_le_bytes(b.take()?);
        let held = u64::from_le_bytes(b.take()?);
        let run = String::from_utf8(b.counted()?.to_vec()).map_err(|_| Foreign)?;
        let (note, engine) = (b.counted()?.to_vec(), b.counted()?.to_vec());
        b.end()?;
        Ok(Meta {
            incarnation,
            cursor: Cursor { seq: (flags & 8 != 0).then_some(seq), ts, note },
            health: Health { live: flags & 1 != 0, complete: flags & 2 != 0 },
            partial: flags & 4 != 0,
            held,
            run,
            engine,
        })
    }
}

impl Name {
    /// As it is kept.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        match self.place {
            Place::Bare => out.push(0),
            Place::Known { seq, depth, block_size } => {
                out.push(1);
                out.extend(seq.0.to_le_bytes());
                out.extend(depth.to_le_bytes());
                out.extend(block_size.to_le_bytes());
            }
            Place::Waiting { parent, local, seed, block_size } => {
                out.push(2);
                [parent.0, local.0, seed.0].iter().for_each(|n| out.extend(n.to_le_bytes()));
                out.extend(block_size.to_le_bytes());
            }
        }
        out.extend(self.touched.to_le_bytes());
        out.extend(self.incarnation.to_le_bytes());
        for (bit, n) in &self.copies {
            out.push(*bit);
            out.extend(n.to_le_bytes());
        }
        out
    }

    /// Back from it; copies of another incarnation are gone.
    ///
    /// # Errors
    /// For bytes that [`encode`](Self::encode) does not make.
    pub fn decode(bytes: &[u8], incarnation: u32) -> Result<Name, Foreign> {
        let mut b = Bytes(bytes);
        let place = match b.take()? {
            [0] => Place::Bare,
            [1] => Place::Known { seq: SeqHash(b.word()?), depth: b.number()?, block_size: b.number()? },
            [2] => Place::Waiting {
                parent: EngineHash(b.word()?),
                local: LocalHash(b.word()?),
                seed: Seed(b.word()?),
                block_size: b.number()?,
            },
            _ => return Err(Foreign),
        };
        let (touched, of) = (b.number()?, b.number()?);
        let mut copies = Vec::new();
        while !b.0.is_empty() {
            let ([bit], n) = (b.take()?, u16::from_le_bytes(b.take()?));
            if bit >= 32 || n == 0 || copies.iter().any(|(other, _)| *other == bit) {
                return Err(Foreign);
            }
            copies.push((bit, n));
        }
        if of != incarnation {
            copies.clear();
        }
        Ok(Name { place, touched, incarnation, copies })
    }
}

/// The names of one block that have copies, and where.
pub type Held = Vec<(EngineHash, u32)>;

/// As it is kept.
pub fn encode_held(held: &Held) -> Vec<u8> {
    held.iter().flat_map(|(name, mask)| name.0.to_le_bytes().into_iter().chain(mask.to_le_bytes())).collect()
}

/// Back from it.
///
/// # Errors
/// For bytes that [`encode_held`] does not make.
pub fn decode_held(bytes: &[u8]) -> Result<Held, Foreign> {
    let mut b = Bytes(bytes);
    let mut held = Vec::new();
    while !b.0.is_empty() {
        held.push((EngineHash(b.word()?), b.number()?));
    }
    Ok(held)
}

/// In which tiers and groups a block lies, by any of its names.
///
/// # Errors
/// For bytes that [`encode_held`] does not make.
pub fn mask_of(bytes: &[u8]) -> Result<u32, Foreign> {
    Ok(decode_held(bytes)?.iter().fold(0, |mask, (_, m)| mask | m))
}

/// Names that wait for another: seconds since 1970 when one was last added, and who.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiters {
    /// When one was last added.
    pub touched: u32,
    /// Who.
    pub names: Vec<EngineHash>,
}

impl Waiters {
    /// As it is kept.
    pub fn encode(&self) -> Vec<u8> {
        let names = self.names.iter().flat_map(|n| n.0.to_le_bytes());
        self.touched.to_le_bytes().into_iter().chain(names).collect()
    }

    /// Back from it.
    ///
    /// # Errors
    /// For bytes that [`encode`](Self::encode) does not make.
    pub fn decode(bytes: &[u8]) -> Result<Waiters, Foreign> {
        let mut b = Bytes(bytes);
        let touched = b.number()?;
        let mut names = Vec::new();
        while !b.0.is_empty() {
            names.push(EngineHash(b.word()?));
        }
        Ok(Waiters { touched, names })
    }
}

/// The field of a name.
pub fn name_field(name: EngineHash) -> [u8; 9] {
    field(b'n', name.0)
}

/// The field of those who wait for a name.
pub fn waiters_field(name: EngineHash) -> [u8; 9] {
    field(b'w', name.0)
}

/// The field of a block.
pub fn block_field(seq: SeqHash) -> [u8; 8] {
    seq.0.to_le_bytes()
}

/// The field of the [`Meta`].
pub const META: &[u8] = b"m";

fn field(kind: u8, hash: u64) -> [u8; 9] {
    let mut out = [kind; 9];
    out[1..].copy_from_slice(&hash.to_le_bytes());
    out
}

/// The name in a [`name_field`] or, second, a [`waiters_field`].
pub fn field_name(field: &[u8]) -> Option<(EngineHash, bool)> {
    let (kind, hash) = field.split_first()?;
    let hash = EngineHash(u64::from_le_bytes(hash.try_into().ok()?));
    match kind {
        b'n' => Some((hash, false)),
        b'w' => Some((hash, true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read_and_nothing_shorter_is() {
        let meta = Meta {
            incarnation: 3,
            cursor: Cursor { seq: Some(0), ts: 1.5, note: vec![1, 2] },
            health: Health { live: true, complete: false },
            partial: true,
            held: 9,
            run: "ab".to_owned(),
            engine: vec![7; 300],
        };
        let bytes = meta.encode();
        assert_eq!(Meta::decode(&bytes), Ok(meta));
        assert!((0..bytes.len()).all(|n| Meta::decode(&bytes[..n]).is_err()));
        for place in [
            Place::Bare,
            Place::Known { seq: SeqHash(5), depth: 6, block_size: 7 },
            Place::Waiting { parent: EngineHash(1), local: LocalHash(2), seed: Seed(3), block_size: 4 },
        ] {
            let name = Name { place, touched: 8, incarnation: 3, copies: vec![(4, 2), (0, 1)] };
            assert_eq!(Name::decode(&name.encode(), 3), Ok(name.clone()));
            assert_eq!(Name::decode(&name.encode(), 4).map(|n| n.copies), Ok(vec![]), "of before a clear");
        }
        assert_eq!(Name::decode(&[9], 0), Err(Foreign));
        let waiters = Waiters { touched: 1, names: vec![EngineHash(4)] };
        assert_eq!(Waiters::decode(&waiters.encode()), Ok(waiters));
    }

    #[test]
    fn a_mask_is_of_all_names_of_the_block() {
        assert_eq!(mask_of(&encode_held(&vec![(EngineHash(1), 0b10000), (EngineHash(2), 1)])), Ok(0b10001));
        assert_eq!(mask_of(&[1, 2, 3]), Err(Foreign));
    }
}
