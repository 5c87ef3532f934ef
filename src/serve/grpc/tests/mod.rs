//! The services over a real port, with batches put into the index by hand.

mod looks;
mod outcomes;
mod prompts;
mod routings;
mod scores;
mod server;

use std::sync::Arc;

use kvindex::{HolderId, Index, IndexConfig, TierWeights};
use kvproto::event::{BatchBuilder, StoredFields};
use kvproto::rpc::kv;
use kvproto::rpc::kv::admin_service_client::AdminServiceClient;
use kvproto::rpc::kv::index_service_client::IndexServiceClient;
use kvproto::rpc::kv::prompt::Key;
use kvproto::{EngineHash, Tier};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::ingest::testing::dialled;
use crate::ingest::{IngestConfig, Publishers};
use crate::publisher::PublisherSpec;
use crate::serve::{Limits, Service};

/// A server on a port of its own; it stops when the test ends.
struct Kvd {
    service: Arc<Service>,
    channel: Channel,
    stop: oneshot::Sender<()>,
    served: JoinHandle<anyhow::Result<()>>,
}

const A: &str = "10.0.0.1:8000";

const B: &str = "10.0.0.2:8000";

impl Kvd {
    async fn start() -> Kvd {
        Kvd::start_with(Limits::default()).await
    }

    async fn start_with(limits: Limits) -> Kvd {
        let index = Arc::new(Index::new(IndexConfig::default()));
        let publishers = Publishers::start(Arc::clone(&index), IngestConfig::default(), None).unwrap();
        publishers.begin();
        let service = Arc::new(Service::new(index, publishers, limits, TierWeights::default()));
        service.set_ready(true);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(super::serve(Arc::clone(&service), listener, None, None, async {
            let _ = stopped.await;
        }));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Kvd { service, channel, stop, served }
    }

    fn index(&self) -> IndexServiceClient<Channel> {
        IndexServiceClient::new(self.channel.clone())
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    /// Registers a publisher whose endpoint nobody listens on; returns its holder.
    fn register(&self, instance: &str, rank: u32) -> HolderId {
        self.service
            .publishers
            .register(PublisherSpec { dp_rank: rank, ..dialled(instance, "tcp://127.0.0.1:9") })
            .unwrap();
        let of =
            |p: &crate::publisher::PublisherStatus| p.spec.instance_id == instance && p.spec.dp_rank == rank;
        self.service.publishers.list().iter().find(|p| of(p)).unwrap().holder
    }

    /// Stores the first `blocks` blocks of 4 of the prompt 1, 2, 3 …, named 100, 101 …, one
    /// by one: several in an event would be one chunk of an offload tier.
    fn store(&self, holder: HolderId, blocks: u32, tier: Tier) {
        let name = |block: u32| EngineHash(100 + u64::from(block));
        let mut batch = BatchBuilder::new(0.0, None);
        for block in 0..blocks {
            let parent = block.checked_sub(1).map(name);
            let fields = StoredFields { parent, block_size: 4, tier, ..Default::default() };
            let tokens: Vec<u32> = (4 * block + 1..=4 * block + 4).collect();
            batch.stored(fields, &[name(block)], &tokens, &[]);
        }
        self.service.index.apply(holder, &batch.build());
    }
}

/// The prompt 1, 2, 3 … of `n` tokens.
fn tokens(n: u32) -> Option<kv::Prompt> {
    prompt(Key::Tokens(kv::TokenIds { ids: (1..=n).collect() }))
}

fn prompt(key: Key) -> Option<kv::Prompt> {
    Some(kv::Prompt { key: Some(key), ..kv::Prompt::default() })
}

fn hashes(kind: kv::HashKind, hashes: Vec<u64>) -> Option<kv::Prompt> {
    prompt(Key::Hashes(kv::BlockHashes { kind: kind.into(), hashes }))
}

fn ask(prompt: Option<kv::Prompt>) -> kv::ScoreRequest {
    kv::ScoreRequest { model: "m".to_owned(), prompt, ..kv::ScoreRequest::default() }
}

/// Instance, cached blocks, cached tokens.
fn short(r: &kv::ScoreResponse) -> Vec<(&str, u32, u64)> {
    r.endpoints.iter().map(|e| (e.instance_id.as_str(), e.cached_blocks, e.cached_tokens)).collect()
}
