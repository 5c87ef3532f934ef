//! Writes what all publishers hold, each as of its own position.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kvindex::Index;
use kvindex::snapshot::{Cursor, CutError, Totals, Writer};

use super::label::Label;
use crate::ingest::{Lane, Position, Publishers};
use crate::publisher::{Origin, PublisherKey};

/// Bytes that are cut at a time.
const STEP: usize = 256 << 10;

/// How hard writing goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as it can.
    Hurried,
    /// Rests between two publishers this many times as long as the one before took, so that ingest and
    /// queries have the processor.
    Leisurely(u32),
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// Publishers in it, and up to where.
    pub publishers: Vec<(PublisherKey, Position)>,
    /// What the snapshot says of itself.
    pub totals: Totals,
    /// How many bytes it has.
    pub bytes: u64,
    /// The longest time that a publisher's batches had to wait for it.
    pub longest_pause: Duration,
}

/// A snapshot that was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The bytes could not be put where they belong.
    #[error("write: {0}")]
    Io(#[from] io::Error),
    /// The index gave none.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// Somebody asked to stop.
    #[error("given up because kvd stops")]
    Stopped,
}

/// Writes everyone who has begun. `go_on` is asked between two publishers.
///
/// # Errors
/// If `out` takes no bytes, or `go_on` says no.
pub fn write(
    publishers: &Publishers,
    index: &Arc<Index>,
    out: &mut dyn Write,
    pace: Pace,
    mut go_on: impl FnMut() -> bool,
) -> Result<Written, WriteError> {
    let mut writer = Writer::new(Arc::clone(index));
    let mut to = Out { out, buffer: Vec::with_capacity(2 * STEP), bytes: 0 };
    let mut written = Written::default();
    for lane in publishers.lanes() {
        if !go_on() {
            return Err(WriteError::Stopped);
        }
        let began = Instant::now();
        let origin = publishers.origin_of(&lane);
        let position = one(&mut writer, &lane, origin, &mut to)?;
        written.publishers.extend(position.map(|p| (lane.spec.key(), p)));
        let took = began.elapsed();
        written.longest_pause = written.longest_pause.max(took);
        to.flush()?;
        if let Pace::Leisurely(times) = pace {
            thread::sleep(took * times);
        }
    }
    // What nobody holds, but a lower tier may still name.
    writer.begin_ghosts()?;
    while writer.step(STEP, &mut to.buffer)?.is_more() {
        to.flush()?;
    }
    written.totals = writer.finish(&mut to.buffer)?;
    to.flush()?;
    written.bytes = to.bytes;
    Ok(written)
}

/// Writes one publisher, which holds still meanwhile. `None` where there is nothing of it to write.
fn one(
    writer: &mut Writer,
    lane: &Arc<Lane>,
    origin: Origin,
    to: &mut Out<'_>,
) -> Result<Option<Position>, WriteError> {
    let still = lane.hold_still();
    let Some(position) = still.position() else { return Ok(None) };
    let cursor = Cursor { seq: position.seq, ts: position.ts.unwrap_or_default() };
    let label = Label { spec: lane.spec.clone(), origin, position }.to_bytes();
    match writer.begin(lane.holder, &label, cursor) {
        Ok(()) => {}
        // Unregistered since it was listed.
        Err(CutError::Gone(_)) => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    loop {
        match writer.step(STEP, &mut to.buffer) {
            Ok(step) if step.is_more() => to.flush()?,
            Ok(_) => return Ok(Some(position)),
            Err(CutError::Gone(_)) => {
                writer.abandon();
                return Ok(None);
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Where bytes go, counted.
struct Out<'o> {
    out: &'o mut dyn Write,
    buffer: Vec<u8>,
    bytes: u64,
}

impl Out<'_> {
    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}
