//! What do planner, ledger and transports say to each other?
//!
//! Plain values: a [`Question`] goes into the planner, a [`Plan`] comes out, and the ledger
//! keeps the plan's [`Choice`]. Times are [`Duration`]s; who knows what time it is, is not
//! in here.

use std::sync::Arc;
use std::time::Duration;

use kvproto::Tier;
use serde::{Deserialize, Serialize};

/// One rank of a pod: what computes, holds and moves blocks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// The instance, as it is registered.
    pub instance: Arc<str>,
    /// Data-parallel rank.
    pub rank: u32,
}

/// What for a transfer is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Prefill on one pod and decode on another, if that is worth it.
    PrefillDecode,
    /// Pull a prefix that the computing pod lacks.
    Pull,
    /// Move a prefix without a request waiting for it.
    Migrate,
}

/// How blocks get from pod to pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connector {
    /// vLLM's `NixlConnector`: the decode pod reads after prefill.
    NixlPull,
    /// vLLM's `NixlPushConnector`: the prefill pod writes.
    NixlPush,
    /// vLLM's `MooncakeConnector`: both legs run at once, the decode pod reads.
    Mooncake,
    /// vLLM's offloading connector with its peer-to-peer tier: both legs run at once.
    Offloading,
    /// SGLang's bootstrap server: both legs run at once, the prefill pod writes.
    Sglang,
}

/// What a pod may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Prefills for another.
    pub prefill: bool,
    /// Serves a request to its end.
    pub decode: bool,
    /// Is read from.
    pub source: bool,
}

/// Where a pod stands. `None` = not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub host: Option<Arc<str>>,
    /// The rack.
    pub rack: Option<Arc<str>>,
    /// The zone.
    pub zone: Option<Arc<str>>,
    /// The region.
    pub region: Option<Arc<str>>,
}

/// How near two pods are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// The same node.
    Host,
    /// The same rack.
    Rack,
    /// The same zone.
    Zone,
    /// The same region.
    Region,
    /// Farther, or not known.
    Far,
}

/// How a pod's connector is reached, `host:port` each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wire {
    /// NIXL side channel, or the bootstrap server of Mooncake and SGLang.
    pub bootstrap: Option<Arc<str>>,
    /// Peer-to-peer tier of rank 0.
    pub p2p: Option<Arc<str>>,
    /// The engine's own id.
    pub engine_id: Option<Arc<str>>,
    /// Control endpoint for `kv.fetch`.
    pub control: Option<Arc<str>>,
}

/// What a pod holds of the prompt: tokens from its start without a gap, in whole blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// On the GPU.
    pub gpu: u32,
    /// On the GPU or, where that ends, in host memory.
    pub cpu: u32,
    /// The same, going on to the node's disk.
    pub disk: u32,
    /// The same, going on to storage that others reach too.
    pub shared: u32,
    /// Tokens the engine would report as cached, which is what shortens its prefill.
    pub cached: u32,
    /// In host memory alone, from the start: what a peer-to-peer tier can serve.
    pub cpu_alone: u32,
    /// Whether the pod's events are all known; otherwise it may hold less or more.
    pub fresh: bool,
}

/// What waits and runs on a pod, as the asker sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that wait.
    pub waiting_requests: u32,
    /// Prompt tokens to be prefilled before a new request's.
    pub waiting_tokens: u64,
    /// Requests that run.
    pub running_requests: u32,
    /// Tokens that its GPU's cache has room for; 0 = not known.
    pub cache_tokens: u64,
    /// Of these, tokens of requests that run there or are to.
    pub committed_tokens: u64,
}

/// Transfers under way in one direction or over one link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// How many.
    pub transfers: u32,
    /// Their bytes.
    pub bytes: u64,
}

/// What the ledger has reserved on a pod, over all requests of all askers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Read from it.
    pub egress: Flow,
    /// Written to it.
    pub ingress: Flow,
    /// Bytes it keeps for others.
    pub pinned_bytes: u64,
    /// Prefills planned or running on it for other pods.
    pub prefills: u32,
    /// Their tokens to compute.
    pub prefill_tokens: u64,
}

/// A pod that may be used, with all that is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub endpoint: Endpoint,
    /// For what.
    pub roles: Roles,
    /// Pods of one class understand each other's blocks; `None` is a class of its own.
    pub class: Option<Arc<str>>,
    /// Where.
    pub place: Place,
    /// How to reach it.
    pub wire: Wire,
    /// What it holds of the prompt.
    pub held: Held,
    /// Tokens per block of this engine; 0 = not known.
    pub block_size: u32,
    /// What the asker says waits there.
    pub load: Load,
    /// What the ledger has reserved there.
    pub reserved: Reserved,
}

