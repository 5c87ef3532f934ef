//! Who is followed, how are they doing, and is kvd fit to be asked?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kvindex::HolderStats;
use serde::Serialize;

use super::Http;
use super::error::{Refusal, json};
use super::params::{Filter, Params, read};
use crate::metrics;
use crate::outcome::Verdict;
use crate::outcome::tally::Tally;
use crate::publisher::{EngineType, PublisherSpec, PublisherState, PublisherStatus};
use crate::serve::endpoint;
use crate::warmup::Stage;

/// A row of `/publishers`.
#[derive(Serialize)]
struct PublisherRow<'a> {
    instance_id: &'a str,
    dp_rank: u32,
    endpoint: Option<&'a str>,
    state: PublisherState,
    /// Last batch applied and visible; `null` before the first.
    last_seq: Option<u64>,
    model: &'a str,
    tenant_id: &'a str,
    r#type: EngineType,
    /// Who the registration is by.
    source: &'static str,
    /// What it was seen as, where it was discovered.
    source_object: Option<&'a str>,
    replay_endpoint: Option<&'a str>,
    bind: Option<&'a str>,
    topic: Option<&'a str>,
    lora_name: Option<&'a str>,
    additionalsalt: &'a str,
    health_url: Option<&'a str>,
    lease_seconds: Option<u32>,
    /// As registered.
    block_size: Option<u32>,
    /// As the events say; `null` before the first.
    observed_block_size: Option<u32>,
    /// Blocks held before batches were lost for good, which may be gone since.
    suspect_blocks: u64,
    complete: bool,
    /// Since the last message; `null` before the first.
    silent_ms: Option<u64>,
    /// How long the oldest batch not yet applied has been waiting; 0 = none is.
    staleness_ms: u64,
    batches: u64,
    events: u64,
    events_skipped: u64,
    gaps: u64,
    restarts: u64,
    deaths: u64,
    replays: u64,
    malformed: u64,
    dropped: u64,
    queued: u64,
    blocks: u64,
    losses: u64,
    /// What came of predictions whose outcome was reported, by verdict.
    outcomes: BTreeMap<&'static str, u64>,
    /// Blocks that do not count, because reported outcomes contradict them.
    distrusted_blocks: usize,
    last_error: Option<&'a str>,
}

impl<'a> PublisherRow<'a> {
    fn new(status: &'a PublisherStatus, held: HolderStats, outcomes: (Tally, usize), now: Instant) -> Self {
        let spec = &status.spec;
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at).as_millis() as u64);
        PublisherRow {
            instance_id: &spec.instance_id,
            dp_rank: spec.dp_rank,
            endpoint: spec.endpoint.as_deref(),
            state: status.freshness.state,
            last_seq: status.freshness.last_seq,
            model: &spec.model,
            tenant_id: &spec.tenant_id,
            r#type: spec.engine,
            source: status.origin.name(),
            source_object: Some(status.origin.object()).filter(|o| !o.is_empty()),
            replay_endpoint: spec.replay_endpoint.as_deref(),
            bind: spec.bind.as_deref(),
            topic: spec.topic.as_deref(),
            lora_name: spec.lora_name.as_deref(),
            additionalsalt: &spec.additional_salt,
            health_url: spec.health_url.as_deref(),
            lease_seconds: spec.lease_seconds,
            block_size: spec.block_size,
            observed_block_size: Some(held.block_size).filter(|n| *n > 0),
            suspect_blocks: held.suspect,
            complete: status.freshness.complete && !held.partial,
            silent_ms: since(status.freshness.last_message),
            staleness_ms: since(status.freshness.oldest_queued).unwrap_or(0),
            batches: status.batches,
            events: status.events,
            events_skipped: status.events_skipped,
            gaps: status.gaps,
            restarts: status.restarts,
            deaths: status.deaths,
            replays: status.replays,
            malformed: status.malformed,
            dropped: status.dropped,
            queued: status.queued,
            blocks: held.blocks,
            losses: status.losses,
            outcomes: Verdict::ALL.into_iter().map(|v| (v.name(), outcomes.0.of(v))).collect(),
            distrusted_blocks: outcomes.1,
            last_error: status.last_error.as_deref(),
        }
    }
}

