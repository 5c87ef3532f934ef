//! Asking several replicas as if they were one.
//!
//! ```text
//! question ─▶ board: whom? ─▶ first replica ──────▶ answer
//!                 ▲             │ late, or failed
//!                 │             └▶ next replica ──▶ answer
//!   outcomes ─────┘ health          │ deadline
//!                                   └▶ recall ────▶ last known answer, or a guess
//! ```

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep_until;
use tonic::Code;

use super::answer::{Answer, Origin, ReplicaStats};
use super::board::{Board, Plan};
use super::hashing::{self, Domain, Hashers};
use super::recall::Recall;
use super::routing::{self, Lanes, Word};
use super::settings::ReplicaSettings;
use super::{chain, follow};
use crate::{ConnectError, HashSpecCall, RoutingCall, ScoreCall, ScoreError, ScorerClient, Scores};

/// Nothing panics while it holds one of the locks here.
pub(crate) const SOUND: &str = "no holder of the lock panics";

/// All replicas of kvd, asked as if they were one. Clones share them; the last one that is dropped ends
/// what goes on in the background.
#[derive(Clone, Debug)]
pub struct Replicas {
    shared: Arc<Shared>,
    lanes: Arc<Lanes>,
    _tasks: Arc<Tasks>,
}

/// What calls and background tasks share. Locks are held for moments, never across an `await`.
pub(crate) struct Shared {
    pub settings: ReplicaSettings,
    pub board: Mutex<Board>,
    pub recall: Mutex<Recall>,
    pub counts: Counts,
    connections: Mutex<HashMap<SocketAddr, Connection>>,
    hashers: Mutex<Hashers>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub answered: AtomicU64,
    pub hedged: AtomicU64,
    pub last_known: AtomicU64,
    pub guessed: AtomicU64,
    pub hedges: AtomicU64,
    pub told: AtomicU64,
    pub untold: AtomicU64,
    pub dropped: AtomicU64,
}

/// A connection and who watches over its health.
pub(crate) struct Connection {
    pub client: ScorerClient,
    pub watch: JoinHandle<()>,
}

#[derive(Debug)]
struct Tasks {
    shared: Arc<Shared>,
    running: Vec<JoinHandle<()>>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.running.iter().for_each(JoinHandle::abort);
        self.shared.connections.lock().expect(SOUND).drain().for_each(|(_, c)| c.watch.abort());
    }
}

/// What came of asking one replica.
type Outcome = (SocketAddr, Result<Scores, ScoreError>);

impl Replicas {
    /// Resolves the names once and begins to watch over what is there. There need not be anything yet:
    /// names are resolved again, replicas dialled again, and until then answers are guesses. Must be
    /// called within a tokio runtime with timers and I/O.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] where a place makes no sense.
    pub async fn start(settings: ReplicaSettings) -> Result<Replicas, ConnectError> {
        let places = settings.parsed()?;
        let shared = Arc::new(Shared {
            board: Mutex::new(Board::new(settings.breaker, settings.hedge, settings.deadline)),
            recall: Mutex::new(Recall::new(settings.recall())),
            counts: Counts::default(),
            connections: Mutex::default(),
            hashers: Mutex::default(),
            settings,
        });
        let follow = follow::start(&shared, places).await;
        let (lanes, mut running) = Lanes::start(&shared);
        running.push(follow);
        let tasks = Arc::new(Tasks { shared: Arc::clone(&shared), running });
        Ok(Replicas { shared, lanes: Arc::new(lanes), _tasks: tasks })
    }

    /// How much of a prompt every candidate holds. Never an error: where no replica answers in time, the
    /// answer is the last known one or a guess, and says so.
    ///
    /// Score tokens belong to the replica that gave them: here prompts are given in full.
    pub async fn score(&self, call: ScoreCall) -> Answer {
        let deadline = Instant::now() + self.shared.settings.patience();
        let call = self.with_settings(call);
        let sent = self.hashed(&call).unwrap_or_else(|| call.clone());
        match self.ask(sent, deadline).await {
            Ok((replica, hedged, scores)) => {
                let counts = &self.shared.counts;
                counts.answered.fetch_add(1, Relaxed);
                counts.hedged.fetch_add(u64::from(hedged), Relaxed);
                if self.shared.settings.hash_here && !scores.block_size_mismatch.is_empty() {
                    let domain = hashing::domain(&call.wire);
                    self.shared.hashers.lock().expect(SOUND).forget(&domain);
                }
                let scores = Arc::new(scores);
                let name = chain::question(&call.wire);
                self.recall(|r| r.answered(name, Arc::clone(&scores), Instant::now()));
                Answer { scores, origin: Origin::Kvd { replica, hedged } }
            }
            Err(why) => self.remembered(&call, why),
        }
    }

