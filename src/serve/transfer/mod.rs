//! How are transfers planned, reported and watched?
//!
//! ```text
//! grpc/ ─┐            ┌ holdings: who has what of the prompt (kvindex)
//!        ├─▶ plan ───▶┤ Plans: what to do                      (planner)
//! http/ ─┘   report   └ Book ─▶ settle ─▶ Committer, watchers, tally
//!                        ▲
//!                     follow: time, and what the index saw of the pods
//!                     holds: what plans count on in tiers of nodes
//! ```
//!
//! Both transports speak the messages of `kv.v1.TransferService`; rules live here and in
//! [`crate::transfer`]. The book is changed under one lock, and whatever follows from a change is
//! handed on under the same lock, so that everyone hears of changes in their order.

mod adopt;
mod convert;
mod error;
pub(crate) mod export;
mod follow;
mod forward;
mod holdings;
mod holds;
mod inspect;
mod links;
mod plan;
mod pods;
mod prompts;
mod replan;
mod report;
mod sharing;
mod tally;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, broadcast};
use tracing::info;

pub(crate) use convert::{connector_name, decision_name, reason_name};
pub use error::TransferError;
pub use sharing::Sharing;
pub use tally::{Spread, Tally};
pub use watch::Watcher;

use super::Service;
use crate::guard::Dialer;
use crate::transfer::clock::Clock;
use crate::transfer::home::Replicas;
use crate::transfer::ledger::store::commit::{Committer, Ticket};
use crate::transfer::ledger::store::{Store, StoreError};
use crate::transfer::ledger::{Book, Bounds, Millis, News, Outbox, Record, State, Timers, TransferId};
use crate::transfer::plans::Plans;
use crate::transfer::token::Signer;
use crate::transfer::types::{Caps, Lesson};
use follow::Seen;
use forward::Peers;
use holds::Holds;
use pods::Pods;
use prompts::Prompts;

/// News that a watcher may be behind by before it loses some.
const WATCH_BUFFER: usize = 4096;

/// What transfers are set to.
#[derive(Clone, Debug)]
pub struct TransferConfig {
    /// Times of the state machine.
    pub timers: Timers,
    /// What no plan may exceed.
    pub caps: Caps,
    /// How much the ledger holds.
    pub bounds: Bounds,
    /// Whether a plan, too, is answered only once it is written. Without, a plan that a crash
    /// swallowed lives on in its token; what is reported is always written first.
    pub sync_plans: bool,
    /// How long a change may take to be written.
    pub write_patience: Duration,
    /// How long another replica may take to answer.
    pub forward_timeout: Duration,
    /// Bytes of prompts that are kept to notice stale plans and to plan again.
    pub prompt_bytes: usize,
    /// How often the index is asked what became of the pods.
    pub follow_every: Duration,
    /// Pods that may be described.
    pub max_pods: usize,
    /// Watchers at a time.
    pub max_watchers: usize,
    /// All replicas and which one this is.
    pub replicas: Replicas,
}

impl Default for TransferConfig {
    fn default() -> Self {
        TransferConfig {
            timers: Timers::default(),
            caps: Caps::default(),
            bounds: Bounds::default(),
            sync_plans: false,
            write_patience: Duration::from_secs(2),
            forward_timeout: Duration::from_millis(250),
            prompt_bytes: 256 << 20,
            follow_every: Duration::from_millis(100),
            max_pods: 4096,
            max_watchers: 256,
            replicas: Replicas::default(),
        }
    }
}

/// Everything that coordinating transfers takes.
pub struct Transfers {
    config: TransferConfig,
    book: Mutex<Book>,
    committer: Committer,
    clock: Clock,
    signer: Signer,
    plans: Arc<dyn Plans>,
    pods: RwLock<Pods>,
    prompts: Mutex<Prompts>,
    holds: Holds,
    seen: Mutex<Seen>,
    peers: Peers,
    /// Whom the ledger is shared with; `None` = each replica keeps its own.
    sharing: Option<Sharing>,
    news: broadcast::Sender<Arc<News>>,
    tally: Mutex<Tally>,
    /// The deadline that the keeper sleeps for may have changed.
    due: Notify,
    next_number: AtomicU64,
    numbers: std::collections::hash_map::RandomState,
}