/// `GET /publishers`
pub(super) async fn publishers(
    State(http): State<Arc<Http>>,
    params: Params<Filter>,
) -> Result<Response, Refusal> {
    let list = listed(&http, &read(params)?);
    let now = Instant::now();
    let held = |p: &PublisherStatus| http.service.index.holder_stats(p.holder).unwrap_or_default();
    let outcomes = |p: &PublisherStatus| {
        http.service.publishers.account(p.holder).map(|a| a.tally(now)).unwrap_or_default()
    };
    let rows: Vec<PublisherRow<'_>> =
        list.iter().map(|p| PublisherRow::new(p, held(p), outcomes(p), now)).collect();
    Ok(json(StatusCode::OK, &rows))
}

/// A row of `/workers`: an instance with all its ranks.
#[derive(Serialize)]
struct WorkerRow<'a> {
    instance_id: &'a str,
    model: &'a str,
    tenant_id: &'a str,
    r#type: EngineType,
    block_size: Option<u32>,
    dp_ranks: Vec<u32>,
    /// Where each rank publishes, or where kvd listens for it.
    endpoints: BTreeMap<u32, Option<&'a str>>,
}

/// `GET /workers`
pub(super) async fn workers(
    State(http): State<Arc<Http>>,
    params: Params<Filter>,
) -> Result<Response, Refusal> {
    let list = listed(&http, &read(params)?);
    let mut rows: Vec<WorkerRow<'_>> = Vec::new();
    // In order, so the ranks of an instance stand together.
    for PublisherStatus { spec, .. } in &list {
        let published_at = spec.endpoint.as_deref().or(spec.bind.as_deref());
        let same = |w: &WorkerRow<'_>| {
            (w.tenant_id, w.model, w.instance_id) == (&*spec.tenant_id, &*spec.model, &*spec.instance_id)
        };
        match rows.last_mut().filter(|w| same(w)) {
            Some(worker) => {
                worker.dp_ranks.push(spec.dp_rank);
                worker.endpoints.insert(spec.dp_rank, published_at);
            }
            None => rows.push(WorkerRow {
                instance_id: &spec.instance_id,
                model: &spec.model,
                tenant_id: &spec.tenant_id,
                r#type: spec.engine,
                block_size: spec.block_size,
                dp_ranks: vec![spec.dp_rank],
                endpoints: BTreeMap::from([(spec.dp_rank, published_at)]),
            }),
        }
    }
    Ok(json(StatusCode::OK, &rows))
}

/// The publishers that `filter` lets through, by tenant, model, instance and rank.
pub(super) fn listed(http: &Http, filter: &Filter) -> Vec<PublisherStatus> {
    let is = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|w| w == name);
    let mut list = http.service.publishers.list();
    list.retain(|p| {
        is(&filter.tenant_id, &p.spec.tenant_id)
            && is(&filter.model, &p.spec.model)
            && filter.instance_id.as_deref().is_none_or(|w| endpoint::same(w, &p.spec.instance_id))
    });
    fn key(spec: &PublisherSpec) -> (&str, &str, &str, u32) {
        (&spec.tenant_id, &spec.model, &spec.instance_id, spec.dp_rank)
    }
    list.sort_by(|a, b| key(&a.spec).cmp(&key(&b.spec)));
    list
}

/// `GET /discovery`: what is seen of engines that nobody registered.
pub(super) async fn discovery(State(http): State<Arc<Http>>) -> Response {
    json(StatusCode::OK, &http.service.discovery.shown())
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

/// `GET /healthz`: the process is alive.
pub(super) async fn healthz() -> Response {
    json(StatusCode::OK, &Health { status: "ok" })
}

#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    warmup: &'static str,
    /// Publishers not followed from a proven place yet.
    waiting: usize,
}

/// `GET /readyz`: publishers are followed from a proven place, or were waited for long enough, and kvd
/// is not stopping.
pub(super) async fn readyz(State(http): State<Arc<Http>>) -> Response {
    let stage = http.service.stage();
    let waiting = match stage {
        Stage::Warming { waiting } | Stage::GivenUp { waiting } => waiting,
        Stage::Restoring | Stage::Discovering | Stage::Warm => 0,
    };
    let (code, status) = match http.service.is_ready() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    json(code, &Readiness { status, warmup: stage.name(), waiting })
}

/// `GET /metrics`
pub(super) async fn export_metrics(State(http): State<Arc<Http>>) -> Response {
    let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
    ([(header::CONTENT_TYPE, kind)], metrics::render(&http.service)).into_response()
}