    /// Notes where a request went, for kvd and for guesses. Returns at once; false where too many wait
    /// already, and this one is dropped.
    pub fn record_routing(&self, call: RoutingCall) -> bool {
        self.tell(Word::Routed(Box::new(routing::with_ttl(call, self.shared.settings.routing_ttl))))
    }

    /// Takes back what [`record_routing`](Self::record_routing) noted, for kvd. Returns at once.
    pub fn forget_routing(&self, request_id: impl Into<String>) -> bool {
        self.tell(Word::Forget(request_id.into()))
    }

    /// One replica, for what must go to just that one: the outcome of a request goes to the replica that
    /// answered about it ([`Origin::Kvd`]).
    pub fn replica(&self, address: SocketAddr) -> Option<ScorerClient> {
        self.shared.client(address)
    }

    /// What has been done so far, and how the replicas are.
    pub fn stats(&self) -> ReplicaStats {
        let c = &self.shared.counts;
        ReplicaStats {
            answered: c.answered.load(Relaxed),
            hedged: c.hedged.load(Relaxed),
            last_known: c.last_known.load(Relaxed),
            guessed: c.guessed.load(Relaxed),
            hedges: c.hedges.load(Relaxed),
            routings_told: c.told.load(Relaxed),
            routings_failed: c.untold.load(Relaxed),
            routings_dropped: c.dropped.load(Relaxed),
            replicas: self.shared.board.lock().expect(SOUND).status(),
        }
    }

    fn tell(&self, word: Word) -> bool {
        let there_was_room = self.lanes.tell(word);
        self.shared.counts.dropped.fetch_add(u64::from(!there_was_room), Relaxed);
        there_was_room
    }

    /// The first answer of any replica, who gave it, and whether it was asked second.
    async fn ask(
        &self,
        call: ScoreCall,
        deadline: Instant,
    ) -> Result<(SocketAddr, bool, Scores), ScoreError> {
        let Plan { order, hedge_after } = self.shared.board.lock().expect(SOUND).plan(Instant::now());
        let (first, mut left) = (order.first().copied(), order.into_iter());
        let (tell, mut outcomes) = mpsc::unbounded_channel();
        let mut why = ScoreError::Unavailable { message: "no replica is known to answer".to_owned() };
        let mut open = usize::from(self.attempt(left.next(), &call, &tell));
        let mut hedge_at = hedge_after.map(|after| Instant::now() + after).filter(|at| *at < deadline);
        while open > 0 {
            let hedge = async {
                match hedge_at {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some((address, result)) = outcomes.recv() => match result {
                    Ok(scores) => return Ok((address, Some(address) != first, scores)),
                    Err(error) => {
                        open -= 1;
                        // What makes no sense to one replica makes none to another.
                        if is_about_the_question(&error) {
                            return Err(error);
                        }
                        why = error;
                        open += usize::from(self.attempt(left.next(), &call, &tell));
                    }
                },
                () = sleep_until(deadline.into()) => {
                    return Err(ScoreError::Deadline { after: self.shared.settings.deadline });
                }
                () = hedge => {
                    hedge_at = None;
                    if left.len() > 0 && self.shared.board.lock().expect(SOUND).may_hedge() {
                        self.shared.counts.hedges.fetch_add(1, Relaxed);
                        open += usize::from(self.attempt(left.next(), &call, &tell));
                    }
                }
            }
        }
        Err(why)
    }

    /// Asks one replica, in a task of its own: it goes on to its own deadline whoever answers first, so
    /// that the board learns whether this replica would have answered. False where there is none to ask.
    fn attempt(
        &self,
        address: Option<SocketAddr>,
        call: &ScoreCall,
        tell: &mpsc::UnboundedSender<Outcome>,
    ) -> bool {
        let Some((address, client)) = address.and_then(|a| Some((a, self.shared.client(a)?))) else {
            return false;
        };
        self.shared.board.lock().expect(SOUND).asked(address);
        let (shared, call, tell) = (Arc::clone(&self.shared), call.clone(), tell.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            let result = client.score(call).await;
            shared.outcome(address, began, result.as_ref().err());
            // Nobody listens any more where another was faster.
            let _ = tell.send((address, result));
        });
        true
    }

