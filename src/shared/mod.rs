//! The index that replicas share on Valkey, beside this replica's own.
//!
//! ```text
//! lane ─▶ Feed ─▶ track (one task per publisher) ─▶ kvindex_valkey::Writer ─▶ servers
//! ask  ─▶ Mirror::query ◀──────────────────────────────────────────────────── servers
//! ```
//!
//! Every replica follows every publisher, and one of them, who has the publisher's lease, writes. The others
//! keep what was told lately (`backlog`) and go on where it left off.

mod backlog;
mod track;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use kvindex::remote::{Change, changes};
use kvindex::{HolderId, HolderSpec, Query};
use kvindex_valkey::{Asked, Config, QueryError, Shared, Standing, Vouched};
use kvproto::{Batch, SeqHash};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::ingest::Publishers;
use crate::publisher::{Freshness, PublisherState};
use backlog::Told;

/// Batches on their way from a lane to its task.
const ON_THE_WAY: usize = 4096;

/// What a track is told.
enum Word {
    /// A batch.
    Batch(Told),
    /// What follows goes on after this batch, which a snapshot had.
    After(u64, Option<f64>),
    /// All before is to be forgotten.
    Clear,
    /// No more of this publisher: take it out.
    Retire,
    /// No more: let another write on.
    Release,
}

/// Who writes one publisher, and how to tell it something.
type Tracked = (mpsc::Sender<Word>, JoinHandle<()>);

/// The shared index and who is written there.
pub struct Mirror {
    shared: Arc<Shared>,
    runtime: Handle,
    /// This process's name on leases.
    owner: String,
    /// Whether questions are answered from there.
    pub answers: bool,
    tracks: Mutex<HashMap<HolderId, Tracked>>,
    publishers: Arc<OnceLock<Weak<Publishers>>>,
    /// Counters.
    pub counts: Arc<Counts>,
}

/// What the mirror did.
#[derive(Debug, Default)]
pub struct Counts {
    /// Commits.
    pub commits: AtomicU64,
    /// Commits and claims that failed.
    pub failures: AtomicU64,
    /// Publishers that were cleared because what was told in between was not known any more.
    pub breaks: AtomicU64,
    /// Publishers that this replica writes.
    pub owned: AtomicU64,
    /// Routings told to the servers, or taken back there.
    pub routings: AtomicU64,
    /// Those that the servers did not take.
    pub routings_failed: AtomicU64,
}

impl Mirror {
    /// Connects. `owner` must be this process's alone.
    ///
    /// # Errors
    /// Where no server can be reached.
    pub async fn start(config: Config, answers: bool, owner: String) -> anyhow::Result<Arc<Mirror>> {
        let shared = Shared::connect(config).await?;
        Ok(Arc::new(Mirror {
            shared: Arc::new(shared),
            runtime: Handle::current(),
            owner,
            answers,
            tracks: Mutex::default(),
            publishers: Arc::default(),
            counts: Arc::default(),
        }))
    }

    /// Who knows how far publishers are followed.
    pub fn ask_health_of(&self, publishers: &Arc<Publishers>) {
        let _ = self.publishers.set(Arc::downgrade(publishers));
    }

    /// Begins to write a publisher; what it tells goes into the feed. `None` for what is not kept there.
    pub fn follow(&self, holder: HolderId, spec: &HolderSpec) -> Option<Feed> {
        if let Err(e) = self.shared.attach_as(holder, spec.clone()) {
            warn!(instance = spec.instance, error = %e, "not kept in the shared index");
            return None;
        }
        let (tell, told) = mpsc::channel(ON_THE_WAY);
        let lost = Arc::new(AtomicBool::new(false));
        let track = track::Track {
            shared: Arc::clone(&self.shared),
            holder,
            owner: self.owner.clone(),
            publishers: Arc::clone(&self.publishers),
            lost: Arc::clone(&lost),
            counts: Arc::clone(&self.counts),
        };
        let task = self.runtime.spawn(track.run(told));
        self.tracks.lock().insert(holder, (tell.clone(), task));
        Some(Feed { tell, spec: Arc::new(spec.clone()), pending: Vec::new(), lost })
    }

