//! How is kvd asked over gRPC?
//!
//! One file per service; `convert` turns messages into what [`super::ask`] takes and
//! back. Rules live there, not here.

mod admin;
pub(super) mod convert;
mod dump;
mod hash_spec;
mod index;
mod ingest;
mod llmd;
mod outcome;
mod score;
mod stream;
#[cfg(test)]
mod tests;
mod transfer;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kvproto::rpc::indexer::indexer_service_server::IndexerServiceServer;
use kvproto::rpc::kv::admin_service_server::AdminServiceServer;
use kvproto::rpc::kv::index_service_server::IndexServiceServer;
use kvproto::rpc::kv::ingest_service_server::IngestServiceServer;
use kvproto::rpc::kv::peer_service_server::PeerServiceServer;
use kvproto::rpc::kv::transfer_service_server::TransferServiceServer;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

pub(crate) use index::record_routing;
pub(crate) use ingest::{read_spec, write_spec};

use super::Service;
use crate::guard::tls::ServerTls;
use crate::guard::{GateLayer, wire};
use crate::peers::api::PeerApi;
use crate::traces::Parents;

/// Names that `grpc.health.v1` knows besides "" (the process).
const LIVENESS: &str = "liveness";
const READINESS: &str = "readiness";
const INDEX: &str = "kv.v1.IndexService";

/// A request of 128 Ki token ids fits into the window at once.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Such a request comes in one frame; each frame is handled and woken up for by itself.
const FRAME: u32 = 1 << 20;
/// Open streams of one connection, and requests that are read and worked on at a time. With the
/// message limit they bound a connection's memory.
const MAX_STREAMS: u32 = 256;
const MAX_REQUESTS: usize = 64;
/// Streams of one connection where health is asked alone.
const MAX_HEALTH_STREAMS: u32 = 16;
/// Long-lived streams may end by themselves this long after the shutdown began.
const GRACE: Duration = Duration::from_secs(2);

/// Serves every gRPC service on `listener`, and health alone on `health_listener`, until `shutdown` completes.
///
/// # Errors
/// Where a listener fails or the reflection data cannot be built.
pub async fn serve(
    service: Arc<Service>,
    listener: TcpListener,
    health_listener: Option<TcpListener>,
    tls: Option<Arc<ServerTls>>,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let most = service.limits.max_body_bytes;
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(kvproto::rpc::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let router = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(MAX_STREAMS)
        .concurrency_limit_per_connection(MAX_REQUESTS)
        // Finds clients that are gone without a word, whose streams would stay forever.
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .layer(Parents { wanted: service.traces.is_some() })
        .layer(GateLayer::new(Arc::clone(&service.guard)))
        .add_service(
            IndexServiceServer::new(index::IndexApi::new(Arc::clone(&service)))
                .max_decoding_message_size(most),
        )
        .add_service(
            IngestServiceServer::new(ingest::IngestApi::new(Arc::clone(&service)))
                .max_decoding_message_size(most),
        )
        .add_service(
            AdminServiceServer::new(admin::AdminApi::new(Arc::clone(&service)))
                .max_decoding_message_size(most),
        )
        .add_service(
            IndexerServiceServer::new(llmd::LlmdApi::new(Arc::clone(&service)))
                .max_decoding_message_size(most),
        )
        .add_service(
            TransferServiceServer::new(transfer::TransferApi::new(Arc::clone(&service)))
                .max_decoding_message_size(most),
        )
        .add_service(
            PeerServiceServer::new(PeerApi::new(Arc::clone(&service))).max_decoding_message_size(most),
        )
        .add_service(health_service.clone())
        .add_service(reflection().build_v1().context("build reflection v1")?)
        .add_service(reflection().build_v1alpha().context("build reflection v1alpha")?);

    let health_alone = async {
        match health_listener {
            None => std::future::pending().await,
            Some(listener) => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                let server = Server::builder()
                    .max_concurrent_streams(MAX_HEALTH_STREAMS)
                    .http2_keepalive_interval(Some(Duration::from_secs(30)))
                    .add_service(health_service);
                server.serve_with_incoming(incoming).await
            }
        }
    };
    let stopping = Notify::new();
    let incoming = wire::incoming(listener, tls);
    let server = router.serve_with_incoming_shutdown(incoming, async {
        shutdown.await;
        service.set_ready(false);
        stopping.notify_one();
    });
    let grace = async {
        stopping.notified().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = server => served.context("serve gRPC"),
        served = health_alone => served.context("serve health"),
        () = grace => Ok(()),
        () = service.expire_routings() => Ok(()),
        () = service.keep_transfers() => Ok(()),
        () = service.review_outcomes() => Ok(()),
        () = follow_readiness(&service, &health) => Ok(()),
    }
}

/// Reports the service's readiness; the process itself is alive as long as this runs.
async fn follow_readiness(service: &Service, health: &HealthReporter) {
    for name in ["", LIVENESS] {
        health.set_service_status(name, ServingStatus::Serving).await;
    }
    let mut readiness = service.readiness();
    loop {
        let status =
            if *readiness.borrow_and_update() { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in [READINESS, INDEX] {
            health.set_service_status(name, status).await;
        }
        if readiness.changed().await.is_err() {
            // The sender lives in `service`, which outlives this.
            return;
        }
    }
}
