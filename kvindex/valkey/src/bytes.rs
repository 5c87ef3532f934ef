//! Reads what is kept on the servers, little-endian, from its beginning on.

use crate::record::Foreign;

/// What is left to be read.
pub(crate) struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn take<const N: usize>(&mut self) -> Result<[u8; N], Foreign> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Foreign)?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn number(&mut self) -> Result<u32, Foreign> {
        self.take().map(u32::from_le_bytes)
    }

    pub fn word(&mut self) -> Result<u64, Foreign> {
        self.take().map(u64::from_le_bytes)
    }

    pub fn part(&mut self, n: usize) -> Result<&'a [u8], Foreign> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Foreign)?;
        self.0 = rest;
        Ok(head)
    }

    /// A part with its length as u16 before it.
    pub fn counted(&mut self) -> Result<&'a [u8], Foreign> {
        let n = usize::from(u16::from_le_bytes(self.take()?));
        self.part(n)
    }

    pub fn end(&self) -> Result<(), Foreign> {
        if self.0.is_empty() { Ok(()) } else { Err(Foreign) }
    }
}
