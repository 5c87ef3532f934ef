//! When may a change be answered? Once it is written, together with all that came meanwhile.
//!
//! Changes are handed over under the lock of the book, so their order is its order. One thread
//! writes whatever has come since it wrote last; of several changes of one transfer only the last
//! matters, which bounds what waits while the disk is slow.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustc_hash::FxHashMap;
use tokio::sync::watch;
use tracing::{error, info};

use super::{Store, StoreError};
use crate::transfer::ledger::book::Write;
use crate::transfer::ledger::record::{Millis, TransferId};

/// How long to wait after a write that failed, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Stands for all changes handed over so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Writes changes.
pub struct Committer {
    shared: Arc<Shared>,
    written: watch::Receiver<Ticket>,
    /// `None` = there is no store, and everything counts as written.
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Default)]
struct Waiting {
    writes: FxHashMap<TransferId, Write>,
    clock: Millis,
    last: Ticket,
    stop: bool,
}

/// A change that could not be written in time. It may still be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ledger cannot be written now, ask again")]
pub struct NotWritten;

impl Committer {
    /// Writes to `store` from now on; without one, nothing is ever waited for.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn start(store: Option<Box<dyn Store>>) -> std::io::Result<Committer> {
        let shared = Arc::new(Shared::default());
        let (told, written) = watch::channel(Ticket::default());
        let thread = match store {
            None => None,
            Some(store) => {
                let shared = Arc::clone(&shared);
                let run = move || run(&shared, store, &told);
                Some(thread::Builder::new().name("kvd-ledger".to_owned()).spawn(run)?)
            }
        };
        Ok(Committer { shared, written, thread })
    }

    /// Hands `writes` over. To be called under the lock of the book that they come from.
    pub fn hand_over(&self, writes: Vec<Write>, clock: Millis) -> Ticket {
        let mut waiting = self.shared.waiting.lock();
        if writes.is_empty() || self.thread.is_none() {
            return waiting.last;
        }
        waiting.last.0 += 1;
        waiting.clock = clock;
        for write in writes {
            let id = match &write {
                Write::Put(record) => record.id,
                Write::Delete(id) => *id,
            };
            waiting.writes.insert(id, write);
        }
        self.shared.wake.notify_one();
        waiting.last
    }

    /// Waits until everything that `ticket` stands for is written.
    ///
    /// # Errors
    /// If that takes longer than `patience`.
    pub async fn written(&self, ticket: Ticket, patience: Duration) -> Result<(), NotWritten> {
        if self.thread.is_none() {
            return Ok(());
        }
        let mut written = self.written.clone();
        let waited = tokio::time::timeout(patience, written.wait_for(|t| *t >= ticket)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(NotWritten),
        }
    }

    /// Writes what waits, and ends.
    pub fn stop(&mut self) {
        self.shared.waiting.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(shared: &Shared, mut store: Box<dyn Store>, told: &watch::Sender<Ticket>) {
    loop {
        let (writes, clock, ticket, stop) = {
            let mut waiting = shared.waiting.lock();
            while waiting.writes.is_empty() && !waiting.stop {
                shared.wake.wait(&mut waiting);
            }
            let writes: Vec<Write> = std::mem::take(&mut waiting.writes).into_values().collect();
            (writes, waiting.clock, waiting.last, waiting.stop)
        };
        if !writes.is_empty() && !insist(shared, store.as_mut(), &writes, clock) {
            return;
        }
        told.send_replace(ticket);
        if stop {
            return;
        }
    }
}

/// Writes until it is written; false where it was told to stop first.
fn insist(shared: &Shared, store: &mut dyn Store, writes: &[Write], clock: Millis) -> bool {
    let (mut pause, longest) = RETRY;
    let mut failed = false;
    loop {
        match store.write(writes, clock) {
            Ok(()) => {
                if failed {
                    info!("the ledger of transfers is written again");
                }
                return true;
            }
            Err(StoreError::Closed) => return false,
            Err(reason) => {
                if !failed {
                    error!(%reason, "the ledger of transfers cannot be written, trying again");
                }
                failed = true;
            }
        }
        let mut waiting = shared.waiting.lock();
        if waiting.stop {
            return false;
        }
        shared.wake.wait_for(&mut waiting, pause);
        pause = (pause * 2).min(longest);
    }
}
