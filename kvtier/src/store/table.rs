//! What is written down of all slots.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;

use twox_hash::XxHash3_64;

use super::medium::{self, Buffer, Medium, PAGE, STRETCH, Segment};
use super::record::{RECORD_BYTES, Record, u64_at};
use super::{Layout, OpenError};

/// Slots and what is in them.
pub(super) type Records = Vec<(u32, Record)>;

/// Records in a file, each in the place of its slot. Two headers take turns, so that one is whole
/// whenever the writing of the other was cut short.
///
/// A page that is written again has the same bytes for all records that did not change, so even a
/// page that is written in part loses none of those.
#[derive(Debug)]
pub(super) struct Table {
    file: Box<dyn Segment>,
    layout: Layout,
    life: u64,
    page: Buffer,
}

const FORM: u64 = 0x6b76_7469_6572_0001;
const RECORDS: usize = PAGE / RECORD_BYTES;
const HEADERS: u64 = 2;
/// Pages that changed are written together if no more than so many that did not lie between them: one
/// write costs as much as a few pages more.
const BETWEEN: u64 = 4;

impl Table {
    /// Opens the table, or begins a new one. Says which.
    pub fn open(medium: &dyn Medium, layout: Layout) -> Result<(Table, bool), OpenError> {
        let io = |what| move |source| OpenError::Io { what, source };
        let pages = HEADERS + u64::from(layout.slots).div_ceil(RECORDS as u64);
        let file = medium.open("table", pages * PAGE as u64).map_err(io("open the table"))?;
        let page = Buffer::new(PAGE).map_err(io("get memory"))?;
        let mut table = Table { file, layout, life: 0, page };
        let mut found = None;
        for at in 0..HEADERS {
            if table.read_page(at).is_ok()
                && let Some((life, layout)) = decode_header(&table.page)
            {
                found = found.max(Some((life, layout)));
            }
        }
        match found {
            Some((_, found)) if found != layout => {
                return Err(OpenError::Layout { found, wanted: layout });
            }
            Some((life, _)) => table.life = life,
            // Without a header nothing says that the records are of this store.
            None => medium::clear(&*table.file, pages).map_err(io("clear the table"))?,
        }
        table.life += 1;
        Ok((table, found.is_none()))
    }

    fn read_page(&mut self, page: u64) -> io::Result<()> {
        self.file.read(page * PAGE as u64, &mut [IoSliceMut::new(self.page.whole())])
    }

    /// Reads all records, by slot, and gives them away a stretch of slots at a time, in order.
    pub fn load(&self, mut each: impl FnMut(Range<u32>, Records)) -> io::Result<()> {
        let mut pages = Buffer::new(STRETCH * PAGE)?;
        for first in (0..self.layout.slots).step_by(STRETCH * RECORDS) {
            let slots = first..self.layout.slots.min(first + (STRETCH * RECORDS) as u32);
            let bytes = slots.len().div_ceil(RECORDS) * PAGE;
            self.file.read(place(first), &mut [IoSliceMut::new(&mut pages[..bytes])])?;
            let mut records = Vec::with_capacity(slots.len());
            let read = slots.clone().zip(pages[..bytes].chunks(RECORD_BYTES));
            records.extend(read.filter_map(|(slot, bytes)| Some((slot, Record::decode(bytes, slot)?))));
            each(slots, records);
        }
        Ok(())
    }

    /// How often the store has been opened, this time included.
    pub fn life(&self) -> u64 {
        self.life
    }

    /// This life comes after `last`, that of a record: a header that was damaged may have taken it with it.
    pub fn live_after(&mut self, last: u64) {
        self.life = self.life.max(last + 1);
    }

    /// Writes what is in slots now, in order; when it returns that cannot be lost any more. After an error any
    /// of it may be written.
    pub fn apply(&mut self, latest: &BTreeMap<u32, Option<Record>>) -> io::Result<()> {
        let mut buffer = Buffer::new(STRETCH * PAGE)?;
        let mut rest = latest.iter().peekable();
        while let Some(&(&first, _)) = rest.peek() {
            let (begin, mut end) = (place(first), place(first) + PAGE as u64);
            let together = |slot: u32, end: u64| {
                let after = place(slot) + PAGE as u64;
                place(slot) <= end + BETWEEN * PAGE as u64 && after - begin <= (STRETCH * PAGE) as u64
            };
            let mut run = Vec::new();
            while let Some((&slot, record)) = rest.next_if(|next| together(*next.0, end)) {
                end = place(slot) + PAGE as u64;
                run.push((slot, record));
            }
            let pages = &mut buffer[..(end - begin) as usize];
            self.file.read(begin, &mut [IoSliceMut::new(pages)])?;
            for (slot, record) in run {
                let at = (place(slot) - begin) as usize + slot as usize % RECORDS * RECORD_BYTES;
                let bytes = record.map_or([0; RECORD_BYTES], |r| r.encode(slot));
                pages[at..at + RECORD_BYTES].copy_from_slice(&bytes);
            }
            self.file.write(begin, &[IoSlice::new(pages)])?;
        }
        self.file.sync()
    }

    /// Whether it can be written to, by trying: a header is written.
    pub fn probe(&mut self) -> io::Result<()> {
        self.page.fill(0);
        let Layout { block_bytes, slots, segment_slots } = self.layout;
        let fields = [FORM, self.life, block_bytes as u64, slots.into(), segment_slots.into()];
        for (at, field) in fields.into_iter().enumerate() {
            self.page[at * 8..at * 8 + 8].copy_from_slice(&field.to_le_bytes());
        }
        let sum = XxHash3_64::oneshot(&self.page[..40]);
        self.page[40..48].copy_from_slice(&sum.to_le_bytes());
        self.file.write(self.life % HEADERS * PAGE as u64, &[IoSlice::new(&self.page)])?;
        self.file.sync()
    }
}

/// Where the page with a slot is.
fn place(slot: u32) -> u64 {
    (HEADERS + u64::from(slot) / RECORDS as u64) * PAGE as u64
}

fn decode_header(page: &[u8]) -> Option<(u64, Layout)> {
    if u64_at(page, 0) != FORM || u64_at(page, 40) != XxHash3_64::oneshot(&page[..40]) {
        return None;
    }
    let layout = Layout {
        block_bytes: u64_at(page, 16) as usize,
        slots: u64_at(page, 24) as u32,
        segment_slots: u64_at(page, 32) as u32,
    };
    Some((u64_at(page, 8), layout))
}
