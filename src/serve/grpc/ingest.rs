//! `kv.v1.IngestService`: which engines are followed, and how are they doing?

use std::sync::Arc;
use std::time::Instant;

use kvproto::Tier;
use kvproto::rpc::kv;
use kvproto::rpc::kv::ingest_service_server::IngestService;
use tonic::{Request, Response, Status};

use super::convert::{freshness, non_empty, non_zero, or_default_tenant, tier};
use super::outcome;
use super::score::apart;
use crate::publisher::{EngineType, HashAlgo, PublisherSpec, PublisherStatus, Selector};
use crate::registration::{HashSeed, Registration};
use crate::serve::{AskError, Service};

/// The service.
pub(super) struct IngestApi {
    service: Arc<Service>,
}

impl IngestApi {
    pub fn new(service: Arc<Service>) -> IngestApi {
        IngestApi { service }
    }
}

#[tonic::async_trait]
impl IngestService for IngestApi {
    async fn register_publisher(
        &self,
        request: Request<kv::RegisterPublisherRequest>,
    ) -> Result<Response<kv::RegisterPublisherResponse>, Status> {
        let message =
            request.into_inner().publisher.ok_or_else(|| AskError::invalid("publisher", "missing"))?;
        let spec = read_spec(message)?;
        let service = Arc::clone(&self.service);
        // The registration is on disk before it is answered.
        let registered = apart(move || service.register(spec)).await?;
        Ok(Response::new(kv::RegisterPublisherResponse { replaced: registered.replaced }))
    }

    async fn unregister_publisher(
        &self,
        request: Request<kv::UnregisterPublisherRequest>,
    ) -> Result<Response<kv::UnregisterPublisherResponse>, Status> {
        let kv::UnregisterPublisherRequest { tenant_id, model, instance_id, dp_rank } = request.into_inner();
        if instance_id.is_empty() {
            return Err(AskError::invalid("instance_id", "empty").into());
        }
        let selector = Selector {
            tenant_id: or_default_tenant(tenant_id),
            model: non_empty(model),
            instance_id,
            dp_rank,
        };
        let service = Arc::clone(&self.service);
        let removed = apart(move || service.unregister(&selector)).await?;
        Ok(Response::new(kv::UnregisterPublisherResponse {
            removed: removed.iter().map(write_spec).collect(),
        }))
    }

    async fn list_publishers(
        &self,
        _: Request<kv::ListPublishersRequest>,
    ) -> Result<Response<kv::ListPublishersResponse>, Status> {
        let now = Instant::now();
        let publishers =
            self.service.publishers.list().iter().map(|p| write_status(&self.service, p, now)).collect();
        Ok(Response::new(kv::ListPublishersResponse { publishers }))
    }
}

