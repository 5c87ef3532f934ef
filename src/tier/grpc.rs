//! `kv.v1.TierService`: how do schedulers and operators reach a node's tiers?

use std::sync::Arc;

use kvproto::rpc::kv;
use kvproto::rpc::kv::tier_service_server::TierService;
use kvtier::node::{Node, NodeError, PoolId, PoolUsage, Tiers, short_hash};
use kvtier::policy::{PinError, PinId, Tier};
use kvtier::pull::{Puller, Wish};
use kvtier::store::StoreKey;
use tonic::{Request, Response, Status};

use super::jobs::{self, Pull, Said, Way, tier};

/// Hashes in one request.
const MOST_HASHES: usize = 1 << 16;
/// Tiers that a node gives up copies in, and bounds.
const LOCAL: [Tier; 2] = [Tier::Cpu, Tier::Disk];
/// All tiers.
const ALL: [Tier; 3] = [Tier::Cpu, Tier::Disk, Tier::Shared];
/// Longest pin, in ms.
const LONGEST: u64 = 86_400_000;

/// The service.
#[derive(Debug)]
pub struct TierApi {
    node: Arc<Node>,
    puller: Option<Arc<Puller>>,
}

impl TierApi {
    /// For one node, and what brings it blocks of others.
    pub fn new(node: Arc<Node>, puller: Option<Arc<Puller>>) -> TierApi {
        TierApi { node, puller }
    }

    /// What is to be pulled from `source` before a job begins; `None` where that is empty.
    fn pull(&self, source: String, model: String, chains: &[Vec<StoreKey>]) -> Result<Option<Pull>, Status> {
        if source.is_empty() {
            return Ok(None);
        }
        let off = || {
            Status::failed_precondition("source: this node does not pull, see [pull] of its configuration")
        };
        let puller = self.puller.clone().ok_or_else(off)?;
        let hashes = chains.first().into_iter().flatten().filter_map(short_hash).collect();
        let only = chains.iter().flatten().copied().collect();
        Ok(Some(Pull { puller, wish: Wish { source, model, hashes, only, stay: 0 } }))
    }

    /// Pools that a request is about.
    fn pools(&self, block_bytes: u64) -> Result<Vec<PoolUsage>, Status> {
        let mut pools = self.node.usage();
        if block_bytes != 0 {
            pools.retain(|pool| pool.block_bytes as u64 == block_bytes);
            if pools.is_empty() {
                return Err(Status::not_found(format!("no pool of {block_bytes} byte blocks")));
            }
        }
        Ok(pools)
    }

    /// Names of blocks, for every fingerprint that engines of the model came with.
    fn keys(&self, blocks: Option<kv::BlockSet>) -> Result<(Vec<PoolId>, Vec<Vec<StoreKey>>), Status> {
        let blocks = blocks.ok_or_else(|| Status::invalid_argument("blocks: missing"))?;
        check_count("blocks.hashes", blocks.hashes.len())?;
        let pools = self.pools(blocks.block_bytes)?.iter().map(|pool| pool.pool).collect();
        let fingerprints = self.node.fingerprints(&blocks.model);
        if fingerprints.is_empty() {
            return Err(Status::not_found(format!("no engine of {} has been here", blocks.model)));
        }
        let chain = |model: u128| {
            let key = |hash: &bytes::Bytes| StoreKey::new(model, blocks.group, hash);
            blocks.hashes.iter().map(key).collect::<Result<Vec<_>, _>>()
        };
        let chains: Result<Vec<_>, _> = fingerprints.into_iter().map(chain).collect();
        Ok((pools, chains.map_err(|e| Status::invalid_argument(format!("blocks.hashes: {e}")))?))
    }

    /// Pins in every pool and for every fingerprint under which any block is there.
    fn pin_each(
        &self,
        blocks: Option<kv::BlockSet>,
        pin: impl Fn(PoolId, &[kvtier::policy::BlockId]) -> Result<PinId, PinError>,
    ) -> Result<Response<kv::PinResponse>, Status> {
        let (pools, chains) = self.keys(blocks)?;
        let sizes = self.node.usage();
        let mut pins = Vec::new();
        for pool in pools {
            for chain in &chains {
                let there = self.node.lookup(pool, &chain[..chain.len().min(1)]);
                if !there.iter().any(|place| matches!(place, kvtier::node::Where::In(_))) {
                    continue;
                }
                let ids: Vec<_> = chain.iter().map(StoreKey::id).collect();
                let id = pin(pool, &ids).map_err(refused_pin)?;
                let block_bytes = sizes.get(pool.0 as usize).map_or(0, |usage| usage.block_bytes as u64);
                pins.push(kv::PinRef { block_bytes, id: id.0 });
            }
        }
        Ok(Response::new(kv::PinResponse { pins }))
    }

    fn pin_of(&self, pin: Option<kv::PinRef>) -> Result<(PoolId, PinId), Status> {
        let pin = pin.ok_or_else(|| Status::invalid_argument("pin: missing"))?;
        let pool = self.pools(pin.block_bytes)?[0].pool;
        Ok((pool, PinId(pin.id)))
    }
}