    /// Takes a publisher out, if this replica writes it.
    pub fn leave(&self, holder: HolderId) {
        self.shared.detach(holder);
        if let Some((tell, _)) = self.tracks.lock().remove(&holder) {
            self.runtime.spawn(async move { tell.send(Word::Retire).await });
        }
    }

    /// Lets others write on from here; waits for that, but not long.
    pub async fn stop(&self) {
        let tracks: Vec<_> = self.tracks.lock().drain().collect();
        let ends = tracks.into_iter().map(|(_, (tell, task))| async move {
            if tell.send(Word::Release).await.is_ok() {
                let _ = task.await;
            }
        });
        let all = futures::future::join_all(ends);
        if tokio::time::timeout(Duration::from_secs(3), all).await.is_err() {
            warn!("some leases of the shared index run out by themselves");
        }
    }

    /// Tells all who share the index what a request will store where it was routed. Blocks, as
    /// [`query`](Self::query). What the servers do not take counts for this replica's questions alone.
    pub fn announce(&self, request: &str, blocks: &[(HolderId, Vec<SeqHash>)], ttl: Duration) {
        let announced = self.wait(self.shared.announce(request, blocks, ttl));
        self.count_routing(announced.map(drop));
    }

    /// Takes a routing back for all. Blocks. False where there was none, or where the servers do not say.
    pub fn forget(&self, request: &str) -> bool {
        let forgotten = self.wait(self.shared.forget(request));
        let known = *forgotten.as_ref().unwrap_or(&false);
        self.count_routing(forgotten.map(drop));
        known
    }

    fn count_routing(&self, written: Result<(), impl std::fmt::Display>) {
        match written {
            Ok(()) => self.counts.routings.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                debug!(%error, "a routing is not on the servers");
                self.counts.routings_failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }

    fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        tokio::task::block_in_place(|| self.runtime.block_on(what))
    }

    /// Answers from the servers. Blocks; on a thread of a runtime of several.
    ///
    /// # Errors
    /// For questions that are not answered from there, or where no server answers.
    pub fn query(&self, query: &Query<'_>) -> Result<Asked, QueryError> {
        self.wait(self.shared.query(query))
    }
}

/// How far a score can be trusted, in the words of one that this replica follows itself.
pub fn freshness(vouched: &Vouched) -> Freshness {
    let state = match vouched.standing {
        Standing::Live if vouched.complete => PublisherState::Live,
        Standing::Live => PublisherState::Partial,
        Standing::Behind => PublisherState::Replaying,
        Standing::Unowned | Standing::Unproven | Standing::Unreachable => PublisherState::Unreachable,
        Standing::Nothing => PublisherState::Connecting,
    };
    let last_seq = vouched.cursor.seq;
    Freshness { state, complete: vouched.complete, last_seq, last_message: None, oldest_queued: None }
}

/// One publisher's way into the shared index.
pub struct Feed {
    tell: mpsc::Sender<Word>,
    spec: Arc<HolderSpec>,
    pending: Vec<Change>,
    lost: Arc<AtomicBool>,
}

impl Feed {
    /// A batch was applied.
    pub fn apply(&mut self, batch: &Batch<'_>) {
        self.pending.extend(changes(&self.spec, batch));
    }

    /// All that batch `seq` told was applied.
    pub fn applied(&mut self, seq: u64, ts: f64) {
        let changes = std::mem::take(&mut self.pending);
        self.say(Word::Batch(Told { changes, seq, ts }));
    }

    /// What follows goes on after batch `seq`: what was before came from a snapshot.
    pub fn begin_after(&mut self, seq: u64, ts: Option<f64>) {
        self.say(Word::After(seq, ts));
    }

    /// All before is to be forgotten.
    pub fn clear(&mut self) {
        self.pending.clear();
        self.say(Word::Clear);
    }

    /// The lane never waits for the servers: what finds no room is lost, and that is made good.
    fn say(&self, word: Word) {
        if self.tell.try_send(word).is_err() {
            self.lost.store(true, Ordering::Release);
        }
    }
}
