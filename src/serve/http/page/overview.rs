//! How is everything? `/v1/overview`: kvd itself, pods and tiers, transfers under way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use kvindex::{HolderId, HolderStats};
use kvproto::Tier;
use rustc_hash::FxHashSet;
use serde::Serialize;

use super::super::Http;
use crate::publisher::{EngineType, PublisherState, PublisherStatus};
use crate::serve::{Histogram, Service};
use crate::traffic::{HALF_LIFE, Ratios};
use crate::transfer::ledger::{Record, State as TransferState};
use crate::warmup::Stage;

/// Pods and ranks of one answer.
const MAX_PODS: usize = 4096;
/// Transfers of one answer.
const MAX_TRANSFERS: usize = 100;
/// Characters of an error that are shown.
const MAX_ERROR: usize = 300;

/// `GET /v1/overview`
pub(super) async fn overview(State(http): State<Arc<Http>>) -> Response {
    http.views.overview.get(&http.service, |service| Overview::of(service, Instant::now())).await
}

#[derive(Serialize)]
struct Overview {
    version: &'static str,
    uptime_seconds: f64,
    ready: bool,
    warmup: Warmup,
    peers_connected: usize,
    hit_ratio: HitRatio,
    queries: Queries,
    events: Events,
    index: Memory,
    states: BTreeMap<&'static str, usize>,
    pods: Vec<Pod>,
    /// Pods that are left out of `pods`.
    pods_omitted: usize,
    transfers: TransfersNow,
}

#[derive(Serialize)]
struct Warmup {
    stage: &'static str,
    /// Publishers not followed from a proven place yet.
    waiting: usize,
    limit_seconds: f64,
    restored_from: String,
    restored_publishers: u64,
    restored_blocks: u64,
}

/// `null` where nothing is known.
#[derive(Serialize)]
struct HitRatio {
    /// Of queries lately, on the best candidate of each.
    best: Option<f64>,
    /// Of requests lately, as engines reported it.
    reported: Option<f64>,
    /// From which on it is good, and from which on acceptable.
    good: f64,
    acceptable: f64,
    half_life_seconds: f64,
}

#[derive(Serialize)]
struct Queries {
    total: u64,
    errors: u64,
    unknown_model: u64,
    tokens: u64,
    cached_tokens: u64,
    seconds_bounds: [f64; Histogram::BOUNDS.len()],
    seconds_cumulative: [u64; Histogram::BOUNDS.len()],
}

#[derive(Serialize)]
struct Events {
    batches: u64,
    total: u64,
    skipped: u64,
    dropped: u64,
    losses: u64,
}

#[derive(Serialize)]
struct Memory {
    bytes: u64,
    max_bytes: u64,
    /// (Block, pod) pairs by tier.
    blocks: BTreeMap<&'static str, u64>,
}

/// One rank of an instance.
#[derive(Serialize)]
struct Pod {
    instance_id: String,
    dp_rank: u32,
    model: String,
    tenant_id: String,
    r#type: EngineType,
    node: Option<String>,
    state: PublisherState,
    complete: bool,
    block_size: u32,
    /// By tier: gpu, cpu, disk, shared, unknown.
    blocks: [u64; 5],
    suspect_blocks: u64,
    staleness_ms: u64,
    silent_ms: Option<u64>,
    queued: u64,
    dropped: u64,
    losses: u64,
    /// What it has of everything that was asked about lately with it as a candidate.
    would_hit: Option<f64>,
    /// What it reported to have had cached lately.
    reported_hit: Option<f64>,
    last_error: Option<String>,
}

#[derive(Default, Serialize)]
struct TransfersNow {
    enabled: bool,
    states: BTreeMap<&'static str, usize>,
    live: Vec<Moving>,
}

/// A transfer under way.
#[derive(Serialize)]
struct Moving {
    transfer_id: String,
    model: String,
    state: &'static str,
    since_ms: u64,
    /// Until its state ends by itself.
    left_ms: u64,
    legs: Vec<Leg>,
    stale: bool,
}

#[derive(Serialize)]
struct Leg {
    from: String,
    to: String,
    tier: &'static str,
    tokens: u32,
    bytes: u64,
}