fn ttl(ms: u64) -> Result<u64, Status> {
    match ms {
        1..=LONGEST => Ok(ms),
        _ => Err(Status::invalid_argument(format!("ttl_ms: {ms} is outside 1..{LONGEST}"))),
    }
}

fn check_count(field: &str, given: usize) -> Result<(), Status> {
    match given {
        0..=MOST_HASHES => Ok(()),
        _ => Err(Status::invalid_argument(format!("{field}: {given} given, {MOST_HASHES} allowed"))),
    }
}

fn refused_pin(error: PinError) -> Status {
    let text = error.to_string();
    match error {
        PinError::TooMany { .. } => Status::resource_exhausted(text),
        PinError::Unknown(_) => Status::not_found(text),
        PinError::Unwritten => Status::unavailable(text),
    }
}

fn refused(error: NodeError) -> Status {
    Status::unavailable(format!("{:#}", anyhow::Error::new(error)))
}

fn usage(pool: &PoolUsage) -> kv::PoolUsage {
    let disk = pool.disk.unwrap_or_default();
    let [waiting_up, waiting_down, waiting_shared] = pool.waiting.map(|n| n as u64);
    let [loaded_ram, loaded_disk, loaded_shared] = pool.moves.loaded;
    kv::PoolUsage {
        block_bytes: pool.block_bytes as u64,
        ram_capacity: pool.ram_blocks.into(),
        ram_blocks: pool.policy.cpu.into(),
        disk_capacity: pool.disk_blocks.into(),
        disk_blocks: pool.policy.disk.into(),
        shared_blocks: pool.shared as u64,
        pinned_blocks: pool.policy.pinned as u64,
        waiting_up,
        waiting_down,
        waiting_shared,
        asked: pool.policy.asked,
        found: pool.policy.found,
        loaded_ram,
        loaded_disk,
        loaded_shared,
        promoted: pool.moves.up,
        demoted: pool.moves.down,
        evicted: pool.policy.evicted,
        refused: pool.policy.refused + pool.moves.crowded,
        corrupt: disk.corrupt,
        failed_io: disk.failed,
        quarantined_slots: disk.quarantined as u64,
        disk_writable: disk.writable,
        restored: pool.restored,
    }
}

#[tonic::async_trait]
impl TierService for TierApi {
    type ScrubStream = Said<kv::ScrubProgress>;
    type CopyStream = Said<kv::JobProgress>;
    type MoveStream = Said<kv::JobProgress>;

    async fn get_tier_usage(
        &self,
        _: Request<kv::GetTierUsageRequest>,
    ) -> Result<Response<kv::GetTierUsageResponse>, Status> {
        let stream = |stream: kvtier::node::StreamStats| kv::StreamUsage {
            model: stream.model,
            next_seq: stream.next,
            first_seq: stream.first,
        };
        Ok(Response::new(kv::GetTierUsageResponse {
            node: self.node.name().to_owned(),
            pools: self.node.usage().iter().map(usage).collect(),
            streams: self.node.streams().into_iter().map(stream).collect(),
            draining: self.node.is_draining(),
        }))
    }

    async fn prefetch(
        &self,
        request: Request<kv::PrefetchRequest>,
    ) -> Result<Response<kv::PinResponse>, Status> {
        let request = request.into_inner();
        let (most, ttl) = (request.max_blocks, ttl(request.ttl_ms)?);
        if !request.source.is_empty() {
            let (_, chains) = self.keys(request.blocks.clone())?;
            let model = request.blocks.as_ref().map(|blocks| blocks.model.clone()).unwrap_or_default();
            if let Some(pull) = self.pull(request.source, model, &chains)? {
                let pulled = tokio::task::spawn_blocking(move || pull.wait()).await;
                pulled.map_err(|error| Status::internal(error.to_string()))??;
            }
        }
        self.pin_each(request.blocks, |pool, chain| self.node.prefetch(pool, chain, most, ttl))
    }

    async fn pin(&self, request: Request<kv::PinRequest>) -> Result<Response<kv::PinResponse>, Status> {
        let request = request.into_inner();
        let ttl = ttl(request.ttl_ms)?;
        self.pin_each(request.blocks, |pool, chain| self.node.pin(pool, chain, ttl))
    }

    async fn renew_pin(
        &self,
        request: Request<kv::RenewPinRequest>,
    ) -> Result<Response<kv::RenewPinResponse>, Status> {
        let request = request.into_inner();
        let (pool, pin) = self.pin_of(request.pin)?;
        self.node.renew(pool, pin, ttl(request.ttl_ms)?).map_err(refused_pin)?;
        Ok(Response::new(kv::RenewPinResponse {}))
    }

    async fn unpin(&self, request: Request<kv::UnpinRequest>) -> Result<Response<kv::UnpinResponse>, Status> {
        let (pool, pin) = self.pin_of(request.into_inner().pin)?;
        self.node.unpin(pool, pin).map_err(refused_pin)?;
        Ok(Response::new(kv::UnpinResponse {}))
    }