/// Limits that no plan may exceed. They hold when a plan is made and again, under the ledger's
/// lock, when it is reserved.
///
/// They count what is planned as well as what is under way, so they bound queues. What they turn away is
/// computed on decode pods, which then take longer to let anybody in: a limit below what waits in a busy
/// hour makes it worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Transfers read from one pod at a time.
    pub transfers_per_source: u32,
    /// Transfers written to one pod at a time.
    pub transfers_per_destination: u32,
    /// Bytes under way over one link (from one pod to another).
    pub bytes_per_link: u64,
    /// Bytes one pod keeps for others.
    pub pinned_bytes_per_pod: u64,
    /// Prefills one pod runs for others at a time.
    pub prefills_per_pod: u32,
}

impl Default for Caps {
    fn default() -> Self {
        Caps {
            transfers_per_source: 256,
            transfers_per_destination: 256,
            bytes_per_link: 256 << 30,
            pinned_bytes_per_pod: 1 << 40,
            prefills_per_pod: 1024,
        }
    }
}

/// What a caller insists on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Constraints {
    /// Bytes that may be moved.
    pub max_bytes: Option<u64>,
    /// Time to the first token that is wanted.
    pub deadline: Option<Duration>,
    /// Moves nothing that saves less.
    pub min_gain: Duration,
    /// Uses only pods this near to the one that decodes.
    pub within: Option<Distance>,
}

/// Everything that one plan depends on, besides what was learnt of costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What for.
    pub purpose: Purpose,
    /// Whose geometry counts.
    pub model: Arc<str>,
    /// How blocks travel.
    pub connector: Connector,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Pods that may be used.
    pub pods: Vec<Candidate>,
    /// Place in `pods` of the one that decodes (or, for a pull, computes), where that is settled.
    pub decode: Option<usize>,
    /// Links among `pods` that are in use: places of source and destination, and what is under way.
    pub links: Vec<(usize, usize, Flow)>,
    /// Limits.
    pub caps: Caps,
    /// What the caller insists on.
    pub constraints: Constraints,
    /// Places in `pods` not to prefill on or read from, because that has just failed.
    pub avoid: Vec<usize>,
}

/// How a prompt is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Everything on the decode pod; nothing moves.
    Local,
    /// Prefill elsewhere, then hand over.
    Disagg,
    /// The computing pod pulls a prefix first.
    Pull,
    /// The prefill pod pulls a prefix, computes the rest and hands over.
    DisaggWithPull,
    /// A limit is reached everywhere.
    Busy,
}

/// Bytes that go from one pod to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    /// Whether a finished prefill is handed over, or a prefix is pulled.
    pub kind: LegKind,
    /// Read from.
    pub from: Endpoint,
    /// Written to.
    pub to: Endpoint,
    /// The tier it is read from.
    #[serde(with = "tier_name")]
    pub tier: Tier,
    /// Tokens that move: what `to` lacks of what `from` has.
    pub tokens: u32,
    /// The same in blocks of `from`.
    pub blocks: u32,
    /// The same in bytes.
    pub bytes: u64,
    /// Bytes that stay on `from` until the leg is done, also those that do not move.
    pub pinned_bytes: u64,
}

/// What a leg is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LegKind {
    /// A prefix, before prefill.
    Pull,
    /// A finished prefill.
    Handover,
}

/// Where the time to the first token goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Waiting on the pod that prefills.
    pub queue: Duration,
    /// Pulling the prefix.
    pub pull: Duration,
    /// Computing what is not there.
    pub prefill: Duration,
    /// First contact and set-up of links, of all legs.
    pub setup: Duration,
    /// Handing over.
    pub handover: Duration,
    /// All together, with the price of a failure and of waiting less well.
    pub total: Duration,
    /// What serving it without moving anything would take.
    pub local: Duration,
    /// That some leg fails.
    pub failure_probability: f64,
}

/// One way to serve a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// What kind of way.
    pub decision: Decision,
    /// Who prefills, unless that is the decode pod.
    pub prefill: Option<Endpoint>,
    /// Who decodes; `None` only where everyone is busy.
    pub decode: Option<Endpoint>,
    /// What moves: a pull, a handover, or a pull and then a handover.
    pub legs: Vec<Leg>,
    /// Tokens that the pod that prefills has to compute.
    pub prefill_tokens: u32,
    /// What it is expected to take.
    pub estimate: Estimate,
}

