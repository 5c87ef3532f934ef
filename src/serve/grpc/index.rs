//! `kv.v1.IndexService`: who holds how much of a prompt?

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kvproto::rpc::kv;
use kvproto::rpc::kv::index_service_server::IndexService;
use kvproto::rpc::kv::peer_news::News;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{Asking, non_zero, tiers, write_prompt};
use super::hash_spec::hash_spec;
use super::outcome;
use super::score::{apart, fitting, score};
use super::stream::answers;
use crate::serve::ask::Located;
use crate::serve::prompt::PromptKey;
use crate::serve::routing::{Endpoint, Recorded};
use crate::serve::{AskError, Service, Told};

/// The service.
pub(super) struct IndexApi {
    service: Arc<Service>,
}

impl IndexApi {
    pub fn new(service: Arc<Service>) -> IndexApi {
        IndexApi { service }
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl IndexService for IndexApi {
    type ScoreStreamStream = Streamed<kv::ScoreResponse>;
    type LocateBlocksStream = Streamed<kv::BlockPlacement>;

    async fn score(&self, request: Request<kv::ScoreRequest>) -> Result<Response<kv::ScoreResponse>, Status> {
        Ok(Response::new(score(&self.service, request.into_inner()).await?))
    }

    async fn score_stream(
        &self,
        request: Request<Streaming<kv::ScoreRequest>>,
    ) -> Result<Response<Self::ScoreStreamStream>, Status> {
        Ok(Response::new(Box::pin(answers(Arc::clone(&self.service), request.into_inner()))))
    }

    async fn locate_blocks(
        &self,
        request: Request<kv::LocateBlocksRequest>,
    ) -> Result<Response<Self::LocateBlocksStream>, Status> {
        let kv::LocateBlocksRequest { model, tenant_id, prompt, candidates, block_size } =
            request.into_inner();
        let mut asking = Asking::new(&self.service, tenant_id, model, prompt, block_size)?;
        asking.candidates = candidates;
        let service = Arc::clone(&self.service);
        let located = apart(move || asking.lend(|q| service.locate(q))).await?;
        Ok(Response::new(Box::pin(tokio_stream::iter(placements(located).map(Ok)))))
    }

    async fn record_routing(
        &self,
        request: Request<kv::RecordRoutingRequest>,
    ) -> Result<Response<kv::RecordRoutingResponse>, Status> {
        let recorded = record_routing(&self.service, request.into_inner(), Told::ByClient).await?;
        Ok(Response::new(kv::RecordRoutingResponse {
            recorded_blocks: u32::try_from(recorded.blocks).unwrap_or(u32::MAX),
            missing_endpoints: recorded
                .missing
                .into_iter()
                .map(|e| kv::RoutedEndpoint { instance_id: e.instance, dp_rank: e.rank })
                .collect(),
        }))
    }

    async fn forget_routing(
        &self,
        request: Request<kv::ForgetRoutingRequest>,
    ) -> Result<Response<kv::ForgetRoutingResponse>, Status> {
        let request = request.into_inner();
        let found = self.service.forget_routing(&request.request_id, Told::ByClient)?;
        self.service.peers.outbox.tell(&kv::PeerNews { news: Some(News::Forgotten(request)) });
        Ok(Response::new(kv::ForgetRoutingResponse { found }))
    }

    async fn report_outcome(
        &self,
        request: Request<kv::ReportOutcomeRequest>,
    ) -> Result<Response<kv::ReportOutcomeResponse>, Status> {
        let service = Arc::clone(&self.service);
        let request = request.into_inner();
        // The prompt is asked about again, and it may be long.
        Ok(Response::new(apart(move || outcome::report(&service, request)).await?))
    }

    async fn report_outcomes(
        &self,
        request: Request<Streaming<kv::ReportOutcomeRequest>>,
    ) -> Result<Response<kv::ReportOutcomesResponse>, Status> {
        Ok(Response::new(outcome::reports(&self.service, request.into_inner()).await?))
    }

    async fn get_hash_spec(
        &self,
        request: Request<kv::GetHashSpecRequest>,
    ) -> Result<Response<kv::HashSpec>, Status> {
        Ok(Response::new(hash_spec(&self.service, request.into_inner())?))
    }
}

/// Notes a routing, and tells the other replicas of it where a client said so.
pub(crate) async fn record_routing(
    service: &Arc<Service>,
    request: kv::RecordRoutingRequest,
    told: Told,
) -> Result<Recorded, Status> {
    let again = (told == Told::ByClient && !service.peers.outbox.is_idle()).then(|| request.clone());
    let kv::RecordRoutingRequest { request_id, model, tenant_id, prompt, endpoints, ttl_ms, block_size } =
        request;
    let asking = Asking::new(service, tenant_id, model, prompt, block_size)?;
    if matches!(asking.prompt.key, PromptKey::Engine(_)) {
        let why = "an engine's own hashes do not name the blocks to come; send token ids or canonical hashes";
        return Err(AskError::invalid("hashes", why).into());
    }
    let endpoints =
        endpoints.into_iter().map(|e| Endpoint { instance: e.instance_id, rank: e.dp_rank }).collect();
    let ttl = non_zero(ttl_ms).map(|ms| Duration::from_millis(ms.into()));
    let prompt = Arc::clone(&asking.prompt);
    let noting = Arc::clone(service);
    let recorded = fitting(prompt.key.len(), move || {
        asking.lend(|query| noting.record_routing(&request_id, query, endpoints, ttl, told))
    })
    .await?;
    if let Some(again) = again {
        // A score token means nothing elsewhere: the prompt itself is told.
        let (prompt, block_size) = write_prompt(&prompt, service.index.config().llmd.map(|l| l.algo()));
        let routed = kv::RecordRoutingRequest { prompt: Some(prompt), block_size, ..again };
        service.peers.outbox.tell(&kv::PeerNews { news: Some(News::Routed(routed)) });
    }
    Ok(recorded)
}

fn placements(located: Located) -> impl Iterator<Item = kv::BlockPlacement> + Send {
    let Located { placements, holders } = located;
    placements.into_iter().zip(0..).map(move |(placement, block)| kv::BlockPlacement {
        block,
        seq_hash: placement.seq.map(|s| s.0),
        holders: placement
            .holders
            .iter()
            .filter_map(|(id, set)| {
                let spec = holders.get(id)?;
                Some(kv::BlockHolder {
                    instance_id: spec.instance.clone(),
                    dp_rank: spec.rank,
                    tiers: tiers(*set),
                })
            })
            .collect(),
    })
}