/// By the same rules as a registration over HTTP.
/// A registration as a message gives it, checked.
pub(crate) fn read_spec(message: kv::PublisherSpec) -> Result<PublisherSpec, AskError> {
    let registration = Registration {
        endpoint: Some(message.endpoint),
        replay_endpoint: Some(message.replay_endpoint),
        engine: Some(message.r#type),
        modelname: Some(message.model),
        tenant_id: Some(message.tenant_id),
        instance_id: Some(message.instance_id),
        block_size: non_zero(message.block_size),
        dp_rank: Some(message.dp_rank),
        lora_name: Some(message.lora_name),
        additionalsalt: Some(message.additional_salt),
        bind: Some(message.bind),
        topic: Some(message.topic),
        attention_chunk_size: non_zero(message.attention_chunk_size),
        hash_algo: Some(message.hash_algo),
        hash_seed: Some(HashSeed(message.hash_seed)),
        node: Some(message.node),
        health_url: Some(message.health_url),
        lease_seconds: non_zero(message.lease_seconds),
        control_endpoint: Some(message.control_endpoint),
        pull_endpoint: Some(message.pull_endpoint),
    };
    registration.check().map_err(|error| {
        // The two fields that RFC #1403 names otherwise than the messages.
        let field = match error.field {
            "modelname" => "model",
            "additionalsalt" => "additional_salt",
            same => same,
        };
        AskError::invalid(field, error.why.replace(error.field, field))
    })
}

const ENGINES: [(EngineType, &str); 4] = [
    (EngineType::Vllm, "vLLM"),
    (EngineType::Sglang, "SGLang"),
    (EngineType::Mooncake, "Mooncake"),
    (EngineType::Kvtier, "kvtier"),
];

const HASH_ALGOS: [(HashAlgo, &str); 4] = [
    (HashAlgo::Sha256, "sha256"),
    (HashAlgo::Sha256Cbor, "sha256_cbor"),
    (HashAlgo::Xxhash, "xxhash"),
    (HashAlgo::XxhashCbor, "xxhash_cbor"),
];

fn name_of<T: PartialEq>(names: &[(T, &str)], is: &T) -> String {
    names.iter().find(|(t, _)| t == is).map(|(_, n)| (*n).to_owned()).unwrap_or_default()
}

/// A registration as a message.
pub(crate) fn write_spec(spec: &PublisherSpec) -> kv::PublisherSpec {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    kv::PublisherSpec {
        tenant_id: spec.tenant_id.clone(),
        model: spec.model.clone(),
        instance_id: spec.instance_id.clone(),
        dp_rank: spec.dp_rank,
        r#type: name_of(&ENGINES, &spec.engine),
        endpoint: text(&spec.endpoint),
        replay_endpoint: text(&spec.replay_endpoint),
        block_size: spec.block_size.unwrap_or(0),
        lora_name: text(&spec.lora_name),
        additional_salt: spec.additional_salt.clone(),
        bind: text(&spec.bind),
        topic: text(&spec.topic),
        attention_chunk_size: spec.attention_chunk_size.unwrap_or(0),
        hash_algo: spec.hash_algo.map(|a| name_of(&HASH_ALGOS, &a)).unwrap_or_default(),
        hash_seed: text(&spec.hash_seed),
        node: text(&spec.node),
        health_url: text(&spec.health_url),
        lease_seconds: spec.lease_seconds.unwrap_or(0),
        control_endpoint: text(&spec.control_endpoint),
        pull_endpoint: text(&spec.pull_endpoint),
    }
}

/// A publisher and how it is doing, as others read it.
pub(super) fn write_status(service: &Service, status: &PublisherStatus, now: Instant) -> kv::PublisherStatus {
    let held = service.index.holder_stats(status.holder).unwrap_or_default();
    let account = service.publishers.account(status.holder);
    let (tally, distrusted) = account.map(|a| a.tally(now)).unwrap_or_default();
    kv::PublisherStatus {
        spec: Some(write_spec(&status.spec)),
        freshness: Some(freshness(&status.freshness, now)),
        batches: status.batches,
        events: status.events,
        blocks: held.blocks,
        gaps: status.gaps,
        restarts: status.restarts,
        replays: status.replays,
        malformed: status.malformed,
        dropped: status.dropped,
        queued: status.queued,
        last_error: status.last_error.clone().unwrap_or_default(),
        observed_block_size: held.block_size,
        suspect_blocks: held.suspect,
        losses: status.losses,
        misranked: status.misranked,
        deaths: status.deaths,
        outcomes: outcome::counts(&tally),
        too_low_tokens: tally.too_low.tokens,
        too_high_tokens: tally.too_high.tokens,
        distrusted_blocks: distrusted as u64,
        source: status.origin.name().to_owned(),
        source_object: status.origin.object().to_owned(),
        events_skipped: status.events_skipped,
        by_tier: Tier::ALL
            .into_iter()
            .zip(held.by_tier)
            .filter(|(_, blocks)| *blocks > 0)
            .map(|(t, blocks)| kv::TierCount {
                tier: tier(t).into(),
                blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> kv::PublisherSpec {
        kv::PublisherSpec {
            model: "m".to_owned(),
            instance_id: "10.0.0.1:8000".to_owned(),
            r#type: "vLLM".to_owned(),
            endpoint: "tcp://10.0.0.1:5557".to_owned(),
            block_size: 16,
            hash_algo: "sha256_cbor".to_owned(),
            ..kv::PublisherSpec::default()
        }
    }

    #[test]
    fn a_registration_survives_being_read_and_written() {
        let written = write_spec(&read_spec(message()).unwrap());
        assert_eq!(written, kv::PublisherSpec { tenant_id: "default".to_owned(), ..message() });
    }

    #[test]
    fn what_is_wrong_is_said_by_the_message_field() {
        let refused = |change: fn(&mut kv::PublisherSpec)| {
            let mut m = message();
            change(&mut m);
            read_spec(m).unwrap_err().to_string()
        };
        assert_eq!(refused(|m| m.model.clear()), "model: model is required");
        assert!(
            refused(|m| m.additional_salt = "x".repeat(5000)).starts_with("additional_salt: longer than")
        );
        assert!(refused(|m| m.r#type = "TGI".to_owned()).starts_with("type: \"TGI\" is not known"));
    }
}
