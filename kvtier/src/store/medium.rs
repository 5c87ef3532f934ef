//! Where bytes lie: files of a fixed size, read and written by whole pages.

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Offsets and lengths of all reads and writes are multiples of this, in bytes.
pub(super) const PAGE: usize = 4096;
/// Pages read and written at once where there are many.
pub(super) const STRETCH: usize = 256;

/// A file of a fixed size. All its space is reserved.
pub(super) trait Segment: Send + Sync + std::fmt::Debug {
    /// Fills all of `into` from `at` on.
    fn read(&self, at: u64, into: &mut [IoSliceMut<'_>]) -> io::Result<()>;
    /// Writes all of `from` from `at` on. After an error, any part of it may be written.
    fn write(&self, at: u64, from: &[IoSlice<'_>]) -> io::Result<()>;
    /// Returns when what was written before cannot be lost any more.
    fn sync(&self) -> io::Result<()>;
}

/// What has files.
pub(super) trait Medium: Send + Sync + std::fmt::Debug {
    /// Opens a file of `bytes` bytes; makes it of zeros if it is not there.
    fn open(&self, name: &str, bytes: u64) -> io::Result<Box<dyn Segment>>;
}

/// Makes the first `pages` pages of a file zeros; when it returns, nothing else comes back.
pub(super) fn clear(file: &dyn Segment, pages: u64) -> io::Result<()> {
    let zeros = Buffer::new(STRETCH * PAGE)?;
    for first in (0..pages).step_by(STRETCH) {
        let bytes = (pages - first).min(STRETCH as u64) as usize * PAGE;
        file.write(first * PAGE as u64, &[IoSlice::new(&zeros[..bytes])])?;
    }
    file.sync()
}

/// Memory that begins on a page, as direct I/O wants it. Payloads read into and written from
/// other memory are copied once more.
#[derive(Debug)]
pub struct Buffer {
    map: MmapMut,
    bytes: usize,
}

impl Buffer {
    /// `bytes` zeros.
    ///
    /// # Errors
    ///
    /// Where the system gives no more memory.
    pub fn new(bytes: usize) -> io::Result<Buffer> {
        Ok(Buffer { map: MmapMut::map_anon(bytes.max(1).next_multiple_of(PAGE))?, bytes })
    }

    /// All of it, to the end of the last page.
    pub(super) fn whole(&mut self) -> &mut [u8] {
        &mut self.map
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[..self.bytes]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[..self.bytes]
    }
}

/// Whether memory can take part in direct I/O.
pub(super) fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(PAGE) && bytes.len().is_multiple_of(PAGE)
}
