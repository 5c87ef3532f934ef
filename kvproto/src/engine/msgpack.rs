//! Reads msgpack from a slice, one value at a time.
//!
//! No value is ever built: a [`Reader`] gives the [`Head`] of the next one, which for a
//! scalar is all of it, for a string borrows it and for a container says how many values
//! follow. A container that claims more values than bytes are left is refused at once, so
//! a claimed length is always safe to loop over and, in bytes, to reserve.

use std::fmt;

use rmp::Marker;

/// Bytes that are no msgpack, so that nothing tells where the next value begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The payload ends inside a value.
    #[error("payload ends inside {what} that begins at byte {offset}")]
    Truncated {
        /// Where the value begins, in bytes.
        offset: usize,
        /// What ends too early.
        what: &'static str,
    },
    /// An array or map claims more values than there are bytes left.
    #[error("value at byte {offset} claims {claimed} values, {left} bytes are left")]
    Overclaimed {
        /// Where the value begins, in bytes.
        offset: usize,
        /// Values that should follow.
        claimed: u64,
        /// Bytes that do follow.
        left: usize,
    },
    /// The one byte that begins no msgpack value.
    #[error("byte {offset} begins no msgpack value")]
    Reserved {
        /// Where it is, in bytes.
        offset: usize,
    },
}

/// A place in a payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'p> {
    bytes: &'p [u8],
    at: usize,
}

