//! `kv.v1.PeerService`: what other replicas ask and tell.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvproto::rpc::kv;
use kvproto::rpc::kv::peer_news::News;
use kvproto::rpc::kv::peer_service_server::PeerService;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use super::{Counts, digests};
use crate::serve::Service;
use crate::snapshot::{Pace, write};
use crate::warmup::Stage;

/// Bytes of a chunk, and chunks that may wait for a slow replica.
const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 8;
/// A publisher's pause is followed by this many of rest while a snapshot is made for a replica: queries
/// go on meanwhile, and the replica waits.
const REST: u32 = 1;
/// How long a digest is waited for.
const DIGEST: Duration = Duration::from_secs(2);

/// The service.
pub struct PeerApi {
    service: Arc<Service>,
}

impl PeerApi {
    /// Answers for `service`.
    pub fn new(service: Arc<Service>) -> PeerApi {
        PeerApi { service }
    }
}

#[tonic::async_trait]
impl PeerService for PeerApi {
    type BootstrapStream = ReceiverStream<Result<kv::BootstrapChunk, Status>>;

    async fn hello(&self, _: Request<kv::HelloRequest>) -> Result<Response<kv::HelloResponse>, Status> {
        let warm = self.service.stage() == Stage::Warm && self.service.is_ready();
        Ok(Response::new(kv::HelloResponse { node: self.service.peers.node, warm }))
    }

    async fn bootstrap(
        &self,
        request: Request<kv::BootstrapRequest>,
    ) -> Result<Response<Self::BootstrapStream>, Status> {
        let peers = &self.service.peers;
        if request.into_inner().node == peers.node {
            return Err(Status::invalid_argument("node: this is the replica that asks"));
        }
        if self.service.stage() != Stage::Warm {
            return Err(Status::unavailable("not warm, ask another replica"));
        }
        // One at a time: replicas that start together must not make this one work for all at once.
        let turn = peers.giving.lock().await;
        let service = Arc::clone(&self.service);
        let file = tokio::task::spawn_blocking(move || cut(&service)).await;
        let file = file.map_err(|e| Status::internal(e.to_string()))?;
        drop(turn);
        let file = file.map_err(|e| Status::unavailable(format!("no snapshot: {e}")))?;
        let (chunks, stream) = mpsc::channel(CHUNKS);
        let counts = Arc::clone(&peers.counts);
        tokio::task::spawn_blocking(move || give(file, &chunks, &counts));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn tell(
        &self,
        request: Request<Streaming<kv::PeerNews>>,
    ) -> Result<Response<kv::TellResponse>, Status> {
        let mut news = request.into_inner();
        while let Some(message) = news.message().await? {
            Counts::add(&self.service.peers.counts.heard, 1);
            if let Err(why) = hear(&self.service, message).await {
                Counts::add(&self.service.peers.counts.refused, 1);
                debug!(error = why.message(), "news that cannot be used");
            }
        }
        Ok(Response::new(kv::TellResponse {}))
    }

    async fn get_digest(
        &self,
        request: Request<kv::GetDigestRequest>,
    ) -> Result<Response<kv::GetDigestResponse>, Status> {
        let kv::GetDigestRequest { tenant_id, model, instance_id, dp_rank, at_seq } = request.into_inner();
        let key = crate::publisher::PublisherKey { tenant_id, model, instance_id, dp_rank };
        let lane =
            self.service.publishers.lane_by(&key).ok_or_else(|| Status::not_found("not followed here"))?;
        let looking = Arc::clone(&lane);
        let found = tokio::task::spawn_blocking(move || looking.digest_at(at_seq, DIGEST)).await;
        let found = found.map_err(|e| Status::internal(e.to_string()))?;
        let complete = lane.freshness().complete;
        let followed_ms = lane.followed_for().as_millis() as u64;
        Ok(Response::new(match found {
            Some((ts, digest)) => kv::GetDigestResponse {
                found: true,
                ts,
                entries: digest.entries,
                held: digests::to_bytes(digest.held),
                complete,
                followed_ms,
            },
            None => kv::GetDigestResponse { complete, followed_ms, ..kv::GetDigestResponse::default() },
        }))
    }
}

/// A snapshot in a file without a name, which is gone when it is read.
fn cut(service: &Service) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    let pace = Pace::Leisurely(REST);
    let written = write(&service.publishers, &service.index, &mut file, pace, || true);
    let written = written.map_err(io::Error::other)?;
    info!(publishers = written.publishers.len(), bytes = written.bytes, "snapshot for another replica");
    file.flush()?;
    file.rewind()?;
    Ok(file)
}

fn give(mut file: File, to: &mpsc::Sender<Result<kv::BootstrapChunk, Status>>, counts: &Counts) {
    loop {
        let mut data = vec![0; CHUNK];
        let chunk = match file.read(&mut data) {
            Ok(0) => return,
            Ok(n) => {
                data.truncate(n);
                Counts::add(&counts.given, n as u64);
                Ok(kv::BootstrapChunk { data: Bytes::from(data) })
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => Err(Status::data_loss(e.to_string())),
        };
        let last = chunk.is_err();
        // A replica that has gone needs no more.
        if to.blocking_send(chunk).is_err() || last {
            return;
        }
    }
}

async fn hear(service: &Arc<Service>, message: kv::PeerNews) -> Result<(), Status> {
    match message.news {
        Some(News::Routed(routed)) => {
            crate::serve::grpc::record_routing(service, routed, crate::serve::Told::ByPeer).await.map(drop)
        }
        Some(News::Forgotten(forgotten)) => {
            Ok(service.forget_routing(&forgotten.request_id, crate::serve::Told::ByPeer).map(drop)?)
        }
        Some(News::Registration(registration)) => {
            let service = Arc::clone(service);
            let heard = tokio::task::spawn_blocking(move || service.hear_registration(registration)).await;
            heard.map_err(|e| Status::internal(e.to_string()))?
        }
        // Of a later version: what it does not say cannot be used.
        None => Err(Status::unimplemented("unknown kind of news")),
    }
}
