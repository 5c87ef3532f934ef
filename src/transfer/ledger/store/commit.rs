//! When may a change be answered? Once it is written, together with all that came meanwhile.
//!
//! Changes are handed over under the lock of the book, so their order is its order. One thread
//! writes whatever has come since it wrote last; of several changes of one transfer only the last
//! matters, which bounds what waits while the store is slow.
//!
//! Where several replicas share the store, what they have of it changes: the thread stops until the book has followed
//! ([`Happened`]), so that nothing is written, or said to be written, of transfers that are another's.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::{mpsc, watch};
use tracing::{error, info};

use super::{Kept, Store, StoreError};
use crate::transfer::ledger::book::Write;
use crate::transfer::ledger::record::{Millis, TransferId};

/// How long to wait after a write that failed, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How often it is looked whether the thread is to stop, while it waits for the book.
const LOOK: Duration = Duration::from_millis(100);

/// Stands for all changes handed over so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Something that the book has to follow. The thread goes on when this is dropped.
#[derive(Debug)]
pub struct Happened {
    /// What.
    pub what: Change,
    _done: SyncSender<()>,
}

/// What this process has of a store that it shares is another than before.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// These have no other home any more.
    Taken(Kept),
    /// These have another home.
    Lost(Vec<TransferId>),
    /// Everything is to be handed over again: the store has forgotten some of it.
    Forgotten,
}

