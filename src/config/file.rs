//! What may the configuration file say?
//!
//! Every key is optional here; [`super::Config::default`] has what holds without it, and
//! `deploy/kvd.example.toml` describes each.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use kvindex::{IndexConfig, TierWeights};
use kvproto::hash::llmd;
use serde::Deserialize;

use super::discovery::DiscoveryTable;
use super::security::SecurityTable;
use super::transfers::TransfersTable;
use super::units::{Bytes, Time};
use super::valkey::{Valkey, ValkeyTable};
use super::{Config, ConfigError, invalid, set};
use crate::ingest::IngestConfig;
use crate::peers::PeersConfig;
use crate::registration::Registration;
use crate::serve::Limits;
use crate::snapshot::Schedule;
use crate::traces::TracesConfig;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct File {
    pub grpc_listen: Option<String>,
    pub http_listen: Option<String>,
    pub health_listen: Option<String>,
    pub data_dir: Option<PathBuf>,
    pub drain_timeout: Option<Time>,
    pub warmup_timeout: Option<Time>,
    pub snapshot: SnapshotTable,
    pub peers: PeersTable,
    pub log: LogTable,
    pub traces: TracesTable,
    pub index: IndexTable,
    pub limits: LimitsTable,
    pub weights: WeightsTable,
    pub ingest: IngestTable,
    pub transfers: TransfersTable,
    pub discovery: DiscoveryTable,
    pub security: SecurityTable,
    pub publisher: Vec<Registration>,
    pub listen: Vec<ListenTable>,
}

/// `[log]`
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct LogTable {
    pub level: Option<String>,
    pub format: Option<String>,
}

/// `[traces]`
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct TracesTable {
    pub endpoint: Option<String>,
    pub sample: Option<f64>,
    pub service_name: Option<String>,
}

/// `[snapshot]`
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct SnapshotTable {
    pub interval: Option<Time>,
    pub keep: Option<usize>,
}

/// `[peers]`
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct PeersTable {
    pub addresses: Option<Vec<String>>,
    pub compare_every: Option<Time>,
}

/// `[index]`
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct IndexTable {
    pub max_blocks_per_publisher: Option<usize>,
    pub max_speculative: Option<usize>,
    pub max_memory: Option<Bytes>,
    pub llmd_hash_algorithm: Option<String>,
    pub llmd_hash_seed: Option<String>,
    #[serde(default)]
    pub valkey: ValkeyTable,
}

/// `[limits]`
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct LimitsTable {
    pub max_tokens: Option<usize>,
    pub max_body: Option<Bytes>,
    pub max_candidates: Option<usize>,
    pub max_text: Option<Bytes>,
    pub max_mm_items: Option<usize>,
    pub speculative_ttl: Option<Time>,
    pub max_speculative_ttl: Option<Time>,
    pub max_score_tokens: Option<usize>,
    pub max_score_token_memory: Option<Bytes>,
    pub score_token_ttl: Option<Time>,
    pub max_predictions: Option<usize>,
    pub max_prediction_memory: Option<Bytes>,
    pub prediction_ttl: Option<Time>,
    pub outcome_review: Option<Time>,
    pub stream_concurrency: Option<usize>,
}

/// `[weights]`
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct WeightsTable {
    pub gpu: Option<f64>,
    pub cpu: Option<f64>,
    pub disk: Option<f64>,
    pub shared: Option<f64>,
    pub unknown: Option<f64>,
}

/// `[ingest]`
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct IngestTable {
    pub threads: Option<usize>,
    pub queue_messages: Option<usize>,
    pub queue_size: Option<Bytes>,
    pub total_queue_size: Option<Bytes>,
    pub max_message: Option<Bytes>,
    pub replay_timeout: Option<Time>,
    pub replay_attempts: Option<u32>,
    pub replay_total: Option<Time>,
    pub held_batches: Option<usize>,
    pub held_size: Option<Bytes>,
    pub suspect_ttl: Option<Time>,
    pub dead_after: Option<Time>,
    pub max_publishers: Option<usize>,
}

