//! What may be set about following publishers.

use std::time::Duration;

use crate::publisher::EngineType;

/// Limits and addresses of ingest. Every buffer that a peer can fill has a bound here.
#[derive(Clone, Debug)]
pub struct IngestConfig {
    /// Threads that read sockets, and as many that apply batches.
    pub threads: usize,
    /// Messages of one publisher that may wait to be applied; more are dropped and counted.
    pub queue_messages: usize,
    /// Bytes of one publisher that may wait to be applied.
    pub queue_bytes: usize,
    /// Bytes of all publishers together that may wait or be held back.
    pub total_queue_bytes: usize,
    /// Longest frame accepted; a peer that sends a longer one is disconnected.
    pub max_message_bytes: usize,
    /// How long a replay may say nothing before it is asked for again.
    pub replay_timeout: Duration,
    /// Replays in a row that may bring nothing new before the loss is accepted.
    pub replay_attempts: u32,
    /// How long repairing one loss may take altogether.
    pub replay_total: Duration,
    /// Batches behind a hole that are held back while it is being repaired.
    pub held_batches: usize,
    /// Bytes behind a hole that are held back.
    pub held_bytes: usize,
    /// How long what was held before a loss is remembered, as in doubt.
    pub doubt_for: Duration,
    /// How long there may be no good sign of an engine before it is taken for dead.
    pub dead_after: Duration,
    /// Publishers that may be registered.
    pub max_publishers: usize,
    /// Addresses where engines dial in and are registered by their topic.
    pub listen: Vec<Listen>,
}

impl Default for IngestConfig {
    fn default() -> Self {
        IngestConfig {
            threads: 2,
            queue_messages: 65_536,
            queue_bytes: 64 << 20,
            total_queue_bytes: 1 << 30,
            max_message_bytes: 64 << 20,
            replay_timeout: Duration::from_secs(2),
            replay_attempts: 3,
            replay_total: Duration::from_secs(60),
            held_batches: 16_384,
            held_bytes: 64 << 20,
            doubt_for: Duration::from_secs(600),
            dead_after: Duration::from_secs(30),
            max_publishers: 1_024,
            listen: Vec::new(),
        }
    }
}

/// An address where engines dial in and are registered by their topic, `kv@<pod>@<model>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where to listen, `tcp://*:port`.
    pub bind: String,
    /// Tenant of the engines.
    pub tenant_id: String,
    /// What the engines are.
    pub engine: EngineType,
    /// Model of the engines; `None` = as the topic says.
    pub model: Option<String>,
    /// The deployment's salt.
    pub additional_salt: String,
    /// Where they say whether they are well, `{instance}` in the place of the pod's name.
    pub health_url: Option<String>,
    /// Engines that may register themselves here.
    pub max_publishers: usize,
}

impl Default for Listen {
    fn default() -> Self {
        Listen {
            bind: String::new(),
            tenant_id: "default".into(),
            engine: EngineType::Vllm,
            model: None,
            additional_salt: String::new(),
            health_url: None,
            max_publishers: 512,
        }
    }
}
