//! Who is found by itself?

use super::{Metric, counter, gauge, load};

pub(super) const DISCOVERY: &[Metric] = &[
    gauge("kvd_discovery_synced", "1 when all that there was to discover at the start is followed.", |s| {
        f64::from(u8::from(s.service.discovery.is_synced()))
    }),
    gauge("kvd_discovery_publishers", "Publishers that are discovered.", |s| {
        s.service.discovery.shown().publishers as f64
    }),
    gauge("kvd_discovery_refused", "What is seen and cannot be followed; GET /discovery says why.", |s| {
        s.service.discovery.shown().refused.len() as f64
    }),
    gauge("kvd_discovery_feeds_failing", "Places that cannot be looked at now.", |s| {
        s.service.discovery.shown().feeds.iter().filter(|f| f.error.is_some()).count() as f64
    }),
    counter("kvd_discovery_followed_total", "Publishers followed because they were discovered.", |s| {
        load(&s.service.discovery.counts.followed)
    }),
    counter("kvd_discovery_left_total", "Publishers left because they are not there any more.", |s| {
        load(&s.service.discovery.counts.left)
    }),
    counter("kvd_discovery_failures_total", "Discovered publishers that could not be followed.", |s| {
        load(&s.service.discovery.counts.failed)
    }),
    counter("kvd_discovery_errors_total", "Times that pods or the file could not be looked at.", |s| {
        load(&s.service.discovery.counts.errors)
    }),
    counter("kvd_discovery_lists_total", "Times that all pods, or the file, were read.", |s| {
        load(&s.service.discovery.counts.listed)
    }),
];