/// One `[[listen]]`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct ListenTable {
    pub bind: Option<String>,
    pub tenant_id: Option<String>,
    #[serde(rename = "type")]
    pub engine: Option<String>,
    #[serde(alias = "model", alias = "model_name")]
    pub modelname: Option<String>,
    #[serde(alias = "additional_salt")]
    pub additionalsalt: Option<String>,
    pub health_url: Option<String>,
    pub max_publishers: Option<usize>,
}

impl IndexTable {
    /// Returns where the index is kept besides.
    pub(super) fn apply(self, to: &mut IndexConfig) -> Result<Option<Valkey>, ConfigError> {
        let IndexTable {
            max_blocks_per_publisher,
            max_speculative,
            max_memory,
            llmd_hash_algorithm,
            llmd_hash_seed,
            valkey,
        } = self;
        set(&mut to.max_bytes, max_memory.map(|b| b.0 as u64));
        set(&mut to.max_blocks_per_holder, max_blocks_per_publisher);
        set(&mut to.max_speculative, max_speculative);
        let key = "index.llmd_hash_algorithm";
        to.llmd = match (llmd_hash_algorithm, llmd_hash_seed) {
            (None, None) => None,
            (None, Some(_)) => return Err(invalid(key, "", "is missing beside index.llmd_hash_seed")),
            (Some(name), seed) => {
                let algo = llmd::Algo::from_name(&name);
                let algo = algo.ok_or_else(|| invalid(key, name, "use cbor-fnv or xxh64"))?;
                Some(llmd::Llmd::new(algo, seed.as_deref().unwrap_or_default()))
            }
        };
        valkey.check(to.max_blocks_per_holder, to.max_speculative)
    }
}

impl LimitsTable {
    pub(super) fn apply(self, to: &mut Limits) {
        let LimitsTable {
            max_tokens,
            max_body,
            max_candidates,
            max_text,
            max_mm_items,
            speculative_ttl,
            max_speculative_ttl,
            max_score_tokens,
            max_score_token_memory,
            score_token_ttl,
            max_predictions,
            max_prediction_memory,
            prediction_ttl,
            outcome_review,
            stream_concurrency,
        } = self;
        set(&mut to.max_tokens, max_tokens);
        set(&mut to.max_body_bytes, max_body.map(|b| b.0));
        set(&mut to.max_candidates, max_candidates);
        set(&mut to.max_text_bytes, max_text.map(|b| b.0));
        set(&mut to.max_mm_items, max_mm_items);
        set(&mut to.speculative_ttl, speculative_ttl.map(|t| t.0));
        set(&mut to.max_speculative_ttl, max_speculative_ttl.map(|t| t.0));
        set(&mut to.max_score_tokens, max_score_tokens);
        set(&mut to.max_score_token_bytes, max_score_token_memory.map(|b| b.0));
        set(&mut to.score_token_ttl, score_token_ttl.map(|t| t.0));
        set(&mut to.max_predictions, max_predictions);
        set(&mut to.max_prediction_bytes, max_prediction_memory.map(|b| b.0));
        set(&mut to.prediction_ttl, prediction_ttl.map(|t| t.0));
        set(&mut to.outcome_review, outcome_review.map(|t| t.0));
        set(&mut to.stream_concurrency, stream_concurrency);
    }
}

impl SnapshotTable {
    pub(super) fn apply(self, to: &mut Schedule) {
        let SnapshotTable { interval, keep } = self;
        set(&mut to.every, interval.map(|t| t.0));
        set(&mut to.keep, keep);
    }
}

impl PeersTable {
    pub(super) fn apply(self, to: &mut PeersConfig) {
        let PeersTable { addresses, compare_every } = self;
        set(&mut to.addresses, addresses);
        set(&mut to.compare_every, compare_every.map(|t| t.0));
    }
}

