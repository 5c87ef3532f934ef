//! Files read and written past the page cache (`O_DIRECT`).
//!
//! The cache would hold a second copy of what RAM holds already, and writing it back stalls.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::medium::{Buffer, Medium, PAGE, Segment};

/// Files in a directory, opened with `O_DIRECT`.
#[derive(Debug)]
pub(super) struct Direct {
    pub folder: PathBuf,
}

#[derive(Debug)]
struct DirectFile(File);

impl Medium for Direct {
    fn open(&self, name: &str, bytes: u64) -> io::Result<Box<dyn Segment>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::DIRECT;
        let file = File::from(rustix::fs::open(self.folder.join(name), flags, Mode::from_raw_mode(0o600))?);
        reserve(&file, bytes)?;
        let file = DirectFile(file);
        // Some file systems accept the flag and refuse the first read.
        let mut page = Buffer::new(PAGE)?;
        file.read(0, &mut [IoSliceMut::new(page.whole())])?;
        Ok(Box::new(file))
    }
}

/// Makes a file `bytes` long, with all its space allocated: it is never written into a hole, so a
/// full disk shows now and not later.
pub(super) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    if file.metadata()?.len() < bytes {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => {}
            // Not every file system can; zeros do as well.
            Err(Errno::OPNOTSUPP) => fill(file, bytes)?,
            Err(error) => return Err(error.into()),
        }
        file.sync_all()?;
    }
    Ok(())
}

fn fill(file: &File, bytes: u64) -> io::Result<()> {
    let mut zeros = Buffer::new(1 << 20)?;
    let mut at = 0;
    while at < bytes {
        let part = (bytes - at).min(1 << 20) as usize;
        at += rustix::io::pwrite(file, &zeros.whole()[..part], at)? as u64;
    }
    Ok(())
}

impl Segment for DirectFile {
    fn read(&self, mut at: u64, mut into: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        while into.iter().any(|s| !s.is_empty()) {
            match rustix::io::preadv(&self.0, into, at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    at += read as u64;
                    IoSliceMut::advance_slices(&mut into, read);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write(&self, mut at: u64, from: &[IoSlice<'_>]) -> io::Result<()> {
        let mut from: Vec<IoSlice<'_>> = from.to_vec();
        let mut from = from.as_mut_slice();
        while from.iter().any(|s| !s.is_empty()) {
            match rustix::io::pwritev(&self.0, from, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut from, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
