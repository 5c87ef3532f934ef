//! What is asked, what is found, and what is made of it before an engine asks?

use super::{Kind, Metric, Source, counter, gauge, load};

pub(super) const QUESTIONS: &[Metric] = &[
    Metric {
        name: "kvd_query_seconds",
        kind: Kind::Histogram,
        help: "From a checked question to its answer, transport excluded.",
        source: Source::QuerySeconds,
    },
    counter("kvd_queries_total", "Questions answered, over gRPC and HTTP.", |s| {
        load(&s.service.counters.queries)
    }),
    counter("kvd_query_errors_total", "Questions refused.", |s| load(&s.service.counters.query_errors)),
    counter("kvd_query_unknown_model_total", "Questions about a model that nobody is registered for.", |s| {
        load(&s.service.counters.unknown_model)
    }),
    counter("kvd_query_tokens_total", "Tokens of all prompts asked about.", |s| {
        s.service.traffic.sums().asked_tokens as f64
    }),
    counter(
        "kvd_query_cached_tokens_total",
        "Of those, tokens cached on the candidate that has most of the prompt.",
        |s| s.service.traffic.sums().best_tokens as f64,
    ),
    counter(
        "kvd_query_cached_blocks_total",
        "Blocks from the root on the candidate that has most of the prompt.",
        |s| s.service.traffic.sums().best_blocks as f64,
    ),
    gauge("kvd_query_prefixes", "Beginnings of prompts that are remembered, to show the hottest.", |s| {
        s.service.traffic.nodes() as f64
    }),
    counter("kvd_routings_total", "Routings announced.", |s| load(&s.service.counters.routings)),
    counter("kvd_routings_expired_total", "Announced routings ended by their time to live.", |s| {
        load(&s.service.counters.routings_expired)
    }),
    counter("kvd_hints_total", "Nodes told what a request routed to them will ask for.", |s| {
        load(&s.service.hints.counts.sent)
    }),
    counter("kvd_hints_dropped_total", "Nodes not told, because too much was waiting.", |s| {
        load(&s.service.hints.counts.dropped)
    }),
    counter("kvd_hints_failed_total", "Nodes not told: no connection, refused, or no answer in time.", |s| {
        load(&s.service.hints.counts.failed)
    }),
    counter("kvd_hint_pulls_total", "Blocks that nodes set out to pull from others for hints.", |s| {
        load(&s.service.hints.counts.pulling)
    }),
    counter("kvd_hint_blocks_total", "Blocks that nodes brought up for hints.", |s| {
        load(&s.service.hints.counts.blocks)
    }),
];
