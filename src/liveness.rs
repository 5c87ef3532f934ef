//! Asks engines' health endpoints, and ends registrations that nobody renewed.
//!
//! What follows from an answer is the lane's to decide, see `ingest::vital`; a connection that ended is
//! noticed by the readers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use crate::ingest::{Lane, Sign};
use crate::publisher::{PublisherSpec, Selector};
use crate::serve::Service;

/// How often leases are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks between two questions to the same health endpoint.
const ASK_EVERY: u64 = 5;
/// How long a health endpoint may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Health endpoints asked at the same time.
const AT_ONCE: usize = 32;

/// Keeps an eye on all publishers, for ever.
pub async fn watch(service: Arc<Service>) {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).max_redirects(0).build().into();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    for look in 0u64.. {
        let looking = Arc::clone(&service);
        // Leases take locks that a registration holds while it looks names up.
        let ended = tokio::task::spawn_blocking(move || end_leases(&looking)).await;
        if ended.is_err() {
            // The runtime is being shut down.
            return;
        }
        if look % ASK_EVERY == 0 && room.available_permits() == AT_ONCE {
            for lane in service.publishers.lanes() {
                let Some(url) = lane.spec.health_url.clone() else { continue };
                let (room, agent) = (Arc::clone(&room), agent.clone());
                tokio::spawn(async move {
                    // Never closed.
                    let Ok(_place) = room.acquire_owned().await else { return };
                    let asked = tokio::task::spawn_blocking(move || ask(&agent, &url, &lane));
                    // One that panicked has said so.
                    let _ = asked.await;
                });
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn ask(agent: &ureq::Agent, url: &str, lane: &Arc<Lane>) {
    let sign = match agent.get(url).call() {
        Ok(_) => Sign::Well,
        Err(error) => {
            debug!(publisher = %lane.spec.instance_id, url, %error, "engine is not well");
            Sign::Ill
        }
    };
    lane.push_sign(sign);
}

/// Ends registrations here. Other replicas decide for themselves: they may have heard of a renewal that did
/// not get here.
fn end_leases(service: &Service) {
    for spec in service.publishers.gone() {
        let PublisherSpec { tenant_id, model, instance_id, dp_rank, lease_seconds, .. } = spec;
        info!(tenant_id, model, instance_id, dp_rank, lease_seconds, "registration ends: nobody renewed it");
        let selector = Selector { tenant_id, model: Some(model), instance_id, dp_rank: Some(dp_rank) };
        if let Err(error) = service.publishers.unregister(&selector) {
            warn!(%error, "a registration that ended is still in the catalog");
        }
    }
}
