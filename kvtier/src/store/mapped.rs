//! Files mapped to memory, for file systems that refuse direct I/O.
//!
//! It costs a copy, the page cache, and page faults that block whoever meets one. And an error of
//! the disk under a mapped page is no error code but a signal that ends the process: where the
//! disk may fail, `direct` is the one to use.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use memmap2::MmapMut;

use super::direct::reserve;
use super::medium::{Medium, Segment};

/// Files in a directory, mapped.
#[derive(Debug)]
pub(super) struct Mapped {
    pub folder: PathBuf,
}

/// One writer at a time: the lock is what makes a shared mapping safe.
#[derive(Debug)]
struct MappedFile(RwLock<MmapMut>);

impl Medium for Mapped {
    fn open(&self, name: &str, bytes: u64) -> io::Result<Box<dyn Segment>> {
        let path = self.folder.join(name);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        reserve(&file, bytes)?;
        // SAFETY: the mapping is of this process alone as long as nobody else writes to or cuts
        // the store's files, which the store's documentation rules out. Its space is reserved, so
        // a full disk is not met on writing.
        let map = unsafe { MmapMut::map_mut(&file)? };
        Ok(Box::new(MappedFile(RwLock::new(map))))
    }
}

fn outside() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

impl Segment for MappedFile {
    fn read(&self, at: u64, into: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut rest = map.get(at as usize..).ok_or_else(outside)?;
        for part in into {
            let (from, after) = rest.split_at_checked(part.len()).ok_or_else(outside)?;
            part.copy_from_slice(from);
            rest = after;
        }
        Ok(())
    }

    fn write(&self, at: u64, from: &[IoSlice<'_>]) -> io::Result<()> {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut rest = map.get_mut(at as usize..).ok_or_else(outside)?;
        for part in from {
            let (into, after) = rest.split_at_mut_checked(part.len()).ok_or_else(outside)?;
            into.copy_from_slice(part);
            rest = after;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).flush()
    }
}