    async fn copy(&self, request: Request<kv::CopyRequest>) -> Result<Response<Self::CopyStream>, Status> {
        let request = request.into_inner();
        let way = Way { to: tier("to", &request.to, &ALL)?, leave: None };
        let model = request.blocks.as_ref().map(|blocks| blocks.model.clone()).unwrap_or_default();
        let (pools, chains) = self.keys(request.blocks)?;
        let pull = self.pull(request.source, model, &chains)?;
        Ok(Response::new(jobs::transfer(self.node.clone(), pull, pools, chains, way)))
    }

    async fn r#move(&self, request: Request<kv::MoveRequest>) -> Result<Response<Self::MoveStream>, Status> {
        let request = request.into_inner();
        let (to, from) = (tier("to", &request.to, &ALL)?, tier("from", &request.from, &LOCAL)?);
        if from == to {
            return Err(Status::invalid_argument(format!(
                "to: {:?} is where they are moved from",
                request.to
            )));
        }
        let (pools, chains) = self.keys(request.blocks)?;
        let way = Way { to, leave: Some(from) };
        Ok(Response::new(jobs::transfer(self.node.clone(), None, pools, chains, way)))
    }

    async fn hint(&self, request: Request<kv::HintRequest>) -> Result<Response<kv::HintResponse>, Status> {
        let request = request.into_inner();
        let ttl = ttl(request.ttl_ms)?;
        check_count("hashes", request.hashes.len())?;
        if let Some(puller) = self.puller.as_ref().filter(|_| !request.source.is_empty()) {
            let kv::HintRequest { model, source, .. } = request.clone();
            let hashes: Vec<u64> = request.hashes.iter().copied().take(request.max_blocks as usize).collect();
            let pulling = hashes.len() as u64;
            // When it is done, what is here then is brought up as for any hint. Nobody waits for that.
            if puller.wish(Wish { source, model, hashes, only: Default::default(), stay: ttl }).is_some() {
                return Ok(Response::new(kv::HintResponse { pulling, ..kv::HintResponse::default() }));
            }
        }
        let hinted = self.node.hint(&request.model, &request.hashes, request.max_blocks, ttl);
        Ok(Response::new(kv::HintResponse {
            known: hinted.known,
            unknown: hinted.unknown,
            copied: hinted.copied,
            refused: hinted.refused,
            pulling: 0,
        }))
    }

    async fn hold(&self, request: Request<kv::HoldRequest>) -> Result<Response<kv::HoldResponse>, Status> {
        let request = request.into_inner();
        check_count("hashes", request.hashes.len())?;
        let holding = self.node.hold(&request.model, &request.hashes, ttl(request.ttl_ms)?);
        let holding = holding.map_err(refused_pin)?;
        let sizes = self.node.usage();
        let pin = |(pool, pin): (PoolId, PinId)| kv::PinRef {
            block_bytes: sizes.get(pool.0 as usize).map_or(0, |usage| usage.block_bytes as u64),
            id: pin.0,
        };
        Ok(Response::new(kv::HoldResponse {
            pins: holding.pins.into_iter().map(pin).collect(),
            held: holding.held,
        }))
    }

    async fn evict(&self, request: Request<kv::EvictRequest>) -> Result<Response<kv::EvictResponse>, Status> {
        let (pools, chains) = self.keys(request.into_inner().blocks)?;
        let each = pools.iter().flat_map(|pool| chains.iter().map(move |chain| (*pool, chain)));
        let copies = each.map(|(pool, chain)| self.node.evict(pool, chain) as u64).sum();
        Ok(Response::new(kv::EvictResponse { copies }))
    }

    async fn set_quota(
        &self,
        request: Request<kv::SetQuotaRequest>,
    ) -> Result<Response<kv::SetQuotaResponse>, Status> {
        let request = request.into_inner();
        let tier = tier("tier", &request.tier, &LOCAL)?;
        let owner = self.node.owner(&request.model, &request.cache_salt);
        let owner = owner.map_err(|e| Status::resource_exhausted(e.to_string()))?;
        for pool in self.pools(request.block_bytes)? {
            self.node.set_quota(pool.pool, owner, tier, request.blocks).map_err(refused)?;
        }
        Ok(Response::new(kv::SetQuotaResponse {}))
    }

    async fn scrub(&self, request: Request<kv::ScrubRequest>) -> Result<Response<Self::ScrubStream>, Status> {
        let pools = self.pools(request.into_inner().block_bytes)?;
        Ok(Response::new(jobs::scrub(self.node.clone(), pools)))
    }

    async fn drain(&self, request: Request<kv::DrainRequest>) -> Result<Response<kv::DrainResponse>, Status> {
        let left = if request.into_inner().undo {
            self.node.undrain();
            0
        } else {
            self.node.drain() as u64
        };
        Ok(Response::new(kv::DrainResponse { left }))
    }
}
