//! Who is followed: an engine's registration and how it is doing.

use std::time::Instant;

use kvindex::HolderId;
use serde::{Deserialize, Serialize};

use crate::serve::DEFAULT_TENANT;

/// One engine (instance and data-parallel rank) and where it publishes its events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublisherSpec {
    /// Tenant; "default" where none is named.
    pub tenant_id: String,
    /// Model name.
    pub model: String,
    /// What a scheduler routes to, usually `ip:port` of the serving endpoint.
    pub instance_id: String,
    /// Data-parallel rank.
    pub dp_rank: u32,
    /// What publishes.
    pub engine: EngineType,
    /// Where to dial, `tcp://host:port`. `None` with `bind`.
    pub endpoint: Option<String>,
    /// Where to ask for what was missed.
    pub replay_endpoint: Option<String>,
    /// Block size the operator expects; the events decide, a difference is reported.
    pub block_size: Option<u32>,
    /// Adapter of events that name none.
    pub lora_name: Option<String>,
    /// The deployment's salt.
    pub additional_salt: String,
    /// Where to listen for engines that dial in, `tcp://*:port`.
    pub bind: Option<String>,
    /// The exact topic of this engine, where several share a socket.
    pub topic: Option<String>,
    /// Tokens per chunk of chunked local attention.
    pub attention_chunk_size: Option<u32>,
    /// The engine's block-hash algorithm, for models without a full-attention group.
    pub hash_algo: Option<HashAlgo>,
    /// The engine's `PYTHONHASHSEED`.
    pub hash_seed: Option<String>,
    /// The machine it runs on: with the tiers of the same node below it.
    #[serde(default)]
    pub node: Option<String>,
    /// Where it says whether it is well, `http://host:port/path`.
    #[serde(default)]
    pub health_url: Option<String>,
    /// How long the registration holds unless it is made again, seconds.
    #[serde(default)]
    pub lease_seconds: Option<u32>,
    /// Where a node's tiers answer gRPC, `host:port`.
    #[serde(default)]
    pub control_endpoint: Option<String>,
    /// Where other nodes pull from a node's tiers, `host:port`.
    #[serde(default)]
    pub pull_endpoint: Option<String>,
}

impl PublisherSpec {
    /// What is known of an engine when nothing else is said: it is neither dialled nor waited for yet.
    pub fn new(
        engine: EngineType,
        model: impl Into<String>,
        instance_id: impl Into<String>,
    ) -> PublisherSpec {
        PublisherSpec {
            tenant_id: DEFAULT_TENANT.to_owned(),
            model: model.into(),
            instance_id: instance_id.into(),
            dp_rank: 0,
            engine,
            endpoint: None,
            replay_endpoint: None,
            block_size: None,
            lora_name: None,
            additional_salt: String::new(),
            bind: None,
            topic: None,
            attention_chunk_size: None,
            hash_algo: None,
            hash_seed: None,
            node: None,
            health_url: None,
            lease_seconds: None,
            control_endpoint: None,
            pull_endpoint: None,
        }
    }
}

/// Whom a registration is of: there is one per tenant, model, instance and rank.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublisherKey {
    /// Tenant.
    pub tenant_id: String,
    /// Model name.
    pub model: String,
    /// What a scheduler routes to.
    pub instance_id: String,
    /// Data-parallel rank.
    pub dp_rank: u32,
}

/// What publishes the events, which decides how they are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineType {
    /// vLLM, and everything that speaks its format (llm-d's simulator, Dynamo's mocker, LMCache).
    #[serde(rename = "vLLM")]
    Vllm,
    /// SGLang.
    #[serde(rename = "SGLang")]
    Sglang,
    /// The RFC #1527 envelope.
    Mooncake,
    /// A node's tiers below its engines (`kvd tier`): no engine that requests go to.
    #[serde(rename = "kvtier")]
    Kvtier,
}

/// vLLM's `--prefix-caching-hash-algo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashAlgo {
    /// SHA-256 of pickle.
    Sha256,
    /// SHA-256 of canonical CBOR.
    Sha256Cbor,
    /// XXH3-128 of pickle.
    Xxhash,
    /// XXH3-128 of canonical CBOR.
    XxhashCbor,
}

/// Who said that a publisher is to be followed, and so who says when it is not any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Whoever used a replica's interfaces: it stays until somebody takes it back.
    #[default]
    Client,
    /// kvd's own configuration.
    Config,
    /// Itself, by the topic of its messages on a shared socket.
    Topic,
    /// A source that is looked at all the time: it goes with what was seen there.
    Discovered(Sighting),
}

/// Where a discovered publisher was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// By what.
    pub source: Source,
    /// What it was seen as: `namespace/pod`, or the file's path.
    pub object: String,
    /// Which of all objects that ever had this name: what comes after it under the same name and address
    /// is another engine. Empty where the source does not tell.
    pub identity: String,
}

