//! `kv.v1.AdminService`: what is in there, and why did a pod get its number?

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use kvproto::rpc::kv;
use kvproto::rpc::kv::admin_service_server::AdminService;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert::{endpoint_score, tiers};
use super::dump::{Dump, dump};
use super::ingest::write_status;
use super::outcome;
use super::score::{Scoring, apart};
use crate::publisher::{PublisherState, PublisherStatus};
use crate::serve::{AskError, Service};
use crate::warmup::{Stage, is_waited_for};

/// The service.
pub(super) struct AdminApi {
    service: Arc<Service>,
}

impl AdminApi {
    pub fn new(service: Arc<Service>) -> AdminApi {
        AdminApi { service }
    }
}

#[tonic::async_trait]
impl AdminService for AdminApi {
    type DumpStream = ReceiverStream<Result<kv::DumpChunk, Status>>;

    async fn dump(&self, request: Request<kv::DumpRequest>) -> Result<Response<Self::DumpStream>, Status> {
        let plan = Dump::new(&self.service, request.into_inner())?;
        Ok(Response::new(dump(Arc::clone(&self.service), plan)))
    }

    async fn explain_score(
        &self,
        request: Request<kv::ExplainScoreRequest>,
    ) -> Result<Response<kv::ExplainScoreResponse>, Status> {
        let service = Arc::clone(&self.service);
        let request = request.into_inner();
        let explained = apart(move || explain(&service, request)).await?;
        Ok(Response::new(explained))
    }

    async fn diagnose(
        &self,
        _: Request<kv::DiagnoseRequest>,
    ) -> Result<Response<kv::DiagnoseResponse>, Status> {
        let service = Arc::clone(&self.service);
        Ok(Response::new(apart(move || Ok::<_, AskError>(outcome::diagnosis(&service))).await?))
    }

    async fn stats(&self, _: Request<kv::StatsRequest>) -> Result<Response<kv::StatsResponse>, Status> {
        Ok(Response::new(stats(&self.service)))
    }

    async fn get_warmup(
        &self,
        _: Request<kv::GetWarmupRequest>,
    ) -> Result<Response<kv::GetWarmupResponse>, Status> {
        Ok(Response::new(warmup(&self.service)))
    }
}

fn warmup(service: &Service) -> kv::GetWarmupResponse {
    let restored = service.restored.get().cloned().unwrap_or_default();
    let now = Instant::now();
    let waited_for = |p: &PublisherStatus| is_waited_for(&p.spec, p.freshness.state);
    let waiting = service.publishers.list().into_iter().filter(waited_for);
    let stage = match service.stage() {
        Stage::Restoring => kv::WarmupStage::Restoring,
        Stage::Discovering => kv::WarmupStage::Discovering,
        Stage::Warming { .. } => kv::WarmupStage::Warming,
        Stage::Warm => kv::WarmupStage::Warm,
        Stage::GivenUp { .. } => kv::WarmupStage::GivenUp,
    };
    kv::GetWarmupResponse {
        stage: stage.into(),
        ready: service.is_ready(),
        uptime_ms: service.uptime_ms(),
        limit_ms: service.warmup_limit.as_millis() as u64,
        restored_from: restored.from,
        restored_publishers: restored.publishers,
        restored_blocks: restored.blocks,
        waiting: waiting.map(|p| write_status(service, &p, now)).collect(),
    }
}

fn explain(
    service: &Service,
    request: kv::ExplainScoreRequest,
) -> Result<kv::ExplainScoreResponse, AskError> {
    let question = request.score.ok_or_else(|| AskError::invalid("score", "missing"))?;
    let scoring = Scoring::new(service, question)?;
    let (explanation, view) =
        scoring.asking().lend(|q| service.explain(q, &request.instance_id, request.dp_rank))?;
    let blocks = explanation
        .blocks
        .into_iter()
        .zip(0..)
        .map(|(b, block)| kv::ExplainedBlock {
            block,
            seq_hash: b.seq.map(|s| s.0),
            tiers: tiers(b.tiers),
            gpu_groups: b.gpu_groups,
            speculative: b.speculative,
        })
        .collect();
    let speculative = scoring.asking().speculative;
    Ok(kv::ExplainScoreResponse {
        score: Some(endpoint_score(&explanation.score, &view, speculative, Instant::now())),
        blocks,
        steps: explanation.steps,
    })
}

fn stats(service: &Service) -> kv::StatsResponse {
    let index = service.index.stats();
    let totals = service.publishers.totals();
    let publishers = service.publishers.list();
    let live = publishers.iter().filter(|p| p.freshness.state == PublisherState::Live).count();
    kv::StatsResponse {
        publishers: publishers.len() as u64,
        live_publishers: live as u64,
        blocks: index.blocks,
        entries: index.entries,
        queries: service.counters.queries.load(Ordering::Relaxed),
        batches: totals.batches,
        events: totals.events,
        events_skipped: totals.events_skipped,
        messages_dropped: totals.dropped,
        speculative_entries: index.speculative,
        uptime_ms: service.uptime_ms(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