/// A decision and what led to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The best way found.
    pub choice: Choice,
    /// The main reason, for counters and programs.
    pub reason: Reason,
    /// The same as a sentence, with numbers, for people.
    pub explanation: String,
    /// At most two ways that come next, on other pods.
    pub alternatives: Vec<Choice>,
}

/// Why a plan is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Moving blocks takes less time than computing them.
    Faster,
    /// Nothing else was possible: there is only one pod to use.
    OnlyPod,
    /// Computing everything in place takes less time.
    LocalFaster,
    /// The gain is below what policy or caller ask for.
    SmallGain,
    /// Nobody holds anything that the computing pod lacks.
    NothingToPull,
    /// No pod understands another's blocks.
    Incompatible,
    /// Every way that would pay is at a limit; served in place.
    AtLimit,
    /// Every pod is at a limit.
    Busy,
    /// The caller's limits leave no other way.
    Constrained,
    /// Sizes or costs of the model are not known.
    UnknownModel,
}

/// Ready-made parts of requests to the engines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Artefacts {
    /// Request headers.
    pub headers: Vec<(String, String)>,
    /// `kv_transfer_params` of the prefill leg.
    pub prefill_params: Option<serde_json::Map<String, serde_json::Value>>,
    /// `kv_transfer_params` of the decode leg; before prefill is done as far as it is known.
    pub decode_params: Option<serde_json::Map<String, serde_json::Value>>,
    /// Envelope of `kv_hints`.
    pub kv_hints: Option<serde_json::Value>,
    /// Keys of the body of both legs.
    pub body: Option<serde_json::Map<String, serde_json::Value>>,
}

/// What the ledger tells whoever learns costs.
#[derive(Clone, Debug, PartialEq)]
pub enum Lesson {
    /// A pod computed so many tokens in so much time.
    Prefilled {
        /// The pod.
        pod: Endpoint,
        /// Of which model the tokens are.
        model: Arc<str>,
        /// Tokens computed.
        tokens: u64,
        /// Tokens before them that were there: attending to them takes time as well.
        cached: u64,
        /// Time it took.
        took: Duration,
    },
    /// A pair moved so many bytes in so much time.
    Moved {
        /// Read from.
        from: Endpoint,
        /// Written to.
        to: Endpoint,
        /// How much.
        bytes: u64,
        /// How long.
        took: Duration,
        /// Transfers that shared the source or the destination, this one included.
        sharing: u32,
    },
    /// A transfer between a pair failed.
    Failed {
        /// Read from.
        from: Endpoint,
        /// Written to.
        to: Endpoint,
    },
    /// A pod began anew: pairs with it have to shake hands again.
    Restarted {
        /// The pod.
        pod: Endpoint,
    },
    /// Somebody measured a link.
    Measured {
        /// Read from.
        from: Endpoint,
        /// Written to.
        to: Endpoint,
        /// How much a second.
        bytes_per_second: u64,
        /// Time before the first byte.
        setup: Duration,
    },
}

impl Connector {
    /// Whether prefill and decode run at the same time, so that a transfer may skip being ready.
    pub fn concurrent(self) -> bool {
        match self {
            Connector::NixlPull | Connector::NixlPush => false,
            Connector::Mooncake | Connector::Offloading | Connector::Sglang => true,
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.instance)?;
        if self.rank > 0 { write!(f, "#{}", self.rank) } else { Ok(()) }
    }
}

impl Place {
    /// How near `other` is.
    pub fn distance(&self, other: &Place) -> Distance {
        let same = |a: &Option<Arc<str>>, b: &Option<Arc<str>>| a.is_some() && a == b;
        if same(&self.host, &other.host) {
            Distance::Host
        } else if same(&self.rack, &other.rack) {
            Distance::Rack
        } else if same(&self.zone, &other.zone) {
            Distance::Zone
        } else if same(&self.region, &other.region) {
            Distance::Region
        } else {
            Distance::Far
        }
    }
}

/// A tier in records, by its name.
mod tier_name {
    use kvproto::Tier;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(tier: &Tier, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(tier.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Tier, D::Error> {
        let name = String::deserialize(from)?;
        let tier = Tier::ALL.into_iter().find(|t| t.name() == name);
        tier.ok_or_else(|| de::Error::custom(format!("there is no tier {name}")))
    }
}