impl Transfers {
    /// Takes up what `store` has of the last life; without one, nothing outlives the process.
    /// `key` signs plan tokens.
    ///
    /// # Errors
    /// Where the store cannot be read or the system gives no thread.
    pub fn start(
        config: TransferConfig,
        plans: Arc<dyn Plans>,
        mut store: Option<Box<dyn Store>>,
        key: &[u8],
        dialer: &Dialer,
    ) -> Result<Transfers, StoreError> {
        let kept = match &mut store {
            Some(store) => store.load()?,
            None => Default::default(),
        };
        let clock = Clock::start(kept.clock);
        let mut book = Book::new(config.timers, config.bounds, config.caps);
        let mut owned = Vec::new();
        for record in kept.records {
            if record.live() {
                owned.push((record.id, config.replicas.next_epoch(record.epoch)));
            }
            book.restore(record);
        }
        if !owned.is_empty() || kept.unreadable > 0 {
            info!(live = owned.len(), unreadable = kept.unreadable, "transfers read back");
        }
        let transfers = Transfers {
            book: Mutex::new(book),
            committer: Committer::start(store).map_err(StoreError::Thread)?,
            clock,
            signer: Signer::new(key),
            plans,
            pods: RwLock::default(),
            prompts: Mutex::new(Prompts::new(config.prompt_bytes)),
            holds: Holds::default(),
            seen: Mutex::default(),
            peers: Peers::new(&config.replicas, config.forward_timeout, dialer),
            sharing: None,
            news: broadcast::Sender::new(WATCH_BUFFER),
            tally: Mutex::default(),
            due: Notify::new(),
            next_number: AtomicU64::new(0),
            numbers: std::collections::hash_map::RandomState::new(),
            config,
        };
        let now = transfers.now();
        transfers.change(|book, out| {
            for (id, epoch) in owned {
                // A record that was just restored may be owned.
                let _ = book.apply(id, crate::transfer::ledger::Event::Owned { epoch }, now, out);
            }
            book.tick(now, out);
        });
        Ok(transfers)
    }

    /// The ledger's time.
    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    /// What was counted so far.
    pub fn tally<R>(&self, read: impl FnOnce(&Tally) -> R) -> R {
        read(&self.tally.lock())
    }

    /// Looks into the book.
    pub fn book<R>(&self, read: impl FnOnce(&Book) -> R) -> R {
        read(&self.book.lock())
    }

    /// Changes the book and hands on what follows from it. The ticket stands for everything that
    /// the book says now, also what others changed before: an answer that repeats what it says
    /// waits for that to be written, too.
    fn change<R>(&self, change: impl FnOnce(&mut Book, &mut Outbox) -> R) -> (R, Ticket) {
        let mut book = self.book.lock();
        let before = book.next_due();
        let mut out = Outbox::default();
        let done = change(&mut book, &mut out);
        let Outbox { writes, news, unstranded } = out;
        let ticket = self.committer.hand_over(writes, self.now());
        if !news.is_empty() || !unstranded.is_empty() {
            self.tell(news, unstranded);
        }
        if book.next_due() != before {
            self.due.notify_one();
        }
        (done, ticket)
    }

    fn tell(&self, news: Vec<News>, unstranded: Vec<(crate::transfer::types::Endpoint, u128)>) {
        let mut tally = self.tally.lock();
        for (pod, byte_millis) in unstranded {
            tally.unstranded(&pod, byte_millis);
        }
        for news in news {
            tally.heard(&news);
            match news.record.state {
                State::Planned | State::Prefilling | State::Ready | State::Pulling => {}
                State::Failed | State::Expired => self.prompts.lock().failed(news.record.id),
                State::Done | State::Cancelled | State::Superseded => {
                    self.prompts.lock().forget(news.record.id);
                }
            }
            // Nobody watching is no error.
            let _ = self.news.send(Arc::new(news));
        }
    }

    /// Writes what waits, and lets other replicas be home to it where there are any.
    pub fn stop(&self) {
        self.committer.stop();
    }

    /// Waits until what `ticket` stands for is written.
    async fn written(&self, ticket: Ticket) -> Result<(), TransferError> {
        Ok(self.committer.written(ticket, self.config.write_patience).await?)
    }

    fn new_id(&self, request_id: &str) -> TransferId {
        use std::hash::BuildHasher;
        let count = self.next_number.fetch_add(1, Ordering::Relaxed);
        // Keyed by the process' own randomness, so that nobody guesses another's transfer.
        TransferId::new(request_id, self.numbers.hash_one(count))
    }

    fn learn(&self, lesson: &Lesson) {
        self.plans.learn(lesson);
    }

    fn token(&self, record: &Record) -> String {
        self.signer.seal(record)
    }
}

impl Service {
    /// Coordinates transfers, too.
    pub fn with_transfers(mut self, transfers: Arc<Transfers>) -> Service {
        self.transfers = Some(transfers);
        self
    }

    /// Whoever coordinates transfers.
    ///
    /// # Errors
    /// [`TransferError::Off`] where nobody does.
    pub fn transfers(&self) -> Result<&Arc<Transfers>, TransferError> {
        self.transfers.as_ref().ok_or(TransferError::Off)
    }
}

/// Prompts of more tokens are worked on by a thread of their own.
const LONG_PROMPT: usize = 32_768;

/// Runs `work` on a prompt of `length` tokens or hashes: here if that is short.
async fn here_or_apart<T: Send + 'static>(
    length: usize,
    work: impl FnOnce() -> Result<T, TransferError> + Send + 'static,
) -> Result<T, TransferError> {
    if length <= LONG_PROMPT {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(gone) => Err(TransferError::Forwarded(tonic::Status::internal(gone.to_string()))),
    }
}
