//! How do replicas share what they know, on Valkey and among each other?

use super::{Metric, counter, gauge, load};

pub(super) const REPLICAS: &[Metric] = &[
    gauge(
        "kvd_shared_index_owned_publishers",
        "Publishers that this kvd writes to the index on Valkey.",
        |s| s.service.mirror.as_ref().map_or(0.0, |m| load(&m.counts.owned)),
    ),
    counter("kvd_shared_index_commits_total", "Commits to the index on Valkey.", |s| {
        s.service.mirror.as_ref().map_or(0.0, |m| load(&m.counts.commits))
    }),
    counter("kvd_shared_index_failures_total", "Commits and claims there that failed.", |s| {
        s.service.mirror.as_ref().map_or(0.0, |m| load(&m.counts.failures))
    }),
    counter("kvd_shared_index_breaks_total", "Publishers cleared there because of a loss.", |s| {
        s.service.mirror.as_ref().map_or(0.0, |m| load(&m.counts.breaks))
    }),
    counter("kvd_shared_index_routings_total", "Routings announced or taken back there.", |s| {
        s.service.mirror.as_ref().map_or(0.0, |m| load(&m.counts.routings))
    }),
    counter("kvd_shared_index_routings_failed_total", "Routings that the servers did not take.", |s| {
        s.service.mirror.as_ref().map_or(0.0, |m| load(&m.counts.routings_failed))
    }),
    gauge("kvd_peers_connected", "Other replicas that answer.", |s| s.service.peers.connected() as f64),
    counter("kvd_peer_news_sent_total", "Routings and registrations told to other replicas.", |s| {
        load(&s.service.peers.counts.sent)
    }),
    counter("kvd_peer_news_dropped_total", "News that a replica was too slow for.", |s| {
        load(&s.service.peers.counts.dropped)
    }),
    counter("kvd_peer_news_heard_total", "News that other replicas told.", |s| {
        load(&s.service.peers.counts.heard)
    }),
    counter("kvd_peer_news_refused_total", "News heard that cannot be used.", |s| {
        load(&s.service.peers.counts.refused)
    }),
    counter("kvd_peer_digests_total", "Publishers compared with another replica.", |s| {
        load(&s.service.peers.counts.compared)
    }),
    counter("kvd_peer_digests_differing_total", "Publishers of which a replica had other blocks.", |s| {
        load(&s.service.peers.counts.differed)
    }),
    counter("kvd_peer_repairs_total", "Publishers learnt anew from another replica.", |s| {
        load(&s.service.peers.counts.repaired)
    }),
    counter("kvd_peer_snapshot_bytes_total", "Bytes of snapshots given to other replicas.", |s| {
        load(&s.service.peers.counts.given)
    }),
];
