//! From the queue to the nodes: one connection to each, a few calls at a time, none for long.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvproto::rpc::kv::HintRequest;
use kvproto::rpc::kv::tier_service_client::TierServiceClient;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tracing::debug;

use super::Hint;
use crate::serve::Service;

/// How long connecting and a call may take: after that, the engine has asked by itself.
const PATIENCE: Duration = Duration::from_secs(1);
/// Calls to one node under way at a time.
const AT_ONCE: usize = 4;
/// Nodes that connections are kept to. With more, all are made anew.
const MOST_NODES: usize = 4096;

#[derive(Clone)]
struct Node {
    client: TierServiceClient<Channel>,
    calls: Arc<Semaphore>,
}

/// Sends hints for as long as the service runs. Never returns; one task runs it.
pub async fn run(service: Arc<Service>) {
    let Some(mut waiting) = service.hints.waiting.lock().take() else { return };
    let mut nodes: HashMap<String, Node> = HashMap::new();
    while let Some(hint) = waiting.recv().await {
        let counts = &service.hints.counts;
        if nodes.len() >= MOST_NODES {
            nodes.clear();
        }
        let node = match nodes.get(&hint.to) {
            Some(node) => node.clone(),
            None => match reach(&hint.to) {
                Ok(node) => nodes.entry(hint.to.clone()).or_insert(node).clone(),
                Err(error) => {
                    counts.failed.fetch_add(1, Ordering::Relaxed);
                    debug!(to = hint.to, %error, "a node cannot be told");
                    continue;
                }
            },
        };
        // A node that does not keep up must not keep others waiting.
        let Ok(permit) = Arc::clone(&node.calls).try_acquire_owned() else {
            counts.dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            tell(&service, node.client, hint).await;
            drop(permit);
        });
    }
}

/// A node's connection, which is made when it is first used, and again when it broke.
fn reach(to: &str) -> Result<Node, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{to}"))?.connect_timeout(PATIENCE).tcp_nodelay(true);
    let client = TierServiceClient::new(endpoint.connect_lazy());
    Ok(Node { client, calls: Arc::new(Semaphore::new(AT_ONCE)) })
}

async fn tell(service: &Service, mut client: TierServiceClient<Channel>, hint: Hint) {
    let request = HintRequest {
        model: hint.model,
        max_blocks: u32::try_from(hint.hashes.len()).unwrap_or(u32::MAX),
        hashes: hint.hashes,
        ttl_ms: hint.stay.as_millis() as u64,
        source: hint.source,
    };
    let answer = tokio::time::timeout(PATIENCE, client.hint(request)).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
    let counts = &service.hints.counts;
    match answer {
        Ok(answer) => {
            counts.sent.fetch_add(1, Ordering::Relaxed);
            let answer = answer.into_inner();
            counts.blocks.fetch_add(answer.copied, Ordering::Relaxed);
            counts.pulling.fetch_add(answer.pulling, Ordering::Relaxed);
        }
        Err(error) => {
            counts.failed.fetch_add(1, Ordering::Relaxed);
            debug!(to = hint.to, %error, "a node was not told");
        }
    }
}