impl TracesTable {
    /// `None` where nobody is told.
    pub(super) fn check(self) -> Result<Option<TracesConfig>, ConfigError> {
        let TracesTable { endpoint, sample, service_name } = self;
        let sample = sample.unwrap_or(0.1);
        if !(0.0..=1.0).contains(&sample) {
            return Err(invalid("traces.sample", sample, "is outside 0..1"));
        }
        let Some(endpoint) = endpoint.filter(|e| !e.is_empty()) else { return Ok(None) };
        if !endpoint.starts_with("http://") || endpoint.parse::<axum::http::Uri>().is_err() {
            let why = "must be http://host:port, the collector's OTLP port for gRPC";
            return Err(invalid("traces.endpoint", endpoint, why));
        }
        let service_name = service_name.unwrap_or_else(|| "kvd".to_owned());
        Ok(Some(TracesConfig { endpoint, service_name, sample }))
    }
}

impl WeightsTable {
    pub(super) fn apply(self, to: &mut TierWeights) {
        let WeightsTable { gpu, cpu, disk, shared, unknown } = self;
        for (weight, given) in to.by_tier.iter_mut().zip([gpu, cpu, disk, shared, unknown]) {
            set(weight, given);
        }
    }
}

impl IngestTable {
    pub(super) fn apply(self, to: &mut IngestConfig) {
        let IngestTable {
            threads,
            queue_messages,
            queue_size,
            total_queue_size,
            max_message,
            replay_timeout,
            replay_attempts,
            replay_total,
            held_batches,
            held_size,
            suspect_ttl,
            dead_after,
            max_publishers,
        } = self;
        set(&mut to.threads, threads);
        set(&mut to.queue_messages, queue_messages);
        set(&mut to.queue_bytes, queue_size.map(|b| b.0));
        set(&mut to.total_queue_bytes, total_queue_size.map(|b| b.0));
        set(&mut to.max_message_bytes, max_message.map(|b| b.0));
        set(&mut to.replay_timeout, replay_timeout.map(|t| t.0));
        set(&mut to.replay_attempts, replay_attempts);
        set(&mut to.replay_total, replay_total.map(|t| t.0));
        set(&mut to.held_batches, held_batches);
        set(&mut to.held_bytes, held_size.map(|b| b.0));
        set(&mut to.doubt_for, suspect_ttl.map(|t| t.0));
        set(&mut to.dead_after, dead_after.map(|t| t.0));
        set(&mut to.max_publishers, max_publishers);
    }
}