/// Writes changes.
pub struct Committer {
    shared: Arc<Shared>,
    written: watch::Receiver<Ticket>,
    /// Until when it is certain that this process is home to what the book has; `None` = for good.
    held: watch::Receiver<Option<Instant>>,
    happened: Mutex<Option<mpsc::UnboundedReceiver<Happened>>>,
    /// Whether there is a store; else everything counts as written.
    kept: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
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
        let (holds, held) = watch::channel(store.as_ref().and_then(|s| s.held_until()));
        let (tell, happened) = mpsc::unbounded_channel();
        let thread = match store {
            None => None,
            Some(store) => {
                let writer = Writer { shared: Arc::clone(&shared), store, told, holds, tell };
                Some(thread::Builder::new().name("kvd-ledger".to_owned()).spawn(move || writer.run())?)
            }
        };
        let (kept, happened) = (thread.is_some(), Mutex::new(Some(happened)));
        Ok(Committer { shared, written, held, happened, kept, thread: Mutex::new(thread) })
    }

    /// Hands `writes` over. To be called under the lock of the book that they come from.
    pub fn hand_over(&self, writes: Vec<Write>, clock: Millis) -> Ticket {
        let mut waiting = self.shared.waiting.lock();
        if writes.is_empty() || !self.kept {
            return waiting.last;
        }
        waiting.last.0 += 1;
        waiting.clock = clock;
        for write in writes {
            waiting.writes.insert(write.about(), write);
        }
        self.shared.wake.notify_one();
        waiting.last
    }

    /// Waits until everything that `ticket` stands for is written, and this process is certain to be home to it.
    ///
    /// # Errors
    /// If that takes longer than `patience`.
    pub async fn written(&self, ticket: Ticket, patience: Duration) -> Result<(), NotWritten> {
        if !self.kept {
            return Ok(());
        }
        let (mut written, mut held) = (self.written.clone(), self.held.clone());
        let both = async {
            written.wait_for(|t| *t >= ticket).await.map_err(drop)?;
            held.wait_for(|until| certain(*until)).await.map(drop).map_err(drop)
        };
        match tokio::time::timeout(patience, both).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(())) | Err(_) => Err(NotWritten),
        }
    }

    /// Whether this process is certain to be home to what the book has.
    pub fn holds(&self) -> bool {
        certain(*self.held.borrow())
    }

    /// What the book has to follow, for the one who does; a second time there is nothing.
    pub fn happenings(&self) -> Option<mpsc::UnboundedReceiver<Happened>> {
        self.happened.lock().take()
    }

    /// Writes what waits, and ends.
    pub fn stop(&self) {
        self.shared.waiting.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.lock().take() {
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

fn certain(until: Option<Instant>) -> bool {
    until.is_none_or(|until| until > Instant::now())
}

/// The thread.
struct Writer {
    shared: Arc<Shared>,
    store: Box<dyn Store>,
    told: watch::Sender<Ticket>,
    holds: watch::Sender<Option<Instant>>,
    tell: mpsc::UnboundedSender<Happened>,
}

/// What is written next.
#[derive(Default)]
struct Batch {
    writes: FxHashMap<TransferId, Write>,
    clock: Millis,
    ticket: Ticket,
}

impl Writer {
    fn run(mut self) {
        let beat = self.store.beat();
        let mut next = beat.map(|_| Instant::now());
        let mut failing = false;
        loop {
            let (mut batch, stop) = self.wait(next);
            if !batch.writes.is_empty() && !self.insist(&mut batch) {
                break;
            }
            self.told.send_replace(batch.ticket);
            if stop {
                break;
            }
            if let (Some(beat), true) = (beat, next.is_some_and(|at| at <= Instant::now())) {
                next = Some(Instant::now() + beat);
                failing = self.keep(batch.clock, failing);
            }
        }
        self.store.leave();
    }

    /// Waits for something to write, the time to keep what is held, or the end.
    fn wait(&self, keep_at: Option<Instant>) -> (Batch, bool) {
        let mut waiting = self.shared.waiting.lock();
        while waiting.writes.is_empty() && !waiting.stop {
            match keep_at {
                None => self.shared.wake.wait(&mut waiting),
                Some(at) if self.shared.wake.wait_until(&mut waiting, at).timed_out() => break,
                Some(_) => {}
            }
        }
        let mut batch = Batch::default();
        batch.merge(&mut waiting);
        (batch, waiting.stop)
    }

    /// Writes until it is written; false where it was told to stop first.
    fn insist(&mut self, batch: &mut Batch) -> bool {
        let (mut pause, longest) = RETRY;
        let mut failed = false;
        loop {
            let writes: Vec<Write> = batch.writes.values().cloned().collect();
            match self.store.write(&writes, batch.clock) {
                Ok(()) => {
                    if failed {
                        info!("the ledger of transfers is written again");
                    }
                    self.holds.send_replace(self.store.held_until());
                    return true;
                }
                Err(StoreError::Closed) => return false,
                Err(StoreError::Lost(lost)) => {
                    if !self.lose(lost, batch) {
                        return false;
                    }
                    continue;
                }
                Err(StoreError::RolledBack) => {
                    if !self.follow(Change::Forgotten) {
                        return false;
                    }
                    batch.merge(&mut self.shared.waiting.lock());
                    continue;
                }
                Err(reason) => {
                    if !failed {
                        error!(%reason, "the ledger of transfers cannot be written, trying again");
                    }
                    failed = true;
                }
            }
            let mut waiting = self.shared.waiting.lock();
            if waiting.stop {
                return false;
            }
            self.shared.wake.wait_for(&mut waiting, pause);
            pause = (pause * 2).min(longest);
        }
    }

    /// Keeps what is held held, and takes over what nobody holds. Says whether that failed.
    fn keep(&mut self, clock: Millis, failing: bool) -> bool {
        match self.store.keep(clock) {
            Ok(taken) => {
                // What is taken is written by this process before it is certain to be followed by the book.
                if taken != Kept::default() && !self.follow(Change::Taken(taken)) {
                    return failing;
                }
                self.holds.send_replace(self.store.held_until());
                false
            }
            Err(StoreError::Lost(lost)) => {
                let mut batch = Batch::default();
                if self.lose(lost, &mut batch) && !batch.writes.is_empty() {
                    // What was handed over meanwhile is of what is left.
                    self.write_at_once(batch);
                }
                failing
            }
            Err(StoreError::RolledBack) => {
                let mut batch = Batch::default();
                if self.follow(Change::Forgotten) {
                    batch.merge(&mut self.shared.waiting.lock());
                    self.write_at_once(batch);
                }
                failing
            }
            Err(reason) => {
                if !failing {
                    error!(%reason, "the ledger of transfers cannot be kept, trying again");
                }
                // What was kept before that is.
                self.holds.send_replace(self.store.held_until());
                true
            }
        }
    }

    /// Writes what the book handed over while the thread waited for it.
    fn write_at_once(&mut self, mut batch: Batch) {
        if self.insist(&mut batch) {
            self.told.send_replace(batch.ticket);
        }
    }

    /// Nothing is certain until the book has let go of what was lost; nothing of that is written then.
    fn lose(&mut self, lost: Vec<TransferId>, batch: &mut Batch) -> bool {
        self.holds.send_replace(Some(Instant::now()));
        let all: FxHashSet<TransferId> = lost.iter().copied().collect();
        let followed = self.follow(Change::Lost(lost));
        batch.merge(&mut self.shared.waiting.lock());
        batch.writes.retain(|id, _| !all.contains(id));
        followed
    }

    /// Waits until the book has followed; false where the thread was told to stop first.
    fn follow(&self, what: Change) -> bool {
        let (done, followed) = sync_channel(1);
        if self.tell.send(Happened { what, _done: done }).is_err() {
            return false;
        }
        loop {
            match followed.recv_timeout(LOOK) {
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) if self.shared.waiting.lock().stop => return false,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Batch {
    /// Takes in what was handed over; of each transfer the latest holds.
    fn merge(&mut self, waiting: &mut Waiting) {
        self.writes.extend(std::mem::take(&mut waiting.writes));
        (self.clock, self.ticket) = (waiting.clock, waiting.last);
    }
}
