//! How does a question reach the index, and what does its answer say?
//!
//! ```text
//! grpc/ ─┐                        ┌─ kvindex::Index      who holds what
//!        ├─▶ ask::Service::ask ──▶┤
//! http/ ─┘                        └─ ingest::Publishers  how fresh that is
//! ```
//!
//! [`ask`] holds what both transports share: a question is checked (see [`check`]),
//! candidates and freshness are joined to the scores. [`grpc`] and [`http`] only
//! translate. [`transfer`] does the same for transfers. [`routing`] keeps what schedulers announced and when
//! that ends, [`outcome`] compares what they report with what they were told.

pub mod ask;
pub mod check;
pub mod counters;
pub mod diagnose;
pub mod endpoint;
pub mod grpc;
pub mod http;
pub mod outcome;
pub mod prompt;
pub mod registering;
pub mod routing;
pub mod score_tokens;
pub mod status;
pub mod transfer;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kvindex::{Index, TierWeights};
use parking_lot::Mutex;
use tokio::sync::watch;

pub use ask::{AskError, Asked, HolderView};
pub use counters::{Counters, Histogram};
pub use registering::Told;

use crate::discovery::{Discovery, DiscoveryConfig};
use crate::guard::{Dialer, Guard};
use crate::hints::Hints;
use crate::ingest::Publishers;
use crate::peers::{Peers, PeersConfig};
use crate::shared::Mirror;
use crate::snapshot::Runner;
use crate::traces::Traces;
use crate::traffic::Traffic;
use crate::warmup::{Known, Stage};
use outcome::Outcomes;
use routing::RoutingClock;
use score_tokens::ScoreTokens;
use transfer::Transfers;

/// The tenant of requests and registrations that name none.
pub const DEFAULT_TENANT: &str = "default";

/// How long warming up is waited for unless it is set.
pub const WARMUP_LIMIT: Duration = Duration::from_secs(30);

/// Everything that answering takes; one per process, shared by all transports.
pub struct Service {
    /// Who holds what.
    pub index: Arc<Index>,
    /// Who is followed.
    pub publishers: Arc<Publishers>,
    /// What a request may ask for.
    pub limits: Limits,
    /// Weights of the tiers where a request gives none.
    pub weights: TierWeights,
    /// What was asked so far.
    pub counters: Counters,
    /// What was asked lately.
    pub traffic: Traffic,
    /// Tells collectors of questions; `None` = nobody is told.
    pub traces: Option<Traces>,
    /// When the process began to serve; uptime and routing deadlines count from here.
    pub started: Instant,
    /// Prompts that a `score_token` stands for.
    pub(crate) score_tokens: ScoreTokens,
    /// Wakes the task that ends announced routings.
    pub(crate) routing: RoutingClock,
    /// What nodes are told that requests were routed to.
    pub hints: Hints,
    /// Who coordinates transfers; `None` = nobody does.
    pub(crate) transfers: Option<Arc<Transfers>>,
    /// The index that replicas share, where there is one.
    pub mirror: Option<Arc<Mirror>>,
    /// The other replicas.
    pub peers: Peers,
    /// How nodes' tiers are reached.
    pub tiers: Dialer,
    /// Who may ask.
    pub guard: Arc<Guard>,
    /// What is discovered.
    pub discovery: Arc<Discovery>,
    /// What was known before the start, and how it came back.
    pub restored: OnceLock<Restored>,
    /// Writes down what the index holds, where there is a data directory.
    pub snapshots: OnceLock<Runner>,
    /// How long warming up is waited for.
    pub warmup_limit: Duration,
    stage: Mutex<Stage>,
    /// What was said and waits for its outcome.
    pub(crate) outcomes: Outcomes,
    ready: watch::Sender<bool>,
}

/// Where what was known before the start came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// "snapshot", "peer ADDRESS" or "nothing".
    pub from: String,
    /// Publishers that go on from there.
    pub publishers: u64,
    /// Blocks that they hold.
    pub blocks: u64,
}

