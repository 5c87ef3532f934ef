//! What do dashboards of llm-d's index ask for?

use super::{Kind, Metric, Source, counter, load};

/// What llm-d's index exports, under its names, for dashboards that have them already.
pub const ALIASES: &[Metric] = &[
    counter("kvcache_index_admissions_total", "As kvd_blocks_stored_total.", |s| s.totals.stored as f64),
    counter("kvcache_index_evictions_total", "As kvd_blocks_removed_total.", |s| s.totals.removed as f64),
    counter("kvcache_index_lookup_requests_total", "As kvd_queries_total.", |s| {
        load(&s.service.counters.queries)
    }),
    counter("kvcache_index_lookup_hits_total", "As kvd_query_cached_blocks_total.", |s| {
        s.service.traffic.sums().best_blocks as f64
    }),
    counter("kvcache_index_max_pod_hit_count_total", "As kvd_query_cached_blocks_total.", |s| {
        s.service.traffic.sums().best_blocks as f64
    }),
    Metric {
        name: "kvcache_index_lookup_latency_seconds",
        kind: Kind::Histogram,
        help: "As kvd_query_seconds.",
        source: Source::QuerySeconds,
    },
];