/// A scalar, or how a container begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Head<'p> {
    Nil,
    Bool(bool),
    Unsigned(u64),
    /// Below zero; other integers are `Unsigned` however they are encoded.
    Negative(i64),
    Float(f64),
    /// Not checked to be UTF-8.
    Str(&'p [u8]),
    Bin(&'p [u8]),
    Ext,
    /// This many values follow.
    Array(u32),
    /// This many pairs of values follow.
    Map(u32),
}

impl<'p> Reader<'p> {
    pub fn new(bytes: &'p [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    /// Bytes not read yet.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Reads a scalar whole, of a container only how many values follow.
    pub fn head(&mut self) -> Result<Head<'p>, Broken> {
        let at = self.at;
        let [marker] = self.take::<1>(at, "a value")?;
        Ok(match Marker::from_u8(marker) {
            Marker::FixPos(n) => Head::Unsigned(n.into()),
            Marker::FixNeg(n) => Head::Negative(n.into()),
            Marker::Null => Head::Nil,
            Marker::True => Head::Bool(true),
            Marker::False => Head::Bool(false),
            Marker::U8 => Head::Unsigned(u8::from_be_bytes(self.take(at, INTEGER)?).into()),
            Marker::U16 => Head::Unsigned(u16::from_be_bytes(self.take(at, INTEGER)?).into()),
            Marker::U32 => Head::Unsigned(u32::from_be_bytes(self.take(at, INTEGER)?).into()),
            Marker::U64 => Head::Unsigned(u64::from_be_bytes(self.take(at, INTEGER)?)),
            Marker::I8 => signed(i8::from_be_bytes(self.take(at, INTEGER)?).into()),
            Marker::I16 => signed(i16::from_be_bytes(self.take(at, INTEGER)?).into()),
            Marker::I32 => signed(i32::from_be_bytes(self.take(at, INTEGER)?).into()),
            Marker::I64 => signed(i64::from_be_bytes(self.take(at, INTEGER)?)),
            Marker::F32 => Head::Float(f32::from_be_bytes(self.take(at, "a float")?).into()),
            Marker::F64 => Head::Float(f64::from_be_bytes(self.take(at, "a float")?)),
            Marker::FixStr(len) => Head::Str(self.string(at, len.into())?),
            Marker::Str8 => Head::Str(self.string8(at)?),
            Marker::Str16 => Head::Str(self.string16(at)?),
            Marker::Str32 => Head::Str(self.string32(at)?),
            Marker::Bin8 => Head::Bin(self.string8(at)?),
            Marker::Bin16 => Head::Bin(self.string16(at)?),
            Marker::Bin32 => Head::Bin(self.string32(at)?),
            Marker::FixArray(len) => Head::Array(self.claim(at, len.into(), 1)?),
            Marker::Array16 => {
                let len = u16::from_be_bytes(self.take(at, "an array")?);
                Head::Array(self.claim(at, len.into(), 1)?)
            }
            Marker::Array32 => {
                let len = u32::from_be_bytes(self.take(at, "an array")?);
                Head::Array(self.claim(at, len, 1)?)
            }
            Marker::FixMap(len) => Head::Map(self.claim(at, len.into(), 2)?),
            Marker::Map16 => {
                let len = u16::from_be_bytes(self.take(at, "a map")?);
                Head::Map(self.claim(at, len.into(), 2)?)
            }
            Marker::Map32 => {
                let len = u32::from_be_bytes(self.take(at, "a map")?);
                Head::Map(self.claim(at, len, 2)?)
            }
            // An extension's type byte comes before its data.
            Marker::FixExt1 => self.ext(at, 1)?,
            Marker::FixExt2 => self.ext(at, 2)?,
            Marker::FixExt4 => self.ext(at, 4)?,
            Marker::FixExt8 => self.ext(at, 8)?,
            Marker::FixExt16 => self.ext(at, 16)?,
            Marker::Ext8 => {
                let len = u8::from_be_bytes(self.take(at, "an extension")?);
                self.ext(at, len.into())?
            }
            Marker::Ext16 => {
                let len = u16::from_be_bytes(self.take(at, "an extension")?);
                self.ext(at, len.into())?
            }
            Marker::Ext32 => {
                let len = u32::from_be_bytes(self.take(at, "an extension")?);
                self.ext(at, len)?
            }
            Marker::Reserved => return Err(Broken::Reserved { offset: at }),
        })
    }

    /// Steps over one value, however deep. Needs no stack: it counts the values still owed.
    pub fn skip(&mut self) -> Result<(), Broken> {
        let mut owed: u64 = 1;
        while owed > 0 {
            let at = self.at;
            owed -= 1;
            match self.head()? {
                Head::Array(len) => owed += u64::from(len),
                Head::Map(len) => owed += 2 * u64::from(len),
                Head::Nil
                | Head::Bool(_)
                | Head::Unsigned(_)
                | Head::Negative(_)
                | Head::Float(_)
                | Head::Str(_)
                | Head::Bin(_)
                | Head::Ext => continue,
            }
            if owed > self.left() as u64 {
                return Err(Broken::Overclaimed { offset: at, claimed: owed, left: self.left() });
            }
        }
        Ok(())
    }

    /// The next value if it is a string; steps over anything else.
    pub fn key(&mut self) -> Result<Option<&'p [u8]>, Broken> {
        let before = *self;
        match self.head()? {
            Head::Str(s) => Ok(Some(s)),
            Head::Nil
            | Head::Bool(_)
            | Head::Unsigned(_)
            | Head::Negative(_)
            | Head::Float(_)
            | Head::Bin(_)
            | Head::Ext => Ok(None),
            Head::Array(_) | Head::Map(_) => {
                *self = before;
                self.skip()?;
                Ok(None)
            }
        }
    }

    /// The next value if it is an integer that fits; otherwise nothing is read.
    ///
    /// The loop over a batch's tokens is the hottest of the decoder, so the encodings that
    /// token ids have are told apart here without a call.
    #[inline]
    pub fn small(&mut self) -> Option<u32> {
        let (value, len) = match self.bytes.get(self.at..)? {
            [n @ 0x00..=0x7f, ..] => (u32::from(*n), 1),
            [0xcd, a, b, ..] => (u32::from(u16::from_be_bytes([*a, *b])), 3),
            [0xcc, n, ..] => (u32::from(*n), 2),
            [0xce, a, b, c, d, ..] => (u32::from_be_bytes([*a, *b, *c, *d]), 5),
            _ => return None,
        };
        self.at += len;
        Some(value)
    }

    /// The next value if it is a full-width unsigned or signed integer, by its bits;
    /// otherwise nothing is read.
    #[inline]
    pub fn wide(&mut self) -> Option<u64> {
        match self.bytes.get(self.at..)? {
            [0xcf | 0xd3, rest @ ..] => {
                let bits = u64::from_be_bytes(*rest.first_chunk()?);
                self.at += 9;
                Some(bits)
            }
            _ => None,
        }
    }

    fn take<const N: usize>(&mut self, from: usize, what: &'static str) -> Result<[u8; N], Broken> {
        match self.bytes[self.at..].first_chunk() {
            Some(chunk) => {
                self.at += N;
                Ok(*chunk)
            }
            None => Err(Broken::Truncated { offset: from, what }),
        }
    }

    fn string(&mut self, from: usize, len: u32) -> Result<&'p [u8], Broken> {
        match self.bytes[self.at..].get(..len as usize) {
            Some(s) => {
                self.at += s.len();
                Ok(s)
            }
            None => Err(Broken::Truncated { offset: from, what: STRING }),
        }
    }

    fn string8(&mut self, from: usize) -> Result<&'p [u8], Broken> {
        let len = u8::from_be_bytes(self.take(from, STRING)?);
        self.string(from, len.into())
    }

    fn string16(&mut self, from: usize) -> Result<&'p [u8], Broken> {
        let len = u16::from_be_bytes(self.take(from, STRING)?);
        self.string(from, len.into())
    }

    fn string32(&mut self, from: usize) -> Result<&'p [u8], Broken> {
        let len = u32::from_be_bytes(self.take(from, STRING)?);
        self.string(from, len)
    }

    fn ext(&mut self, from: usize, len: u32) -> Result<Head<'p>, Broken> {
        self.take::<1>(from, "an extension")?;
        self.string(from, len)?;
        Ok(Head::Ext)
    }

    fn claim(&self, from: usize, len: u32, values: u64) -> Result<u32, Broken> {
        let claimed = u64::from(len) * values;
        if claimed > self.left() as u64 {
            return Err(Broken::Overclaimed { offset: from, claimed, left: self.left() });
        }
        Ok(len)
    }
}