/// What a request may ask for. Requests beyond a limit are refused by name, never cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of a prompt, or hashes.
    pub max_tokens: usize,
    /// Bytes of a request, either transport.
    pub max_body_bytes: usize,
    /// Candidates of one query.
    pub max_candidates: usize,
    /// Bytes of a name, salt, identifier or request id.
    pub max_text_bytes: usize,
    /// Multimodal items of a prompt.
    pub max_mm_items: usize,
    /// How long announced blocks count where the announcement does not say.
    pub speculative_ttl: Duration,
    /// The longest an announcement may ask for.
    pub max_speculative_ttl: Duration,
    /// Prompts kept for their `score_token`.
    pub max_score_tokens: usize,
    /// Bytes of all prompts kept for their `score_token`.
    pub max_score_token_bytes: usize,
    /// How long a `score_token` stands for its prompt.
    pub score_token_ttl: Duration,
    /// Answers kept until their outcome is reported; 0 = none.
    pub max_predictions: usize,
    /// Bytes of all of them, prompts included.
    pub max_prediction_bytes: usize,
    /// How long they are kept.
    pub prediction_ttl: Duration,
    /// How long a report that is not explained waits for events that may be under way.
    pub outcome_review: Duration,
    /// Requests of one `ScoreStream` that are worked on at a time.
    pub stream_concurrency: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_tokens: 1 << 20,
            max_body_bytes: 16 << 20,
            max_candidates: 4096,
            max_text_bytes: 4096,
            max_mm_items: 1024,
            speculative_ttl: Duration::from_secs(2),
            max_speculative_ttl: Duration::from_secs(60),
            max_score_tokens: 16384,
            max_score_token_bytes: 256 << 20,
            score_token_ttl: Duration::from_secs(30),
            max_predictions: 65536,
            max_prediction_bytes: 128 << 20,
            prediction_ttl: Duration::from_secs(600),
            outcome_review: Duration::from_secs(1),
            stream_concurrency: 16,
        }
    }
}

impl Service {
    /// A service that is not ready yet, see [`set_ready`](Self::set_ready).
    pub fn new(index: Arc<Index>, publishers: Arc<Publishers>, limits: Limits, weights: TierWeights) -> Self {
        Service {
            index,
            publishers,
            limits,
            weights,
            counters: Counters::default(),
            traffic: Traffic::default(),
            traces: None,
            started: Instant::now(),
            score_tokens: ScoreTokens::new(
                limits.max_score_tokens,
                limits.max_score_token_bytes,
                limits.score_token_ttl,
            ),
            routing: RoutingClock::default(),
            hints: Hints::default(),
            transfers: None,
            mirror: None,
            peers: Peers::new(PeersConfig::default(), Dialer::default()),
            tiers: Dialer::default(),
            guard: Arc::default(),
            discovery: Discovery::new(&DiscoveryConfig::default()),
            restored: OnceLock::new(),
            snapshots: OnceLock::new(),
            warmup_limit: WARMUP_LIMIT,
            stage: Mutex::new(Stage::Restoring),
            outcomes: Outcomes::new(&limits),
            ready: watch::Sender::new(false),
        }
    }

    /// Looks how far warming up has come, and is ready when it has come far enough.
    pub fn look_at_warmup(&self) -> Stage {
        let restored = self.restored.get().is_some();
        // Once schedulers may ask, a publisher registered later is no reason to send them away.
        let limit = if self.stage().is_ready() { Duration::ZERO } else { self.warmup_limit };
        let known = Known { restored, discovered: self.discovery.is_synced() };
        let stage = Stage::of(&self.publishers.list(), known, self.started.elapsed(), limit);
        *self.stage.lock() = stage;
        self.set_ready(stage.is_ready());
        stage
    }

    /// What [`look_at_warmup`](Self::look_at_warmup) saw last.
    pub fn stage(&self) -> Stage {
        *self.stage.lock()
    }

    /// Says whether schedulers should ask here: true once the registrations of the last run are
    /// followed again, false when shutting down. Readiness of both transports follows it.
    pub fn set_ready(&self, ready: bool) {
        self.ready.send_replace(ready);
    }

    /// What [`set_ready`](Self::set_ready) said last.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Changes of readiness, beginning with how it is now.
    pub fn readiness(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Milliseconds since the service began.
    pub fn uptime_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}