/// What publishers are discovered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Pods of a Kubernetes cluster.
    Kubernetes,
    /// A file that is read again when it changes.
    File,
}

impl Origin {
    /// Its name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Origin::Client => "client",
            Origin::Config => "config",
            Origin::Topic => "topic",
            Origin::Discovered(s) => s.source.name(),
        }
    }

    /// What it was seen as, where it was discovered.
    pub fn object(&self) -> &str {
        match self {
            Origin::Client | Origin::Config | Origin::Topic => "",
            Origin::Discovered(s) => &s.object,
        }
    }

    /// Whether a publisher of both may be one and the same engine.
    pub fn may_be(&self, other: &Origin) -> bool {
        match (self, other) {
            (Origin::Discovered(a), Origin::Discovered(b)) => {
                a.source != b.source || a.identity == b.identity
            }
            _ => true,
        }
    }
}

impl Source {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Source::Kubernetes => "kubernetes",
            Source::File => "file",
        }
    }
}

/// A registration and who it is by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The registration.
    pub spec: PublisherSpec,
    /// Who it is by.
    pub origin: Origin,
}

impl From<PublisherSpec> for Followed {
    /// By a client.
    fn from(spec: PublisherSpec) -> Self {
        Followed { spec, origin: Origin::Client }
    }
}

/// Where a publisher stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PublisherState {
    /// Registered, nothing received yet.
    Connecting,
    /// Asking for what was missed.
    Replaying,
    /// Followed without a loss from the first batch on, or from a clear of the whole cache.
    Live,
    /// Followed, but what was stored before the first batch seen is not known.
    Partial,
    /// Not connected: what is known of it is as of the last batch that came.
    Unreachable,
    /// No sign of it for so long that it is taken for dead: nothing of it is held any more.
    Dead,
}

impl PublisherState {
    /// All of them.
    pub const ALL: [PublisherState; 6] = [
        PublisherState::Connecting,
        PublisherState::Replaying,
        PublisherState::Live,
        PublisherState::Partial,
        PublisherState::Unreachable,
        PublisherState::Dead,
    ];

    /// Its name in metrics and answers.
    pub fn name(self) -> &'static str {
        match self {
            PublisherState::Connecting => "connecting",
            PublisherState::Replaying => "replaying",
            PublisherState::Live => "live",
            PublisherState::Partial => "partial",
            PublisherState::Unreachable => "unreachable",
            PublisherState::Dead => "dead",
        }
    }
}

/// A publisher's registration and how it is doing.
#[derive(Clone, Debug)]
pub struct PublisherStatus {
    /// The registration.
    pub spec: PublisherSpec,
    /// Who it is by.
    pub origin: Origin,
    /// Its place in the index.
    pub holder: HolderId,
    /// How far its answers can be trusted.
    pub freshness: Freshness,
    /// Batches applied.
    pub batches: u64,
    /// Events applied.
    pub events: u64,
    /// Events left out: unknown or malformed.
    pub events_skipped: u64,
    /// Sequence gaps seen.
    pub gaps: u64,
    /// Engine restarts seen.
    pub restarts: u64,
    /// Times that it was taken for dead.
    pub deaths: u64,
    /// Replays asked for.
    pub replays: u64,
    /// Messages that were no batch at all.
    pub malformed: u64,
    /// Losses that could not be repaired.
    pub losses: u64,
    /// Batches applied that name another rank than the registered one.
    pub misranked: u64,
    /// Messages dropped because the queue was full.
    pub dropped: u64,
    /// Messages waiting.
    pub queued: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// How far a holder's answers can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// Where the publisher stands.
    pub state: PublisherState,
    /// Whether the engine's whole history is known.
    pub complete: bool,
    /// Last batch applied and visible.
    pub last_seq: Option<u64>,
    /// When the last message arrived.
    pub last_message: Option<Instant>,
    /// When the oldest message not yet applied arrived.
    pub oldest_queued: Option<Instant>,
}

/// Which publishers an unregistration means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// Tenant.
    pub tenant_id: String,
    /// Model; `None` = any.
    pub model: Option<String>,
    /// Instance.
    pub instance_id: String,
    /// Rank; `None` = every rank.
    pub dp_rank: Option<u32>,
}

impl PublisherSpec {
    /// Whom this is of.
    pub fn key(&self) -> PublisherKey {
        PublisherKey {
            tenant_id: self.tenant_id.clone(),
            model: self.model.clone(),
            instance_id: self.instance_id.clone(),
            dp_rank: self.dp_rank,
        }
    }

    /// Whether `selector` means this publisher.
    pub fn matches(&self, s: &Selector) -> bool {
        self.tenant_id == s.tenant_id
            && s.model.as_ref().is_none_or(|m| *m == self.model)
            && self.instance_id == s.instance_id
            && s.dp_rank.is_none_or(|r| r == self.dp_rank)
    }
}