const INTEGER: &str = "an integer";
const STRING: &str = "a string";

fn signed(n: i64) -> Head<'static> {
    match u64::try_from(n) {
        Ok(n) => Head::Unsigned(n),
        Err(_) => Head::Negative(n),
    }
}

/// As an error names what it found; never the content of a string.
impl fmt::Display for Head<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Head::Nil => f.write_str("nil"),
            Head::Bool(b) => write!(f, "the boolean {b}"),
            Head::Unsigned(n) => write!(f, "the integer {n}"),
            Head::Negative(n) => write!(f, "the integer {n}"),
            Head::Float(x) => write!(f, "the float {x}"),
            Head::Str(s) => write!(f, "a string of {} bytes", s.len()),
            Head::Bin(b) => write!(f, "{} raw bytes", b.len()),
            Head::Ext => f.write_str("an extension"),
            Head::Array(n) => write!(f, "an array of {n}"),
            Head::Map(n) => write!(f, "a map of {n}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(bytes: &[u8]) -> Vec<Head<'_>> {
        let mut r = Reader::new(bytes);
        let mut out = Vec::new();
        while r.left() > 0 {
            out.push(r.head().unwrap());
        }
        out
    }

    #[test]
    fn an_integer_is_the_same_in_every_encoding() {
        let bytes = [
            0x07, 0xcc, 7, 0xcd, 0, 7, 0xce, 0, 0, 0, 7, 0xcf, 0, 0, 0, 0, 0, 0, 0, 7, 0xd0, 7, 0xd1, 0, 7,
            0xd2, 0, 0, 0, 7, 0xd3, 0, 0, 0, 0, 0, 0, 0, 7,
        ];
        assert_eq!(heads(&bytes), [Head::Unsigned(7); 9]);
        assert_eq!(heads(&[0xff, 0xd0, 0xff, 0xd1, 0xff, 0xff]), [Head::Negative(-1); 3]);
        assert_eq!(heads(&[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0]), [Head::Negative(i64::MIN)]);
    }

    #[test]
    fn every_marker_but_the_reserved_one_is_skipped_whole() {
        for marker in 0..=255u8 {
            let mut bytes = vec![marker];
            // A length of 2 in whatever width the marker has, and more than enough behind it.
            match marker {
                0xc4 | 0xc7 | 0xd9 => bytes.push(2),
                0xc5 | 0xc8 | 0xda | 0xdc | 0xde => bytes.extend([0, 2]),
                0xc6 | 0xc9 | 0xdb | 0xdd | 0xdf => bytes.extend([0, 0, 0, 2]),
                _ => {}
            }
            bytes.extend([0u8; 64]);
            let mut r = Reader::new(&bytes);
            let skipped = r.skip();
            if marker == 0xc1 {
                assert_eq!(skipped, Err(Broken::Reserved { offset: 0 }));
                continue;
            }
            assert_eq!(skipped, Ok(()), "{marker:#x}");
            let used = bytes.len() - r.left();
            let rest = &bytes[..used - 1];
            assert!(Reader::new(rest).skip().is_err(), "{marker:#x} without its last byte");
        }
    }

    #[test]
    fn a_container_that_claims_more_than_there_is_is_refused() {
        let claim = Broken::Overclaimed { offset: 0, claimed: u64::from(u32::MAX), left: 0 };
        assert_eq!(Reader::new(&[0xdd, 0xff, 0xff, 0xff, 0xff]).head(), Err(claim));
        assert!(Reader::new(&[0xdf, 0, 0, 0, 1, 0]).head().is_err());
        // Each array alone fits, together they do not.
        assert!(matches!(Reader::new(&[0x92, 0x92, 0, 0]).skip(), Err(Broken::Overclaimed { .. })));
    }

    #[test]
    fn a_hundred_thousand_levels_are_skipped() {
        let mut bytes = vec![0x91; 100_000];
        bytes.push(0xc0);
        bytes.push(0x07);
        let mut r = Reader::new(&bytes);
        assert_eq!(r.skip(), Ok(()));
        assert_eq!(r.head(), Ok(Head::Unsigned(7)));
    }

    #[test]
    fn the_fast_paths_read_what_the_slow_one_reads() {
        for bytes in [&[0x7f][..], &[0xcc, 200], &[0xcd, 1, 2], &[0xce, 0xff, 1, 2, 3]] {
            let mut fast = Reader::new(bytes);
            let small = fast.small().unwrap();
            assert_eq!(Reader::new(bytes).head(), Ok(Head::Unsigned(small.into())));
            assert_eq!(fast.left(), 0);
            assert_eq!(Reader::new(&bytes[..bytes.len() - 1]).small(), None);
        }
        assert_eq!(Reader::new(&[0xe0]).small(), None);
        assert_eq!(
            Reader::new(&[0xd3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]).wide(),
            Some(-2i64 as u64)
        );
        assert_eq!(Reader::new(&[0xcf, 0, 0, 0, 0, 0, 0, 0]).wide(), None);
    }
}
