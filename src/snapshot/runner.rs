//! Writes snapshots now and then, and a last one at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvindex::Index;
use parking_lot::{Condvar, Mutex};
use tracing::{info, warn};

use super::files::{Files, KeepError};
use super::write::{Pace, WriteError};
use crate::ingest::Publishers;

/// A publisher's pause of one millisecond is followed by this many of rest.
const REST: u32 = 4;

/// When snapshots are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Time between two; zero = none but the last one.
    pub every: Duration,
    /// Good ones that stay.
    pub keep: usize,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule { every: Duration::from_secs(60), keep: 2 }
    }
}

/// What there is to see of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shown {
    /// Snapshots written.
    pub written: u64,
    /// Snapshots that could not be.
    pub failed: u64,
    /// Bytes of the last one.
    pub bytes: u64,
    /// Distinct blocks in it.
    pub blocks: u64,
    /// How long it took.
    pub took: Duration,
    /// How long a publisher's batches waited for it, at most.
    pub longest_pause: Duration,
    /// How long ago it was; `None` = none yet.
    pub age: Option<Duration>,
}

#[derive(Default)]
struct Last {
    shown: Shown,
    at: Option<Instant>,
}

struct Inside {
    files: Files,
    publishers: Arc<Publishers>,
    index: Arc<Index>,
    last: Mutex<Last>,
    /// Batches that had been applied when the last one was begun.
    batches: AtomicU64,
    stop: Mutex<bool>,
    stopped: Condvar,
}

/// Writes snapshots on a thread of its own.
pub struct Runner {
    inside: Arc<Inside>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Runner {
    /// Begins.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        files: Files,
        every: Duration,
        publishers: Arc<Publishers>,
        index: Arc<Index>,
    ) -> std::io::Result<Runner> {
        let inside = Arc::new(Inside {
            files,
            publishers,
            index,
            last: Mutex::default(),
            batches: AtomicU64::new(u64::MAX),
            stop: Mutex::new(false),
            stopped: Condvar::new(),
        });
        let run = Arc::clone(&inside);
        let thread = thread::Builder::new().name("kvd-snapshot".into()).spawn(move || run.run(every))?;
        Ok(Runner { inside, thread: Mutex::new(Some(thread)) })
    }

    /// The files.
    pub fn files(&self) -> &Files {
        &self.inside.files
    }

    /// Writes one now, as fast as it goes, unless nothing changed since the last.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_now(&self) -> Result<(), KeepError> {
        self.inside.write(Pace::Hurried)
    }

    /// Ends the thread and writes a last snapshot.
    pub fn finish(&self) {
        self.end_thread();
        if let Err(error) = self.write_now() {
            warn!(%error, "no last snapshot; the next start goes on from an older one");
        }
    }

    fn end_thread(&self) {
        *self.inside.stop.lock() = true;
        self.inside.stopped.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }

    /// How it is going.
    pub fn shown(&self) -> Shown {
        let last = self.inside.last.lock();
        Shown { age: last.at.map(|at| at.elapsed()), ..last.shown }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.end_thread();
    }
}

impl Inside {
    fn run(&self, every: Duration) {
        while !self.wait(every) {
            match self.write(Pace::Leisurely(REST)) {
                Ok(()) | Err(KeepError::Write(WriteError::Stopped)) => {}
                Err(error) => warn!(%error, "no snapshot"),
            }
        }
    }

    /// Waits for the next time. True where it is time to stop.
    fn wait(&self, every: Duration) -> bool {
        let mut stop = self.stop.lock();
        if every.is_zero() {
            self.stopped.wait_while(&mut stop, |stop| !*stop);
        } else {
            self.stopped.wait_while_for(&mut stop, |stop| !*stop, every);
        }
        *stop
    }

    fn write(&self, pace: Pace) -> Result<(), KeepError> {
        let batches = self.publishers.totals().batches;
        if self.batches.load(Relaxed) == batches {
            return Ok(());
        }
        let began = Instant::now();
        let go_on = || pace == Pace::Hurried || !*self.stop.lock();
        let written = self.files.write(&self.publishers, &self.index, pace, go_on);
        let mut last = self.last.lock();
        match &written {
            Ok(w) => {
                self.batches.store(batches, Relaxed);
                last.at = Some(began);
                last.shown.written += 1;
                last.shown.bytes = w.bytes;
                last.shown.blocks = w.totals.blocks;
                last.shown.took = began.elapsed();
                last.shown.longest_pause = w.longest_pause;
                let pause_ms = w.longest_pause.as_millis() as u64;
                info!(
                    publishers = w.publishers.len(),
                    blocks = w.totals.blocks,
                    bytes = w.bytes,
                    pause_ms,
                    "snapshot"
                );
            }
            Err(KeepError::Write(WriteError::Stopped)) => {}
            Err(_) => last.shown.failed += 1,
        }
        written.map(drop)
    }
}