    fn remembered(&self, call: &ScoreCall, why: ScoreError) -> Answer {
        let name = chain::question(&call.wire);
        if let Some((age, scores)) = self.recall(|r| r.last(name, Instant::now())) {
            self.shared.counts.last_known.fetch_add(1, Relaxed);
            return Answer { scores, origin: Origin::LastKnown { age, why } };
        }
        self.shared.counts.guessed.fetch_add(1, Relaxed);
        Answer { scores: Arc::new(self.recall(|r| r.guess(&call.wire))), origin: Origin::Guess { why } }
    }

    fn recall<T>(&self, look: impl FnOnce(&mut Recall) -> T) -> T {
        look(&mut self.shared.recall.lock().expect(SOUND))
    }

    /// What the settings say and the call leaves open.
    fn with_settings(&self, mut call: ScoreCall) -> ScoreCall {
        let s = &self.shared.settings;
        if call.wire.block_size == 0 {
            call.wire.block_size = s.block_size;
        }
        let asked = call.wire.options.clone().unwrap_or_default();
        if asked.max_blocks == 0 && s.max_blocks > 0 {
            call = call.max_blocks(s.max_blocks);
        }
        if asked.tier_weights.is_empty() {
            call = s.tier_weights.iter().fold(call, |call, (tier, weight)| call.tier_weight(*tier, *weight));
        }
        if s.speculative { call.speculative() } else { call }
    }

    /// The call by hashes, where that is wanted and known how.
    fn hashed(&self, call: &ScoreCall) -> Option<ScoreCall> {
        if !self.shared.settings.hash_here {
            return None;
        }
        let domain = hashing::domain(&call.wire);
        let advice = self.shared.hashers.lock().expect(SOUND).advice(&domain, Instant::now());
        if advice.ask {
            tokio::spawn(learn_spec(Arc::clone(&self.shared), domain));
        }
        Some(ScoreCall { wire: hashing::hashed(&call.wire, &advice.hasher?)? })
    }
}

impl Shared {
    pub(crate) fn client(&self, address: SocketAddr) -> Option<ScorerClient> {
        self.connections.lock().expect(SOUND).get(&address).map(|c| c.client.clone())
    }

    pub(crate) fn connections(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Connection>> {
        self.connections.lock().expect(SOUND)
    }

    fn outcome(&self, address: SocketAddr, began: Instant, error: Option<&ScoreError>) {
        let now = Instant::now();
        let mut board = self.board.lock().expect(SOUND);
        // Who refuses a question is there, and was in time.
        if error.is_none_or(is_about_the_question) {
            board.answered(address, now - began, now);
        } else {
            board.failed(address, now);
        }
    }
}

/// Whether it is the question that is wrong, rather than the replica.
fn is_about_the_question(error: &ScoreError) -> bool {
    match error {
        ScoreError::InvalidArgument { .. } => true,
        ScoreError::Refused { code, .. } => {
            matches!(code, Code::FailedPrecondition | Code::NotFound | Code::OutOfRange)
        }
        ScoreError::Deadline { .. } | ScoreError::Unavailable { .. } => false,
    }
}

/// Asks how prompts of a domain are hashed.
async fn learn_spec(shared: Arc<Shared>, domain: Domain) {
    let order = shared.board.lock().expect(SOUND).order(Instant::now());
    let call = HashSpecCall::new(&domain.model).tenant(&domain.tenant).lora(&domain.lora);
    let mut spec = None;
    if let Some(client) = order.first().and_then(|address| shared.client(*address)) {
        spec = client.with_deadline(shared.settings.connect_timeout).hash_spec(call).await.ok();
    }
    shared.hashers.lock().expect(SOUND).learnt(&domain, spec.as_ref(), Instant::now());
}
