//! What does the index hold?

use super::{Kind, Metric, Source, counter, gauge};

pub(super) const INDEX: &[Metric] = &[
    gauge("kvd_index_holders", "Engines (instance and rank) in the index.", |s| s.index.holders as f64),
    gauge("kvd_index_blocks", "Distinct prefix blocks.", |s| s.index.blocks as f64),
    gauge("kvd_index_entries", "(Block, holder) pairs.", |s| s.index.entries as f64),
    gauge("kvd_index_bytes", "Memory of blocks, tables and holders.", |s| s.index.bytes as f64),
    gauge("kvd_index_hash_domains", "Groups of engines that call blocks alike.", |s| s.index.domains as f64),
    counter("kvd_index_dropped_total", "(Block, holder) pairs dropped, over the memory limit.", |s| {
        s.index.dropped as f64
    }),
    gauge("kvd_index_speculative_entries", "(Block, holder) pairs that routing announced.", |s| {
        s.index.speculative as f64
    }),
    Metric {
        name: "kvd_tier_blocks",
        kind: Kind::Gauge,
        help: "Distinct blocks per engine, summed over engines, by tier.",
        source: Source::BlocksByTier,
    },
];
