//! Do two replicas have the same of a publisher, and what if not?
//!
//! Both look as of the same batch, so a difference is one: a batch lost that neither noticed, or an
//! index at fault. The replica that has followed the publisher for less time learns it anew from the other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvindex::snapshot::Digest;
use kvproto::rpc::kv::peer_service_client::PeerServiceClient;
use kvproto::rpc::kv::{GetDigestRequest, GetDigestResponse};
use tonic::Status;
use tracing::{debug, info, warn};

use super::bootstrap::from;
use super::link::connect;
use super::{Counts, jitter};
use crate::guard::dial::Link;
use crate::ingest::Lane;
use crate::publisher::PublisherState;
use crate::serve::Service;

/// Batches ahead of the last one that both are asked to look at, where the engine is busy.
const AHEAD: u64 = 16;
/// How long that batch is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// As it travels.
pub(super) fn to_bytes(held: u128) -> Bytes {
    Bytes::copy_from_slice(&held.to_le_bytes())
}

/// What a comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They have the same, or were not at the same batch of the same engine.
    Fine,
    /// They differ, and the other one is to be trusted less.
    TheyYield,
    /// They differ, and this one is to be trusted less.
    WeYield,
}

/// Compares what this replica has with what a peer says.
pub(super) fn judge(
    ours: &(f64, Digest),
    complete: bool,
    followed: Duration,
    theirs: &GetDigestResponse,
) -> Verdict {
    let (ts, digest) = ours;
    let same = theirs.held == to_bytes(digest.held) && theirs.entries == digest.entries;
    if !theirs.found || theirs.ts.to_bits() != ts.to_bits() || same {
        return Verdict::Fine;
    }
    // Who does not know the whole history may lack some of it: that is no fault of anybody.
    match (complete, theirs.complete) {
        (false, false) => Verdict::Fine,
        (true, false) => Verdict::TheyYield,
        (false, true) => Verdict::WeYield,
        (true, true) if (followed.as_millis() as u64) < theirs.followed_ms => Verdict::WeYield,
        (true, true) => Verdict::TheyYield,
    }
}

/// Compares now and then, until dropped.
pub(super) async fn run(service: Arc<Service>) {
    let every = service.peers.config.compare_every;
    if every.is_zero() {
        return;
    }
    loop {
        tokio::time::sleep(every / 2 + jitter(every)).await;
        let warm = service.peers.warm();
        // One connection to each for all publishers; who cannot be reached is not tried again this time.
        let mut clients = Vec::with_capacity(warm.len());
        for peer in warm {
            match connect(&service.peers, peer).await {
                Ok(client) => clients.push((peer, client)),
                Err(error) => debug!(%peer, %error, "not compared"),
            }
        }
        for (i, lane) in service.publishers.lanes().into_iter().enumerate() {
            let n = clients.len().max(1);
            let Some((peer, client)) = clients.get_mut(i % n) else { break };
            let peer = *peer;
            match compare(&service, &lane, peer, client).await {
                Ok(Verdict::WeYield) => repair(&service, &lane, peer).await,
                Ok(Verdict::TheyYield | Verdict::Fine) => {}
                Err(error) => debug!(%peer, %error, "not compared"),
            }
        }
    }
}

async fn compare(
    service: &Arc<Service>,
    lane: &Arc<Lane>,
    peer: SocketAddr,
    client: &mut PeerServiceClient<Link>,
) -> Result<Verdict, Status> {
    let freshness = lane.freshness();
    let (PublisherState::Live | PublisherState::Partial, Some(last)) = (freshness.state, freshness.last_seq)
    else {
        return Ok(Verdict::Fine);
    };
    // An idle engine stays where it is; of a busy one a batch is taken that neither has reached.
    for at_seq in [last, last.saturating_add(AHEAD)] {
        let looking = Arc::clone(lane);
        let ours = tokio::task::spawn_blocking(move || looking.digest_at(at_seq, PATIENCE));
        let asked = client.get_digest(GetDigestRequest {
            tenant_id: lane.spec.tenant_id.clone(),
            model: lane.spec.model.clone(),
            instance_id: lane.spec.instance_id.clone(),
            dp_rank: lane.spec.dp_rank,
            at_seq,
        });
        let (ours, theirs) = tokio::join!(ours, asked);
        let theirs = theirs?.into_inner();
        let Some(ours) = ours.map_err(|e| Status::internal(e.to_string()))? else { continue };
        if !theirs.found {
            continue;
        }
        let counts = &service.peers.counts;
        Counts::add(&counts.compared, 1);
        let verdict = judge(&ours, lane.freshness().complete, lane.followed_for(), &theirs);
        if verdict != Verdict::Fine {
            Counts::add(&counts.differed, 1);
            warn!(
                instance = lane.spec.instance_id, %peer, seq = at_seq, ours = ours.1.entries,
                theirs = theirs.entries, "replicas have different blocks"
            );
        }
        return Ok(verdict);
    }
    Ok(Verdict::Fine)
}

/// Learns one publisher anew from the peer.
async fn repair(service: &Arc<Service>, lane: &Arc<Lane>, peer: SocketAddr) {
    info!(instance = lane.spec.instance_id, %peer, "learning a publisher anew from a peer");
    let (again, spec) = (Arc::clone(service), lane.spec.clone());
    let follow = tokio::task::spawn_blocking(move || again.publishers.follow_anew(&spec));
    let Ok(Some(fresh)) = follow.await else { return };
    if let Err(error) = from(service, peer).await {
        warn!(%peer, %error, "cannot learn it from the peer, asking the engine");
    }
    // Where the peer did not have it, the engine's own history has to do.
    fresh.begin();
    Counts::add(&service.peers.counts.repaired, 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn theirs(held: u128, ts: f64, complete: bool, followed_ms: u64) -> GetDigestResponse {
        GetDigestResponse { found: true, ts, entries: 3, held: to_bytes(held), complete, followed_ms }
    }

    fn ours(held: u128) -> (f64, Digest) {
        (7.0, Digest { entries: 3, held, ..Digest::default() })
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_same_or_another_batch_is_fine() {
        assert_eq!(judge(&ours(5), true, MINUTE, &theirs(5, 7.0, true, 0)), Verdict::Fine);
        assert_eq!(judge(&ours(5), true, MINUTE, &theirs(6, 8.0, true, 0)), Verdict::Fine, "of another life");
        let nothing = GetDigestResponse { found: false, ..theirs(6, 7.0, true, 0) };
        assert_eq!(judge(&ours(5), true, MINUTE, &nothing), Verdict::Fine);
    }

    #[test]
    fn of_two_that_differ_the_one_that_knows_less_or_came_later_yields() {
        assert_eq!(judge(&ours(5), true, MINUTE, &theirs(6, 7.0, false, u64::MAX)), Verdict::TheyYield);
        assert_eq!(judge(&ours(5), false, MINUTE, &theirs(6, 7.0, true, 0)), Verdict::WeYield);
        assert_eq!(judge(&ours(5), true, MINUTE, &theirs(6, 7.0, true, 60_001)), Verdict::WeYield);
        assert_eq!(judge(&ours(5), true, MINUTE, &theirs(6, 7.0, true, 59_999)), Verdict::TheyYield);
        assert_eq!(
            judge(&ours(5), false, MINUTE, &theirs(6, 7.0, false, 0)),
            Verdict::Fine,
            "both lack some"
        );
    }
}
