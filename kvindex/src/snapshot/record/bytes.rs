//! How are the parts of a record read that anybody may have written?

use super::{Lane, MAX_TEXT};
use crate::snapshot::FormatError;
use crate::snapshot::frame::word;

pub(super) type Result<T> = std::result::Result<T, FormatError>;

/// A payload being read.
pub(super) struct Bytes<'a> {
    pub rest: &'a [u8],
    /// Where the rest ends in the snapshot.
    pub end: u64,
}

impl<'a> Bytes<'a> {
    pub fn bad<T>(&self, what: &'static str) -> Result<T> {
        Err(FormatError::Malformed { at: self.end - self.rest.len() as u64, what })
    }
    pub fn ok(&self, is: bool, what: &'static str) -> Result<()> {
        if is { Ok(()) } else { self.bad(what) }
    }
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(n) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => self.bad("a record goes on after its chunk"),
        }
    }
    pub fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }
    pub fn word(&mut self) -> Result<u64> {
        Ok(word(self.take(8)?))
    }
    pub fn number(&mut self) -> Result<u64> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            let bits = u64::from(b & 0x7F);
            self.ok(bits << shift >> shift == bits, "a number of more than 64 bits")?;
            n |= bits << shift;
            if b & 0x80 == 0 {
                return Ok(n);
            }
        }
        self.bad("a number of more than 64 bits")
    }
    /// A number of at most `most`.
    pub fn upto(&mut self, most: u64, what: &'static str) -> Result<u32> {
        let n = self.number()?;
        self.ok(n <= most.min(u32::MAX.into()), what)?;
        Ok(n as u32)
    }
    pub fn text(&mut self) -> Result<&'a [u8]> {
        let n = self.upto(MAX_TEXT as u64, "a text that is too long")?;
        self.take(n as usize)
    }
    pub fn utf8(&mut self) -> Result<&'a str> {
        let text = self.text()?;
        std::str::from_utf8(text).or_else(|_| self.bad("a text that is not UTF-8"))
    }
    pub fn lane(&mut self, n: u32) -> Result<Lane<'a>> {
        Ok(Lane(self.take(n as usize * 8)?))
    }
}
