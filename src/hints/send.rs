//! From the queue to the nodes: one connection to each, a few calls at a time, none for long.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvproto::rpc::kv::HintRequest;
use kvproto::rpc::kv::tier_service_client::TierServiceClient;
use tonic::Status;
use tracing::debug;

use super::Hint;
use crate::guard::dial::Link;
use crate::nodes::{Nodes, PATIENCE};
use crate::serve::Service;

/// Sends hints for as long as the service runs. Never returns; one task runs it.
pub async fn run(service: Arc<Service>) {
    let Some(mut waiting) = service.hints.waiting.lock().take() else { return };
    let mut nodes = Nodes::new(service.tiers.clone());
    while let Some(hint) = waiting.recv().await {
        let counts = &service.hints.counts;
        let node = match nodes.at(&hint.to) {
            Ok(node) => node,
            Err(error) => {
                counts.failed.fetch_add(1, Ordering::Relaxed);
                debug!(to = hint.to, %error, "a node cannot be told");
                continue;
            }
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

async fn tell(service: &Service, mut client: TierServiceClient<Link>, hint: Hint) {
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
