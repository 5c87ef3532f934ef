//! What has changed since the table was last written: a file that is written from its beginning to
//! its end, and then again.
//!
//! Slots change in no order. In the table each is a page of 4096 bytes for 128 that are new; here they
//! go together. Every page says which write it was of, counted from the store's first; so what is left of
//! an earlier round, or of a write that failed and was made again, is known by its lower number.

use std::io::{self, IoSlice, IoSliceMut};

use twox_hash::XxHash3_64;

use super::medium::{self, Buffer, Medium, PAGE, STRETCH, Segment};
use super::record::{RECORD_BYTES, Record, u64_at};

/// A slot, and what is in it now.
pub(super) type Change = (u32, Option<Record>);

/// Begins every page: checksum of all that follows, form, write, page's place in the file, changes in it.
const HEADER: usize = 40;
const FORM: u64 = 0x6b76_746a_0000_0001;
/// A slot and its record; of one that is empty now, zeros.
const ENTRY: usize = 4 + RECORD_BYTES;
/// Changes in a page.
pub(super) const IN_PAGE: usize = (PAGE - HEADER) / ENTRY;
/// Bounds of a journal, in pages: the upper one is 128 MiB, for a million changes.
const PAGES: std::ops::RangeInclusive<u32> = 2..=32_768;

/// See the module.
#[derive(Debug)]
pub(super) struct Journal {
    file: Box<dyn Segment>,
    /// Slots of the store.
    slots: u32,
    pages: u32,
    /// Where the next write goes.
    at: u32,
    /// The number of the last write.
    write: u64,
}

impl Journal {
    /// Opens the journal of a store, or makes an empty one. With room for changes of a quarter of the slots: writing those
    /// to the table then costs half a page of table each at most.
    pub fn open(medium: &dyn Medium, slots: u32) -> io::Result<Journal> {
        let pages = (slots / 4).div_ceil(IN_PAGE as u32).clamp(*PAGES.start(), *PAGES.end());
        let file = medium.open("journal", u64::from(pages) * PAGE as u64)?;
        Ok(Journal { file, slots, pages, at: 0, write: 0 })
    }

    /// All changes since the table was last written, in their order. What is damaged is left out.
    pub fn read(&mut self) -> io::Result<Vec<Change>> {
        let mut buffer = Buffer::new(STRETCH * PAGE)?;
        let (mut changes, mut last, mut most, mut ended) = (Vec::new(), 0, self.write, false);
        for first in (0..self.pages).step_by(STRETCH) {
            let bytes = (self.pages - first).min(STRETCH as u32) as usize * PAGE;
            self.read_pages(first, &mut buffer[..bytes])?;
            for (number, page) in (first..self.pages).zip(buffer[..bytes].chunks_mut(PAGE)) {
                // A bit may have flipped on the way.
                if write_of(page, number).is_none() {
                    self.read_pages(number, page)?;
                }
                let Some(write) = write_of(page, number) else { continue };
                most = most.max(write);
                ended |= write < last;
                if !ended {
                    last = write;
                    self.at = self.at.max(number + 1);
                    changes.extend(entries(page).filter(|change| change.0 < self.slots));
                }
            }
        }
        self.write = most;
        Ok(changes)
    }

    fn read_pages(&self, first: u32, into: &mut [u8]) -> io::Result<()> {
        self.file.read(u64::from(first) * PAGE as u64, &mut [IoSliceMut::new(into)])
    }

    /// Whether so many changes have room.
    pub fn has_room(&self, changes: usize) -> bool {
        changes.div_ceil(IN_PAGE) <= (self.pages - self.at) as usize
    }

    /// Writes changes down, for which there [is room](Self::has_room). After an error any of them may be
    /// written; the next write takes their place.
    pub fn append(&mut self, changes: &[Change]) -> io::Result<()> {
        let pages = changes.len().div_ceil(IN_PAGE) as u32;
        self.put(self.at, changes.chunks(IN_PAGE))?;
        self.at += pages;
        Ok(())
    }

    /// Begins again: all that was written before is in the table, and counts no more.
    pub fn restart(&mut self) -> io::Result<()> {
        self.put(0, [&[][..]].into_iter())?;
        self.at = 0;
        Ok(())
    }

    /// Whether it can be written to, by trying.
    pub fn probe(&mut self) -> io::Result<()> {
        match self.at < self.pages {
            true => self.put(self.at, [&[][..]].into_iter()),
            false => Ok(()),
        }
    }

    fn put<'a>(&mut self, first: u32, pages: impl ExactSizeIterator<Item = &'a [Change]>) -> io::Result<()> {
        self.write += 1;
        let mut buffer = Buffer::new(pages.len() * PAGE)?;
        for (number, (page, changes)) in (first..).zip(buffer.chunks_mut(PAGE).zip(pages)) {
            fill(page, self.write, number, changes);
        }
        self.file.write(u64::from(first) * PAGE as u64, &[IoSlice::new(&buffer)])?;
        self.file.sync()
    }

    /// Forgets everything that the file has.
    pub fn clear(&mut self) -> io::Result<()> {
        medium::clear(&*self.file, self.pages.into())
    }
}

