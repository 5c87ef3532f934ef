//! A new or restarted replica begins from what a warm peer has.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvproto::rpc::kv::BootstrapRequest;
use tokio::sync::mpsc;
use tonic::Status;
use tracing::{info, warn};

use super::jitter;
use super::link::{connect, hello};
use crate::publisher::{Followed, Origin};
use crate::serve::Service;
use crate::snapshot::{Loaded, load};

/// Sockets subscribe a moment after a publisher is registered; what the snapshot has must not end before.
const SUBSCRIBED: Duration = Duration::from_millis(300);
/// Replicas that start together ask at different times.
const SPREAD: Duration = Duration::from_millis(400);
/// Pieces that may wait to be put in.
const WAITING: usize = 16;
/// How long a peer may send nothing.
const SILENCE: Duration = Duration::from_secs(30);

/// Lets the publishers that wait go on from what a warm peer has; from whom, and what came of it. `None`
/// where there is no such peer.
pub async fn bootstrap(service: &Arc<Service>) -> Option<(SocketAddr, Loaded)> {
    let mut everyone = service.peers.everyone().await;
    if everyone.is_empty() {
        return None;
    }
    tokio::time::sleep(SUBSCRIBED + jitter(SPREAD)).await;
    // Each replica asks another one first.
    let n = everyone.len();
    everyone.rotate_left(service.peers.node as usize % n);
    for address in everyone {
        match from(service, address).await {
            Ok(Some(loaded)) => {
                let Loaded { publishers, blocks, .. } = loaded;
                info!(peer = %address, publishers, blocks, "went on from a peer");
                return Some((address, loaded));
            }
            Ok(None) => {}
            Err(error) => warn!(peer = %address, error = error.message(), "cannot begin from this peer"),
        }
    }
    None
}

/// The same from one peer. `None` where that is this replica itself, or not warm.
pub(super) async fn from(service: &Arc<Service>, address: SocketAddr) -> Result<Option<Loaded>, Status> {
    let mut client = connect(&service.peers, address).await?;
    let answer = hello(&mut client, &service.peers).await?;
    if answer.node == service.peers.node || !answer.warm {
        return Ok(None);
    }
    let asked = client.bootstrap(BootstrapRequest { node: service.peers.node });
    let mut chunks = asked.await?.into_inner();
    let (pieces, waiting) = mpsc::channel(WAITING);
    let loading = Arc::clone(service);
    let loaded = tokio::task::spawn_blocking(move || {
        let adopt = |followed: Followed| {
            let instance = followed.spec.instance_id.clone();
            let here = loading.publishers.lane_by(&followed.spec.key()).is_some();
            let fits = match &followed.origin {
                Origin::Client | Origin::Topic => true,
                // Each replica has a configuration of its own.
                Origin::Config => false,
                // What was seen here is newer; what nobody looks for here would never leave.
                Origin::Discovered(s) => !here && loading.discovery.looks_at(s.source),
            };
            if fits && let Err(error) = loading.publishers.register(followed) {
                warn!(instance, %error, "a peer's publisher is not followed here");
            }
        };
        load(&loading.publishers, &loading.index, &mut Pieces::new(waiting), adopt)
    });
    let failed = loop {
        match tokio::time::timeout(SILENCE, chunks.message()).await {
            Ok(Ok(Some(chunk))) => {
                if pieces.send(Ok(chunk.data)).await.is_err() {
                    // Loading has ended, and says why.
                    break None;
                }
            }
            Ok(Ok(None)) => break None,
            Ok(Err(status)) => break Some(status),
            Err(_) => break Some(Status::deadline_exceeded("it sends nothing")),
        }
    };
    if let Some(status) = &failed {
        // A stream that broke off must not look as if it had ended.
        let _ = pieces.send(Err(status.message().to_owned())).await;
    }
    drop(pieces);
    let loaded = loaded.await.map_err(|e| Status::internal(e.to_string()))?;
    match (loaded, failed) {
        (_, Some(status)) => Err(status),
        (Ok(loaded), None) => Ok(Some(loaded)),
        (Err(error), None) => Err(Status::data_loss(error.to_string())),
    }
}

/// What comes over the network, to be read.
struct Pieces {
    waiting: mpsc::Receiver<Result<Bytes, String>>,
    piece: Bytes,
}

impl Pieces {
    fn new(waiting: mpsc::Receiver<Result<Bytes, String>>) -> Pieces {
        Pieces { waiting, piece: Bytes::new() }
    }
}

impl Read for Pieces {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.waiting.blocking_recv() {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(why)) => return Err(io::Error::other(why)),
                None => return Ok(0),
            }
        }
        let n = to.len().min(self.piece.len());
        to[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}