/// Every number with bounds: its key, its value and what it may be. Durations in milliseconds.
pub(super) fn bounded(config: &Config) -> Vec<(&'static str, u64, RangeInclusive<u64>)> {
    let transfers = &config.transfers.config;
    let Config { index, limits, ingest, .. } = config;
    let count = |n: usize| n as u64;
    let millis = |d: std::time::Duration| d.as_millis() as u64;
    const DAY: u64 = 86_400_000;
    vec![
        ("drain_timeout (ms)", millis(config.drain_timeout), 0..=DAY),
        ("warmup_timeout (ms)", millis(config.warmup_timeout), 0..=DAY),
        ("snapshot.interval (ms)", millis(config.snapshot.every), 0..=DAY),
        ("peers.compare_every (ms)", millis(config.peers.compare_every), 0..=DAY),
        ("snapshot.keep", count(config.snapshot.keep), 1..=1000),
        ("index.max_blocks_per_publisher", count(index.max_blocks_per_holder), 1..=1 << 31),
        ("index.max_memory (bytes)", index.max_bytes, 1 << 20..=u64::MAX),
        ("index.max_speculative", count(index.max_speculative), 0..=1 << 31),
        ("limits.max_tokens", count(limits.max_tokens), 1..=1 << 28),
        ("limits.max_body (bytes)", count(limits.max_body_bytes), 1 << 10..=1 << 30),
        ("limits.max_candidates", count(limits.max_candidates), 1..=1 << 20),
        ("limits.max_text (bytes)", count(limits.max_text_bytes), 64..=1 << 20),
        ("limits.max_mm_items", count(limits.max_mm_items), 0..=1 << 20),
        ("limits.speculative_ttl (ms)", millis(limits.speculative_ttl), 1..=DAY),
        ("limits.max_speculative_ttl (ms)", millis(limits.max_speculative_ttl), 1..=DAY),
        ("limits.max_score_tokens", count(limits.max_score_tokens), 0..=1 << 24),
        ("limits.max_score_token_memory (bytes)", count(limits.max_score_token_bytes), 0..=1 << 40),
        ("limits.score_token_ttl (ms)", millis(limits.score_token_ttl), 1..=DAY),
        ("limits.max_predictions", count(limits.max_predictions), 0..=1 << 24),
        ("limits.max_prediction_memory (bytes)", count(limits.max_prediction_bytes), 0..=1 << 40),
        ("limits.prediction_ttl (ms)", millis(limits.prediction_ttl), 1..=DAY),
        ("limits.outcome_review (ms)", millis(limits.outcome_review), 1..=DAY),
        ("limits.stream_concurrency", count(limits.stream_concurrency), 1..=1 << 16),
        ("ingest.threads", count(ingest.threads), 1..=256),
        ("ingest.queue_messages", count(ingest.queue_messages), 1..=1 << 24),
        ("ingest.queue_size (bytes)", count(ingest.queue_bytes), 1 << 10..=1 << 36),
        ("ingest.total_queue_size (bytes)", count(ingest.total_queue_bytes), 1 << 10..=1 << 40),
        ("ingest.max_message (bytes)", count(ingest.max_message_bytes), 1 << 10..=1 << 30),
        ("ingest.replay_timeout (ms)", millis(ingest.replay_timeout), 1..=DAY),
        ("ingest.replay_attempts", u64::from(ingest.replay_attempts), 1..=1000),
        ("ingest.replay_total (ms)", millis(ingest.replay_total), 1..=DAY),
        ("ingest.held_batches", count(ingest.held_batches), 0..=1 << 24),
        ("ingest.held_size (bytes)", count(ingest.held_bytes), 0..=1 << 36),
        ("ingest.suspect_ttl (ms)", millis(ingest.doubt_for), 0..=DAY),
        ("ingest.dead_after (ms)", millis(ingest.dead_after), 1_000..=DAY),
        ("ingest.max_publishers", count(ingest.max_publishers), 1..=1 << 20),
        ("transfers.forward_timeout (ms)", millis(transfers.forward_timeout), 1..=60_000),
        ("transfers.max_live", count(transfers.bounds.live), 1..=1 << 24),
        ("transfers.max_over", count(transfers.bounds.over), 1..=1 << 24),
        ("transfers.prompt_memory (bytes)", count(transfers.prompt_bytes), 0..=1 << 40),
        ("transfers.planned (ms)", millis(transfers.timers.planned), 10..=DAY),
        ("transfers.prefilling (ms)", millis(transfers.timers.prefilling), 10..=DAY),
        ("transfers.ready (ms)", millis(transfers.timers.ready), 10..=DAY),
        ("transfers.pulling (ms)", millis(transfers.timers.pulling), 10..=DAY),
        ("transfers.overall (ms)", millis(transfers.timers.overall), 10..=DAY),
        ("transfers.guard (ms)", millis(transfers.timers.guard), 0..=DAY),
        ("transfers.kept (ms)", millis(transfers.timers.kept), 0..=DAY),
        ("transfers.attempts", u64::from(transfers.timers.max_attempts), 1..=100),
        ("transfers.nixl_lease (ms)", millis(transfers.timers.nixl_lease), 10..=DAY),
        ("transfers.transfers_per_source", u64::from(transfers.caps.transfers_per_source), 1..=1 << 20),
        (
            "transfers.transfers_per_destination",
            u64::from(transfers.caps.transfers_per_destination),
            1..=1 << 20,
        ),
        ("transfers.bytes_per_link (bytes)", transfers.caps.bytes_per_link, 1..=1 << 50),
        ("transfers.pinned_bytes_per_pod (bytes)", transfers.caps.pinned_bytes_per_pod, 1..=1 << 50),
        ("transfers.prefills_per_pod", u64::from(transfers.caps.prefills_per_pod), 1..=1 << 20),
    ]
}
