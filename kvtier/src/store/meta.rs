//! Which block is in which slot, as it is written down: a table, and a journal of what changed since.
//!
//! ```text
//!   commit ──▶ journal ──(full)──▶ table        open: table, then what the journal says
//! ```
//!
//! It need not be right: a record whose payload is not there any more does not verify and is a
//! miss. It must not lose what it has committed. Hence the table is synced before the journal begins
//! again; until then, all of it counts, and to apply it once more changes nothing.

use std::collections::BTreeMap;
use std::io;

use super::journal::{Change, Journal};
use super::medium::Medium;
use super::record::Record;
use super::table::{Records, Table};
use super::{LIFE_SHIFT, Layout, OpenError};

/// See the module.
#[derive(Debug)]
pub(super) struct Meta {
    table: Table,
    journal: Journal,
}

impl Meta {
    /// Opens what is there, or begins anew. Gives all records away, by slot, in order, as they are read.
    pub fn open(
        medium: &dyn Medium,
        layout: Layout,
        mut each: impl FnMut(Records),
    ) -> Result<Meta, OpenError> {
        let io = |what| move |source| OpenError::Io { what, source };
        let (mut table, is_new) = Table::open(medium, layout)?;
        let mut journal = Journal::open(medium, layout.slots).map_err(io("open the journal"))?;
        if is_new {
            journal.clear().map_err(io("clear the journal"))?;
        }
        let latest: BTreeMap<u32, Option<Record>> =
            journal.read().map_err(io("read the journal"))?.into_iter().collect();
        let mut last = None;
        let read = table.load(|slots, mut records| {
            let mut newer = latest.range(slots).peekable();
            if newer.peek().is_some() {
                records.retain(|(slot, _)| !latest.contains_key(slot));
                records.extend(newer.filter_map(|(slot, record)| Some((*slot, (*record)?))));
                records.sort_unstable_by_key(|record| record.0);
            }
            last = last.max(records.iter().map(|(_, record)| record.generation >> LIFE_SHIFT).max());
            each(records);
        });
        read.map_err(io("read the table"))?;
        last.into_iter().for_each(|last| table.live_after(last));
        table.probe().map_err(io("write the table's header"))?;
        Ok(Meta { table, journal })
    }

    /// How often the store has been opened, this time included.
    pub fn life(&self) -> u64 {
        self.table.life()
    }

    /// Writes changes down; when it returns they cannot be lost any more. After an error any of
    /// them may be written.
    pub fn commit(&mut self, changes: &[Change]) -> io::Result<()> {
        if self.journal.has_room(changes.len()) {
            return self.journal.append(changes);
        }
        let mut latest: BTreeMap<u32, Option<Record>> = self.journal.read()?.into_iter().collect();
        latest.extend(changes.iter().copied());
        self.table.apply(&latest)?;
        self.journal.restart()
    }

    /// Whether it can be written to, by trying.
    pub fn probe(&mut self) -> io::Result<()> {
        self.table.probe()?;
        self.journal.probe()
    }
}
