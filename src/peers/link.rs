//! The connection to one peer: says hello now and then, and passes news on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kvproto::rpc::kv::peer_service_client::PeerServiceClient;
use kvproto::rpc::kv::{HelloRequest, HelloResponse};
use tonic::Status;
use tonic::transport::Endpoint;
use tracing::debug;

use super::{Peers, jitter};
use crate::guard::dial::{Link, innermost};
use crate::serve::Service;

/// How long connecting and short calls may take.
const CONNECT: Duration = Duration::from_secs(2);
/// Between two hellos, and before connecting again.
const PAUSE: Duration = Duration::from_secs(1);

/// A client of the peer at `address`.
pub(super) async fn connect(peers: &Peers, address: SocketAddr) -> Result<PeerServiceClient<Link>, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| Status::internal(e.to_string()))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5));
    let link = peers.dialer.connect(&endpoint, CONNECT).await;
    Ok(PeerServiceClient::new(link.map_err(|e| Status::unavailable(innermost(&e)))?))
}

/// Asks who answers there.
pub(super) async fn hello(
    client: &mut PeerServiceClient<Link>,
    peers: &Peers,
) -> Result<HelloResponse, Status> {
    let asked = client.hello(HelloRequest { node: peers.node });
    let answer = tokio::time::timeout(CONNECT, asked).await;
    Ok(answer.map_err(|_| Status::deadline_exceeded("no answer to hello"))??.into_inner())
}

/// Keeps up the link until it turns out to lead back here.
pub(super) async fn run(service: Arc<Service>, address: SocketAddr) {
    loop {
        match once(&service, address).await {
            Ok(Ended::ItIsMe) => {
                service.peers.outbox.disconnect(address);
                return std::future::pending().await;
            }
            Ok(Ended::Closed) => {}
            Err(error) => debug!(%address, %error, "peer lost"),
        }
        service.peers.outbox.disconnect(address);
        service.peers.note_alive(address, None);
        tokio::time::sleep(PAUSE + jitter(PAUSE)).await;
    }
}

enum Ended {
    /// The address is this replica's own.
    ItIsMe,
    Closed,
}

async fn once(service: &Arc<Service>, address: SocketAddr) -> Result<Ended, Status> {
    let peers = &service.peers;
    let mut client = connect(peers, address).await?;
    let answer = hello(&mut client, peers).await?;
    if answer.node == peers.node {
        return Ok(Ended::ItIsMe);
    }
    peers.note_alive(address, Some(answer.warm));
    let news = peers.outbox.connect(address, service.registrations_as_news());
    let mut telling = client.clone();
    let told = telling.tell(news);
    tokio::pin!(told);
    loop {
        tokio::select! {
            ended = &mut told => return ended.map(|_| Ended::Closed),
            () = tokio::time::sleep(PAUSE) => {
                let answer = hello(&mut client, peers).await?;
                peers.note_alive(address, Some(answer.warm));
            }
        }
    }
}