impl Overview {
    fn of(service: &Service, now: Instant) -> Overview {
        let mut list = service.publishers.list();
        let registered: FxHashSet<HolderId> = list.iter().map(|p| p.holder).collect();
        let ratios = service.traffic.ratios(|id| registered.contains(&id), now);
        let mut states: BTreeMap<&'static str, usize> = BTreeMap::new();
        for p in &list {
            *states.entry(p.freshness.state.name()).or_default() += 1;
        }
        let pods_omitted = list.len().saturating_sub(MAX_PODS);
        list.truncate(MAX_PODS);
        let mut blocks = [0; 5];
        let pods: Vec<Pod> = list
            .into_iter()
            .map(|p| {
                let held = service.index.holder_stats(p.holder).unwrap_or_default();
                blocks.iter_mut().zip(held.by_tier).for_each(|(sum, n)| *sum += n);
                Pod::of(p, held, &ratios, now)
            })
            .collect();
        let (bytes, max_bytes) = service.index.memory();
        let totals = service.publishers.totals();
        let seconds = service.counters.query_seconds.counts();
        let sums = service.traffic.sums();
        Overview {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: service.started.elapsed().as_secs_f64(),
            ready: service.is_ready(),
            warmup: Warmup::of(service),
            peers_connected: service.peers.connected(),
            hit_ratio: HitRatio {
                best: ratios.best,
                reported: ratios.reported,
                good: 0.3,
                acceptable: 0.1,
                half_life_seconds: HALF_LIFE,
            },
            queries: Queries {
                total: service.counters.queries.load(Relaxed),
                errors: service.counters.query_errors.load(Relaxed),
                unknown_model: service.counters.unknown_model.load(Relaxed),
                tokens: sums.asked_tokens,
                cached_tokens: sums.best_tokens,
                seconds_bounds: Histogram::BOUNDS,
                seconds_cumulative: seconds.cumulative,
            },
            events: Events {
                batches: totals.batches,
                total: totals.events,
                skipped: totals.events_skipped,
                dropped: totals.dropped,
                losses: totals.losses,
            },
            index: Memory {
                bytes,
                max_bytes,
                blocks: Tier::ALL.into_iter().map(|t| (t.name(), blocks[t as usize])).collect(),
            },
            states,
            pods,
            pods_omitted,
            transfers: TransfersNow::of(service),
        }
    }
}

impl Warmup {
    fn of(service: &Service) -> Warmup {
        let stage = service.stage();
        let waiting = match stage {
            Stage::Warming { waiting } | Stage::GivenUp { waiting } => waiting,
            Stage::Restoring | Stage::Discovering | Stage::Warm => 0,
        };
        let restored = service.restored.get().cloned().unwrap_or_default();
        Warmup {
            stage: stage.name(),
            waiting,
            limit_seconds: service.warmup_limit.as_secs_f64(),
            restored_from: restored.from,
            restored_publishers: restored.publishers,
            restored_blocks: restored.blocks,
        }
    }
}

impl Pod {
    fn of(status: PublisherStatus, held: HolderStats, ratios: &Ratios, now: Instant) -> Pod {
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at).as_millis() as u64);
        let PublisherStatus { spec, freshness, holder, .. } = status;
        Pod {
            dp_rank: spec.dp_rank,
            r#type: spec.engine,
            node: spec.node,
            state: freshness.state,
            complete: freshness.complete && !held.partial,
            block_size: held.block_size,
            blocks: Tier::ALL.map(|t| held.by_tier[t as usize]),
            suspect_blocks: held.suspect,
            staleness_ms: since(freshness.oldest_queued).unwrap_or(0),
            silent_ms: since(freshness.last_message),
            queued: status.queued,
            dropped: status.dropped,
            losses: status.losses,
            would_hit: ratios.by_holder.get(&holder).copied(),
            reported_hit: ratios.reported_by.get(&holder).copied(),
            last_error: status.last_error.map(|e| e.chars().take(MAX_ERROR).collect()),
            instance_id: spec.instance_id,
            model: spec.model,
            tenant_id: spec.tenant_id,
        }
    }
}

impl TransfersNow {
    fn of(service: &Service) -> TransfersNow {
        let Ok(transfers) = service.transfers() else { return TransfersNow::default() };
        let now = transfers.now();
        transfers.book(|book| {
            // Those that are over are many; they are gone through only where there is one to be found.
            let found = book.records().filter(|r| r.live()).take(MAX_TRANSFERS.min(book.live()));
            TransfersNow {
                enabled: true,
                states: TransferState::ALL.into_iter().map(|s| (s.name(), book.count(s))).collect(),
                live: found.map(|r| Moving::of(r, now)).collect(),
            }
        })
    }
}

impl Moving {
    fn of(record: &Record, now: u64) -> Moving {
        let legs = record.choice.legs.iter().map(|l| Leg {
            from: l.from.to_string(),
            to: l.to.to_string(),
            tier: l.tier.name(),
            tokens: l.tokens,
            bytes: l.bytes,
        });
        Moving {
            transfer_id: record.id.to_string(),
            model: record.model.to_string(),
            state: record.state.name(),
            since_ms: now.saturating_sub(record.changed_at),
            left_ms: record.deadline.saturating_sub(now),
            legs: legs.collect(),
            stale: record.stale.is_some(),
        }
    }
}