fn fill(page: &mut [u8], write: u64, number: u32, changes: &[Change]) {
    page.fill(0);
    for (at, field) in [FORM, write, number.into(), changes.len() as u64].into_iter().enumerate() {
        page[8 + at * 8..16 + at * 8].copy_from_slice(&field.to_le_bytes());
    }
    for (into, (slot, record)) in page[HEADER..].chunks_mut(ENTRY).zip(changes) {
        into[..4].copy_from_slice(&slot.to_le_bytes());
        if let Some(record) = record {
            into[4..].copy_from_slice(&record.encode(*slot));
        }
    }
    let sum = XxHash3_64::oneshot(&page[8..]);
    page[..8].copy_from_slice(&sum.to_le_bytes());
}

/// Which write a page is of; `None` where it is damaged, of another place, or was never written.
fn write_of(page: &[u8], number: u32) -> Option<u64> {
    let whole = u64_at(page, 0) == XxHash3_64::oneshot(&page[8..]);
    let ours = u64_at(page, 8) == FORM && u64_at(page, 24) == u64::from(number);
    (whole && ours).then(|| u64_at(page, 16))
}

fn entries(page: &[u8]) -> impl Iterator<Item = Change> + '_ {
    let count = (u64_at(page, 32) as usize).min(IN_PAGE);
    page[HEADER..].chunks_exact(ENTRY).take(count).filter_map(|entry| {
        let slot = u32::from_le_bytes(*entry.first_chunk()?);
        Some((slot, Record::decode(&entry[4..], slot)))
    })
}

#[cfg(test)]
mod tests {
    use super::super::faulty::{Faults, FaultyDisk};
    use super::super::tests::key;
    use super::*;
    use crate::policy::Owner;

    fn change(slot: u32, number: u64) -> Change {
        let key = key(number);
        (slot, Some(Record { key, generation: number, checksum: 0, after: None, owner: Owner(0) }))
    }

    fn again(disk: &FaultyDisk) -> Vec<Change> {
        Journal::open(disk, 1000).unwrap().read().unwrap()
    }

    #[test]
    fn what_was_written_is_read_in_its_order_until_the_table_has_it() {
        let disk = FaultyDisk::new(1);
        let mut journal = Journal::open(&disk, 1000).unwrap();
        let first: Vec<Change> = (0..70).map(|n| change(n, n.into())).collect();
        let second = [change(3, 99), (4, None)];
        journal.append(&first).unwrap();
        journal.append(&second).unwrap();
        assert_eq!(again(&disk), [&first[..], &second].concat());
        journal.restart().unwrap();
        assert_eq!(again(&disk), []);
        // The rest of the first round lies behind it.
        journal.append(&second).unwrap();
        assert_eq!(again(&disk), second);
        journal.clear().unwrap();
        assert_eq!(again(&disk), []);
    }

    #[test]
    fn it_goes_on_where_it_ended_and_ends_where_it_has_no_room() {
        let disk = FaultyDisk::new(1);
        let mut journal = Journal::open(&disk, 1000).unwrap();
        let changes = [change(1, 1)];
        while journal.has_room(1) {
            journal.append(&changes).unwrap();
            journal = Journal::open(&disk, 1000).unwrap();
            journal.read().unwrap();
        }
        assert_eq!((again(&disk).len(), journal.at), (journal.pages as usize, journal.pages));
        assert!(journal.probe().is_ok() && again(&disk).len() == journal.pages as usize);
    }

    #[test]
    fn a_write_that_failed_leaves_nothing_that_counts_after_the_next() {
        let disk = FaultyDisk::new(1);
        let mut journal = Journal::open(&disk, 1000).unwrap();
        let wrong: Vec<Change> = (0..90).map(|n| change(n, 7)).collect();
        // All of it is on the disk, but that could not be said.
        disk.set(Faults { sync_fails: 1000, ..Faults::default() });
        assert!(journal.append(&wrong).is_err());
        disk.set(Faults::default());
        let right = [change(50, 8)];
        journal.append(&right).unwrap();
        assert_eq!(again(&disk), right);
    }

    #[test]
    fn a_damaged_page_costs_its_own_changes_alone() {
        let disk = FaultyDisk::new(1);
        let mut journal = Journal::open(&disk, 1000).unwrap();
        let changes: Vec<Change> = (0..90).map(|n| change(n, n.into())).collect();
        journal.append(&changes).unwrap();
        let mut bytes = Buffer::new(PAGE).unwrap();
        journal.read_pages(1, &mut bytes).unwrap();
        bytes[2000] ^= 1;
        journal.file.write(PAGE as u64, &[IoSlice::new(&bytes)]).unwrap();
        assert_eq!(again(&disk), [&changes[..IN_PAGE], &changes[2 * IN_PAGE..]].concat());
    }

    #[test]
    fn pages_of_nonsense_are_nothing() {
        let mut page = vec![0; PAGE];
        assert_eq!(write_of(&page, 0), None);
        fill(&mut page, 5, 3, &[change(1, 1)]);
        assert_eq!((write_of(&page, 3), write_of(&page, 2)), (Some(5), None));
        for bit in (0..PAGE * 8).step_by(13) {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(write_of(&page, 3), None, "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
