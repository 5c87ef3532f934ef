//! How is each publisher doing? All carry its tenant, model, instance and dp_rank.

use std::time::Instant;

use super::{Kind, Metric, Publisher, Source, by_publisher};

pub(super) const PUBLISHERS: &[Metric] = &[
    by_publisher("kvd_publisher_blocks", Kind::Gauge, "Distinct blocks held.", |p| p.held.blocks as f64),
    by_publisher(
        "kvd_publisher_suspect_blocks",
        Kind::Gauge,
        "Distinct blocks held before batches were lost for good, which may be gone since.",
        |p| p.held.suspect as f64,
    ),
    by_publisher("kvd_publisher_queued_messages", Kind::Gauge, "Messages waiting to be applied.", |p| {
        p.status.queued as f64
    }),
    by_publisher(
        "kvd_publisher_staleness_seconds",
        Kind::Gauge,
        "How long the oldest message not yet applied has been waiting; 0 = none is.",
        |p| p.since(p.status.freshness.oldest_queued),
    ),
    by_publisher(
        "kvd_publisher_silent_seconds",
        Kind::Gauge,
        "Since the last message; idle engines are silent. 0 before the first.",
        |p| p.since(p.status.freshness.last_message),
    ),
    by_publisher(
        "kvd_publisher_dropped_total",
        Kind::Counter,
        "Messages dropped, the queue was full.",
        |p| p.status.dropped as f64,
    ),
    by_publisher("kvd_publisher_gaps_total", Kind::Counter, "Losses noticed.", |p| p.status.gaps as f64),
    Metric {
        name: "kvd_publisher_outcomes_total",
        kind: Kind::Counter,
        help: "Outcomes compared with what was predicted, by verdict; without a label value that never occurred.",
        source: Source::ByVerdict,
    },
    Metric {
        name: "kvd_publisher_too_low_tokens",
        kind: Kind::Histogram,
        help: "Tokens predicted too few, of outcomes that nothing explains.",
        source: Source::ErrorTokens(|t| &t.too_low),
    },
    Metric {
        name: "kvd_publisher_too_high_tokens",
        kind: Kind::Histogram,
        help: "Tokens predicted too many, of outcomes that nothing explains.",
        source: Source::ErrorTokens(|t| &t.too_high),
    },
    by_publisher(
        "kvd_publisher_distrusted_blocks",
        Kind::Gauge,
        "Blocks that do not count now, because reports contradict them.",
        |p| p.distrusted as f64,
    ),
    by_publisher(
        "kvd_publisher_distrusted_total",
        Kind::Counter,
        "Blocks that began not to count, because reports contradicted them.",
        |p| p.tally.distrusted as f64,
    ),
    by_publisher(
        "kvd_publisher_blocks_refused_total",
        Kind::Counter,
        "Blocks refused, over the limit.",
        |p| p.held.refused as f64,
    ),
    by_publisher(
        "kvd_publisher_blocks_dropped_total",
        Kind::Counter,
        "Blocks dropped, over the index's memory limit.",
        |p| p.held.dropped as f64,
    ),
];

impl Publisher<'_> {
    fn since(&self, at: Option<Instant>) -> f64 {
        at.map_or(0.0, |at| self.now.saturating_duration_since(at).as_secs_f64())
    }
}
